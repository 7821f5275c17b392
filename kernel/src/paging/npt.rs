//! The format of AMD's nested page tables: guest-physical to physical.
//!
//! An entry is one of long mode, and the hardware walks these tables as ring 3 does (AMD APM 2, 15.25.5): every entry is
//! a user's, or nothing could be reached. Accessed and dirty bits are set from the start, so the processor never writes
//! to a table. Execution is always allowed.
//!
//! The same tables of levels three to one are also part of a service's address space, which sees the guest's memory
//! through them: each entry means in a host table what it means here, and is no global one. That they are not
//! executable there is said in the level above.
//!
//! The memory type is the PAT's entry 0, write-back; the guest's own PAT can only make it weaker (15.25.8).

use super::nested::{FRAME, Nested, PAGE_NOT_TABLE, Vendor, WRITABLE};

/// AMD's entries.
#[derive(Clone, Copy, Debug)]
pub enum Amd {}

/// The format.
pub type NptFormat = Nested<Amd>;

const PRESENT: u64 = 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
const PAGE: u64 = PRESENT | USER | ACCESSED | DIRTY;

/// PWT, PCD, global, and no execution: what no entry has.
const NEVER: u64 = 3 << 3 | 1 << 8 | 1 << 63;
const _: () = assert!((TABLE | PAGE | PAGE_NOT_TABLE | FRAME) & NEVER == 0);
const _: () = assert!(FRAME & (TABLE | PAGE | PAGE_NOT_TABLE) == 0);
const _: () = assert!(TABLE & PAGE_NOT_TABLE == 0 && PAGE & WRITABLE == 0);

impl Vendor for Amd {
    const PRESENT: u64 = PRESENT;
    const TABLE: u64 = TABLE;
    const PAGE: u64 = PAGE;
}

#[cfg(test)]
mod tests;
