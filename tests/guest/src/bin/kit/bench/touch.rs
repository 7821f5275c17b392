//! What the first touch of a guest page costs beyond the guest's own page fault: the monitor has to find a frame for it.
//!
//! A page that the guest's kernel never used since it started has no frame yet. Linux hands out what was freed before it
//! breaks up blocks that it never used, so
//! 1. as much memory is used up and kept as was in use since the start, and some more;
//! 2. then chunks of fresh pages are touched and kept. Their medians must agree, and no frame may come twice: when the first
//!    chunks are cheaper, more has to be used up (`--mib`);
//! 3. then all of them are given back, and as many pages are mapped anew and touched: these frames are known, and only
//!    the guest's own fault is left. Which frames Linux took is read from `/proc/self/pagemap`, and only those that it used
//!    before count;
//! 4. a monitor may bring several pages at one miss, so that most first touches cost nothing more: an aligned group of a power
//!    of two frames. Then the first touch in each group is a miss, and no other is. So the group's size is the smallest for
//!    which three quarters of such touches cost more than three quarters of all touches of known frames, and a miss costs
//!    their median.
#![expect(unsafe_code, reason = "the store that is measured")]

use core::arch::asm;
use core::sync::atomic::Ordering;
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::{mean, median, report};
use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, cpu};

/// Chunks of fresh pages.
const CHUNKS: usize = 4;
/// The logarithm of the largest group that is looked for.
const MAX_GROUP_ORDER: u32 = 9;
/// Used up beyond what was in use before.
const MORE_MIB: usize = 16;

pub fn run(options: &Options) -> Result<()> {
    cpu::pin(cpu::cpus()?[0])?;
    let pages = options.pages;
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    // Everything that the measurement itself needs is there before it, and touched.
    let mut samples = vec![1u64; pages * CHUNKS];
    let mut again = vec![1u64; pages * CHUNKS];
    let mut entries = vec![1u8; pages * 8];
    let mut known: HashSet<u64> = HashSet::with_capacity(4 * pages * CHUNKS);
    known.extend(0..2 * (pages * CHUNKS) as u64);
    known.clear();

    let used_mib = options.mib.map_or_else(|| used_mib().map(|used| used + MORE_MIB), Ok)?;
    let used_up = Map::anonymous(used_mib << 20, Sharing::Private)?;
    for page in 0..used_up.pages() {
        used_up.as_bytes()[page * PAGE].store(1, Ordering::Relaxed);
    }
    let mut fresh = Vec::with_capacity(CHUNKS);
    let mut order = Vec::with_capacity(pages * CHUNKS);
    for (chunk, samples) in samples.chunks_mut(pages).enumerate() {
        let map = Map::anonymous(pages * PAGE, Sharing::Private)?;
        touch(&map, samples);
        report(&format!("touch-first-chunk-{chunk}-median"), median(&mut samples.to_vec()));
        let before = known.len();
        order.extend(frames(&pagemap, &map, &mut entries)?);
        known.extend(&order[before..]);
        let new = known.len() - before;
        ensure!(new == pages, "only {new} of {pages} fresh frames are new; the numbers are for root alone");
        fresh.push(map);
    }
    drop(fresh);

    let mut recycled = 0;
    let mut kept = Vec::with_capacity(CHUNKS);
    for _ in 0..CHUNKS {
        let map = Map::anonymous(pages * PAGE, Sharing::Private)?;
        let samples = &mut again[recycled..recycled + pages];
        touch(&map, samples);
        let frames = frames(&pagemap, &map, &mut entries)?;
        let mut counted = 0;
        for (index, frame) in frames.enumerate() {
            if known.contains(&frame) {
                samples[counted] = samples[index];
                counted += 1;
            }
        }
        recycled += counted;
        kept.push(map);
    }
    again.truncate(recycled);
    ensure!(recycled * 2 >= pages * CHUNKS, "only {recycled} of {} frames came back", pages * CHUNKS);
    let (first_mean, again_mean) = (mean(&samples), mean(&again));
    let again_median = median(&mut again);
    // Sorted by now.
    let alone = again[again.len() * 3 / 4];
    let (group, mut misses) = misses(&samples, &order, alone).context("no pattern in what is missed")?;
    let first_median = median(&mut samples);
    report("touch-used-up-mib", used_mib as u64);
    report("touch-first-pages", samples.len() as u64);
    report("touch-first-min", samples[0]);
    report("touch-first-median", first_median);
    report("touch-first-mean", first_mean);
    report("touch-again-pages", again.len() as u64);
    report("touch-again-min", again[0]);
    report("touch-again-median", again_median);
    report("touch-again-mean", again_mean);
    report("touch-misses", misses.len() as u64);
    report("touch-miss-pages", group);
    report("touch-miss-median", median(&mut misses).saturating_sub(again_median));
    report("touch-difference-median", first_median.saturating_sub(again_median));
    report("touch-difference-mean", first_mean.saturating_sub(again_mean));
    Ok(())
}

