//! The setup header of a bzImage and the boot parameters (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::BootError;

/// The first version of the protocol with `xloadflags`, and so with an entry for 64-bit mode.
pub(super) const MINIMUM_VERSION: u16 = 0x020c;

/// The setup header, as far as version 2.12 has it. It begins at [`SetupHeader::OFFSET`], in the kernel's file as in the
/// boot parameters.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SetupHeader {
    /// Sectors of setup code after the first; 0 means 4.
    pub setup_sectors: u8,
    root_flags: U16,
    /// The size of the kernel proper in units of 16 bytes.
    pub paragraphs: U32,
    ram_size: U16,
    /// The video mode to set, or one of the special values.
    pub video_mode: U16,
    root_device: U16,
    /// See [`SetupHeader::BOOT_FLAG`].
    pub boot_flag: U16,
    /// A jump over the rest of the header; its second byte is that rest's length from 0x202 on.
    pub jump: [u8; 2],
    /// See [`SetupHeader::MAGIC`].
    pub magic: [u8; 4],
    /// The protocol's version, major in the high byte.
    pub version: U16,
    realmode_switch: U32,
    start_system_segment: U16,
    kernel_version: U16,
    /// Which boot loader this is.
    pub loader: u8,
    /// See [`SetupHeader::LOADED_HIGH`].
    pub load_flags: u8,
    setup_move_size: U16,
    /// Where the kernel was loaded.
    pub code32_start: U32,
    /// Where the initrd is, the low 32 bits.
    pub initrd_address: U32,
    /// The initrd's size in bytes, the low 32 bits.
    pub initrd_bytes: U32,
    bootsector_kludge: U32,
    heap_end: U16,
    extended_loader_version: u8,
    extended_loader_type: u8,
    /// Where the command line is, the low 32 bits.
    pub command_line: U32,
    /// The last address that a byte of the initrd may have.
    pub initrd_address_max: U32,
    /// What the load address of a relocatable kernel is a multiple of.
    pub kernel_alignment: U32,
    /// Whether it runs from where it is loaded; else from `preferred_address` alone.
    pub relocatable: u8,
    minimum_alignment: u8,
    /// See [`SetupHeader::KERNEL_64`].
    pub extended_load_flags: U16,
    /// The longest command line in bytes, without its final zero.
    pub command_line_bytes: U32,
    hardware_subarchitecture: U32,
    hardware_subarchitecture_data: U64,
    payload_offset: U32,
    payload_length: U32,
    /// A list of more parameters; 0 for none.
    pub setup_data: U64,
    /// Where it likes to be loaded.
    pub preferred_address: U64,
    /// How much memory it needs from where it runs, before it has looked at the memory map.
    pub initial_bytes: U32,
    handover_offset: U32,
}

impl SetupHeader {
    /// Where it begins.
    pub const OFFSET: usize = 0x1f1;
    /// What the jump's length is counted from.
    const JUMP_BASE: usize = 0x202;
    /// The earliest end: what version 2.12 has.
    pub const MINIMUM_END: usize = Self::OFFSET + size_of::<Self>();
    /// The latest end: what the boot parameters have room for.
    pub const MAXIMUM_END: usize = 0x290;
    /// Bytes of a sector.
    const SECTOR: u64 = 512;
    const BOOT_FLAG: u16 = 0xaa55;
    const MAGIC: [u8; 4] = *b"HdrS";
    /// `load_flags`: the kernel belongs at or above 1 MiB.
    pub const LOADED_HIGH: u8 = 1;
    /// `extended_load_flags`: it has an entry for 64-bit mode, at [`SetupHeader::ENTRY_64`].
    pub const KERNEL_64: u16 = 1;
    /// `extended_load_flags`: kernel, boot parameters, command line and initrd may be anywhere.
    pub const ABOVE_4G: u16 = 2;
    /// Where the kernel's 64-bit entry is, from its load address.
    pub const ENTRY_64: u64 = 0x200;

