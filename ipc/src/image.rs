//! The boot module: one file that carries the whole system, written by xtask, read by the kernel.
//!
//! ```text
//! Header | Entry * n | contents, each at a multiple of 16 bytes; blobs last, each at a page
//! ```
//!
//! One entry holds the [`SystemDescriptor`], and each service has two: its [`ServiceDescriptor`] and its ELF file.
//! Descriptors are postcard; every entry carries the CRC-32 (IEEE) of its contents, so a truncated or damaged
//! module is refused with the name of what is damaged. Reading allocates nothing and trusts nothing.
//!
//! A blob is a file that a service reads where the boot loader put it: whole pages, so that they can be mapped without a
//! copy and show nothing of their neighbours. The first page holds a [`BlobHeader`] and zeros, the file follows, and zeros
//! fill its last page. The kernel need not read the whole of it: the entry's CRC covers the first page alone, and that of
//! the file is in the header, for the service to check.

use core::fmt;

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{MAX_CAPABILITIES, MAX_NAME_BYTES, MAX_REGIONS, Name, PAGE_SIZE};
use crate::guest::{BLOB_CONTENTS, BLOB_MAGIC, BlobHeader, Shares};

/// The first bytes of an image; the last digit is the format's version.
pub const MAGIC: [u8; 8] = *b"UNUMIMG3";
/// The most devices one image can name.
pub const MAX_DEVICES: usize = 16;
/// Bytes of a driver's address space that a device's BARs have, an eighth of it each.
pub const DEVICE_WINDOW_BYTES: u64 = 64 << 20;
/// The most PCI device numbers that one [`DeviceDescriptor`] can list.
pub const MAX_DEVICE_IDS: usize = 4;
/// A name in a descriptor.
pub type NameString = String<MAX_NAME_BYTES>;

/// The start of an image.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of the whole image.
    pub total_bytes: u64,
    /// Entries that follow.
    pub entry_count: u32,
    /// CRC-32 of the entry table.
    pub table_crc: u32,
}

/// What an [`Entry`] holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum EntryKind {
    /// The [`SystemDescriptor`].
    System = 0,
    /// A [`ServiceDescriptor`], in the order of the services' numbers.
    Service = 1,
    /// The ELF file of the service of the same name.
    Elf = 2,
    /// A file for a service, at a multiple of [`PAGE_SIZE`] from the image's start and of whole pages, the first of which
    /// begins with a [`BlobHeader`].
    Blob = 3,
}

/// One part of an image.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// Whose it is.
    pub name: Name,
    /// An [`EntryKind`].
    pub kind: u32,
    /// CRC-32 of the contents; of [`EntryKind::Blob`]: of their first page.
    pub crc: u32,
    /// Where the contents begin, from the image's start.
    pub offset: u64,
    /// Bytes of contents.
    pub length: u64,
}

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<Entry>() == 40);

/// What concerns the whole system.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SystemDescriptor {
    /// The image's name.
    pub name: String<32>,
    /// Services in the image.
    pub service_count: u8,
    /// Memory that the manifest names.
    pub regions: Vec<RegionDescriptor, MAX_REGIONS>,
    /// PCI functions that the manifest gives to services.
    pub devices: Vec<DeviceDescriptor, MAX_DEVICES>,
    /// The guest, when the image has one.
    pub guest: Option<GuestDescriptor>,
}

/// The guest, as far as the kernel has to know it. Each of the three services that serve it holds
/// [`ObjectDescriptor::Guest`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestDescriptor {
    /// The number of the service that gets the exits of its vCPUs and sees its memory.
    pub platform: u8,
    /// The number of the service that owns its memory.
    pub memory: u8,
    /// The number of the service that places its vCPUs.
    pub placement: u8,
    /// The number of the service that carries its pages between nodes, and so gets the pool of frames
    /// ([`ObjectDescriptor::GuestFrames`]); there when there are several shares.
    pub carrier: Option<u8>,
    /// What each node gives: vCPUs, 1 to [`crate::vcpu::MAX_VCPUS`] together, of which each is a thread of its node's kernel;
    /// and pages, which together are its memory ([`crate::vcpu::memory_ranges`]). A node without a share has no guest.
    pub shares: Shares,
    /// Pages that a node must have left for itself.
    pub keep_pages: u64,
    /// Pages from [`crate::vcpu::PRIVATE_START`] on, for the walk cache's tables; 0 when that is off.
    pub private_pages: u32,
    /// The priority of its vCPUs: less urgent than the three services.
    pub priority: u8,
}

