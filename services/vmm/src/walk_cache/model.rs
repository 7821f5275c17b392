//! Memory and a processor for tests: one that walks the cache's tables, with a TLB of its own that it empties only when
//! told, and checks what it finds.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::vec::Vec;

use super::pool::{ALL, Owner, Table};
use super::roots::{LOWER, ROOTS, UPPER};
use super::*;
use crate::walk::reference::{self, Found};

pub const BASE: u64 = PRIVATE_START + 0x1_0000;
pub const PROCESSOR: Processor = Processor { physical_bits: 40, gigabyte_pages: true };

/// Guest memory from 0 on and the cache's pages.
pub struct Memory {
    pub ram: Vec<u8>,
    pub private: Vec<u8>,
    /// Addresses, old and new values of the entries that the walk changed.
    pub marked: Vec<(u64, u64, u64)>,
}

impl Memory {
    pub fn new(ram_pages: usize, private_pages: u16) -> Self {
        let private = vec![0; usize::from(private_pages) * 4096];
        Self { ram: vec![0; ram_pages * 4096], private, marked: Vec::new() }
    }

    fn slice(&self, at: u64, bytes: usize) -> Result<(bool, usize), NotMemory> {
        let (private, start) = if at >= BASE { (true, at - BASE) } else { (false, at) };
        let start = usize::try_from(start).unwrap();
        let length = if private { self.private.len() } else { self.ram.len() };
        if start + bytes > length { Err(NotMemory(GuestPhysAddr(at))) } else { Ok((private, start)) }
    }

    pub fn word(&self, at: u64) -> u64 {
        self.get(GuestPhysAddr(at)).unwrap()
    }

    pub fn put(&mut self, at: u64, word: u64) {
        self.write(GuestPhysAddr(at), &word.to_le_bytes()).unwrap();
    }
}

impl GuestMemory for Memory {
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        let (private, start) = self.slice(at.0, into.len())?;
        let from = if private { &self.private } else { &self.ram };
        into.copy_from_slice(&from[start..start + into.len()]);
        Ok(())
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        let (private, start) = self.slice(at.0, bytes.len())?;
        let to = if private { &mut self.private } else { &mut self.ram };
        to[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        assert!(at.0 < PRIVATE_START);
        // A table that is its own entry is walked through several times.
        if self.word(at.0) != old {
            return Ok(Err(self.word(at.0)));
        }
        self.put(at.0, new);
        self.marked.push((at.0, old, new));
        Ok(Ok(old))
    }

    fn compare_exchange_u32(
        &mut self,
        _: GuestPhysAddr,
        _: u32,
        _: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        unreachable!("long mode has entries of 64 bits")
    }
}

/// What the processor keeps of a translation.
#[derive(Clone, Copy, Debug)]
struct Kept {
    pcid: u64,
    page: u64,
    bytes: u64,
    address: u64,
    entry: u64,
}

/// Walks the tables at hardware's CR3.
fn hardware_walk(memory: &Memory, cr3: u64, address: u64) -> Option<Kept> {
    let mut table = cr3 & CR3_BASE;
    for level in (1..=4_u32).rev() {
        let low = 3 + 9 * level;
        let entry = memory.word(table + (address >> low & 511) * 8);
        if entry & 1 == 0 {
            assert_eq!(entry, 0);
            return None;
        }
        let next = entry & CR3_BASE;
        if level == 1 || entry & 0x80 != 0 {
            let bytes = 1 << low;
            let pat = if level == 1 { 0 } else { 0x1000 };
            assert_eq!(entry & 0x60, 0x60, "accessed and dirty");
            assert!(level < 4 && (next & !pat).is_multiple_of(bytes));
            assert!(next < PRIVATE_START || next & !0x1000 == 1 << 39, "nothing private");
            let page = address & !(bytes - 1);
            return Some(Kept { pcid: cr3 & 0xfff, page, bytes, address: next & !pat, entry });
        }
        assert_eq!(entry & 0xfff, 0x27);
        table = next;
    }
    unreachable!()
}

impl Kept {
    fn found(&self, address: u64) -> Found {
        let pat = if self.bytes == 4096 { 7 } else { 12 };
        Found {
            address: self.address + (address - self.page),
            bytes: self.bytes,
            writable: self.entry & 2 != 0,
            user: self.entry & 4 != 0,
            executable: self.entry >> 63 == 0,
            global: self.entry & 0x100 != 0,
            pat_index: (self.entry >> 3 & 3) as u8 + (self.entry >> pat & 1) as u8 * 4,
            entries: Vec::new(),
        }
    }

