//! Where a virtio device has its registers: the vendor capabilities of its PCI function (virtio 1.2, 4.1.4).

use core::fmt;

use pci::{Address, CAPABILITY_VENDOR, Capabilities, Command, ConfigAccess, Width, update_command};

/// PCI vendor of virtio devices.
pub const VENDOR: u16 = 0x1af4;
/// PCI device number of a network card by virtio 1.0 and later.
pub const DEVICE_NETWORK: u16 = 0x1041;
/// PCI device number of a network card that also speaks the older protocol.
pub const DEVICE_NETWORK_TRANSITIONAL: u16 = 0x1000;

/// Bytes of configuration space that hold capabilities.
const CONFIG_BYTES: u16 = 256;

/// Some of a device's registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Structure {
    /// The BAR's number.
    pub bar: u8,
    /// Where in the BAR.
    pub offset: u32,
    /// How many bytes.
    pub length: u32,
}

/// A virtio device's register structures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Structures {
    /// The common configuration.
    pub common: Structure,
    /// The doorbells.
    pub notify: Structure,
    /// The distance between two doorbells in bytes.
    pub notify_multiplier: u32,
    /// The network card's own configuration.
    pub device: Structure,
}

/// Why a PCI function is no network card of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PciError {
    /// Another vendor's, or another device.
    NotNetwork {
        /// PCI vendor.
        vendor: u16,
        /// PCI device number.
        device: u16,
    },
    /// It speaks the older protocol alone: it lacks the named structure.
    Missing(&'static str),
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNetwork { vendor, device } => {
                write!(f, "{vendor:04x}:{device:04x} is no virtio network card")
            }
            Self::Missing(what) => {
                write!(f, "the card has no {what} structure (virtio 1.0 or later is needed)")
            }
        }
    }
}

impl core::error::Error for PciError {}

/// Finds the structures of a network card.
///
/// # Errors
/// [`PciError`].
pub fn find_structures(config: &mut impl ConfigAccess, function: Address) -> Result<Structures, PciError> {
    let [v0, v1, d0, d1] = config.read(function, 0, Width::Dword).to_le_bytes();
    let (vendor, device) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
    if vendor != VENDOR || ![DEVICE_NETWORK, DEVICE_NETWORK_TRANSITIONAL].contains(&device) {
        return Err(PciError::NotNetwork { vendor, device });
    }
    let (mut common, mut notify, mut device_config) = (None, None, None);
    let mut walk = Capabilities::new(config, function);
    while let Some(capability) = walk.next(config) {
        if capability.id != CAPABILITY_VENDOR {
            continue;
        }
        let mut word = |index: u16| {
            let offset = capability.offset + 4 * index;
            (offset < CONFIG_BYTES).then(|| config.read(function, offset, Width::Dword))
        };
        let (Some(head), Some(bar), Some(offset), Some(bytes)) = (word(0), word(1), word(2), word(3)) else {
            continue;
        };
        let [_, _, length, kind] = head.to_le_bytes();
        let structure = Structure { bar: bar.to_le_bytes()[0], offset, length: bytes };
        // A device may offer several of a kind, in the order of its preference; BARs above 5 are reserved.
        match kind {
            _ if structure.bar > 5 || length < 16 => {}
            1 => common = common.or(Some(structure)),
            2 if length >= 20 => notify = notify.or(word(4).map(|multiplier| (structure, multiplier))),
            4 => device_config = device_config.or(Some(structure)),
            _ => {}
        }
    }
    let (notify, notify_multiplier) = notify.ok_or(PciError::Missing("notification"))?;
    Ok(Structures {
        common: common.ok_or(PciError::Missing("common configuration"))?,
        notify,
        notify_multiplier,
        device: device_config.ok_or(PciError::Missing("device configuration"))?,
    })
}

