use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::nodes::{EPYC, MAX, Node, SKYLAKE, cpuid};
use super::*;
use crate::topology::Topology;
use ipc::guest::Share;

const NODES: [&Node; 3] = [MAX, EPYC, SKYLAKE];

fn policy(vcpus: u8) -> Policy {
    Policy {
        vcpus,
        core_bits: u32::from(vcpus).next_power_of_two().trailing_zeros(),
        cache_bits: 8,
        tsc_hz: NonZeroU64::new(2_400_000_000).unwrap(),
        pcid: Pcid::AsNode,
    }
}

fn table(node: &Node, vcpus: u8) -> Table {
    Table::new(cpuid(node), &policy(vcpus))
}

const DYNAMIC: Dynamic = Dynamic { apic_id: 0, cr4: 0, xcr0: 1, apic: Apic::Enabled };

fn get(table: &Table, leaf: u32, subleaf: u32) -> Registers {
    table.lookup(leaf, subleaf, &DYNAMIC)
}

/// Register (0 to 3), bit and name of what no guest may see.
const HIDDEN: &[(u32, u32, usize, u32, &str)] = &[
    (1, 0, 2, 3, "MONITOR"),
    (1, 0, 2, 2, "DTES64"),
    (1, 0, 2, 5, "VMX"),
    (1, 0, 2, 6, "SMX"),
    (1, 0, 2, 7, "EIST"),
    (1, 0, 2, 15, "PDCM"),
    (1, 0, 3, 12, "MTRR"),
    (1, 0, 3, 18, "PSN"),
    (1, 0, 3, 21, "DS"),
    (1, 0, 3, 22, "ACPI"),
    (1, 0, 3, 29, "TM"),
    (7, 0, 1, 2, "SGX"),
    (7, 0, 1, 4, "HLE"),
    (7, 0, 1, 11, "RTM"),
    (7, 0, 1, 12, "PQM"),
    (7, 0, 1, 14, "MPX"),
    (7, 0, 1, 15, "PQE"),
    (7, 0, 1, 25, "PT"),
    (7, 0, 2, 5, "WAITPKG"),
    (7, 0, 2, 7, "CET_SS"),
    (7, 0, 2, 16, "LA57"),
    (7, 0, 2, 22, "RDPID"),
    (7, 0, 2, 29, "ENQCMD"),
    (7, 0, 2, 31, "PKS"),
    (7, 0, 3, 5, "UINTR"),
    (7, 0, 3, 20, "CET_IBT"),
    (7, 0, 3, 22, "AMX-BF16"),
    (7, 0, 3, 24, "AMX-TILE"),
    (7, 0, 3, 26, "IBRS"),
    (7, 0, 3, 29, "ARCH_CAPABILITIES"),
    (7, 0, 3, 31, "SSBD"),
    (7, 1, 0, 17, "FRED"),
    (7, 1, 0, 26, "LAM"),
    (7, 1, 3, 19, "AVX10"),
    (0xd, 1, 0, 3, "XSAVES"),
    (0xd, 1, 0, 4, "XFD"),
    (0x8000_0001, 0, 2, 2, "SVM"),
    (0x8000_0001, 0, 2, 9, "OSVW"),
    (0x8000_0001, 0, 2, 10, "IBS"),
    (0x8000_0001, 0, 2, 12, "SKINIT"),
    (0x8000_0001, 0, 2, 15, "LWP"),
    (0x8000_0001, 0, 2, 23, "PERFCTR_CORE"),
    (0x8000_0001, 0, 2, 29, "MONITORX"),
    (0x8000_0001, 0, 3, 27, "RDTSCP"),
    (0x8000_0008, 0, 1, 4, "RDPRU"),
    (0x8000_0008, 0, 1, 12, "IBPB"),
    (0x8000_0021, 0, 0, 8, "automatic IBRS"),
    (0x4000_0001, 0, 0, 0, "CLOCKSOURCE"),
    (0x4000_0001, 0, 0, 4, "ASYNC_PF"),
    (0x4000_0001, 0, 0, 5, "STEAL_TIME"),
    (0x4000_0001, 0, 0, 6, "PV_EOI"),
    (0x4000_0001, 0, 0, 7, "PV_UNHALT"),
    (0x4000_0001, 0, 0, 11, "PV_SEND_IPI"),
];

