//! The platform's view of the guest: its memory, through the window, and the state pages of its vCPUs.
//!
//! The guest runs at the same time and writes where it likes, so no reference into its memory is made: what is aligned and
//! of a word's size is one access, the rest is copied by string instructions.
#![expect(unsafe_code, reason = "memory that the guest and the kernel write, at fixed addresses")]

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ipc::abi::PAGE_SIZE;
use ipc::vcpu::{PRIVATE_START, VCPU_PAGES, VcpuPage, WINDOW_BASE, memory_ranges};

use crate::capability::Guest;
use crate::region::address;

/// The guest's memory. A page that is not there when it is touched is fetched before the access goes on.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// First byte and the byte after the last: low, high, private.
    ranges: [(u64, u64); 3],
}

impl Window {
    /// The window of the service that holds the guest as its platform.
    #[must_use]
    pub fn new(guest: &Guest) -> Self {
        let bytes = |(first, pages): (u64, u64)| {
            let start = first * PAGE_SIZE as u64;
            (start, start + pages * PAGE_SIZE as u64)
        };
        let [low, high] = memory_ranges(guest.pages).map(bytes);
        let private = bytes((PRIVATE_START / PAGE_SIZE as u64, u64::from(guest.private_pages)));
        Self { ranges: [low, high, private] }
    }

    /// Where `bytes` bytes of guest memory are, when all of them are in one range.
    fn place(&self, at: u64, bytes: usize) -> Option<*mut u8> {
        let end = at.checked_add(bytes as u64)?;
        let inside = self.ranges.iter().any(|&(start, stop)| at >= start && end <= stop);
        inside.then(|| ptr::with_exposed_provenance_mut(address(WINDOW_BASE + at)))
    }

    /// Copies out of guest memory; `None`, and nothing is copied, when there is none.
    #[must_use]
    #[inline]
    pub fn read(&self, at: u64, into: &mut [u8]) -> Option<()> {
        let from = self.place(at, into.len())?;
        // One load, whatever its alignment: what lies in a line is read at once.
        if let Ok(bytes) = <&mut [u8; 8]>::try_from(&mut *into) {
            let value: u64;
            // SAFETY: `place` checked the range, which the kernel maps for as long as this service lives.
            unsafe {
                asm!("mov {}, [{}]", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags))
            };
            *bytes = value.to_le_bytes();
        } else if let Ok(bytes) = <&mut [u8; 4]>::try_from(&mut *into) {
            let value: u32;
            // SAFETY: as above.
            unsafe {
                asm!("mov {:e}, [{}]", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags))
            };
            *bytes = value.to_le_bytes();
        } else {
            // SAFETY: as above; the slice is this service's own.
            unsafe { copy(from.cast_const(), into.as_mut_ptr(), into.len()) };
        }
        Some(())
    }

    /// Copies into guest memory; `None`, and nothing is copied, when there is none.
    #[must_use]
    #[inline]
    pub fn write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        let to = self.place(at, bytes.len())?;
        if let (Ok(value), true) = (bytes.try_into(), at.is_multiple_of(8)) {
            // SAFETY: `place` checked the range, in which no Rust object lies.
            unsafe { to.cast::<u64>().write_volatile(u64::from_le_bytes(value)) };
        } else if let (Ok(value), true) = (bytes.try_into(), at.is_multiple_of(4)) {
            // SAFETY: as above.
            unsafe { to.cast::<u32>().write_volatile(u32::from_le_bytes(value)) };
        } else {
            // SAFETY: as above; the slice is this service's own.
            unsafe { copy(bytes.as_ptr(), to, bytes.len()) };
        }
        Some(())
    }

    /// Replaces an aligned 64-bit word in one step; what was there, when it was not `old`. `None` without memory there.
    #[must_use]
    pub fn compare_exchange_u64(&self, at: u64, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let place = self.place(at, 8).filter(|_| at.is_multiple_of(8))?;
        // SAFETY: `place` checked the range; an atomic is made for memory that others write.
        let word = unsafe { AtomicU64::from_ptr(place.cast()) };
        Some(word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst))
    }

    /// The same for 32 bits.
    #[must_use]
    pub fn compare_exchange_u32(&self, at: u64, old: u32, new: u32) -> Option<Result<u32, u32>> {
        let place = self.place(at, 4).filter(|_| at.is_multiple_of(4))?;
        // SAFETY: `place` checked the range; an atomic is made for memory that others write.
        let word = unsafe { AtomicU32::from_ptr(place.cast()) };
        Some(word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst))
    }
}

/// Copies bytes, any of which another processor may write meanwhile: the copy then has either value.
///
/// # Safety
/// Both ranges are mapped, and `to` is not read by others as Rust objects.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller vouches for the ranges; the direction flag is clear, as the ABI wants it.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The state pages of the vCPUs. One value is all there is, so that no two references to a page exist.
#[derive(Debug)]
pub struct StatePages {
    last: usize,
}

impl StatePages {
    /// The pages of the service that holds the guest as its platform; `None` when they were taken before.
    #[must_use]
    pub fn take(guest: &Guest) -> Option<Self> {
        let taken = TAKEN.swap(true, Ordering::Relaxed);
        (!taken).then_some(Self { last: usize::from(guest.vcpus).saturating_sub(1) })
    }

    /// The page of a vCPU that is at an exit (of the last one, for a number that is too high): the kernel writes it only
    /// before the exit and, while it is asked to ([`crate::syscall::vcpu_fetch`]), then.
    #[inline]
    pub fn get(&mut self, vcpu: usize) -> &mut VcpuPage {
        let index = vcpu.min(self.last);
        let place: *mut VcpuPage = ptr::with_exposed_provenance_mut(address(VCPU_PAGES) + index * PAGE_SIZE);
        // SAFETY: the kernel maps a page for each vCPU, any bytes are a `VcpuPage`, and `self` is borrowed meanwhile. No
        // reference spans a system call, because those that write the page need `self` again to be seen.
        unsafe { &mut *place }
    }
}
