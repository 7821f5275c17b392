//! Time never goes back, passes at one rate on every processor, and no timer is early.

use core::sync::atomic::{AtomicU64, Ordering};
use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_kit::random::Random;

use crate::options::{ClockSource, Options};
use crate::sys::clock::{self, Clock, Until};
use crate::sys::cpu;
use crate::sys::timer::TimerFile;

/// What must never go back.
#[derive(Clone, Copy, Debug)]
enum Source {
    Tsc,
    Clock(Clock),
    /// As the kernel reads it, not the vDSO.
    Kernel(Clock),
}

const SOURCES: [Source; 5] = [
    Source::Tsc,
    Source::Clock(Clock::Monotonic),
    Source::Clock(Clock::Realtime),
    Source::Kernel(Clock::Monotonic),
    Source::Kernel(Clock::Realtime),
];

impl Source {
    fn now(self) -> Result<u64> {
        match self {
            Self::Tsc => Ok(cpu::ticks()),
            Self::Clock(clock) => clock.now(),
            Self::Kernel(clock) => clock.now_by_kernel(),
        }
    }
}

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.as_deref().map_or("unknown", str::trim);
    if options.clock_source == ClockSource::KvmClock {
        ensure!(source == "kvm-clock", "the clock source is {source}, not kvm-clock");
    }
    let iterations = options.iterations(5_000);
    for source in SOURCES {
        across(source, &cpus, iterations)?;
        migrating(source, &cpus, &mut Random::new(options.seed), (iterations / 20).max(1))?;
    }
    let khz = rates(&cpus)?;
    let late = timers(&cpus, options)?;
    Ok(format!(
        "source={source} cpus={} readings={iterations} tsc-khz={khz} latest-timer-us={}",
        cpus.len(),
        late / 1000
    ))
}

/// A thread on each processor passes what it reads on to the others.
fn across(source: Source, cpus: &[usize], iterations: u64) -> Result<()> {
    let last = AtomicU64::new(0);
    // Two threads at least, so that one processor switches between them.
    let threads: Vec<_> = cpus.iter().cycle().take(cpus.len().max(2)).collect();
    let start = Barrier::new(threads.len());
    let pass = |cpu: usize| -> Result<()> {
        let pinned = cpu::pin(cpu);
        start.wait();
        pinned?;
        for reading in 0..iterations {
            let before = last.load(Ordering::Acquire);
            let now = source.now()?;
            ensure!(
                now >= before,
                "{source:?} on processor {cpu}: {now} after {before} ({} back) at reading {reading}",
                before - now
            );
            last.fetch_max(now, Ordering::AcqRel);
            if reading % 64 == 0 {
                thread::yield_now();
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = threads.iter().map(|&&cpu| scope.spawn(move || pass(cpu))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// One thread goes from processor to processor.
fn migrating(source: Source, cpus: &[usize], random: &mut Random, moves: u64) -> Result<()> {
    let mut before = source.now()?;
    for _ in 0..moves {
        let cpu = cpus[random.index(cpus.len())];
        cpu::pin(cpu)?;
        let now = source.now()?;
        ensure!(now >= before, "{source:?} after a move to processor {cpu}: {now} after {before}");
        before = now;
    }
    Ok(())
}

/// Both clocks at one moment, as near as it goes: TSC ticks and nanoseconds of `CLOCK_MONOTONIC`.
fn both() -> Result<(u64, u64)> {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..50 {
        let before = cpu::ticks();
        let time = Clock::Monotonic.now()?;
        let between = cpu::ticks() - before;
        if between < best.0 {
            best = (between, before + between / 2, time);
        }
    }
    Ok((best.1, best.2))
}

/// The TSC's rate in kHz of `CLOCK_MONOTONIC`: on every processor, and from each to the next, the same to 0.5 %.
fn rates(cpus: &[usize]) -> Result<u64> {
    let mut rates: Vec<u64> = Vec::new();
    let rate = |from: (u64, u64), to: (u64, u64)| -> Result<u64> {
        let ticks = u128::from(to.0.checked_sub(from.0).context("the TSC went back")?);
        let time = to.1.checked_sub(from.1).filter(|&time| time > 0).context("the clock stands")?;
        Ok(u64::try_from(ticks * 1_000_000 / u128::from(time))?)
    };
    for round in 0..3 {
        for &cpu in cpus {
            cpu::pin(cpu)?;
            let from = both()?;
            clock::sleep(Until::After(Duration::from_millis(60)))?;
            // The first round stays on the processor; the others end on another one.
            cpu::pin(cpus[(cpu + round) % cpus.len()])?;
            rates.push(rate(from, both()?)?);
        }
    }
    let (low, high) = (rates.iter().min(), rates.iter().max());
    let (Some(&low), Some(&high)) = (low, high) else { bail!("no rate") };
    ensure!(high - low <= high / 200, "the TSC's rate is from {low} to {high} kHz: {rates:?}");
    ensure!(low > 1000, "the TSC runs at {low} kHz");
    Ok(rates[rates.len() / 2])
}

/// Sleeps of all kinds on every processor at once; by how much the latest was late, in nanoseconds.
fn timers(cpus: &[usize], options: &Options) -> Result<u64> {
    let sleeps = options.scaled(30);
    thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| {
                let mut random = Random::new(options.seed ^ cpu as u64);
                scope.spawn(move || cpu::pin(cpu).and_then(|()| sleeps_on(&mut random, sleeps)))
            })
            .collect();
        threads.into_iter().try_fold(0, |latest: u64, thread| {
            Ok(latest.max(thread.join().map_err(|_| anyhow!("a thread panicked"))??))
        })
    })
}

fn sleeps_on(random: &mut Random, sleeps: u64) -> Result<u64> {
    let mut latest = 0;
    let mut timer = TimerFile::new()?;
    for _ in 0..sleeps {
        let length = 1 + random.below(5_000_000);
        let start = Clock::Monotonic.now()?;
        let what = match random.below(3) {
            0 => {
                clock::sleep(Until::After(Duration::from_nanos(length)))?;
                "nanosleep"
            }
            1 => {
                clock::sleep(Until::At(start + length))?;
                "absolute nanosleep"
            }
            _ => {
                timer.set(length, 0)?;
                ensure!(timer.wait()? == 1, "a timer for one time expired more often");
                "timerfd"
            }
        };
        let took = Clock::Monotonic.now()? - start;
        let late = took.checked_sub(length).with_context(|| format!("{what} of {length} ns took {took}"))?;
        latest = latest.max(late);
    }
    // A periodic timer, whose reader is late at times, counts every period and no more.
    let period = 2_000_000;
    let start = Clock::Monotonic.now()?;
    timer.set(period, period)?;
    let mut expired = 0;
    while expired < 20 {
        expired += timer.wait()?;
        let took = Clock::Monotonic.now()? - start;
        ensure!(expired <= took / period, "{expired} periods of {period} ns in {took} ns");
        if random.below(4) == 0 {
            clock::sleep(Until::After(Duration::from_millis(5)))?;
        }
    }
    Ok(latest)
}
