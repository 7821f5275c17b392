//! The kernel's address space, which is the upper half of every service's too.
//!
//! | from | what | rights |
//! | --- | --- | --- |
//! | [`DIRECT_MAP`] | usable memory at its physical address; the image's constant part read-only | read, write |
//! | likewise | device registers that the kernel uses, uncached | read, write |
//! | [`super::stacks::STACKS`] | each core's stacks | read, write |
//! | -2 GiB | the image: text, constants, data | read and run; read; read and write |
//!
//! Nothing is both writable and executable, and the kernel maps nothing in the lower half. The tables only grow, so a
//! core that uses them never has to flush; once they are [`finished`](KernelSpace::finish) their root is fixed.
#![expect(unsafe_code, reason = "linker symbols, and the switch to the new tables")]

use core::sync::atomic::{AtomicU64, Ordering};

use ipc::abi::PAGE_SIZE;
use kernel::address::{FrameNumber, PhysAddr, VirtAddr};
use kernel::frames::Frames;
use kernel::memory_map::MemoryMap;
use kernel::paging::host::{Access, Cache, HostAttributes, HostFormat, Owner};
use kernel::paging::{PageSize, PageTable, PagingError};

use super::apic;
use super::boot::{BOOT_MAPPED, DIRECT_MAP};
use super::direct::{BootMemory, Tables};
use super::instructions::write_cr3;
use super::percpu::PerCpu;
use super::processor::has_gigabyte_pages;
use super::stacks::Stacks;

const PAGE: u64 = PAGE_SIZE as u64;
/// Where the image is linked, less its physical address.
const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;

unsafe extern "C" {
    static image_text_start: u8;
    static image_rodata_start: u8;
    static image_data_start: u8;
    static image_end: u8;
    static boot_stack_guard: u8;
}