/// Lets the function answer at its memory BARs and reach memory, without its interrupt pin.
pub fn enable(config: &mut impl ConfigAccess, function: Address) {
    let set = Command::MEMORY.and(Command::BUS_MASTER).and(Command::NO_PIN_INTERRUPT);
    update_command(config, function, Command::NONE, set);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Space([u8; 256]);

    const HERE: Address = Address::from_id(0x18);

    impl ConfigAccess for Space {
        fn read(&mut self, function: Address, offset: u16, width: Width) -> u32 {
            assert_eq!(function, HERE);
            let bytes = [Width::Byte, Width::Word, Width::Dword].into_iter().position(|w| w == width);
            let mut value = [0; 4];
            let at = usize::from(offset);
            for (byte, from) in value.iter_mut().zip(&self.0[at..at + (1 << bytes.unwrap())]) {
                *byte = *from;
            }
            u32::from_le_bytes(value)
        }

        fn write(&mut self, _: Address, offset: u16, width: Width, value: u32) {
            assert_eq!((offset, width), (4, Width::Word));
            self.0[4..6].copy_from_slice(&value.to_le_bytes()[..2]);
        }
    }

    /// A card with these capabilities: (id, kind, bytes, BAR, offset, length, multiplier).
    fn card(capabilities: &[(u8, u8, u8, u8, u32, u32, u32)]) -> Space {
        let mut space = Space([0; 256]);
        space.0[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        space.0[6] = 0x10;
        space.0[0x34] = 0x40;
        for (i, &(id, kind, bytes, bar, offset, length, multiplier)) in capabilities.iter().enumerate() {
            let at = 0x40 + 20 * i;
            let next = if i + 1 < capabilities.len() { u8::try_from(at + 20).unwrap() } else { 0 };
            let mut capability = Vec::from([id, next, bytes, kind, bar, 0, 0, 0]);
            for word in [offset, length, multiplier] {
                capability.extend(word.to_le_bytes());
            }
            space.0[at..at + 20].copy_from_slice(&capability);
        }
        space
    }

    const COMMON: (u8, u8, u8, u8, u32, u32, u32) = (9, 1, 16, 4, 0, 0x1000, 0);
    const NOTIFY: (u8, u8, u8, u8, u32, u32, u32) = (9, 2, 20, 4, 0x3000, 0x1000, 4);
    const DEVICE: (u8, u8, u8, u8, u32, u32, u32) = (9, 4, 16, 4, 0x2000, 0x1000, 0);

    #[test]
    fn the_structures_are_found() {
        // As QEMU has them: MSI-X first, then the vendor's.
        let mut space = card(&[(0x11, 0, 0, 0, 0, 0, 0), (9, 5, 20, 0, 0, 0, 0), NOTIFY, DEVICE, COMMON]);
        let found = find_structures(&mut space, HERE).unwrap();
        assert_eq!(found.common, Structure { bar: 4, offset: 0, length: 0x1000 });
        assert_eq!(found.notify, Structure { bar: 4, offset: 0x3000, length: 0x1000 });
        assert_eq!(found.notify_multiplier, 4);
        assert_eq!(found.device, Structure { bar: 4, offset: 0x2000, length: 0x1000 });
    }

    #[test]
    fn the_first_usable_of_a_kind_counts() {
        let other = (9, 1, 16, 6, 0, 0x1000, 0);
        let short = (9, 2, 16, 0, 0, 0x1000, 2);
        let later = (9, 4, 16, 1, 0, 0x1000, 0);
        let found = find_structures(&mut card(&[other, short, COMMON, NOTIFY, DEVICE, later]), HERE).unwrap();
        assert_eq!((found.common.bar, found.notify.offset, found.device.bar), (4, 0x3000, 4));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |capabilities| find_structures(&mut card(capabilities), HERE).unwrap_err();
        assert_eq!(error(&[NOTIFY, DEVICE]), PciError::Missing("common configuration"));
        assert_eq!(error(&[COMMON, DEVICE]), PciError::Missing("notification"));
        assert_eq!(error(&[COMMON, NOTIFY]), PciError::Missing("device configuration"));
        let mut space = card(&[COMMON, NOTIFY, DEVICE]);
        space.0[6] = 0;
        assert_eq!(find_structures(&mut space, HERE), Err(PciError::Missing("notification")));
        space.0[2] = 0x42;
        assert_eq!(
            find_structures(&mut space, HERE),
            Err(PciError::NotNetwork { vendor: 0x1af4, device: 0x1042 })
        );
    }

    #[test]
    fn a_bad_list_ends() {
        let mut space = card(&[COMMON, NOTIFY]);
        space.0[0x40 + 20 + 1] = 0x40;
        assert_eq!(find_structures(&mut space, HERE), Err(PciError::Missing("device configuration")));
        // A capability at the very end is not read past it.
        let mut space = card(&[]);
        space.0[0x34] = 0xfc;
        space.0[0xfc..].copy_from_slice(&[9, 0, 16, 1]);
        assert_eq!(find_structures(&mut space, HERE), Err(PciError::Missing("notification")));
    }

    #[test]
    fn enabling_keeps_what_was_set() {
        let mut space = card(&[]);
        space.write(HERE, 4, Width::Word, 0x100);
        enable(&mut space, HERE);
        assert_eq!(space.read(HERE, 4, Width::Word), 0x506);
    }
}
