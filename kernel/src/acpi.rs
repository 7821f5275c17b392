//! ACPI's static tables: what the kernel must know to start cores, route interrupts, find PCI and leave the machine.
//!
//! Read once at boot, from memory that firmware wrote; nothing of it is executed. The root pointer leads to the root
//! table (XSDT, or RSDT on old firmware), that to the tables. Every table that is used is checked: signature, length,
//! checksum. An optional part that is missing is `None`; a part that is there and wrong is an error with its name.
//!
//! Sources: ACPI 6.5, 5.2.5 (RSDP), 5.2.6 to 5.2.8 (header, RSDT, XSDT), [`madt`] 5.2.12, [`fadt`] 5.2.9; PCI
//! Firmware 3.3, 4.1.2 (MCFG).

use core::fmt;

use heapless::Vec;

use crate::address::PhysAddr;
use crate::boot::RsdpLocation;
use crate::physical::{PhysMemory, field, read};

pub mod fadt;
pub mod madt;

use fadt::Fixed;
use madt::Madt;

/// The most PCI segments that are kept.
pub const MAX_ECAM: usize = 4;
/// The longest table that is believed, in bytes.
const MAX_TABLE_BYTES: u32 = 4 << 20;
const HEADER_BYTES: usize = 36;

/// A table's signature.
pub type Signature = [u8; 4];

/// What the tables say.
#[derive(Clone, Debug)]
pub struct Acpi {
    /// Processors and interrupt controllers.
    pub madt: Madt,
    /// Memory-mapped PCI configuration space; empty on machines with port access alone.
    pub ecam: Vec<EcamSegment, MAX_ECAM>,
    /// Fixed hardware: timer, power, reset.
    pub fixed: Fixed,
    /// What to write to PM1a and PM1b control to power off (`\_S5`), if the DSDT says it in the usual form.
    pub soft_off: Option<[u16; 2]>,
}

/// The memory-mapped configuration space of some buses of one PCI segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EcamSegment {
    /// Where bus 0 would begin: 1 MiB a bus.
    pub base: PhysAddr,
    /// The segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

/// Why the tables are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AcpiError {
    /// No root pointer where it should be.
    NoRootPointer,
    /// A required table is not in the root table.
    Missing(Signature),
    /// A table does not lie in memory that can be read.
    Unreadable(Signature, PhysAddr),
    /// A table carries another signature.
    WrongSignature {
        /// What it should be.
        wanted: Signature,
        /// What it is.
        found: Signature,
    },
    /// A table's length is less than its header or absurdly great.
    BadLength(Signature, u32),
    /// A table's bytes do not add up to zero.
    BadChecksum(Signature),
    /// An entry of a table is malformed: at this offset of the table.
    BadEntry(Signature, usize),
    /// A table has more of something than the kernel keeps.
    TooMany(Signature, &'static str),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRootPointer => f.write_str("no valid root pointer (RSDP)"),
            Self::Missing(table) => write!(f, "there is no {} table", table.escape_ascii()),
            Self::Unreadable(table, at) => {
                write!(f, "{} at {:#x} is not in memory", table.escape_ascii(), at.0)
            }
            Self::WrongSignature { wanted, found } => {
                write!(f, "the table that should be {} is {}", wanted.escape_ascii(), found.escape_ascii())
            }
            Self::BadLength(table, length) => {
                write!(f, "{} has the absurd length {length}", table.escape_ascii())
            }
            Self::BadChecksum(table) => write!(f, "{} has a wrong checksum", table.escape_ascii()),
            Self::BadEntry(table, at) => write!(f, "{} is malformed at offset {at}", table.escape_ascii()),
            Self::TooMany(table, what) => write!(f, "{} has too many {what}", table.escape_ascii()),
        }
    }
}

impl Acpi {
    /// Reads the tables.
    ///
    /// # Errors
    /// The [`AcpiError`] that names the table and what is wrong with it.
    pub fn read(memory: &dyn PhysMemory, rsdp: &RsdpLocation) -> Result<Self, AcpiError> {
        let root = Root::find(memory, rsdp)?;
        let madt = root.table(memory, *b"APIC")?.ok_or(AcpiError::Missing(*b"APIC"))?;
        let fadt = root.table(memory, *b"FACP")?.ok_or(AcpiError::Missing(*b"FACP"))?;
        let (fixed, dsdt) = Fixed::parse(fadt)?;
        let soft_off = match dsdt {
            PhysAddr(0) => None,
            at => fadt::soft_off(table(memory, at, *b"DSDT")?),
        };
        let ecam = match root.table(memory, *b"MCFG")? {
            None => Vec::new(),
            Some(mcfg) => ecam(mcfg)?,
        };
        Ok(Self { madt: Madt::parse(madt)?, ecam, fixed, soft_off })
    }
}

/// The root table: where the others are.
struct Root<'a> {
    entries: &'a [u8],
    /// 4 in an RSDT, 8 in an XSDT.
    entry_bytes: usize,
}