    /// The header of a kernel's file: its marks, version, kind and length are checked, and that the file has everything
    /// the header speaks of.
    pub fn of(file: &[u8]) -> Result<Self, BootError> {
        let bytes = file.len() as u64;
        let truncated = |needed| BootError::Truncated { bytes, needed };
        let (header, _) = file
            .get(Self::OFFSET..)
            .and_then(|rest| Self::read_from_prefix(rest).ok())
            .ok_or(truncated(Self::MINIMUM_END as u64))?;
        if header.boot_flag != Self::BOOT_FLAG {
            return Err(BootError::BootFlag { found: header.boot_flag.get() });
        }
        if header.magic != Self::MAGIC {
            return Err(BootError::Magic { found: header.magic });
        }
        if header.version < MINIMUM_VERSION {
            return Err(BootError::Version { found: header.version.get() });
        }
        if !(Self::MINIMUM_END..=Self::MAXIMUM_END).contains(&header.end()) {
            return Err(BootError::HeaderLength { end: header.end() });
        }
        if header.load_flags & Self::LOADED_HIGH == 0 {
            return Err(BootError::LoadedLow);
        }
        if header.extended_load_flags.get() & Self::KERNEL_64 == 0 {
            return Err(BootError::Not64Bit { flags: header.extended_load_flags.get() });
        }
        if header.paragraphs == 0 {
            return Err(BootError::Empty);
        }
        let needed = header.setup_bytes() + header.kernel_bytes();
        if bytes < needed { Err(truncated(needed)) } else { Ok(header) }
    }

    /// Where the header ends, in the file as in the boot parameters.
    pub fn end(&self) -> usize {
        Self::JUMP_BASE + usize::from(self.jump[1])
    }

    /// Bytes of the file before the kernel proper: boot sector and setup code.
    pub fn setup_bytes(&self) -> u64 {
        let sectors = if self.setup_sectors == 0 { 4 } else { self.setup_sectors };
        (u64::from(sectors) + 1) * Self::SECTOR
    }

    /// Bytes of the kernel proper.
    pub fn kernel_bytes(&self) -> u64 {
        u64::from(self.paragraphs.get()) * 16
    }
}

/// An entry of the memory map.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct E820Entry {
    pub start: U64,
    pub bytes: U64,
    pub kind: U32,
}

impl E820Entry {
    /// The kind of plain memory (ACPI 6.5, table 15.1).
    pub const MEMORY: u32 = 1;
    /// The kind of what must not be used.
    pub const RESERVED: u32 = 2;
}

/// The boot parameters.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BootParams {
    screen_and_firmware: [u8; 0x70],
    /// Where the RSDP is.
    pub acpi_rsdp: U64,
    reserved: [u8; 0x48],
    /// The high 32 bits of what the header has the low ones of.
    pub initrd_address_high: U32,
    pub initrd_bytes_high: U32,
    pub command_line_high: U32,
    reserved_2: [u8; 0x11c],
    /// How many entries of `memory_map` count.
    pub memory_map_entries: u8,
    reserved_3: [u8; 8],
    pub header: SetupHeader,
    later_header: [u8; SetupHeader::MAXIMUM_END - SetupHeader::MINIMUM_END],
    disk_signatures: [u8; 0x40],
    pub memory_map: [E820Entry; 128],
    reserved_4: [u8; 0x330],
}

const _: () = {
    use core::mem::offset_of;
    const fn at(offset: usize) -> usize {
        SetupHeader::OFFSET + offset
    }
    assert!(at(offset_of!(SetupHeader, boot_flag)) == 0x1fe);
    assert!(at(offset_of!(SetupHeader, magic)) == SetupHeader::JUMP_BASE);
    assert!(at(offset_of!(SetupHeader, loader)) == 0x210);
    assert!(at(offset_of!(SetupHeader, initrd_address)) == 0x218);
    assert!(at(offset_of!(SetupHeader, command_line)) == 0x228);
    assert!(at(offset_of!(SetupHeader, extended_load_flags)) == 0x236);
    assert!(at(offset_of!(SetupHeader, setup_data)) == 0x250);
    assert!(at(offset_of!(SetupHeader, initial_bytes)) == 0x260);
    assert!(SetupHeader::MINIMUM_END == 0x268);
    assert!(offset_of!(BootParams, acpi_rsdp) == 0x70);
    assert!(offset_of!(BootParams, initrd_address_high) == 0xc0);
    assert!(offset_of!(BootParams, memory_map_entries) == 0x1e8);
    assert!(offset_of!(BootParams, header) == SetupHeader::OFFSET);
    assert!(offset_of!(BootParams, memory_map) == 0x2d0);
    assert!(size_of::<BootParams>() == 4096);
};
