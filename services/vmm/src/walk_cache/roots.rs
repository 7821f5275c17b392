//! The address spaces' tables: a root per PCID, and the part that all of them share.
//!
//! Nothing here knows of the guest's tables: translations come in, and go when those of a TLB would have to. Whatever is
//! taken out of tables that the processor may have walked, [`Roots::take_flush`] tells it.

use alloc::vec::Vec;
use core::ops::Range;

use super::pool::{ALL, ENTRIES, Owner, Pool, Table};
use super::tree::{self, Leaf, Put};
use crate::memory::{GuestMemory, GuestPhysAddr, GuestVirtAddr, NotMemory};
use crate::walk::Translation;

/// How many roots are kept: twice the address spaces that Linux keeps for each processor, and some.
pub const ROOTS: u8 = 16;
/// The most tables that a translation needs below its root.
const TABLES_OF_A_FILL: u16 = 3;
/// The least pages: what a fill takes, a root, and the one of the shared part.
pub const MIN_PAGES: u16 = TABLES_OF_A_FILL + 2;
/// The most visitors in the shared part.
pub const MAX_VISITORS: usize = 32;

pub const LOWER: Range<usize> = 0..ENTRIES / 2;
pub const UPPER: Range<usize> = ENTRIES / 2..ENTRIES;

/// Whether there is a shared part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sharing {
    /// The upper half is shared.
    UpperHalf,
    /// Nothing is.
    Nothing,
}

/// What a write of CR3 leaves of the translations of the PCID that it selects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// All, as long as the guest's root is the same.
    Translations,
    /// The global ones of the shared part.
    Globals,
}

/// An address space's tables.
#[derive(Clone, Copy)]
pub struct Root {
    pub table: Table,
    pcid: u16,
    /// Where the guest's own root is.
    base: u64,
    /// Whether there may be global pages in the part that is not shared.
    has_globals: bool,
    last_use: u64,
}

/// The tables.
pub struct Roots {
    pub pool: Pool,
    pub roots: [Option<Root>; ROOTS as usize],
    current: Option<u8>,
    /// A root that the processor never uses; all others have the upper half of its entries.
    pub shared: Option<Table>,
    /// Where there are pages in the shared part that are not global, but of the current PCID.
    visitors: Vec<GuestVirtAddr>,
    /// Fills of global pages, and of visitors, in the shared part.
    shared_fills: [u64; 2],
    uses: u64,
    flush: bool,
    evictions: u64,
}

impl Roots {
    /// None yet, and a pool for them; see [`super::WalkCache::new`].
    pub fn new(base: GuestPhysAddr, pages: u16) -> Option<Self> {
        Some(Self {
            pool: Pool::new(base, pages, ROOTS).filter(|_| pages >= MIN_PAGES)?,
            roots: [None; ROOTS as usize],
            current: None,
            shared: None,
            visitors: Vec::with_capacity(MAX_VISITORS),
            shared_fills: [0; 2],
            uses: 0,
            flush: false,
            evictions: 0,
        })
    }

    /// The address of the current root and its PCID.
    pub fn current(&self) -> Option<(u64, u16)> {
        self.root().map(|root| (self.pool.address(root.table), root.pcid))
    }

    /// Asks for a flush.
    pub const fn ask_flush(&mut self) {
        self.flush = true;
    }

    /// Whether anything was taken out since the last time.
    pub fn take_flush(&mut self) -> bool {
        core::mem::take(&mut self.flush)
    }

    /// How often the pool was empty and something had to go, or a root for another.
    pub const fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Begins again with nothing, and without a current root.
    pub fn start(&mut self, memory: &mut impl GuestMemory, sharing: Sharing) -> Result<(), NotMemory> {
        self.current = None;
        self.empty(memory)?;
        self.end_sharing(memory)?;
        self.shared_fills = [0; 2];
        self.flush = true;
        if sharing == Sharing::UpperHalf {
            self.shared = self.pool.take(memory, Owner::Roots, tree::ROOT)?;
        }
        Ok(())
    }

    /// Makes the root of a PCID the current one; the guest's own is at `base`.
    pub fn select(
        &mut self,
        memory: &mut impl GuestMemory,
        pcid: u16,
        base: u64,
        keep: Keep,
    ) -> Result<(), NotMemory> {
        let found = self.find(pcid);
        let root = found.and_then(|number| self.roots[usize::from(number)]);
        let kept = keep == Keep::Translations && root.is_some_and(|root| root.base == base);
        if found != self.current || !kept {
            self.drop_visitors(memory)?;
        }
        self.current = None;
        let number = match found {
            Some(number) => number,
            None => self.make_root(memory, pcid)?,
        };
        if !kept {
            self.clear_own(memory, number)?;
        }
        self.current = Some(number);
        self.uses += 1;
        let last_use = self.uses;
        if let Some(root) = self.root_mut() {
            (root.base, root.last_use) = (base, last_use);
        }
        Ok(())
    }

