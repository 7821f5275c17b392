//! Threads run on the cores that they ask for, and keep their registers when they are interrupted there.

use core::arch::x86_64::__cpuid;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ipc::abi::MAX_CORES;
use rt::start::Start;

use crate::{Outcome, ensure, fail, until};

/// The initial local APIC number (CPUID 1, EBX 31:24) of the core that each thread found itself on, plus one.
static FOUND: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];

/// Starts a thread on each core, one after another, and sees that they were on different ones.
pub fn run(start: &Start<'_>) -> Outcome {
    let cores = usize::try_from(start.cores()).unwrap_or(0);
    for (core, found) in FOUND.iter().enumerate().take(cores) {
        if let Err(error) = rt::syscall::spawn_thread(look, core, core as u64) {
            fail!("no thread on core {core}: {error}");
        }
        until(20, "a thread on another core", || Ok(found.load(Ordering::Acquire) != 0))?;
    }
    for core in 0..cores {
        let found = FOUND[core].load(Ordering::Relaxed);
        let twice = FOUND[..core].iter().any(|other| other.load(Ordering::Relaxed) == found);
        ensure!(!twice, "two threads for different cores ran on the one with local APIC {}", found - 1);
    }
    defmt::info!("{=usize} cores run threads", cores);
    Ok(())
}

extern "C" fn look(core: usize, _: usize) -> ! {
    let apic = __cpuid(1).ebx >> 24;
    FOUND[core % MAX_CORES].store(apic + 1, Ordering::Release);
    rt::syscall::exit_thread(0)
}

/// Threads that compute at the same time.
const THREADS: usize = 3;
static RESULTS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

/// Has several threads of one core compute in floating point for many turns of round robin.
pub fn floating_point(_: &Start<'_>) -> Outcome {
    for place in 0..THREADS {
        if let Err(error) = rt::syscall::spawn_thread(compute, place, 0) {
            fail!("no thread: {error}");
        }
    }
    until(120, "a computation", || Ok(RESULTS.iter().all(|result| result.load(Ordering::Acquire) != 0)))?;
    for (place, result) in RESULTS.iter().enumerate() {
        let got = result.load(Ordering::Relaxed);
        let alone = series(place).to_bits();
        ensure!(got == alone, "thread {place} computed {got:#x}, alone it is {alone:#x}");
    }
    Ok(())
}

extern "C" fn compute(place: usize, _: usize) -> ! {
    RESULTS[place % THREADS].store(series(place).to_bits(), Ordering::Release);
    rt::syscall::exit_thread(0)
}

/// A sum that depends on every step of it and on who computes it.
fn series(place: usize) -> f64 {
    let mut lanes = [1.0f64, 2.0, 3.0, 4.0].map(|lane| lane + place as f64);
    for step in 1..400_000u32 {
        let divisor = black_box(f64::from(step));
        for lane in &mut lanes {
            *lane = *lane * 1.000_000_1 + 1.0 / divisor;
        }
    }
    lanes.iter().sum()
}
