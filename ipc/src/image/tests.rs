use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::IntoBytes;

use super::{
    CapabilityDescriptor, Entry, EntryKind, GUEST_CAPABILITY, GuestDescriptor, Header, Image, ImageError,
    MAGIC, ObjectDescriptor, RIGHT_INSPECT, RegionDescriptor, RegionKind, ServiceDescriptor,
    SystemDescriptor,
};
use crate::abi::{Name, PAGE_SIZE};
use crate::guest::{BLOB_CONTENTS, BLOB_MAGIC, BlobHeader, Share};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn system() -> SystemDescriptor {
    let region = RegionDescriptor { name: "counters".try_into().unwrap(), pages: 3, kind: RegionKind::Kept };
    SystemDescriptor {
        name: "unum".try_into().unwrap(),
        service_count: 1,
        regions: heapless::Vec::from_array([region]),
        devices: heapless::Vec::new(),
        guest: Some(GuestDescriptor {
            platform: 3,
            memory: 1,
            placement: 2,
            carrier: Some(5),
            shares: heapless::Vec::from_iter([
                Share { node: 1, vcpus: 4, pages: 1 << 26 },
                Share { node: 2, vcpus: 64, pages: 1 },
            ]),
            keep_pages: 4096,
            private_pages: 2048,
            priority: 12,
        }),
    }
}

fn service() -> ServiceDescriptor {
    let capability = CapabilityDescriptor {
        name: "log-port".try_into().unwrap(),
        object: ObjectDescriptor::Ports { first: 0x2f8, count: 8 },
    };
    let guest =
        CapabilityDescriptor { name: GUEST_CAPABILITY.try_into().unwrap(), object: ObjectDescriptor::Guest };
    ServiceDescriptor {
        name: "health".try_into().unwrap(),
        priority: 8,
        budget_us: 50_000,
        threads: 1,
        stack_bytes: 0x8000,
        heap_bytes: 0x4_0000,
        core: None,
        pinned: false,
        restart_limit: 5,
        restart_period_ms: 10_000,
        beat_ms: 500,
        rights: RIGHT_INSPECT,
        capabilities: [capability, guest].into_iter().collect(),
    }
}

/// An image, laid out as the module's documentation says.
fn image(parts: &[(&str, EntryKind, Vec<u8>)]) -> Vec<u8> {
    let mut contents = Vec::new();
    let mut entries = Vec::new();
    let start = (size_of::<Header>() + parts.len() * size_of::<Entry>()).next_multiple_of(16);
    for (part, kind, bytes) in parts {
        let offset = (start + contents.len()) as u64;
        let (kind, crc, length) = (*kind as u32, crc32fast::hash(bytes), bytes.len() as u64);
        entries.push(Entry { name: name(part), kind, crc, offset, length });
        contents.extend_from_slice(bytes);
        contents.resize(contents.len().next_multiple_of(16), 0);
    }
    let table = entries.as_slice().as_bytes();
    let header = Header {
        magic: MAGIC,
        total_bytes: (start + contents.len()) as u64,
        entry_count: u32::try_from(parts.len()).unwrap(),
        table_crc: crc32fast::hash(table),
    };
    let mut image = [header.as_bytes(), table].concat();
    image.resize(start, 0);
    image.extend_from_slice(&contents);
    image
}

fn postcard<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut buffer = [0; 4096];
    postcard::to_slice(value, &mut buffer).unwrap().to_vec()
}

fn good() -> Vec<u8> {
    image(&[
        ("system", EntryKind::System, postcard(&system())),
        ("health", EntryKind::Service, postcard(&service())),
        ("health", EntryKind::Elf, b"\x7fELF and so on".to_vec()),
    ])
}

/// Aligned memory, as the kernel finds a module.
#[repr(align(16))]
struct Aligned([u8; 2048]);

fn with<R>(bytes: &[u8], look: impl FnOnce(&[u8]) -> R) -> R {
    let mut memory = Aligned([0; 2048]);
    memory.0[..bytes.len()].copy_from_slice(bytes);
    look(&memory.0[..bytes.len()])
}

/// Reads everything that there is.
fn read(bytes: &[u8]) -> Result<(SystemDescriptor, Vec<ServiceDescriptor>, usize), ImageError> {
    let image = Image::parse(bytes)?;
    let system = image.system()?;
    let mut services = Vec::new();
    let mut elf_bytes = 0;
    for entry in image.services() {
        services.push(image.service(entry)?);
        elf_bytes += image.elf(entry.name)?.len();
    }
    Ok((system, services, elf_bytes))
}

