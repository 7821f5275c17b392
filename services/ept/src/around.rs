//! How many pages a first write materialises: fault-around, with the growth of a file's read-ahead.
//!
//! The trade: a fault costs an exit, two switches and a flush, F, whatever the number of pages; a page costs its clearing, Z. A
//! group of n pages of which the guest goes on to write m costs F + nZ instead of m(F + Z), so it pays when m is more than
//! (F + nZ) / (F + Z). With F the 3,000 instructions that a first touch may take and Z the 512 stores of eight bytes, that
//! is 6 pages of 32, and all 32 written it saves five sixths. Of a group that stays unwritten the clearing is wasted, and the
//! frames are: a dormant page would have had none. So groups start at one page, double only while faults follow one
//! another, shrink to a quarter when they do not, and are single pages when frames run short. The frames are of the chunk's reservation:
//! nobody else would have had them before memory runs out.
//!
//! A group is aligned to its size, and lies in one word of the block's bitmap: that is what bounds it to 64 pages.

use ipc::abi::MAX_ZERO_PAGES;

/// Pages of the largest group unless asked otherwise: the kernel clears no more at once.
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
pub const DEFAULT_PAGES: u16 = MAX_ZERO_PAGES as u16;
/// The most that can be asked for.
pub const MAX_PAGES: u16 = 64;
/// Frames are short when no more than one in so many is free. They never are when each page can have one.
pub const SHORT_DIVISOR: u32 = 8;

/// The settings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    max_order: u8,
}

impl Policy {
    /// Groups of at most `max_pages`, rounded down to a power of two from 1 (no fault-around) to [`MAX_PAGES`].
    #[must_use]
    pub const fn new(max_pages: u16) -> Self {
        let pages = if max_pages == 0 {
            1
        } else if max_pages > MAX_PAGES {
            MAX_PAGES
        } else {
            max_pages
        };
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of at most 64")]
        Self { max_order: pages.ilog2() as u8 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(DEFAULT_PAGES)
    }
}

/// The last group of a chunk; pages are numbered from the chunk's first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stream {
    /// Its first page.
    start: u16,
    /// The page after its last; 0 when there was no group.
    end: u16,
    /// The logarithm of the size that was aimed at.
    order: u8,
}

impl Stream {
    /// No group yet.
    pub const NONE: Self = Self { start: 0, end: 0, order: 0 };

    /// The logarithm of the size of the group for a fault at `page`, given the chunk before this one.
    #[inline]
    #[must_use]
    pub fn order(self, before: Self, page: u16, policy: Policy) -> u8 {
        if self.end != 0 {
            self.next(page, policy)
        } else if before.end != 0 {
            // Seen from the chunk before, this one's pages go on from 512. It need not be its neighbour in addresses, where
            // the hole below 4 GiB lies between: no more than a guess is spoilt.
            before.next(page + CHUNK, policy)
        } else {
            0
        }
    }

    #[inline]
    fn next(self, page: u16, policy: Policy) -> u8 {
        let reach = 1 << self.order;
        // A difference below zero wraps to one that is far out of reach.
        let above = page.wrapping_sub(self.end);
        let below = self.start.wrapping_sub(1).wrapping_sub(page);
        if above < reach || below < reach {
            if self.order < policy.max_order { self.order + 1 } else { policy.max_order }
        } else {
            self.order.saturating_sub(2)
        }
    }

    /// The stream after a group of `count` pages from `start` on, aimed at 2^`order`.
    #[inline]
    #[must_use]
    pub const fn after(start: u16, count: u16, order: u8) -> Self {
        Self { start, end: start + count, order }
    }
}

/// Pages of a chunk.
const CHUNK: u16 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy::new(16);

    #[test]
    fn the_largest_group_is_a_power_of_two_in_bounds() {
        let orders = [0, 1, 2, 3, 16, 31, 63, 64, 65, u16::MAX].map(|pages| Policy::new(pages).max_order);
        assert_eq!(orders, [0, 0, 1, 1, 4, 4, 5, 6, 6, 6]);
        assert_eq!(Policy::default().max_order, 5);
    }

    #[test]
    fn groups_grow_while_faults_follow_one_another() {
        let order = |stream: Stream, page| stream.order(Stream::NONE, page, POLICY);
        assert_eq!(order(Stream::NONE, 7), 0);
        let single = Stream::after(100, 1, 0);
        assert_eq!((order(single, 101), order(single, 99)), (1, 1));
        assert_eq!((order(single, 102), order(single, 98)), (0, 0));
        let group = Stream::after(96, 16, 4);
        assert_eq!([112, 127, 95, 80].map(|page| order(group, page)), [4; 4]);
        assert_eq!([128, 79, 0, 511].map(|page| order(group, page)), [2; 4]);
        // At the chunk's edges nothing wraps round.
        assert_eq!(order(Stream::after(0, 16, 4), 511), 2);
        assert_eq!(order(Stream::after(496, 16, 4), 0), 2);
    }

    #[test]
    fn a_stream_goes_on_from_the_chunk_before() {
        let order = |before, page| Stream::NONE.order(before, page, POLICY);
        assert_eq!(order(Stream::after(496, 16, 4), 0), 4);
        assert_eq!(order(Stream::after(511, 1, 0), 0), 1);
        assert_eq!(order(Stream::after(511, 1, 0), 1), 0);
        assert_eq!(order(Stream::after(480, 16, 4), 0), 2);
        // Its own stream counts more.
        assert_eq!(Stream::after(9, 1, 0).order(Stream::after(496, 16, 4), 200, POLICY), 0);
    }

    #[test]
    fn a_limit_of_one_page_is_kept() {
        let off = Policy::new(1);
        assert_eq!(Stream::after(0, 1, 0).order(Stream::NONE, 1, off), 0);
    }
}
