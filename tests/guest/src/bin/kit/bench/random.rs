//! Reads and writes at random places of memory that no node holds alone: how many a second, and that what is read is what
//! was written.
//!
//! Each word holds a number that follows from its place and from how often it was written, so that a page that was lost or
//! mixed up shows.

use core::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, ensure};
use guest_kit::random::{Random, mix};

use super::report;
use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, cpu};

/// Memory when nothing is said.
const USUAL_MIB: usize = 64;
const WORDS: usize = PAGE / 8;

pub fn run(options: &Options) -> Result<()> {
    cpu::pin(cpu::cpus()?[0])?;
    let mib = options.mib.unwrap_or(USUAL_MIB);
    let accesses = options.iterations(20_000);
    let map = Map::anonymous(mib << 20, Sharing::Private)?;
    let (words, pages) = (map.words(), map.pages());
    let begun = Instant::now();
    // One word of each page is used; the rest stays zero.
    let place = |page: usize| page * WORDS + Random::new(page as u64).index(WORDS);
    for page in 0..pages {
        words[place(page)].store(mix(page as u64), Ordering::Relaxed);
    }
    report("random-fill-ms", u64::try_from(begun.elapsed().as_millis())?);
    let mut times = vec![0u16; pages];
    let mut random = Random::new(options.seed);
    let begun = Instant::now();
    for _ in 0..accesses {
        let page = random.index(pages);
        let word = &words[place(page)];
        let wanted = mix(page as u64 | u64::from(times[page]) << 40);
        let found = word.load(Ordering::Relaxed);
        ensure!(found == wanted, "page {page}: {found:#018x}, not {wanted:#018x}");
        if random.index(4) == 0 {
            times[page] = times[page].wrapping_add(1);
            word.store(mix(page as u64 | u64::from(times[page]) << 40), Ordering::Relaxed);
        }
    }
    let elapsed = u64::try_from(begun.elapsed().as_micros())?.max(1);
    report("random-mib", mib as u64);
    report("random-accesses", accesses);
    report("random-per-second", accesses.saturating_mul(1_000_000) / elapsed);
    Ok(())
}
