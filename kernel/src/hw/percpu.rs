//! What each core has of its own. GS points to a core's [`PerCpu`] while it runs in ring 0; the other GS base, which
//! ring 3 sees, is zero and ring 3 cannot change it to an address of the kernel's (FSGSBASE is off).
#![expect(unsafe_code, reason = "GS, and one block per core in a static")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use ipc::abi::MAX_CORES;
use kernel::context::{RESUME_OFFSET, UserContext};

use super::gdt::{Gdt, Tss};
use super::instructions::{read_msr, write_msr};
use super::lock::Guard;
use super::stacks::Stacks;

/// IA32_GS_BASE and IA32_KERNEL_GS_BASE (Intel SDM 4, table 2-2).
pub const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// One core's block. The entry code knows the first four fields.
#[repr(C, align(64))]
pub struct PerCpu {
    this: *const PerCpu,
    current: *const UserContext,
    kernel_stack_top: u64,
    scratch: u64,
    core: usize,
    gdt: Gdt,
    tss: Tss,
}

/// Offset of the block's own address.
pub const THIS: usize = offset_of!(PerCpu, this);
/// Offset of the address of the context that runs.
pub const CURRENT: usize = offset_of!(PerCpu, current);
/// Offset of the end of the kernel's stack.
pub const KERNEL_STACK: usize = offset_of!(PerCpu, kernel_stack_top);
/// Offset of a word for the entry code.
pub const SCRATCH: usize = offset_of!(PerCpu, scratch);

/// What `current` points to when a core has nothing to run: only its `resume` is ever looked at, by the exit code.
/// So the test for it costs the way out of a system call nothing.
#[repr(C, align(64))]
struct IdleContext {
    registers: [u64; 18],
    resume: u64,
}

static IDLE: IdleContext = IdleContext { registers: [0; 18], resume: 2 };
const _: () = assert!(offset_of!(IdleContext, resume) == RESUME_OFFSET);

struct Blocks([UnsafeCell<PerCpu>; MAX_CORES]);

// SAFETY: a block is written by the first core before its own core starts, and by its own core alone from then on.
unsafe impl Sync for Blocks {}

static BLOCKS: Blocks = Blocks(
    [const {
        UnsafeCell::new(PerCpu {
            this: core::ptr::null(),
            current: core::ptr::null(),
            kernel_stack_top: 0,
            scratch: 0,
            core: 0,
            gdt: Gdt::new(),
            tss: Tss::new(),
        })
    }; MAX_CORES],
);

/// The cores' local APIC numbers, for whoever sends to them.
static APIC_IDS: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];

/// The local APIC number of a core that was prepared.
#[must_use]
pub fn apic_id_of(core: usize) -> Option<u32> {
    APIC_IDS.get(core).map(|id| id.load(Ordering::Relaxed))
}

/// Fills a core's block; `core` is below [`MAX_CORES`].
///
/// # Safety
/// The core does not run yet, or it is this core and no reference to its block exists. The stacks are mapped when
/// they come to be used, and are the core's alone.
pub unsafe fn prepare(core: usize, apic_id: u32, stacks: &Stacks) -> *mut PerCpu {
    let block = BLOCKS.0[core].get();
    APIC_IDS[core].store(apic_id, Ordering::Relaxed);
    // SAFETY: the caller vouches that nobody else has the block.
    let this = unsafe { &mut *block };
    this.this = block;
    this.set_idle();
    this.core = core;
    this.set_stacks(stacks);
    this.gdt.set_tss(&raw const this.tss);
    block
}

/// Loads this core's descriptor tables and GS.
///
/// # Safety
/// `block` was prepared for this core, and no reference to it exists.
pub unsafe fn load(block: *mut PerCpu) {
    // SAFETY: the caller vouches for the block.
    let this = unsafe { &*block };
    // SAFETY: the table lies in a static, and its task descriptor is of the same block.
    unsafe { this.gdt.load() };
    // SAFETY: the address is the block's, where the entry code expects it.
    unsafe { write_msr(MSR_GS_BASE, block.expose_provenance() as u64) };
    // SAFETY: this is what ring 3 gets at the first way out.
    unsafe { write_msr(MSR_KERNEL_GS_BASE, 0) };
}

/// This core's number, when it has got as far as having one: for the panic handler, which may come at any time.
#[must_use]
pub fn core_if_known() -> Option<usize> {
    // SAFETY: every processor in long mode has this register.
    let base = unsafe { read_msr(MSR_GS_BASE) };
    let blocks = BLOCKS.0.as_ptr().expose_provenance() as u64;
    let index = base.checked_sub(blocks)? / size_of::<PerCpu>() as u64;
    usize::try_from(index).ok().filter(|&index| index < MAX_CORES)
}

impl PerCpu {
    /// The core's number: 0 is the one that booted.
    #[must_use]
    pub const fn core(&self) -> usize {
        self.core
    }

    /// Chooses what the core goes on with when the handler returns: what `select` finds in the locked value, or the
    /// idle halt when that is `None`.
    ///
    /// The context comes out of the value behind a static lock, so its memory is there for ever, and the entry code
    /// uses it only outside the handlers, as the lock's owner for that one thread.
    #[inline]
    pub fn set_current<T: 'static>(
        &mut self,
        guard: &mut Guard<T>,
        select: impl for<'a> FnOnce(&'a mut T) -> Option<&'a mut UserContext>,
    ) {
        match select(guard) {
            Some(context) => self.current = context,
            None => self.set_idle(),
        }
    }

    /// Lets the core halt until an interrupt when the handler returns.
    #[inline]
    pub const fn set_idle(&mut self) {
        self.current = (&raw const IDLE).cast();
    }

    /// Says which stacks to use from the next entry on.
    pub fn set_stacks(&mut self, stacks: &Stacks) {
        self.kernel_stack_top = stacks.kernel;
        self.tss.set_stacks(stacks);
    }
}
