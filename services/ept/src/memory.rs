//! The guest's memory on this node: which page has which frame, and what a fault changes.
//!
//! A page is *dormant* until something writes to it: it is all zeros, has no frame, and reads find one frame of zeros that
//! all such pages share read-only. The first write gives it a frame, in its chunk's reservation where there is one
//! ([`crate::frames`]), alone or with its neighbours ([`crate::around`]). When a reserved block is full its chunk is mapped by
//! one large page.
//!
//! This is a state machine: faults in, page operations out ([`Space`]), no clock and no call of its own. An operation that
//! fails leaves it as it was. All of its tables are made at the start: four bytes a page, and for each 512 of them 20 more, and 88
//! for each 512 frames.
//!
//! When several nodes share the guest's memory ([`shared`]) it is the coherence protocol that says which page has what; here
//! it is kept, and carried out. What the guest does not see stays this node's own.
//!
//! Invariants, which the tests check after each step: a frame but the shared one is in one page's entry at most, and then
//! not free; a page of a chunk that has a reservation has the frame at its own place of the block; `touched` of a chunk is
//! the number of its entries that are not dormant.

mod reset;
pub mod shared;

use alloc::vec::Vec;

use ipc::interfaces::ept::{self as interface, Counters};

use crate::around::{Policy, SHORT_DIVISOR, Stream};
use crate::fault::{Fault, Refusal, Source};
use crate::frames::{BlockNumber, Frame, Frames};
use crate::layout::{CHUNK_PAGES, GuestPage, Layout};
use crate::space::{Access, Contents, Space};
use crate::{StartError, filled};

pub use self::reset::{Progress, RESET_CALLS, RESET_CHUNKS};

/// What a page is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PageState {
    /// Never written, and not mapped.
    Dormant,
    /// Never written, and mapped to the shared page of zeros.
    Zero,
    /// In a frame of its own, and mapped for reading and writing.
    Owned(Frame),
}

/// A page's [`PageState`]: in bits 30 and 31 which, in bits 0 to 29 the frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Entry(u32);

impl Entry {
    const DORMANT: Self = Self(0);
    const ZERO: Self = Self(1 << 30);
    const OWNED: u32 = 2 << 30;
    /// Only of a page that nodes share: in a frame, and mapped to be read.
    const READ: u32 = 3 << 30;
    const FRAME: u32 = (1 << 30) - 1;

    const fn owned(frame: Frame) -> Self {
        Self(Self::OWNED | frame.0)
    }

    const fn state(self) -> PageState {
        match self.0 >> 30 {
            0 => PageState::Dormant,
            1 => PageState::Zero,
            _ => PageState::Owned(Frame(self.0 & Self::FRAME)),
        }
    }
}

/// Where the pages of a chunk get their frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Placement {
    /// No page has one yet.
    Open,
    /// In a block of their own, each at its place.
    Reserved(BlockNumber),
    /// Anywhere: the chunk is not memory as a whole, or there was no block, or its reservation is broken.
    Loose,
}

/// How a chunk is mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mapping {
    Small,
    Large,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    placement: Placement,
    stream: Stream,
    /// Pages that are not dormant.
    touched: u16,
    mapping: Mapping,
}

impl Chunk {
    const LOOSE: Self =
        Self { placement: Placement::Loose, stream: Stream::NONE, touched: 0, mapping: Mapping::Small };
    const OPEN: Self = Self { placement: Placement::Open, ..Self::LOOSE };
}

const _: () = assert!(size_of::<Entry>() == 4 && size_of::<Chunk>() <= 20);

/// A page at which there was a fault.
#[derive(Clone, Copy)]
struct At {
    page: GuestPage,
    slot: usize,
    chunk: usize,
    /// The page's place in its chunk.
    place: u16,
}

/// The guest's memory on this node.
#[derive(Debug)]
pub struct GuestMemory {
    layout: Layout,
    frames: Frames,
    policy: Policy,
    /// Frames are short when no more are free.
    short: u32,
    entries: Vec<Entry>,
    chunks: Vec<Chunk>,
    /// What the shared page of zeros is to be mapped with: it is cleared once.
    zero_page: Contents,
    /// The chunk that is taken away next, while all are.
    reset: Option<usize>,
    /// Whether other nodes share what the guest sees.
    is_shared: bool,
    /// Where the search for a page to give away goes on.
    hand: usize,
    /// Shared pages that are here to be read, and to be written.
    held: [u64; 2],
    zero_pages: u64,
    large: u64,
    broken: u64,
    not_promoted: u64,
    faults: interface::Faults,
}