/// A node that has everything, with this vendor.
fn everything(vendor: &[u8; 12]) -> impl Fn(u32, u32) -> Registers {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let [ebx, edx, ecx] = [word(0), word(4), word(8)];
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => [0x20, ebx, ecx, edx],
        (0x8000_0000, _) => [0x8000_0026, ebx, ecx, edx],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0, 0],
        (0xd, 7) => [1024, 1664, 0, 0],
        (0xd, 9) => [8, 2688, 2, 0],
        (0xd, 18..) => [8192, 2816, 2, 0],
        _ => [u32::MAX; 4],
    }
}

#[test]
fn what_is_not_virtualised_is_hidden() {
    for vendor in [b"AuthenticAMD", b"GenuineIntel", b"HygonGenuine", b"CentaurHauls"] {
        let table = Table::new(everything(vendor), &Policy { pcid: Pcid::Hidden, ..policy(255) });
        for &(leaf, subleaf, register, bit, name) in HIDDEN {
            assert_eq!(get(&table, leaf, subleaf)[register] >> bit & 1, 0, "{name}");
        }
        // Whole leaves.
        for leaf in [3, 5, 8, 9, 0xa, 0xc, 0xe, 0xf, 0x10, 0x11, 0x12, 0x13, 0x14, 0x8000_000a, 0x8000_001b] {
            assert!(get(&table, leaf, 0) == [0; 4] || leaf > 0x8000_0000 && table.vendor() == Vendor::Intel);
        }
        assert_eq!(get(&table, 6, 0), [4, 0, 0, 0]);
        assert_eq!(get(&table, 0x8000_0007, 0), [0, 0, 0, 1 << 8]);
        assert_eq!(table.xcr0(), 0x2e7);
    }
}

#[test]
fn nothing_is_shown_that_the_node_lacks() {
    // What we add: x2APIC, deadline, hypervisor; APIC and HTT; TSC_ADJUST; cores.
    const OURS: [(u32, usize, u32); 5] = [
        (1, 2, features::LEAF_1_ECX_ALWAYS),
        (1, 3, features::APIC | features::HTT),
        (7, 1, features::TSC_ADJUST),
        (0x8000_0001, 2, features::CMP_LEGACY),
        (0x8000_0001, 3, 0),
    ];
    for node in NODES {
        let table = table(node, 4);
        for (leaf, register, ours) in OURS {
            let shown = get(&table, leaf, 0)[register];
            let there = cpuid(node)(leaf, 0)[register];
            assert_eq!(shown & !there & !ours, 0, "{leaf:#x}");
        }
        // And nothing useful is lost: SSE4.2, AES, POPCNT; SMEP, ERMS; NX, SYSCALL, long mode.
        assert_eq!(get(&table, 1, 0)[2] & 0x0290_0000, 0x0290_0000 & cpuid(node)(1, 0)[2]);
        assert_eq!(get(&table, 7, 0)[1] & 0x281, cpuid(node)(7, 0)[1] & 0x281);
        assert_eq!(get(&table, 0x8000_0001, 0)[3] & 0x2010_0800, 0x2010_0800);
        // Name and signature.
        for leaf in 0x8000_0002..=0x8000_0004 {
            assert_eq!(get(&table, leaf, 0), cpuid(node)(leaf, 0));
        }
        assert_eq!(get(&table, 1, 0)[0], cpuid(node)(1, 0)[0]);
    }
}

