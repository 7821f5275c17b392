//! The tables read back by a parser that shares nothing with their builder but the specification.

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::testing::one_node;
use super::*;
use reader::{Aml, names};

mod reader;

const BASE: u64 = 0xe_0000;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Every table that can be reached from the RSDP, checksums and common headers checked.
fn tables(area: &[u8]) -> BTreeMap<String, Vec<u8>> {
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!(sum(&area[..20]), 0);
    assert_eq!(area[15], 2, "revision");
    assert_eq!(u32_at(area, 16), 0, "no RSDT");
    assert_eq!(u32_at(area, 20), 36);
    assert_eq!(sum(&area[..36]), 0);
    let table = |address: u64| {
        let at = usize::try_from(address - BASE).unwrap();
        let table = &area[at..at + u32_at(area, at + 4) as usize];
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        if name != "FACS" {
            assert_eq!(sum(table), 0, "{name}");
            assert_eq!(&table[10..16], b"UNUM  ", "{name}");
            assert_ne!(table[8], 0, "{name} has no revision");
        }
        (name, table.to_vec())
    };
    let (name, xsdt) = table(u64_at(area, 24));
    assert_eq!(name, "XSDT");
    let mut found: BTreeMap<_, _> = xsdt[36..].chunks_exact(8).map(|entry| table(u64_at(entry, 0))).collect();
    assert_eq!(found.len(), (xsdt.len() - 36) / 8, "a table twice");
    let fadt = found["FACP"].clone();
    assert_eq!(u64_at(&fadt, 132) % 64, 0, "the FACS is aligned");
    found.extend([table(u64_at(&fadt, 132)), table(u64_at(&fadt, 140))]);
    found
}

