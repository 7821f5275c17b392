//! Tables built here, good and damaged.

extern crate std;
use std::{format, vec::Vec};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::fadt::Register;
use super::madt::{IoApic, Override, Polarity, Signal};
use super::*;
use crate::machine::Trigger;
use crate::physical::fake::Pieces;

const RSDP: u64 = 0xf_5a40;
const MADT_AT: usize = 2;

fn fix_sum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = sum(bytes).wrapping_neg();
}

fn make(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = Vec::from(&signature[..]);
    table.extend((HEADER_BYTES as u32 + body.len() as u32).to_le_bytes());
    table.resize(HEADER_BYTES, 0);
    table.extend(body);
    fix_sum(&mut table, 9);
    table
}

fn rsdp(revision: u8, xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::from(*b"RSD PTR \0UNUM  ");
    bytes.push(revision);
    bytes.extend(0x1000_u32.to_le_bytes());
    fix_sum(&mut bytes, 8);
    if revision >= 2 {
        bytes.extend(36_u32.to_le_bytes());
        bytes.extend(xsdt.to_le_bytes());
        bytes.extend([0; 4]);
        fix_sum(&mut bytes, 32);
    }
    bytes
}

fn madt() -> Vec<u8> {
    let body: [&[u8]; 15] = [
        &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0],
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 2, 0, 0, 0],
        &[0, 8, 2, 2, 0, 0, 0, 0],
        &[0, 8, 3, 255, 1, 0, 0, 0],
        &[9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
        &[1, 12, 7, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xf, 0],
        &[3, 8, 0xd, 0, 23, 0, 0, 0],
        &[4, 6, 0xff, 5, 0, 1],
        &[10, 12, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        &[0x80, 3, 1],
        &[5, 12, 0, 0, 0, 0, 0xe1, 0xfe, 1, 0, 0, 0],
    ];
    make(b"APIC", &body.concat())
}

fn fadt() -> Vec<u8> {
    let mut body = [0; 244 - HEADER_BYTES];
    for (at, bytes) in [
        (40, &0x5000_u32.to_le_bytes()[..]),
        (48, &0xb2_u32.to_le_bytes()),
        (52, &[0xf1]),
        (64, &0x604_u32.to_le_bytes()),
        (76, &0x608_u32.to_le_bytes()),
        (112, &(1_u32 << 8 | 1 << 10).to_le_bytes()),
        (116, &[1, 8, 0, 0, 0xf9, 0x0c]),
        (128, &[0xf]),
        (184, &[0, 16, 0, 0, 0, 0x20, 0xd0, 0xfe]),
    ] {
        body[at - HEADER_BYTES..][..bytes.len()].copy_from_slice(bytes);
    }
    make(b"FACP", &body)
}

fn mcfg() -> Vec<u8> {
    make(b"MCFG", &[&[0; 8][..], &0xb000_0000_u64.to_le_bytes(), &[0, 0, 0, 255, 0, 0, 0, 0]].concat())
}

/// What QEMU's q35 has: a `\_S5` package with a byte and zeros.
const S5: [u8; 12] = [0x08, b'_', b'S', b'5', b'_', 0x12, 6, 4, 0x0a, 5, 0x01, 0];

fn machine() -> Pieces {
    let addresses = [0x3000_u32, 0x2000, 0xdead_0000, 0x4000];
    let rsdt: Vec<u8> = addresses.iter().flat_map(|at| at.to_le_bytes()).collect();
    let xsdt: Vec<u8> = addresses.iter().flat_map(|at| u64::from(*at).to_le_bytes()).collect();
    Pieces::default()
        .with(0x1000, make(b"RSDT", &rsdt))
        .with(0x1800, make(b"XSDT", &xsdt))
        .with(0x2000, madt())
        .with(0x3000, fadt())
        .with(0x4000, mcfg())
        .with(0x5000, make(b"DSDT", &[b"junk_S5_more\x10"[..].to_vec(), S5.to_vec()].concat()))
}

