//! A service's ELF file, checked before anything of it is loaded.
//!
//! A service is a static 64-bit program linked by `images/service.ld`: its segments begin at pages, share no page,
//! lie between [`IMAGE_BASE`] and [`IMAGE_END`], and none is both writable and executable. What is not so is refused
//! here, so that whoever loads the segments has nothing left to doubt.
//!
//! Source: System V gABI, chapters 4 (object files) and 5 (program loading).

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use ipc::abi::{IMAGE_BASE, IMAGE_END, PAGE_SIZE};
use zerocopy::FromBytes;

use crate::address::VirtAddr;
use crate::paging::host::Access;
use crate::physical::field;

/// The most loaded segments of a service.
pub const MAX_SEGMENTS: usize = 16;
/// The most program headers that are looked at.
const MAX_HEADERS: u16 = 64;

const PAGE: u64 = PAGE_SIZE as u64;
/// Magic number, 64 bits, little endian, version 1.
const IDENTIFICATION: [u8; 7] = *b"\x7fELF\x02\x01\x01";
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;

#[derive(FromBytes)]
#[repr(C)]
struct FileHeader {
    _identification: [u8; 16],
    kind: u16,
    machine: u16,
    _version: u32,
    entry: u64,
    program_headers: u64,
    _section_headers: u64,
    _flags: u32,
    _header_bytes: u16,
    program_header_bytes: u16,
    program_header_count: u16,
    _sections: [u16; 3],
}

#[derive(FromBytes)]
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    _physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    _align: u64,
}

const _: () = assert!(size_of::<FileHeader>() == 64);
const _: () = assert!(size_of::<ProgramHeader>() == 56);

/// A part of the file and where it goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    /// The first address, of a page.
    pub address: VirtAddr,
    /// Bytes in memory, not zero; those past the file's are zero.
    pub memory_bytes: u64,
    /// Where its contents are in the file; no longer than `memory_bytes`.
    pub file: Range<usize>,
    /// What it may be used for.
    pub access: Access,
}

impl Segment {
    /// Pages that it takes.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.memory_bytes.div_ceil(PAGE)
    }

    const fn end(&self) -> u64 {
        self.address.0 + self.pages() * PAGE
    }
}

/// Why an ELF file is refused. Segments are counted as program headers, from 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ElfError {
    /// A part ends after the file does.
    Truncated {
        /// The segment, or `None` for the headers.
        segment: Option<u16>,
        /// Where it ends.
        end: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// No ELF file, or not 64-bit little-endian.
    NotElf64,
    /// It is not for x86-64.
    WrongMachine(u16),
    /// Not a static executable, but a file of this type.
    NotExecutable(u16),
    /// Program headers are of another size than they should be.
    BadHeaderSize(u16),
    /// There are too many program headers or loaded segments.
    TooMany(u16),
    /// It has a segment (interpreter, dynamic linking, thread-local storage) that needs what a service has not.
    Unsupported(u16, &'static str),
    /// A segment does not begin at a page.
    Unaligned(u16),
    /// A segment is longer in the file than in memory.
    Overlong(u16),
    /// A segment lies outside the space for images.
    OutOfSpace(u16, VirtAddr),
    /// Two segments share a page.
    Overlap(u16, u16),
    /// A segment is both writable and executable.
    WritableAndExecutable(u16),
    /// The entry is in no executable segment.
    BadEntry(VirtAddr),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { segment: None, end, bytes } => {
                write!(f, "truncated: the headers end at {end} of {bytes} bytes")
            }
            Self::Truncated { segment: Some(number), end, bytes } => {
                write!(f, "truncated: segment {number} ends at {end} of {bytes} bytes")
            }
            Self::NotElf64 => f.write_str("not a 64-bit little-endian ELF file"),
            Self::WrongMachine(machine) => write!(f, "for machine {machine}, not x86-64"),
            Self::NotExecutable(kind) => write!(f, "of type {kind}, not a static executable"),
            Self::BadHeaderSize(bytes) => write!(f, "program headers of {bytes} bytes instead of 56"),
            Self::TooMany(count) => {
                write!(f, "{count} program headers: at most {MAX_HEADERS}, {MAX_SEGMENTS} of them loaded")
            }
            Self::Unsupported(number, what) => write!(f, "segment {number}: {what} is not supported"),
            Self::Unaligned(number) => write!(f, "segment {number} does not begin at a page"),
            Self::Overlong(number) => write!(f, "segment {number} is longer in the file than in memory"),
            Self::OutOfSpace(number, address) => write!(
                f,
                "segment {number} at {:#x} does not lie in {IMAGE_BASE:#x} to {IMAGE_END:#x}",
                address.0
            ),
            Self::Overlap(first, second) => write!(f, "segments {first} and {second} share a page"),
            Self::WritableAndExecutable(number) => {
                write!(f, "segment {number} is both writable and executable")
            }
            Self::BadEntry(entry) => write!(f, "the entry {:#x} is in no executable segment", entry.0),
        }
    }
}

