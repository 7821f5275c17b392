//! Page tables of four levels: one walker and builder for every format that has them.
//!
//! A [`Format`] says what the bits of an entry mean; the walker knows only that 512 entries make a table, that nine
//! bits of the address choose one at each level, and that an entry is absent, a table or a page. It reaches tables
//! through a [`TableMemory`]: the direct map in the kernel, a map of arrays in tests.
//!
//! Every operation goes through its range upwards and stops at the first address where it fails; what lies below
//! is done, what lies above is untouched, so a caller that can go on knows from where. Large pages that a range covers
//! in part are split first. A table is retired only when [`PageTable::replace`] puts a large page in its place. The walker
//! flushes no TLB: after [`PageTable::replace`] says so, and before the memory gets another use, the caller must.
//!
//! Source: AMD APM 2, 5.3 (long-mode page translation); Intel SDM 3A, 4.5.

use core::fmt;
use core::marker::PhantomData;

use ipc::abi::PAGE_SIZE;

use crate::address::FrameNumber;

pub mod ept;
pub mod host;
pub mod nested;
pub mod npt;

/// Entries in a table.
pub const ENTRIES: usize = 512;
const PAGE: u64 = PAGE_SIZE as u64;
/// The end of what four levels translate.
const INPUT_END: u64 = 1 << 48;

/// A level of the tree.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// Its entries are pages of 4 KiB.
    One,
    /// Its entries are tables, or pages of 2 MiB.
    Two,
    /// Its entries are tables, or pages of 1 GiB.
    Three,
    /// The root; its entries are tables.
    Four,
}

impl Level {
    /// The level of the tables that this level's entries point to.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::One => None,
            Self::Two => Some(Self::One),
            Self::Three => Some(Self::Two),
            Self::Four => Some(Self::Three),
        }
    }

    /// What a page that is an entry of this level is called.
    #[must_use]
    pub const fn page_size(self) -> Option<PageSize> {
        match self {
            Self::One => Some(PageSize::Small),
            Self::Two => Some(PageSize::Large),
            Self::Three => Some(PageSize::Huge),
            Self::Four => None,
        }
    }

    /// Bytes that one entry translates.
    const fn span(self) -> u64 {
        PAGE << (9 * self as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 512")]
    const fn index(self, address: u64) -> usize {
        (address / self.span() % ENTRIES as u64) as usize
    }
}

/// The size of a page.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB; not every processor has it.
    Huge,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry<A> {
    /// Nothing is there.
    Absent,
    /// A table of the level below.
    Table(FrameNumber),
    /// A page, by its first 4 KiB frame, and what may be done with it.
    Page(FrameNumber, A),
}

/// The meaning of an entry's bits.
pub trait Format {
    /// What is translated: a virtual address, say.
    type Address: Copy + fmt::Debug;
    /// What may be done with a page, how it is cached, and whatever else the format keeps for each page; a split
    /// gives it to every part.
    type Attributes: Copy + Eq + fmt::Debug;

    /// The 48 bits that the tables translate, or `None` for an address that they cannot.
    fn input(address: Self::Address) -> Option<u64>;
    /// The address whose 48 bits these are.
    fn address(input: u64) -> Self::Address;
    /// What an entry of a table of this level says. In a table of [`Level::One`] there are no tables, in one of
    /// [`Level::Four`] no pages.
    fn decode(entry: u64, level: Level) -> Entry<Self::Attributes>;
    /// The entry that says so; the inverse of [`Format::decode`].
    fn encode(entry: Entry<Self::Attributes>, level: Level) -> u64;
}

/// Where tables are.
pub trait TableMemory {
    /// Reads an entry; `index` is below [`ENTRIES`].
    fn read_entry(&self, table: FrameNumber, index: usize) -> u64;
    /// Writes an entry with one store.
    fn write_entry(&mut self, table: FrameNumber, index: usize, entry: u64);
    /// A frame for a new table, all of its entries zero.
    fn allocate_table(&mut self) -> Option<FrameNumber>;
    /// Takes back a table of the lowest level that is no longer linked, for use after the next flush.
    fn retire_table(&mut self, _table: FrameNumber) {}
}

/// Why an operation stopped, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PagingError<A> {
    /// Not the address of a page, or one that the format cannot translate.
    BadAddress(A),
    /// The range does not end within what the tables translate.
    BadRange(A),
    /// Something else is mapped there.
    AlreadyMapped(A),
    /// There is no memory for another table.
    NoTables(A),
}