    /// Puts a translation into the current root, and makes room for it if it must.
    pub fn fill(
        &mut self,
        memory: &mut impl GuestMemory,
        address: GuestVirtAddr,
        page: &Translation,
    ) -> Result<Put, NotMemory> {
        if !page.global && self.visitors.len() == MAX_VISITORS && self.shared_for(address).is_some() {
            self.drop_visitors(memory)?;
            let [globals, visits] = self.shared_fills;
            if visits > globals {
                self.end_sharing(memory)?;
            }
        }
        let leaf = Leaf::new(page);
        let mut put = self.try_put(memory, address, leaf)?;
        while put == Put::Full && self.evict(memory)? {
            put = self.try_put(memory, address, leaf)?;
        }
        self.flush |= put == Put::Replaced;
        if self.shared_for(address).is_some() {
            self.shared_fills[usize::from(!page.global)] += 1;
            if !page.global && !self.visitors.contains(&address) {
                self.visitors.push(address);
            }
        } else if let Some(root) = self.root_mut() {
            root.has_globals |= page.global;
        }
        Ok(put)
    }

    /// Takes the page at an address out of the current root and, when it is global, of all others.
    pub fn remove(&mut self, memory: &mut impl GuestMemory, address: GuestVirtAddr) -> Result<(), NotMemory> {
        if let Some(shared) = self.shared_for(address) {
            return self.remove_from(memory, shared, address);
        }
        for number in 0..ROOTS {
            let is_current = self.current == Some(number);
            let root = self.roots[usize::from(number)].filter(|root| root.has_globals || is_current);
            if let Some(root) = root {
                self.remove_from(memory, root.table, address)?;
            }
        }
        Ok(())
    }

    /// Takes the page at an address out of a PCID's root.
    pub fn remove_of(
        &mut self,
        memory: &mut impl GuestMemory,
        pcid: u16,
        address: GuestVirtAddr,
    ) -> Result<(), NotMemory> {
        let Some(number) = self.find(pcid) else { return Ok(()) };
        match (self.shared_for(address), self.roots[usize::from(number)]) {
            // Only visitors are of one PCID there.
            (Some(shared), _) if self.current == Some(number) => self.remove_from(memory, shared, address),
            (None, Some(root)) => self.remove_from(memory, root.table, address),
            _ => Ok(()),
        }
    }

    /// Takes out what is a PCID's own.
    pub fn clear_pcid(&mut self, memory: &mut impl GuestMemory, pcid: u16) -> Result<(), NotMemory> {
        let Some(number) = self.find(pcid) else { return Ok(()) };
        if self.current == Some(number) {
            self.drop_visitors(memory)?;
        }
        self.clear_own(memory, number)
    }

    /// Takes out everything but global pages in the shared part.
    pub fn clear_all_pcids(&mut self, memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
        self.drop_visitors(memory)?;
        (0..ROOTS).try_for_each(|number| self.clear_own(memory, number))
    }

    /// Takes everything out; of the roots only the current one stays.
    pub fn empty(&mut self, memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
        self.empty_shared(memory)?;
        for number in 0..ROOTS {
            if Some(number) == self.current {
                self.clear_own(memory, number)?;
            } else {
                self.drop_root(memory, number)?;
            }
        }
        Ok(())
    }

    fn try_put(
        &mut self,
        memory: &mut impl GuestMemory,
        address: GuestVirtAddr,
        leaf: Leaf,
    ) -> Result<Put, NotMemory> {
        let (Some(number), Some(&Root { table, .. })) = (self.current, self.root()) else {
            return Ok(Put::Full);
        };
        let Some(shared) = self.shared_for(address) else {
            return tree::put(&mut self.pool, memory, Owner::Root(number), table, address, leaf);
        };
        let put = tree::put(&mut self.pool, memory, Owner::Shared, shared, address, leaf)?;
        let index = tree::index(address, tree::ROOT);
        let link = self.pool.entry(memory, shared, index)?;
        if self.pool.entry(memory, table, index)? != link {
            for root in self.roots.iter().flatten() {
                self.pool.set_entry(memory, root.table, index, link)?;
            }
        }
        Ok(put)
    }

