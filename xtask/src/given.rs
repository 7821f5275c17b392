//! An image that was made before, to be run as it is: an ISO or a boot module.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipc::guest::{BLOB_CONTENTS, BlobHeader, pool_frames};
use ipc::image::{EntryKind, Image, ImageError, MAGIC};
use zerocopy::FromBytes;

/// Where an ISO 9660 file system says that it is one (ECMA-119, 8.4).
const ISO_SIGN: (usize, &[u8]) = (0x8001, b"CD001");

/// What a file is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Given {
    /// An ISO. What it holds is not looked at.
    Iso(PathBuf),
    /// A boot module, checked.
    Module {
        /// Where it is.
        path: PathBuf,
        /// Its guest, when it has one.
        guest: Option<GivenGuest>,
    },
}

/// The guest of a boot module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GivenGuest {
    /// How many nodes it spans.
    pub nodes: u8,
    /// Memory that a node needs for it, in bytes.
    pub node_bytes: u64,
}

/// Looks at a file.
///
/// # Errors
/// It cannot be read, is neither, or is damaged: where.
pub fn look_at(path: &Path) -> Result<Given> {
    let bytes = fs::read(path).with_context(|| format!("the image {} cannot be read", path.display()))?;
    let (at, sign) = ISO_SIGN;
    if bytes.get(at..).is_some_and(|rest| rest.starts_with(sign)) {
        return Ok(Given::Iso(path.to_owned()));
    }
    let is_ours = bytes.get(..MAGIC.len() - 1) == MAGIC.get(..MAGIC.len() - 1);
    if is_ours && !bytes.starts_with(&MAGIC) {
        bail!("the image {} is of another version of Unum; make it anew", path.display());
    }
    if !is_ours {
        bail!("{} is neither an ISO nor a boot module of Unum", path.display());
    }
    let guest = check(&bytes).with_context(|| format!("the image {} is not sound", path.display()))?;
    Ok(Given::Module { path: path.to_owned(), guest })
}

/// Checks all parts of a boot module; its guest.
fn check(bytes: &[u8]) -> Result<Option<GivenGuest>, ImageError> {
    let image = Image::parse(bytes)?;
    for entry in image.entries() {
        image.contents(entry)?;
        if entry.kind == EntryKind::Blob as u32 {
            let (header, _) = BlobHeader::read_from_prefix(image.blob(entry.name)?)
                .map_err(|_| ImageError::BadBlob(entry.name))?;
            let file = image.blob(entry.name)?.get(BLOB_CONTENTS..).unwrap_or_default();
            let file = usize::try_from(header.bytes).ok().and_then(|bytes| file.get(..bytes));
            if file.map(crc32fast::hash) != Some(header.crc) {
                return Err(ImageError::Damaged(entry.name));
            }
        }
    }
    for entry in image.services() {
        image.service(entry)?;
        image.elf(entry.name)?;
    }
    let guest = image.system()?.guest;
    Ok(guest.map(|guest| {
        let most = guest.shares.iter().map(|share| share.pages).max().unwrap_or(0);
        let pages =
            pool_frames(most, guest.private_pages, guest.shares.len()).saturating_add(guest.keep_pages);
        GivenGuest {
            nodes: u8::try_from(guest.shares.len()).unwrap_or(u8::MAX),
            node_bytes: pages.saturating_mul(ipc::abi::PAGE_SIZE as u64),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(contents: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), contents).unwrap();
        match look_at(file.path()) {
            Ok(given) => format!("{given:?}"),
            Err(error) => format!("{error:#}").replace(&file.path().display().to_string(), "FILE"),
        }
    }

    #[test]
    fn files_are_told_apart() {
        assert_eq!(told(b""), "FILE is neither an ISO nor a boot module of Unum");
        assert_eq!(told(&[0; 40_000]), "FILE is neither an ISO nor a boot module of Unum");
        assert_eq!(told(b"UNUMIMG1 and so on"), "the image FILE is of another version of Unum; make it anew");
        let mut iso = vec![0; 40_000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        assert!(told(&iso).starts_with("Iso("));
        let short = [&MAGIC[..], &[0xff; 8]].concat();
        assert_eq!(told(&short), "the image FILE is not sound: boot module truncated: 16 bytes of 24");
        assert!(look_at(Path::new("no/image")).unwrap_err().to_string().contains("no/image cannot be read"));
    }
}