impl<A: fmt::Debug> fmt::Display for PagingError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadAddress(at) => write!(f, "{at:x?} is not the address of a page"),
            Self::BadRange(at) => write!(f, "the range from {at:x?} on ends outside of the address space"),
            Self::AlreadyMapped(at) => write!(f, "something else is mapped at {at:x?}"),
            Self::NoTables(at) => write!(f, "no memory for a page table at {at:x?}"),
        }
    }
}

/// What an address is mapped to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mapping<A> {
    /// The 4 KiB frame that holds the address.
    pub frame: FrameNumber,
    /// The size of the page.
    pub size: PageSize,
    /// Its attributes.
    pub attributes: A,
}

/// A tree of tables in format `F`, by its root. The tables are in the [`TableMemory`], not in here.
#[derive(Debug)]
pub struct PageTable<F> {
    root: FrameNumber,
    format: PhantomData<fn() -> F>,
}

/// Whether a TLB may hold what the tables no longer say.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stale {
    /// No translation was there before.
    Nothing,
    /// One was taken away or replaced.
    Something,
}

/// Where a walk ended: at an entry that is no table.
struct Place<A> {
    table: FrameNumber,
    index: usize,
    level: Level,
    entry: Entry<A>,
}

type Outcome<F, T = ()> = Result<T, PagingError<<F as Format>::Address>>;

impl<F: Format> PageTable<F> {
    /// An empty tree, or `None` without memory for its root.
    pub fn new(memory: &mut impl TableMemory) -> Option<Self> {
        memory.allocate_table().map(Self::from_root)
    }

    /// The tree with this root, which must be a table of this format.
    #[must_use]
    pub const fn from_root(root: FrameNumber) -> Self {
        Self { root, format: PhantomData }
    }

    /// The frame of the root table.
    #[must_use]
    pub const fn root(&self) -> FrameNumber {
        self.root
    }

    /// What an address is mapped to.
    pub fn lookup(&self, memory: &impl TableMemory, at: F::Address) -> Option<Mapping<F::Attributes>> {
        let input = F::input(at)?;
        let place = self.walk(memory, input, Level::One);
        match (place.entry, place.level.page_size()) {
            (Entry::Page(frame, attributes), Some(size)) => {
                let offset = input % place.level.span() / PAGE;
                Some(Mapping { frame: FrameNumber(frame.0 + offset), size, attributes })
            }
            _ => None,
        }
    }

    /// Maps `pages` pages of 4 KiB from `from` on to the frames from `to` on, with pages no larger than `largest`
    /// wherever they fit. What is mapped in just this way already stays as it is.
    ///
    /// # Errors
    /// [`PagingError::BadAddress`], [`PagingError::BadRange`]; [`PagingError::AlreadyMapped`] at the first address that
    /// is mapped in another way; [`PagingError::NoTables`].
    pub fn map(
        &self,
        memory: &mut impl TableMemory,
        from: F::Address,
        to: FrameNumber,
        pages: u64,
        attributes: F::Attributes,
        largest: PageSize,
    ) -> Outcome<F> {
        let (start, end) = Self::range(from, pages)?;
        let mut at = start;
        while at < end {
            let place = self.walk(memory, at, Level::One);
            let span = place.level.span();
            let frame = FrameNumber(to.0 + (at - start) / PAGE);
            let next = at - at % span + span;
            match place.entry {
                Entry::Page(first, existing) => {
                    if first.0 + at % span / PAGE != frame.0 || existing != attributes {
                        return Err(PagingError::AlreadyMapped(F::address(at)));
                    }
                }
                _ => {
                    let fits = place.level.page_size().is_some_and(|size| size <= largest)
                        && at.is_multiple_of(span)
                        && frame.0.is_multiple_of(span / PAGE)
                        && next <= end;
                    if !fits {
                        self.grow(memory, &place, at)?;
                        continue;
                    }
                    Self::write(memory, &place, Entry::Page(frame, attributes));
                }
            }
            at = next;
        }
        Ok(())
    }

