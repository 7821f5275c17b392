//! Which guest pages there are, and their places in flat tables.
//!
//! Guest memory is up to three spans of guest-physical addresses: low, high, and one that the guest does not see
//! ([`ipc::vcpu::PRIVATE_START`]). Each begins at a multiple of 2 MiB. A page's *slot* is its place in a table that holds the
//! spans one after another, each filled up to a multiple of 512 slots, so that the 512 slots of a *chunk* (2 MiB of
//! guest-physical addresses) follow one another and a chunk's number is its first slot over 512. What the guest sees has no
//! gap in it: when there are high pages the low ones end at a chunk's end.

use ipc::abi::PAGE_SIZE;
use ipc::vcpu::{PRIVATE_START, memory_ranges};

use crate::StartError;

/// Pages of a chunk: what one large page maps.
pub const CHUNK_PAGES: usize = 512;
/// The most pages that the spans can have together: 1 TiB. What is private begins at 256 GiB.
const MAX_PAGES: u64 = 1 << 28;

/// A guest page: a guest-physical address over 4,096.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct GuestPage(pub u64);

impl GuestPage {
    /// The page that holds a guest-physical address.
    #[must_use]
    pub const fn of(address: u64) -> Self {
        Self(address / PAGE_SIZE as u64)
    }
}

/// Some guest pages, one after another.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u64,
    pages: u64,
    /// The slot of its first page.
    slot: u64,
}

/// Which guest pages there are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    spans: [Span; 3],
    chunks: usize,
}

impl Layout {
    /// The memory of a guest of `pages` pages, and `private_pages` that it does not see.
    ///
    /// # Errors
    /// [`StartError::TooManyPages`] when the guest's memory would reach what is private, or the table's end.
    pub fn new(pages: u64, private_pages: u64) -> Result<Self, StartError> {
        const PRIVATE: u64 = PRIVATE_START / PAGE_SIZE as u64;
        let [low, high] = memory_ranges(pages);
        let high_end = high.0.checked_add(high.1).ok_or(StartError::TooManyPages)?;
        if high_end > PRIVATE || private_pages > MAX_PAGES {
            return Err(StartError::TooManyPages);
        }
        let mut slot = 0;
        let spans = [low, high, (PRIVATE, private_pages)].map(|(first, pages)| {
            let span = Span { first, pages, slot };
            slot += pages.next_multiple_of(CHUNK_PAGES as u64);
            span
        });
        if slot > MAX_PAGES {
            return Err(StartError::TooManyPages);
        }
        let slots = usize::try_from(slot).map_err(|_| StartError::TooManyPages)?;
        Ok(Self { spans, chunks: slots / CHUNK_PAGES })
    }

