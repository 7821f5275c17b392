//! What a plan accepts and decides.

use std::string::{String, ToString};
use std::vec::Vec;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

mod loading;

const MIB: u64 = 1 << 20;
/// Pages of a guest of 64 MiB.
const PAGES: u64 = 64 * MIB / 4096;

const fn share(pages: u64) -> Share {
    Share { node: 1, vcpus: 1, pages }
}

/// Of a guest whose memory one node gives.
fn plan<'a>(
    kernel: &'a [u8],
    initrd: Option<&'a [u8]>,
    command_line: &'a str,
    pages: u64,
) -> Result<Plan<'a>, BootError> {
    super::plan(kernel, initrd, command_line, &[share(pages)])
}

/// A bzImage of boot protocol 2.15 that is made of 4 setup sectors and a kernel with contents that tell where they are.
fn bzimage(kernel_bytes: u32) -> Vec<u8> {
    let mut file = vec![0x90; 5 * 512];
    set(&mut file, 0x1f1, [4u8]);
    set(&mut file, 0x1f4, (kernel_bytes / 16).to_le_bytes());
    set(&mut file, 0x1fa, 0x1234u16.to_le_bytes());
    set(&mut file, 0x1fe, [0x55, 0xaa]);
    set(&mut file, 0x200, [0xeb, 0x6a]);
    set(&mut file, 0x202, *b"HdrS");
    set(&mut file, 0x206, 0x020fu16.to_le_bytes());
    set(&mut file, 0x211, [1u8]);
    set(&mut file, 0x22c, 0x7fff_ffffu32.to_le_bytes());
    set(&mut file, 0x230, 0x20_0000u32.to_le_bytes());
    set(&mut file, 0x234, [1u8]);
    set(&mut file, 0x236, 0x3fu16.to_le_bytes());
    set(&mut file, 0x238, 2047u32.to_le_bytes());
    set(&mut file, 0x250, 0xdead_beefu64.to_le_bytes());
    set(&mut file, 0x258, (16 * MIB).to_le_bytes());
    set(&mut file, 0x260, (0x20_0000u32).to_le_bytes());
    file.extend((0..kernel_bytes).map(|i| u8::try_from((i ^ i >> 8 ^ i >> 16) & 0xff).unwrap()));
    file
}

fn set<const N: usize>(file: &mut [u8], at: usize, bytes: [u8; N]) {
    file[at..at + N].copy_from_slice(&bytes);
}

/// What is wrong with a kernel after a change of its bytes.
fn wrong<const N: usize>(at: usize, bytes: [u8; N]) -> BootError {
    let mut file = bzimage(0x1000);
    set(&mut file, at, bytes);
    plan(&file, None, "", PAGES).unwrap_err()
}

#[test]
fn each_field_is_checked() {
    assert_eq!(wrong(0x1fe, [0x55, 0xab]), BootError::BootFlag { found: 0xab55 });
    assert_eq!(wrong(0x202, *b"HdrX"), BootError::Magic { found: *b"HdrX" });
    assert_eq!(wrong(0x206, [0x0b, 0x02]), BootError::Version { found: 0x20b });
    assert_eq!(wrong(0x201, [0x65]), BootError::HeaderLength { end: 0x267 });
    assert_eq!(wrong(0x201, [0x8f]), BootError::HeaderLength { end: 0x291 });
    assert_eq!(wrong(0x211, [0x80]), BootError::LoadedLow);
    assert_eq!(wrong(0x236, [0x3e, 0]), BootError::Not64Bit { flags: 0x3e });
    assert_eq!(wrong(0x1f4, [0; 4]), BootError::Empty);
    assert_eq!(wrong(0x1f4, [1, 1, 0, 0]), BootError::Truncated { bytes: 6656, needed: 2560 + 0x1010 });
    assert_eq!(wrong(0x1f1, [5]), BootError::Truncated { bytes: 6656, needed: 6656 + 512 });
    assert_eq!(wrong(0x230, [0, 0, 0x30, 0]), BootError::Alignment { alignment: 0x30_0000 });
    assert_eq!(wrong(0x230, [0; 4]), BootError::Alignment { alignment: 0 });
    assert_eq!(wrong(0x258, u64::MAX.to_le_bytes()), BootError::LoadAddress { address: u64::MAX });
    assert_eq!(wrong(0x258, (1u64 << 32).to_le_bytes()), BootError::LoadAddress { address: 1 << 32 });
    let too_large = BootError::KernelTooLarge { start: 16 * MIB, needed: 48 * MIB + 1, memory_end: 64 * MIB };
    assert_eq!(wrong(0x260, [1, 0, 0, 3]), too_large);
}