#[test]
fn what_was_written_is_read() {
    let (read_system, services, elf_bytes) = with(&good(), read).unwrap();
    assert_eq!(read_system, system());
    assert_eq!(services, [service()]);
    assert_eq!(elf_bytes, 14);
}

#[test]
fn an_image_cut_off_anywhere_is_refused() {
    let good = good();
    for length in 0..good.len() {
        let told = with(&good[..length], |bytes| read(bytes).unwrap_err());
        let ImageError::Truncated { needed, there } = told else { panic!("{length}: {told}") };
        assert!(there == length as u64 && needed > there, "{length}: {told}");
    }
}

#[test]
fn damage_is_found_wherever_it_is() {
    let good = good();
    let end_of_table = size_of::<Header>() + 3 * size_of::<Entry>();
    let mut found = 0;
    for bit in 0..good.len() * 8 {
        let mut damaged = good.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // Only the padding between the parts is read by nobody.
        match with(&damaged, read) {
            Err(_) => found += 1,
            Ok(read) => {
                assert!(bit / 8 >= end_of_table, "bit {bit}");
                assert_eq!(read, with(&good, super::tests::read).unwrap());
            }
        }
    }
    assert!(found > end_of_table * 8 - 64);
}

#[test]
fn the_refusal_names_what_is_wrong() {
    let elf = |image: &[u8]| Image::parse(image).unwrap().elf(name("health")).unwrap_err();
    let mut damaged = good();
    let at = damaged.windows(4).position(|four| four == b"\x7fELF").unwrap();
    damaged[at] = 0;
    assert_eq!(with(&damaged, elf), ImageError::Damaged(name("health")));

    let mut other = good();
    other[7] = b'1';
    assert_eq!(with(&other, read).unwrap_err(), ImageError::NotAnImage);

    let mut table = good();
    table[size_of::<Header>()] = b'S';
    assert_eq!(with(&table, read).unwrap_err(), ImageError::TableDamaged);

    let parts =
        [("system", EntryKind::System, postcard(&system())), ("health", EntryKind::Service, std::vec![9; 3])];
    assert_eq!(with(&image(&parts), read).unwrap_err(), ImageError::BadDescriptor(name("health")));
    assert_eq!(
        with(&image(&parts[1..]), read).unwrap_err(),
        ImageError::Missing(EntryKind::System, name("system"))
    );
    let parts = [parts[0].clone(), ("health", EntryKind::Service, postcard(&service()))];
    assert_eq!(with(&image(&parts), read).unwrap_err(), ImageError::Missing(EntryKind::Elf, name("health")));
}

/// Changes an entry and gives the table its right checksum again, as one who forges an image would.
fn forge(mut image: Vec<u8>, entry: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let table = size_of::<Header>()..size_of::<Header>() + 3 * size_of::<Entry>();
    change(&mut image[table.clone()][entry * size_of::<Entry>()..][..size_of::<Entry>()]);
    let crc = crc32fast::hash(&image[table]);
    image[20..24].copy_from_slice(&crc.to_le_bytes());
    image
}

#[test]
fn an_entry_outside_the_image_is_refused() {
    for (offset, length) in [(u64::MAX, 1), (1, u64::MAX), (0, 100_000), (100_000, 0), (u64::MAX, u64::MAX)] {
        let forged = forge(good(), 1, |entry| {
            entry[24..32].copy_from_slice(&offset.to_le_bytes());
            entry[32..40].copy_from_slice(&length.to_le_bytes());
        });
        assert_eq!(with(&forged, read).unwrap_err(), ImageError::OutOfBounds(name("health")));
    }
}

#[test]
fn a_table_longer_than_the_image_is_refused() {
    for count in [100, u32::MAX / 2, u32::MAX] {
        let mut forged = good();
        forged[16..20].copy_from_slice(&count.to_le_bytes());
        assert!(matches!(with(&forged, read).unwrap_err(), ImageError::Truncated { .. }));
    }
}

#[test]
fn nothing_forged_panics() {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for _ in 0..20_000 {
        let forged = forge(good(), random.random_range(0..3), |entry| {
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..entry.len());
                entry[at] = random.random();
            }
        });
        drop(with(&forged, read));
        let noise: Vec<u8> = (0..random.random_range(0..200)).map(|_| random.random()).collect();
        drop(with(&[&MAGIC[..], &noise].concat(), read));
    }
}

