//! Integer arithmetic with its flags (AMD APM 3, each instruction's "rFLAGS Affected").
//!
//! Operands are cut to the width by the functions here. Flags that the manuals leave undefined are what processors make
//! them: AF is cleared by logic, and bit tests change CF alone.

use super::registers::Width;

pub(super) const CF: u64 = 1;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const OF: u64 = 1 << 11;
/// The flags of arithmetic.
pub(super) const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// A result, and the flags that it sets of [`ALL`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Computed {
    pub(super) value: u64,
    pub(super) flags: u64,
}

const fn set_if(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// ZF, SF and PF.
const fn of_result(value: u64, width: Width) -> u64 {
    set_if(value == 0, ZF)
        | set_if(value & width.sign() != 0, SF)
        | set_if((value & 0xff).count_ones().is_multiple_of(2), PF)
}

/// `a + b + carry`; `carry` is 0 or 1.
pub(super) const fn add(a: u64, b: u64, carry: u64, width: Width) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let value = a.wrapping_add(b).wrapping_add(carry) & width.mask();
    // The carry out of each bit.
    let carries = a & b | (a | b) & !value;
    let flags = of_result(value, width)
        | set_if(carries & width.sign() != 0, CF)
        | set_if(carries & 8 != 0, AF)
        | set_if((a ^ value) & (b ^ value) & width.sign() != 0, OF);
    Computed { value, flags }
}

/// `a - b - borrow`; `borrow` is 0 or 1.
pub(super) const fn sub(a: u64, b: u64, borrow: u64, width: Width) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    // The borrow out of each bit.
    let borrows = !a & b | (!a | b) & value;
    let flags = of_result(value, width)
        | set_if(borrows & width.sign() != 0, CF)
        | set_if(borrows & 8 != 0, AF)
        | set_if((a ^ b) & (a ^ value) & width.sign() != 0, OF);
    Computed { value, flags }
}

/// The flags of `AND`, `OR`, `XOR` and `TEST` with this result.
pub(super) const fn logic(value: u64, width: Width) -> Computed {
    let value = value & width.mask();
    Computed { value, flags: of_result(value, width) }
}