    /// Makes `pages` pages of 4 KiB from `from` on what `to` says (the first frame and the attributes, or nothing),
    /// whatever was there; pages of 2 MiB are used where they fit. Says whether anything that was there is no longer so.
    ///
    /// # Errors
    /// [`PagingError::BadAddress`], [`PagingError::BadRange`]; [`PagingError::NoTables`].
    pub fn replace(
        &self,
        memory: &mut impl TableMemory,
        from: F::Address,
        to: Option<(FrameNumber, F::Attributes)>,
        pages: u64,
    ) -> Outcome<F, Stale> {
        let (start, end) = Self::range(from, pages)?;
        let (mut at, mut stale) = (start, Stale::Nothing);
        while at < end {
            let page = to.map(|(first, with)| (FrameNumber(first.0 + (at - start) / PAGE), with));
            let wanted = page.map_or(Entry::Absent, |(frame, with)| Entry::Page(frame, with));
            let span = Level::Two.span();
            let is_large = at.is_multiple_of(span)
                && at + span <= end
                && page.is_none_or(|(frame, _)| frame.0.is_multiple_of(span / PAGE));
            let place = self.walk(memory, at, if is_large { Level::Two } else { Level::One });
            if place.level == Level::One {
                let count = (ENTRIES - place.index).min(((end - at) / PAGE) as usize);
                stale = Self::fill(memory, &place, wanted, count).max(stale);
                at += count as u64 * PAGE;
            } else if place.level == Level::Two && is_large
                || place.entry == Entry::Absent && wanted == Entry::Absent
            {
                stale = Self::fill(memory, &place, wanted, 1).max(stale);
                if let Entry::Table(table) = place.entry {
                    memory.retire_table(table);
                }
                at = at - at % place.level.span() + place.level.span();
            } else {
                self.grow(memory, &place, at)?;
            }
        }
        Ok(stale)
    }

    /// Makes an entry what is wanted there, and the `count - 1` that follow it in its table the pages that follow: one walk
    /// costs more than writing many entries.
    #[inline]
    fn fill(
        memory: &mut impl TableMemory,
        place: &Place<F::Attributes>,
        mut wanted: Entry<F::Attributes>,
        count: usize,
    ) -> Stale {
        let mut stale = Stale::Nothing;
        for index in place.index..place.index + count {
            let entry = F::decode(memory.read_entry(place.table, index), place.level);
            if entry != wanted {
                memory.write_entry(place.table, index, F::encode(wanted, place.level));
                if entry != Entry::Absent {
                    stale = Stale::Something;
                }
            }
            if let Entry::Page(frame, _) = &mut wanted {
                frame.0 += 1;
            }
        }
        stale
    }

    /// The table of the level below the root for an address, made when there is none; `None` without memory for it.
    pub fn second_table(&self, memory: &mut impl TableMemory, at: F::Address) -> Option<FrameNumber> {
        let input = F::input(at)?;
        let place = self.walk(memory, input, Level::Four);
        if place.entry == Entry::Absent {
            self.grow(memory, &place, input).ok()?;
        }
        match self.walk(memory, input, Level::Four).entry {
            Entry::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The entry that decides about an address, or the one of the level `lowest` if that is a table.
    fn walk(&self, memory: &impl TableMemory, input: u64, lowest: Level) -> Place<F::Attributes> {
        let (mut table, mut level) = (self.root, Level::Four);
        loop {
            let index = level.index(input);
            let entry = F::decode(memory.read_entry(table, index), level);
            match (entry, level.below()) {
                (Entry::Table(next), Some(below)) if level > lowest => (table, level) = (next, below),
                _ => return Place { table, index, level, entry },
            }
        }
    }

    /// Puts a table in the place of an absent entry or a large page; it translates as what was there did.
    fn grow(&self, memory: &mut impl TableMemory, place: &Place<F::Attributes>, at: u64) -> Outcome<F> {
        let no_tables = PagingError::NoTables(F::address(at));
        // An entry of the lowest level is never too large, so there always is a level below.
        let below = place.level.below().ok_or(no_tables)?;
        let table = memory.allocate_table().ok_or(no_tables)?;
        if let Entry::Page(first, attributes) = place.entry {
            let step = below.span() / PAGE;
            for (index, frame) in (first.0..).step_by(step as usize).take(ENTRIES).enumerate() {
                let part = Entry::Page(FrameNumber(frame), attributes);
                memory.write_entry(table, index, F::encode(part, below));
            }
        }
        // Only a complete table is linked: the processor may walk at any moment.
        Self::write(memory, place, Entry::Table(table));
        Ok(())
    }

    fn write(memory: &mut impl TableMemory, place: &Place<F::Attributes>, entry: Entry<F::Attributes>) {
        memory.write_entry(place.table, place.index, F::encode(entry, place.level));
    }

    /// The first input and the one after the last.
    fn range(from: F::Address, pages: u64) -> Outcome<F, (u64, u64)> {
        let start = F::input(from).filter(|start| start.is_multiple_of(PAGE));
        let start = start.ok_or(PagingError::BadAddress(from))?;
        let end = pages.checked_mul(PAGE).and_then(|bytes| bytes.checked_add(start));
        match end.filter(|end| *end <= INPUT_END) {
            Some(end) => Ok((start, end)),
            None => Err(PagingError::BadRange(from)),
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "a test has few tables")]
mod tests;