impl GuestMemory {
    /// The memory of a guest that has not run.
    ///
    /// # Errors
    /// [`StartError::NoRoom`] when the heap has no room for [`GuestMemory::table_bytes`].
    pub fn new(layout: Layout, frames: Frames, policy: Policy) -> Result<Self, StartError> {
        let entries = filled(Entry::DORMANT, layout.slots())?;
        let mut chunks = filled(Chunk::LOOSE, layout.chunks())?;
        for (number, chunk) in chunks.iter_mut().enumerate() {
            *chunk = Self::untouched(&layout, number);
        }
        let always_enough = u64::from(frames.free()) >= layout.pages();
        Ok(Self {
            short: if always_enough { 0 } else { frames.total() / SHORT_DIVISOR },
            layout,
            frames,
            policy,
            entries,
            chunks,
            zero_page: Contents::Zero,
            reset: None,
            is_shared: false,
            hand: 0,
            held: [0; 2],
            zero_pages: 0,
            large: 0,
            broken: 0,
            not_promoted: 0,
            faults: interface::Faults::default(),
        })
    }

    /// A chunk as it is at the start.
    fn untouched(layout: &Layout, number: usize) -> Chunk {
        if layout.chunk(number).1 == CHUNK_PAGES { Chunk::OPEN } else { Chunk::LOOSE }
    }

