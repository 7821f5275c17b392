//! The guest's memory when several nodes share it: what this node has of each page.
//!
//! A page is named by its slot. Its entry says what the coherence protocol knows of it ([`Holding`]), and in which frame it is.
//! A page that leaves has its frame, and holds nothing, until its contents are sent; a page that is to be cleared has none
//! yet. Frames are taken one by one, or several that follow one another for pages that nobody has touched; there are no
//! reservations and no large pages.

use ipc::abi::Error;

use super::{Chunk, Entry, GuestMemory};
use crate::around::{SHORT_DIVISOR, Stream};
use crate::coherence::environment::{Contents, Holding, Operation};
use crate::coherence::message::{Access, Page};
use crate::frames::Frame;
use crate::layout::{CHUNK_PAGES, GuestPage};
use crate::space::{self, Space};

/// Pages, one after another, that get a frame together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Group {
    /// The first.
    pub first: Page,
    /// How many.
    pub count: u16,
    /// The logarithm of the size that was aimed at.
    order: u8,
}

impl Entry {
    const fn frame(self) -> Option<Frame> {
        let number = self.0 & Self::FRAME;
        if number == Frame::ZERO_PAGE.0 { None } else { Some(Frame(number)) }
    }

    const fn holding(self) -> Holding {
        match self.0 & !Self::FRAME {
            0 => Holding::Nothing,
            Self::OWNED => Holding::Write,
            Self::READ => Holding::Read,
            _ => Holding::Zero,
        }
    }

    const fn held(self, holding: Holding) -> Self {
        let state = match holding {
            Holding::Nothing => 0,
            Holding::Zero => Self::ZERO.0,
            Holding::Write => Self::OWNED,
            Holding::Read => Self::READ,
        };
        Self(state | self.0 & Self::FRAME)
    }

    const fn with_frame(self, frame: Frame) -> Self {
        Self(self.0 & !Self::FRAME | frame.0)
    }
}

/// The place of a page in the tables.
const fn slot(page: Page) -> usize {
    page.0 as usize
}

impl GuestMemory {
    /// Begins to share what the guest sees. `carried` are the frames of the pool that are the interconnect's. How many are
    /// left for the guest's pages; `None`, and nothing has begun, when the memory is not as at the start, or one of the
    /// frames is none of the pool's or comes twice, or too few are left.
    pub fn begin_sharing(&mut self, carried: &[u32]) -> Option<u32> {
        if self.is_shared || self.reset.is_some() || self.chunks.iter().any(|chunk| chunk.touched != 0) {
            return None;
        }
        self.is_shared = true;
        self.chunks.fill(Chunk::LOOSE);
        let are_free = carried.iter().all(|frame| self.frames.take_this(Frame(*frame)));
        let private = self.layout.pages() - self.layout.shown();
        let left = u64::from(self.frames.free()).checked_sub(private).filter(|left| are_free && *left > 0);
        if left.is_none() {
            self.end_sharing();
        }
        left.and_then(|left| u32::try_from(left).ok())
    }

    /// Nothing is shared any more, and nothing is mapped.
    pub(super) fn end_sharing(&mut self) {
        self.is_shared = false;
        self.held = [0; 2];
        self.zero_pages = 0;
        self.frames.reset();
        for number in 0..self.chunks.len() {
            self.chunks[number] = Self::untouched(&self.layout, number);
        }
    }

    /// The guest's pages, without what it does not see.
    #[must_use]
    pub const fn shown(&self) -> u64 {
        self.layout.shown()
    }

    /// The page with an address, when the guest sees it; `None` when it does not, or there is none.
    #[must_use]
    pub fn shared_page(&self, page: GuestPage) -> Option<Page> {
        let slot = self.layout.slot(page).filter(|slot| (*slot as u64) < self.layout.shown())?;
        u32::try_from(slot).ok().map(Page)
    }

    /// The guest-physical page of a page.
    #[must_use]
    pub const fn guest_page(&self, page: Page) -> GuestPage {
        self.layout.page(slot(page))
    }

    /// What this node has of a page.
    #[must_use]
    pub fn holding(&self, page: Page) -> Holding {
        self.entries[slot(page)].holding()
    }

    /// Remembers what this node has of a page.
    pub fn set_holding(&mut self, page: Page, holding: Holding) {
        self.set(page, self.entries[slot(page)].held(holding));
    }

