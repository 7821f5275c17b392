//! The PVH boot protocol: `hvm_start_info`, as QEMU's `-kernel` passes it in `ebx`.
//!
//! Source: Xen, `public/arch-x86/hvm/start_info.h`; version 1 of the structure, which has the memory map.

use zerocopy::FromBytes;

use crate::address::PhysAddr;
use crate::boot::{self, BootError, BootInformation, MAX_LIST, RsdpLocation};
use crate::memory_map::{Kind, MemoryMap};
use crate::physical::{PhysMemory, read};

const MAGIC: u32 = 0x336e_c578;

#[derive(FromBytes)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    _reserved: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct Module {
    start: u64,
    bytes: u64,
    _command_line: u64,
    _reserved: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);
const _: () = assert!(size_of::<Module>() == 32);
const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// Reads the start information at an address.
///
/// # Errors
/// The [`BootError`] that names what is wrong.
pub fn parse(memory: &dyn PhysMemory, at: PhysAddr) -> Result<BootInformation, BootError> {
    const WHAT: &str = "PVH start info";
    let info: StartInfo = read(memory, at).ok_or(BootError::Unreadable { what: WHAT, at })?;
    if info.magic != MAGIC {
        return Err(BootError::BadMagic { what: WHAT, found: info.magic });
    }
    if info.version == 0 {
        return Err(BootError::BadVersion { what: WHAT, found: info.version });
    }
    let map = memory_map(memory, &info)?;
    let module = match info.modules {
        0 => None,
        1..=MAX_LIST => {
            let list = PhysAddr(info.module_list);
            let first: Module =
                read(memory, list).ok_or(BootError::Unreadable { what: "PVH module list", at: list })?;
            let place = (first.start, first.start.saturating_add(first.bytes));
            let own = (WHAT, (at.0, at.0.saturating_add(size_of::<StartInfo>() as u64)));
            Some(boot::module(&map, place, own)?)
        }
        count => return Err(BootError::Absurd { what: "PVH module list", count }),
    };
    Ok(BootInformation {
        memory: map,
        module,
        command_line: match info.command_line {
            0 => heapless::String::new(),
            line => boot::command_line(memory, PhysAddr(line))?,
        },
        rsdp: match info.rsdp {
            0 => RsdpLocation::Unknown,
            rsdp => RsdpLocation::Address(PhysAddr(rsdp)),
        },
    })
}

fn memory_map(memory: &dyn PhysMemory, info: &StartInfo) -> Result<MemoryMap, BootError> {
    const WHAT: &str = "PVH memory map";
    match info.memory_map_entries {
        0 => return Err(BootError::NoMemoryMap),
        1..=MAX_LIST => {}
        count => return Err(BootError::Absurd { what: WHAT, count }),
    }
    let mut map = MemoryMap::new();
    for i in 0..u64::from(info.memory_map_entries) {
        let at = PhysAddr(info.memory_map.saturating_add(i * size_of::<MemoryMapEntry>() as u64));
        let entry: MemoryMapEntry = read(memory, at).ok_or(BootError::Unreadable { what: WHAT, at })?;
        map.add(entry.start, entry.bytes, Kind::from_e820(entry.kind))?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{format, vec::Vec};

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::physical::fake::Pieces;

    const INFO: u64 = 0x7000;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn info() -> Vec<u8> {
        words(&[1 << 32 | u64::from(MAGIC), 1 << 32, 0x7100, 0x7200, 0xf5a40, 0x7300, 2])
    }

    fn boot() -> Pieces {
        Pieces::default()
            .with(INFO, info())
            .with(0x7100, words(&[0x40_0000, 0x1_0001, 0, 0]))
            .with(0x7200, *b"quiet log=2\0")
            .with(0x7300, words(&[0, 0x9_fc00, 1, 0x10_0000, 0x7f0_0000, 1]))
    }

    #[test]
    fn what_qemu_gives_is_understood() {
        let info = parse(&boot(), PhysAddr(INFO)).unwrap();
        assert_eq!(info.module, Some((PhysAddr(0x40_0000), 0x1_0001)));
        assert_eq!(info.command_line, "quiet log=2");
        assert_eq!(info.rsdp, RsdpLocation::Address(PhysAddr(0xf5a40)));
        assert_eq!(info.memory.usable_bytes(), 0x9_f000 + 0x7f0_0000);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refusal = |at: usize, value: u32| {
            let mut pieces = boot();
            pieces.0[0].1[at..at + 4].copy_from_slice(&value.to_le_bytes());
            format!("{}", parse(&pieces, PhysAddr(INFO)).unwrap_err())
        };
        assert_eq!(refusal(0, 7), "PVH start info: wrong magic number 0x7");
        assert_eq!(refusal(4, 0), "PVH start info: version 0 is not supported");
        assert_eq!(refusal(12, 1 << 31), "PVH module list: absurd size 2147483648");
        assert_eq!(refusal(16, 9), "PVH module list: no memory at 0x9");
        assert_eq!(refusal(24, 0x8000), "command line: no memory at 0x8000");
        assert_eq!(refusal(40, 0), "PVH memory map: no memory at 0x0");
        assert_eq!(refusal(48, 0), "the boot loader gave no memory map");
        assert_eq!(refusal(48, 3), "PVH memory map: no memory at 0x7330");
        assert_eq!(refusal(48, u32::MAX), "PVH memory map: absurd size 4294967295");
        let error = parse(&boot(), PhysAddr(INFO + 1)).unwrap_err();
        assert_eq!(format!("{error}"), "PVH start info: no memory at 0x7001");
    }

    #[test]
    fn a_module_must_be_somewhere_sound() {
        for (start, bytes, text) in [
            (0x40_0000, u64::MAX, "boot module: 0x400000 to 0xffffffffffffffff is not usable memory"),
            (0x40_0000, 0, "boot module: 0x400000 to 0x400000 is not usable memory"),
            (0x6000, 0x2000, "boot module: overlaps the PVH start info"),
        ] {
            let mut pieces = boot();
            pieces.0[1].1 = words(&[start, bytes, 0, 0]);
            assert_eq!(format!("{}", parse(&pieces, PhysAddr(INFO)).unwrap_err()), text);
        }
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let mut random = StdRng::seed_from_u64(0x5056_4800);
        for _ in 0..20_000 {
            let mut pieces = boot();
            for _ in 0..random.random_range(1..8) {
                let piece = random.random_range(0..4);
                let bytes = &mut pieces.0[piece].1;
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            if let Ok(info) = parse(&pieces, PhysAddr(INFO))
                && let Some((start, length)) = info.module
            {
                assert!(info.memory.is_usable(start, length));
            }
        }
    }
}
