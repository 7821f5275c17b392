//! Nested page tables of either vendor: guest-physical to physical. The two formats differ in three bit patterns alone, which
//! [`super::npt`] and [`super::ept`] give; execution is always allowed.

use core::fmt;
use core::marker::PhantomData;

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

/// The bit that both vendors have for writing.
pub const WRITABLE: u64 = 1 << 1;
/// The bit that both vendors have for a page where there could be a table.
pub const PAGE_NOT_TABLE: u64 = 1 << 7;
/// Where both vendors have the frame.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What one vendor's entries look like.
pub trait Vendor: fmt::Debug {
    /// An entry with none of these bits is absent.
    const PRESENT: u64;
    /// An entry that is a table.
    const TABLE: u64;
    /// An entry that is a page which can be read.
    const PAGE: u64;
}

/// The format of one vendor.
#[derive(Clone, Copy, Debug)]
pub struct Nested<M>(PhantomData<M>);

impl<M: Vendor> Format for Nested<M> {
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
        if entry & M::PRESENT == 0 {
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
            Entry::Table(frame) => frame.start().0 & FRAME | M::TABLE,
            Entry::Page(frame, access) => {
                let access = match access {
                    GuestAccess::Read => 0,
                    GuestAccess::ReadWrite => WRITABLE,
                };
                let size = if level == Level::One { 0 } else { PAGE_NOT_TABLE };
                frame.start().0 & FRAME | M::PAGE | access | size
            }
        }
    }
}