    fn set(&mut self, page: Page, entry: Entry) {
        let before = core::mem::replace(&mut self.entries[slot(page)], entry);
        if let Some(number) = self.number_held(before.holding()) {
            *number -= 1;
        }
        if let Some(number) = self.number_held(entry.holding()) {
            *number += 1;
        }
        let touched = &mut self.chunks[slot(page) / CHUNK_PAGES].touched;
        *touched -= u16::from(before != Entry::DORMANT);
        *touched += u16::from(entry != Entry::DORMANT);
    }

    /// The page's frame.
    #[must_use]
    pub fn frame(&self, page: Page) -> Option<Frame> {
        self.entries[slot(page)].frame()
    }

    /// Makes a frame that is taken the page's, which has none.
    pub fn adopt(&mut self, page: Page, frame: Frame) {
        debug_assert_eq!(self.frame(page), None);
        self.set(page, self.entries[slot(page)].with_frame(frame));
    }

    /// Takes the page's frame from it. The frame is not free by that.
    pub fn take_frame(&mut self, page: Page) -> Option<Frame> {
        let frame = self.frame(page)?;
        self.set(page, self.entries[slot(page)].with_frame(Frame::ZERO_PAGE));
        Some(frame)
    }

    /// A free frame.
    pub fn free_frame(&mut self) -> Option<Frame> {
        self.frames.take_one()
    }

    /// Makes a frame free.
    pub fn give_back(&mut self, frame: Frame) {
        self.frames.give_back(frame);
    }

    /// How many pages are held so; those of which there is nothing are not counted.
    const fn number_held(&mut self, holding: Holding) -> Option<&mut u64> {
        match holding {
            Holding::Nothing => None,
            Holding::Zero => Some(&mut self.zero_pages),
            Holding::Read => Some(&mut self.held[0]),
            Holding::Write => Some(&mut self.held[1]),
        }
    }

    /// How many pages are here to be read alone, and to be written.
    #[must_use]
    pub const fn held(&self) -> [u64; 2] {
        self.held
    }

    /// A page that [`Holding::makes_room`] and may go. The search goes on from where the last one ended.
    pub fn victim(&mut self, access: Access, may_go: &dyn Fn(Page) -> bool) -> Option<Page> {
        let [read, write] = self.held;
        let some = match access {
            Access::Read => read,
            Access::Write => read + write,
        };
        let pages = usize::try_from(self.shown()).unwrap_or(0);
        let mut left = if some == 0 { 0 } else { pages };
        while left > 0 {
            let at = if self.hand < pages { self.hand } else { 0 };
            let is_empty = self.chunks[at / CHUNK_PAGES].touched == 0;
            let step = if is_empty { CHUNK_PAGES - at % CHUNK_PAGES } else { 1 };
            self.hand = at + step;
            left = left.saturating_sub(step);
            let page = u32::try_from(at).ok().map(Page)?;
            if !is_empty && self.entries[at].holding().makes_room(access) && may_go(page) {
                return Some(page);
            }
        }
        None
    }

    /// Carries out a page operation.
    ///
    /// # Errors
    /// The kernel's; nothing is changed then.
    pub fn perform<S: Space>(
        &mut self,
        space: &mut S,
        page: Page,
        operation: Operation,
    ) -> Result<(), Error> {
        let (at, kept) = (self.guest_page(page), space::Contents::AsIs);
        let frame = self.frame(page).ok_or(Error::Malformed);
        match operation {
            Operation::Unmap => space.unmap(at, 1),
            Operation::Protect => space.map(at, frame?, 1, space::Access::Read, kept),
            Operation::Map(access, Contents::AsIs) => space.map(at, frame?, 1, access_of(access), kept),
            Operation::Map(_, Contents::SharedZeros) => {
                space.map(at, Frame::ZERO_PAGE, 1, space::Access::Read, self.zero_page)?;
                self.zero_page = kept;
                Ok(())
            }
            Operation::Map(access, Contents::ClearedFrame) => {
                let frame = self.free_frame().ok_or(Error::NoRoom)?;
                let mapped = space.map(at, frame, 1, access_of(access), space::Contents::Zero);
                match mapped {
                    Ok(()) => self.adopt(page, frame),
                    Err(_) => self.give_back(frame),
                }
                mapped
            }
        }
    }