#[test]
fn every_prefix_of_a_kernel_is_truncated() {
    let mut file = bzimage(0x800);
    let needed = file.len() as u64;
    for bytes in 0..file.len() {
        let error = plan(&file[..bytes], None, "", PAGES).unwrap_err();
        assert!(
            matches!(error, BootError::Truncated { bytes: b, needed: n } if b == bytes as u64 && n <= needed)
        );
    }
    assert!(plan(&file, None, "", PAGES).is_ok());
    file.extend([0xcc; 100]);
    let signed = plan(&file, None, "", PAGES).unwrap();
    assert_eq!(signed.kernel, &file[2560..2560 + 0x800], "a signature after the kernel is not loaded");
}

#[test]
fn no_setup_sectors_means_four() {
    let mut file = bzimage(0x1000);
    let expected = plan(&file, None, "", PAGES).unwrap().kernel.to_vec();
    set(&mut file, 0x1f1, [0]);
    assert_eq!(plan(&file, None, "", PAGES).unwrap().kernel, expected);
}

#[test]
fn errors_name_the_figures() {
    let text = |error: BootError| error.to_string();
    let expect = [
        (wrong(0x1f4, 0x10_0000u32.to_le_bytes()), "guest kernel: truncated: 6,656 bytes of 16,779,776"),
        (wrong(0x1fe, [0, 0]), "guest kernel: not a bzImage: 0x0000 at 0x1fe instead of 0xaa55"),
        (wrong(0x202, *b"\x7fELF"), "guest kernel: not a bzImage: \"\\x7fELF\" at 0x202 instead of \"HdrS\""),
        (wrong(0x206, [6, 2]), "guest kernel: boot protocol 2.06 is too old, 2.12 is needed"),
        (
            wrong(0x260, [0, 0, 0, 0x10]),
            "guest kernel: needs 268,435,456 bytes from 0x1000000 on, but the guest's memory below 4 GiB ends at 0x4000000",
        ),
    ];
    for (error, expected) in expect {
        assert_eq!(text(error), expected);
    }
    assert_eq!(
        text(BootError::InitrdTooLarge { bytes: 1_000_007, room: 999 }),
        "guest initrd: 1,000,007 bytes, but the guest has room for 999"
    );
}

#[test]
fn the_command_line_is_as_long_as_the_kernel_takes() {
    let file = bzimage(0x1000);
    let longest = "x".repeat(2047);
    assert!(plan(&file, None, &longest, PAGES).is_ok());
    let longer = "x".repeat(2048);
    assert_eq!(
        plan(&file, None, &longer, PAGES),
        Err(BootError::CommandLineTooLong { bytes: 2048, limit: 2047 })
    );
    assert_eq!(plan(&file, None, "ro\0quiet", PAGES), Err(BootError::CommandLineZero { position: 2 }));
    let mut file = file;
    set(&mut file, 0x238, u32::MAX.to_le_bytes());
    let too_long = "x".repeat(4096);
    assert_eq!(
        plan(&file, None, &too_long, PAGES),
        Err(BootError::CommandLineTooLong { bytes: 4096, limit: 4095 }),
        "no longer than its place"
    );
}

#[test]
fn the_guest_fits_between_the_kernel_and_what_the_hypervisor_keeps() {
    let file = bzimage(0x1000);
    let plan = |pages| plan(&file, None, "", pages).map(|_| ());
    let smallest = 18 * MIB / 4096;
    assert_eq!(plan(smallest), Ok(()));
    assert!(matches!(plan(smallest - 1), Err(BootError::KernelTooLarge { .. })));
    assert!(matches!(plan(0), Err(BootError::KernelTooLarge { memory_end: 0, .. })));
    assert_eq!(plan(MAX_PAGES), Ok(()));
    let high = memory_ranges(MAX_PAGES)[1];
    assert_eq!((high.0 + high.1) * 4096, PRIVATE_START);
    assert_eq!(
        plan(MAX_PAGES + 1),
        Err(BootError::MemoryTooLarge { pages: MAX_PAGES + 1, limit: MAX_PAGES })
    );
    assert!(plan(u64::MAX).is_err());
}