/// A piece of memory that the kernel sets aside at boot, zeroed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RegionDescriptor {
    /// Its name.
    pub name: NameString,
    /// Pages of 4 KiB; the frames are contiguous. Of a blob: its length.
    pub pages: u32,
    /// What it is for.
    pub kind: RegionKind,
}

/// What a region is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RegionKind {
    /// Memory of one service, zeroed when that service restarts.
    Private,
    /// Memory of one service that outlives its restarts.
    Kept,
    /// Memory of two or more services (a channel, say), never zeroed after boot.
    Shared,
    /// Like `Shared`, below 4 GiB, and its holders may learn its physical addresses.
    Dma,
    /// Not memory of its own, but the [`EntryKind::Blob`] of the same name where it lies in the module; only to read.
    Blob,
}

/// A PCI function that one service drives.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DeviceDescriptor {
    /// Its name.
    pub name: NameString,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device numbers, any of which matches.
    pub device_ids: Vec<u16, MAX_DEVICE_IDS>,
    /// How many matching functions to pass over, so that a node's second card can be named.
    pub skip: u8,
    /// MSI-X entries that its driver uses.
    pub interrupts: u8,
}

/// One service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceDescriptor {
    /// Its name; its ELF entry has the same.
    pub name: NameString,
    /// 0 is the most urgent.
    pub priority: u8,
    /// The longest it may run without waiting, in microseconds.
    pub budget_us: u32,
    /// Threads it may have, the first included.
    pub threads: u8,
    /// Stack of each thread in bytes, whole pages.
    pub stack_bytes: u32,
    /// Heap in bytes, whole pages.
    pub heap_bytes: u32,
    /// The core of its first thread, modulo the number of cores; `None` lets the kernel spread services.
    pub core: Option<u8>,
    /// Whether its threads serve calls on their own core and time (for a service bound to a core), rather than on
    /// the caller's.
    pub pinned: bool,
    /// Restarts within `restart_period_ms` after which it stays down.
    pub restart_limit: u16,
    /// The period that `restart_limit` counts over, in milliseconds.
    pub restart_period_ms: u32,
    /// Milliseconds between two beats to the supervisor, 0 for none due.
    pub beat_ms: u32,
    /// [`RIGHT_SUPERVISE`], [`RIGHT_INSPECT`], [`RIGHT_READ_LOGS`], [`RIGHT_STOP_NODE`].
    pub rights: u32,
    /// What it may use, in the order of its capability table.
    pub capabilities: Vec<CapabilityDescriptor, MAX_CAPABILITIES>,
}

/// [`ServiceDescriptor::rights`]: stop, reload and start services, and read fault reports.
pub const RIGHT_SUPERVISE: u32 = 1;
/// [`ServiceDescriptor::rights`]: read the kernel's counters.
pub const RIGHT_INSPECT: u32 = 2;
/// [`ServiceDescriptor::rights`]: read the node's log.
pub const RIGHT_READ_LOGS: u32 = 4;
/// [`ServiceDescriptor::rights`]: power off or reset the node.
pub const RIGHT_STOP_NODE: u32 = 8;

/// One right of a service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CapabilityDescriptor {
    /// What the service calls it.
    pub name: NameString,
    /// To what.
    pub object: ObjectDescriptor,
}

