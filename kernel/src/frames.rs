//! Page frames, handed out at boot and never taken back.
//!
//! Regions and images need contiguous frames; after boot nothing is allocated, so all there is to it is to cut
//! pieces off the memory map. First fit from the lowest address keeps the rest in one piece. Memory below 1 MiB is
//! never given out: firmware and the start code of other cores use it. Memory below 4 GiB is what every device can reach,
//! so who does not need it gets memory above, where there is some.

use core::fmt;

use heapless::Vec;
use ipc::abi::PAGE_SIZE;

use crate::address::{FrameNumber, PhysAddr};
use crate::memory_map::{MAX_RANGES, MemoryMap};

const PAGE: u64 = PAGE_SIZE as u64;
const LOWEST: u64 = (1 << 20) / PAGE;
const FOUR_GIB: u64 = (1 << 32) / PAGE;
/// An allocation splits a free range only where its alignment leaves a gap, or at 4 GiB. With the list full, such an
/// allocation fails: nothing is lost from the count.
const MAX_FREE_RANGES: usize = 2 * MAX_RANGES;

/// Contiguous frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameRange {
    /// The first frame.
    pub first: FrameNumber,
    /// How many.
    pub pages: u64,
}

impl FrameRange {
    /// Address of the first byte.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        self.first.start()
    }

    /// Address after the last byte.
    #[must_use]
    pub const fn end(self) -> PhysAddr {
        FrameNumber(self.first.0 + self.pages).start()
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.pages * PAGE
    }
}

/// No free memory is as asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NoMemory {
    /// Contiguous pages wanted.
    pub pages: u64,
    /// The multiple of pages at which they should begin.
    pub align_pages: u64,
    /// Where they should end at the latest.
    pub below: Option<PhysAddr>,
    /// Pages free in all.
    pub free: u64,
}

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, align_pages, below, free } = self;
        write!(f, "no memory for {pages} contiguous pages")?;
        if *align_pages != 1 {
            write!(f, " aligned to {align_pages} pages")?;
        }
        if let Some(below) = below {
            write!(f, " below {:#x}", below.0)?;
        }
        write!(f, " ({free} pages are free)")
    }
}

/// The free frames.
#[derive(Clone, Debug)]
pub struct Frames {
    /// First frame and the frame after the last; sorted, disjoint, none empty.
    free: Vec<(u64, u64), MAX_FREE_RANGES>,
    total: u64,
}

impl Frames {
    /// The usable memory of a map from 1 MiB on. Whatever must not be given out was excluded from the map before.
    #[must_use]
    pub fn new(map: &MemoryMap) -> Self {
        let ranges = map.usable().map(|r| ((r.start.0 / PAGE).max(LOWEST), r.end.0 / PAGE));
        // A map has at most half as many ranges as fit.
        let free: Vec<_, MAX_FREE_RANGES> = ranges.filter(|(start, end)| start < end).collect();
        let total = free.iter().map(|(start, end)| end - start).sum();
        Self { free, total }
    }

