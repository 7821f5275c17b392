//! MSI-X: interrupts that a function sends as memory writes (PCI Express Base 5.0, 7.7.2).
//!
//! Set-up: [`MsiX::find`], [`MsiX::table_address`] against the BARs, [`MsiX::set_state`] to `Masked`, write the table's entries
//! through its memory, then `Enabled`.

use core::fmt;

use crate::bar::{Bar, BarKind, Bars};
use crate::capability::{CAPABILITY_MSIX, find_capability};
use crate::config::{Address, ConfigAccess, Width, read_u16};

/// Bytes of an entry of the table.
pub const MSIX_ENTRY_BYTES: u64 = 16;

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
const SIZE: u16 = 0x7ff;

/// A place in a BAR's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// The BAR's number, 0 to 5.
    pub bar: u8,
    /// Bytes from the BAR's start, a multiple of 8.
    pub offset: u32,
}

/// A function's MSI-X capability.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MsiX {
    function: Address,
    /// Where the capability's registers begin.
    capability: u16,
    /// Entries of the table, 1 to 2,048.
    pub entries: u16,
    /// Where the table is.
    pub table: Place,
    /// Where the pending bits are.
    pub pending: Place,
}

/// Whether a function sends its MSI-X interrupts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MsiXState {
    /// It uses its pin, or MSI.
    Disabled,
    /// It keeps all of them back.
    Masked,
    /// It sends those that the table does not mask.
    Enabled,
}

/// Why an MSI-X capability is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MsiXError {
    /// Its registers would end past those that a function has.
    Truncated,
    /// The table, or the pending bits, lie in a BAR that no function has.
    NoSuchBar(u8),
    /// The table, or the pending bits, lie in a BAR that is not there or is not memory.
    NotMemory(u8),
    /// The table, or the pending bits, end past the end of this BAR.
    OutOfBar(u8),
    /// The table and the pending bits overlap.
    Overlap,
    /// The BAR has no address.
    Unassigned(u8),
}

impl fmt::Display for MsiXError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("MSI-X: the capability is cut off"),
            Self::NoSuchBar(bar) => write!(f, "MSI-X: there is no BAR {bar}"),
            Self::NotMemory(bar) => write!(f, "MSI-X: BAR {bar} is not memory"),
            Self::OutOfBar(bar) => write!(f, "MSI-X: the table ends past the end of BAR {bar}"),
            Self::Overlap => f.write_str("MSI-X: the table and the pending bits overlap"),
            Self::Unassigned(bar) => write!(f, "MSI-X: BAR {bar} has no address"),
        }
    }
}

impl core::error::Error for MsiXError {}

impl MsiX {
    /// A function's capability, or `None` when it has none.
    ///
    /// # Errors
    /// [`MsiXError::Truncated`], [`MsiXError::NoSuchBar`].
    pub fn find(config: &mut impl ConfigAccess, function: Address) -> Result<Option<Self>, MsiXError> {
        let Some(capability) = find_capability(config, function, CAPABILITY_MSIX) else { return Ok(None) };
        if capability + 12 > 0x100 {
            return Err(MsiXError::Truncated);
        }
        let entries = (read_u16(config, function, capability + 2) & SIZE) + 1;
        let table = Self::place(config.read(function, capability + 4, Width::Dword))?;
        let pending = Self::place(config.read(function, capability + 8, Width::Dword))?;
        Ok(Some(Self { function, capability, entries, table, pending }))
    }

    fn place(register: u32) -> Result<Place, MsiXError> {
        let [low, ..] = register.to_le_bytes();
        match low & 7 {
            bar @ 0..=5 => Ok(Place { bar, offset: register & !7 }),
            bar => Err(MsiXError::NoSuchBar(bar)),
        }
    }

    /// Where the capability's registers begin, in configuration space.
    #[must_use]
    pub const fn capability(&self) -> u16 {
        self.capability
    }

    /// Bytes of the table.
    #[must_use]
    pub const fn table_bytes(&self) -> u64 {
        self.entries as u64 * MSIX_ENTRY_BYTES
    }

    /// Bytes of the pending bits.
    #[must_use]
    pub const fn pending_bytes(&self) -> u64 {
        self.entries.div_ceil(64) as u64 * 8
    }

    /// The table's address on the bus, once table and pending bits are checked against the function's BARs.
    ///
    /// # Errors
    /// The [`MsiXError`] that says what is wrong.
    pub fn table_address(&self, bars: &Bars) -> Result<u64, MsiXError> {
        let table = Self::resolve(bars, self.table, self.table_bytes())?;
        let pending = Self::resolve(bars, self.pending, self.pending_bytes())?;
        if table < pending + self.pending_bytes() && pending < table + self.table_bytes() {
            return Err(MsiXError::Overlap);
        }
        Ok(table)
    }

    fn resolve(bars: &Bars, place: Place, bytes: u64) -> Result<u64, MsiXError> {
        let Place { bar: number, offset } = place;
        let bar = bars.get(usize::from(number)).copied().flatten().ok_or(MsiXError::NotMemory(number))?;
        match bar {
            Bar { kind: BarKind::Io, .. } => Err(MsiXError::NotMemory(number)),
            Bar { address: 0, .. } => Err(MsiXError::Unassigned(number)),
            Bar { address, size, .. } => {
                let fits = u64::from(offset) + bytes <= size;
                // The BAR itself ends before the last address, so the sum cannot overflow.
                if fits { Ok(address + u64::from(offset)) } else { Err(MsiXError::OutOfBar(number)) }
            }
        }
    }

