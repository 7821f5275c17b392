//! MSI-X tables: how a PCI function's interrupts reach a core (PCI Local Bus 3.0, 6.8.2; Intel SDM 3A, 11.11).
#![expect(unsafe_code, reason = "device registers")]

use kernel::address::PhysAddr;
use kernel::frames::Frames;
use pci::{MSIX_ENTRY_BYTES, table_entry};

use super::direct::pointer;
use super::ioapic::RouteError;
use super::space::{KernelSpace, SpaceError};

const MASKED: u32 = 1;

/// A function's table, which the kernel alone writes.
#[derive(Debug)]
pub struct MsixTable {
    at: PhysAddr,
    entries: u16,
}

impl MsixTable {
    /// Maps the table of `entries` entries at `at`, which lies in a memory BAR, and masks all of them.
    ///
    /// # Errors
    /// What [`KernelSpace::map_device`] refuses: memory that is not a device's, above all.
    pub fn map(
        space: &KernelSpace,
        frames: &mut Frames,
        at: PhysAddr,
        entries: u16,
    ) -> Result<Self, SpaceError> {
        space.map_device(frames, at, u64::from(entries) * MSIX_ENTRY_BYTES)?;
        let mut table = Self { at, entries };
        for index in 0..entries {
            table.write(index, 3, MASKED);
        }
        Ok(table)
    }

    fn write(&mut self, index: u16, word: u64, value: u32) {
        let at = PhysAddr(self.at.0 + u64::from(index) * MSIX_ENTRY_BYTES + word * 4);
        // SAFETY: `map` has mapped the table, and the callers stay within it; what an entry sends is a vector to a core.
        unsafe { pointer::<u32>(at).write_volatile(value) };
    }

    /// Makes an entry send `vector` to the core with this local APIC number, and unmasks it.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn set(&mut self, index: u16, vector: u8, apic_id: u32) -> Result<(), RouteError> {
        if index >= self.entries {
            return Err(RouteError::NoSuchLine(u32::from(index)));
        }
        let entry = table_entry(RouteError::destination(apic_id)?, vector);
        // Only a masked entry may be changed; the last word unmasks it.
        self.write(index, 3, MASKED);
        for (word, value) in (0..).zip(entry) {
            self.write(index, word, value);
        }
        Ok(())
    }
}
