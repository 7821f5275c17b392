//! The FADT: fixed hardware (ACPI 6.5, 5.2.9), and the sleep type of `\_S5` out of the DSDT (7.4.2, 20.2).

use super::{AcpiError, Signature};
use crate::address::PhysAddr;
use crate::physical::field;

const TABLE: Signature = *b"FACP";

/// A register of the chipset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A memory address.
    Memory(PhysAddr),
}

/// Fixed hardware. What a machine has not is `None`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fixed {
    /// The power management timer, 3.579545 MHz, of 24 bits at least.
    pub timer: Option<Register>,
    /// PM1a control, 16 bits: sleep type and enable.
    pub pm1a_control: Option<Register>,
    /// PM1b control, where the sleep must be asked for as well.
    pub pm1b_control: Option<Register>,
    /// The SMI command port, and what to write there (8 bits) to enter ACPI mode from legacy mode.
    pub enable: Option<(u16, u8)>,
    /// A register, and what to write there (8 bits) to reset the machine.
    pub reset: Option<(Register, u8)>,
}

impl Fixed {
    /// Reads a whole table; also returns where the DSDT is (0: nowhere).
    ///
    /// # Errors
    /// [`AcpiError::BadEntry`] when the table ends before the fields of ACPI 1.0 do.
    pub fn parse(table: &[u8]) -> Result<(Self, PhysAddr), AcpiError> {
        let byte = |at| field::<u8>(table, at).ok_or(AcpiError::BadEntry(TABLE, at));
        let word = |at| field::<u32>(table, at).ok_or(AcpiError::BadEntry(TABLE, at));
        let flags = word(112)?;
        // The extended field counts where it is there and not zero; else the old one.
        let block = |extended, old| -> Result<Option<Register>, AcpiError> {
            Ok(generic_address(table, extended).or(port(word(old)?)))
        };
        let value = byte(52)?;
        let fixed = Self {
            timer: block(208, 76)?,
            pm1a_control: block(172, 64)?,
            pm1b_control: block(184, 68)?,
            enable: port(word(48)?).and_then(|register| match register {
                Register::Port(port) if value != 0 => Some((port, value)),
                _ => None,
            }),
            reset: generic_address(table, 116).filter(|_| flags & 1 << 10 != 0).zip(field(table, 128)),
        };
        let dsdt = match field(table, 140) {
            None | Some(0) => word(40)?.into(),
            Some(extended) => extended,
        };
        Ok((fixed, PhysAddr(dsdt)))
    }
}

fn port(number: u32) -> Option<Register> {
    u16::try_from(number).ok().filter(|port| *port != 0).map(Register::Port)
}

/// A generic address structure (ACPI 6.5, 5.2.3.2) in memory or port space.
fn generic_address(table: &[u8], at: usize) -> Option<Register> {
    let address: u64 = field(table, at + 4)?;
    match field::<u8>(table, at)? {
        0 if address != 0 => Some(Register::Memory(PhysAddr(address))),
        1 => port(u32::try_from(address).ok()?),
        _ => None,
    }
}

/// What to write to PM1a and PM1b control to power off: the sleep type in bits 10 to 12, and SLP_EN in bit 13 (ACPI 6.5,
/// 4.8.3.2.1).
///
/// Finds `Name (_S5_, Package () { a, b, .. })` in a definition block by its bytes. AML is not interpreted: all known
/// firmware has the name in this form.
#[must_use]
pub fn soft_off(dsdt: &[u8]) -> Option<[u16; 2]> {
    const NAME_OP: u8 = 0x08;
    const ROOT: u8 = b'\\';
    let places = dsdt.windows(4).enumerate().filter(|(_, name)| *name == b"_S5_").map(|(at, _)| at);
    places
        .filter(|at| {
            let before = dsdt.get(..*at).unwrap_or_default();
            matches!(before, [.., NAME_OP] | [.., NAME_OP, ROOT])
        })
        .find_map(|at| package(dsdt.get(at + 4..)?))
}

/// The first two integers of a package, as sleep types.
fn package(aml: &[u8]) -> Option<[u16; 2]> {
    const PACKAGE_OP: u8 = 0x12;
    let [PACKAGE_OP, lead, ..] = aml else { return None };
    // The package's length is in the lead byte and up to three more, whose number is the lead byte's top two bits.
    let elements = aml.get(2 + usize::from(lead >> 6)..)?;
    let (count, elements) = elements.split_first()?;
    if *count < 2 {
        return None;
    }
    let (a, rest) = integer(elements)?;
    let (b, _) = integer(rest)?;
    Some([a, b].map(|kind| u16::from(kind) << 10 | 1 << 13))
}

/// A small integer constant (ACPI 6.5, 20.2.3) and what follows it.
fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    let (value, rest) = match aml {
        [value @ (0 | 1), rest @ ..] => (*value, rest),
        [0x0a, value, rest @ ..] => (*value, rest),
        [0x0b, value, 0, rest @ ..] => (*value, rest),
        [0x0c, value, 0, 0, 0, rest @ ..] => (*value, rest),
        _ => return None,
    };
    (value < 8).then_some((value, rest))
}
