//! Where a service finds its regions: from [`REGION_BASE`] on, with at least one page between two of them that is
//! never mapped, so that running off the end of one is a fault.

use std::ops::Range;

use ipc::abi::{PAGE_SIZE, REGION_BASE, USER_END};

const PAGE: u64 = PAGE_SIZE as u64;

/// The space of one service.
#[derive(Default)]
pub struct Space {
    taken: Vec<Range<u64>>,
}

impl Space {
    /// Takes a range at a wanted address. `None` when something else lies there or within a page of it.
    pub fn take(&mut self, address: u64, bytes: u64) -> Option<u64> {
        let end = address.checked_add(bytes).filter(|end| *end <= USER_END)?;
        if address < REGION_BASE || self.blocker(address, end).is_some() {
            return None;
        }
        self.taken.push(address..end);
        Some(address)
    }

    /// Takes the lowest free range at a multiple of `align`. `None` when the space is full.
    pub fn place(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let mut address = REGION_BASE.next_multiple_of(align);
        loop {
            let end = address.checked_add(bytes).filter(|end| *end <= USER_END)?;
            let Some(blocker) = self.blocker(address, end) else { break };
            address = (blocker + PAGE).checked_next_multiple_of(align)?;
        }
        self.take(address, bytes)
    }

    /// The end of a range that lies in the way.
    fn blocker(&self, start: u64, end: u64) -> Option<u64> {
        self.taken.iter().find(|taken| start < taken.end + PAGE && taken.start < end + PAGE).map(|t| t.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placing_fills_gaps_and_keeps_a_page_free() {
        let mut space = Space::default();
        assert_eq!(space.take(REGION_BASE + 3 * PAGE, PAGE), Some(REGION_BASE + 3 * PAGE));
        // Two pages and their guard fit before it, three do not.
        assert_eq!(space.place(3 * PAGE, PAGE), Some(REGION_BASE + 5 * PAGE));
        assert_eq!(space.place(2 * PAGE, PAGE), Some(REGION_BASE));
        assert_eq!(space.take(REGION_BASE + 8 * PAGE, PAGE), None);
        assert_eq!(space.take(REGION_BASE + 9 * PAGE, PAGE), Some(REGION_BASE + 9 * PAGE));
    }

    #[test]
    fn nothing_goes_past_the_end() {
        let mut space = Space::default();
        assert_eq!(space.take(USER_END - PAGE, 2 * PAGE), None);
        assert_eq!(space.take(REGION_BASE - PAGE, PAGE), None);
        assert_eq!(space.place(USER_END - REGION_BASE, PAGE), Some(REGION_BASE));
        assert_eq!(space.place(PAGE, PAGE), None);
        assert_eq!(Space::default().place(u64::MAX, PAGE), None);
    }
}
