//! The multiboot2 boot protocol: the information structure whose address GRUB passes in `ebx`.
//!
//! Source: Multiboot2 Specification 2.0, 3.6 (boot information format).

use zerocopy::FromBytes;

use crate::address::PhysAddr;
use crate::boot::{self, BootError, BootInformation, MAX_COMMAND_LINE, RsdpLocation};
use crate::memory_map::{Kind, MemoryMap};
use crate::physical::{PhysMemory, field, read};

/// The longest information structure that is believed, in bytes: GRUB adds symbols and a framebuffer's palette, but
/// no megabytes.
const MAX_BYTES: u32 = 1 << 20;
const WHAT: &str = "multiboot2 information";
const HEADER_BYTES: usize = 8;

#[derive(FromBytes)]
#[repr(C)]
struct TagHeader {
    kind: u32,
    bytes: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// The tags that the kernel looks at, without their headers.
#[derive(Default)]
struct Tags<'a> {
    command_line: Option<&'a [u8]>,
    module: Option<&'a [u8]>,
    memory_map: Option<&'a [u8]>,
    old_rsdp: Option<&'a [u8]>,
    new_rsdp: Option<&'a [u8]>,
}

/// Reads the information structure at an address.
///
/// # Errors
/// The [`BootError`] that names the tag and what is wrong with it.
pub fn parse(memory: &dyn PhysMemory, at: PhysAddr) -> Result<BootInformation, BootError> {
    let unreadable = BootError::Unreadable { what: WHAT, at };
    let total: u32 = read(memory, at).ok_or(unreadable)?;
    if total > MAX_BYTES {
        return Err(BootError::Absurd { what: WHAT, count: total });
    }
    let bytes = memory.bytes(at, total as usize).ok_or(unreadable)?;
    let tags = tags(bytes.get(HEADER_BYTES..).ok_or(BootError::Truncated { what: WHAT, bytes: total })?)?;
    let map = memory_map(tags.memory_map.ok_or(BootError::NoMemoryMap)?)?;
    let module = match tags.module {
        None => None,
        Some(tag) => {
            let truncated = BootError::Truncated { what: "module tag", bytes: size(tag) };
            let start: u32 = field(tag, 0).ok_or(truncated)?;
            let end: u32 = field(tag, 4).ok_or(truncated)?;
            let own = (at.0, at.0.saturating_add(u64::from(total)));
            Some(boot::module(&map, (start.into(), end.into()), (WHAT, own))?)
        }
    };
    Ok(BootInformation {
        memory: map,
        module,
        command_line: tags.command_line.map_or_else(|| Ok(heapless::String::new()), command_line)?,
        rsdp: match (tags.new_rsdp, tags.old_rsdp) {
            (Some(tag), _) => rsdp("new ACPI root pointer tag", tag, 36)?,
            (None, Some(tag)) => rsdp("old ACPI root pointer tag", tag, 20)?,
            (None, None) => RsdpLocation::Unknown,
        },
    })
}

/// Walks the tags up to the end tag. Of several of a kind the first counts.
fn tags(mut rest: &[u8]) -> Result<Tags<'_>, BootError> {
    let mut tags = Tags::default();
    loop {
        let truncated = |what| BootError::Truncated { what, bytes: size(rest) };
        let header: TagHeader = field(rest, 0).ok_or(truncated("multiboot2 tag list"))?;
        let mut other = None;
        let (what, slot) = match header.kind {
            0 => return Ok(tags),
            1 => ("command line tag", &mut tags.command_line),
            3 => ("module tag", &mut tags.module),
            6 => ("memory map tag", &mut tags.memory_map),
            14 => ("old ACPI root pointer tag", &mut tags.old_rsdp),
            15 => ("new ACPI root pointer tag", &mut tags.new_rsdp),
            _ => ("multiboot2 tag", &mut other),
        };
        let length = header.bytes as usize;
        if length < HEADER_BYTES {
            return Err(BootError::Absurd { what, count: header.bytes });
        }
        slot.get_or_insert(rest.get(HEADER_BYTES..length).ok_or(truncated(what))?);
        // The next tag is aligned to 8 bytes; the structure itself is, so the length tells.
        rest = rest.get(length.next_multiple_of(8)..).ok_or(truncated(what))?;
    }
}

/// The tag holds the size of an entry, a version, and entries.
fn memory_map(tag: &[u8]) -> Result<MemoryMap, BootError> {
    const WHAT: &str = "memory map tag";
    let truncated = BootError::Truncated { what: WHAT, bytes: size(tag) };
    let entry_bytes: u32 = field(tag, 0).ok_or(truncated)?;
    if (entry_bytes as usize) < size_of::<MemoryMapEntry>() {
        return Err(BootError::Absurd { what: WHAT, count: entry_bytes });
    }
    let mut map = MemoryMap::new();
    for entry in tag.get(8..).ok_or(truncated)?.chunks(entry_bytes as usize) {
        let whole = Some(entry).filter(|entry| entry.len() == entry_bytes as usize);
        let entry: MemoryMapEntry = whole.and_then(|entry| field(entry, 0)).ok_or(truncated)?;
        map.add(entry.start, entry.bytes, Kind::from_e820(entry.kind))?;
    }
    Ok(map)
}

fn command_line(tag: &[u8]) -> Result<heapless::String<MAX_COMMAND_LINE>, BootError> {
    let line = tag.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = core::str::from_utf8(line).map_err(|_| BootError::BadCommandLine)?;
    text.try_into().map_err(|_| BootError::BadCommandLine)
}

