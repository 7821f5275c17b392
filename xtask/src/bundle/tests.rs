//! Images round-trip, and damage of any kind is refused without a panic.

use ipc::abi::{IMAGE_BASE, Name, PAGE_SIZE};
use ipc::image::{Image, ImageError, ServiceDescriptor, SystemDescriptor};
use kernel::elf::Elf;
use kernel::paging::host::Access;
use proptest::prelude::*;

use super::{Blob, Manifest, build, elf};
use crate::given::{self, Given, GivenGuest};
use crate::manifest::Overrides;

const MANIFEST: &str = r#"
name = "test"
[[service]]
name = "supervisor"
priority = 0
budget = "50ms"
rights = ["supervise"]
regions = [{ name = "state", size = "4K", kept = true }]
[[service]]
name = "user"
priority = 5
budget = "50ms"
calls = ["supervisor"]
image = "12K"
"#;
const PAGE: u64 = PAGE_SIZE as u64;
const R: u32 = 4;
const RW: u32 = 6;
const RX: u32 = 5;

fn manifest() -> Manifest {
    Manifest::parse("test.toml", MANIFEST, &Overrides::default()).unwrap()
}

/// A segment to be: address, flags, bytes in memory, contents.
type Segment = (u64, u32, u64, Vec<u8>);

fn code() -> Segment {
    (IMAGE_BASE, RX, 0x123, (0..0x123_u32).map(|n| n.to_le_bytes()[0]).collect())
}

fn data() -> Segment {
    (IMAGE_BASE + 4 * PAGE, RW, 2 * PAGE, b"initial values".to_vec())
}

/// An ELF file as a linker might write it: contents one right after another, and a tail of debug information.
fn linked(segments: &[Segment]) -> Vec<u8> {
    let count = u16::try_from(segments.len()).unwrap();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for field in [IMAGE_BASE + 0x10, 64, 0x9000] {
        file.extend(u64::to_le_bytes(field));
    }
    for field in [0, 0, 64, 56, count, 64, 3, 1] {
        file.extend(u16::to_le_bytes(field));
    }
    let mut offset = 0x800;
    for (address, flags, bytes, contents) in segments {
        file.extend([[1, 0, 0, 0], flags.to_le_bytes()].concat());
        for field in [offset, *address, *address, contents.len() as u64, *bytes, 16] {
            file.extend(field.to_le_bytes());
        }
        offset += contents.len() as u64;
    }
    file.resize(0x800, 0);
    file.extend(segments.iter().flat_map(|(_, _, _, contents)| contents));
    file.extend([0xdb; 3_000]);
    file
}

fn sound() -> Vec<u8> {
    linked(&[code(), data()])
}

/// What a loader makes of an ELF file.
fn loaded(file: &[u8]) -> (u64, Vec<Segment>) {
    let elf = Elf::parse(file).unwrap();
    let segments = elf.segments().map(|segment| {
        let flags = match segment.access {
            Access::Read => R,
            Access::ReadExecute => RX,
            Access::ReadWrite => RW,
        };
        (segment.address.0, flags, segment.memory_bytes, elf.contents(segment).to_vec())
    });
    (elf.entry().0, segments.collect())
}

/// Everything in an image.
type Everything = (SystemDescriptor, Vec<(Name, ServiceDescriptor, Vec<u8>)>);

fn read(image: &[u8]) -> Result<Everything, ImageError> {
    let image = Image::parse(image)?;
    let services = image.services().map(|entry| {
        let descriptor = image.service(entry)?;
        Ok((entry.name, descriptor, image.elf(entry.name)?.to_vec()))
    });
    Ok((image.system()?, services.collect::<Result<_, _>>()?))
}

#[test]
fn an_image_holds_what_was_put_in() {
    let manifest = manifest();
    let image = build(&manifest, &[sound(), sound()], &[]).unwrap();
    let (system, services) = read(&image).unwrap();
    assert_eq!(system, manifest.system);
    assert_eq!(services.len(), 2);
    for ((name, descriptor, elf), wanted) in services.iter().zip(&manifest.descriptors) {
        assert_eq!(name.as_str(), descriptor.name.as_str());
        assert_eq!(descriptor, wanted);
        assert_eq!(loaded(elf), (IMAGE_BASE + 0x10, vec![code(), data()]));
        assert!(!elf.windows(8).any(|bytes| bytes == [0xdb; 8]), "debug information is left out");
    }
    assert!(Image::parse(&image).unwrap().entries().iter().all(|entry| entry.offset.is_multiple_of(16)));
}

#[test]
fn every_truncation_is_refused() {
    let image = build(&manifest(), &[sound(), sound()], &[]).unwrap();
    for length in 0..image.len() {
        let error = Image::parse(&image[..length]).expect_err("a truncated image");
        assert!(matches!(error, ImageError::Truncated { there, .. } if there == length as u64), "{error}");
    }
}

#[test]
fn a_program_too_big_is_refused_with_its_line() {
    let big = linked(&[code(), (IMAGE_BASE + 4 * PAGE, RW, 3 * PAGE, Vec::new())]);
    let error = build(&manifest(), &[big.clone(), big], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "test.toml:14: the service 'user' is too big: its program takes 16K of memory, 'image' allows 12K"
    );
}

