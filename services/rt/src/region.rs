//! Access to mapped memory.
//!
//! Memory that a peer or a device may write is only ever read and written as atomic words, or by volatile
//! copies from and to memory of this service: no reference to plain data is formed into it.
#![expect(unsafe_code, reason = "makes references and pointers from addresses that the kernel mapped")]

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use ipc::channel::SharedWords;

use crate::capability::{Blob, DeviceMemory, DmaRegion, Region};

/// A number of the kernel's as an address or a size.
#[expect(clippy::cast_possible_truncation, reason = "the only target is x86-64, where both are 64 bits wide")]
pub(crate) const fn address(number: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    number as usize
}

impl Blob {
    /// Its bytes: whole pages.
    #[must_use]
    pub fn bytes(&self) -> &'static [u8] {
        let base = ptr::with_exposed_provenance::<u8>(address(self.region.address));
        // SAFETY: a `Blob` is only made from an entry that the kernel marks as constant, and it maps these pages, to read
        // only, for as long as the service lives.
        unsafe { core::slice::from_raw_parts(base, address(self.region.bytes)) }
    }
}

impl Region {
    /// The region as 64-bit words that threads, services and restarts share. A store to a region that is not
    /// [`Region::writable`] ends the service with a page fault.
    #[must_use]
    pub fn words(&self) -> &'static [AtomicU64] {
        let base = ptr::with_exposed_provenance::<AtomicU64>(address(self.address));
        let count = address(self.bytes / 8);
        // SAFETY: a `Region` is only made from the start page, so the kernel mapped these pages for as long
        // as the service lives; they are page-aligned, and everybody uses them as atomic words or through raw
        // pointers.
        unsafe { core::slice::from_raw_parts(base, count) }
    }

    /// Where the region begins, for what needs a raw pointer.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        match NonNull::new(ptr::with_exposed_provenance_mut(address(self.address))) {
            Some(base) => base,
            None => NonNull::dangling(),
        }
    }

    /// Copies bytes out of the region; `None`, and nothing copied, when they do not lie in it.
    #[must_use]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Option<()> {
        let from = self.part(offset, into.len())?;
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: `part` checked that all the bytes are in the region, which stays mapped.
            *byte = unsafe { from.as_ptr().wrapping_add(index).read_volatile() };
        }
        Some(())
    }

    /// Copies bytes into the region; `None`, and nothing copied, when they do not lie in it or it is not
    /// writable.
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Option<()> {
        if !self.writable {
            return None;
        }
        let to = self.part(offset, bytes.len())?;
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: `part` checked that all the bytes are in the region, which stays mapped and is
            // writable.
            unsafe { to.as_ptr().wrapping_add(index).write_volatile(*byte) };
        }
        Some(())
    }

    fn part(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end as u64 > self.bytes {
            return None;
        }
        // SAFETY: the offset lies in the region.
        Some(unsafe { self.base().add(offset) })
    }
}

/// A region that is a channel's, or is shared with a peer in another way.
impl SharedWords for Region {
    fn count(&self) -> usize {
        self.words().len()
    }

    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.words()[index].load(order)
    }

    #[inline]
    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.words()[index].store(value, order);
    }
}

impl DmaRegion {
    /// The physical address of an offset, as a device must be told it; `None` past the end.
    #[must_use]
    pub fn physical_of(&self, offset: u64) -> Option<u64> {
        if offset >= self.region.bytes { None } else { self.physical.checked_add(offset) }
    }
}

impl DeviceMemory {
    /// Where the device's memory begins; it is mapped uncached.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.region.base()
    }
}
