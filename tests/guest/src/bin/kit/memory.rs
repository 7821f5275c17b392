//! Memory keeps what was written, wherever it is, whoever wrote it, and whatever mappings come and go meanwhile.

mod churn;
mod sharing;

use core::fmt;
use core::sync::atomic::Ordering;
use std::fs;
use std::ops::Range;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use guest_kit::random::{Random, mix};

use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, cpu};

/// What is left to Linux and everyone else.
const MARGIN_MIB: usize = 40;
/// What is tested when nothing is said: enough to take a few seconds.
const USUAL_MIB: usize = 192;
/// The most that is first read and then written: Linux takes each such page away from every processor in between.
const ZEROS_MIB: usize = 16;
const WORDS: usize = PAGE / 8;

/// What is in a word.
#[derive(Clone, Copy)]
struct Pattern {
    name: &'static str,
    word: fn(index: u64, seed: u64) -> u64,
}

const PATTERNS: [Pattern; 4] = [
    // Shows addresses that reach the wrong page or word.
    Pattern { name: "address", word: |index, seed| index << 3 ^ seed },
    Pattern { name: "random", word: |index, seed| mix(index ^ seed) },
    // One bit that is set, and one that is not, at another place in each word.
    Pattern { name: "walking one", word: |index, seed| 1u64.rotate_left(((index ^ seed) & 63) as u32) },
    Pattern { name: "walking zero", word: |index, seed| !1u64.rotate_left(((index ^ seed) & 63) as u32) },
];

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    let available = available_mib()?.saturating_sub(MARGIN_MIB);
    let mib = match options.mib {
        None => available.min(USUAL_MIB),
        Some(0) => available,
        Some(mib) => mib,
    };
    ensure!(mib > 0, "no memory is free");
    let mut random = Random::new(options.seed);
    {
        let map = Map::anonymous(mib << 20, Sharing::Private)?;
        for pattern in &PATTERNS {
            patterns(&map, pattern, &cpus, &mut random)?;
        }
        discarded(&map, &mut random)?;
    }
    zeros(&cpus, mib.min(ZEROS_MIB) << 20, &mut random)?;
    let changes = options.iterations(2_000);
    churn::run(&cpus, changes, &mut random)?;
    let exchanges = sharing::run(&cpus, options.scaled(1_000), &mut random)?;
    Ok(format!("cpus={} mib={mib} changes={changes} exchanges={exchanges}", cpus.len()))
}

fn available_mib() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse().context("MemAvailable")?;
    Ok(kib >> 10)
}

/// A word that is not what it must be.
struct Wrong {
    index: usize,
    found: u64,
    wanted: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} byte {:#x}: ", self.index / WORDS, self.index % WORDS * 8)?;
        write!(f, "{:#018x}, not {:#018x}", self.found, self.wanted)
    }
}

/// Does `work` with an equal part of the pages in a thread on each processor. Part `number + shift` goes to processor
/// `number`, so that with another shift another processor has it.
fn on_parts(
    cpus: &[usize],
    pages: usize,
    shift: usize,
    work: impl Fn(Range<usize>) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus.len())
            .map(|number| {
                let part = (number + shift) % cpus.len();
                let range = pages * part / cpus.len()..pages * (part + 1) / cpus.len();
                scope.spawn(move || cpu::pin(cpus[number]).and_then(|()| work(range)))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// Writes a pattern into all pages in random order, and has another processor compare it in another order.
fn patterns(map: &Map, pattern: &Pattern, cpus: &[usize], random: &mut Random) -> Result<()> {
    let (seed, orders) = (random.number(), random.number());
    let words = map.words();
    on_parts(cpus, map.pages(), 0, |range| {
        for page in shuffled(range, orders) {
            for (index, word) in (page * WORDS..).zip(&words[page * WORDS..(page + 1) * WORDS]) {
                word.store((pattern.word)(index as u64, seed), Ordering::Relaxed);
            }
        }
        Ok(())
    })?;
    on_parts(cpus, map.pages(), 1, |range| {
        for page in shuffled(range, !orders) {
            for (index, word) in (page * WORDS..).zip(&words[page * WORDS..(page + 1) * WORDS]) {
                let (found, wanted) = (word.load(Ordering::Relaxed), (pattern.word)(index as u64, seed));
                ensure!(found == wanted, "{}: {}", pattern.name, Wrong { index, found, wanted });
            }
        }
        Ok(())
    })
}

fn shuffled(range: Range<usize>, seed: u64) -> Vec<usize> {
    let mut pages: Vec<_> = range.collect();
    Random::new(seed).shuffle(&mut pages);
    pages
}

/// Pages that were given back are zero, and those beside them as they were.
fn discarded(map: &Map, random: &mut Random) -> Result<()> {
    map.discard()?;
    let words = map.words();
    for _ in 0..map.pages() {
        let index = random.index(words.len());
        let found = words[index].load(Ordering::Relaxed);
        ensure!(found == 0, "after MADV_DONTNEED: {}", Wrong { index, found, wanted: 0 });
    }
    Ok(())
}

/// Fresh pages are zero at the first read, also after others were written, and only the written word changes.
fn zeros(cpus: &[usize], bytes: usize, random: &mut Random) -> Result<()> {
    let map = Map::anonymous(bytes, Sharing::Private)?;
    let words = map.words();
    let seed = random.number();
    // Where in its page the one word is that gets written.
    let place = |page: usize| Random::new(seed ^ page as u64).index(WORDS);
    let compare = |page: usize, written: bool| {
        for offset in 0..WORDS {
            let index = page * WORDS + offset;
            let wanted = if written && offset == place(page) { mix(index as u64) } else { 0 };
            let found = words[index].load(Ordering::Relaxed);
            ensure!(found == wanted, "fresh memory: {}", Wrong { index, found, wanted });
        }
        Ok(())
    };
    on_parts(cpus, map.pages(), 0, |range| range.into_iter().try_for_each(|page| compare(page, false)))?;
    on_parts(cpus, map.pages(), 1, |range| {
        for page in shuffled(range, seed) {
            let index = page * WORDS + place(page);
            words[index].store(mix(index as u64), Ordering::Relaxed);
        }
        Ok(())
    })?;
    on_parts(cpus, map.pages(), 2, |range| range.into_iter().try_for_each(|page| compare(page, true)))
}
