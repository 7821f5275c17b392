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

use super::npt::GuestAccess;
use super::{Entry, Format, Level};
use crate::address::{FrameNumber, GuestPhysAddr, PhysAddr};

/// The format.
#[derive(Clone, Copy, Debug)]
pub enum EptFormat {}

const READABLE: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const EXECUTABLE: u64 = 1 << 2;
const WRITE_BACK: u64 = 6;
/// Bits 5 to 3 of a page: its memory type.
const PAGE_WRITE_BACK: u64 = WRITE_BACK << 3;
const IGNORE_GUEST_PAT: u64 = 1 << 6;
const PAGE_NOT_TABLE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

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

impl Format for EptFormat {
    type Address = GuestPhysAddr;
    type Attributes = GuestAccess;

    fn input(address: GuestPhysAddr) -> Option<u64> {
        (address.0 < super::INPUT_END).then_some(address.0)
    }

    fn address(input: u64) -> GuestPhysAddr {
        GuestPhysAddr(input)
    }

    fn decode(entry: u64, level: Level) -> Entry<GuestAccess> {
        let frame = FrameNumber::containing(PhysAddr(entry & FRAME));
        if entry & TABLE == 0 {
            Entry::Absent
        } else if level == Level::Four || level != Level::One && entry & PAGE_NOT_TABLE == 0 {
            Entry::Table(frame)
        } else if entry & WRITABLE == 0 {
            Entry::Page(frame, GuestAccess::Read)
        } else {
            Entry::Page(frame, GuestAccess::ReadWrite)
        }
    }

    fn encode(entry: Entry<GuestAccess>, level: Level) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Table(frame) => frame.start().0 & FRAME | TABLE,
            Entry::Page(frame, access) => {
                let access = match access {
                    GuestAccess::Read => 0,
                    GuestAccess::ReadWrite => WRITABLE,
                };
                let size = if level == Level::One { 0 } else { PAGE_NOT_TABLE };
                frame.start().0 & FRAME | PAGE | access | size
            }
        }
    }
}

#[cfg(test)]
mod tests;
