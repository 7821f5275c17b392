//! Finding the functions that are there.

use crate::config::{Address, ConfigAccess, Width, read_u8};

/// What a function is, as it says itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Class {
    /// The base class: 1 for storage, 2 for network, 6 for bridges.
    pub base: u8,
    /// The subclass.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

/// The layout of a function's registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeaderKind {
    /// An ordinary function: six BARs.
    General,
    /// A bridge to the bus of this number: two BARs.
    Bridge {
        /// The bus behind it; 0 when firmware gave it none.
        secondary: u8,
    },
    /// Another layout, which is not looked into.
    Other(u8),
}

/// A function that is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Function {
    /// Its place.
    pub address: Address,
    /// Its vendor.
    pub vendor: u16,
    /// The vendor's number for it.
    pub device: u16,
    /// What it is.
    pub class: Class,
    /// The layout of its registers.
    pub header: HeaderKind,
}

const ABSENT: u16 = 0xffff;
const MULTIPLE: u8 = 1 << 7;

/// The function at a place, or `None` when none is there.
pub fn function(config: &mut impl ConfigAccess, address: Address) -> Option<Function> {
    let [v0, v1, d0, d1] = config.read(address, 0, Width::Dword).to_le_bytes();
    let vendor = u16::from_le_bytes([v0, v1]);
    if vendor == ABSENT {
        return None;
    }
    let [_, interface, sub, base] = config.read(address, 8, Width::Dword).to_le_bytes();
    let header = match read_u8(config, address, 0x0e) & !MULTIPLE {
        0 => HeaderKind::General,
        1 => HeaderKind::Bridge { secondary: read_u8(config, address, 0x19) },
        other => HeaderKind::Other(other),
    };
    let device = u16::from_le_bytes([d0, d1]);
    Some(Function { address, vendor, device, class: Class { base, sub, interface }, header })
}

/// A walk over all functions: of bus 0 and of every bus that a bridge leads to. Each bus is visited once, whatever
/// bridges say, so the walk ends after at most 256 buses of 256 functions.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Buses that were found and not yet begun, a bit each.
    waiting: [u64; 4],
    /// Buses that were found, a bit each.
    found: [u64; 4],
    /// What is looked at next, if its bus is not at its end.
    next: Option<Address>,
}

impl Scan {
    /// A walk that begins.
    #[must_use]
    pub const fn new() -> Self {
        Self { waiting: [0; 4], found: [1, 0, 0, 0], next: Some(Address::from_id(0)) }
    }

    /// The next function. Configuration space is borrowed for this step alone, so the caller may use it in between.
    pub fn next(&mut self, config: &mut impl ConfigAccess) -> Option<Function> {
        loop {
            let address = self.next.or_else(|| self.begin_bus())?;
            let found = function(config, address);
            // Function 0 says whether there are others; without it there are none.
            let alone = address.function() == 0
                && (found.is_none() || read_u8(config, address, 0x0e) & MULTIPLE == 0);
            let step = if alone { 8 } else { 1 };
            self.next = address.id().checked_add(step).map(Address::from_id);
            self.next = self.next.filter(|next| next.bus() == address.bus());
            if let Some(Function { header: HeaderKind::Bridge { secondary }, .. }) = found {
                self.add_bus(secondary);
            }
            if found.is_some() {
                return found;
            }
        }
    }

    fn add_bus(&mut self, bus: u8) {
        let (word, bit) = (usize::from(bus / 64), 1 << (bus % 64));
        if let (Some(found), Some(waiting)) = (self.found.get_mut(word), self.waiting.get_mut(word)) {
            *waiting |= bit & !*found;
            *found |= bit;
        }
    }

    fn begin_bus(&mut self) -> Option<Address> {
        for (first_bus, word) in [0, 64, 128, 192].into_iter().zip(&mut self.waiting) {
            if let Ok(bit @ 0..64) = u8::try_from(word.trailing_zeros()) {
                *word &= *word - 1;
                return Address::new(first_bus + bit, 0, 0);
            }
        }
        None
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::simulated::{AllOnes, Noise, Simulated};

    fn all(config: &mut impl ConfigAccess) -> Vec<Function> {
        let mut scan = Scan::new();
        core::iter::from_fn(|| scan.next(config)).collect()
    }

    #[test]
    fn functions_behind_bridges_are_found_once() {
        let mut config = Simulated::default();
        for (bus, device, function) in [(0, 0, 0), (0, 3, 0), (0, 3, 5), (2, 31, 7), (200, 1, 0)] {
            config.add(bus, device, function);
        }
        // Function 0 of a device decides: this one has no function 0.
        config.add(0, 9, 1);
        config.set(0, 3, 0, 0x0e, &[0x80]);
        config.add(2, 31, 0);
        config.set(2, 31, 0, 0x0e, &[0x80]);
        // A bridge to bus 2, behind it one to bus 200, and that leads back to buses 0 and 2.
        for (bus, device, secondary) in [(0, 1, 2), (2, 0, 200), (200, 2, 0), (200, 3, 2), (200, 4, 200)] {
            config.add(bus, device, 0);
            config.set(bus, device, 0, 0x0e, &[1]);
            config.set(bus, device, 0, 0x19, &[secondary]);
        }
        let found: Vec<_> = all(&mut config).iter().map(|f| std::format!("{}", f.address)).collect();
        let expected = [
            "00:00.0", "00:01.0", "00:03.0", "00:03.5", "02:00.0", "02:1f.0", "02:1f.7", "c8:01.0",
            "c8:02.0", "c8:03.0", "c8:04.0",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_function_is_described() {
        let mut config = Simulated::default();
        config.add(0, 4, 0);
        config.set(0, 4, 0, 0, &[0xf4, 0x1a, 0x41, 0x10]);
        config.set(0, 4, 0, 8, &[1, 0x20, 0x30, 0x02]);
        config.set(0, 4, 0, 0x0e, &[0x82]);
        let address = Address::new(0, 4, 0).unwrap();
        let class = Class { base: 2, sub: 0x30, interface: 0x20 };
        let header = HeaderKind::Other(2);
        let expected = Function { address, vendor: 0x1af4, device: 0x1041, class, header };
        assert_eq!(all(&mut config), [expected]);
    }

    #[test]
    fn the_walk_ends_whatever_is_read() {
        assert_eq!(all(&mut AllOnes), []);
        assert!(all(&mut Noise::new(1)).len() <= 0x1_0000);
    }
}
