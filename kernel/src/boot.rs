//! What a boot protocol hands over, whichever it was: the same from [`crate::pvh`] and [`crate::multiboot2`].

use core::fmt;

use heapless::String;

use crate::address::PhysAddr;
use crate::memory_map::{MapError, MemoryMap};
use crate::physical::{PhysMemory, read};

/// The longest command line in bytes.
pub const MAX_COMMAND_LINE: usize = 256;
/// The most modules, and the most entries of a memory map, that are looked at before the list counts as absurd.
pub const MAX_LIST: u32 = 1024;

/// Where the ACPI root pointer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RsdpLocation {
    /// Nobody said: look where a BIOS puts it.
    Unknown,
    /// At this address.
    Address(PhysAddr),
    /// The boot loader copied it; the old form fills the first 20 bytes.
    Copy([u8; 36]),
}

/// What the kernel learns from its boot loader.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BootInformation {
    /// The memory map, as firmware has it: nothing is excluded from it yet.
    pub memory: MemoryMap,
    /// Address and bytes of the first boot module, which lies whole in usable memory.
    pub module: Option<(PhysAddr, u64)>,
    /// The kernel's command line.
    pub command_line: String<MAX_COMMAND_LINE>,
    /// The ACPI root pointer.
    pub rsdp: RsdpLocation,
}

/// Why what the boot loader handed over is refused. `what` names the structure or tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootError {
    /// It lies where there is no memory to read.
    Unreadable {
        /// The part.
        what: &'static str,
        /// Where it should be.
        at: PhysAddr,
    },
    /// It has not the magic number that it should begin with.
    BadMagic {
        /// The part.
        what: &'static str,
        /// The number that it begins with.
        found: u32,
    },
    /// It is of a version that has not what the kernel needs.
    BadVersion {
        /// The part.
        what: &'static str,
        /// The version.
        found: u32,
    },
    /// It ends before all of it is there.
    Truncated {
        /// The part.
        what: &'static str,
        /// Bytes that are there.
        bytes: u32,
    },
    /// It says that it holds more than can be.
    Absurd {
        /// The part.
        what: &'static str,
        /// How many entries or bytes it says.
        count: u32,
    },
    /// No memory map is there.
    NoMemoryMap,
    /// The command line is not UTF-8, or longer than [`MAX_COMMAND_LINE`] bytes.
    BadCommandLine,
    /// The module does not lie whole in usable memory, or is empty.
    BadModule {
        /// Where it should begin.
        start: u64,
        /// Where it should end.
        end: u64,
    },
    /// The module and the boot loader's own structure overlap: one has destroyed the other.
    ModuleOverlaps {
        /// The structure.
        what: &'static str,
    },
    /// The memory map cannot be taken over.
    BadMemoryMap(MapError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { what, at } => write!(f, "{what}: no memory at {:#x}", at.0),
            Self::BadMagic { what, found } => write!(f, "{what}: wrong magic number {found:#x}"),
            Self::BadVersion { what, found } => write!(f, "{what}: version {found} is not supported"),
            Self::Truncated { what, bytes } => write!(f, "{what}: truncated, only {bytes} bytes"),
            Self::Absurd { what, count } => write!(f, "{what}: absurd size {count}"),
            Self::NoMemoryMap => f.write_str("the boot loader gave no memory map"),
            Self::BadCommandLine => {
                write!(f, "command line: not UTF-8, or more than {MAX_COMMAND_LINE} bytes")
            }
            Self::BadModule { start, end } => {
                write!(f, "boot module: {start:#x} to {end:#x} is not usable memory")
            }
            Self::ModuleOverlaps { what } => write!(f, "boot module: overlaps the {what}"),
            Self::BadMemoryMap(error) => write!(f, "memory map: {error}"),
        }
    }
}

impl From<MapError> for BootError {
    fn from(error: MapError) -> Self {
        Self::BadMemoryMap(error)
    }
}

/// The module from `start` to `end`, if it lies in usable memory and not in `occupied` (start and end of `what`).
pub(crate) fn module(
    memory: &MemoryMap,
    (start, end): (u64, u64),
    (what, occupied): (&'static str, (u64, u64)),
) -> Result<(PhysAddr, u64), BootError> {
    let length = end.saturating_sub(start);
    if !memory.is_usable(PhysAddr(start), length) {
        return Err(BootError::BadModule { start, end });
    }
    if start < occupied.1 && occupied.0 < end {
        return Err(BootError::ModuleOverlaps { what });
    }
    Ok((PhysAddr(start), length))
}

/// The zero-terminated command line at an address.
pub(crate) fn command_line(
    memory: &dyn PhysMemory,
    at: PhysAddr,
) -> Result<String<MAX_COMMAND_LINE>, BootError> {
    let unreadable = BootError::Unreadable { what: "command line", at };
    let mut bytes = heapless::Vec::new();
    loop {
        // Byte by byte, because what follows the terminator may not be there.
        let place = at.0.checked_add(bytes.len() as u64).ok_or(unreadable)?;
        let byte = read::<u8>(memory, PhysAddr(place)).ok_or(unreadable)?;
        if byte == 0 {
            return String::from_utf8(bytes).map_err(|_| BootError::BadCommandLine);
        }
        bytes.push(byte).map_err(|_| BootError::BadCommandLine)?;
    }
}