    /// Bytes of the tables.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        size_of_val(self.entries.as_slice()) + size_of_val(self.chunks.as_slice()) + self.frames.table_bytes()
    }

    /// What became of the memory.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            pages: self.layout.pages(),
            zero_pages: self.zero_pages,
            frames: interface::Frames {
                total: self.frames.total().into(),
                used: (self.frames.total() - self.frames.free()).into(),
                reserved: self.frames.free_reserved().into(),
            },
            ranges: interface::Ranges {
                reserved: self.frames.reserved_blocks().into(),
                large: self.large,
                broken: self.broken,
                not_promoted: self.not_promoted,
            },
            faults: self.faults,
        }
    }

    /// Does what a fault asks for. Once it is answered the access can be tried again.
    ///
    /// # Errors
    /// See [`Refusal`]; the guest's pages are as they were.
    #[inline]
    pub fn fault<S: Space>(&mut self, space: &mut S, fault: Fault) -> Result<(), Refusal> {
        if fault.source == Source::Window {
            self.faults.of_window += 1;
        }
        let answer = self.answer(space, fault);
        match answer {
            Ok(()) => {}
            Err(Refusal::Outside) => self.faults.outside += 1,
            Err(Refusal::OutOfMemory) => self.faults.out_of_memory += 1,
            Err(Refusal::NotMapped) => self.faults.not_mapped += 1,
            Err(Refusal::Stopping) => self.faults.stopping += 1,
        }
        answer
    }

    // Called at two places, of which one's instructions are counted (`cargo xtask bench`).
    #[inline(always)]
    fn answer<S: Space>(&mut self, space: &mut S, fault: Fault) -> Result<(), Refusal> {
        if self.reset.is_some() {
            return Err(Refusal::Stopping);
        }
        let page = GuestPage::of(fault.address);
        let slot = self.layout.slot(page).ok_or(Refusal::Outside)?;
        #[expect(clippy::cast_possible_truncation, reason = "below 512")]
        let at = At { page, slot, chunk: slot / CHUNK_PAGES, place: (slot % CHUNK_PAGES) as u16 };
        match (self.entries[slot].state(), fault.access) {
            (PageState::Owned(_), _) | (PageState::Zero, Access::Read) => self.faults.spurious += 1,
            (PageState::Dormant, Access::Read) => {
                self.share_zeros(space, at)?;
                self.faults.read_dormant += 1;
            }
            (state, Access::ReadWrite) => {
                self.materialise(space, at)?;
                match state {
                    PageState::Zero => self.faults.upgrade += 1,
                    PageState::Dormant | PageState::Owned(_) => self.faults.write_dormant += 1,
                }
            }
        }
        Ok(())
    }

    /// Maps the shared page of zeros at a dormant page.
    fn share_zeros<S: Space>(&mut self, space: &mut S, at: At) -> Result<(), Refusal> {
        space
            .map(at.page, Frame::ZERO_PAGE, 1, Access::Read, self.zero_page)
            .map_err(|_| Refusal::NotMapped)?;
        self.zero_page = Contents::AsIs;
        self.entries[at.slot] = Entry::ZERO;
        self.chunks[at.chunk].touched += 1;
        self.zero_pages += 1;
        Ok(())
    }

    /// Gives a page that has none a frame.
    #[inline]
    fn materialise<S: Space>(&mut self, space: &mut S, at: At) -> Result<(), Refusal> {
        if self.chunks[at.chunk].placement == Placement::Open {
            self.reserve(at.chunk);
        }
        match self.chunks[at.chunk].placement {
            Placement::Reserved(block) => self.fill(space, at, block),
            Placement::Open | Placement::Loose => self.place_anywhere(space, at),
        }
    }

    /// Decides where a chunk's pages get their frames, at the first that needs one.
    #[cold]
    fn reserve(&mut self, chunk: usize) {
        let block = u32::try_from(chunk).ok().and_then(|chunk| self.frames.reserve(chunk));
        self.chunks[chunk].placement = block.map_or(Placement::Loose, Placement::Reserved);
    }

    /// Takes back the decision when the first page could not be mapped.
    #[cold]
    fn unreserve(&mut self, chunk: usize, block: BlockNumber) {
        if self.frames.is_unused(block) {
            self.frames.release(block);
            self.chunks[chunk].placement = Placement::Open;
        }
    }

    /// Materialises a page of a chunk that has a reservation, and some round it.
    #[inline]
    fn fill<S: Space>(&mut self, space: &mut S, at: At, block: BlockNumber) -> Result<(), Refusal> {
        let stream = self.chunks[at.chunk].stream;
        let order = if self.frames.free() > self.short {
            let before = at.chunk.checked_sub(1).map_or(Stream::NONE, |before| self.chunks[before].stream);
            stream.order(before, at.place, self.policy)
        } else {
            0
        };
        let run = self.frames.run(block, at.place, order);
        let frame = block.frame(run.first);
        let below = at.place - run.first;
        let (first, count) = (GuestPage(at.page.0 - u64::from(below)), usize::from(run.count));
        if space.map(first, frame, count, Access::ReadWrite, Contents::Zero).is_err() {
            self.unreserve(at.chunk, block);
            return Err(Refusal::NotMapped);
        }

        let were_zero = self.own(at.slot - usize::from(below), frame, run.count);
        let chunk = &mut self.chunks[at.chunk];
        chunk.touched += run.count - were_zero;
        chunk.stream = Stream::after(run.first, run.count, order);
        self.zero_pages -= u64::from(were_zero);
        self.faults.around_pages += u64::from(run.count - 1);
        if self.frames.take(block, run) == 0 {
            self.promote(space, at, block);
        }
        Ok(())
    }

    /// Enters `count` frames from `frame` on for the pages from `slot` on; how many of these had been read before.
    #[inline]
    fn own(&mut self, slot: usize, frame: Frame, count: u16) -> u16 {
        if count == 1 {
            let before = core::mem::replace(&mut self.entries[slot], Entry::owned(frame));
            return u16::from(before == Entry::ZERO);
        }
        self.own_group(slot, frame, count)
    }

    #[inline(never)]
    fn own_group(&mut self, slot: usize, frame: Frame, count: u16) -> u16 {
        let mut were_zero = 0;
        for (entry, frame) in self.entries[slot..slot + usize::from(count)].iter_mut().zip(frame.0..) {
            were_zero += u16::from(*entry == Entry::ZERO);
            *entry = Entry::owned(Frame(frame));
        }
        were_zero
    }

    /// Maps a chunk whose block is full by one large page. Without that it works as well.
    #[cold]
    fn promote<S: Space>(&mut self, space: &mut S, at: At, block: BlockNumber) {
        let first = GuestPage(at.page.0 - u64::from(at.place));
        match space.map(first, block.frame(0), CHUNK_PAGES, Access::ReadWrite, Contents::AsIs) {
            Ok(()) => {
                self.chunks[at.chunk].mapping = Mapping::Large;
                self.large += 1;
            }
            Err(_) => self.not_promoted += 1,
        }
    }

    /// Materialises a page of a chunk that has no reservation.
    fn place_anywhere<S: Space>(&mut self, space: &mut S, at: At) -> Result<(), Refusal> {
        let frame = self.any_frame().ok_or(Refusal::OutOfMemory)?;
        if space.map(at.page, frame, 1, Access::ReadWrite, Contents::Zero).is_err() {
            self.frames.give_back(frame);
            return Err(Refusal::NotMapped);
        }
        let was_zero = self.entries[at.slot] == Entry::ZERO;
        self.entries[at.slot] = Entry::owned(frame);
        self.chunks[at.chunk].touched += u16::from(!was_zero);
        self.zero_pages -= u64::from(was_zero);
        Ok(())
    }

    /// A free frame, out of another chunk's reservation when there is no other.
    fn any_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.frames.take_one() {
            return Some(frame);
        }
        let owner = self.frames.break_oldest()?;
        self.chunks[owner as usize].placement = Placement::Loose;
        self.broken += 1;
        self.frames.take_one()
    }
}

#[cfg(test)]
mod tests;
