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

use super::{Entry, Format, Level};
use crate::address::{FrameNumber, GuestPhysAddr, PhysAddr};

/// What the guest may do with a page of its memory, besides executing it. Where it may do nothing, nothing is mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestAccess {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// The format.
#[derive(Clone, Copy, Debug)]
pub enum NptFormat {}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_NOT_TABLE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
const PAGE: u64 = PRESENT | USER | ACCESSED | DIRTY;

/// PWT, PCD, global, and no execution: what no entry has.
const NEVER: u64 = 3 << 3 | 1 << 8 | 1 << 63;
const _: () = assert!((TABLE | PAGE | PAGE_NOT_TABLE | FRAME) & NEVER == 0);
const _: () = assert!(FRAME & (TABLE | PAGE | PAGE_NOT_TABLE) == 0);
const _: () = assert!(TABLE & PAGE_NOT_TABLE == 0 && PAGE & WRITABLE == 0);

impl Format for NptFormat {
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
        if entry & PRESENT == 0 {
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