/// What a capability stands for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ObjectDescriptor {
    /// Calling a service's endpoint.
    Endpoint {
        /// The service's number.
        service: u8,
    },
    /// Raising notification bits of a service.
    Notification {
        /// The service's number.
        service: u8,
        /// The bits.
        bits: u64,
    },
    /// Memory.
    Region {
        /// Index in [`SystemDescriptor::regions`].
        region: u8,
        /// Where the service finds it.
        address: u64,
        /// Whether it may write.
        writable: bool,
    },
    /// An ISA interrupt.
    Interrupt {
        /// The ISA line, 0 to 15; the kernel applies the MADT's overrides.
        line: u8,
        /// The bit that it raises.
        bits: u64,
    },
    /// I/O ports.
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
    },
    /// A PCI function: becomes one start entry for its configuration space, one for each memory BAR, one for each
    /// MSI-X interrupt. When the node has no such function the service finds none of them.
    Device {
        /// Index in [`SystemDescriptor::devices`].
        device: u8,
        /// Where its BARs are mapped, one after another.
        address: u64,
        /// The bit of its first interrupt; the next has the next bit.
        first_bit: u8,
    },
    /// The guest ([`SystemDescriptor::guest`]); its capability is called [`GUEST_CAPABILITY`]. What the holder may do
    /// with it follows from its part in [`GuestDescriptor`].
    Guest,
    /// The frames that the guest's pages can have, as DMA memory: becomes a start entry for each contiguous piece, in the
    /// order of the frames' numbers, mapped one behind the other. When the node runs no guest the service finds none.
    GuestFrames {
        /// Where the service finds the first.
        address: u64,
    },
}

/// What the services that serve the guest call it.
pub const GUEST_CAPABILITY: &str = "guest";
/// What its carrier calls the frames of the guest's pool.
pub const GUEST_FRAMES: &str = "guest-frames";

/// Why an image is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImageError {
    /// Shorter than its header says, or than a header.
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        there: u64,
    },
    /// It does not begin with [`MAGIC`].
    NotAnImage,
    /// The entry table's checksum is wrong.
    TableDamaged,
    /// An entry's contents lie outside the image.
    OutOfBounds(Name),
    /// An entry's checksum is wrong.
    Damaged(Name),
    /// An entry's descriptor cannot be decoded.
    BadDescriptor(Name),
    /// A blob is not of whole pages at a page's start, or its header does not describe it.
    BadBlob(Name),
    /// No entry of this kind and name.
    Missing(EntryKind, Name),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, there } => {
                write!(f, "boot module truncated: {there} bytes of {needed}")
            }
            Self::NotAnImage => f.write_str("boot module is not a Unum image"),
            Self::TableDamaged => f.write_str("boot module's table is damaged"),
            Self::OutOfBounds(name) => write!(f, "boot module: '{name}' lies outside the module"),
            Self::Damaged(name) => write!(f, "boot module: '{name}' is damaged (checksum)"),
            Self::BadDescriptor(name) => write!(f, "boot module: the descriptor of '{name}' is malformed"),
            Self::BadBlob(name) => write!(f, "boot module: the blob '{name}' is malformed"),
            Self::Missing(kind, name) => write!(f, "boot module: no {kind:?} entry for '{name}'"),
        }
    }
}

impl core::error::Error for ImageError {}

/// An image that was checked: header, table and bounds. Contents are checked as they are read.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    table_crc: u32,
    entries: &'a [Entry],
}