    fn covers(&self, address: u64) -> bool {
        address >= self.page && address - self.page < self.bytes
    }
}

/// The processor's own translations.
#[derive(Default)]
pub struct Tlb(Vec<Kept>);

impl Tlb {
    /// Forgets everything.
    pub fn flush(&mut self) {
        self.0.clear();
    }

    /// An access: what it comes to, or the error code of its page fault.
    pub fn access(
        &mut self,
        memory: &Memory,
        random: &mut ChaCha8Rng,
        mode: &Mode,
        (address, privilege, access): (u64, Privilege, Access),
    ) -> Result<Found, u32> {
        let pcid = mode.cr3 & 0xfff;
        let usable = |kept: &Kept| kept.covers(address) && (kept.entry & 0x100 != 0 || kept.pcid == pcid);
        let kept = self.0.iter().rev().find(|kept| usable(kept)).copied();
        let kept = match kept.filter(|_| random.random_bool(0.8)) {
            Some(kept) => kept,
            None => {
                let absent = reference::error_code(mode, privilege, access, 0);
                let mut kept = hardware_walk(memory, mode.cr3, address).ok_or(absent)?;
                if random.random_bool(0.3) {
                    // A part of a large page.
                    let start = address & !0xfff;
                    kept.address += start - kept.page;
                    let pat = kept.found(address).pat_index & 4 != 0;
                    kept.entry = kept.entry & !0x1080 | if pat { 0x80 } else { 0 };
                    (kept.page, kept.bytes) = (start, 4096);
                }
                self.0.push(kept);
                kept
            }
        };
        let found = kept.found(address);
        if reference::allowed(&found, mode, privilege, access) {
            return Ok(found);
        }
        self.0.retain(|kept| !usable(kept));
        Err(reference::error_code(mode, privilege, access, 1))
    }
}

/// Every page is where it belongs and once, and the notes of what is in use are true.
pub fn check(cache: &WalkCache, memory: &Memory) {
    let pool = &cache.roots.pool;
    let mut seen = BTreeSet::new();
    let owners = [Owner::Free, Owner::Roots, Owner::Shared].into_iter().chain((0..ROOTS).map(Owner::Root));
    for owner in owners.clone() {
        let list = pool.list(owner);
        assert_eq!(list.len(), pool.owned(owner));
        for table in list {
            assert!(seen.insert(table), "in two lists");
            for index in ALL {
                let used = pool.used(table, ALL).any(|used| used == index);
                assert_eq!(used, memory.word(pool.address(table) + index as u64 * 8) != 0);
            }
        }
    }
    assert_eq!(seen.len(), pool.pages());
    let mut roots: Vec<_> =
        cache.roots.roots.iter().flatten().map(|root| root.table).chain(cache.roots.shared).collect();
    roots.sort();
    let mut list = pool.list(Owner::Roots);
    list.sort();
    assert_eq!(list, roots);

    let below = |root: Table, within: core::ops::Range<usize>| {
        let mut found = BTreeSet::new();
        let mut to_do: Vec<_> = pool.used(root, within).map(|index| (root, index, 4)).collect();
        while let Some((table, index, level)) = to_do.pop() {
            let entry = pool.entry(memory, table, index).unwrap();
            if level > 1 && entry & 0x80 == 0 {
                let below = pool.table_of(entry, level - 1).expect("a table of the level below");
                assert!(found.insert(below), "in two places");
                to_do.extend(pool.used(below, ALL).map(|index| (below, index, level - 1)));
            }
        }
        found
    };
    let set = |owner| pool.list(owner).into_iter().collect::<BTreeSet<_>>();
    for (number, root) in (0..).zip(&cache.roots.roots) {
        let Some(root) = root else {
            assert_eq!(pool.owned(Owner::Root(number)), 0);
            continue;
        };
        let own = if cache.roots.shared.is_some() { LOWER } else { ALL };
        assert_eq!(below(root.table, own), set(Owner::Root(number)));
        for index in UPPER {
            if let Some(shared) = cache.roots.shared {
                let linked = pool.entry(memory, shared, index);
                assert_eq!(pool.entry(memory, root.table, index), linked);
            }
        }
    }
    match cache.roots.shared {
        Some(shared) => assert_eq!(below(shared, ALL), set(Owner::Shared)),
        None => assert_eq!(pool.owned(Owner::Shared), 0),
    }
}
