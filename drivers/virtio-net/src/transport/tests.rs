//! The PCI transport against a register file.

use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::*;

/// A register write: offset, width, value.
type Write = (usize, u8, u32);

/// A BAR: plain bytes, with a log of writes.
#[derive(Clone)]
struct File(Rc<RefCell<(Vec<u8>, Vec<Write>)>>);

impl File {
    fn new() -> Self {
        Self(Rc::new(RefCell::new((vec![0; 0x4000], vec![]))))
    }

    fn set(&self, offset: usize, bytes: &[u8]) {
        self.0.borrow_mut().0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert_eq!(offset % N, 0, "misaligned");
        self.0.borrow().0[offset..offset + N].try_into().unwrap()
    }

    fn write(&self, offset: usize, bytes: &[u8], value: u32) {
        assert_eq!(offset % bytes.len(), 0, "misaligned");
        self.set(offset, bytes);
        self.0.borrow_mut().1.push((offset, u8::try_from(bytes.len()).unwrap(), value));
    }

    fn writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.0.borrow_mut().1)
    }
}

impl Registers for File {
    fn length(&self) -> usize {
        0x4000
    }
    fn read_u8(&self, offset: usize) -> u8 {
        self.get::<1>(offset)[0]
    }
    fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }
    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, &value.to_le_bytes(), value.into());
    }
    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, &value.to_le_bytes(), value.into());
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes(), value);
    }
}

const GOOD: Structures = Structures {
    common: Structure { bar: 4, offset: 0, length: 0x1000 },
    notify: Structure { bar: 4, offset: 0x3000, length: 0x1000 },
    notify_multiplier: 4,
    device: Structure { bar: 4, offset: 0x2000, length: 0x1000 },
};

fn open(file: &File, structures: &Structures) -> Result<ModernPci<File>, TransportError> {
    ModernPci::new(structures, |bar| (bar == 4).then(|| file.clone()))
}

#[test]
fn registers_are_where_the_standard_says() {
    let file = File::new();
    let mut pci = open(&file, &GOOD).unwrap();
    pci.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    assert_eq!(file.writes(), [(20, 1, 3)]);
    assert_eq!(pci.get_status(), DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    pci.write_driver_features(0x1_0000_0020);
    assert_eq!(file.writes(), [(8, 4, 0), (12, 4, 0x20), (8, 4, 1), (12, 4, 1)]);
    file.set(4, &7u32.to_le_bytes());
    assert_eq!(pci.read_device_features(), 7 << 32 | 7);
    assert_eq!(file.writes(), [(0, 4, 1), (0, 4, 0)]);
    pci.queue_set(1, 256, 0x1_2345_6000, 0x2_0000_0010, 0x3_0000_0020);
    let expected = [
        (22, 2, 1),
        (24, 2, 256),
        (32, 4, 0x2345_6000),
        (36, 4, 1),
        (40, 4, 0x10),
        (44, 4, 2),
        (48, 4, 0x20),
        (52, 4, 3),
        (28, 2, 1),
    ];
    assert_eq!(file.writes(), expected);
    assert!(pci.queue_used(1));
    assert_eq!(pci.max_queue_size(1), 256);
}

#[test]
fn interrupts_are_routed_and_a_refusal_is_seen() {
    let file = File::new();
    let mut pci = open(&file, &GOOD).unwrap();
    pci.route(InterruptCause::Configuration, Some(0)).unwrap();
    pci.route(InterruptCause::Queue(1), None).unwrap();
    assert_eq!(file.writes(), [(16, 2, 0), (22, 2, 1), (26, 2, 0xffff)]);

    struct Refusing(File);
    impl Registers for Refusing {
        fn length(&self) -> usize {
            self.0.length()
        }
        fn read_u8(&self, offset: usize) -> u8 {
            self.0.read_u8(offset)
        }
        fn read_u16(&self, offset: usize) -> u16 {
            if offset == 26 { 0xffff } else { self.0.read_u16(offset) }
        }
        fn read_u32(&self, offset: usize) -> u32 {
            self.0.read_u32(offset)
        }
        fn write_u8(&self, offset: usize, value: u8) {
            self.0.write_u8(offset, value);
        }
        fn write_u16(&self, offset: usize, value: u16) {
            self.0.write_u16(offset, value);
        }
        fn write_u32(&self, offset: usize, value: u32) {
            self.0.write_u32(offset, value);
        }
    }
    let mut pci = ModernPci::new(&GOOD, |_| Some(Refusing(file.clone()))).unwrap();
    let cause = InterruptCause::Queue(0);
    assert_eq!(pci.route(cause, Some(9)), Err(TransportError::Vector { cause, entry: 9 }));
}

#[test]
fn a_doorbell_is_one_write_within_its_structure() {
    let file = File::new();
    file.set(30, &3u16.to_le_bytes());
    let mut pci = open(&file, &GOOD).unwrap();
    pci.notify(1);
    assert_eq!(file.writes(), []);
    pci.find_doorbell(1).unwrap();
    file.writes();
    pci.notify(1);
    assert_eq!(file.writes(), [(0x300c, 2, 1)]);
    assert_eq!(pci.find_doorbell(2), Err(TransportError::Doorbell { queue: 2, offset: 12 }));
    for (number, multiplier) in [(0x400, 4), (0xffff, u32::MAX), (1, 3)] {
        file.set(30, &u16::to_le_bytes(number));
        let mut pci = open(&file, &Structures { notify_multiplier: multiplier, ..GOOD }).unwrap();
        let offset = u64::from(number) * u64::from(multiplier);
        assert_eq!(pci.find_doorbell(0), Err(TransportError::Doorbell { queue: 0, offset }));
    }
}

#[test]
fn the_device_configuration_is_bounded() {
    let file = File::new();
    file.set(0x2000, &[1, 2, 3, 4, 5, 6, 1, 0, 0, 0, 0x26, 0x10]);
    let structures = Structures { device: Structure { length: 12, ..GOOD.device }, ..GOOD };
    let pci = open(&file, &structures).unwrap();
    assert_eq!(pci.read_config_space::<[u8; 6]>(0), Ok([1, 2, 3, 4, 5, 6]));
    assert_eq!(pci.read_config_space::<u16>(10), Ok(0x1026));
    assert_eq!(pci.read_config_space::<u16>(12), Err(Error::ConfigSpaceTooSmall));
    assert_eq!(pci.read_config_space::<u16>(usize::MAX), Err(Error::ConfigSpaceTooSmall));
}

#[test]
fn structures_out_of_their_bar_are_refused() {
    let file = File::new();
    let error = |structures| open(&file, &structures).err().unwrap();
    let common = "common configuration";
    for structure in [
        Structure { bar: 4, offset: 0x3ffc, length: 56 },
        Structure { bar: 4, offset: 0, length: 55 },
        Structure { bar: 4, offset: u32::MAX, length: u32::MAX },
    ] {
        let expected = TransportError::NoRoom { structure: common, bar: 4 };
        assert_eq!(error(Structures { common: structure, ..GOOD }), expected);
    }
    let structure = Structure { bar: 1, ..GOOD.common };
    let expected = TransportError::NoRoom { structure: common, bar: 1 };
    assert_eq!(error(Structures { common: structure, ..GOOD }), expected);
    let structure = Structure { offset: 2, ..GOOD.common };
    assert_eq!(error(Structures { common: structure, ..GOOD }), TransportError::Misaligned(common));
}