#[test]
fn programs_that_the_kernel_could_not_load_are_refused() {
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let error = build(&manifest(), &[sound(), own], &[]).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "the program of service 'user' cannot be loaded: of type 3, not a static executable"
    );
    assert!(build(&manifest(), &[sound()], &[]).is_err());
}

#[test]
fn a_stripped_program_begins_its_segments_at_pages() {
    let file = elf::stripped(&Elf::parse(&sound()).unwrap());
    let starts: Vec<_> = Elf::parse(&file).unwrap().segments().map(|segment| segment.file.start).collect();
    assert_eq!(starts, [4096, 8192]);
    assert_eq!(file.len(), 8192 + 14);
}

/// A manifest with a guest, and its parts.
fn with_guest() -> (Manifest, Vec<Blob>) {
    let service = |n: u8| format!("[[service]]\nname = \"s{n}\"\npriority = {n}\nbudget = \"1s\"\n");
    let services: String = [1, 2, 3].map(service).concat();
    let supervisor = "[[service]]\nname = \"s0\"\npriority = 0\nbudget = \"1s\"\nrights = [\"supervise\"]\n";
    let guest =
        "[guest]\nplatform = \"s3\"\nmemory = \"s1\"\nplacement = \"s2\"\npriority = 9\nram = \"64M\"\n";
    let text = format!("name = \"test\"\n{supervisor}{services}{guest}");
    let blob = |name, bytes: usize| Blob { name, file: vec![7; bytes] };
    let blobs = vec![blob("guest-config", 20), blob("guest-kernel", 9_000), blob("guest-initrd", 4_096)];
    (Manifest::parse("test.toml", &text, &Overrides::default()).unwrap(), blobs)
}

#[test]
fn blobs_are_whole_pages_that_regions_describe() {
    let (manifest, blobs) = with_guest();
    let image = build(&manifest, &[sound(), sound(), sound(), sound()], &blobs).unwrap();
    let parsed = Image::parse(&image).unwrap();
    let system = parsed.system().unwrap();
    assert_eq!(system.guest, manifest.system.guest);
    for (blob, pages) in blobs.iter().zip([2_u32, 4, 2]) {
        let contents = parsed.blob(Name::new(blob.name).unwrap()).unwrap();
        assert_eq!(parsed.offset_of(contents) % PAGE_SIZE, 0);
        assert_eq!(contents.len(), pages as usize * PAGE_SIZE);
        assert!(contents[PAGE_SIZE..].starts_with(&blob.file));
        assert!(contents[PAGE_SIZE + blob.file.len()..].iter().all(|byte| *byte == 0));
        let region = system.regions.iter().find(|region| region.name == blob.name).unwrap();
        assert_eq!(region.pages, pages);
    }
}

#[test]
fn blobs_and_regions_must_fit() {
    let (manifest, blobs) = with_guest();
    let programs = [sound(), sound(), sound(), sound()];
    let told = |blobs: &[Blob]| build(&manifest, &programs, blobs).unwrap_err().to_string();
    assert_eq!(told(&blobs[..2]), "there are 2 blobs for 3 regions");
    let mut other = blobs.clone();
    other[1].name = "other";
    assert_eq!(told(&other), "no region is for the blob 'other'");
}

#[test]
fn an_image_that_was_made_before_is_looked_at_whole() {
    let (manifest, blobs) = with_guest();
    let image = build(&manifest, &[sound(), sound(), sound(), sound()], &blobs).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let look = |image: &[u8]| {
        std::fs::write(file.path(), image).unwrap();
        given::look_at(file.path())
    };
    let good = Given::Module {
        path: file.path().to_owned(),
        guest: Some(GivenGuest { nodes: 1, node_bytes: (64 << 20) + (16 << 20) + 4096 }),
    };
    assert_eq!(look(&image).unwrap(), good);
    // What the kernel does not check: the file in a blob.
    let mut damaged = image.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let error = format!("{:#}", look(&damaged).unwrap_err());
    assert!(error.ends_with("'guest-initrd' is damaged (checksum)"), "{error}");
    assert!(look(&image[..image.len() - 1]).is_err());
}

proptest! {
    #[test]
    fn a_damaged_image_is_refused(at in any::<proptest::sample::Index>(), flip in 1_u8..=255) {
        let mut image = build(&manifest(), &[sound(), sound()], &[]).unwrap();
        let whole = read(&image).unwrap();
        let at = at.index(image.len());
        image[at] ^= flip;
        // Only the padding between two parts may change unnoticed.
        match read(&image) {
            Ok(everything) => prop_assert_eq!(everything, whole),
            Err(ImageError::Damaged(name) | ImageError::OutOfBounds(name)) => {
                prop_assert!(["system", "supervisor", "user"].contains(&name.as_str()));
            }
            Err(error) => prop_assert!(at < 24 + 5 * 40, "{} at {}", error, at),
        }
    }

    #[test]
    fn a_damaged_program_never_panics(flips in proptest::collection::vec((0_usize..0x900, any::<u8>()), 1..8), cut in 0_usize..0x2000) {
        let mut file = sound();
        flips.iter().for_each(|&(at, byte)| file[at] = byte);
        file.truncate(cut.max(64));
        if let Ok(program) = Elf::parse(&file) {
            let stripped = elf::stripped(&program);
            prop_assert_eq!(loaded(&stripped), loaded(&file));
        }
    }
}
