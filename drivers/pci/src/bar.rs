//! Base address registers: where a function's memory and ports are, and how much of them.

use core::fmt;

use crate::config::{Address, Command, ConfigAccess, Width, update_command};
use crate::enumerate::{Function, HeaderKind};

/// The most BARs of a function.
pub const MAX_BARS: usize = 6;
/// A function's BARs by their number. The upper half of a 64-bit BAR and a BAR that is not there are `None`.
pub type Bars = [Option<Bar>; MAX_BARS];

/// Whether reads have side effects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prefetch {
    /// They have not.
    Allowed,
    /// They may have.
    Forbidden,
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BarKind {
    /// Memory, at an address of 32 bits.
    Memory32(Prefetch),
    /// Memory, at an address of 64 bits; the BAR of the next number is its upper half.
    Memory64(Prefetch),
    /// I/O ports.
    Io,
}

/// A BAR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Where, on the bus; 0 when nobody gave it an address yet.
    pub address: u64,
    /// Bytes or ports, a power of two.
    pub size: u64,
}

/// Why a BAR is refused, with its number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BarError {
    /// Its type is reserved.
    ReservedType(u8),
    /// It has 64 bits, but is the last.
    NoUpperHalf(u8),
    /// Its size is no power of two.
    BadSize(u8),
    /// Its address is no multiple of its size, or it ends past the last address.
    BadAddress(u8),
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReservedType(bar) => write!(f, "BAR {bar} is of a reserved type"),
            Self::NoUpperHalf(bar) => write!(f, "BAR {bar} has no upper half"),
            Self::BadSize(bar) => write!(f, "the size of BAR {bar} is no power of two"),
            Self::BadAddress(bar) => write!(f, "the address of BAR {bar} does not suit its size"),
        }
    }
}

impl core::error::Error for BarError {}

/// Decodes and sizes a function's BARs. While it is sized, a BAR holds a nonsense address, so the function answers
/// nowhere until all are as they were: nobody else may be using it.
///
/// # Errors
/// The first [`BarError`]; BARs and command register are restored then as well.
pub fn bars(config: &mut impl ConfigAccess, function: &Function) -> Result<Bars, BarError> {
    let count = match function.header {
        HeaderKind::General => 6,
        HeaderKind::Bridge { .. } => 2,
        HeaderKind::Other(_) => 0,
    };
    let address = function.address;
    let old = update_command(config, address, Command::IO.and(Command::MEMORY), Command::NONE);
    let result = all(config, address, count);
    config.write(address, 4, Width::Word, u32::from(old.0));
    result
}

fn all(config: &mut impl ConfigAccess, function: Address, count: u8) -> Result<Bars, BarError> {
    let mut bars = [None; MAX_BARS];
    let mut number = 0;
    while number < count {
        let bar = one(config, function, number, count)?;
        let step = match bar {
            Some(Bar { kind: BarKind::Memory64(_), .. }) => 2,
            _ => 1,
        };
        if let Some(slot) = bars.get_mut(usize::from(number)) {
            *slot = bar;
        }
        number += step;
    }
    Ok(bars)
}

fn one(
    config: &mut impl ConfigAccess,
    function: Address,
    number: u8,
    count: u8,
) -> Result<Option<Bar>, BarError> {
    let (low, writable) = size(config, function, number);
    // A register that is not there is zero, and stays zero.
    if writable == 0 {
        return Ok(None);
    }
    let prefetch = if low & 1 << 3 == 0 { Prefetch::Forbidden } else { Prefetch::Allowed };
    let (kind, address, mask) = match (low & 1, low >> 1 & 3) {
        // The upper 16 bits of a port's number need not be there.
        (1, _) => (BarKind::Io, u64::from(low & !3), u64::from(writable & !3 | 0xffff_0000) | !0xffff_ffff),
        (_, 0) => {
            (BarKind::Memory32(prefetch), u64::from(low & !0xf), u64::from(writable & !0xf) | !0xffff_ffff)
        }
        (_, 2) if number + 1 < count => {
            let (high, high_writable) = size(config, function, number + 1);
            let address = u64::from(high) << 32 | u64::from(low & !0xf);
            (
                BarKind::Memory64(prefetch),
                address,
                u64::from(high_writable) << 32 | u64::from(writable & !0xf),
            )
        }
        (_, 2) => return Err(BarError::NoUpperHalf(number)),
        _ => return Err(BarError::ReservedType(number)),
    };
    // All bits from the size's on can be written, and none below.
    let size = (!mask).wrapping_add(1);
    if !size.is_power_of_two() {
        return Err(BarError::BadSize(number));
    }
    if !address.is_multiple_of(size) || address.checked_add(size).is_none() {
        return Err(BarError::BadAddress(number));
    }
    Ok(Some(Bar { kind, address, size }))
}

