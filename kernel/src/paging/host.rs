//! The format of the node's own page tables, for ring 0 and ring 3.
//!
//! Accessed and dirty bits are set in every entry from the start, so the processor never writes to a table. Tables
//! allow everything; the page alone decides. Sources: AMD APM 2, 5.4 (entries), 7.8 (PAT); Intel SDM 3A, 4.5, 11.12.

use super::{ENTRIES, Entry, Format, Level, PageTable, TableMemory};
use crate::address::{FrameNumber, VirtAddr};

/// What to write to the PAT register (MSR 0x277) for [`Cache`]: as after reset.
pub const PAT: u64 = 0x0007_0406_0007_0406;

/// What is done with a page's memory. Writable and executable at once cannot be said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
    /// Reading and executing.
    ReadExecute,
}

/// Who may use a page, and how long its translation lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// Ring 0, in every address space: the translation outlives a switch of address space.
    Kernel,
    /// Ring 3, in one address space.
    User,
}

/// How a page is cached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cache {
    /// Memory.
    WriteBack,
    /// Device registers.
    Uncached,
}

/// What a host page table keeps for each page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostAttributes {
    /// What is done with it.
    pub access: Access,
    /// By whom.
    pub owner: Owner,
    /// How it is cached.
    pub cache: Cache,
}

/// The format.
#[derive(Clone, Copy, Debug)]
pub enum HostFormat {}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// PWT and PCD, which choose the PAT's entry 3. The PAT bit itself, whose place depends on the page's size, stays clear.
const UNCACHED: u64 = 3 << 3;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_NOT_TABLE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const fn pat_entry(index: u64) -> u64 {
    PAT >> (8 * index) & 0xff
}
const _: () = assert!(pat_entry(0) == 6, "write-back");
const _: () = assert!(pat_entry(UNCACHED >> 3) == 0, "uncacheable");
const _: () = assert!(FRAME & (NO_EXECUTE | GLOBAL | PAGE_NOT_TABLE | 0x7f) == 0);

/// The sign bit of a canonical address, and all above it.
const SIGN: u64 = 0xffff_8000_0000_0000;

impl Format for HostFormat {
    type Address = VirtAddr;
    type Attributes = HostAttributes;

    fn input(address: VirtAddr) -> Option<u64> {
        let sign = address.0 & SIGN;
        (sign == 0 || sign == SIGN).then_some(address.0 & !(SIGN << 1))
    }

    fn address(input: u64) -> VirtAddr {
        VirtAddr(if input & SIGN == 0 { input } else { input | SIGN })
    }

    fn decode(entry: u64, level: Level) -> Entry<HostAttributes> {
        let frame = FrameNumber::containing(crate::address::PhysAddr(entry & FRAME));
        if entry & PRESENT == 0 {
            return Entry::Absent;
        }
        if level == Level::Four || level != Level::One && entry & PAGE_NOT_TABLE == 0 {
            return Entry::Table(frame);
        }
        // The lowest bit of a large page's address field is its PAT bit, which is never set here.
        let attributes = HostAttributes {
            access: match (entry & WRITABLE, entry & NO_EXECUTE) {
                (_, 0) => Access::ReadExecute,
                (0, _) => Access::Read,
                _ => Access::ReadWrite,
            },
            owner: if entry & USER == 0 { Owner::Kernel } else { Owner::User },
            cache: if entry & UNCACHED == 0 { Cache::WriteBack } else { Cache::Uncached },
        };
        Entry::Page(frame, attributes)
    }

    fn encode(entry: Entry<HostAttributes>, level: Level) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Table(frame) => frame.start().0 & FRAME | PRESENT | WRITABLE | USER | ACCESSED,
            Entry::Page(frame, attributes) => {
                let access = match attributes.access {
                    Access::Read => NO_EXECUTE,
                    Access::ReadWrite => NO_EXECUTE | WRITABLE,
                    Access::ReadExecute => 0,
                };
                let owner = match attributes.owner {
                    Owner::Kernel => GLOBAL,
                    Owner::User => USER,
                };
                let cache = match attributes.cache {
                    Cache::WriteBack => 0,
                    Cache::Uncached => UNCACHED,
                };
                let size = if level == Level::One { 0 } else { PAGE_NOT_TABLE };
                frame.start().0 & FRAME | PRESENT | ACCESSED | DIRTY | access | owner | cache | size
            }
        }
    }
}

impl PageTable<HostFormat> {
    /// Makes the 512 GiB from `at` on what a table of the level below the root says, whose entries mean the same in this
    /// format; nothing in them can be executed.
    pub fn link_window(&self, memory: &mut impl TableMemory, at: VirtAddr, table: FrameNumber) {
        let entry = Self::encode_table(table) | NO_EXECUTE;
        memory.write_entry(self.root(), Level::Four.index(at.0), entry);
    }

    fn encode_table(table: FrameNumber) -> u64 {
        HostFormat::encode(Entry::Table(table), Level::Four)
    }

    /// Makes the upper half of this address space the same as another's, the kernel's: it shares its tables. An entry
    /// that the other's root gains later is not shared, so all of them must be there.
    pub fn share_upper_half(&self, memory: &mut impl TableMemory, kernel: &Self) {
        for index in ENTRIES / 2..ENTRIES {
            let entry = memory.read_entry(kernel.root(), index);
            memory.write_entry(self.root(), index, entry);
        }
    }
}
