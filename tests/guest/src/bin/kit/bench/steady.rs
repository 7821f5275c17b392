//! Two threads of one process, on the first and on the last processor, that touch only their own data, for a while.
//!
//! When these processors are on two nodes no page of theirs may move; whether one does is for the monitor's profiler to say,
//! which counts the faults of programs that need another node. Time is read from the TSC alone: what `clock_gettime` reads
//! lies on a page that Linux writes at each tick.

use core::sync::atomic::Ordering;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::report;
use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, cpu};

/// Pages of each thread.
const PAGES: usize = 64;
/// Seconds before it counts: all that both need comes to them.
const WARM_UP: u64 = 4;
/// Seconds that count when nothing is said.
const SECONDS: u64 = 12;

pub fn run(options: &Options) -> Result<()> {
    let cpus = cpu::cpus()?;
    let (first, last) = (cpus[0], *cpus.last().context("no processor")?);
    ensure!(first != last, "it takes two processors");
    let (begun, before) = (Instant::now(), cpu::ticks());
    thread::sleep(Duration::from_millis(500));
    let milliseconds = u64::try_from(begun.elapsed().as_millis())?.max(1);
    let a_second = (cpu::ticks() - before) / milliseconds * 1000;
    let seconds = options.iterations.unwrap_or(SECONDS);
    let barrier = Barrier::new(2);
    let work = |cpu: usize, is_first: bool| -> Result<u64> {
        cpu::pin(cpu)?;
        let map = Map::anonymous(PAGES * PAGE, Sharing::Private)?;
        touch(&map, WARM_UP * a_second);
        barrier.wait();
        if is_first {
            report("steady-begins", seconds);
        }
        Ok(touch(&map, seconds * a_second))
    };
    let touches = thread::scope(|scope| -> Result<u64> {
        let other = scope.spawn(|| work(last, false));
        let mine = work(first, true)?;
        Ok(mine + other.join().map_err(|_| anyhow!("a thread panicked"))??)
    })?;
    report("steady-touches", touches);
    Ok(())
}

/// Reads and writes a word of each page in turns, for so many ticks; how many words.
fn touch(map: &Map, ticks: u64) -> u64 {
    let words = map.words();
    let begun = cpu::ticks();
    let mut touches = 0u64;
    while cpu::ticks() - begun < ticks {
        for page in 0..PAGES {
            let word = &words[page * (PAGE / 8)];
            word.store(word.load(Ordering::Relaxed).wrapping_add(touches), Ordering::Relaxed);
            touches += 1;
        }
    }
    touches
}