fn rsdp(what: &'static str, tag: &[u8], length: usize) -> Result<RsdpLocation, BootError> {
    let from = tag.get(..length).ok_or(BootError::Truncated { what, bytes: size(tag) })?;
    let mut copy = [0; 36];
    for (to, from) in copy.iter_mut().zip(from) {
        *to = *from;
    }
    Ok(RsdpLocation::Copy(copy))
}

/// Bytes of a part of the structure, which [`MAX_BYTES`] bounds.
fn size(part: &[u8]) -> u32 {
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tags in tests are short")]
mod tests {
    extern crate std;
    use std::{format, string::String, vec::Vec};

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::physical::fake::Pieces;

    const INFO: u64 = 0x10_0000;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn tag(kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut tag = Vec::from(kind.to_le_bytes());
        tag.extend((contents.len() as u32 + 8).to_le_bytes());
        tag.extend(contents);
        tag.resize(tag.len().next_multiple_of(8), 0xee);
        tag
    }

    fn information(tags: &[Vec<u8>]) -> Vec<u8> {
        let body = tags.concat();
        let mut all = words(&[body.len() as u64 + 8]);
        all.extend(body);
        all
    }

    fn map() -> Vec<u8> {
        tag(6, &words(&[24, 0, 0x9_f000, 1, 0x10_0000, 0x700_0000, 1]))
    }

    fn end() -> Vec<u8> {
        tag(0, &[])
    }

    fn try_parse(bytes: &[u8]) -> Result<BootInformation, String> {
        parse(&Pieces::default().with(INFO, bytes), PhysAddr(INFO)).map_err(|e| format!("{e}"))
    }

    fn complete() -> Vec<u8> {
        information(&[
            tag(1, b"log=1\0"),
            tag(99, b"unknown"),
            tag(3, &[&words(&[0x30_1000 << 32 | 0x30_0000])[..], b"unum.image\0"].concat()),
            tag(14, &[7; 20]),
            tag(15, &[9; 36]),
            map(),
            tag(17, &words(&[48, 7, 0, 0, 100, 0, 0])),
            end(),
        ])
    }

    #[test]
    fn what_grub_gives_is_understood() {
        let info = try_parse(&complete()).unwrap();
        assert_eq!(info.command_line, "log=1");
        assert_eq!(info.module, Some((PhysAddr(0x30_0000), 0x1000)));
        assert_eq!(info.rsdp, RsdpLocation::Copy([9; 36]));
        assert_eq!(info.memory.usable_bytes(), 0x709_f000);
    }

    #[test]
    fn the_old_root_pointer_stands_in() {
        let info = try_parse(&information(&[map(), tag(14, &[7; 20]), end()])).unwrap();
        let RsdpLocation::Copy(copy) = info.rsdp else { panic!("{:?}", info.rsdp) };
        assert_eq!((&copy[..20], &copy[20..]), (&[7; 20][..], &[0; 16][..]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = [b'x'; 257];
        for (tags, text) in [
            (Vec::from([end()]), "the boot loader gave no memory map"),
            (Vec::from([map()]), "multiboot2 tag list: truncated, only 0 bytes"),
            (Vec::from([map(), tag(1, &long), end()]), "command line: not UTF-8, or more than 256 bytes"),
            (Vec::from([map(), tag(1, &[0xff]), end()]), "command line: not UTF-8, or more than 256 bytes"),
            (Vec::from([map(), tag(3, &[0; 7]), end()]), "module tag: truncated, only 7 bytes"),
            (
                Vec::from([map(), tag(3, &words(&[0x30_0000 << 32 | 0x30_0001])), end()]),
                "boot module: 0x300001 to 0x300000 is not usable memory",
            ),
            (
                Vec::from([map(), tag(3, &words(&[0x10_0010 << 32 | 0xf_f000])), end()]),
                "boot module: 0xff000 to 0x100010 is not usable memory",
            ),
            (
                Vec::from([map(), tag(3, &words(&[0x10_1000 << 32 | 0x10_0000])), end()]),
                "boot module: overlaps the multiboot2 information",
            ),
            (
                Vec::from([map(), tag(15, &[0; 35]), end()]),
                "new ACPI root pointer tag: truncated, only 35 bytes",
            ),
            (Vec::from([tag(6, &words(&[23, 0, 0, 0])), end()]), "memory map tag: absurd size 23"),
            (Vec::from([tag(6, &words(&[24, 0, 0])), end()]), "memory map tag: truncated, only 24 bytes"),
            (
                Vec::from([tag(6, &words(&[24, 1 << 52, 1 << 20, 1])), end()]),
                "memory map: usable memory of 0x100000 bytes at 0x10000000000000 ends beyond 52 bits of address",
            ),
        ] {
            assert_eq!(try_parse(&information(&tags)), Err(text.into()));
        }
        let tiny = words(&[0x0000_0007_0000_0003]);
        let mut tags = information(&[map(), tiny, end()]);
        assert_eq!(try_parse(&tags), Err("module tag: absurd size 7".into()));
        tags[0] -= 12;
        assert_eq!(try_parse(&tags), Err("multiboot2 tag list: truncated, only 4 bytes".into()));
        tags[3] = 1;
        assert!(try_parse(&tags).unwrap_err().starts_with("multiboot2 information: absurd size 1677"));
        assert_eq!(
            try_parse(&[7, 0, 0, 0, 0, 0, 0]),
            Err("multiboot2 information: truncated, only 7 bytes".into())
        );
        assert_eq!(try_parse(&[9, 0, 0, 0, 0]), Err("multiboot2 information: no memory at 0x100000".into()));
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let mut random = StdRng::seed_from_u64(0x4d42_3200);
        let good = complete();
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            if let Ok(info) = try_parse(&bytes)
                && let Some((start, length)) = info.module
            {
                assert!(info.memory.is_usable(start, length));
            }
        }
    }
}
