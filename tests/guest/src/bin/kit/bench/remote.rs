//! What it costs to touch a page that another processor has, when that processor is on another node: the monitor has to
//! bring it.
//!
//! The first and the last processor take turns. What is measured is the first's access to each page that the last one
//! has just written: by reading, then by writing what it can read already, then by writing what the last one wrote again. Each
//! page is touched once before, so that the guest's own page fault is over. Pages are measured in no order, so that none
//! comes because one before it was touched. With one node these are the costs of a cache.
//!
//! An interrupt between processors is measured as `membarrier` needs it: the first processor asks the last one, which
//! runs a thread of the same program, and waits for it (membarrier(2), private expedited).
#![expect(unsafe_code, reason = "a system call that libc has no function for")]

use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use guest_kit::random::Random;

use super::report;
use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, check, cpu};

const PRIVATE_EXPEDITED: libc::c_long = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_long = 1 << 4;
/// Interrupts that are measured.
const INTERRUPTS: u64 = 200;

pub fn run(options: &Options) -> Result<()> {
    let cpus = cpu::cpus()?;
    let (first, last) = (cpus[0], *cpus.last().context("no processor")?);
    ensure!(first != last, "it takes two processors");
    let pages = options.pages.min(1024);
    let map = Map::anonymous(pages * PAGE, Sharing::Private)?;
    let words = map.words();
    let word = |page: usize| &words[page * PAGE / 8];
    let mut order: Vec<_> = (0..pages).collect();
    Random::new(options.seed).shuffle(&mut order);
    let barrier = Barrier::new(2);
    let write_all = |value: u64| (0..pages).for_each(|page| word(page).store(value, Ordering::Relaxed));
    let take = |touch: &dyn Fn(&AtomicU64)| -> Vec<u64> {
        let of = |page| {
            let begun = cpu::ticks();
            touch(word(page));
            cpu::ticks() - begun
        };
        order.iter().copied().map(of).collect()
    };
    let read = |word: &AtomicU64| {
        black_box(word.load(Ordering::Relaxed));
    };
    let write = |word: &AtomicU64| word.store(7, Ordering::Relaxed);
    let [mut reads, mut upgrades, mut writes] = thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<()> {
            cpu::pin(last)?;
            barrier.wait();
            for value in 1..=2 {
                write_all(value);
                barrier.wait();
                barrier.wait();
            }
            Ok(())
        });
        cpu::pin(first)?;
        write_all(3);
        barrier.wait();
        barrier.wait();
        let (reads, upgrades) = (take(&read), take(&write));
        barrier.wait();
        barrier.wait();
        let writes = take(&write);
        barrier.wait();
        other.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok::<_, anyhow::Error>([reads, upgrades, writes])
    })?;
    tell("remote-read", &mut reads);
    tell("remote-upgrade", &mut upgrades);
    tell("remote-write", &mut writes);
    tell("remote-interrupt", &mut interrupts(first, last)?);
    Ok(())
}

fn interrupts(first: usize, last: usize) -> Result<Vec<u64>> {
    let call = |command: libc::c_long| {
        // SAFETY: it takes three numbers and touches no memory of the program's.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        check(i32::try_from(result).unwrap_or(-1), "membarrier").map(drop)
    };
    call(REGISTER_PRIVATE_EXPEDITED)?;
    let (runs, over) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let spinning = scope.spawn(|| -> Result<()> {
            cpu::pin(last)?;
            runs.store(1, Ordering::Relaxed);
            while over.load(Ordering::Relaxed) == 0 {
                core::hint::spin_loop();
            }
            Ok(())
        });
        cpu::pin(first)?;
        // As long as it does not run there it need not be interrupted.
        while runs.load(Ordering::Relaxed) == 0 {
            core::hint::spin_loop();
        }
        let samples = (0..INTERRUPTS).map(|_| {
            let begun = cpu::ticks();
            call(PRIVATE_EXPEDITED).map(|()| cpu::ticks() - begun)
        });
        let samples = samples.collect::<Result<Vec<_>>>();
        over.store(1, Ordering::Relaxed);
        spinning.join().map_err(|_| anyhow!("a thread panicked"))??;
        samples
    })
}

/// Prints the least, the median and the 99th percentile.
fn tell(name: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let at = |percent: usize| samples.get(samples.len() * percent / 100).copied().unwrap_or(0);
    report(&format!("{name}-min"), at(0));
    report(&format!("{name}-p50"), at(50));
    report(&format!("{name}-p99"), at(99));
}