/// The pages of a blob with this file.
fn blob(file: &[u8]) -> Vec<u8> {
    let (bytes, crc) = (file.len() as u64, crc32fast::hash(file));
    let mut pages = BlobHeader { magic: BLOB_MAGIC, bytes, crc, reserved: 0 }.as_bytes().to_vec();
    pages.resize(BLOB_CONTENTS, 0);
    pages.extend_from_slice(file);
    pages.resize(pages.len().next_multiple_of(PAGE_SIZE), 0);
    pages
}

/// An image of one blob, at an offset.
fn image_of_blob(pages: &[u8], offset: usize) -> Vec<u8> {
    let crc = crc32fast::hash(&pages[..PAGE_SIZE.min(pages.len())]);
    let (kind, length) = (EntryKind::Blob as u32, pages.len() as u64);
    let entry = Entry { name: name("guest-kernel"), kind, crc, offset: offset as u64, length };
    let total_bytes = (offset + pages.len()) as u64;
    let table_crc = crc32fast::hash(entry.as_bytes());
    let header = Header { magic: MAGIC, total_bytes, entry_count: 1, table_crc };
    let mut image = [header.as_bytes(), entry.as_bytes()].concat();
    image.resize(offset, 0);
    image.extend_from_slice(pages);
    image
}

#[repr(align(16))]
struct AlignedPages([u8; 8 * PAGE_SIZE]);

fn read_blob(image: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut memory = AlignedPages([0; 8 * PAGE_SIZE]);
    memory.0[..image.len()].copy_from_slice(image);
    Image::parse(&memory.0[..image.len()])?.blob(name("guest-kernel")).map(<[u8]>::to_vec)
}

#[test]
fn a_blob_is_read_as_its_pages() {
    for bytes in [0_usize, 1, 4095, 4096, 4097, 9000] {
        let pages = blob(&[7; 9000][..bytes]);
        assert_eq!(pages.len(), PAGE_SIZE + bytes.next_multiple_of(PAGE_SIZE));
        assert_eq!(read_blob(&image_of_blob(&pages, PAGE_SIZE)), Ok(pages));
    }
    let missing = with(&good(), |image| Image::parse(image).unwrap().blob(name("health")).map(<[u8]>::len));
    assert_eq!(missing, Err(ImageError::Missing(EntryKind::Blob, name("health"))));
}

#[test]
fn of_a_blob_the_first_page_alone_is_checked() {
    let sound = image_of_blob(&blob(&[7; 5000]), PAGE_SIZE);
    for at in [PAGE_SIZE, PAGE_SIZE + 8, 2 * PAGE_SIZE - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        assert_eq!(read_blob(&damaged), Err(ImageError::Damaged(name("guest-kernel"))), "{at}");
    }
    for at in [2 * PAGE_SIZE, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        assert!(read_blob(&damaged).is_ok(), "{at}");
    }
}

#[test]
fn a_malformed_blob_is_refused() {
    let bad = Err(ImageError::BadBlob(name("guest-kernel")));
    let pages = blob(&[7; 5000]);
    assert_eq!(read_blob(&image_of_blob(&pages, PAGE_SIZE + 16)), bad, "not at a page");
    assert_eq!(read_blob(&image_of_blob(&pages[..pages.len() - 16], PAGE_SIZE)), bad, "not whole pages");
    assert_eq!(read_blob(&image_of_blob(&pages[..2 * PAGE_SIZE], PAGE_SIZE)), bad, "a page too few");
    assert_eq!(
        read_blob(&image_of_blob(&[&pages[..], &[0; PAGE_SIZE]].concat(), PAGE_SIZE)),
        bad,
        "one more"
    );
    assert_eq!(read_blob(&image_of_blob(&[], PAGE_SIZE)), bad, "nothing");
    assert_eq!(read_blob(&image_of_blob(&pages[..16], PAGE_SIZE)), bad, "half a header");
    for bytes in [0, 4096, 8193, u64::MAX, u64::MAX - 4096] {
        let mut pages = pages.clone();
        pages[8..16].copy_from_slice(&bytes.to_le_bytes());
        assert_eq!(read_blob(&image_of_blob(&pages, PAGE_SIZE)), bad, "{bytes}");
    }
    let mut foreign = pages;
    foreign[0] = b'u';
    assert_eq!(read_blob(&image_of_blob(&foreign, PAGE_SIZE)), bad);
}