#[test]
fn known_tables() {
    let table = table(MAX, 1);
    assert_eq!(get(&table, 0, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    let [_, ebx, ecx, edx] = get(&table, 1, 0);
    assert_eq!(ebx, 0x0001_0800);
    assert_eq!(ecx, 0xf6d8_320b & features::LEAF_1_ECX | 0x8120_0000);
    assert_eq!(edx, 0x0fcb_fbfd & !(1 << 12 | 1 << 22));
    // No MPX, PCOMMIT; TSC_ADJUST; no LA57, PKS.
    assert_eq!(get(&table, 7, 0), [0, 0x0198_03ab, 0x0000_020c, 0]);
    assert_eq!(
        get(&table, 0x8000_0001, 0),
        [0x0006_0fb1, 0, 0x71, 0xedd3_fbfd & !(1 << 12 | 1 << 19 | 1 << 27)]
    );
    assert_eq!(get(&table, 0x8000_0008, 0), [0x3028, 0, 0, 0]);
}

#[test]
fn hypervisor_leaves() {
    for node in NODES {
        let table = table(node, 2);
        let [max, ebx, ecx, edx] = get(&table, 0x4000_0000, 0);
        assert_eq!(max, 0x4000_0010);
        assert_eq!([ebx, ecx, edx].map(u32::to_le_bytes).as_flattened(), b"KVMKVMKVM\0\0\0");
        assert_eq!(get(&table, 0x4000_0001, 7), [1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0]);
        assert_eq!(get(&table, 0x4000_0010, 0), [2_400_000, 1_000_000, 0, 0]);
        assert_eq!(get(&table, 0x4000_0002, 0), [0; 4]);
    }
}

#[test]
fn dynamic_bits() {
    for node in NODES {
        let table = table(node, 8);
        let on = Dynamic { apic_id: 5, cr4: CR4_OSXSAVE | CR4_PKE, ..DYNAMIC };
        let [_, ebx, ecx, edx] = table.lookup(1, 0, &on);
        assert_eq!((ebx >> 24, ecx >> 27 & 1, edx >> 9 & 1), (5, 1, 1));
        let off = Dynamic { apic: Apic::Disabled, cr4: !(CR4_OSXSAVE | CR4_PKE), ..on };
        let [_, _, ecx, edx] = table.lookup(1, 0, &off);
        assert_eq!((ecx >> 27 & 1, edx >> 9 & 1, ecx >> 21 & 1), (0, 0, 1));
        assert_eq!(table.lookup(0x8000_0001, 0, &off)[3] >> 9 & 1, 0);
        let [_, _, with, _] = table.lookup(7, 0, &on);
        let [_, _, without, _] = table.lookup(7, 0, &off);
        assert_eq!(with >> 4 & 1, with >> 3 & 1, "OSPKE only with PKU");
        assert_eq!(without >> 4 & 1, 0);
        assert_eq!(table.lookup(7, 1, &on), [0; 4]);
    }
}

#[test]
fn extended_state_of_nodes() {
    assert_eq!(NODES.map(|node| table(node, 1).xcr0()), [0x207, 0x007, 0x2e7]);
    let table = table(SKYLAKE, 1);
    let size = |xcr0| table.lookup(0xd, 0, &Dynamic { xcr0, ..DYNAMIC })[1];
    assert_eq!([1, 3, 7, 0xe7, 0x2e7, 0x203, u64::MAX].map(size), [576, 576, 832, 2688, 2696, 2696, 2696]);
    assert_eq!(get(&table, 0xd, 0), [0x2e7, 576, 2696, 0]);
    assert_eq!(get(&table, 0xd, 1), [5, 0, 0, 0], "no XSAVEC, no compacted size");
    assert_eq!(get(&table, 0xd, 2), [256, 576, 0, 0]);
    for absent in [3, 4, 8, 10, 63, 64, u32::MAX] {
        assert_eq!(get(&table, 0xd, absent), [0; 4]);
    }
    for (xcr0, good) in [
        (1, true),
        (3, true),
        (7, true),
        (0xe7, true),
        (0x2e7, true),
        (0x201, true),
        (0, false),
        (2, false),
        (5, false),
        (0x27, false),
        (0xe3, false),
        (0xf, false),
        (0x403, false),
        (1 << 63 | 3, false),
    ] {
        assert_eq!(table.accepts_xcr0(xcr0), good, "{xcr0:#x}");
    }
}

#[test]
fn compacted_size_follows_alignment() {
    let node = everything(b"GenuineIntel");
    // The mask registers end in the middle of 64 bytes, which only the next part that is aligned minds.
    let uneven = |leaf, subleaf| match (leaf, subleaf) {
        (0xd, 5) => [60, 1088, 0, 0],
        _ => node(leaf, subleaf),
    };
    let table = Table::new(uneven, &policy(1));
    assert_eq!(get(&table, 0xd, 1)[0], 7);
    let size = |xcr0| table.lookup(0xd, 1, &Dynamic { xcr0, ..DYNAMIC })[1];
    let all = 576 + 256 + 60 + 512 + 1024;
    assert_eq!([3, 7, 0x203, 0x207, 0xe7, 0x2e7].map(size), [576, 832, 584, 840, all, all + 4 + 8]);
}

#[test]
fn state_that_does_not_fit_takes_its_features_along() {
    let without = |hidden: &'static [u32], vendor| {
        let node = everything(vendor);
        Table::new(
            move |leaf, subleaf| {
                let mut registers = node(leaf, subleaf);
                if leaf == 0xd && hidden.contains(&subleaf) {
                    registers[1] = XSAVE_AREA_BYTES;
                }
                registers
            },
            &policy(1),
        )
    };
    let table = without(&[7], b"GenuineIntel");
    assert_eq!(table.xcr0(), 0x207);
    assert_eq!(get(&table, 7, 0)[1] & (1 << 16 | 1 << 5), 1 << 5);
    let table = without(&[9], b"GenuineIntel");
    assert_eq!(table.xcr0(), 0xe7);
    assert_eq!(get(&table, 7, 0)[2] >> 3 & 1, 0);
    let table = without(&[2], b"AuthenticAMD");
    assert_eq!(table.xcr0(), 0x203);
    assert_eq!(get(&table, 1, 0)[2] & (1 << 28 | 1 << 12 | 1 << 29), 0);
    assert_eq!(get(&table, 7, 0)[1] & (1 << 5 | 1 << 16), 0);
    assert_eq!(get(&table, 0x8000_0001, 0)[2] & (1 << 11 | 1 << 16), 0);

    // No XSAVE at all.
    let node = cpuid(MAX);
    let table = Table::new(
        |leaf, subleaf| {
            let mut registers = node(leaf, subleaf);
            if leaf == 1 {
                registers[2] &= !features::XSAVE;
            }
            registers
        },
        &policy(1),
    );
    assert_eq!(table.xcr0(), 0);
    let on = Dynamic { cr4: CR4_OSXSAVE, ..DYNAMIC };
    assert_eq!(table.lookup(1, 0, &on)[2] & (3 << 26 | 1 << 28), 0);
    assert_eq!(get(&table, 0xd, 0), [0; 4]);
    assert!(!table.accepts_xcr0(1));
}

#[test]
fn pcid_by_policy() {
    let shown = |node: &Node, pcid| {
        let table = Table::new(cpuid(node), &Policy { pcid, ..policy(1) });
        (get(&table, 1, 0)[2] >> 17 & 1, get(&table, 7, 0)[1] >> 10 & 1)
    };
    assert_eq!(
        [Pcid::Hidden, Pcid::AsNode, Pcid::Always].map(|pcid| shown(MAX, pcid)),
        [(0, 0), (0, 0), (1, 0)]
    );
    let all = |pcid| {
        let table = Table::new(everything(b"AuthenticAMD"), &Policy { pcid, ..policy(1) });
        (get(&table, 1, 0)[2] >> 17 & 1, get(&table, 7, 0)[1] >> 10 & 1)
    };
    assert_eq!([Pcid::Hidden, Pcid::AsNode, Pcid::Always].map(all), [(0, 0), (1, 1), (1, 1)]);
}

#[test]
fn each_vcpu_is_a_core_of_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8)] {
        for node in NODES {
            let table = table(node, vcpus);
            for apic_id in [0, u32::from(vcpus) - 1] {
                let dynamic = Dynamic { apic_id, ..DYNAMIC };
                let count = u32::from(vcpus);
                assert_eq!(table.lookup(0xb, 0, &dynamic), [0, 1, 0x100, apic_id]);
                assert_eq!(table.lookup(0xb, 1, &dynamic), [bits, count, 0x201, apic_id]);
                assert_eq!(table.lookup(0xb, 2, &dynamic), [0, 0, 2, apic_id]);
                assert_eq!(table.lookup(0xb, 0x1234, &dynamic), [0, 0, 0x34, apic_id]);
                // All APIC IDs of the package differ in the core's bits alone.
                assert_eq!(apic_id >> bits, 0);
                assert_eq!(table.lookup(1, 0, &dynamic)[3] >> 28 & 1, u32::from(vcpus > 1));
            }
            assert_eq!(get(&table, 0x1f, 0), if node == SKYLAKE { get(&table, 0x16, 0) } else { [0; 4] });
            if table.vendor() == Vendor::Amd {
                assert_eq!(get(&table, 0x8000_0008, 0)[2], (u32::from(vcpus) - 1) | bits << 12);
                assert_eq!(get(&table, 0x8000_0001, 0)[2] >> 1 & 1, u32::from(vcpus > 1));
            }
        }
    }
    let table = Table::new(everything(b"AuthenticAMD"), &policy(4));
    assert_eq!(table.lookup(0x8000_001e, 0, &Dynamic { apic_id: 3, ..DYNAMIC }), [3, 3, 0, 0]);
}

