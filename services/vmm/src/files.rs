//! What the image brings for the guest: files that lie in the boot module, checked.

use core::fmt;

use ipc::guest::{BLOB_CONTENTS, BLOB_MAGIC, BlobHeader, CONFIG_BLOB, GuestConfig, INITRD_BLOB, KERNEL_BLOB};
use rt::start::{Missing, Start};
use zerocopy::FromBytes;

/// What the guest is made from.
pub struct Files {
    /// What it is to be.
    pub config: GuestConfig,
    /// Its kernel, a bzImage.
    pub kernel: &'static [u8],
    /// Its initrd, if any.
    pub initrd: Option<&'static [u8]>,
}

/// Why there is nothing to make a guest from.
#[derive(Clone, Copy, Debug)]
pub enum FilesError {
    /// The image has no such file.
    Missing(Missing),
    /// The file is shorter than its header says, or has none.
    Truncated(&'static str),
    /// The file's checksum is wrong.
    Damaged(&'static str),
    /// The configuration cannot be decoded.
    BadConfig,
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::Truncated(name) => write!(f, "'{name}' is truncated"),
            Self::Damaged(name) => write!(f, "'{name}' is damaged (checksum)"),
            Self::BadConfig => write!(f, "'{CONFIG_BLOB}' is malformed"),
        }
    }
}

/// What the image brings.
///
/// # Errors
/// See [`FilesError`].
pub fn files(start: &Start<'_>) -> Result<Files, FilesError> {
    let config = postcard::from_bytes(contents(start, CONFIG_BLOB)?).map_err(|_| FilesError::BadConfig)?;
    let initrd = match start.blob(INITRD_BLOB) {
        Ok(_) => Some(contents(start, INITRD_BLOB)?),
        Err(_) => None,
    };
    Ok(Files { config, kernel: contents(start, KERNEL_BLOB)?, initrd })
}

fn contents(start: &Start<'_>, name: &'static str) -> Result<&'static [u8], FilesError> {
    let blob = start.blob(name).map_err(FilesError::Missing)?.bytes();
    let (header, _) = BlobHeader::read_from_prefix(blob).map_err(|_| FilesError::Truncated(name))?;
    let contents = usize::try_from(header.bytes)
        .ok()
        .filter(|_| header.magic == BLOB_MAGIC)
        .and_then(|bytes| blob.get(BLOB_CONTENTS..)?.get(..bytes))
        .ok_or(FilesError::Truncated(name))?;
    if crc32fast::hash(contents) == header.crc { Ok(contents) } else { Err(FilesError::Damaged(name)) }
}
