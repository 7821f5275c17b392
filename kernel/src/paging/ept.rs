//! The format of Intel's extended page tables: guest-physical to physical.
//!
//! An entry that allows nothing is absent; the others allow reading at least, since writing without reading is a
//! misconfiguration. Accessed and dirty bits stay off: with them on, the processor's walk of the guest's tables counts
//! as writing to them (Intel SDM 3C, 29.3.3.2). Execution is always allowed.
//!
//! Every page is memory, and is write-back whatever the guest's PAT says of it: so the guest and the services that
//! look into its memory agree on its type.
//!
//! Source: Intel SDM 3C, 29.3.2 (entries), 29.3.3.1 (misconfigurations), 29.3.7 (memory types).

use super::nested::{FRAME, Nested, PAGE_NOT_TABLE, Vendor, WRITABLE};
use crate::address::FrameNumber;

/// Intel's entries.
#[derive(Clone, Copy, Debug)]
pub enum Intel {}

/// The format.
pub type EptFormat = Nested<Intel>;

const READABLE: u64 = 1;
const EXECUTABLE: u64 = 1 << 2;
const WRITE_BACK: u64 = 6;
/// Bits 5 to 3 of a page: its memory type.
const PAGE_WRITE_BACK: u64 = WRITE_BACK << 3;
const IGNORE_GUEST_PAT: u64 = 1 << 6;

const TABLE: u64 = READABLE | WRITABLE | EXECUTABLE;
const PAGE: u64 = READABLE | EXECUTABLE | PAGE_WRITE_BACK | IGNORE_GUEST_PAT;

/// Bits 7 to 3 are reserved in an entry that is a table.
const TABLE_RESERVED: u64 = 0xf8;
const _: () = assert!(TABLE & TABLE_RESERVED == 0);
const _: () = assert!(PAGE & READABLE != 0 && TABLE & READABLE != 0, "never write-only");
const _: () = assert!(FRAME & (TABLE | PAGE | PAGE_NOT_TABLE) == 0);
const _: () = assert!(PAGE & (WRITABLE | PAGE_NOT_TABLE) == 0);

/// What goes into the VMCS as the EPT pointer for tables with this root: the processor reads them as write-back memory,
/// in four levels, and keeps no accessed and dirty bits (Intel SDM 3C, 25.6.11).
#[must_use]
pub const fn ept_pointer(root: FrameNumber) -> u64 {
    const LEVELS_LESS_ONE: u64 = 3;
    root.start().0 & FRAME | LEVELS_LESS_ONE << 3 | WRITE_BACK
}

impl Vendor for Intel {
    const PRESENT: u64 = TABLE;
    const TABLE: u64 = TABLE;
    const PAGE: u64 = PAGE;
}

#[cfg(test)]
mod tests;