/// The pages that a miss brings, and what the misses took; `None` when no size of a group tells them apart. `order` has the
/// frames, in the order in which they were touched, and a touch that took no more than `alone` is none.
fn misses(samples: &[u64], order: &[u64], alone: u64) -> Option<(u64, Vec<u64>)> {
    (0..=MAX_GROUP_ORDER).find_map(|bits| {
        let mut seen = HashSet::new();
        let touches = order.iter().zip(samples);
        let first = touches.filter(|&(frame, _)| seen.insert(frame >> bits)).map(|(_, &ticks)| ticks);
        let first: Vec<_> = first.collect();
        let missed = first.iter().filter(|&&ticks| ticks > alone).count();
        (missed * 4 >= first.len() * 3).then_some((1 << bits, first))
    })
}

/// Memory that is in use now.
fn used_mib() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let kib = |name: &str| -> Result<usize> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok((kib("MemTotal:")? - kib("MemFree:")?) >> 10)
}

/// Writes the first byte of every page and takes the time of each.
fn touch(map: &Map, samples: &mut [u64]) {
    for (page, sample) in samples.iter_mut().enumerate().take(map.pages()) {
        let ticks: u64;
        // SAFETY: a byte of the mapping, which nothing refers to.
        unsafe {
            asm!(
                "rdtsc",
                "mov r9d, eax",
                "mov r10d, edx",
                "mov byte ptr [{at}], 1",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "shl r10, 32",
                "or r9, r10",
                "sub rax, r9",
                at = in(reg) map.start().wrapping_add(page * PAGE),
                out("rax") ticks, out("rdx") _, out("r9") _, out("r10") _,
                options(nostack),
            );
        }
        *sample = ticks;
    }
}

/// The numbers of a mapping's frames (`Documentation/admin-guide/mm/pagemap.rst`); zeros for all but root.
fn frames<'a>(
    pagemap: &File,
    map: &Map,
    entries: &'a mut [u8],
) -> Result<impl Iterator<Item = u64> + use<'a>> {
    let entries = &mut entries[..map.pages() * 8];
    pagemap.read_exact_at(entries, (map.start() as usize / PAGE * 8) as u64).context("/proc/self/pagemap")?;
    const PRESENT: u64 = 1 << 63;
    let entries: &'a [u8] = entries;
    let entry = |bytes: &[u8]| bytes.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte));
    let entries = entries.chunks(8).map(entry);
    Ok(entries.filter(|entry| entry & PRESENT != 0).map(|entry| entry & ((1 << 55) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches of frames in an order that is Linux's: blocks from the top, one after another.
    fn touched(group: u64) -> (Vec<u64>, Vec<u64>) {
        let order: Vec<u64> = (0..8).rev().flat_map(|block| block * 64..(block + 1) * 64).collect();
        let mut seen = HashSet::new();
        // Every tenth one is slow for another reason.
        let took = |(index, frame): (u64, &u64)| match (seen.insert(frame / group), index % 10) {
            (true, _) => 900,
            (false, 0) => 700,
            (false, _) => 100,
        };
        ((0..).zip(&order).map(took).collect(), order)
    }

    #[test]
    fn the_group_that_a_miss_brings_is_found_among_other_slow_touches() {
        for group in [1, 2, 4, 16, 64] {
            let (samples, order) = touched(group);
            let (found, mut misses) = misses(&samples, &order, 150).unwrap();
            assert_eq!((found, median(&mut misses)), (group, 900));
        }
        let (samples, order) = touched(16);
        assert_eq!(misses(&samples, &order, 1_000), None, "nothing was missed");
    }
}