#[test]
fn each_node_of_a_guest_is_a_package() {
    let shares = [2, 3, 1].map(|vcpus| Share { node: u16::from(vcpus), vcpus, pages: 1 });
    let topology = Topology::of(&shares);
    let mut ids = topology.ids.iter().copied();
    for (place, share) in (0..).zip(&shares) {
        let policy =
            Policy { core_bits: topology.core_bits, cache_bits: topology.cache_bits, ..policy(share.vcpus) };
        let all = everything(b"AuthenticAMD");
        let tables = [
            Table::new(cpuid(MAX), &policy),
            Table::new(cpuid(EPYC), &policy),
            Table::new(cpuid(SKYLAKE), &policy),
            Table::new(all, &policy),
        ];
        for (core, id) in (0..u32::from(share.vcpus)).zip(ids.by_ref()) {
            assert_eq!(id, place << 2 | core);
            let dynamic = Dynamic { apic_id: id, ..DYNAMIC };
            for table in &tables {
                assert_eq!(table.lookup(1, 0, &dynamic)[1] >> 24, id);
                assert_eq!(table.lookup(0xb, 1, &dynamic), [2, share.vcpus.into(), 0x201, id]);
                // The last-level cache is the package's, where its leaf tells of one.
                let leaf = if table.vendor() == Vendor::Amd { 0x8000_001d } else { 4 };
                let [cache, ..] = table.lookup(leaf, 3, &dynamic);
                assert!(cache == 0 || cache >> 14 & 0xfff == 3);
            }
            assert_eq!(tables[0].lookup(0x8000_0008, 0, &dynamic)[2], (u32::from(share.vcpus) - 1) | 2 << 12);
            assert_eq!(tables[2].lookup(4, 3, &dynamic)[0] >> 26, 3, "numbers for cores");
            assert_eq!(tables[2].lookup(1, 0, &dynamic)[1] >> 16 & 0xff, 4, "and for processors");
            assert_eq!(tables[3].lookup(0x8000_001e, 0, &dynamic), [id, core, place, 0]);
        }
    }
}