fn address_of(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

/// What paging can refuse here.
pub type SpaceError = PagingError<VirtAddr>;

/// The root that cores start with; zero before [`KernelSpace::activate`].
static ROOT: AtomicU64 = AtomicU64::new(0);

/// The physical address of the finished kernel's root table.
#[must_use]
pub fn root() -> PhysAddr {
    PhysAddr(ROOT.load(Ordering::Acquire))
}

/// Where the kernel's image lies in physical memory: its start and its bytes, to be excluded from the memory map.
#[must_use]
pub fn image() -> (PhysAddr, u64) {
    let start = address_of(&raw const image_text_start);
    (PhysAddr(start - IMAGE_OFFSET), address_of(&raw const image_end) - start)
}

/// The physical address of something in the kernel's image.
#[must_use]
pub fn physical_of(place: *const u8) -> PhysAddr {
    PhysAddr(address_of(place) - IMAGE_OFFSET)
}

const fn kernel_page(access: Access, cache: Cache) -> HostAttributes {
    HostAttributes { access, owner: Owner::Kernel, cache }
}

/// The kernel's address space while it is being made.
#[derive(Debug)]
pub struct KernelSpace {
    table: PageTable<HostFormat>,
}

impl KernelSpace {
    /// Makes the tables: the image, the direct map of `map`'s usable memory, the local APIC, the stacks of cores 0 to
    /// `cores - 1`.
    ///
    /// # Errors
    /// [`PagingError::NoTables`] without enough memory below 4 GiB.
    pub fn build(frames: &mut Frames, map: &MemoryMap, cores: usize) -> Result<Self, SpaceError> {
        let no_memory = PagingError::NoTables(VirtAddr(DIRECT_MAP));
        let mut tables = Tables { frames, below: Some(PhysAddr(BOOT_MAPPED)) };
        let space = Self { table: PageTable::new(&mut tables).ok_or(no_memory)? };
        space.map_image(&mut tables)?;
        for range in map.usable() {
            space.map_memory(&mut tables, range.start, range.end)?;
        }
        let data = kernel_page(Access::ReadWrite, Cache::WriteBack);
        for (start, bytes) in (0..cores).flat_map(|core| Stacks::of_core(core).ranges()) {
            let pages = bytes / PAGE;
            let memory = tables.frames.allocate(pages, 1, None).map_err(|_| no_memory)?.first;
            space.table.map(&mut tables, VirtAddr(start), memory, pages, data, PageSize::Small)?;
        }
        let device = kernel_page(Access::ReadWrite, Cache::Uncached);
        space.map_direct(&mut tables, apic::registers(), apic::registers().0 + PAGE, device)?;
        Ok(space)
    }

    fn map_image(&self, tables: &mut Tables<'_>) -> Result<(), SpaceError> {
        let text = address_of(&raw const image_text_start);
        let rodata = address_of(&raw const image_rodata_start);
        let data = address_of(&raw const image_data_start);
        let guard = address_of(&raw const boot_stack_guard);
        let end = address_of(&raw const image_end).next_multiple_of(PAGE);
        for (start, end, access) in [
            (text, rodata, Access::ReadExecute),
            (rodata, data, Access::Read),
            (data, guard, Access::ReadWrite),
            (guard + PAGE, end, Access::ReadWrite),
        ] {
            let frame = FrameNumber::containing(PhysAddr(start - IMAGE_OFFSET));
            let attributes = kernel_page(access, Cache::WriteBack);
            let pages = (end - start) / PAGE;
            self.table.map(tables, VirtAddr(start), frame, pages, attributes, PageSize::Small)?;
        }
        Ok(())
    }

    /// Maps usable memory; the part of it that holds the image's text and constants cannot be written here either.
    fn map_memory(&self, tables: &mut Tables<'_>, start: PhysAddr, end: PhysAddr) -> Result<(), SpaceError> {
        let fixed_start = address_of(&raw const image_text_start) - IMAGE_OFFSET;
        let fixed_end = address_of(&raw const image_data_start) - IMAGE_OFFSET;
        for (from, to, access) in [
            (0, fixed_start, Access::ReadWrite),
            (fixed_start, fixed_end, Access::Read),
            (fixed_end, u64::MAX, Access::ReadWrite),
        ] {
            let (from, to) = (from.max(start.0), to.min(end.0));
            if from < to {
                self.map_direct(tables, PhysAddr(from), to, kernel_page(access, Cache::WriteBack))?;
            }
        }
        Ok(())
    }

    fn map_direct(
        &self,
        tables: &mut Tables<'_>,
        start: PhysAddr,
        end: u64,
        attributes: HostAttributes,
    ) -> Result<(), SpaceError> {
        let largest = if has_gigabyte_pages() { PageSize::Huge } else { PageSize::Large };
        let frame = FrameNumber::containing(start);
        let pages = end.div_ceil(PAGE) - frame.0;
        self.table.map(tables, VirtAddr(DIRECT_MAP + frame.start().0), frame, pages, attributes, largest)
    }

    /// Starts using the tables on the first core, and turns on its local APIC. What lies below 4 GiB and is not usable
    /// memory can no longer be read.
    pub fn activate(&self, memory: BootMemory, core: &mut PerCpu) {
        let BootMemory { .. } = memory;
        let root = self.table.root().start();
        ROOT.store(root.0, Ordering::Release);
        core.set_stacks(&Stacks::of_core(core.core()));
        // SAFETY: the tables map the image as it is linked, the boot stack that this runs on included.
        unsafe { write_cr3(root.0) };
        // SAFETY: the tables map its registers.
        unsafe { apic::enable() };
    }

    /// Maps device registers, uncached, at their address in the direct map, whole pages of them. What is there as a
    /// device's already stays.
    ///
    /// # Errors
    /// [`PagingError::AlreadyMapped`] when it is memory; [`PagingError::NoTables`]; [`PagingError::BadRange`].
    pub fn map_device(&self, frames: &mut Frames, start: PhysAddr, bytes: u64) -> Result<(), SpaceError> {
        let limit = IMAGE_OFFSET - DIRECT_MAP;
        let end = start.0.checked_add(bytes).filter(|&end| end <= limit);
        let end = end.ok_or(PagingError::BadRange(VirtAddr(DIRECT_MAP)))?;
        let device = kernel_page(Access::ReadWrite, Cache::Uncached);
        self.map_direct(&mut Tables { frames, below: None }, start, end, device)
    }

    /// The finished tables: services share their upper half, and nothing is added to it any more.
    #[must_use]
    pub const fn finish(self) -> PageTable<HostFormat> {
        self.table
    }
}
