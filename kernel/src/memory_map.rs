//! The node's physical memory map, normalised.
//!
//! Firmware's maps are unsorted, overlap, split pages and repeat themselves. Here ranges are sorted, disjoint, whole
//! pages and as few as can be. Where two kinds claim the same page the more reserved one wins, so usable memory
//! shrinks to whole pages and everything else grows to them: what is wrong in a map costs memory, not correctness.
//! The kinds are those of ACPI 6.5, table 15.5 (address range types).

use core::fmt;

use heapless::Vec;
use ipc::abi::PAGE_SIZE;

use crate::address::PhysAddr;

/// The most ranges a map can hold.
pub const MAX_RANGES: usize = 128;
/// The end of what a physical address can name: 52 bits (AMD APM 2, 5.1; Intel SDM 3A, 4.1.4).
pub const PHYSICAL_END: u64 = 1 << 52;

const PAGE: u64 = PAGE_SIZE as u64;

/// What a range of memory is; the greater wins where two overlap.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Ordinary memory.
    Usable,
    /// Firmware's, a device's, broken, or in use already: not to be given to anyone.
    Reserved,
}

impl Kind {
    /// The kind with this E820 number (ACPI 6.5, table 15.5).
    #[must_use]
    pub const fn from_e820(number: u32) -> Self {
        if number == 1 { Self::Usable } else { Self::Reserved }
    }
}

/// Some pages of one kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first byte; a multiple of a page.
    pub start: PhysAddr,
    /// The byte after the last; a multiple of a page, greater than `start`.
    pub end: PhysAddr,
    /// What it is.
    pub kind: Kind,
}

/// Why a range cannot be put into the map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MapError {
    /// Usable memory that ends beyond what a physical address can name.
    Absurd {
        /// Where the range begins.
        start: u64,
        /// Its bytes.
        length: u64,
    },
    /// More than [`MAX_RANGES`] ranges.
    Full,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absurd { start, length } => {
                write!(f, "usable memory of {length:#x} bytes at {start:#x} ends beyond 52 bits of address")
            }
            Self::Full => write!(f, "more than {MAX_RANGES} separate ranges of memory"),
        }
    }
}

/// The map. What no range covers is not memory.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MemoryMap {
    /// Sorted and disjoint; two that touch differ in kind.
    ranges: Vec<Range, MAX_RANGES>,
}

impl MemoryMap {
    /// A map without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Adds what firmware says of `length` bytes from `start` on.
    ///
    /// # Errors
    /// [`MapError::Absurd`] for usable memory beyond [`PHYSICAL_END`] (any other kind is cut there, for nobody will
    /// use it), [`MapError::Full`].
    pub fn add(&mut self, start: u64, length: u64, kind: Kind) -> Result<(), MapError> {
        if length == 0 {
            return Ok(());
        }
        let end = start.saturating_add(length);
        let (start, end) = if kind == Kind::Usable {
            if end > PHYSICAL_END {
                return Err(MapError::Absurd { start, length });
            }
            (start.next_multiple_of(PAGE), end / PAGE * PAGE)
        } else {
            (start / PAGE * PAGE, end.min(PHYSICAL_END).next_multiple_of(PAGE))
        };
        self.overlay(start, end, kind)
    }

    /// Takes `length` bytes from `start` on, grown to whole pages, out of the usable memory: the kernel's image, a
    /// boot module, the page of the other cores' start code.
    ///
    /// # Errors
    /// [`MapError::Full`].
    pub fn exclude(&mut self, start: PhysAddr, length: u64) -> Result<(), MapError> {
        self.add(start.0, length, Kind::Reserved)
    }

    /// Whether `length` bytes from `start` on, at least one, are all usable.
    #[must_use]
    pub fn is_usable(&self, start: PhysAddr, length: u64) -> bool {
        let Some(end) = start.0.checked_add(length) else { return false };
        // Ranges of one kind that touch are merged, so one range holds all of it or none does.
        length > 0 && self.ranges.iter().any(|r| r.kind == Kind::Usable && r.start <= start && end <= r.end.0)
    }

    /// Bytes of usable memory.
    #[cfg(test)]
    pub fn usable_bytes(&self) -> u64 {
        self.usable().map(|r| r.end.0 - r.start.0).sum()
    }

    /// The usable ranges, sorted.
    pub fn usable(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter().filter(|r| r.kind == Kind::Usable)
    }

    fn overlay(&mut self, start: u64, end: u64, kind: Kind) -> Result<(), MapError> {
        if start >= end {
            return Ok(());
        }
        let mut merged = Self::new();
        // `at`: up to where the new range is in `merged`.
        let mut at = start;
        for old in &self.ranges {
            let (old_start, old_end) = (old.start.0, old.end.0);
            let gap_end = end.min(old_start);
            if at < gap_end {
                merged.push(at, gap_end, kind)?;
                at = gap_end;
            }
            let from = start.clamp(old_start, old_end);
            let to = end.clamp(old_start, old_end);
            merged.push(old_start, from, old.kind)?;
            merged.push(from, to, old.kind.max(kind))?;
            merged.push(to, old_end, old.kind)?;
            at = at.max(to);
        }
        merged.push(at, end, kind)?;
        *self = merged;
        Ok(())
    }

