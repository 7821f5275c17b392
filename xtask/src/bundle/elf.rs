//! Rewrites a service's program to what is loaded.
//!
//! The built file carries debug information and defmt's strings, which stay on the build machine. What goes into the
//! image is a valid ELF file of the header, the `PT_LOAD` program headers and their contents. Whether a program can
//! be loaded is decided by the kernel's own reader, [`kernel::elf`].
//!
//! Source: System V gABI, chapters 4 (object files) and 5 (program loading).

use ipc::abi::PAGE_SIZE;
use kernel::elf::Elf;
use kernel::paging::host::Access;
use zerocopy::{Immutable, IntoBytes};

const PAGE: u64 = PAGE_SIZE as u64;

#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct FileHeader {
    identification: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_bytes: u16,
    program_header_bytes: u16,
    program_header_count: u16,
    section_header_bytes: u16,
    section_header_count: u16,
    section_names: u16,
}

#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

const HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const _: () = assert!(size_of::<FileHeader>() == HEADER_BYTES as usize);
const _: () = assert!(size_of::<ProgramHeader>() == PROGRAM_HEADER_BYTES as usize);

/// Bytes of memory that a program takes: whole pages.
pub fn loaded_bytes(program: &Elf<'_>) -> u64 {
    program.segments().map(|segment| segment.pages() * PAGE).sum()
}

/// The smallest ELF file that loads the same.
pub fn stripped(program: &Elf<'_>) -> Vec<u8> {
    let count = u16::try_from(program.segments().count()).unwrap_or(u16::MAX);
    let header = FileHeader {
        identification: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        kind: 2,
        machine: 62,
        version: 1,
        entry: program.entry().0,
        program_headers: u64::from(HEADER_BYTES),
        section_headers: 0,
        flags: 0,
        header_bytes: HEADER_BYTES,
        program_header_bytes: PROGRAM_HEADER_BYTES,
        program_header_count: count,
        section_header_bytes: 0,
        section_header_count: 0,
        section_names: 0,
    };
    let mut file = header.as_bytes().to_vec();
    let mut end = u64::from(HEADER_BYTES) + u64::from(count) * u64::from(PROGRAM_HEADER_BYTES);
    for segment in program.segments() {
        // As ELF asks, the offset is congruent to the address, which begins a page.
        let offset = if segment.file.is_empty() { 0 } else { end.next_multiple_of(PAGE) };
        let header = ProgramHeader {
            kind: 1,
            flags: match segment.access {
                Access::Read => 4,
                Access::ReadExecute => 4 | 1,
                Access::ReadWrite => 4 | 2,
            },
            offset,
            virtual_address: segment.address.0,
            physical_address: segment.address.0,
            file_bytes: segment.file.len() as u64,
            memory_bytes: segment.memory_bytes,
            align: PAGE,
        };
        file.extend(header.as_bytes());
        end = end.max(offset + segment.file.len() as u64);
    }
    for segment in program.segments().filter(|segment| !segment.file.is_empty()) {
        file.resize(file.len().next_multiple_of(PAGE_SIZE), 0);
        file.extend(program.contents(segment));
    }
    file
}
