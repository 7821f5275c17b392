//! The registers that stay in a core between a vCPU's exits: the extended state beyond SSE, XCR0, the breakpoints.
//!
//! CR4.OSXSAVE is set only here, so that no service can use what a vCPU left in the wide registers.
#![expect(unsafe_code, reason = "XSAVE, XRSTOR, XSETBV and the debug registers")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use kernel::context::{EXTENDED_BYTES, Extended};

use super::instructions::{cpuid, read_cr4, write_cr4};

const CR4_OSXSAVE: u64 = 1 << 18;
/// x87 and SSE, which FXSAVE has.
const LEGACY: u64 = 3;
/// AVX, AVX-512's three, protection keys: what a guest may have besides.
const KEPT: u64 = 1 << 2 | 7 << 5 | 1 << 9;

/// The parts of XCR0 that can be kept; zero without XSAVE.
static KEPT_HERE: AtomicU64 = AtomicU64::new(0);

/// The parts of XCR0 that can be kept (CPUID leaf 0xd; AMD APM 3, E.3.8): those whose place is within the area.
pub fn detect() -> u64 {
    if cpuid(1, 0)[2] >> 26 & 1 == 0 {
        return 1;
    }
    let [low, _, _, high] = cpuid(0xd, 0);
    let offered = u64::from(low) | u64::from(high) << 32;
    let fits = |component: &u32| {
        let [bytes, offset, ..] = cpuid(0xd, *component);
        u64::from(bytes) + u64::from(offset) <= EXTENDED_BYTES as u64
    };
    let wide = (2..63).filter(|component| (offered & KEPT) >> component & 1 != 0).filter(fits);
    let kept = wide.fold(offered & LEGACY, |bits, component| bits | 1 << component);
    KEPT_HERE.store(kept, Ordering::Relaxed);
    kept
}

/// Runs `act` with XSAVE's instructions allowed.
fn with_xsave(act: impl FnOnce()) {
    let cr4 = read_cr4();
    // SAFETY: the processor has XSAVE, and nothing else changes.
    unsafe { write_cr4(cr4 | CR4_OSXSAVE) };
    act();
    // SAFETY: as it was.
    unsafe { write_cr4(cr4) };
}

/// Saves what a vCPU left.
pub fn save(into: &mut Extended) {
    let [first, second, third, fourth] = &mut into.breakpoints;
    // SAFETY: reading debug registers in ring 0 changes nothing.
    unsafe {
        asm!(
            "mov {}, dr0",
            "mov {}, dr1",
            "mov {}, dr2",
            "mov {}, dr3",
            out(reg) * first,
            out(reg) * second,
            out(reg) * third,
            out(reg) * fourth,
            options(nomem, nostack, preserves_flags)
        );
    };
    let kept = KEPT_HERE.load(Ordering::Relaxed);
    if kept == 0 {
        return;
    }
    with_xsave(|| {
        let (low, high): (u32, u32);
        // SAFETY: the register is there. It is read because not every processor that has SVM tells of XSETBV: QEMU's does not.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
        };
        into.xcr0 = (u64::from(low) | u64::from(high) << 32) & kept;
        let mask = into.xcr0 & !LEGACY;
        if mask == 0 {
            return;
        }
        // SAFETY: the area is aligned and has room for every component that XCR0 can have.
        unsafe {
            asm!(
                "xsave64 [{}]", in(reg) into.area.as_mut_ptr(), in("eax") mask & 0xffff_ffff, in("edx") mask >> 32,
                options(nostack, preserves_flags)
            );
        };
    });
}

/// Makes this core's what a vCPU has.
pub fn load(from: &Extended) {
    let [first, second, third, fourth] = from.breakpoints;
    // SAFETY: the kernel and its services use no breakpoints, and DR7 is clear outside guest mode.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) first, in(reg) second, in(reg) third, in(reg) fourth,
            options(nomem, nostack, preserves_flags)
        );
    };
    if KEPT_HERE.load(Ordering::Relaxed) == 0 {
        return;
    }
    let (xcr0, mask) = (from.xcr0, from.xcr0 & !LEGACY);
    with_xsave(|| {
        // SAFETY: the logic lets only legal values through.
        unsafe {
            asm!(
                "xsetbv", in("ecx") 0, in("eax") xcr0 & 0xffff_ffff, in("edx") xcr0 >> 32,
                options(nomem, nostack, preserves_flags)
            );
        };
        if mask != 0 {
            // SAFETY: the area was written by XSAVE, or is zero, which is the initial state of every component.
            unsafe {
                asm!(
                    "xrstor64 [{}]", in(reg) from.area.as_ptr(), in("eax") mask & 0xffff_ffff, in("edx") mask >> 32,
                    options(nostack, preserves_flags, readonly)
                );
            };
        }
    });
}