    /// Appends a range at or past the map's end.
    fn push(&mut self, start: u64, end: u64, kind: Kind) -> Result<(), MapError> {
        if start >= end {
            return Ok(());
        }
        let (start, end) = (PhysAddr(start), PhysAddr(end));
        match self.ranges.last_mut() {
            Some(last) if last.end == start && last.kind == kind => last.end = end,
            _ => self.ranges.push(Range { start, end, kind }).map_err(|_| MapError::Full)?,
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "maps in tests are small")]
mod tests {
    extern crate std;
    use std::format;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const KINDS: [Kind; 2] = [Kind::Usable, Kind::Reserved];

    #[test]
    fn overlaps_go_to_the_more_reserved_whatever_the_order() {
        let said =
            [(0x5800, 0x800, Kind::Reserved), (0, 0x10_0000, Kind::Usable), (0x8000, 1, Kind::Reserved)];
        let expected = [
            (0, 0x5000, Kind::Usable),
            (0x5000, 0x6000, Kind::Reserved),
            (0x6000, 0x8000, Kind::Usable),
            (0x8000, 0x9000, Kind::Reserved),
            (0x9000, 0x10_0000, Kind::Usable),
        ];
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
            let mut map = MemoryMap::new();
            for i in order {
                map.add(said[i].0, said[i].1, said[i].2).unwrap();
            }
            let got: std::vec::Vec<_> = map.ranges.iter().map(|r| (r.start.0, r.end.0, r.kind)).collect();
            assert_eq!(got, expected, "{order:?}");
            assert_eq!(map.usable_bytes(), 0xfe000);
            assert!(map.is_usable(PhysAddr(0x6000), 0x2000));
            assert!(!map.is_usable(PhysAddr(0x6000), 0x2001));
            assert!(!map.is_usable(PhysAddr(u64::MAX), 2));
        }
    }

    #[test]
    fn the_absurd_is_refused_and_the_merely_odd_is_not() {
        let mut map = MemoryMap::new();
        let error = map.add(u64::MAX - 5, 10, Kind::Usable).unwrap_err();
        assert_eq!(
            format!("{error}"),
            "usable memory of 0xa bytes at 0xfffffffffffffffa ends beyond 52 bits of address"
        );
        map.add(u64::MAX - 5, 10, Kind::Reserved).unwrap();
        map.add(0x1001, 0xfff, Kind::Usable).unwrap();
        map.add(77, 0, Kind::Reserved).unwrap();
        assert_eq!(map.ranges, []);
        for i in 0..MAX_RANGES as u64 {
            map.add(i * 2 * PAGE, PAGE, Kind::Usable).unwrap();
        }
        let before = map.clone();
        assert_eq!(map.add(MAX_RANGES as u64 * 2 * PAGE, PAGE, Kind::Usable), Err(MapError::Full));
        assert_eq!(map, before);
        map.add(PAGE, PAGE, Kind::Usable).unwrap();
        assert_eq!(map.ranges.len(), MAX_RANGES - 1);
    }

    #[test]
    fn random_maps_agree_with_a_map_of_single_pages() {
        let mut random = StdRng::seed_from_u64(0x4d41_5053);
        for _ in 0..300 {
            let mut map = MemoryMap::new();
            let mut pages = [None; 64];
            for _ in 0..random.random_range(1..40) {
                let start = random.random_range(0..64 * PAGE);
                let length = random.random_range(0..=(64 * PAGE - start).min(9 * PAGE));
                let kind = KINDS[random.random_range(0..KINDS.len())];
                map.add(start, length, kind).unwrap();
                for (i, page) in pages.iter_mut().enumerate() {
                    let (first, end) = (i as u64 * PAGE, (i as u64 + 1) * PAGE);
                    let touched = length > 0 && start < end && start + length > first;
                    let whole = start <= first && start + length >= end;
                    if whole || touched && kind != Kind::Usable {
                        *page = (*page).max(Some(kind));
                    }
                }
            }
            let mut rebuilt = [None; 64];
            for pair in map.ranges.windows(2) {
                assert!(pair[0].end <= pair[1].start);
                assert!(pair[0].end < pair[1].start || pair[0].kind != pair[1].kind);
            }
            for range in &map.ranges {
                for page in range.start.0 / PAGE..range.end.0 / PAGE {
                    rebuilt[page as usize] = Some(range.kind);
                }
            }
            assert_eq!(rebuilt, pages);
        }
    }
}
