//! Reaching configuration space: addresses, the two mechanisms' encodings, and the command register.

/// A function's place: bus, device and function number.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Address {
    bus: u8,
    /// Device << 3 | function.
    device_function: u8,
}

impl Address {
    /// The place with these numbers, or `None` when `device` is above 31 or `function` above 7.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self { bus, device_function: device << 3 | function })
    }

    /// The place with this requester ID: bus << 8 | device << 3 | function.
    #[must_use]
    pub const fn from_id(id: u16) -> Self {
        let [bus, device_function] = id.to_be_bytes();
        Self { bus, device_function }
    }

    /// The requester ID.
    #[must_use]
    pub const fn id(self) -> u16 {
        u16::from_be_bytes([self.bus, self.device_function])
    }

    /// The bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device_function >> 3
    }

    /// The function of its device, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.device_function & 7
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// The width of an access.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// The width of so many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
}

/// Configuration space.
pub trait ConfigAccess {
    /// Reads a register; `offset` is aligned to the width and below 4,096. Of what is not there all bits are one.
    fn read(&mut self, function: Address, offset: u16, width: Width) -> u32;
    /// Writes a register, likewise.
    fn write(&mut self, function: Address, offset: u16, width: Width, value: u32);
}

/// Reads of the widths, with the widths' types.
pub(crate) fn read_u8(config: &mut impl ConfigAccess, function: Address, offset: u16) -> u8 {
    config.read(function, offset, Width::Byte).to_le_bytes()[0]
}

pub(crate) fn read_u16(config: &mut impl ConfigAccess, function: Address, offset: u16) -> u16 {
    let [low, high, ..] = config.read(function, offset, Width::Word).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The port of mechanism 1 that takes an address.
pub const CAM_ADDRESS_PORT: u16 = 0xcf8;
/// The first port of mechanism 1 that holds the register at the address.
pub const CAM_DATA_PORT: u16 = 0xcfc;

/// What to write to [`CAM_ADDRESS_PORT`] to reach the register, or `None` when mechanism 1 cannot: from 256 on.
#[must_use]
pub const fn cam_address(function: Address, offset: u16) -> Option<u32> {
    if offset > 0xff {
        return None;
    }
    Some(1 << 31 | (function.id() as u32) << 8 | (offset & 0xfc) as u32)
}

/// The port where the register at `offset` is once its address was written.
#[must_use]
pub const fn cam_data_port(offset: u16) -> u16 {
    CAM_DATA_PORT + (offset & 3)
}

/// Where the register is in memory-mapped configuration space, in bytes from where bus 0 begins; `None` from offset
/// 4,096 on.
#[must_use]
pub const fn ecam_offset(function: Address, offset: u16) -> Option<u64> {
    if offset > 0xfff {
        return None;
    }
    Some((function.id() as u64) << 12 | offset as u64)
}

/// Bits of the command register.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Command(pub u16);

impl Command {
    /// No bit.
    pub const NONE: Self = Self(0);
    /// The function answers at its I/O BARs.
    pub const IO: Self = Self(1);
    /// The function answers at its memory BARs.
    pub const MEMORY: Self = Self(1 << 1);
    /// The function may read and write memory, and send MSIs.
    pub const BUS_MASTER: Self = Self(1 << 2);
    /// The function does not use its interrupt pin.
    pub const NO_PIN_INTERRUPT: Self = Self(1 << 10);

    /// The bits of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

const COMMAND: u16 = 4;

/// Clears bits of the command register, then sets some; returns what was there.
pub fn update_command(
    config: &mut impl ConfigAccess,
    function: Address,
    clear: Command,
    set: Command,
) -> Command {
    // A write of 16 bits leaves the status register, whose bits clear when written, alone.
    let old = read_u16(config, function, COMMAND);
    config.write(function, COMMAND, Width::Word, u32::from(old & !clear.0 | set.0));
    Command(old)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn widths_are_bytes() {
        for bytes in 0..9 {
            let known = matches!(bytes, 1 | 2 | 4);
            assert_eq!(Width::from_bytes(bytes).map(Width::bytes), Some(bytes).filter(|_| known));
        }
    }

    #[test]
    fn addresses_are_encoded_as_the_mechanisms_want() {
        let address = Address::new(0x12, 31, 5).unwrap();
        assert_eq!(address.id(), 0x12fd);
        assert_eq!(Address::from_id(0x12fd), address);
        assert_eq!((address.bus(), address.device(), address.function()), (0x12, 31, 5));
        assert_eq!(std::format!("{address}"), "12:1f.5");
        assert_eq!((Address::new(0, 32, 0), Address::new(0, 0, 8)), (None, None));
        assert_eq!(cam_address(address, 0x3e), Some(0x8012_fd3c));
        assert_eq!(cam_data_port(0x3e), 0xcfe);
        assert_eq!(cam_address(address, 0x100), None);
        assert_eq!(ecam_offset(address, 0xffe), Some(0x12f_dffe));
        assert_eq!(ecam_offset(address, 0x1000), None);
    }
}
