//! The pages that the walk cache's tables are made of, and who has which.
//!
//! Each page is in one list: that of the free ones, or its owner's. The lists are rings through a head of their own, so
//! taking a page out needs no search, and giving all of an owner's pages back is one splice however many they are.
//! A free page keeps its old entries; it is cleared when it is taken, by a note of which entries are in use: what that
//! costs was paid for by the fills that wrote them.
//!
//! What stands in the pages is checked as if another wrote it, since a guest that runs outside of the cache could.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::memory::{GuestMemory, GuestPhysAddr, NotMemory};

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// All of a table.
pub const ALL: Range<usize> = 0..ENTRIES;
const PAGE: u64 = 4096;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
/// In an entry of an upper level: it is a page.
pub const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page that is a table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Table(u16);

/// Whose a table is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// Nobody's.
    Free,
    /// A root itself; roots are given back one by one.
    Roots,
    /// Part of what all roots share.
    Shared,
    /// Below the root with this number, in no other.
    Root(u8),
}

impl Owner {
    const fn list(self) -> u16 {
        match self {
            Self::Free => 0,
            Self::Roots => 1,
            Self::Shared => 2,
            Self::Root(number) => 3 + number as u16,
        }
    }
}

#[derive(Clone, Copy)]
struct Links {
    next: u16,
    previous: u16,
}

#[derive(Clone, Copy, Default)]
struct Page {
    /// The table's level, 1 to 4; 0 for none.
    level: u8,
    /// Which entries are not zero.
    used: [u64; ENTRIES / 64],
}

/// The pages.
pub struct Pool {
    base: GuestPhysAddr,
    pages: Vec<Page>,
    /// Of the pages, then of the lists' heads.
    links: Vec<Links>,
    /// How many pages each list has.
    lengths: Vec<usize>,
}