fn read_at(pieces: &Pieces, rsdp: u64) -> Result<Acpi, AcpiError> {
    Acpi::read(pieces, &RsdpLocation::Address(PhysAddr(rsdp)))
}

#[test]
fn all_of_it_is_read_through_both_roots() {
    for rsdp in [rsdp(0, 0), rsdp(2, 0x1800), rsdp(2, 0)] {
        let acpi = read_at(&machine().with(RSDP, rsdp), RSDP).unwrap();
        let madt = acpi.madt;
        // Not 1, which may be plugged in later, nor 2, which is not there.
        assert_eq!(madt.processors, [0, 256]);
        assert_eq!(madt.io_apics, [IoApic { address: PhysAddr(0xfec0_0000), gsi_base: 0 }]);
        let low_level = Signal { polarity: Polarity::Low, trigger: Trigger::Level };
        assert_eq!(madt.isa(0), Override { line: 0, gsi: 2, signal: Signal::ISA });
        assert_eq!(madt.isa(9), Override { line: 9, gsi: 9, signal: low_level });
        assert_eq!(madt.isa(3), Override { line: 3, gsi: 3, signal: Signal::ISA });
        let base = PhysAddr(0xb000_0000);
        assert_eq!(acpi.ecam, [EcamSegment { base, segment: 0, first_bus: 0, last_bus: 255 }]);
        assert_eq!(
            acpi.fixed,
            Fixed {
                timer: Some(Register::Port(0x608)),
                pm1a_control: Some(Register::Port(0x604)),
                pm1b_control: Some(Register::Memory(PhysAddr(0xfed0_2000))),
                enable: Some((0xb2, 0xf1)),
                reset: Some((Register::Port(0xcf9), 0xf)),
            }
        );
        assert_eq!(acpi.soft_off, Some([0x3400, 0x2400]));
    }
}