    /// Makes pages and a root free; false when there was nothing left to take.
    fn evict(&mut self, memory: &mut impl GuestMemory) -> Result<bool, NotMemory> {
        self.evictions += 1;
        let others = (0..ROOTS).filter(|number| Some(*number) != self.current);
        let uses =
            others.filter_map(|number| self.roots[usize::from(number)].map(|root| (root.last_use, number)));
        if let Some((_, oldest)) = uses.min() {
            self.drop_root(memory, oldest)?;
            return Ok(true);
        }
        let own = self.current.map_or(0, |number| self.pool.owned(Owner::Root(number)));
        let any = own + self.pool.owned(Owner::Shared) > 0;
        // What frees little would be done again soon; what frees less than a fill takes, for ever.
        if own <= usize::from(TABLES_OF_A_FILL).max(self.pool.pages() / 8) {
            self.empty_shared(memory)?;
        }
        if let Some(number) = self.current {
            self.clear_own(memory, number)?;
        }
        Ok(any)
    }

    /// A new root, which has the shared part. There is always something to evict for it: the least pool has more.
    fn make_root(&mut self, memory: &mut impl GuestMemory, pcid: u16) -> Result<u8, NotMemory> {
        loop {
            let free = (0..ROOTS).find(|number| self.roots[usize::from(*number)].is_none());
            let Some(number) = free else {
                self.evict(memory)?;
                continue;
            };
            let Some(table) = self.pool.take(memory, Owner::Roots, tree::ROOT)? else {
                self.evict(memory)?;
                continue;
            };
            if let Some(shared) = self.shared {
                for index in self.pool.used(shared, UPPER) {
                    let link = self.pool.entry(memory, shared, index)?;
                    self.pool.set_entry(memory, table, index, link)?;
                }
            }
            let root = Root { table, pcid, base: 0, has_globals: false, last_use: 0 };
            self.roots[usize::from(number)] = Some(root);
            return Ok(number);
        }
    }

    fn drop_root(&mut self, memory: &mut impl GuestMemory, number: u8) -> Result<(), NotMemory> {
        let Some(root) = self.roots[usize::from(number)].take() else { return Ok(()) };
        self.flush = true;
        self.pool.clear(memory, root.table, ALL)?;
        self.pool.give_back_all(Owner::Root(number));
        self.pool.give_back(memory, Owner::Roots, root.table)
    }

    /// Takes out all of a root that is not shared.
    fn clear_own(&mut self, memory: &mut impl GuestMemory, number: u8) -> Result<(), NotMemory> {
        let Some(root) = &mut self.roots[usize::from(number)] else { return Ok(()) };
        root.has_globals = false;
        let own = if self.shared.is_some() { LOWER } else { ALL };
        self.flush |= self.pool.clear(memory, root.table, own)?;
        self.pool.give_back_all(Owner::Root(number));
        Ok(())
    }

    fn empty_shared(&mut self, memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
        let Some(shared) = self.shared else { return Ok(()) };
        self.visitors.clear();
        self.flush |= self.pool.clear(memory, shared, ALL)?;
        for root in self.roots.iter().flatten() {
            self.pool.clear(memory, root.table, UPPER)?;
        }
        self.pool.give_back_all(Owner::Shared);
        Ok(())
    }

    fn end_sharing(&mut self, memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
        self.empty_shared(memory)?;
        match self.shared.take() {
            Some(shared) => self.pool.give_back(memory, Owner::Roots, shared),
            None => Ok(()),
        }
    }

    fn drop_visitors(&mut self, memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
        while let (Some(shared), Some(address)) = (self.shared, self.visitors.pop()) {
            self.remove_from(memory, shared, address)?;
        }
        Ok(())
    }

    fn remove_from(
        &mut self,
        memory: &mut impl GuestMemory,
        root: Table,
        address: GuestVirtAddr,
    ) -> Result<(), NotMemory> {
        self.flush |= tree::remove(&mut self.pool, memory, root, address)?;
        Ok(())
    }

    /// The shared root, if translations of this address are in it.
    fn shared_for(&self, address: GuestVirtAddr) -> Option<Table> {
        self.shared.filter(|_| UPPER.contains(&tree::index(address, tree::ROOT)))
    }

    fn find(&self, pcid: u16) -> Option<u8> {
        (0..ROOTS).find(|number| self.roots[usize::from(*number)].is_some_and(|root| root.pcid == pcid))
    }

    fn root(&self) -> Option<&Root> {
        self.roots[usize::from(self.current?)].as_ref()
    }

    fn root_mut(&mut self) -> Option<&mut Root> {
        self.roots[usize::from(self.current?)].as_mut()
    }
}