    /// Sets whether the function sends its MSI-X interrupts.
    pub fn set_state(&self, config: &mut impl ConfigAccess, state: MsiXState) {
        let offset = self.capability + 2;
        let bits = match state {
            MsiXState::Disabled => 0,
            MsiXState::Masked => ENABLE | MASK_ALL,
            MsiXState::Enabled => ENABLE,
        };
        let old = read_u16(config, self.function, offset);
        let value = old & !(ENABLE | MASK_ALL) | bits;
        config.write(self.function, offset, Width::Word, u32::from(value));
    }
}

/// The words of a table entry, unmasked, that sends an edge-triggered fixed `vector` to the local APIC with this ID
/// (Intel SDM 3A, 11.11; physical destination). The last word holds the mask: write it last.
#[must_use]
pub const fn table_entry(apic_id: u8, vector: u8) -> [u32; 4] {
    [0xfee0_0000 | (apic_id as u32) << 12, 0, vector as u32, 0]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;
    use crate::bar::Prefetch;
    use crate::simulated::{AllOnes, Noise, Simulated};

    fn with(offset: u8, registers: &[u8]) -> Simulated {
        let mut config = Simulated::default();
        config.add(0, 0, 0);
        config.set(0, 0, 0, 6, &[0x10, 0]);
        config.set(0, 0, 0, 0x34, &[offset]);
        config.set(0, 0, 0, offset.into(), &[&[0x11, 0][..], registers].concat());
        config
    }

    fn find(config: &mut impl ConfigAccess) -> Result<Option<MsiX>, MsiXError> {
        MsiX::find(config, Address::default())
    }

    fn memory(address: u64, size: u64) -> Option<Bar> {
        Some(Bar { kind: BarKind::Memory32(Prefetch::Forbidden), address, size })
    }

    #[test]
    fn a_capability_is_read_and_switched() {
        // What QEMU's virtio-net has: 3 entries in BAR 1, pending bits at 2,048.
        let mut config = with(0x98, &[2, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
        let msix = find(&mut config).unwrap().unwrap();
        assert_eq!(msix.entries, 3);
        assert_eq!(
            (msix.table, msix.pending),
            (Place { bar: 1, offset: 0 }, Place { bar: 1, offset: 0x800 })
        );
        let mut bars = [None; 6];
        bars[1] = memory(0xfebf_1000, 0x1000);
        assert_eq!(msix.table_address(&bars), Ok(0xfebf_1000));
        for (state, bits) in [(MsiXState::Masked, 0xc0), (MsiXState::Enabled, 0x80), (MsiXState::Disabled, 0)]
        {
            msix.set_state(&mut config, state);
            assert_eq!(config.registers()[&0][0x9a..0x9c], [2, bits]);
        }
        assert_eq!(table_entry(5, 0x41), [0xfee0_5000, 0, 0x41, 0]);
        config.set(0, 0, 0, 0x98, &[5]);
        assert_eq!(find(&mut config), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |e: MsiXError| format!("{e}");
        let cut = find(&mut with(0xf8, &[0; 6])).unwrap_err();
        assert_eq!(error(cut), "MSI-X: the capability is cut off");
        let bar = find(&mut with(0x40, &[0, 0, 6, 0, 0, 0, 0, 0, 0, 0])).unwrap_err();
        assert_eq!(error(bar), "MSI-X: there is no BAR 6");
        // 2,048 entries at 0x1000 in BAR 0, pending bits in BAR 2 at 0.
        let big = find(&mut with(0x40, &[0xff, 7, 0, 0x10, 0, 0, 2, 0, 0, 0])).unwrap().unwrap();
        let table = |first, third| big.table_address(&[first, None, third, None, None, None]);
        let good = memory(0x8000_0000, 0x1_0000);
        assert_eq!(table(good, memory(0x8000_2000, 0x100)), Err(MsiXError::Overlap));
        assert_eq!(table(good, memory(0x9000_0000, 0x100)), Ok(0x8000_1000));
        assert_eq!(
            table(memory(0x8000_0000, 0x8000), good).map_err(error),
            Err("MSI-X: the table ends past the end of BAR 0".into())
        );
        assert_eq!(table(good, None).map_err(error), Err("MSI-X: BAR 2 is not memory".into()));
        assert_eq!(
            table(memory(0, 0x1_0000), good).map_err(error),
            Err("MSI-X: BAR 0 has no address".into())
        );
        let ports = Some(Bar { kind: BarKind::Io, address: 0xc000, size: 0x1_0000 });
        assert_eq!(table(ports, good), Err(MsiXError::NotMemory(0)));
        // Pending bits inside the table.
        let inside = find(&mut with(0x40, &[7, 0, 0, 0, 0, 0, 0x78, 0, 0, 0])).unwrap().unwrap();
        let bars = [good, None, None, None, None, None];
        assert_eq!(
            inside.table_address(&bars).map_err(error),
            Err("MSI-X: the table and the pending bits overlap".into())
        );
        let after = find(&mut with(0x40, &[7, 0, 0, 0, 0, 0, 0x80, 0, 0, 0])).unwrap().unwrap();
        assert_eq!(after.table_address(&bars), Ok(0x8000_0000));
    }

    #[test]
    fn nonsense_does_no_harm() {
        assert_eq!(find(&mut AllOnes), Ok(None));
        let bars = [memory(u64::MAX - 0xffff, 0x1_0000 - 1); 6];
        for seed in 0..2000 {
            if let Ok(Some(msix)) = find(&mut Noise::new(seed)) {
                assert!((1..=2048).contains(&msix.entries));
                let _ = msix.table_address(&bars).map(|at| assert!(at >= u64::MAX - 0xffff));
            }
        }
    }
}