#[test]
fn the_root_pointer_is_found_wherever_it_is() {
    let mut copy = [0; 36];
    copy[..20].copy_from_slice(&rsdp(0, 0));
    assert!(Acpi::read(&machine(), &RsdpLocation::Copy(copy)).is_ok());
    assert!(Acpi::read(&machine().with(0xf_fff0 - 16, rsdp(2, 0x1800)), &RsdpLocation::Unknown).is_ok());
    let ebda = machine().with(0x40e, [0xc0, 0x9f]).with(0x9_fc10, rsdp(0, 0));
    assert!(Acpi::read(&ebda, &RsdpLocation::Unknown).is_ok());
    // Not on a multiple of 16, and not at all.
    for memory in [machine().with(0xf_0008, rsdp(2, 0x1800)), machine()] {
        let error = Acpi::read(&memory, &RsdpLocation::Unknown).unwrap_err();
        assert_eq!(format!("{error}"), "no valid root pointer (RSDP)");
    }
    for at in [0, 8, 15, 16, 19, 24, 35] {
        let mut damaged = rsdp(2, 0x1800);
        damaged[at] ^= 0x40;
        let error = read_at(&machine().with(RSDP, damaged), RSDP).unwrap_err();
        assert_eq!(error, AcpiError::NoRootPointer, "byte {at}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let refusal = |change: &dyn Fn(&mut Pieces)| {
        let mut pieces = machine().with(RSDP, rsdp(2, 0x1800));
        change(&mut pieces);
        format!("{}", read_at(&pieces, RSDP).unwrap_err())
    };
    assert_eq!(refusal(&|p| p.0[1].0 = 0x1808), "XSDT at 0x1800 is not in memory");
    assert_eq!(refusal(&|p| p.0[1].1[0] = b'\n'), "the table that should be XSDT is \\nSDT");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1[50] ^= 1), "APIC has a wrong checksum");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1[4] = 35), "APIC has the absurd length 35");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1[7] = 1), "APIC has the absurd length 16777397");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1[6] = 1), "APIC at 0x2000 is not in memory");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1[0] = 0), "there is no APIC table");
    assert_eq!(refusal(&|p| p.0[MADT_AT].1 = make(b"APIC", &[0; 9])), "APIC is malformed at offset 44");
    let entry = |entry: &[u8]| [&[0; 8], entry].concat();
    for bad in [
        &[0, 7, 1, 1, 1, 0, 0][..],
        &[0, 1],
        &[1, 13, 0],
        &[2, 10, 0, 16, 0, 0, 0, 0, 0, 0],
        &[2, 10, 0, 1, 0, 0, 0, 0, 2, 0],
        &[2, 10, 0, 1, 0, 0, 0, 0, 8, 0],
        &[9, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(
            refusal(&|p| p.0[MADT_AT].1 = make(b"APIC", &entry(bad))),
            "APIC is malformed at offset 44",
            "{bad:?}"
        );
    }
    let many = [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(17);
    assert_eq!(refusal(&|p| p.0[MADT_AT].1 = make(b"APIC", &entry(&many))), "APIC has too many I/O APICs");
    assert_eq!(refusal(&|p| p.0[3].1 = make(b"FACP", &[0; 79])), "FACP is malformed at offset 112");
    assert_eq!(refusal(&|p| p.0[4].1 = make(b"MCFG", &[0; 20])), "MCFG is malformed at offset 44");
    assert_eq!(refusal(&|p| p.0[5].0 = 0), "DSDT at 0x5000 is not in memory");
}

#[test]
fn processors_that_find_no_room_are_left_out() {
    let mut body = Vec::from([0; 8]);
    for id in 0..100 {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut pieces = machine().with(RSDP, rsdp(2, 0x1800));
    pieces.0[MADT_AT].1 = make(b"APIC", &body);
    let madt = read_at(&pieces, RSDP).unwrap().madt;
    assert!(madt.processors.iter().copied().eq(0..64));
}

#[test]
fn the_sleep_type_is_found_in_every_form_and_never_past_the_end() {
    let name = [0x08, b'\\', b'_', b'S', b'5', b'_', 0x12];
    for (package, expected) in [
        (&[0x06, 4, 0, 0, 0, 0][..], Some((0, 0))),
        (&[0x48, 0, 4, 0x0a, 7, 0x0b, 6, 0], Some((7, 6))),
        (&[0x0a, 2, 0x0c, 5, 0, 0, 0, 1], Some((5, 1))),
        (&[0xc6, 0, 0, 0, 2, 1, 1], Some((1, 1))),
        (&[0x06, 1, 0, 0], None),
        (&[0x06, 4, 0x0a, 8, 0], None),
        (&[0x06, 4, 0x0b, 5, 1, 0], None),
        (&[0x06, 4, 0x0e, 0, 0], None),
        (&[0xc6, 0, 0], None),
    ] {
        let aml = [&name, package].concat();
        let types = |values: [u16; 2]| (values[0] >> 10 & 7, values[1] >> 10 & 7);
        let found = fadt::soft_off(&aml).map(types);
        assert_eq!(found, expected, "{package:?}");
        for end in 0..aml.len() {
            assert!(fadt::soft_off(&aml[..end]).is_none_or(|s| Some(types(s)) == expected));
        }
    }
    assert_eq!(fadt::soft_off(b"_S5_\x12\x06\x04\0\0"), None);
}

#[test]
fn no_damage_makes_it_panic() {
    let mut random = StdRng::seed_from_u64(0x4143_5049);
    let good = machine().with(RSDP, rsdp(2, 0x1800));
    let mut read = 0;
    for _ in 0..20_000 {
        let mut pieces = good.clone();
        let piece = random.random_range(0..pieces.0.len() - 1);
        let bytes = &mut pieces.0[piece].1;
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if random.random_bool(0.2) {
            let length = random.random_range(HEADER_BYTES..=bytes.len());
            bytes.truncate(length);
            bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        }
        // With a right checksum the damage reaches the parsers.
        fix_sum(bytes, 9);
        read += u32::from(read_at(&pieces, RSDP).is_ok());
    }
    assert!((1000..19_000).contains(&read), "{read} of 20000 were read: the damage is not what it should be");
}