    /// Pages in all.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.spans.iter().map(|span| span.pages).sum()
    }

    /// Pages that the guest sees: their slots are the first ones.
    #[must_use]
    pub const fn shown(&self) -> u64 {
        self.spans[0].pages + self.spans[1].pages
    }

    /// The page of a slot, which has one.
    #[must_use]
    pub const fn page(&self, slot: usize) -> GuestPage {
        let [low, high, private] = &self.spans;
        let slot = slot as u64;
        let span = if slot < high.slot {
            low
        } else if slot < private.slot {
            high
        } else {
            private
        };
        GuestPage(span.first + (slot - span.slot))
    }

    /// Chunks in all, those counted that are not memory as a whole.
    #[must_use]
    pub const fn chunks(&self) -> usize {
        self.chunks
    }

    /// Slots in all: a table's length.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.chunks * CHUNK_PAGES
    }

    /// The slot of a page, below [`Layout::slots`]; `None` when there is no memory.
    #[inline]
    #[must_use]
    pub fn slot(&self, page: GuestPage) -> Option<usize> {
        for span in &self.spans {
            let offset = page.0.wrapping_sub(span.first);
            if offset < span.pages {
                return usize::try_from(span.slot + offset).ok();
            }
        }
        None
    }

    /// The pages of a chunk that are memory: the first, and how many, 1 to 512; 0 when there is no such chunk.
    #[must_use]
    pub fn chunk(&self, chunk: usize) -> (GuestPage, usize) {
        let slot = (chunk * CHUNK_PAGES) as u64;
        for span in &self.spans {
            let offset = slot.wrapping_sub(span.slot);
            if offset < span.pages {
                let left = usize::try_from(span.pages - offset).unwrap_or(CHUNK_PAGES);
                return (GuestPage(span.first + offset), left.min(CHUNK_PAGES));
            }
        }
        (GuestPage(0), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW_END: u64 = 0xc0000;
    const HIGH: u64 = 0x10_0000;
    const PRIVATE: u64 = 1 << 26;

    #[test]
    fn slots_follow_one_another_in_chunks_of_their_own() {
        let layout = Layout::new(LOW_END + 1000, 3).unwrap();
        assert_eq!(layout.pages(), LOW_END + 1003);
        assert_eq!(layout.chunks(), 1536 + 2 + 1);
        assert_eq!(layout.slot(GuestPage(0)), Some(0));
        assert_eq!(layout.slot(GuestPage(LOW_END - 1)), Some(0xbffff));
        assert_eq!(layout.slot(GuestPage(LOW_END)), None);
        assert_eq!(layout.slot(GuestPage(HIGH - 1)), None);
        assert_eq!(layout.slot(GuestPage(HIGH)), Some(0xc0000));
        assert_eq!(layout.slot(GuestPage(HIGH + 999)), Some(0xc0000 + 999));
        assert_eq!(layout.slot(GuestPage(HIGH + 1000)), None);
        assert_eq!(layout.slot(GuestPage(PRIVATE - 1)), None);
        assert_eq!(layout.slot(GuestPage(PRIVATE)), Some(0xc0000 + 1024));
        assert_eq!(layout.slot(GuestPage(PRIVATE + 2)), Some(0xc0000 + 1026));
        assert_eq!(layout.slot(GuestPage(PRIVATE + 3)), None);
        assert_eq!(layout.slot(GuestPage::of(u64::MAX)), None);
        assert_eq!(layout.slot(GuestPage(u64::MAX)), None);
        assert_eq!(layout.chunk(1535), (GuestPage(LOW_END - 512), 512));
        assert_eq!(layout.chunk(1536), (GuestPage(HIGH), 512));
        assert_eq!(layout.chunk(1537), (GuestPage(HIGH + 512), 488));
        assert_eq!(layout.chunk(1538), (GuestPage(PRIVATE), 3));
        assert_eq!(layout.chunk(1539).1, 0);
    }

    #[test]
    fn every_slot_is_of_the_page_that_its_chunk_says() {
        for (pages, private) in
            [(1, 0), (512, 512), (513, 1), (LOW_END - 1, 5), (LOW_END, 0), (LOW_END + 1, 700)]
        {
            let layout = Layout::new(pages, private).unwrap();
            let mut seen = 0;
            for chunk in 0..layout.chunks() {
                let (first, count) = layout.chunk(chunk);
                assert!(first.0 % 512 == 0 && (1..=512).contains(&count));
                for offset in [0, count / 2, count - 1] {
                    let (page, slot) = (GuestPage(first.0 + offset as u64), chunk * 512 + offset);
                    assert_eq!((layout.slot(page), layout.page(slot)), (Some(slot), page));
                    // What the guest sees comes first and has no gap.
                    let is_shown = first.0 < PRIVATE;
                    assert_eq!((slot as u64) < layout.shown(), is_shown);
                    if is_shown {
                        assert_eq!(seen + offset as u64, slot as u64);
                    }
                }
                seen += count as u64;
            }
            assert_eq!(seen, layout.pages());
            assert_eq!(seen, pages + private);
        }
    }

    #[test]
    fn memory_that_overlaps_or_has_no_end_is_refused() {
        let most = PRIVATE - HIGH + LOW_END;
        assert!(Layout::new(most, 0).is_ok());
        assert_eq!(Layout::new(most + 1, 0).unwrap_err(), StartError::TooManyPages);
        assert_eq!(Layout::new(u64::MAX, 0).unwrap_err(), StartError::TooManyPages);
        assert_eq!(Layout::new(1, u64::MAX).unwrap_err(), StartError::TooManyPages);
        assert_eq!(Layout::new(most, MAX_PAGES).unwrap_err(), StartError::TooManyPages);
        assert_eq!(Layout::new(0, 0).unwrap().slot(GuestPage(0)), None);
    }
}