    /// Puts any memory in a page's place, to be written: what was there is lost.
    ///
    /// # Errors
    /// The kernel's, or [`Error::NoRoom`].
    pub fn scratch<S: Space>(&mut self, space: &mut S, page: Page) -> Result<(), Error> {
        let contents = if self.frame(page).is_some() { Contents::AsIs } else { Contents::ClearedFrame };
        self.perform(space, page, Operation::Map(Access::Write, contents))?;
        self.set_holding(page, Holding::Write);
        Ok(())
    }

    /// The group of pages to be materialised at a first write: round `page`, and only of those that `is_free` says nobody
    /// has touched, which it says of `page` itself. At most `most`, 1 at least.
    #[must_use]
    pub fn group(&self, page: Page, most: u32, is_free: impl Fn(Page) -> bool) -> Group {
        let chunk = slot(page) / CHUNK_PAGES;
        let before = chunk.checked_sub(1).map_or(Stream::NONE, |before| self.chunks[before].stream);
        #[expect(clippy::cast_possible_truncation, reason = "below 512")]
        let place = (slot(page) % CHUNK_PAGES) as u16;
        let are_many = self.frames.free() > self.frames.total() / SHORT_DIVISOR;
        let order = if are_many { self.chunks[chunk].stream.order(before, place, self.policy) } else { 0 };
        let start = page.0 & !((1 << order) - 1);
        let below = (start..page.0).rev().take_while(|other| is_free(Page(*other))).count();
        let end = start + (1 << order);
        let above = (page.0 + 1..end).take_while(|other| is_free(Page(*other))).count();
        #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
        let (below, above) = (below as u32, above as u32);
        let count = (below + 1 + above).min(most.max(1));
        // The page itself is among them.
        let first = page.0 - below.min(count - 1);
        Group { first: Page(first), count: u16::try_from(count).unwrap_or(1), order }
    }

    /// Maps cleared frames at a group of pages round `page`, of which this node has nothing; for as many of them as there are
    /// frames that follow one another. The group that got them.
    ///
    /// # Errors
    /// The kernel's; nothing is changed then.
    pub fn materialise_group<S: Space>(
        &mut self,
        space: &mut S,
        page: Page,
        group: Group,
    ) -> Result<Group, Error> {
        let (frame, count) = self.frames.take_several(group.count).ok_or(Error::NoRoom)?;
        let below = (page.0 - group.first.0).min(u32::from(count) - 1);
        let group = Group { first: Page(page.0 - below), count, ..group };
        let at = self.guest_page(group.first);
        let cleared = space::Contents::Zero;
        let mapped = space.map(at, frame, usize::from(count), space::Access::ReadWrite, cleared);
        for (page, frame) in (group.first.0..).map(Page).zip((frame.0..).map(Frame)).take(usize::from(count))
        {
            match mapped {
                Ok(()) => self.set(page, Entry::owned(frame)),
                Err(_) => self.give_back(frame),
            }
        }
        mapped?;
        let first = slot(group.first);
        #[expect(clippy::cast_possible_truncation, reason = "below 512")]
        let place = (first % CHUNK_PAGES) as u16;
        self.chunks[first / CHUNK_PAGES].stream = Stream::after(place, count, group.order);
        self.faults.around_pages += u64::from(count - 1);
        Ok(group)
    }
}

const fn access_of(access: Access) -> space::Access {
    match access {
        Access::Read => space::Access::Read,
        Access::Write => space::Access::ReadWrite,
    }
}

#[cfg(test)]
impl GuestMemory {
    /// The frames of pages, and those that are free; counts and tables agree.
    pub(crate) fn census(&self) -> [alloc::vec::Vec<u32>; 2] {
        self.frames.check();
        let mut held = [0; 2];
        for (number, chunk) in self.chunks.iter().enumerate() {
            let entries = &self.entries[number * CHUNK_PAGES..(number + 1) * CHUNK_PAGES];
            let touched = entries.iter().filter(|entry| **entry != Entry::DORMANT).count();
            assert_eq!(usize::from(chunk.touched), touched);
            for (slot, entry) in (number * CHUNK_PAGES..).zip(entries) {
                let is_shown = (slot as u64) < self.shown();
                held[0] += u64::from(is_shown && entry.holding() == Holding::Read);
                held[1] += u64::from(is_shown && entry.holding() == Holding::Write);
            }
        }
        assert!(!self.is_shared || held == self.held);
        let pages = self.entries.iter().filter_map(|entry| entry.frame()).map(|frame| frame.0).collect();
        let free = (0..self.frames.total()).filter(|frame| self.frames.is_free(Frame(*frame))).collect();
        [pages, free]
    }
}
