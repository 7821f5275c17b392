//! From a bzImage to a guest that is ready to run, by Linux's 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst).
//!
//! [`plan`] checks kernel, initrd, command line and the guest's size against each other and decides where everything goes;
//! it touches no guest, so the tool that builds an image asks it first. [`Plan::load`] then cannot fail for a reason that
//! lies in what was given.
//!
//! The kernel goes where it runs, which is its preferred address, at least 1 MiB; the initrd as high as it may be below
//! 4 GiB, in memory of the node that loads it if there is room; everything small to its place in [`layout`].

use ipc::abi::PAGE_SIZE;
use ipc::guest::{Share, total_pages};
use ipc::vcpu::{HIGH_MEMORY_START, PRIVATE_START, memory_ranges};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

use crate::acpi::{self, Platform};
use crate::memory::{GuestMemory, GuestPhysAddr, NotMemory};
use crate::ports;
use header::{BootParams, E820Entry, SetupHeader};

mod error;
mod header;
pub mod layout;
pub mod processor;
#[cfg(test)]
mod tests;

pub use error::{BootError, LoadError};
pub use processor::ProcessorState;

const PAGE: u64 = PAGE_SIZE as u64;
/// The most pages of a guest: high memory up to the addresses that it never sees, and low memory.
const MAX_PAGES: u64 = (PRIVATE_START - HIGH_MEMORY_START) / PAGE + memory_ranges(u64::MAX)[0].1;
/// No write to guest memory is longer, so that whoever gives that memory can do other work in between.
const PIECE: u64 = 64 * 1024;
/// `loader`: none of those with a number of their own.
const UNDEFINED_LOADER: u8 = 0xff;
/// `video_mode`: leave it as it is.
const NORMAL_VIDEO_MODE: u16 = 0xffff;

/// How a guest will be booted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan<'a> {
    /// The setup header, as it is in the file.
    header: &'a [u8],
    /// The kernel proper.
    kernel: &'a [u8],
    kernel_start: u64,
    initrd: &'a [u8],
    initrd_start: u64,
    command_line: &'a str,
    pages: u64,
}

/// Checks what a guest whose memory is given in these shares is to be booted with, and decides where it goes. `kernel` is the
/// whole file of a bzImage. An empty initrd is none. The first share's node loads the guest and has its first vCPU: the
/// initrd goes to its memory if it fits, so that neither needs another node for it.
///
/// # Errors
/// [`BootError`] names the first thing that is wrong.
pub fn plan<'a>(
    kernel: &'a [u8],
    initrd: Option<&'a [u8]>,
    command_line: &'a str,
    shares: &[Share],
) -> Result<Plan<'a>, BootError> {
    let pages = total_pages(shares);
    let header = SetupHeader::of(kernel)?;
    check_command_line(command_line, &header)?;
    if pages > MAX_PAGES {
        return Err(BootError::MemoryTooLarge { pages, limit: MAX_PAGES });
    }
    let memory_end = memory_ranges(pages)[0].1 * PAGE;
    let kernel_start = load_address(&header)?;
    let needed = header.kernel_bytes().max(header.initial_bytes.get().into());
    let kernel_end = kernel_start + needed;
    if kernel_end > memory_end {
        return Err(BootError::KernelTooLarge { start: kernel_start, needed, memory_end });
    }
    let initrd = initrd.unwrap_or_default();
    let near_end = memory_end.min(shares.first().map_or(0, |share| share.pages.saturating_mul(PAGE)));
    let below = |end| initrd_address(&header, initrd.len() as u64, kernel_end, end);
    let initrd_start = below(near_end).or_else(|_| below(memory_end))?;
    let part = |range: core::ops::Range<u64>| {
        let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
        kernel.get(range)
    };
    let setup = header.setup_bytes();
    // The header was checked to be in the file, and to speak of nothing beyond it.
    let truncated =
        BootError::Truncated { bytes: kernel.len() as u64, needed: setup + header.kernel_bytes() };
    Ok(Plan {
        header: part(SetupHeader::OFFSET as u64..header.end() as u64).ok_or(truncated)?,
        kernel: part(setup..setup + header.kernel_bytes()).ok_or(truncated)?,
        kernel_start,
        initrd,
        initrd_start,
        command_line,
        pages,
    })
}

