//! What a plan writes into the guest's memory.

use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::*;
use super::{MIB, PAGES, bzimage, plan};
use crate::acpi::LegacyPic;
use crate::acpi::testing::one_node;
use crate::memory::testing::Ram;

fn get<const N: usize>(ram: &Ram, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(GuestPhysAddr(at), &mut bytes).unwrap();
    bytes
}

fn u32_at(ram: &Ram, at: u64) -> u32 {
    u32::from_le_bytes(get(ram, at))
}

fn u64_at(ram: &Ram, at: u64) -> u64 {
    u64::from_le_bytes(get(ram, at))
}

#[test]
fn what_is_loaded_reads_back() {
    let file = bzimage(0x2_3450);
    let initrd: Vec<u8> = (0..100_001u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let plan = plan(&file, Some(&initrd), "console=ttyS0 quiet", PAGES).unwrap();
    let mut ram = Ram(vec![0xa5; 64 << 20]);
    let platform = one_node(2, PAGES, LegacyPic::Present);
    let state = plan.load(&mut ram, &platform).unwrap();

    assert_eq!(state.registers.rip, 16 * MIB + 0x200);
    let params = state.registers.rsi;
    // The setup header is the kernel's but for what a loader fills in.
    for (at, &byte) in file.iter().enumerate().take(0x26c).skip(0x1f1) {
        let filled = [0x1fa..0x1fc, 0x210..0x211, 0x214..0x220, 0x228..0x22c, 0x250..0x258];
        if !filled.iter().any(|range| range.contains(&at)) {
            assert_eq!(get(&ram, params + at as u64), [byte], "{at:#x}");
        }
    }
    assert_eq!(get(&ram, params + 0x1fa), [0xff, 0xff], "vid_mode");
    assert_eq!(get(&ram, params + 0x210), [0xff], "type_of_loader");
    assert_eq!(u32_at(&ram, params + 0x214), 0x100_0000, "code32_start");
    assert_eq!(u64_at(&ram, params + 0x250), 0, "setup_data");
    assert_eq!(u64_at(&ram, params + 0x70), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(get(&ram, params + 0x1ef), [0], "sentinel");
    let initrd_start = u64::from(u32_at(&ram, params + 0x218)) | u64::from(u32_at(&ram, params + 0xc0)) << 32;
    assert_eq!((u32_at(&ram, params + 0x21c), u32_at(&ram, params + 0xc4)), (100_001, 0));
    let part = |at: u64, bytes: usize| &ram.0[usize::try_from(at).unwrap()..][..bytes];
    assert_eq!(part(initrd_start, initrd.len()), initrd);
    assert_eq!(part(16 * MIB, 0x2_3450), &file[2560..]);
    assert_eq!(u32_at(&ram, params + 0xc8), 0);
    let command_line = u64::from(u32_at(&ram, params + 0x228));
    assert_eq!(part(command_line, 20), b"console=ttyS0 quiet\0");
    assert_eq!(part(0xe_0000, 8), b"RSD PTR ");
    assert_eq!(
        (get(&ram, 0x40e), get(&ram, 0x413)),
        ([0xc0, 0x9f], [0x7f, 0x02]),
        "EBDA, conventional memory"
    );
    assert_eq!((get(&ram, 0x400), get(&ram, 0x9_fc00)), ([0xf8, 0x03], [1]), "COM1, EBDA size");
    // The memory map.
    let map: Vec<_> = (0..u64::from(get::<1>(&ram, params + 0x1e8)[0]))
        .map(|i| params + 0x2d0 + 20 * i)
        .map(|at| (u64_at(&ram, at), u64_at(&ram, at + 8), u32_at(&ram, at + 16)))
        .collect();
    assert_eq!(
        map,
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xe_0000, 0x2_0000, 2), (0x10_0000, 63 * MIB, 1)]
    );
    // The GDT.
    let gdt = state.system.gdtr.base;
    assert_eq!(u64_at(&ram, gdt), 0);
    assert_eq!(u64_at(&ram, gdt + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(u64_at(&ram, gdt + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn the_page_tables_map_4_gib_to_themselves_and_nothing_else() {
    let file = bzimage(0x1000);
    let mut ram = Ram(vec![0xff; 64 << 20]);
    let platform = one_node(1, PAGES, LegacyPic::Present);
    let state = plan(&file, None, "", PAGES).unwrap().load(&mut ram, &platform).unwrap();
    let walk = |address: u64| {
        let mut table = state.system.cr3;
        for shift in [39, 30, 21] {
            let entry = u64_at(&ram, table + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            assert_eq!(entry & 0xfff0_0000_0000_0002, 2, "writable, executable, no reserved bits");
            if entry & 0x80 != 0 {
                return Some((entry & 0x000f_ffff_ffff_f000) + (address & ((1 << shift) - 1)));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        panic!("no page of 2 MiB at {address:#x}");
    };
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for address in (0..4000).map(|_| random.random_range(0..1u64 << 32)).chain([0, 0xffff_ffff]) {
        assert_eq!(walk(address), Some(address));
    }
    for address in (0..4000).map(|_| random.random_range(1u64 << 32..1 << 48)).chain([1 << 32, 1 << 39]) {
        assert_eq!(walk(address), None, "{address:#x}");
    }
}

#[test]
fn the_memory_map_of_a_large_guest_has_memory_above_4_gib() {
    let map: Vec<_> = memory_map(2 << 20).map(|e| (e.start.get(), e.bytes.get(), e.kind.get())).collect();
    assert_eq!(map[3..], [(MIB, 0xc000_0000 - MIB, 1), (1 << 32, (8 << 30) - 0xc000_0000, 1)]);
}

/// Memory that only notes how it is written.
struct Notes(Vec<(u64, usize)>);

impl GuestMemory for Notes {
    fn read(&self, at: GuestPhysAddr, _: &mut [u8]) -> Result<(), NotMemory> {
        Err(NotMemory(at))
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        self.0.push((at.0, bytes.len()));
        Ok(())
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        Err(NotMemory(at))
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        _: u32,
        _: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        Err(NotMemory(at))
    }
}

#[test]
fn large_parts_are_written_in_aligned_pieces() {
    let file = bzimage(0x2_0010);
    let initrd = vec![0; 200_000];
    let platform = one_node(1, PAGES, LegacyPic::Present);
    let mut notes = Notes(Vec::new());
    plan(&file, Some(&initrd), "", PAGES).unwrap().load(&mut notes, &platform).unwrap();
    for &(at, bytes) in &notes.0 {
        assert!(bytes > 0 && at / PIECE == (at + bytes as u64 - 1) / PIECE, "{bytes} at {at:#x}");
    }
    let kernel = notes.0.iter().filter(|(at, _)| (16 * MIB..17 * MIB).contains(at)).copied();
    assert_eq!(
        kernel.collect::<Vec<_>>(),
        [(0x100_0000, 0x1_0000), (0x101_0000, 0x1_0000), (0x102_0000, 0x10)]
    );
}

#[test]
fn missing_memory_is_an_error() {
    let file = bzimage(0x1000);
    let platform = one_node(1, PAGES, LegacyPic::Present);
    let plan = plan(&file, Some(&[1; 10]), "", PAGES).unwrap();
    let load = |bytes| plan.load(&mut Ram::new(bytes), &platform).map(|_| ());
    assert_eq!(load(64 << 20), Ok(()));
    assert_eq!(load((64 << 20) - 4096), Err(LoadError::Memory { at: GuestPhysAddr(64 * MIB - 4096) }));
    assert_eq!(load(16 << 20), Err(LoadError::Memory { at: GuestPhysAddr(16 * MIB) }));
    assert!(load(0).is_err());
    let nobody = Platform { processors: Vec::new(), ..platform.clone() };
    assert!(matches!(plan.load(&mut Ram::new(0), &nobody), Err(LoadError::Acpi(_))));
}
