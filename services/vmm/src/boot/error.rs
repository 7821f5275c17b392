//! What can be wrong with a kernel, an initrd or a command line.

use core::fmt;

use super::header::{MINIMUM_VERSION, SetupHeader};
use super::layout;
use crate::acpi::AcpiError;
use crate::memory::{GuestPhysAddr, NotMemory};

/// Why a guest cannot be booted from what was given. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootError {
    /// The kernel's file ends too early.
    Truncated {
        /// Its size.
        bytes: u64,
        /// What it must have at least.
        needed: u64,
    },
    /// The kernel has not the boot sector's mark 0xaa55 at 0x1fe.
    BootFlag {
        /// What it has there.
        found: u16,
    },
    /// The kernel has not the setup header's mark "HdrS" at 0x202.
    Magic {
        /// What it has there.
        found: [u8; 4],
    },
    /// The kernel's boot protocol is too old.
    Version {
        /// Major version in the high byte, minor in the low.
        found: u16,
    },
    /// The setup header's own length is out of range.
    HeaderLength {
        /// Where it says that it ends.
        end: usize,
    },
    /// A zImage, which is to be loaded below 1 MiB.
    LoadedLow,
    /// No entry for 64-bit mode.
    Not64Bit {
        /// The kernel's `xloadflags`.
        flags: u16,
    },
    /// There is nothing but the setup code.
    Empty,
    /// `kernel_alignment` is not a power of two.
    Alignment {
        /// What it is.
        alignment: u32,
    },
    /// The kernel must be loaded where it cannot be.
    LoadAddress {
        /// Where.
        address: u64,
    },
    /// The kernel needs more memory than there is below 3 GiB.
    KernelTooLarge {
        /// Where it begins.
        start: u64,
        /// What it needs to begin with.
        needed: u64,
        /// Where the guest's low memory ends.
        memory_end: u64,
    },
    /// There is no room for the initrd between the kernel and the end of the memory that it may be in.
    InitrdTooLarge {
        /// Its size.
        bytes: u64,
        /// The room for it.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length.
        bytes: u64,
        /// The most.
        limit: u64,
    },
    /// The command line has a zero byte.
    CommandLineZero {
        /// Which of its bytes, from 0.
        position: usize,
    },
    /// More memory than a guest can have.
    MemoryTooLarge {
        /// How many pages.
        pages: u64,
        /// The most.
        limit: u64,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KERNEL: &str = "guest kernel";
        const NO_BZIMAGE: &str = "guest kernel: not a bzImage";
        match *self {
            Self::Truncated { bytes, needed } => {
                write!(f, "{KERNEL}: truncated: {} bytes of {}", Grouped(bytes), Grouped(needed))
            }
            Self::BootFlag { found } => write!(f, "{NO_BZIMAGE}: {found:#06x} at 0x1fe instead of 0xaa55"),
            Self::Magic { found } => {
                write!(f, "{NO_BZIMAGE}: \"{}\" at 0x202 instead of \"HdrS\"", found.escape_ascii())
            }
            Self::Version { found } => write!(
                f,
                "{KERNEL}: boot protocol {}.{:02} is too old, {}.{:02} is needed",
                found >> 8,
                found & 0xff,
                MINIMUM_VERSION >> 8,
                MINIMUM_VERSION & 0xff,
            ),
            Self::HeaderLength { end } => write!(
                f,
                "{KERNEL}: setup header ends at {end:#x}, not in {:#x} to {:#x}",
                SetupHeader::MINIMUM_END,
                SetupHeader::MAXIMUM_END,
            ),
            Self::LoadedLow => {
                write!(f, "{KERNEL}: a zImage, which is loaded below 1 MiB; a bzImage is needed")
            }
            Self::Not64Bit { flags } => write!(f, "{KERNEL}: no 64-bit entry (xloadflags {flags:#06x})"),
            Self::Empty => write!(f, "{KERNEL}: setup code only, 0 bytes of kernel"),
            Self::Alignment { alignment } => {
                write!(f, "{KERNEL}: alignment {alignment:#x} is not a power of two")
            }
            Self::LoadAddress { address } => {
                write!(
                    f,
                    "{KERNEL}: load address {address:#x} is not in {:#x} to 4 GiB",
                    layout::HIGH_START.0
                )
            }
            Self::KernelTooLarge { start, needed, memory_end } => write!(
                f,
                "{KERNEL}: needs {} bytes from {start:#x} on, but the guest's memory below 4 GiB ends at {memory_end:#x}",
                Grouped(needed),
            ),
            Self::InitrdTooLarge { bytes, room } => {
                write!(
                    f,
                    "guest initrd: {} bytes, but the guest has room for {}",
                    Grouped(bytes),
                    Grouped(room)
                )
            }
            Self::CommandLineTooLong { bytes, limit } => {
                write!(
                    f,
                    "guest command line: {} bytes, but the kernel takes {}",
                    Grouped(bytes),
                    Grouped(limit)
                )
            }
            Self::CommandLineZero { position } => {
                write!(f, "guest command line: a zero byte at position {position} would end it")
            }
            Self::MemoryTooLarge { pages, limit } => {
                write!(
                    f,
                    "guest memory: {} pages, but at most {} are possible",
                    Grouped(pages),
                    Grouped(limit)
                )
            }
        }
    }
}

impl core::error::Error for BootError {}

/// Why loading failed after all checks of the plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoadError {
    /// There is no guest memory where the plan was promised some.
    Memory {
        /// Where.
        at: GuestPhysAddr,
    },
    /// The platform cannot be described.
    Acpi(AcpiError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { at } => write!(f, "guest memory: none at {:#x}", at.0),
            Self::Acpi(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<NotMemory> for LoadError {
    fn from(NotMemory(at): NotMemory) -> Self {
        Self::Memory { at }
    }
}

impl From<AcpiError> for LoadError {
    fn from(error: AcpiError) -> Self {
        Self::Acpi(error)
    }
}

/// A number with commas between its thousands.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1000 {
            write!(f, "{},{:03}", Self(self.0 / 1000), self.0 % 1000)
        } else {
            write!(f, "{}", self.0)
        }
    }
}
