//! Configuration space for tests: a well-behaved one, one that answers all ones, and one that answers noise.

extern crate std;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::config::{Address, ConfigAccess, Width};

/// Functions with registers of 256 bytes each; writes reach the bits that are writable, as in a device.
#[derive(Clone, Default)]
pub struct Simulated {
    functions: BTreeMap<u16, Vec<u8>>,
    /// Bits of BARs that can be written, by function and offset.
    masks: BTreeMap<(u16, u16), u32>,
    /// Whether a BAR was written all ones while the function decoded it.
    pub decoded_while_sizing: bool,
}

fn id(bus: u8, device: u8, function: u8) -> u16 {
    Address::new(bus, device, function).unwrap().id()
}

impl Simulated {
    /// Adds a function that is there, all else zero.
    pub fn add(&mut self, bus: u8, device: u8, function: u8) {
        let mut registers = Vec::from([0; 256]);
        registers[..4].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        self.functions.insert(id(bus, device, function), registers);
    }

    /// Sets registers.
    pub fn set(&mut self, bus: u8, device: u8, function: u8, offset: u16, bytes: &[u8]) {
        let registers = self.functions.get_mut(&id(bus, device, function)).unwrap();
        registers[usize::from(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Says which bits of a BAR can be written; without that, none can.
    pub fn writable(&mut self, bus: u8, device: u8, function: u8, offset: u16, mask: u32) {
        self.masks.insert((id(bus, device, function), offset), mask);
    }

    /// All registers of all functions.
    pub fn registers(&self) -> &BTreeMap<u16, Vec<u8>> {
        &self.functions
    }
}

fn bytes(width: Width) -> usize {
    match width {
        Width::Byte => 1,
        Width::Word => 2,
        Width::Dword => 4,
    }
}

impl ConfigAccess for Simulated {
    fn read(&mut self, function: Address, offset: u16, width: Width) -> u32 {
        assert!(usize::from(offset).is_multiple_of(bytes(width)), "unaligned");
        let mut value = [0xff; 4];
        if let Some(registers) = self.functions.get(&function.id()) {
            value = [0; 4];
            value[..bytes(width)].copy_from_slice(&registers[usize::from(offset)..][..bytes(width)]);
        }
        u32::from_le_bytes(value)
    }

    fn write(&mut self, function: Address, offset: u16, width: Width, value: u32) {
        assert!(usize::from(offset).is_multiple_of(bytes(width)), "unaligned");
        let Some(registers) = self.functions.get_mut(&function.id()) else { return };
        let decodes = registers[4] & 3 != 0;
        let at = usize::from(offset);
        let mut value = value;
        if (0x10..0x28).contains(&offset) {
            assert_eq!(width, Width::Dword);
            self.decoded_while_sizing |= decodes && value == u32::MAX;
            let mask = self.masks.get(&(function.id(), offset)).copied().unwrap_or(0);
            let old = u32::from_le_bytes(registers[at..at + 4].try_into().unwrap());
            value = value & mask | old & !mask;
        }
        registers[at..][..bytes(width)].copy_from_slice(&value.to_le_bytes()[..bytes(width)]);
    }
}

/// Nothing is there.
pub struct AllOnes;

impl ConfigAccess for AllOnes {
    fn read(&mut self, _: Address, _: u16, _: Width) -> u32 {
        u32::MAX
    }

    fn write(&mut self, _: Address, _: u16, _: Width, _: u32) {}
}

/// Another random answer to every read (xorshift64*).
pub struct Noise(u64);

impl Noise {
    /// Noise from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
}

impl ConfigAccess for Noise {
    fn read(&mut self, _: Address, _: u16, _: Width) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn write(&mut self, _: Address, _: u16, _: Width, _: u32) {}
}
