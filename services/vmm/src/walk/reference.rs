//! A second walk for tests to compare with, written apart: level by level in plain words, changing nothing.

use ipc::vcpu::{Mode, PRIVATE_START};
use std::vec::Vec;

use super::{Access, Privilege};
use crate::memory::{GuestMemory, GuestPhysAddr};

/// What the tables say about an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    pub address: u64,
    pub bytes: u64,
    pub writable: bool,
    pub user: bool,
    pub executable: bool,
    pub global: bool,
    pub pat_index: u8,
    /// Addresses of the entries that have an accessed bit; the last has the dirty bit.
    pub entries: Vec<u64>,
}

/// What ended a walk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Miss {
    NotPresent,
    Reserved,
    NotMemory(u64),
}

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 != 0
}

fn field(value: u64, high: u32, low: u32) -> u64 {
    (0..=high - low).filter(|number| bit(value, low + number)).map(|number| 1 << number).sum()
}

/// Looks an address up.
pub fn look_up(
    memory: &impl GuestMemory,
    mode: &Mode,
    physical_bits: u32,
    gigabyte_pages: bool,
    address: u64,
) -> Result<Found, Miss> {
    let (long, pae, pse) = (bit(mode.efer, 10), bit(mode.cr4, 5), bit(mode.cr4, 4));
    let nxe = bit(mode.efer, 11);
    let mut found = Found {
        address: 0,
        bytes: 0,
        writable: true,
        user: true,
        executable: true,
        global: false,
        pat_index: 0,
        entries: Vec::new(),
    };
    let read8 = |at: u64| match memory.get::<u64>(GuestPhysAddr(at)) {
        Ok(entry) if at < PRIVATE_START => Ok(entry),
        _ => Err(Miss::NotMemory(at)),
    };
    let finish = |mut found: Found, entry: u64, bytes: u64, base: u64| {
        found.bytes = bytes;
        found.address = if base < PRIVATE_START { base } else { 1 << 39 } + address % bytes;
        found.global = bit(entry, 8) && bit(mode.cr4, 7);
        let pat = if bytes == 4096 { bit(entry, 7) } else { bit(entry, 12) };
        found.pat_index = u8::from(pat) * 4 + u8::from(bit(entry, 4)) * 2 + u8::from(bit(entry, 3));
        Ok(found)
    };
    if !pae {
        let read4 = |at: u64| match memory.get::<u32>(GuestPhysAddr(at)) {
            Ok(entry) if at < PRIVATE_START => Ok(u64::from(entry)),
            _ => Err(Miss::NotMemory(at)),
        };
        let at = field(mode.cr3, 31, 12) * 4096 + field(address, 31, 22) * 4;
        let directory = read4(at)?;
        if !bit(directory, 0) {
            return Err(Miss::NotPresent);
        }
        found.entries.push(at);
        found.writable &= bit(directory, 1);
        found.user &= bit(directory, 2);
        if pse && bit(directory, 7) {
            let base = field(directory, 31, 22) << 22 | field(directory, 20, 13) << 32;
            if bit(directory, 21) || base >> physical_bits != 0 {
                return Err(Miss::Reserved);
            }
            return finish(found, directory, 4 << 20, base);
        }
        let at = field(directory, 31, 12) * 4096 + field(address, 21, 12) * 4;
        let page = read4(at)?;
        if !bit(page, 0) {
            return Err(Miss::NotPresent);
        }
        found.entries.push(at);
        found.writable &= bit(page, 1);
        found.user &= bit(page, 2);
        return finish(found, page, 4096, field(page, 31, 12) * 4096);
    }
    let mut table = field(mode.cr3, 51, 12) * 4096;
    if !long {
        let pointer = read8(field(mode.cr3, 31, 5) * 32 + field(address, 31, 30) * 8)?;
        if !bit(pointer, 0) {
            return Err(Miss::NotPresent);
        }
        let reserved = field(pointer, 2, 1) + field(pointer, 8, 5) + field(pointer, 63, 52);
        if reserved != 0 || (field(pointer, 51, 12) * 4096) >> physical_bits != 0 {
            return Err(Miss::Reserved);
        }
        table = field(pointer, 51, 12) * 4096;
    }
    for level in (1..=if long { 4 } else { 2 }).rev() {
        let low = 3 + 9 * level;
        let at = table + field(address, low + 8, low) * 8;
        let entry = read8(at)?;
        if !bit(entry, 0) {
            return Err(Miss::NotPresent);
        }
        let next = field(entry, 51, 12) * 4096;
        let large = level > 1 && bit(entry, 7);
        let mut reserved = next >> physical_bits != 0 || bit(entry, 63) && !nxe;
        reserved |= !long && field(entry, 62, 52) != 0;
        reserved |= large && (level == 4 || level == 3 && !gigabyte_pages);
        reserved |= large && field(entry, low - 1, 13) != 0;
        if reserved {
            return Err(Miss::Reserved);
        }
        found.entries.push(at);
        found.writable &= bit(entry, 1);
        found.user &= bit(entry, 2);
        found.executable &= !bit(entry, 63);
        if level == 1 || large {
            return finish(found, entry, 1 << low, next >> low << low);
        }
        table = next;
    }
    unreachable!()
}

/// Whether an access is allowed, case by case.
pub fn allowed(found: &Found, mode: &Mode, privilege: Privilege, access: Access) -> bool {
    let (wp, smep, smap) = (bit(mode.cr0, 16), bit(mode.cr4, 20), bit(mode.cr4, 21));
    match (privilege, access) {
        (Privilege::User, Access::Read) => found.user,
        (Privilege::User, Access::Write) => found.user && found.writable,
        (Privilege::User, Access::Execute) => found.user && found.executable,
        (_, Access::Execute) => found.executable && !(found.user && smep),
        (Privilege::Supervisor, _) if found.user && smap => false,
        (_, Access::Read) => true,
        (_, Access::Write) => found.writable || !wp,
    }
}

/// The error code of a page fault that has these bits 0 and 3.
pub fn error_code(mode: &Mode, privilege: Privilege, access: Access, cause: u32) -> u32 {
    let fetches_are_told = bit(mode.cr4, 20) || bit(mode.cr4, 5) && bit(mode.efer, 11);
    cause
        + if access == Access::Write { 2 } else { 0 }
        + if privilege == Privilege::User { 4 } else { 0 }
        + if access == Access::Execute && fetches_are_told { 16 } else { 0 }
}

/// What the processor does with an access: the error code or what is accessed.
pub fn access(
    looked_up: &Result<Found, Miss>,
    mode: &Mode,
    privilege: Privilege,
    access: Access,
) -> Result<Found, u32> {
    match looked_up {
        Ok(found) if allowed(found, mode, privilege, access) => Ok(found.clone()),
        Ok(_) => Err(error_code(mode, privilege, access, 1)),
        Err(Miss::Reserved) => Err(error_code(mode, privilege, access, 9)),
        Err(_) => Err(error_code(mode, privilege, access, 0)),
    }
}
