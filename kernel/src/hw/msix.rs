//! MSI-X tables: how a PCI function's interrupts reach a core (PCI Local Bus 3.0, 6.8.2; Intel SDM 3A, 11.11).
#![expect(unsafe_code, reason = "device registers")]

use core::fmt;

use kernel::address::PhysAddr;
use kernel::frames::Frames;

use super::direct::pointer;
use super::space::{KernelSpace, SpaceError};

const ENTRY_BYTES: u64 = 16;
const MASKED: u32 = 1;

/// A function's table, which the kernel alone writes.
#[derive(Debug)]
pub struct MsixTable {
    at: PhysAddr,
    entries: u16,
}

/// Why an entry is not set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MsixError {
    /// The table has not so many entries.
    NoSuchEntry(u16),
    /// The core's local APIC number has more than the 8 bits that a message has for it.
    Unreachable(u32),
}

impl fmt::Display for MsixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchEntry(index) => write!(f, "the MSI-X table has no entry {index}"),
            Self::Unreachable(id) => write!(f, "no MSI-X message reaches local APIC {id}"),
        }
    }
}

impl core::error::Error for MsixError {}

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
        space.map_device(frames, at, u64::from(entries) * ENTRY_BYTES)?;
        let mut table = Self { at, entries };
        for index in 0..entries {
            table.write(index, 3, MASKED);
        }
        Ok(table)
    }

    fn write(&mut self, index: u16, word: u64, value: u32) {
        let at = PhysAddr(self.at.0 + u64::from(index) * ENTRY_BYTES + word * 4);
        // SAFETY: `map` has mapped the table, and the callers stay within it; what an entry sends is a vector to a core.
        unsafe { pointer::<u32>(at).write_volatile(value) };
    }

    /// Makes an entry send `vector` to the core with this local APIC number, and unmasks it.
    ///
    /// # Errors
    /// [`MsixError`].
    pub fn set(&mut self, index: u16, vector: u8, apic_id: u32) -> Result<(), MsixError> {
        if index >= self.entries {
            return Err(MsixError::NoSuchEntry(index));
        }
        if apic_id >= 0xff {
            return Err(MsixError::Unreachable(apic_id));
        }
        // Only a masked entry may be changed.
        for (word, value) in
            [(3, MASKED), (0, 0xfee0_0000 | apic_id << 12), (1, 0), (2, u32::from(vector)), (3, 0)]
        {
            self.write(index, word, value);
        }
        Ok(())
    }
}
