//! Translations in the walk cache's tables: each is put in with the size of the guest's page, and taken out whole.

use super::pool::{ACCESSED, LARGE, Owner, PRESENT, Pool, Table, USER, WRITABLE};
use crate::memory::{GuestMemory, GuestVirtAddr, NotMemory};
use crate::walk::{PageSize, Translation};

const DIRTY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// The level of the root.
pub const ROOT: u8 = 4;

/// The entry of a page, and the level of its table.
#[derive(Clone, Copy)]
pub struct Leaf {
    level: u8,
    entry: u64,
}

impl Leaf {
    /// What stands for a translation. It is writable only when the guest's dirty bit is set: the first write comes to
    /// set it. Accessed and dirty bits are set here, so the processor never writes to these tables.
    pub fn new(page: &Translation) -> Self {
        let level = match page.size {
            PageSize::Kib4 => 1,
            PageSize::Mib2 | PageSize::Mib4 => 2,
            PageSize::Gib1 => 3,
        };
        let address = page.address.0 & !(page.size.bytes() - 1);
        let pat_and_size = match (level, page.pat_index & 4 != 0) {
            (1, false) => 0,
            (1, true) => 1 << 7,
            (_, false) => LARGE,
            (_, true) => LARGE | 1 << 12,
        };
        let when = |condition, bit| if condition { bit } else { 0 };
        let entry = address
            | PRESENT
            | ACCESSED
            | DIRTY
            | pat_and_size
            | u64::from(page.pat_index & 3) << 3
            | when(page.writable && page.dirty, WRITABLE)
            | when(page.user, USER)
            | when(page.global, GLOBAL)
            | when(!page.executable, NO_EXECUTE);
        Self { level, entry }
    }
}

/// What came of putting a translation in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Put {
    /// It was there already.
    Same,
    /// It is there now, and nothing that the processor may have kept is wrong.
    Added,
    /// It is there now, in the place of others that the processor may have kept.
    Replaced,
    /// There is no page for a table; others may have had to go already.
    Full,
}

/// An address's index in a table of a level.
pub const fn index(address: GuestVirtAddr, level: u8) -> usize {
    (address.0 >> (3 + 9 * level) & 511) as usize
}

/// Puts a translation into an owner's tables.
pub fn put(
    pool: &mut Pool,
    memory: &mut impl GuestMemory,
    owner: Owner,
    root: Table,
    address: GuestVirtAddr,
    leaf: Leaf,
) -> Result<Put, NotMemory> {
    let mut table = root;
    let mut replaced = false;
    for level in (leaf.level..ROOT).rev() {
        let index = index(address, level + 1);
        let entry = pool.entry(memory, table, index)?;
        table = match pool.table_of(entry, level) {
            Some(below) => below,
            None => {
                let Some(below) = pool.take(memory, owner, level)? else { return Ok(Put::Full) };
                pool.set_entry(memory, table, index, pool.entry_of(below))?;
                replaced |= entry != 0;
                below
            }
        };
    }
    let index = index(address, leaf.level);
    let old = pool.entry(memory, table, index)?;
    if old == leaf.entry {
        return Ok(Put::Same);
    }
    if leaf.level > 1
        && let Some(below) = pool.table_of(old, leaf.level - 1)
    {
        pool.give_back(memory, owner, below)?;
    }
    replaced |= old != 0 && old | WRITABLE != leaf.entry;
    pool.set_entry(memory, table, index, leaf.entry)?;
    Ok(if replaced { Put::Replaced } else { Put::Added })
}

/// Takes the page around an address out of some tables, and says whether there was one.
pub fn remove(
    pool: &mut Pool,
    memory: &mut impl GuestMemory,
    root: Table,
    address: GuestVirtAddr,
) -> Result<bool, NotMemory> {
    let mut table = root;
    for level in (1..=ROOT).rev() {
        let index = index(address, level);
        let entry = pool.entry(memory, table, index)?;
        match pool.table_of(entry, level - 1) {
            Some(below) if level > 1 => table = below,
            _ if entry == 0 => break,
            _ => {
                pool.set_entry(memory, table, index, 0)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}
