//! Where faults come from: the pages and the guest's instructions with the most.
//!
//! Memory is bounded, so the rarest entry makes room for a new one, which takes over its count: what has more than one
//! of [`ENTRIES`] of all faults is always in the table, and a count is too high by at most what it took over (Metwally,
//! Agrawal, El Abbadi, ICDT 2005: Space-Saving).

use alloc::vec::Vec;

use super::error::ConfigError;
use super::message::Page;
use super::table;

/// Entries of each table.
pub const ENTRIES: usize = 64;

/// What was seen how often.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hot<T> {
    /// What.
    pub what: T,
    /// How often at most.
    pub count: u64,
    /// By how much the count may be too high.
    pub excess: u64,
}

/// A table of the most frequent.
#[derive(Clone, Debug)]
pub struct Hottest<T>(Vec<Hot<T>>);

impl<T: Copy + Default + Eq> Hottest<T> {
    fn new() -> Result<Self, ConfigError> {
        Ok(Self(table(Hot::default(), ENTRIES)?))
    }

    /// Counts one more. The table stays in falling order.
    fn add(&mut self, what: T) {
        let known = self.0.iter().position(|hot| hot.count > 0 && hot.what == what);
        let place = known.unwrap_or(self.0.len() - 1);
        let hot = &mut self.0[place];
        if known.is_none() {
            *hot = Hot { what, count: hot.count, excess: hot.count };
        }
        hot.count += 1;
        let count = hot.count;
        // It goes before all that have less now.
        let to = self.0[..place].partition_point(|hot| hot.count >= count);
        self.0.swap(place, to);
    }

    /// The most frequent first.
    pub fn iter(&self) -> impl Iterator<Item = &Hot<T>> {
        self.0.iter().filter(|hot| hot.count > 0)
    }
}

/// Both tables.
#[derive(Clone, Debug)]
pub struct Profile {
    /// By page.
    pub pages: Hottest<Page>,
    /// By the guest's instruction pointer.
    pub instructions: Hottest<u64>,
}

impl Profile {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn new() -> Result<Self, ConfigError> {
        Ok(Self { pages: Hottest::new()?, instructions: Hottest::new()? })
    }

    /// Counts a fault.
    pub fn add(&mut self, page: Page, instruction: u64) {
        self.pages.add(page);
        self.instructions.add(instruction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_frequent_is_found_and_its_count_bounded() {
        let mut random = Random(1);
        let mut hottest = Hottest::new().unwrap();
        let mut exact = BTreeMap::new();
        for round in 0..50_000_u64 {
            // Three are frequent among many that are seen once or twice.
            let what = if random.one_in(4) { round % 3 } else { 1_000 + random.below(30_000_u64) };
            hottest.add(what);
            *exact.entry(what).or_insert(0) += 1;
            if round % 997 == 0 {
                let counts: Vec<u64> = hottest.iter().map(|hot| hot.count).collect();
                assert!(counts.is_sorted_by(|a, b| a >= b));
                assert_eq!(counts.iter().sum::<u64>(), round + 1);
            }
        }
        for hot in hottest.iter() {
            let exact = exact[&hot.what];
            assert!(hot.count >= exact && hot.count - hot.excess <= exact);
        }
        let first: Vec<u64> = hottest.iter().take(3).map(|hot| hot.what).collect();
        assert!((0..3).all(|what| first.contains(&what)), "{first:?}");
        assert_eq!(hottest.iter().count(), ENTRIES);
    }

    #[test]
    fn few_are_counted_exactly() {
        let mut profile = Profile::new().unwrap();
        for round in 0..60 {
            profile.add(Page(round % 4), 7);
        }
        assert!(profile.pages.iter().all(|hot| (hot.count, hot.excess) == (15, 0)));
        assert_eq!(profile.pages.iter().count(), 4);
        assert_eq!(profile.instructions.iter().copied().next(), Some(Hot { what: 7, count: 60, excess: 0 }));
    }
}