#[test]
fn a_kernel_is_loaded_where_it_runs() {
    let mut file = bzimage(0x1000);
    let start = |file: &[u8]| plan(file, None, "", PAGES).map(|plan| plan.kernel_start);
    assert_eq!(start(&file), Ok(16 * MIB));
    set(&mut file, 0x258, (16 * MIB + 1).to_le_bytes());
    assert_eq!(start(&file), Ok(18 * MIB), "aligned");
    set(&mut file, 0x258, 0u64.to_le_bytes());
    assert_eq!(start(&file), Ok(2 * MIB), "above what is below 1 MiB");
    set(&mut file, 0x234, [0]);
    assert_eq!(start(&file), Err(BootError::LoadAddress { address: 0 }));
    set(&mut file, 0x258, (3 * MIB).to_le_bytes());
    assert_eq!(start(&file), Ok(3 * MIB), "nowhere else");
}

#[test]
fn an_initrd_is_as_high_as_it_may_be() {
    let mut file = bzimage(0x1000);
    let place = |file: &[u8], bytes: u64, pages| {
        let initrd = vec![1; usize::try_from(bytes).unwrap()];
        plan(file, Some(&initrd), "", pages).map(|plan| plan.initrd_start)
    };
    let top = 64 * MIB;
    assert_eq!(place(&file, 1, PAGES), Ok(top - 4096));
    assert_eq!(place(&file, 4096, PAGES), Ok(top - 4096));
    assert_eq!(place(&file, 4097, PAGES), Ok(top - 8192));
    assert_eq!(place(&file, 46 * MIB, PAGES), Ok(18 * MIB), "down to the kernel");
    let too_large = BootError::InitrdTooLarge { bytes: 46 * MIB + 1, room: 46 * MIB };
    assert_eq!(place(&file, 46 * MIB + 1, PAGES), Err(too_large));
    assert!(place(&file, 64 * MIB + 1, PAGES).is_err());
    // 4 GiB of memory: low memory ends at 3 GiB.
    let gib_4 = 1 << 20;
    assert_eq!(place(&file, 1, gib_4), Ok(0xc000_0000 - 4096));
    set(&mut file, 0x236, [1, 0]);
    assert_eq!(place(&file, 1, gib_4), Ok(0x8000_0000 - 4096), "initrd_addr_max");
    set(&mut file, 0x22c, 0x37f_ffffu32.to_le_bytes());
    assert_eq!(place(&file, 1, PAGES), Ok(0x380_0000 - 4096));
    set(&mut file, 0x22c, 0u32.to_le_bytes());
    assert_eq!(place(&file, 1, PAGES), Err(BootError::InitrdTooLarge { bytes: 1, room: 0 }));
    assert_eq!(plan(&file, Some(&[]), "", PAGES).unwrap().initrd_start, 0, "an empty one is none");
}

#[test]
fn an_initrd_is_in_the_loading_nodes_memory_if_it_fits() {
    let file = bzimage(0x1000);
    let initrd = vec![1; 0x5000];
    let place = |near| {
        let shares = [share(near), share(PAGES - near)];
        super::plan(&file, Some(&initrd), "", &shares).map(|plan| plan.initrd_start)
    };
    let top = 64 * MIB;
    assert_eq!(place(40 * MIB / 4096), Ok(40 * MIB - 0x5000));
    assert_eq!(place(18 * MIB / 4096 + 4), Ok(top - 0x5000), "it does not fit above the kernel there");
    assert_eq!((place(0), place(PAGES)), (Ok(top - 0x5000), Ok(top - 0x5000)));
}

#[test]
fn any_kernel_is_refused_or_planned_within_memory() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let good = bzimage(0x1000);
    let initrd = vec![0; 3 << 20];
    let mut planned = 0;
    for _ in 0..20_000 {
        let mut file = good.clone();
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(0x1f1..0x268);
            file[at] = if random.random() {
                random.random()
            } else {
                [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)]
            };
        }
        let initrd = &initrd[..random.random_range(0..initrd.len())];
        let pages = random.random::<u64>() >> random.random_range(0..64);
        let Ok(plan) = plan(&file, Some(initrd), "", pages) else { continue };
        planned += 1;
        let low_end = memory_ranges(pages)[0].1 * 4096;
        let kernel_end = plan.kernel_start + plan.kernel.len() as u64;
        assert!(plan.kernel_start >= MIB && kernel_end <= low_end);
        if !initrd.is_empty() {
            assert!(plan.initrd_start >= kernel_end && plan.initrd_start + initrd.len() as u64 <= low_end);
            assert_eq!(plan.initrd_start % 4096, 0);
        }
    }
    assert!(planned > 1000, "{planned}");
    for _ in 0..1000 {
        let mut noise = vec![0; random.random_range(0..4096)];
        random.fill_bytes(&mut noise);
        let text: String = plan(&noise, None, "", PAGES).unwrap_err().to_string();
        assert!(text.starts_with("guest kernel: "), "{text}");
    }
}
