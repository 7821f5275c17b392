//! A core's stacks: where they lie in the final address space, and how large they are.
//!
//! Each stack ends a slot of 128 KiB, the rest of which is never mapped: running off a stack is a page fault, which
//! has a stack of its own.

/// Where the first core's stacks begin.
pub const STACKS: u64 = 0xffff_c000_0000_0000;
const SLOT: u64 = 128 << 10;
/// The distance between two cores' stacks.
const STRIDE: u64 = 1 << 20;

/// The interrupt stacks in the order of their numbers in the task state, from 1 on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Ist {
    /// Exceptions, whichever ring they come from; a kernel panic runs here.
    Exception = 1,
    /// Interrupts, which leave it at once.
    Interrupt = 2,
    /// NMI.
    Nmi = 3,
    /// Double fault; a kernel panic runs here.
    DoubleFault = 4,
    /// Machine check; a kernel panic runs here.
    MachineCheck = 5,
}

/// Bytes of each interrupt stack.
const IST_BYTES: [u64; 5] = [16 << 10, 4 << 10, 4 << 10, 16 << 10, 16 << 10];
/// Bytes of the stack that handlers run on.
const KERNEL_BYTES: u64 = 64 << 10;
const _: () = assert!(KERNEL_BYTES < SLOT && 6 * SLOT <= STRIDE);

/// The ends (highest addresses) of a core's stacks.
#[derive(Clone, Copy, Debug)]
pub struct Stacks {
    /// The stack that handlers run on.
    pub kernel: u64,
    /// The interrupt stacks, by [`Ist`] less one.
    pub ist: [u64; 5],
}

impl Stacks {
    /// The stacks of a core in the final address space.
    #[must_use]
    pub fn of_core(core: usize) -> Self {
        let base = STACKS + core as u64 * STRIDE;
        Self { kernel: base + SLOT, ist: core::array::from_fn(|i| base + (i as u64 + 2) * SLOT) }
    }

    /// Start and bytes of each.
    pub fn ranges(self) -> impl Iterator<Item = (u64, u64)> {
        core::iter::once((self.kernel, KERNEL_BYTES))
            .chain(self.ist.into_iter().zip(IST_BYTES))
            .map(|(end, bytes)| (end - bytes, bytes))
    }
}