impl core::error::Error for ElfError {}

/// A checked file.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    entry: VirtAddr,
    segments: Vec<Segment, MAX_SEGMENTS>,
}

impl<'a> Elf<'a> {
    /// Checks a file.
    ///
    /// # Errors
    /// The [`ElfError`] that says what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let length = bytes.len() as u64;
        let truncated = |end| ElfError::Truncated { segment: None, end, bytes: length };
        // What cannot be an ELF file is not called a truncated one.
        if !bytes.starts_with(&IDENTIFICATION) {
            return Err(ElfError::NotElf64);
        }
        let header: FileHeader = field(bytes, 0).ok_or(truncated(size_of::<FileHeader>() as u64))?;
        if header.machine != X86_64 {
            return Err(ElfError::WrongMachine(header.machine));
        }
        if header.kind != EXECUTABLE {
            return Err(ElfError::NotExecutable(header.kind));
        }
        let count = header.program_header_count;
        if usize::from(header.program_header_bytes) != size_of::<ProgramHeader>() {
            return Err(ElfError::BadHeaderSize(header.program_header_bytes));
        }
        if count > MAX_HEADERS {
            return Err(ElfError::TooMany(count));
        }
        let table_bytes = u64::from(count) * size_of::<ProgramHeader>() as u64;
        let table_end = header.program_headers.saturating_add(table_bytes);
        let table_truncated = truncated(table_end);
        let table =
            range(header.program_headers, table_end).and_then(|r| bytes.get(r)).ok_or(table_truncated)?;

        let mut segments: Vec<(u16, Segment), MAX_SEGMENTS> = Vec::new();
        for (number, bytes) in (0..count).zip(table.chunks_exact(size_of::<ProgramHeader>())) {
            let program: ProgramHeader = field(bytes, 0).ok_or(table_truncated)?;
            let Some(segment) = segment(number, &program, length)? else { continue };
            let clash = segments
                .iter()
                .find(|(_, other)| segment.address.0 < other.end() && other.address.0 < segment.end());
            if let Some((other, _)) = clash {
                return Err(ElfError::Overlap(*other, number));
            }
            segments.push((number, segment)).map_err(|_| ElfError::TooMany(count))?;
        }
        let entry = VirtAddr(header.entry);
        let in_code = |s: &Segment| {
            let code = s.address.0..s.address.0 + s.file.len() as u64;
            s.access == Access::ReadExecute && code.contains(&entry.0)
        };
        if !segments.iter().any(|(_, segment)| in_code(segment)) {
            return Err(ElfError::BadEntry(entry));
        }
        Ok(Self { bytes, entry, segments: segments.into_iter().map(|(_, segment)| segment).collect() })
    }

    /// Where it begins to run.
    #[must_use]
    pub const fn entry(&self) -> VirtAddr {
        self.entry
    }

    /// The segments to load, in the file's order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// A segment's contents: the start of its memory, whose rest is zero.
    #[must_use]
    pub fn contents(&self, segment: &Segment) -> &'a [u8] {
        self.bytes.get(segment.file.clone()).unwrap_or_default()
    }
}

/// The segment of a program header, or `None` when there is nothing to load.
fn segment(number: u16, program: &ProgramHeader, length: u64) -> Result<Option<Segment>, ElfError> {
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    match program.kind {
        1 => {}
        2 => return Err(ElfError::Unsupported(number, "dynamic linking")),
        3 => return Err(ElfError::Unsupported(number, "an interpreter")),
        7 => return Err(ElfError::Unsupported(number, "thread-local storage")),
        _ => return Ok(None),
    }
    let file_end = program.offset.saturating_add(program.file_bytes);
    let truncated = ElfError::Truncated { segment: Some(number), end: file_end, bytes: length };
    let file = range(program.offset, file_end).filter(|_| file_end <= length).ok_or(truncated)?;
    if program.file_bytes > program.memory_bytes {
        return Err(ElfError::Overlong(number));
    }
    if program.memory_bytes == 0 {
        return Ok(None);
    }
    let address = VirtAddr(program.virtual_address);
    let end = address.0.saturating_add(program.memory_bytes);
    if address.0 < IMAGE_BASE || end > IMAGE_END {
        return Err(ElfError::OutOfSpace(number, address));
    }
    if !address.0.is_multiple_of(PAGE) {
        return Err(ElfError::Unaligned(number));
    }
    let access = match program.flags & (WRITE | EXECUTE) {
        0 => Access::Read,
        WRITE => Access::ReadWrite,
        EXECUTE => Access::ReadExecute,
        _ => return Err(ElfError::WritableAndExecutable(number)),
    };
    Ok(Some(Segment { address, memory_bytes: program.memory_bytes, file, access }))
}

fn range(start: u64, end: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "files in tests have few headers")]
mod tests;