#[test]
fn caches_are_shared_as_told() {
    let shared = |node: &Node, leaf, cache_bits| {
        let table = Table::new(cpuid(node), &Policy { cache_bits, ..policy(4) });
        let caches = [0, 1, 2, 3].map(|subleaf| get(&table, leaf, subleaf)[0] >> 14 & 0xfff);
        assert_eq!(get(&table, leaf, 4), [0; 4]);
        (caches, get(&table, 0x8000_0006, 0)[3] != 0)
    };
    assert_eq!(shared(SKYLAKE, 4, 2), ([0, 0, 0, 3], true));
    assert_eq!(shared(SKYLAKE, 4, 1), ([0, 0, 0, 1], false));
    assert_eq!(shared(EPYC, 0x8000_001d, 2), ([0, 0, 0, 3], true));
    assert_eq!(shared(EPYC, 0x8000_001d, 0), ([0; 4], false));
    assert_eq!(get(&table(SKYLAKE, 4), 4, 3), [0x0c00_c163, 0x03c0_003f, 0x3fff, 6]);
    // AMD has no leaf 4, Intel no 0x8000001d.
    assert_eq!(get(&table(EPYC, 4), 4, 0), [0; 4]);
}

#[test]
fn frequencies_are_exact() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..1000 {
        let tsc_hz = random.random_range(1_000_000..=u64::from(u32::MAX));
        let table =
            Table::new(cpuid(SKYLAKE), &Policy { tsc_hz: NonZeroU64::new(tsc_hz).unwrap(), ..policy(1) });
        let [denominator, numerator, crystal, _] = get(&table, 0x15, 0);
        assert_eq!(u64::from(crystal) * u64::from(numerator), tsc_hz * u64::from(denominator));
        assert_eq!(u64::from(get(&table, 0x16, 0)[0]), tsc_hz / 1_000_000);
    }
    assert_eq!(get(&table(SKYLAKE, 1), 0x15, 0), [5, 12, 1_000_000_000, 0]);
    assert_eq!(get(&table(MAX, 1), 0x15, 0), [0; 4]);
}

