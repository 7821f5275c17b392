//! Memory mappings.
#![expect(unsafe_code, reason = "system calls, and addresses that become references")]

use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicU8, AtomicU64};
use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use super::{PAGE, check};

/// Who sees what is written.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {
    /// This process; after a fork each has its own.
    Private,
    /// This process and those that it forks.
    Shared,
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    fn bits(self) -> i32 {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A mapping of whole pages, which ends when this is dropped.
///
/// It is read and written through atomics alone, so threads and processes may share it.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only used through atomics and raw pointers.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Anonymous memory: zeros, which get a page when it is first touched. Never as huge pages.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn anonymous(bytes: usize, sharing: Sharing) -> Result<Self> {
        let sharing = match sharing {
            Sharing::Private => libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            Sharing::Shared => libc::MAP_SHARED,
        };
        let map = Self::new(bytes, sharing | libc::MAP_ANONYMOUS, -1, 0)?;
        // A kernel without huge pages refuses; then there are none.
        // SAFETY: changes no contents of a mapping that is ours.
        unsafe { libc::madvise(map.start.as_ptr().cast(), map.bytes, libc::MADV_NOHUGEPAGE) };
        Ok(map)
    }

    /// A part of a file or device.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn of_file(file: &File, offset: u64, bytes: usize) -> Result<Self> {
        Self::new(bytes, libc::MAP_SHARED, file.as_raw_fd(), i64::try_from(offset)?)
    }

    fn new(bytes: usize, flags: i32, descriptor: i32, offset: i64) -> Result<Self> {
        let bytes = bytes.next_multiple_of(PAGE).max(PAGE);
        // SAFETY: Linux chooses the place, so nothing that exists is replaced.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, Access::Write.bits(), flags, descriptor, offset) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("mmap of {bytes} bytes"));
        }
        Ok(Self { start: NonNull::new(start.cast()).context("mmap gave page 0")?, bytes })
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pages.
    pub fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    /// As bytes. A page that may not be read or written faults.
    pub fn as_bytes(&self) -> &[AtomicU8] {
        // SAFETY: mapped for as long as `self` is there, any bits are valid, and all access is atomic.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes) }
    }

    /// As words. A page that may not be read or written faults.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: as for bytes; a page is aligned for words.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / 8) }
    }

    /// Changes what may be done with all of it.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn protect(&self, access: Access) -> Result<()> {
        self.protect_page_range(0, self.pages(), access)
    }

    /// Changes what may be done with some pages of it.
    ///
    /// # Errors
    /// Linux refuses.
    ///
    /// # Panics
    /// They are not all in the mapping.
    pub fn protect_page_range(&self, first: usize, pages: usize, access: Access) -> Result<()> {
        assert!(first + pages <= self.pages(), "pages of the mapping");
        let start = self.start().wrapping_add(first * PAGE);
        // SAFETY: the pages are ours; an access that is not allowed faults, which is what the tests want.
        check(unsafe { libc::mprotect(start.cast(), pages * PAGE, access.bits()) }, "mprotect").map(drop)
    }

    /// Gives the pages back: a private mapping then has zeros (`MADV_DONTNEED`).
    ///
    /// # Errors
    /// Linux refuses.
    pub fn discard(&self) -> Result<()> {
        // SAFETY: the mapping is ours, and atomics may change at any time.
        check(unsafe { libc::madvise(self.start().cast(), self.bytes, libc::MADV_DONTNEED) }, "madvise")
            .map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; references into it do not outlive it.
        unsafe { libc::munmap(self.start().cast(), self.bytes) };
    }
}
