//! Every MSR of the local APIC with every kind of value, against the manual's table (Intel SDM 3A, table 11-6 and the figures
//! that it refers to).

use super::*;

const READ: u8 = 1;
const WRITE: u8 = 2;

/// First and last MSR, what can be done, and the bits that may be written.
const TABLE: [(u32, u32, u8, u64); 23] = [
    (0x802, 0x802, READ, 0),
    (0x803, 0x803, READ, 0),
    (0x808, 0x808, READ | WRITE, 0xff),
    (0x80a, 0x80a, READ, 0),
    (0x80b, 0x80b, WRITE, 0),
    (0x80d, 0x80d, READ, 0),
    (0x80f, 0x80f, READ | WRITE, 0x13ff),
    (0x810, 0x817, READ, 0),
    (0x818, 0x81f, READ, 0),
    (0x820, 0x827, READ, 0),
    (0x828, 0x828, READ | WRITE, 0),
    (0x82f, 0x82f, READ | WRITE, 0x1_17ff),
    (0x830, 0x830, READ | WRITE, 0xffff_ffff_000c_cfff),
    (0x832, 0x832, READ | WRITE, 0x7_10ff),
    (0x833, 0x833, READ | WRITE, 0x1_17ff),
    (0x834, 0x834, READ | WRITE, 0x1_17ff),
    (0x835, 0x835, READ | WRITE, 0x1_f7ff),
    (0x836, 0x836, READ | WRITE, 0x1_f7ff),
    (0x837, 0x837, READ | WRITE, 0x1_10ff),
    (0x838, 0x838, READ | WRITE, 0xffff_ffff),
    (0x839, 0x839, READ, 0),
    (0x83e, 0x83e, READ | WRITE, 0xb),
    (0x83f, 0x83f, WRITE, 0xff),
];

fn table(msr: u32) -> (u8, u64) {
    let row = TABLE.iter().find(|&&(first, last, ..)| (first..=last).contains(&msr));
    row.map_or((0, 0), |&(_, _, can, bits)| (can, bits))
}

fn values(rng: &mut ChaCha8Rng, bits: u64) -> Vec<u64> {
    let mut values: Vec<u64> = (0..64).map(|bit| 1 << bit).collect();
    values.extend([0, bits, u64::MAX, u32::MAX.into()]);
    values.extend((0..50).map(|_| rng.random::<u64>() & bits));
    values.extend((0..20).map(|_| rng.random::<u64>()));
    values.extend((0..20).map(|_| rng.random::<u64>() & bits | 1 << rng.random_range(0..64)));
    values
}

#[test]
fn general_protection_exactly_where_the_manual_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut apic = enabled();
    let mut now = 0;
    for _ in 0..20 {
        for msr in 0x7f0..0x910 {
            let (can, bits) = table(msr);
            assert_eq!(apic.read(msr, now).is_ok(), can & READ != 0, "{msr:#x}");
            for value in values(&mut rng, bits) {
                let before = apic;
                let written = apic.write(msr, value, now);
                assert_eq!(written.is_ok(), can & WRITE != 0 && value & !bits == 0, "{msr:#x} {value:#x}");
                if written.is_err() {
                    assert_eq!(apic, before);
                }
                now += rng.random_range(0..1_000);
            }
        }
    }
}

#[test]
fn without_x2apic_mode_there_are_no_registers() {
    let mut apic = enabled();
    for base in [0xfee0_0000, 0xfee0_0800] {
        write(&mut apic, 0x1b, base);
        for msr in 0x800..0x900 {
            assert_eq!(apic.read(msr, 0), Err(GeneralProtection));
            assert_eq!(apic.write(msr, 0, 0), Err(GeneralProtection));
        }
        write(&mut apic, 0x6e0, 5);
        assert_eq!(apic.read(0x6e0, 0), Ok(0));
    }
}

#[test]
fn values_as_after_a_reset() {
    let apic = reset();
    for (msr, value) in [
        (0x1b, 0xfee0_0d00),
        (0x6e0, 0),
        (0x802, 0x25),
        (0x803, 0x0106_0014),
        (0x808, 0),
        (0x80a, 0),
        (0x80d, 0x0002_0020),
        (0x80f, 0xff),
        (0x828, 0),
        (0x830, 0),
        (0x838, 0),
        (0x839, 0),
        (0x83e, 0),
    ] {
        assert_eq!(apic.read(msr, 12_345), Ok(value), "{msr:#x}");
    }
    for msr in [0x82f, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837] {
        assert_eq!(apic.read(msr, 0), Ok(0x1_0000), "{msr:#x}");
    }
    assert_eq!(apic.spurious_vector(), 0xff);
    assert_eq!(apic.next_due(), None);
}

#[test]
fn what_is_written_is_read_but_for_what_only_the_apic_writes() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut apic = enabled();
    for _ in 0..2_000 {
        for msr in [0x808, 0x82f, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x83e] {
            let value = rng.random::<u64>() & table(msr).1;
            assert!(apic.write(msr, value, 0).is_ok());
            // Delivery status and Remote IRR.
            let kept = if (0x832..=0x837).contains(&msr) || msr == 0x82f { value & !0x5000 } else { value };
            assert_eq!(apic.read(msr, 0), Ok(kept));
        }
    }
}

#[test]
fn transitions_of_the_base_register() {
    // Bits 10 and 11 of what is and of what is written, and whether hardware takes it (figure 11-27).
    let (off, xapic, x2apic, invalid) = (0, 2, 3, 1);
    for (from, to, is_taken) in [
        (x2apic, x2apic, true),
        (x2apic, xapic, false),
        (x2apic, off, true),
        (x2apic, invalid, false),
        (xapic, x2apic, true),
        (xapic, xapic, true),
        (xapic, off, true),
        (xapic, invalid, false),
        (off, x2apic, false),
        (off, xapic, true),
        (off, off, true),
        (off, invalid, false),
    ] {
        let mut apic = enabled();
        let way: &[u64] = if from == x2apic { &[] } else { &[off, xapic] };
        for &step in way.iter().take(if from == off { 1 } else { 2 }) {
            write(&mut apic, 0x1b, 0xfee0_0100 | step << 10);
        }
        let value = 0xfee0_0100 | to << 10;
        let before = apic.read(0x1b, 0).unwrap();
        assert_eq!(before >> 10 & 3, from);
        assert_eq!(apic.write(0x1b, value, 0).is_ok(), is_taken, "{from} {to}");
        assert_eq!(apic.read(0x1b, 0), Ok(if is_taken { value } else { before }));
    }
    // Reserved bits; 40 bits of physical address.
    let mut apic = enabled();
    for bit in 0..64u64 {
        let is_taken = bit == 8 || bit == 10 || bit == 11 || (12..40).contains(&bit);
        assert_eq!(apic.write(0x1b, 0xc00 | 1 << bit, 0).is_ok(), is_taken, "{bit}");
    }
    // Off and on again is a reset.
    let mut apic = enabled();
    apic.accept(0x40, Trigger::Edge);
    for base in [0xfee0_0100, 0xfee0_0900, 0xfee0_0d00] {
        write(&mut apic, 0x1b, base);
    }
    assert_eq!(apic, reset());
}
