//! PCI configuration space: single accesses. What they mean is the business of the pci crate.
//!
//! Accesses go through the memory-mapped space of the bus where there is one, else through ports 0xcf8 and 0xcfc, which
//! reach the first 256 bytes (PCI Local Bus 3.0, 3.2.2.3.2; PCI Express 5.0, 7.2.2).
#![expect(unsafe_code, reason = "device registers and ports")]

use core::ops::Range;

use heapless::Vec;
use kernel::acpi::{EcamSegment, MAX_ECAM};
use kernel::address::PhysAddr;
use pci::{Address, CAM_ADDRESS_PORT, ConfigAccess, Width, cam_address, cam_data_port, ecam_offset};

use super::direct::pointer;
use super::ports;

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
    /// Without a segment.
    #[must_use]
    pub const fn absent() -> Self {
        Self { mapped: Vec::new() }
    }

    /// Uses the segments that are segment 0's.
    ///
    /// # Safety
    /// [`memory_of`] each is mapped, uncached, in the direct map, and there is one value of this type.
    #[must_use]
    pub unsafe fn new(segments: &[EcamSegment]) -> Self {
        Self { mapped: segments.iter().filter(|s| s.segment == 0).copied().collect() }
    }

    /// Where a register is in memory.
    fn mapped(&self, function: Address, offset: u16) -> Option<PhysAddr> {
        let buses = |s: &&EcamSegment| (s.first_bus..=s.last_bus).contains(&function.bus());
        Some(PhysAddr(self.mapped.iter().find(buses)?.base.0 + ecam_offset(function, offset)?))
    }

    /// Selects the register for the ports; the port of its first byte, or `None` past those that they reach.
    fn select(function: Address, offset: u16) -> Option<u16> {
        ports::write(CAM_ADDRESS_PORT, Width::Dword, cam_address(function, offset)?);
        Some(cam_data_port(offset))
    }
}

impl ConfigAccess for ConfigSpace {
    fn read(&mut self, function: Address, offset: u16, width: Width) -> u32 {
        let Some(at) = self.mapped(function, offset) else {
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

    /// A write past what can be reached is lost.
    #[expect(clippy::cast_possible_truncation, reason = "the width says how many bits count")]
    fn write(&mut self, function: Address, offset: u16, width: Width, value: u32) {
        let Some(at) = self.mapped(function, offset) else {
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