fn check_command_line(command_line: &str, header: &SetupHeader) -> Result<(), BootError> {
    let bytes = command_line.len() as u64;
    let limit = layout::COMMAND_LINE_BYTES.min(header.command_line_bytes.get().into());
    if bytes > limit {
        return Err(BootError::CommandLineTooLong { bytes, limit });
    }
    match command_line.bytes().position(|byte| byte == 0) {
        Some(position) => Err(BootError::CommandLineZero { position }),
        None => Ok(()),
    }
}

/// Where the kernel is loaded and runs. A relocatable one could be loaded lower, but would move itself up to its preferred
/// address and take its `init_size` of memory there all the same.
fn load_address(header: &SetupHeader) -> Result<u64, BootError> {
    let preferred = header.preferred_address.get();
    let address = if header.relocatable == 0 {
        preferred
    } else {
        let alignment = header.kernel_alignment.get();
        if !alignment.is_power_of_two() {
            return Err(BootError::Alignment { alignment });
        }
        let wanted = preferred.max(layout::HIGH_START.0);
        wanted
            .checked_next_multiple_of(alignment.into())
            .ok_or(BootError::LoadAddress { address: preferred })?
    };
    if (layout::HIGH_START.0..HIGH_MEMORY_START).contains(&address) {
        Ok(address)
    } else {
        Err(BootError::LoadAddress { address })
    }
}

/// Where the initrd begins: at the highest page that leaves room for all of it.
fn initrd_address(
    header: &SetupHeader,
    bytes: u64,
    kernel_end: u64,
    memory_end: u64,
) -> Result<u64, BootError> {
    if bytes == 0 {
        return Ok(0);
    }
    // A kernel that takes an initrd above 4 GiB still names a limit of 2 GiB, for loaders that do not know of it.
    let limit = if header.extended_load_flags.get() & SetupHeader::ABOVE_4G != 0 {
        memory_end
    } else {
        memory_end.min(u64::from(header.initrd_address_max.get()) + 1)
    };
    let room = limit.saturating_sub(kernel_end.next_multiple_of(PAGE));
    match limit.checked_sub(bytes).map(|start| start - start % PAGE) {
        Some(start) if start >= kernel_end => Ok(start),
        _ => Err(BootError::InitrdTooLarge { bytes, room }),
    }
}

impl Plan<'_> {
    /// Pages of the guest's memory.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Writes everything into the guest's memory, in pieces of at most 64 KiB; what the boot processor begins with. The
    /// platform's memory must be this guest's.
    ///
    /// # Errors
    /// [`LoadError`]; the guest's memory is then partly written.
    pub fn load(
        &self,
        memory: &mut impl GuestMemory,
        platform: &Platform,
    ) -> Result<ProcessorState, LoadError> {
        let tables = acpi::build(platform)?;
        write(memory, layout::ACPI_START.0, &tables)?;
        write_bios_data(memory)?;
        write(memory, layout::GDT.0, processor::gdt().map(u64::to_le_bytes).as_flattened())?;
        for (table, at) in
            (layout::PAGE_TABLES.0..).step_by(PAGE_SIZE).take(layout::PAGE_TABLE_PAGES).enumerate()
        {
            let entries: [u64; 512] = core::array::from_fn(|index| page_table_entry(table, index));
            write(memory, at, entries.as_bytes())?;
        }
        write(memory, layout::COMMAND_LINE.0, self.command_line.as_bytes())?;
        write(memory, layout::COMMAND_LINE.0 + self.command_line.len() as u64, &[0])?;
        write(memory, self.kernel_start, self.kernel)?;
        write(memory, self.initrd_start, self.initrd)?;
        write(memory, layout::BOOT_PARAMS.0, self.boot_params().as_bytes())?;
        Ok(processor::linux_entry(GuestPhysAddr(self.kernel_start + SetupHeader::ENTRY_64)))
    }

    fn boot_params(&self) -> BootParams {
        let mut params = BootParams::new_zeroed();
        let header = params.as_mut_bytes().iter_mut().skip(SetupHeader::OFFSET);
        for (to, &from) in header.zip(self.header) {
            *to = from;
        }
        let [low, high] = halves(self.initrd_start);
        params.header.initrd_address = low.into();
        params.initrd_address_high = high.into();
        let [low, high] = halves(self.initrd.len() as u64);
        params.header.initrd_bytes = low.into();
        params.initrd_bytes_high = high.into();
        let [low, high] = halves(layout::COMMAND_LINE.0);
        params.header.command_line = low.into();
        params.command_line_high = high.into();
        params.header.code32_start = halves(self.kernel_start)[0].into();
        params.header.loader = UNDEFINED_LOADER;
        params.header.video_mode = NORMAL_VIDEO_MODE.into();
        params.header.setup_data = U64::ZERO;
        params.acpi_rsdp = layout::ACPI_START.0.into();
        for (place, entry) in params.memory_map.iter_mut().zip(memory_map(self.pages)) {
            *place = entry;
            params.memory_map_entries += 1;
        }
        params
    }
}

