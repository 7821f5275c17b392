//! Processors: which there are, and on which a thread runs.
#![expect(unsafe_code, reason = "system calls and instructions")]

use core::arch::asm;
use core::mem::{size_of, zeroed};
use core::time::Duration;

use anyhow::{Result, ensure};

use super::check;

/// The processors that this program may use.
///
/// # Errors
/// Linux does not say.
pub fn cpus() -> Result<Vec<usize>> {
    // SAFETY: a set of bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the size is that of the set, which is ours.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) }, "affinity")?;
    let maximum = usize::try_from(libc::CPU_SETSIZE)?;
    // SAFETY: the number is below the set's size.
    let cpus: Vec<_> = (0..maximum).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect();
    ensure!(!cpus.is_empty(), "no processor may be used");
    Ok(cpus)
}

/// Moves the calling thread to a processor, where it stays.
///
/// # Errors
/// There is no such processor, or it is not ours.
pub fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a set of bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    ensure!(cpu < usize::try_from(libc::CPU_SETSIZE)?, "processor {cpu}");
    // SAFETY: the number is below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the size is that of the set, which is only read.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    check(result, "moving to a processor").map(drop)
}

/// The time-stamp counter, not read before earlier loads are done.
pub fn ticks() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: reads a counter that Linux leaves readable.
    unsafe {
        asm!("lfence", "rdtsc", out("rax") low, out("rdx") high, options(nomem, nostack, preserves_flags));
    }
    high << 32 | low
}

/// Whether processor and kernel let programs use AVX: CPUID 1 ECX's OSXSAVE and AVX, XCR0's SSE and AVX (AMD APM 1, 1.5.2).
pub fn has_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// Waits a moment for another thread, longer the more often it `waited` already: on the processor at first; then by giving
/// that to another thread, which may need this one; then asleep, because the processor under this one may be needed, too.
pub fn relax(waited: &mut u32) {
    *waited += 1;
    match *waited {
        ..256 => core::hint::spin_loop(),
        256..288 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(50)),
    }
}
