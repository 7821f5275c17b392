//! PCI configuration space: single accesses. What they mean is the business of the pci crate.
//!
//! Accesses go through the memory-mapped space of the bus where there is one, else through ports 0xcf8 and 0xcfc, which
//! reach the first 256 bytes (PCI Local Bus 3.0, 3.2.2.3.2; PCI Express 5.0, 7.2.2).
#![expect(unsafe_code, reason = "device registers and ports")]

use core::ops::Range;

use heapless::Vec;
use kernel::acpi::{EcamSegment, MAX_ECAM};
use kernel::address::PhysAddr;
use kernel::machine::{PciAddress, Width};

use super::direct::pointer;
use super::ports;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
/// What a read gives where nothing answers.
const NOTHING: u32 = u32::MAX;
const BUS_BYTES: u64 = 1 << 20;

/// The memory that holds the configuration space of a segment's buses: to be mapped uncached.
#[must_use]
pub fn memory_of(segment: &EcamSegment) -> Range<u64> {
    let bus = |number: u8| segment.base.0 + u64::from(number) * BUS_BYTES;
    bus(segment.first_bus)..bus(segment.last_bus) + BUS_BYTES
}

/// The configuration space of PCI segment 0.
#[derive(Debug)]
pub struct ConfigSpace {
    mapped: Vec<EcamSegment, MAX_ECAM>,
}

impl ConfigSpace {
    /// Uses the segments that are segment 0's.
    ///
    /// # Safety
    /// [`memory_of`] each is mapped, uncached, in the direct map, and there is one value of this type.
    #[must_use]
    pub unsafe fn new(segments: &[EcamSegment]) -> Self {
        Self { mapped: segments.iter().filter(|s| s.segment == 0).copied().collect() }
    }

    /// Where a register is in memory.
    fn mapped(&self, function: PciAddress, offset: u16) -> Option<PhysAddr> {
        let [_, bus] = function.0.to_le_bytes();
        let segment = self.mapped.iter().find(|s| (s.first_bus..=s.last_bus).contains(&bus))?;
        Some(PhysAddr(segment.base.0 + u64::from(function.0) * 4096 + u64::from(offset)))
    }

    /// Selects the register for the ports; the port of its first byte, or `None` past the 256 that they reach.
    fn select(function: PciAddress, offset: u16) -> Option<u16> {
        if offset >= 256 {
            return None;
        }
        let address = 1 << 31 | u32::from(function.0) << 8 | u32::from(offset & !3);
        ports::write(ADDRESS_PORT, Width::Dword, address);
        Some(DATA_PORT + (offset & 3))
    }

    /// Reads; `offset` is aligned to the width and below 4,096.
    pub fn read(&mut self, function: PciAddress, offset: u16, width: Width) -> u32 {
        let Some(at) = self.mapped(function, offset & 0xfff) else {
            return Self::select(function, offset).map_or(NOTHING, |port| ports::read(port, width));
        };
        match width {
            // SAFETY: `new`'s caller has mapped the configuration space.
            Width::Byte => u32::from(unsafe { pointer::<u8>(at).read_volatile() }),
            // SAFETY: as above, and aligned.
            Width::Word => u32::from(unsafe { pointer::<u16>(at).read_volatile() }),
            // SAFETY: as above, and aligned.
            Width::Dword => unsafe { pointer::<u32>(at).read_volatile() },
        }
    }

    /// Writes, likewise. A write past what can be reached is lost.
    #[expect(clippy::cast_possible_truncation, reason = "the width says how many bits count")]
    pub fn write(&mut self, function: PciAddress, offset: u16, width: Width, value: u32) {
        let Some(at) = self.mapped(function, offset & 0xfff) else {
            if let Some(port) = Self::select(function, offset) {
                ports::write(port, width, value);
            }
            return;
        };
        match width {
            // SAFETY: `new`'s caller has mapped the configuration space.
            Width::Byte => unsafe { pointer::<u8>(at).write_volatile(value as u8) },
            // SAFETY: as above, and aligned.
            Width::Word => unsafe { pointer::<u16>(at).write_volatile(value as u16) },
            // SAFETY: as above, and aligned.
            Width::Dword => unsafe { pointer::<u32>(at).write_volatile(value) },
        }
    }
}