    /// Frames there were at the start.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Frames that are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.iter().map(|(start, end)| end - start).sum()
    }

    /// Takes `pages` contiguous frames whose first is a multiple of `align_pages` (at least 1), and which end at or
    /// below `below` if that is given.
    ///
    /// # Errors
    /// [`NoMemory`] when there are none, or `pages` or `align_pages` is zero.
    pub fn allocate(
        &mut self,
        pages: u64,
        align_pages: u64,
        below: Option<PhysAddr>,
    ) -> Result<FrameRange, NoMemory> {
        let within = |frames: &mut Self, lowest, end| frames.take(pages, align_pages, lowest, end);
        match below {
            Some(limit) => within(self, 0, limit.0 / PAGE),
            None => within(self, FOUR_GIB, u64::MAX).or_else(|| within(self, 0, u64::MAX)),
        }
        .ok_or_else(|| NoMemory { pages, align_pages, below, free: self.free() })
    }

    /// Takes the lowest fitting frames from `lowest` on that end at or before `end`.
    fn take(&mut self, pages: u64, align: u64, lowest: u64, end: u64) -> Option<FrameRange> {
        if pages == 0 || align == 0 {
            return None;
        }
        let may_split = !self.free.is_full();
        let (index, first) = self.free.iter().enumerate().find_map(|(index, (from, to))| {
            let first = lowest.max(*from).checked_next_multiple_of(align)?;
            let after = first.checked_add(pages)?;
            let splits = first > *from && after < *to;
            (after <= end.min(*to) && (may_split || !splits)).then_some((index, first))
        })?;
        let (from, to) = self.free.remove(index);
        // Room for the first comes from the removal, for the second from `may_split`.
        for rest in [(first + pages, to), (from, first)] {
            if rest.0 < rest.1 {
                self.free.insert(index, rest).ok()?;
            }
        }
        Some(FrameRange { first: FrameNumber(first), pages })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::BTreeSet, format};

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::memory_map::Kind;

    fn map(ranges: &[(u64, u64)]) -> MemoryMap {
        let mut map = MemoryMap::new();
        for (start, length) in ranges {
            map.add(*start, *length, Kind::Usable).unwrap();
        }
        map
    }

    fn start(range: Result<FrameRange, NoMemory>) -> u64 {
        range.unwrap().start().0
    }

    #[test]
    fn low_memory_is_kept_for_those_who_need_it() {
        let mut frames =
            Frames::new(&map(&[(0, 0x9_f000), (0x8_0000, 0x8000_0000), (0xffff_0000, 0x2_0000)]));
        assert_eq!(frames.total(), (0x8008_0000 - 0x10_0000 + 0x2_0000) / PAGE);
        assert_eq!(start(frames.allocate(1, 1, None)), 1 << 32);
        assert_eq!(start(frames.allocate(1, 1, Some(PhysAddr(1 << 32)))), 0x10_0000);
        assert_eq!(start(frames.allocate(2, 512, None)), 0x20_0000);
        assert_eq!(start(frames.allocate(15, 1, None)), (1 << 32) + PAGE);
        // Nothing is left above 4 GiB.
        assert_eq!(start(frames.allocate(1, 1, None)), 0x10_1000);
        let low = Some(PhysAddr(0x10_3000));
        assert_eq!(start(frames.allocate(1, 1, low)), 0x10_2000);
        let error = frames.allocate(7, 1, low).unwrap_err();
        let free = frames.free();
        assert_eq!(frames.total() - free, 21);
        assert_eq!(
            format!("{error}"),
            format!("no memory for 7 contiguous pages below 0x103000 ({free} pages are free)")
        );
        let error = frames.allocate(u64::MAX, 4, None).unwrap_err();
        assert!(format!("{error}").contains("pages aligned to 4 pages ("));
        assert!(frames.allocate(0, 1, None).is_err() && frames.allocate(1, 0, None).is_err());
        assert_eq!(frames.free(), free);
    }

    #[test]
    fn random_maps_and_allocations_agree_with_single_frames() {
        let mut random = StdRng::seed_from_u64(0x4652_414d);
        for round in 0..100 {
            let mut map = MemoryMap::new();
            let base = if round % 2 == 0 { 0 } else { (1 << 32) - (1 << 20) };
            for _ in 0..random.random_range(1..60) {
                let start = base + random.random_range(0..0x200 * PAGE);
                let kind = if random.random_bool(0.7) { Kind::Usable } else { Kind::Reserved };
                map.add(start, random.random_range(0..0x40 * PAGE), kind).unwrap();
            }
            let mut free: BTreeSet<u64> = BTreeSet::new();
            for range in map.usable() {
                free.extend((range.start.0 / PAGE..range.end.0 / PAGE).filter(|frame| *frame >= 256));
            }
            let mut frames = Frames::new(&map);
            assert_eq!(frames.total(), free.len() as u64);
            for _ in 0..200 {
                let pages = random.random_range(1..8);
                let align = 1 << random.random_range(0..4);
                let below = random
                    .random_bool(0.5)
                    .then(|| PhysAddr(base + random.random_range(0x100 * PAGE..0x300 * PAGE)));
                let fits = |first: &u64| {
                    first.is_multiple_of(align)
                        && (*first..first + pages).all(|frame| free.contains(&frame))
                        && below.is_none_or(|limit| (first + pages) * PAGE <= limit.0)
                };
                let high = free.range(FOUR_GIB..).copied().filter(|_| below.is_none()).find(&fits);
                let expected = high.or_else(|| free.iter().copied().find(fits));
                let got = frames.allocate(pages, align, below);
                assert_eq!(got.ok().map(|range| range.first.0), expected);
                if let Some(first) = expected {
                    (first..first + pages).for_each(|frame| assert!(free.remove(&frame)));
                }
                assert_eq!(frames.free(), free.len() as u64);
            }
        }
    }

    #[test]
    fn a_full_list_loses_no_frame() {
        let mut frames = Frames::new(&map(&[(0x10_0000, 1 << 30)]));
        let mut taken = 0;
        // Every second frame, so that each allocation leaves a gap of one frame, until the list is full.
        while frames.allocate(1, 2, None).is_ok() {
            taken += 1;
        }
        assert_eq!((taken, frames.free.len()), (MAX_FREE_RANGES as u64, MAX_FREE_RANGES));
        assert_eq!(frames.free(), frames.total() - taken);
        // A gap that is filled makes room for the next.
        assert_eq!(start(frames.allocate(1, 1, None)), 0x10_1000);
        assert_eq!(start(frames.allocate(1, 2, None)), 0x10_0000 + 2 * PAGE * MAX_FREE_RANGES as u64);
        assert_eq!(frames.free(), frames.total() - taken - 2);
    }
}