impl Pool {
    /// A pool of zeroed pages from an address on, for so many roots. `None` for more than 32,768 pages.
    pub fn new(base: GuestPhysAddr, pages: u16, roots: u8) -> Option<Self> {
        let lists = Owner::Root(roots).list();
        let heads = pages.checked_add(lists).filter(|_| pages <= 1 << 15)?;
        let mut pool = Self {
            base,
            pages: vec![Page::default(); pages.into()],
            links: (0..heads).map(|own| Links { next: own, previous: own }).collect(),
            lengths: vec![0; lists.into()],
        };
        (0..pages).rev().for_each(|page| pool.link(page, Owner::Free));
        Some(pool)
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How many pages an owner has.
    pub fn owned(&self, owner: Owner) -> usize {
        self.lengths[usize::from(owner.list())]
    }

    /// Where a table is.
    pub fn address(&self, table: Table) -> u64 {
        self.base.0 + u64::from(table.0) * PAGE
    }

    /// The entry that points to a table. It allows everything: the pages decide.
    pub fn entry_of(&self, table: Table) -> u64 {
        self.address(table) | PRESENT | WRITABLE | USER | ACCESSED
    }

    /// The table of this level that an entry points to, if it does.
    pub fn table_of(&self, entry: u64, level: u8) -> Option<Table> {
        let number = u16::try_from((entry & ADDRESS).checked_sub(self.base.0)? / PAGE).ok()?;
        let page = self.pages.get(usize::from(number))?;
        (entry & (PRESENT | LARGE) == PRESENT && page.level == level).then_some(Table(number))
    }

    /// Takes a free page and clears it; `None` without one.
    pub fn take(
        &mut self,
        memory: &mut impl GuestMemory,
        owner: Owner,
        level: u8,
    ) -> Result<Option<Table>, NotMemory> {
        let head = self.head(Owner::Free);
        let first = self.links[usize::from(head)].next;
        if first == head {
            return Ok(None);
        }
        self.clear(memory, Table(first), ALL)?;
        self.pages[usize::from(first)].level = level;
        self.unlink(first, Owner::Free);
        self.link(first, owner);
        Ok(Some(Table(first)))
    }

    /// Gives a table back that an owner has, and all tables below it, which are no more than the pool's pages.
    pub fn give_back(
        &mut self,
        memory: &impl GuestMemory,
        owner: Owner,
        table: Table,
    ) -> Result<(), NotMemory> {
        // A table whose level is forgotten is found no second time, whatever the entries say.
        let level = core::mem::take(&mut self.pages[usize::from(table.0)].level);
        if level > 1 {
            for index in self.used(table, ALL) {
                let entry = self.entry(memory, table, index)?;
                if let Some(below) = self.table_of(entry, level - 1) {
                    self.give_back(memory, owner, below)?;
                }
            }
        }
        self.unlink(table.0, owner);
        self.link(table.0, Owner::Free);
        Ok(())
    }

    /// Gives all tables of an owner back, at once.
    pub fn give_back_all(&mut self, owner: Owner) {
        let count = core::mem::take(&mut self.lengths[usize::from(owner.list())]);
        self.lengths[usize::from(Owner::Free.list())] += count;
        let (from, to) = (self.head(owner), self.head(Owner::Free));
        let Links { next: first, previous: last } = self.links[usize::from(from)];
        if first != from {
            self.connect(last, self.links[usize::from(to)].next);
            self.connect(to, first);
            self.connect(from, from);
        }
    }

    /// An entry of a table; `index` is below [`ENTRIES`].
    pub fn entry(&self, memory: &impl GuestMemory, table: Table, index: usize) -> Result<u64, NotMemory> {
        let used = self.pages[usize::from(table.0)].used[index / 64] >> (index % 64) & 1;
        if used == 0 { Ok(0) } else { memory.get(self.entry_address(table, index)) }
    }

    /// Writes an entry of a table; `index` is below [`ENTRIES`].
    pub fn set_entry(
        &mut self,
        memory: &mut impl GuestMemory,
        table: Table,
        index: usize,
        entry: u64,
    ) -> Result<(), NotMemory> {
        memory.write(self.entry_address(table, index), &entry.to_le_bytes())?;
        let word = &mut self.pages[usize::from(table.0)].used[index / 64];
        let bit = 1 << (index % 64);
        *word = if entry == 0 { *word & !bit } else { *word | bit };
        Ok(())
    }

    /// The indices of the entries in use within a range that begins and ends at multiples of 64.
    pub fn used(&self, table: Table, within: Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let words = self.pages[usize::from(table.0)].used.into_iter().enumerate();
        words.skip(within.start / 64).take(within.len() / 64).flat_map(|(number, mut word)| {
            core::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.wrapping_sub(1);
                (bit < 64).then_some(number * 64 + bit)
            })
        })
    }

    /// Clears the entries in use within a range that begins and ends at multiples of 64, and says whether there were any.
    pub fn clear(
        &mut self,
        memory: &mut impl GuestMemory,
        table: Table,
        within: Range<usize>,
    ) -> Result<bool, NotMemory> {
        let mut any = false;
        for index in self.used(table, within) {
            self.set_entry(memory, table, index, 0)?;
            any = true;
        }
        Ok(any)
    }

    fn entry_address(&self, table: Table, index: usize) -> GuestPhysAddr {
        GuestPhysAddr(self.address(table) + index as u64 * 8)
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most 32,768")]
    fn head(&self, owner: Owner) -> u16 {
        self.pages.len() as u16 + owner.list()
    }

    fn connect(&mut self, first: u16, second: u16) {
        self.links[usize::from(first)].next = second;
        self.links[usize::from(second)].previous = first;
    }

    fn link(&mut self, page: u16, owner: Owner) {
        let head = self.head(owner);
        self.connect(page, self.links[usize::from(head)].next);
        self.connect(head, page);
        self.lengths[usize::from(owner.list())] += 1;
    }

    fn unlink(&mut self, page: u16, owner: Owner) {
        let Links { next, previous } = self.links[usize::from(page)];
        self.connect(previous, next);
        // No subtraction that what stands in the pages could make fail.
        let length = &mut self.lengths[usize::from(owner.list())];
        *length = length.saturating_sub(1);
    }

    /// All tables of an owner, for tests.
    #[cfg(test)]
    pub fn list(&self, owner: Owner) -> Vec<Table> {
        let head = self.head(owner);
        let mut at = self.links[usize::from(head)].next;
        let mut tables = Vec::new();
        while at != head {
            tables.push(Table(at));
            at = self.links[usize::from(at)].next;
        }
        tables
    }
}
