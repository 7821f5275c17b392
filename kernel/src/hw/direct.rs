//! Physical memory through the direct map.
#![expect(unsafe_code, reason = "addresses become pointers here")]

use ipc::abi::PAGE_SIZE;
use kernel::address::{FrameNumber, PhysAddr};
use kernel::frames::Frames;
use kernel::memory_map::MemoryMap;
use kernel::paging::TableMemory;
use kernel::physical::PhysMemory;

use super::boot::{BOOT_MAPPED, DIRECT_MAP};

/// Where a physical address is in the direct map. What is not mapped there must not be touched.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
pub fn pointer<T>(at: PhysAddr) -> *mut T {
    core::ptr::with_exposed_provenance_mut((DIRECT_MAP + at.0) as usize)
}

/// All that lies below 4 GiB, for the parsers, while the boot tables map it. Given up for the final address space.
#[derive(Debug)]
pub struct BootMemory(());

impl BootMemory {
    /// # Safety
    /// The boot tables are in use until the value is given up, and so is whatever firmware and boot loader left in
    /// memory.
    pub(super) const unsafe fn new() -> Self {
        Self(())
    }
}

impl PhysMemory for BootMemory {
    fn bytes(&self, from: PhysAddr, length: usize) -> Option<&[u8]> {
        let end = from.0.checked_add(length as u64)?;
        if end > BOOT_MAPPED {
            return None;
        }
        // SAFETY: mapped while `self` is there, and nobody writes to what a boot loader left.
        Some(unsafe { core::slice::from_raw_parts(pointer(from), length) })
    }
}

/// The boot module, which stays where it is: `length` bytes from `start` on, or `None` when they are not all usable
/// memory of `map`. The caller has excluded them from what becomes [`Frames`].
#[must_use]
pub fn boot_module(map: &MemoryMap, start: PhysAddr, length: u64) -> Option<&'static [u8]> {
    if !map.is_usable(start, length) {
        return None;
    }
    // SAFETY: the final address space maps all usable memory, and nobody is given these frames.
    Some(unsafe { core::slice::from_raw_parts(pointer(start), usize::try_from(length).ok()?) })
}

/// Page tables in frames of the direct map.
#[derive(Debug)]
pub struct Tables<'a> {
    /// Where new tables come from.
    pub frames: &'a mut Frames,
    /// Below which they must lie, while the boot tables are in use.
    pub below: Option<PhysAddr>,
}

impl TableMemory for Tables<'_> {
    fn read_entry(&self, table: FrameNumber, index: usize) -> u64 {
        let entry: *mut u64 = pointer(PhysAddr(table.start().0 + index as u64 * 8));
        // SAFETY: a table is a frame of the direct map, and the index is within it.
        unsafe { entry.read_volatile() }
    }

    fn write_entry(&mut self, table: FrameNumber, index: usize, entry: u64) {
        let place: *mut u64 = pointer(PhysAddr(table.start().0 + index as u64 * 8));
        // SAFETY: a table is a frame of the direct map, and the index is within it. What the entry maps is its
        // author's to answer for.
        unsafe { place.write_volatile(entry) };
    }

    fn allocate_table(&mut self) -> Option<FrameNumber> {
        let frame = self.frames.allocate(1, 1, self.below).ok()?.first;
        // SAFETY: the frame is nobody else's.
        unsafe { pointer::<u8>(frame.start()).write_bytes(0, PAGE_SIZE) };
        Some(frame)
    }
}
