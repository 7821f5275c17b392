//! Starting the other cores (Intel SDM 3A, 9.4): INIT to all of them, then one start-up interrupt after another, so that
//! cores are numbered in the same order at every boot. One that does not answer is left out.
#![expect(unsafe_code, reason = "the trampoline and what the new cores start with")]

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kernel::address::PhysAddr;

use super::percpu::{self, PerCpu};
use super::stacks::Stacks;
use super::{apic, boot, clock, direct, processor, space, svm};
use crate::print;

/// What the core that starts next finds: `smp.S` reads it.
#[repr(C)]
struct Claim {
    apic_id: AtomicU32,
    state: AtomicU32,
    root: AtomicU64,
    stack: AtomicU64,
    block: AtomicU64,
}

static CLAIM: Claim = Claim {
    apic_id: AtomicU32::new(0),
    state: AtomicU32::new(NONE),
    root: AtomicU64::new(0),
    stack: AtomicU64::new(0),
    block: AtomicU64::new(0),
};

/// Whether the other cores were taken from the firmware. Before that an NMI would find them in its code, which may not
/// survive it.
static OTHERS_ARE_OURS: AtomicBool = AtomicBool::new(false);

/// Halts all other cores that run the kernel.
pub fn stop_others() {
    if OTHERS_ARE_OURS.load(Ordering::Acquire) {
        apic::send_nmi_to_others();
    }
}

const NONE: u32 = 0;
/// The first core waits for the core of `apic_id`.
const WANTED: u32 = 1;
/// It has come.
const CLAIMED: u32 = 2;
/// It is set up.
const RUNNING: u32 = 3;

global_asm!(
    include_str!("smp.S"),
    CLAIM = sym CLAIM,
    APIC_ID = const offset_of!(Claim, apic_id),
    STATE = const offset_of!(Claim, state),
    ROOT = const offset_of!(Claim, root),
    STACK = const offset_of!(Claim, stack),
    BLOCK = const offset_of!(Claim, block),
    WANTED = const WANTED,
    CLAIMED = const CLAIMED,
    ap_rust = sym ap_rust,
    options(att_syntax)
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// A page below 1 MiB for the trampoline, kept for it for ever: a core that was given up may still wake there.
#[derive(Clone, Copy, Debug)]
pub struct TrampolinePage(u8);

impl TrampolinePage {
    /// The page at an address, if that is the start of a page that real mode reaches.
    #[must_use]
    pub fn new(at: PhysAddr) -> Option<Self> {
        let page = u8::try_from(at.0 / 4096).ok()?;
        if at.0.is_multiple_of(4096) && page != 0 { Some(Self(page)) } else { None }
    }

    const fn address(self) -> PhysAddr {
        PhysAddr((self.0 as u64) << 12)
    }
}

/// Starts the cores with these local APIC numbers (this core's is passed over), as cores 1 and up; the address space
/// has stacks for as many. Each runs [`crate::ap_main`] at once. Returns how many cores run, this one included.
pub fn start(apic_ids: &[u32], page: TrampolinePage, tsc_hz: u64) -> usize {
    let own = processor::apic_id();
    let others = apic_ids.iter().copied().filter(|&id| id != own);
    copy_trampoline(page);
    for id in others.clone() {
        apic::send_init(id);
    }
    OTHERS_ARE_OURS.store(true, Ordering::Release);
    clock::wait(tsc_hz / 100); // 10 ms
    let mut running = 1;
    for id in others {
        if running >= apic_ids.len() {
            break;
        }
        if start_one(id, running, page, tsc_hz) {
            running += 1;
        } else {
            print!("core with local APIC {id} does not start; going on without it");
        }
    }
    running
}

fn copy_trampoline(page: TrampolinePage) {
    let start = &raw const ap_trampoline;
    let length = (&raw const ap_trampoline_end).addr() - start.addr();
    let to: *mut u8 = direct::pointer(page.address());
    // SAFETY: both ends are in one section of the image, less than a page apart, and the page is nobody else's.
    unsafe { to.copy_from_nonoverlapping(start, length) };
}

/// Starts one core as number `core`; whether it came.
fn start_one(apic_id: u32, core: usize, page: TrampolinePage, tsc_hz: u64) -> bool {
    let stacks = Stacks::of_core(core);
    // SAFETY: no running core has this number: the one before it that was tried either runs, and then has another, or
    // was refused at its claim.
    let block = unsafe { percpu::prepare(core, apic_id, &stacks) };
    CLAIM.apic_id.store(apic_id, Ordering::Relaxed);
    CLAIM.root.store(space::root().0, Ordering::Relaxed);
    CLAIM.stack.store(stacks.kernel, Ordering::Relaxed);
    CLAIM.block.store(block.expose_provenance() as u64, Ordering::Relaxed);
    CLAIM.state.store(WANTED, Ordering::Release);
    let came = |state: u32, within: u64| {
        let steps = 1000;
        (0..steps).any(|_| {
            clock::wait(within / steps);
            CLAIM.state.load(Ordering::Acquire) >= state
        })
    };
    apic::send_startup(apic_id, page.0);
    if !came(CLAIMED, tsc_hz / 1000) {
        // The second one that the manual asks for, for processors that miss the first.
        apic::send_startup(apic_id, page.0);
        if !came(CLAIMED, tsc_hz / 5)
            && CLAIM.state.compare_exchange(WANTED, NONE, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            return false;
        }
    }
    // It has its stack now and cannot be left behind.
    while CLAIM.state.load(Ordering::Acquire) != RUNNING {
        core::hint::spin_loop();
    }
    true
}

/// Entered by `smp.S` on the new core's own stack and in the final address space.
extern "C" fn ap_rust(block: *mut PerCpu) -> ! {
    // SAFETY: this core claimed the block, which was prepared for it.
    let core = unsafe { boot::set_up_core(block) };
    // SAFETY: the final address space maps the registers.
    unsafe { apic::enable() };
    apic::arm_timer_interrupt();
    svm::enable(core);
    CLAIM.state.store(RUNNING, Ordering::Release);
    crate::ap_main(core)
}
