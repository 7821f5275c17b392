//! ELF files built here, good and damaged.

extern crate std;
use std::{format, vec::Vec};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const TEXT: u64 = IMAGE_BASE + 0x1000;
const HEADERS: usize = 64;

/// Kind, flags, offset, address, file bytes, memory bytes.
type Program = (u32, u32, u64, u64, u64, u64);

const GOOD: [Program; 4] = [
    (1, 4, 0x1000, IMAGE_BASE, 0x123, 0x123),
    (0x6474_e551, 6, 0, 0, 0, 0),
    (1, 5, 0x1200, TEXT, 0x800, 0x800),
    (1, 6, 0x1a00, IMAGE_BASE + 0x2000, 0x10, 0x3001),
];

fn build(programs: &[Program]) -> Vec<u8> {
    let mut file = Vec::from(IDENTIFICATION);
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [TEXT + 0x10, HEADERS as u64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, programs.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, flags, offset, address, file_bytes, memory_bytes) in programs {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [*offset, *address, 0, *file_bytes, *memory_bytes, 0x1000] {
            file.extend(word.to_le_bytes());
        }
    }
    file.resize(0x1a10, 0xcc);
    file
}

fn refusal(file: &[u8]) -> std::string::String {
    format!("{}", Elf::parse(file).unwrap_err())
}

#[test]
fn a_good_file_is_taken_apart() {
    let file = build(&GOOD);
    let elf = Elf::parse(&file).unwrap();
    assert_eq!(elf.entry(), VirtAddr(TEXT + 0x10));
    let segments: Vec<_> = elf.segments().collect();
    let access = [Access::Read, Access::ReadExecute, Access::ReadWrite];
    assert_eq!(segments.iter().map(|s| s.access).collect::<Vec<_>>(), access);
    assert_eq!(segments.iter().map(|s| s.pages()).collect::<Vec<_>>(), [1, 1, 4]);
    assert_eq!(elf.contents(segments[1]), [0xcc; 0x800]);
    assert_eq!(segments[2].address, VirtAddr(IMAGE_BASE + 0x2000));
    assert_eq!(segments[2].memory_bytes, 0x3001);
}

#[test]
fn what_is_wrong_is_said() {
    let with = |number: usize, program: Program| {
        let mut programs = GOOD;
        programs[number] = program;
        refusal(&build(&programs))
    };
    let (text, data) = (TEXT, IMAGE_BASE + 0x2000);
    assert_eq!(
        with(2, (1, 5, 0x1201, text, 0x810, 0x810)),
        "truncated: segment 2 ends at 6673 of 6672 bytes"
    );
    assert_eq!(
        with(2, (1, 5, u64::MAX, text, 2, 2)),
        "truncated: segment 2 ends at 18446744073709551615 of 6672 bytes"
    );
    assert_eq!(with(1, (2, 4, 0, 0, 0, 0)), "segment 1: dynamic linking is not supported");
    assert_eq!(with(1, (3, 4, 0, 0, 0, 0)), "segment 1: an interpreter is not supported");
    assert_eq!(with(1, (7, 4, 0, 0, 0, 0)), "segment 1: thread-local storage is not supported");
    assert_eq!(with(3, (1, 6, 0, data + 8, 8, 8)), "segment 3 does not begin at a page");
    assert_eq!(with(3, (1, 6, 0, data, 8, 7)), "segment 3 is longer in the file than in memory");
    assert_eq!(with(3, (1, 6, 0, 0, 0, 8)), "segment 3 at 0x0 does not lie in 0x400000 to 0x10000000");
    assert_eq!(
        with(3, (1, 6, 0, IMAGE_END - 0x1000, 0, 0x1001)),
        "segment 3 at 0xffff000 does not lie in 0x400000 to 0x10000000"
    );
    assert_eq!(
        with(3, (1, 6, 0, data, 0, u64::MAX)),
        "segment 3 at 0x402000 does not lie in 0x400000 to 0x10000000"
    );
    assert_eq!(with(2, (1, 5, 0, text, 0x800, 0x1001)), "segments 2 and 3 share a page");
    assert_eq!(with(3, (1, 7, 0, data, 8, 8)), "segment 3 is both writable and executable");
    assert_eq!(with(2, (1, 4, 0, text, 8, 8)), "the entry 0x401010 is in no executable segment");
    assert_eq!(with(2, (1, 5, 0, text, 0x10, 0x800)), "the entry 0x401010 is in no executable segment");
    let header = |at: usize, byte: u8| {
        let mut file = build(&GOOD);
        file[at] = byte;
        refusal(&file)
    };
    assert_eq!(header(4, 1), "not a 64-bit little-endian ELF file");
    assert_eq!(header(16, 3), "of type 3, not a static executable");
    assert_eq!(header(18, 3), "for machine 3, not x86-64");
    assert_eq!(header(54, 32), "program headers of 32 bytes instead of 56");
    assert_eq!(header(57, 1), "260 program headers: at most 64, 16 of them loaded");
    assert_eq!(header(34, 1), "truncated: the headers end at 65824 of 6672 bytes");
    assert_eq!(refusal(&build(&GOOD)[..63]), "truncated: the headers end at 64 of 63 bytes");
    assert_eq!(refusal(b""), "not a 64-bit little-endian ELF file");
    let many: Vec<Program> = (0..17).map(|i| (1, 5, 0, TEXT + i * PAGE, 0x20, 0x20)).collect();
    assert_eq!(refusal(&build(&many)), "17 program headers: at most 64, 16 of them loaded");
}

#[test]
fn damage_is_refused_or_harmless() {
    let mut random = StdRng::seed_from_u64(0x454c_4600);
    let good = build(&GOOD);
    let interesting = HEADERS + GOOD.len() * 56;
    let mut accepted = 0;
    for _ in 0..50_000 {
        let mut file = good.clone();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..interesting);
            file[at] ^= 1 << random.random_range(0..8);
        }
        if random.random_bool(0.3) {
            file.truncate(random.random_range(0..=file.len()));
        }
        let Ok(elf) = Elf::parse(&file) else { continue };
        accepted += 1;
        let mut pages = Vec::new();
        for segment in elf.segments() {
            assert!(elf.contents(segment).len() as u64 <= segment.memory_bytes);
            assert_eq!(elf.contents(segment).len(), segment.file.len());
            assert!(segment.address.0 >= IMAGE_BASE && segment.end() <= IMAGE_END);
            pages.push((segment.address.0, segment.end()));
        }
        pages.sort_unstable();
        assert!(pages.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
    assert!((5_000..45_000).contains(&accepted), "{accepted} of 50000 accepted");
}
