//! Writes the boot module: a compiled manifest, its services' programs and the guest's parts in the format of
//! [`ipc::image`].

mod elf;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use ipc::abi::{Name, PAGE_SIZE};
use ipc::guest::{BLOB_CONTENTS, BLOB_MAGIC, BlobHeader};
use ipc::image::{Entry, EntryKind, Header, Image, MAGIC, RegionKind, SystemDescriptor};
use kernel::elf::Elf;
use zerocopy::IntoBytes;

use crate::manifest::{MAX_BLOB_BYTES, Manifest, Service};

/// Contents begin at a multiple of this, in bytes.
const ALIGNMENT: usize = 16;
/// The largest descriptor, in bytes: far more than one can be by its bounded parts.
const MAX_DESCRIPTOR_BYTES: usize = 1 << 16;

/// A file for a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// Its name, which is that of a region.
    pub name: &'static str,
    /// The file.
    pub file: Vec<u8>,
}

/// Writes the boot module of a manifest to a file; `program` says where a service's ELF file is, as it was built. `blobs`
/// are those that the manifest's regions name.
///
/// # Errors
/// A program cannot be read, is not sound or is too big (with the manifest's line), a blob is missing or too big, or the
/// file cannot be written.
pub fn write(
    manifest: &Manifest,
    program: impl Fn(&Service) -> PathBuf,
    blobs: &[Blob],
    out: &Path,
) -> anyhow::Result<()> {
    let read = |service| {
        let path = program(service);
        std::fs::read(&path).with_context(|| format!("the program {} cannot be read", path.display()))
    };
    let programs = manifest.services.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let bytes = build(manifest, &programs, blobs)?;
    std::fs::write(out, bytes).with_context(|| format!("the image {} cannot be written", out.display()))
}

/// The boot module of a manifest, in memory. `programs` are in the order of [`Manifest::services`].
fn build(manifest: &Manifest, programs: &[Vec<u8>], blobs: &[Blob]) -> anyhow::Result<Vec<u8>> {
    let count = manifest.services.len();
    ensure!(programs.len() == count, "there are {} programs for {count} services", programs.len());
    let system = with_lengths(&manifest.system, blobs)?;
    let mut parts = vec![part("system", EntryKind::System, encode(&system)?)?];
    for ((service, descriptor), program) in manifest.services.iter().zip(&manifest.descriptors).zip(programs)
    {
        let program = Elf::parse(program)
            .with_context(|| format!("the program of service '{}' cannot be loaded", service.name))?;
        let limit = &service.image_bytes;
        let loaded = elf::loaded_bytes(&program);
        if loaded > limit.value {
            let text = format!(
                "the service '{}' is too big: its program takes {}K of memory, 'image' allows {}K",
                service.name,
                loaded >> 10,
                limit.value >> 10
            );
            return Err(manifest.mistake(limit.line, text).into());
        }
        parts.push(part(&service.name, EntryKind::Service, encode(descriptor)?)?);
        parts.push(part(&service.name, EntryKind::Elf, elf::stripped(&program))?);
    }
    for blob in blobs {
        parts.push(part(blob.name, EntryKind::Blob, pages(&blob.file))?);
    }
    let image = assemble(parts);
    Image::parse(&image).context("the image that was built is not sound")?;
    Ok(image)
}

/// The system with the lengths of its blobs.
fn with_lengths(system: &SystemDescriptor, blobs: &[Blob]) -> anyhow::Result<SystemDescriptor> {
    let mut system = system.clone();
    let mut regions: Vec<_> = system.regions.iter_mut().filter(|r| r.kind == RegionKind::Blob).collect();
    ensure!(regions.len() == blobs.len(), "there are {} blobs for {} regions", blobs.len(), regions.len());
    for blob in blobs {
        let region = regions.iter_mut().find(|region| region.name == blob.name);
        let region = region.with_context(|| format!("no region is for the blob '{}'", blob.name))?;
        let bytes = blob.file.len().next_multiple_of(PAGE_SIZE) + BLOB_CONTENTS;
        let most = MAX_BLOB_BYTES >> 20;
        ensure!(bytes as u64 <= MAX_BLOB_BYTES, "the blob '{}' is larger than {most} MiB", blob.name);
        region.pages = u32::try_from(bytes / PAGE_SIZE)?;
    }
    Ok(system)
}

/// The pages of a blob.
fn pages(file: &[u8]) -> Vec<u8> {
    let header =
        BlobHeader { magic: BLOB_MAGIC, bytes: file.len() as u64, crc: crc32fast::hash(file), reserved: 0 };
    let mut pages = Vec::with_capacity(BLOB_CONTENTS + file.len().next_multiple_of(PAGE_SIZE));
    pages.extend(header.as_bytes());
    pages.resize(BLOB_CONTENTS, 0);
    pages.extend(file);
    pages.resize(pages.len().next_multiple_of(PAGE_SIZE), 0);
    pages
}

/// An entry whose place is not yet known, and its contents.
type Part = (Entry, Vec<u8>);

fn part(name: &str, kind: EntryKind, contents: Vec<u8>) -> anyhow::Result<Part> {
    let name = Name::new(name).with_context(|| format!("'{name}' is no name"))?;
    let covered = if kind == EntryKind::Blob { PAGE_SIZE.min(contents.len()) } else { contents.len() };
    let crc = crc32fast::hash(&contents[..covered]);
    Ok((Entry { name, kind: kind as u32, crc, offset: 0, length: contents.len() as u64 }, contents))
}

fn encode(descriptor: &impl serde::Serialize) -> anyhow::Result<Vec<u8>> {
    let mut buffer = vec![0; MAX_DESCRIPTOR_BYTES];
    Ok(postcard::to_slice(descriptor, &mut buffer)?.to_vec())
}

fn assemble(mut parts: Vec<Part>) -> Vec<u8> {
    let mut end = size_of::<Header>() + parts.len() * size_of::<Entry>();
    for (entry, contents) in &mut parts {
        let start = end.next_multiple_of(alignment(entry));
        entry.offset = start as u64;
        end = start + contents.len();
    }
    let table: Vec<u8> = parts.iter().flat_map(|(entry, _)| entry.as_bytes()).copied().collect();
    let header = Header {
        magic: MAGIC,
        total_bytes: end as u64,
        entry_count: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        table_crc: crc32fast::hash(&table),
    };
    let mut image = header.as_bytes().to_vec();
    image.extend(table);
    image.reserve_exact(end - image.len());
    for (entry, contents) in parts {
        image.resize(image.len().next_multiple_of(alignment(&entry)), 0);
        image.extend(contents);
    }
    image
}

fn alignment(entry: &Entry) -> usize {
    if entry.kind == EntryKind::Blob as u32 { PAGE_SIZE } else { ALIGNMENT }
}