/// The entries of a MADT or SRAT: type and bytes.
fn entries(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [kind, length, ..] = *bytes {
        assert!(length >= 2);
        let (entry, rest) = bytes.split_at(length.into());
        found.push((kind, entry.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    found
}

fn processor(apic_id: u32, domain: u32) -> Processor {
    Processor { apic_id, domain: Domain(domain) }
}

/// Three domains, processors with IDs on both sides of 255, memory out of order.
fn big() -> Platform {
    let range =
        |start, bytes, domain| MemoryRange { start: GuestPhysAddr(start), bytes, domain: Domain(domain) };
    Platform {
        processors: vec![
            processor(7, 2),
            processor(254, 0),
            processor(255, 1),
            processor(0x1_0000, 1),
            processor(0, 0),
        ],
        memory: vec![
            range(0, 0x4000_0000, 0),
            range(0x4000_0000, 0x8000_0000, 1),
            range(0x1_0000_0000, 0x12_3456_7000, 2),
        ],
        distances: vec![vec![10, 20, 30], vec![21, 10, 255], vec![31, 32, 10]],
        pic: LegacyPic::Present,
    }
}

#[test]
fn the_fixed_hardware_is_where_the_specification_has_it() {
    let tables = tables(&build(&one_node(1, 1 << 16, LegacyPic::Absent)).unwrap());
    let fadt = &tables["FACP"];
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "length, major and minor version");
    assert_eq!(u16_at(fadt, 46), 9, "SCI_INT");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD");
    assert_eq!((u32_at(fadt, 56), fadt[88]), (0x600, 4), "PM1a_EVT");
    assert_eq!((u32_at(fadt, 64), fadt[89]), (0x604, 2), "PM1a_CNT");
    assert_eq!((u32_at(fadt, 76), fadt[91]), (0x608, 4), "PM_TMR");
    assert_eq!((u32_at(fadt, 80), fadt[92]), (0, 0), "no GPE0");
    assert!(u16_at(fadt, 96) > 100 && u16_at(fadt, 98) > 1000, "no C2, no C3");
    assert_eq!(fadt[108], 0x32, "CENTURY");
    assert_eq!(u16_at(fadt, 109), 0b101, "IAPC_BOOT_ARCH");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_eq!(flags & 1 << 4, 0, "a fixed power button");
    assert_eq!(flags, 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12);
    let address = |at: usize| (fadt[at], fadt[at + 1], fadt[at + 2], fadt[at + 3], u64_at(fadt, at + 4));
    assert_eq!((address(116), fadt[128]), ((1, 8, 0, 1, 0xcf9), 6), "RESET_REG and RESET_VALUE");
    assert_eq!(address(148), (1, 32, 0, 2, 0x600), "X_PM1a_EVT_BLK");
    assert_eq!(address(160), (0, 0, 0, 0, 0), "X_PM1b_EVT_BLK");
    assert_eq!(address(172), (1, 16, 0, 2, 0x604), "X_PM1a_CNT_BLK");
    assert_eq!(address(208), (1, 32, 0, 3, 0x608), "X_PM_TMR_BLK");
    assert_eq!(address(244), (0, 0, 0, 0, 0), "SLEEP_CONTROL_REG");
    let facs = &tables["FACS"];
    assert_eq!((facs.len(), u32_at(facs, 12), u32_at(facs, 16)), (64, 0, 0), "no waking vector, lock free");
}

#[test]
fn the_madt_has_short_entries_below_255_and_long_ones_above() {
    let tables = tables(&build(&big()).unwrap());
    let madt = &tables["APIC"];
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let entries = entries(&madt[44..]);
    let local = |id: u8| (0, vec![0, 8, id, id, 1, 0, 0, 0]);
    let x2apic = |id: u32| {
        let id = id.to_le_bytes();
        (9, [&[9, 16, 0, 0][..], &id, &[1, 0, 0, 0], &id].concat())
    };
    assert_eq!(
        entries,
        [
            local(7),
            local(254),
            x2apic(255),
            x2apic(0x1_0000),
            local(0),
            (1, vec![1, 12, 0xfe, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
            (2, vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0]),
            (2, vec![2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]),
            (4, vec![4, 6, 0xff, 0, 0, 1]),
            (10, vec![10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]),
        ]
    );
}

#[test]
fn a_small_guest_has_no_x2apic_entries_and_says_that_there_is_no_pic() {
    let tables = tables(&build(&one_node(2, 1 << 16, LegacyPic::Absent)).unwrap());
    assert_eq!(u32_at(&tables["APIC"], 40), 0);
    let kinds: Vec<u8> = entries(&tables["APIC"][44..]).iter().map(|entry| entry.0).collect();
    assert_eq!(kinds, [0, 0, 1, 2, 2, 4]);
}

#[test]
fn srat_and_slit_say_what_is_near() {
    let tables = tables(&build(&big()).unwrap());
    let srat = &tables["SRAT"];
    assert_eq!((srat[8], u32_at(srat, 36)), (3, 1));
    let found: Vec<_> = entries(&srat[48..])
        .iter()
        .map(|(kind, entry)| match kind {
            0 => {
                assert_eq!((entry.len(), u32_at(entry, 4)), (16, 1));
                (0, u32::from(entry[2]) | u32_at(entry, 8) >> 8 << 8, u64::from(entry[3]), 0)
            }
            1 => {
                assert_eq!((entry.len(), u32_at(entry, 28)), (40, 1));
                (1, u32_at(entry, 2), u64_at(entry, 8), u64_at(entry, 16))
            }
            2 => {
                assert_eq!((entry.len(), u32_at(entry, 12)), (24, 1));
                (2, u32_at(entry, 4), u32_at(entry, 8).into(), 0)
            }
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        found,
        [
            (0, 2, 7, 0),
            (0, 0, 254, 0),
            (2, 1, 255, 0),
            (2, 1, 0x1_0000, 0),
            (0, 0, 0, 0),
            (1, 0, 0, 0x4000_0000),
            (1, 1, 0x4000_0000, 0x8000_0000),
            (1, 2, 0x1_0000_0000, 0x12_3456_7000),
        ]
    );
    let slit = &tables["SLIT"];
    assert_eq!(u64_at(slit, 36), 3);
    assert_eq!(slit[44..], [10, 20, 30, 21, 10, 255, 31, 32, 10]);
}

#[test]
fn the_dsdt_names_the_devices() {
    let names = names(&tables(&build(&big()).unwrap())["DSDT"]);
    let integers = |values: &[u64]| Aml::Package(values.iter().map(|&value| Aml::Integer(value)).collect());
    assert_eq!(names["\\_S5_"], integers(&[5, 0, 0, 0]));
    // EISA IDs as ACPI 6.5, 19.3.4 packs them: PNP0501 is 41 d0 05 01.
    assert_eq!(names["\\_SB_.COM1._HID"], Aml::Integer(0x0105_d041));
    assert_eq!(names["\\_SB_.RTC_._HID"], Aml::Integer(0x000b_d041));
    // I/O ports by a small descriptor, then an extended interrupt: consumer, edge, high, exclusive; then the end tag.
    let resources = |port: [u8; 2], ports, irq| {
        let [low, high] = port;
        Aml::Buffer(
            [&[0x47, 1, low, high, low, high, 1, ports][..], &[0x89, 6, 0, 3, 1, irq, 0, 0, 0], &[0x79, 0]]
                .concat(),
        )
    };
    assert_eq!(names["\\_SB_.COM1._CRS"], resources([0xf8, 3], 8, 4));
    assert_eq!(names["\\_SB_.RTC_._CRS"], resources([0x70, 0], 2, 8));
    for (index, &Processor { apic_id, domain }) in big().processors.iter().enumerate() {
        let object = |name| &names[&format!("\\_SB_.C{index:03X}.{name}")];
        assert_eq!(*object("_HID"), Aml::Text("ACPI0007".into()));
        assert_eq!(*object("_UID"), Aml::Integer(apic_id.into()));
        assert_eq!(*object("_STA"), Aml::Integer(0xf));
        assert_eq!(*object("_PXM"), Aml::Integer(domain.0.into()));
    }
    assert_eq!(names.len(), 1 + 2 * 4 + 5 * 4);
}

#[test]
fn one_node_is_one_domain_with_all_memory() {
    let pages = (0xc000_0000 + 0x1000_0000) / 4096;
    let platform = one_node(3, pages, LegacyPic::Present);
    assert_eq!(platform.processors, [processor(0, 0), processor(1, 0), processor(2, 0)]);
    let ranges: Vec<_> =
        platform.memory.iter().map(|range| (range.start.0, range.bytes, range.domain.0)).collect();
    assert_eq!(ranges, [(0, 0xc000_0000, 0), (0x1_0000_0000, 0x1000_0000, 0)]);
    assert_eq!(one_node(1, 0x100, LegacyPic::Present).memory.len(), 1);
    let slit = &tables(&build(&platform).unwrap())["SLIT"];
    assert_eq!((u64_at(slit, 36), &slit[44..]), (1, &[10][..]));
}

#[test]
fn each_node_is_a_domain_with_its_share() {
    // 2 GiB, then 1.5 GiB of which 1 GiB is below the hole, then a page.
    let shares = [(1, 2, 2 << 18), (4, 3, 3 << 17), (9, 1, 1)];
    let shares = shares.map(|(node, vcpus, pages)| Share { node, vcpus, pages });
    let platform = Platform::spanning(&shares, LegacyPic::Present);
    let processors: Vec<_> = platform.processors.iter().map(|p| (p.apic_id, p.domain.0)).collect();
    assert_eq!(processors, [(0, 0), (1, 0), (4, 1), (5, 1), (6, 1), (8, 2)]);
    let memory: Vec<_> = platform.memory.iter().map(|r| (r.start.0, r.bytes, r.domain.0)).collect();
    let expected =
        [(0, 2 << 30, 0), (2 << 30, 1 << 30, 1), (4 << 30, 1 << 29, 1), ((4 << 30) + (1 << 29), 4096, 2)];
    assert_eq!(memory, expected);
    let slit = &tables(&build(&platform).unwrap())["SLIT"];
    assert_eq!((u64_at(slit, 36), &slit[44..]), (3, &[10, 40, 40, 40, 10, 40, 40, 40, 10][..]));
}

#[test]
fn any_shares_are_described_and_add_up() {
    let mut random = ChaCha8Rng::seed_from_u64(21);
    for _ in 0..100 {
        let nodes = random.random_range(1..=32_u16);
        let mut share = |node| {
            let vcpus = random.random_range(1..=64 / nodes).try_into().unwrap();
            let bits = random.random_range(1..25);
            Share { node, vcpus, pages: random.random_range(1..1 << bits) }
        };
        let shares: Vec<Share> = (1..=nodes).map(&mut share).collect();
        let platform = Platform::spanning(&shares, LegacyPic::Present);
        build(&platform).unwrap();
        let mut next = 0;
        for range in &platform.memory {
            // One behind the other, but for the hole.
            let start = if next == 0xc000_0000 { 1 << 32 } else { next };
            assert_eq!(range.start.0, start);
            next = start + range.bytes;
        }
        for (share, domain) in shares.iter().zip((0..).map(Domain)) {
            let own = platform.memory.iter().filter(|range| range.domain == domain);
            assert_eq!(own.map(|range| range.bytes).sum::<u64>(), share.pages * 4096);
            let own = platform.processors.iter().filter(|processor| processor.domain == domain);
            assert_eq!(own.count(), usize::from(share.vcpus));
        }
        assert!(platform.processors.iter().map(|p| p.apic_id).eq(Topology::of(&shares).ids));
    }
}

#[test]
fn the_most_processors_fit_with_64_domains() {
    let mut platform = Platform {
        processors: (0..1024).map(|id| processor(id * 0x10_0001, id % 64)).collect(),
        memory: Vec::new(),
        distances: (0..64)
            .map(|row| (0..64).map(|column| if row == column { 10 } else { 20 }).collect())
            .collect(),
        pic: LegacyPic::Absent,
    };
    for domain in 0..64 {
        let start = GuestPhysAddr(u64::from(domain) << 32);
        platform.memory.push(MemoryRange { start, bytes: 1 << 32, domain: Domain(domain) });
    }
    let area = build(&platform).unwrap();
    assert!(area.len() <= 0x2_0000);
    assert_eq!(names(&tables(&area)["DSDT"]).len(), 1 + 2 * 4 + 1024 * 4);
    let range = platform.memory[0];
    platform.memory.extend((0..4096).map(|_| range));
    assert!(matches!(build(&platform), Err(AcpiError::TooLarge { bytes }) if bytes > 0x2_0000));
    platform.processors.push(processor(1, 0));
    assert_eq!(build(&platform), Err(AcpiError::Processors { count: 1025 }));
}

#[test]
fn what_cannot_be_described_is_refused() {
    let broken = |change: fn(&mut Platform)| {
        let mut platform = big();
        change(&mut platform);
        build(&platform).unwrap_err()
    };
    assert_eq!(broken(|p| p.processors.clear()), AcpiError::Processors { count: 0 });
    assert_eq!(broken(|p| p.processors.push(processor(254, 1))), AcpiError::ApicId { id: 254 });
    assert_eq!(broken(|p| p.processors[0].apic_id = u32::MAX), AcpiError::ApicId { id: u32::MAX });
    let domain = AcpiError::Domain { domain: Domain(3), domains: 3 };
    assert_eq!(broken(|p| p.processors[1].domain = Domain(3)), domain);
    assert_eq!(broken(|p| p.memory[2].domain = Domain(3)), domain);
    assert!(matches!(broken(|p| p.memory[2].bytes = 0), AcpiError::Memory { .. }));
    assert!(matches!(broken(|p| p.memory[2].bytes = u64::MAX), AcpiError::Memory { .. }));
    let row = AcpiError::DistanceRow { row: 1, entries: 2, domains: 3 };
    assert_eq!(broken(|p| _ = p.distances[1].pop()), row);
    assert_eq!(broken(|p| p.distances[1][1] = 11), AcpiError::Distance { from: 1, to: 1, distance: 11 });
    let near = broken(|p| p.distances[2][0] = 10);
    assert_eq!(near, AcpiError::Distance { from: 2, to: 0, distance: 10 });
    assert_eq!(
        format!("{near}"),
        "guest ACPI tables: distance 10 from domain 2 to 0: 10 is that to itself alone"
    );
}

#[test]
fn any_platform_is_refused_or_reads_back() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut built = 0;
    for _ in 0..300 {
        let domains: u32 = random.random_range(0..5);
        let shift = random.random_range(0..32);
        let platform = Platform {
            processors: (0..random.random_range(0..40))
                .map(|_| processor(random.random::<u32>() >> shift, random.random_range(0..domains.max(1))))
                .collect(),
            memory: (0..random.random_range(0..4))
                .map(|_| MemoryRange {
                    start: GuestPhysAddr(random.random::<u64>() >> random.random_range(0..64)),
                    bytes: random.random::<u64>() >> random.random_range(1..64),
                    domain: Domain(random.random_range(0..domains.max(1))),
                })
                .collect(),
            distances: (0..domains)
                .map(|i| {
                    (0..domains).map(|j| if i == j { 10 } else { random.random_range(11..=255) }).collect()
                })
                .collect(),
            pic: LegacyPic::Absent,
        };
        let Ok(area) = build(&platform) else { continue };
        built += 1;
        let tables = tables(&area);
        assert_eq!(names(&tables["DSDT"]).len(), 9 + 4 * platform.processors.len());
        assert_eq!(entries(&tables["SRAT"][48..]).len(), platform.processors.len() + platform.memory.len());
    }
    assert!(built > 50, "{built}");
}