impl<'a> Image<'a> {
    /// Checks the header, the table and every entry's bounds.
    ///
    /// # Errors
    /// The [`ImageError`] that says what is wrong, with the entry's name where there is one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let there = bytes.len() as u64;
        let truncated = |needed| ImageError::Truncated { needed, there };
        let (header, rest) =
            Header::read_from_prefix(bytes).map_err(|_| truncated(size_of::<Header>() as u64))?;
        if header.magic != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        if header.total_bytes > there {
            return Err(truncated(header.total_bytes));
        }
        let count = header.entry_count as usize;
        let (entries, _) = <[Entry]>::ref_from_prefix_with_elems(rest, count).map_err(|_| {
            truncated((size_of::<Header>() as u64).saturating_add(count as u64 * size_of::<Entry>() as u64))
        })?;
        if crc32fast::hash(entries.as_bytes()) != header.table_crc {
            return Err(ImageError::TableDamaged);
        }
        for entry in entries {
            let end = entry.offset.checked_add(entry.length);
            if end.is_none_or(|end| end > header.total_bytes) {
                return Err(ImageError::OutOfBounds(entry.name));
            }
        }
        Ok(Self { bytes, table_crc: header.table_crc, entries })
    }

    /// What tells this image from others: the CRC-32 of its table, which has length and CRC-32 of every part.
    #[must_use]
    pub const fn checksum(&self) -> u64 {
        self.table_crc as u64
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// An entry's contents, checked; of a blob the first page is.
    ///
    /// # Errors
    /// [`ImageError::Damaged`], [`ImageError::OutOfBounds`].
    pub fn contents(&self, entry: &Entry) -> Result<&'a [u8], ImageError> {
        let out = ImageError::OutOfBounds(entry.name);
        let start = usize::try_from(entry.offset).map_err(|_| out)?;
        let length = usize::try_from(entry.length).map_err(|_| out)?;
        let contents = self.bytes.get(start..).and_then(|b| b.get(..length)).ok_or(out)?;
        let covered = if entry.kind == EntryKind::Blob as u32 {
            contents.get(..PAGE_SIZE).unwrap_or(contents)
        } else {
            contents
        };
        if crc32fast::hash(covered) != entry.crc {
            return Err(ImageError::Damaged(entry.name));
        }
        Ok(contents)
    }

    /// The system's descriptor.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::Damaged`], [`ImageError::BadDescriptor`].
    pub fn system(&self) -> Result<SystemDescriptor, ImageError> {
        let entry = self.entries.iter().find(|e| e.kind == EntryKind::System as u32).ok_or_else(|| {
            ImageError::Missing(EntryKind::System, Name::new("system").unwrap_or(Name([0; MAX_NAME_BYTES])))
        })?;
        decode(entry, self.contents(entry)?)
    }

    /// Where contents that this image gave begin, in bytes from the image's start.
    #[must_use]
    pub fn offset_of(&self, contents: &[u8]) -> usize {
        contents.as_ptr().addr().saturating_sub(self.bytes.as_ptr().addr())
    }

    /// The services' entries, in the order of their numbers.
    pub fn services(&self) -> impl Iterator<Item = &'a Entry> + use<'a> {
        self.entries.iter().filter(|e| e.kind == EntryKind::Service as u32)
    }

    /// The descriptor in a service's entry.
    ///
    /// # Errors
    /// [`ImageError::Damaged`], [`ImageError::BadDescriptor`].
    pub fn service(&self, entry: &Entry) -> Result<ServiceDescriptor, ImageError> {
        decode(entry, self.contents(entry)?)
    }

    /// The ELF file of the service with this name.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::Damaged`].
    pub fn elf(&self, name: Name) -> Result<&'a [u8], ImageError> {
        self.contents(self.named(EntryKind::Elf, name)?)
    }

    /// The blob with this name: whole pages at a multiple of [`PAGE_SIZE`] from the image's start, whose header fits their
    /// number. The file in it is not checked.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::BadBlob`], [`ImageError::Damaged`] (the first page).
    pub fn blob(&self, name: Name) -> Result<&'a [u8], ImageError> {
        let entry = self.named(EntryKind::Blob, name)?;
        let contents = self.contents(entry)?;
        let bad = ImageError::BadBlob(name);
        let (header, _) = BlobHeader::read_from_prefix(contents).map_err(|_| bad)?;
        let bytes = header.bytes.checked_add(BLOB_CONTENTS as u64).ok_or(bad)?;
        let is_sound = header.magic == BLOB_MAGIC
            && entry.offset.is_multiple_of(PAGE_SIZE as u64)
            && bytes.checked_next_multiple_of(PAGE_SIZE as u64) == Some(entry.length);
        if is_sound { Ok(contents) } else { Err(bad) }
    }

    fn named(&self, kind: EntryKind, name: Name) -> Result<&'a Entry, ImageError> {
        let mut entries = self.entries.iter();
        entries.find(|e| e.kind == kind as u32 && e.name == name).ok_or(ImageError::Missing(kind, name))
    }
}

fn decode<'a, T: Deserialize<'a>>(entry: &Entry, contents: &'a [u8]) -> Result<T, ImageError> {
    postcard::from_bytes(contents).map_err(|_| ImageError::BadDescriptor(entry.name))
}

#[cfg(test)]
mod tests;