/// The low and the high 32 bits.
fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    [value as u32, (value >> 32) as u32]
}

/// The guest's memory map, by address.
fn memory_map(pages: u64) -> impl Iterator<Item = E820Entry> {
    let [(low, low_pages), (high, high_pages)] = memory_ranges(pages);
    let low_end = (low + low_pages) * PAGE;
    let ranges = [
        (low * PAGE, layout::EXTENDED_BIOS_DATA.0, E820Entry::MEMORY),
        (layout::EXTENDED_BIOS_DATA.0, layout::CONVENTIONAL_END.0, E820Entry::RESERVED),
        (layout::ACPI_START.0, layout::HIGH_START.0, E820Entry::RESERVED),
        (layout::HIGH_START.0, low_end, E820Entry::MEMORY),
        (high * PAGE, (high + high_pages) * PAGE, E820Entry::MEMORY),
    ];
    ranges.into_iter().filter(|(start, end, _)| start < end).map(|(start, end, kind)| E820Entry {
        start: start.into(),
        bytes: (end - start).into(),
        kind: kind.into(),
    })
}

/// What a BIOS would have left for real-mode code: Linux reads where conventional memory ends.
fn write_bios_data(memory: &mut impl GuestMemory) -> Result<(), NotMemory> {
    const COM1: u64 = 0x00;
    const EXTENDED_AREA_SEGMENT: u64 = 0x0e;
    const CONVENTIONAL_KIB: u64 = 0x13;
    let words = [
        (COM1, u64::from(ports::COM1_PORT)),
        (EXTENDED_AREA_SEGMENT, layout::EXTENDED_BIOS_DATA.0 >> 4),
        (CONVENTIONAL_KIB, layout::EXTENDED_BIOS_DATA.0 >> 10),
    ];
    for (offset, word) in words {
        let [low, high, ..] = word.to_le_bytes();
        write(memory, layout::BIOS_DATA.0 + offset, &[low, high])?;
    }
    // The extended area's first byte is its own size in KiB.
    let [kib, ..] = ((layout::CONVENTIONAL_END.0 - layout::EXTENDED_BIOS_DATA.0) >> 10).to_le_bytes();
    write(memory, layout::EXTENDED_BIOS_DATA.0, &[kib])
}

/// Entry `index` of page table `table` at [`layout::PAGE_TABLES`]: they map the first 4 GiB to themselves by pages of 2 MiB,
/// which every processor in long mode has. Accessed and dirty bits are set, so that the processor writes none.
const fn page_table_entry(table: usize, index: usize) -> u64 {
    const TABLE: u64 = 0x23;
    const PAGE_2M: u64 = 0xe3;
    const DIRECTORIES: usize = layout::PAGE_TABLE_PAGES - 2;
    let (table, index) = (table as u64, index as u64);
    match table {
        0 if index == 0 => (layout::PAGE_TABLES.0 + PAGE) | TABLE,
        1 if index < DIRECTORIES as u64 => (layout::PAGE_TABLES.0 + (2 + index) * PAGE) | TABLE,
        0 | 1 => 0,
        directory => (((directory - 2) * 512 + index) << 21) | PAGE_2M,
    }
}

/// Writes bytes to guest-physical address `at`, in pieces.
fn write(memory: &mut impl GuestMemory, mut at: u64, mut bytes: &[u8]) -> Result<(), NotMemory> {
    while !bytes.is_empty() {
        let room = usize::try_from(PIECE - at % PIECE).unwrap_or(usize::MAX);
        let (piece, rest) = bytes.split_at(room.min(bytes.len()));
        memory.write(GuestPhysAddr(at), piece)?;
        at += piece.len() as u64;
        bytes = rest;
    }
    Ok(())
}