impl<'a> Root<'a> {
    fn find(memory: &'a dyn PhysMemory, rsdp: &RsdpLocation) -> Result<Self, AcpiError> {
        let (at, signature, entry_bytes) = match rsdp {
            RsdpLocation::Copy(copy) => root_pointer(copy),
            RsdpLocation::Address(at) => root_pointer_at(memory, at.0),
            RsdpLocation::Unknown => scan(memory),
        }
        .ok_or(AcpiError::NoRootPointer)?;
        let entries = table(memory, at, signature)?.get(HEADER_BYTES..).unwrap_or_default();
        Ok(Self { entries, entry_bytes })
    }

    /// The first table with this signature, checked.
    fn table(&self, memory: &'a dyn PhysMemory, wanted: Signature) -> Result<Option<&'a [u8]>, AcpiError> {
        for entry in self.entries.chunks_exact(self.entry_bytes) {
            let at = match self.entry_bytes {
                4 => field::<u32>(entry, 0).map(u64::from),
                _ => field::<u64>(entry, 0),
            };
            let Some(at) = at.map(PhysAddr) else { continue };
            // A table that nobody asks for may lie wherever it likes.
            if read::<Signature>(memory, at) == Some(wanted) {
                return table(memory, at, wanted).map(Some);
            }
        }
        Ok(None)
    }
}

/// The root table's address, signature and bytes an entry, out of a valid root pointer.
fn root_pointer(rsdp: &[u8]) -> Option<(PhysAddr, Signature, usize)> {
    let old = rsdp.get(..20)?;
    if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
        return None;
    }
    if field::<u8>(old, 15)? >= 2 {
        let xsdt = field::<u64>(rsdp, 24)?;
        if sum(rsdp.get(..36)?) != 0 {
            return None;
        }
        if xsdt != 0 {
            return Some((PhysAddr(xsdt), *b"XSDT", 8));
        }
    }
    Some((PhysAddr(field::<u32>(old, 16)?.into()), *b"RSDT", 4))
}

fn root_pointer_at(memory: &dyn PhysMemory, at: u64) -> Option<(PhysAddr, Signature, usize)> {
    // The old form is shorter, and may end where memory does.
    let bytes = memory.bytes(PhysAddr(at), 36).or_else(|| memory.bytes(PhysAddr(at), 20))?;
    root_pointer(bytes)
}

/// Looks where a BIOS puts the root pointer (ACPI 6.5, 5.2.5.1): the first KiB of the extended BIOS data area, then
/// the BIOS area, at multiples of 16.
fn scan(memory: &dyn PhysMemory) -> Option<(PhysAddr, Signature, usize)> {
    let ebda = read::<u16>(memory, PhysAddr(0x40e)).map_or(0, |segment| u64::from(segment) << 4);
    let ebda = if (0x8_0000..0xa_0000).contains(&ebda) { ebda..ebda + 1024 } else { 0..0 };
    ebda.chain(0xe_0000..0x10_0000).step_by(16).find_map(|at| root_pointer_at(memory, at))
}

/// The table at an address: all of it, header included.
fn table(memory: &dyn PhysMemory, at: PhysAddr, wanted: Signature) -> Result<&[u8], AcpiError> {
    let unreadable = AcpiError::Unreadable(wanted, at);
    let header = memory.bytes(at, HEADER_BYTES).ok_or(unreadable)?;
    let found: Signature = field(header, 0).ok_or(unreadable)?;
    if found != wanted {
        return Err(AcpiError::WrongSignature { wanted, found });
    }
    let length: u32 = field(header, 4).ok_or(unreadable)?;
    if length > MAX_TABLE_BYTES || (length as usize) < HEADER_BYTES {
        return Err(AcpiError::BadLength(wanted, length));
    }
    let bytes = memory.bytes(at, length as usize).ok_or(unreadable)?;
    if sum(bytes) == 0 { Ok(bytes) } else { Err(AcpiError::BadChecksum(wanted)) }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn ecam(mcfg: &[u8]) -> Result<Vec<EcamSegment, MAX_ECAM>, AcpiError> {
    const TABLE: Signature = *b"MCFG";
    const FIRST: usize = 44;
    const BYTES: usize = 16;
    let mut segments = Vec::new();
    for (i, entry) in mcfg.get(FIRST..).unwrap_or_default().chunks(BYTES).enumerate() {
        let bad = AcpiError::BadEntry(TABLE, FIRST + i * BYTES);
        let [first_bus, last_bus] = field(entry, 10).ok_or(bad)?;
        let segment = EcamSegment {
            base: PhysAddr(field(entry, 0).ok_or(bad)?),
            segment: field(entry, 8).ok_or(bad)?,
            first_bus,
            last_bus,
        };
        let end = segment.base.0.checked_add((u64::from(last_bus) + 1) << 20);
        if entry.len() < BYTES || first_bus > last_bus || end.is_none() {
            return Err(bad);
        }
        segments.push(segment).map_err(|_| AcpiError::TooMany(TABLE, "segments"))?;
    }
    Ok(segments)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tables in tests are short")]
mod tests;
