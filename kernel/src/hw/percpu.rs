//! What each core has of its own. GS points to a core's [`PerCpu`] while it runs in ring 0; the other GS base, which
//! ring 3 sees, is zero and ring 3 cannot change it to an address of the kernel's (FSGSBASE is off).
#![expect(unsafe_code, reason = "GS, and one block per core in a static")]

use core::arch::asm;
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
    status: *const CoreStatus,
    host_save: u64,
    core: usize,
    gdt: Gdt,
    tss: Tss,
}

/// What other cores may know of a core: whether it can use a translation that was taken away.
#[repr(C, align(64))]
pub struct CoreStatus {
    /// It is in guest mode, or on its way there; the entry code clears it. The first field.
    in_guest: AtomicU32,
    /// Interrupts that it took.
    entries: AtomicU32,
    /// It waits for the kernel lock.
    waiting: AtomicU32,
}

static STATUSES: [CoreStatus; MAX_CORES] = [const {
    CoreStatus { in_guest: AtomicU32::new(0), entries: AtomicU32::new(0), waiting: AtomicU32::new(0) }
}; MAX_CORES];

/// The status of this core.
#[inline]
#[must_use]
pub fn status() -> &'static CoreStatus {
    let status: *const CoreStatus;
    // SAFETY: GS points to this core's block, which was prepared.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) status, const STATUS, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: it is one of the static array's.
    unsafe { &*status }
}

impl CoreStatus {
    /// The core came in by an interrupt.
    #[inline]
    pub fn note_entry(&self) {
        self.entries.fetch_add(1, Ordering::Release);
    }

    /// The core goes to guest mode. Called under the kernel lock, so that who has it next knows.
    #[inline]
    pub fn begin_guest(&self) {
        self.in_guest.store(1, Ordering::Relaxed);
    }

    /// The core begins, or has ended, to wait for the kernel lock.
    #[inline]
    pub fn wait_for_lock(&self, waits: bool) {
        self.waiting.store(u32::from(waits), Ordering::Release);
    }
}

/// Makes another core leave ring 3 or guest mode, by `interrupt`, and waits until it has. The caller holds the kernel
/// lock, so a core that is in the kernel already comes to wait for that.
pub fn expel(core: usize, interrupt: impl FnOnce()) {
    let Some(status) = STATUSES.get(core) else { return };
    let entries = status.entries.load(Ordering::Acquire);
    let was_in_guest = status.in_guest.load(Ordering::Acquire) != 0;
    interrupt();
    loop {
        let left_guest = was_in_guest && status.in_guest.load(Ordering::Acquire) == 0;
        let came = status.entries.load(Ordering::Acquire) != entries;
        if left_guest || came || status.waiting.load(Ordering::Acquire) != 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Offset of the block's own address.
pub const THIS: usize = offset_of!(PerCpu, this);
/// Offset of the address of the context that runs.
pub const CURRENT: usize = offset_of!(PerCpu, current);
/// Offset of the end of the kernel's stack.
pub const KERNEL_STACK: usize = offset_of!(PerCpu, kernel_stack_top);
/// Offset of a word for the entry code.
pub const SCRATCH: usize = offset_of!(PerCpu, scratch);

/// Offset of the address of the core's status.
pub const STATUS: usize = offset_of!(PerCpu, status);
/// Offset of the physical address of what `VMSAVE` saved of this core.
pub const HOST_SAVE: usize = offset_of!(PerCpu, host_save);

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
            status: core::ptr::null(),
            host_save: 0,
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
    this.status = &raw const STATUSES[core];
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

    /// Says where what `VMSAVE` saved of this core is.
    pub const fn set_host_save(&mut self, at: u64) {
        self.host_save = at;
    }

    /// Says which stacks to use from the next entry on.
    pub fn set_stacks(&mut self, stacks: &Stacks) {
        self.kernel_stack_top = stacks.kernel;
        self.tss.set_stacks(stacks);
    }
}
