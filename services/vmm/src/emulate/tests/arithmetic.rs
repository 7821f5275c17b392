//! Results and flags against a model that knows nothing of carries between bits: integers wide enough for any result.

use super::super::alu::{self, Computed};
use super::super::registers::Width;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

fn unsigned(value: u64, bits: u32) -> i128 {
    i128::from(value) % (1 << bits)
}

fn signed(value: u64, bits: u32) -> i128 {
    let value = unsigned(value, bits);
    if value >= 1 << (bits - 1) { value - (1 << bits) } else { value }
}

/// What the exact results of the operation on all of both, on their low four bits, and on signed numbers make.
fn model(exact: i128, low: i128, of_signed: i128, bits: u32) -> Computed {
    let value = exact.rem_euclid(1 << bits);
    let range = -(1i128 << (bits - 1))..1 << (bits - 1);
    let parity = (0..8).filter(|bit| value >> bit & 1 == 1).count();
    let conditions = [
        (exact != value, 0),
        (parity % 2 == 0, 2),
        (!(0..16).contains(&low), 4),
        (value == 0, 6),
        (value >> (bits - 1) == 1, 7),
        (!range.contains(&of_signed), 11),
    ];
    let flags = conditions.iter().map(|&(set, bit)| u64::from(set) << bit).sum();
    Computed { value: u64::try_from(value).unwrap(), flags }
}

fn model_add(a: u64, b: u64, carry: u64, bits: u32) -> Computed {
    let sum = |f: fn(u64, u32) -> i128, bits| f(a, bits) + f(b, bits) + i128::from(carry);
    model(sum(unsigned, bits), sum(unsigned, 4), sum(signed, bits), bits)
}

fn model_sub(a: u64, b: u64, borrow: u64, bits: u32) -> Computed {
    let difference = |f: fn(u64, u32) -> i128, bits| f(a, bits) - f(b, bits) - i128::from(borrow);
    model(difference(unsigned, bits), difference(unsigned, 4), difference(signed, bits), bits)
}

fn compare(a: u64, b: u64, carry: u64) {
    for width in WIDTHS {
        let bits = width.bits();
        assert_eq!(
            alu::add(a, b, carry, width),
            model_add(a, b, carry, bits),
            "{a:x} + {b:x} + {carry}, {width:?}"
        );
        assert_eq!(
            alu::sub(a, b, carry, width),
            model_sub(a, b, carry, bits),
            "{a:x} - {b:x} - {carry}, {width:?}"
        );
        let logic = model(unsigned(a & b, bits), 0, 0, bits);
        assert_eq!(alu::logic(a & b, width), logic, "{a:x} & {b:x}, {width:?}");
    }
}

#[test]
fn bytes_all_of_them() {
    for a in 0..=0xff {
        for b in 0..=0xff {
            for carry in 0..2 {
                let (add, sub) = (alu::add(a, b, carry, Width::Byte), alu::sub(a, b, carry, Width::Byte));
                assert_eq!(add, model_add(a, b, carry, 8), "{a:x} + {b:x} + {carry}");
                assert_eq!(sub, model_sub(a, b, carry, 8), "{a:x} - {b:x} - {carry}");
            }
        }
    }
}

#[test]
fn the_edges_of_every_width() {
    let edges =
        [0, 1, 0xf, 0x10, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let wide = [i64::MAX as u64, 1 << 63, u64::MAX, u64::MAX << 32];
    for &a in edges.iter().chain(&wide) {
        for &b in edges.iter().chain(&wide) {
            compare(a, b, 0);
            compare(a, b, 1);
        }
    }
}

#[test]
fn random_operands() {
    let mut rng = ChaCha8Rng::seed_from_u64(0x0a10);
    for _ in 0..20_000 {
        compare(rng.random(), rng.random(), rng.random_range(0..2));
    }
}

#[test]
fn signs_are_extended() {
    assert_eq!(Width::Byte.sign_extend(0x1_80), u64::MAX << 7);
    assert_eq!(Width::Word.sign_extend(0x7fff), 0x7fff);
    assert_eq!(Width::Dword.sign_extend(0x8000_0000), u64::MAX << 31);
    assert_eq!(Width::Qword.sign_extend(u64::MAX), u64::MAX);
}
