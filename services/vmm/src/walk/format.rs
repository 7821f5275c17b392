//! The formats of the guest's page tables: levels, bits, and what is reserved.
//!
//! Sources: Intel SDM 3A, 4.3 to 4.5; AMD APM 2, 5.2 and 5.3.

use ipc::vcpu::Mode;

use super::control::{CR4_PSE, EFER_NXE};
use super::{PageSize, Processor};

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
/// In an entry of an upper level: it is a page.
pub const LARGE: u64 = 1 << 7;
pub const GLOBAL: u64 = 1 << 8;
pub const PAT_OF_SMALL: u64 = 1 << 7;
pub const PAT_OF_LARGE: u64 = 1 << 12;
pub const NO_EXECUTE: u64 = 1 << 63;
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits `first` to `last`.
pub const fn bits(first: u32, last: u32) -> u64 {
    u64::MAX >> (63 - last) & u64::MAX << first
}

/// What an entry of a level can be.
#[derive(Clone, Copy)]
pub enum Kind {
    /// PAE's first level: a table, without rights and accessed bit.
    Pointer,
    /// A table.
    Table,
    /// A table, or a page of this size.
    TableOrPage(PageSize),
    /// A page of 4 KiB.
    Page,
}

impl Kind {
    /// The size of the page that an entry is, if it is one.
    pub const fn page(self, mode: &Mode, entry: u64) -> Option<PageSize> {
        match self {
            Self::Pointer | Self::Table => None,
            Self::TableOrPage(PageSize::Mib4) if mode.cr4 & CR4_PSE == 0 => None,
            Self::TableOrPage(size) if entry & LARGE != 0 => Some(size),
            Self::TableOrPage(_) => None,
            Self::Page => Some(PageSize::Kib4),
        }
    }

    /// The bits that must be clear in a present entry besides those of the format.
    pub const fn reserved(self, processor: Processor, page: Option<PageSize>) -> u64 {
        match (self, page) {
            (Self::Pointer, _) => bits(1, 2) | bits(5, 8) | NO_EXECUTE,
            (Self::Table, _) => LARGE,
            (_, Some(PageSize::Gib1)) if !processor.gigabyte_pages => LARGE,
            (_, Some(PageSize::Gib1)) => bits(13, 29),
            // Bits 13 to 20 are bits 32 to 39 of the address.
            (_, Some(PageSize::Mib4)) => match physical_bits(processor) {
                0..32 => bits(13, 21),
                known @ 32..40 => bits(known - 19, 21),
                _ => 1 << 21,
            },
            (_, Some(PageSize::Mib2)) => bits(13, 20),
            _ => 0,
        }
    }
}

/// A level of tables.
pub struct Level {
    /// The lowest bit of the address that is part of this level's index.
    pub shift: u32,
    pub kind: Kind,
}

const fn level(shift: u32, kind: Kind) -> Level {
    Level { shift, kind }
}

/// A way of paging.
pub struct Format {
    pub levels: &'static [Level],
    /// Where CR3 has the first table's address.
    pub root: u64,
    /// Bits of an address.
    pub input_bits: u32,
    pub index_bits: u32,
    pub entry_bytes: u64,
    /// What is reserved above [`ADDRESS`].
    reserved: u64,
}

pub static FOUR_LEVELS: Format = Format {
    levels: &[
        level(39, Kind::Table),
        level(30, Kind::TableOrPage(PageSize::Gib1)),
        level(21, Kind::TableOrPage(PageSize::Mib2)),
        level(12, Kind::Page),
    ],
    root: ADDRESS,
    input_bits: 48,
    index_bits: 9,
    entry_bytes: 8,
    reserved: 0,
};

pub static PAE: Format = Format {
    levels: &[level(30, Kind::Pointer), level(21, Kind::TableOrPage(PageSize::Mib2)), level(12, Kind::Page)],
    root: bits(5, 31),
    input_bits: 32,
    index_bits: 9,
    entry_bytes: 8,
    reserved: bits(52, 62),
};

pub static TWO_LEVELS: Format = Format {
    levels: &[level(22, Kind::TableOrPage(PageSize::Mib4)), level(12, Kind::Page)],
    root: bits(12, 31),
    input_bits: 32,
    index_bits: 10,
    entry_bytes: 4,
    reserved: 0,
};

impl Format {
    /// The bits that must be clear in every present entry.
    pub const fn reserved(&self, processor: Processor, mode: &Mode) -> u64 {
        if self.entry_bytes == 4 {
            return 0;
        }
        let no_execute = if mode.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 };
        ADDRESS & !(1_u64 << physical_bits(processor)).wrapping_sub(1) | self.reserved | no_execute
    }
}

/// Never more than an entry has.
const fn physical_bits(processor: Processor) -> u32 {
    if processor.physical_bits < 52 { processor.physical_bits as u32 } else { 52 }
}