/// What a BAR's register holds, and which of its bits can be written (and of the type bits, which are one).
fn size(config: &mut impl ConfigAccess, function: Address, number: u8) -> (u32, u32) {
    let offset = 0x10 + 4 * u16::from(number);
    let old = config.read(function, offset, Width::Dword);
    config.write(function, offset, Width::Dword, u32::MAX);
    let writable = config.read(function, offset, Width::Dword);
    config.write(function, offset, Width::Dword, old);
    (old, writable)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::enumerate;
    use crate::simulated::{AllOnes, Noise, Simulated};

    /// A function with these BARs: value, and mask of the bits that can be written.
    fn with(registers: &[(u32, u32)]) -> (Simulated, Function) {
        let mut config = Simulated::default();
        config.add(0, 1, 0);
        config.set(0, 1, 0, 4, &[7, 4]);
        for (offset, (value, mask)) in (0x10..).step_by(4).zip(registers) {
            config.set(0, 1, 0, offset, &value.to_le_bytes());
            config.writable(0, 1, 0, offset, *mask);
        }
        let function = enumerate::function(&mut config, Address::new(0, 1, 0).unwrap()).unwrap();
        (config, function)
    }

    #[test]
    fn every_kind_is_decoded_and_left_as_it_was() {
        let (mut config, function) = with(&[
            (0xc001, 0xffe0),
            (0xfebf_1000, 0xffff_f000),
            (0x4000_000c, 0xffff_0000),
            (0x12, 0xffff_ffff),
            (0xc, 0),
            (0xffff_fffc, 0xffff_ffff),
        ]);
        config.set(0, 1, 0, 0x20, &[0; 4]);
        config.set(0, 1, 0, 0x24, &[0, 0, 0, 0xff]);
        config.writable(0, 1, 0, 0x24, 0xff00_0000);
        let before = config.clone();
        let found = bars(&mut config, &function).unwrap();
        let bar = |kind, address, size| Some(Bar { kind, address, size });
        assert_eq!(
            found,
            [
                bar(BarKind::Io, 0xc000, 32),
                bar(BarKind::Memory32(Prefetch::Forbidden), 0xfebf_1000, 4096),
                bar(BarKind::Memory64(Prefetch::Allowed), 0x12_4000_0000, 1 << 16),
                None,
                None,
                bar(BarKind::Memory32(Prefetch::Forbidden), 0xff00_0000, 1 << 24),
            ]
        );
        assert_eq!(config.registers(), before.registers());
        assert!(!config.decoded_while_sizing, "the function answered while a BAR was wrong");
    }

    #[test]
    fn a_bar_above_4_gib_of_size_is_one() {
        let (mut config, function) = with(&[(0xc, 0), (8, 0xffff_fff8)]);
        let found = bars(&mut config, &function).unwrap();
        assert_eq!(found[0].map(|bar| (bar.address, bar.size)), Some((8 << 32, 8 << 32)));
    }

    #[test]
    fn what_is_wrong_is_said_and_restored() {
        for (registers, error, text) in [
            (&[(2, !0xf)][..], BarError::ReservedType(0), "BAR 0 is of a reserved type"),
            (&[(0, 0), (0, 0xfff0_0ff0)], BarError::BadSize(1), "the size of BAR 1 is no power of two"),
            (
                &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (4, !0xf)],
                BarError::NoUpperHalf(5),
                "BAR 5 has no upper half",
            ),
            (&[(0x1000, 0xffff_0000)], BarError::BadSize(0), "the size of BAR 0 is no power of two"),
            (
                &[(0xffff_f004, 0xffff_f000), (!0, !0)],
                BarError::BadAddress(0),
                "the address of BAR 0 does not suit its size",
            ),
        ] {
            let (mut config, function) = with(registers);
            let before = config.clone();
            assert_eq!(bars(&mut config, &function), Err(error));
            assert_eq!(std::format!("{error}"), text);
            assert_eq!(config.registers(), before.registers());
        }
    }

    #[test]
    fn what_answers_nonsense_does_no_harm() {
        let (_, general) = with(&[]);
        let bridge = Function { header: HeaderKind::Bridge { secondary: 0 }, ..general };
        for function in [general, bridge] {
            assert!(bars(&mut AllOnes, &function).is_ok());
            for seed in 0..1000 {
                for bar in bars(&mut Noise::new(seed), &function).into_iter().flatten().flatten() {
                    assert!(bar.size.is_power_of_two() && bar.address.checked_add(bar.size).is_some());
                }
            }
        }
    }
}