#[test]
fn out_of_range_is_as_the_vendor_has_it() {
    let outside =
        [0x17, 0x20, 0x0fff_ffff, 0x1000_0000, 0x4000_0011, 0x7fff_ffff, 0x8000_0009, 0x9000_0000, u32::MAX];
    let (amd, intel) = (table(MAX, 1), table(SKYLAKE, 1));
    for leaf in outside {
        if leaf != 0x8000_0009 {
            assert_eq!(get(&amd, leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(get(&intel, leaf, 0), get(&intel, 0x16, 0), "{leaf:#x}");
    }
    assert_ne!(get(&intel, 0x16, 0), [0; 4]);
    assert_eq!(get(&intel, 0x13, 0), [0; 4], "in range, but not there");
}

#[test]
fn hostile_nodes_and_leaves_never_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    for round in 0..300_u64 {
        let mask: u32 = random.random();
        let node = |leaf: u32, subleaf: u32| {
            let mut of_leaf =
                ChaCha8Rng::seed_from_u64(round << 48 ^ u64::from(leaf) << 8 ^ u64::from(subleaf));
            of_leaf.random::<Registers>().map(|register| register & mask)
        };
        let policy = Policy {
            vcpus: random.random(),
            core_bits: random.random(),
            cache_bits: random.random(),
            tsc_hz: NonZeroU64::new(random.random::<u64>().max(1)).unwrap(),
            pcid: Pcid::AsNode,
        };
        let table = Table::new(node, &policy);
        for _ in 0..2000 {
            let base = [0, 0x4000_0000, 0x8000_0000, random.random()][random.random_range(0..4)];
            let leaf = base + random.random_range(0..0x30_u32).min(u32::MAX - base);
            let dynamic = Dynamic {
                apic_id: random.random(),
                cr4: random.random(),
                xcr0: random.random(),
                apic: Apic::Disabled,
            };
            _ = table.lookup(leaf, random.random_range(0..70), &dynamic);
            _ = table.lookup(leaf, random.random(), &dynamic);
            _ = table.accepts_xcr0(random.random());
        }
    }
}
