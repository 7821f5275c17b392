//! Memory that the card reads and writes: the rings, the header buffers, and page frames.
#![expect(unsafe_code, reason = "DMA memory by address")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::HEADER_BYTES;

/// Where the driver gets memory for its rings and header buffers.
///
/// # Safety
/// What [`DmaMemory::allocate`] returns must be `pages` contiguous pages of 4 KiB, zeroed, page-aligned, readable and
/// writable, for this driver alone and for ever; the address must be where the device finds them, and not 0.
pub unsafe trait DmaMemory {
    /// Pages for the device, at a device address and a pointer, or `None` when there are no more.
    fn allocate(pages: usize) -> Option<(u64, NonNull<u8>)>;
}

/// Names a page frame that the card may reach.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    number: u32,
    address: u64,
}

impl Frame {
    /// The frame that its owner knows as `number`, at `address` for the device.
    ///
    /// # Safety
    /// `address` must be the device's address of a whole page frame that may be read and written by the device for as
    /// long as it runs, and that no Rust reference to plain data ever points into.
    #[must_use]
    pub const unsafe fn new(number: u32, address: u64) -> Self {
        Self { number, address }
    }

    /// The owner's number for it.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The device's address of it.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }
}

/// Private memory that stands for a buffer towards `VirtQueue`, which wants references to the buffers it posts and
/// has [`Hal::share`] turn them into device addresses. A reference into memory that the device or another service
/// writes must not exist; so the queue gets one to a ticket, and its first eight bytes are the device's address.
pub(crate) struct Ticket<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> Ticket<BYTES> {
    pub(crate) const fn new() -> Self {
        const { assert!(BYTES >= size_of::<u64>(), "a ticket holds an address") };
        Self([0; BYTES])
    }

    /// The ticket as `bytes` bytes of the buffer at `address`; at least 8 and at most all.
    pub(crate) fn for_buffer(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        self.0[..size_of::<u64>()].copy_from_slice(&address.to_ne_bytes());
        let bytes = bytes.clamp(size_of::<u64>(), BYTES);
        &mut self.0[..bytes]
    }
}

/// `virtio-drivers`' hardware layer on [`DmaMemory`] and tickets.
pub(crate) struct QueueHal<D>(PhantomData<D>);

// SAFETY: memory is what `DmaMemory` promises; tickets are neither accessed by the device nor copied back.
unsafe impl<D: DmaMemory> Hal for QueueHal<D> {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // The crate takes the address 0 for "no memory".
        D::allocate(pages).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_address: PhysAddr, _memory: NonNull<u8>, _pages: usize) -> i32 {
        // Rings live as long as the service; after a restart its memory starts anew.
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _bytes: usize) -> NonNull<u8> {
        unreachable!("only virtio-drivers' own PCI transport asks for this, and it is not used")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        // SAFETY: the buffer is a ticket, of at least eight bytes that hold the address; nobody writes it meanwhile.
        unsafe { buffer.cast::<u64>().read_unaligned() }
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// An array of header buffers of 80 bytes each in DMA memory, reached by volatile copies.
pub(crate) struct HeaderBuffers {
    memory: NonNull<[u64; HEADER_BYTES / 8]>,
    address: u64,
    count: usize,
}

impl HeaderBuffers {
    /// `count` buffers.
    pub(crate) fn allocate<D: DmaMemory>(count: usize) -> Option<Self> {
        let (address, memory) = D::allocate((count * HEADER_BYTES).div_ceil(crate::PAGE_BYTES))?;
        Some(Self { memory: memory.cast(), address, count })
    }

    /// The device's address of one.
    pub(crate) fn address(&self, index: u16) -> u64 {
        self.address + u64::from(index) * HEADER_BYTES as u64
    }

    fn word(&self, index: u16, word: usize) -> *mut u64 {
        assert!(usize::from(index) < self.count && word < HEADER_BYTES / 8, "a buffer of this array");
        self.memory.as_ptr().cast::<u64>().wrapping_add(usize::from(index) * (HEADER_BYTES / 8) + word)
    }

    /// Copies a buffer's contents out.
    pub(crate) fn read(&self, index: u16) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (word, out) in bytes.chunks_exact_mut(8).enumerate() {
            // SAFETY: the word lies in the array, which is this driver's for ever; a volatile read of what the device
            // may write needs no more.
            let value = unsafe { self.word(index, word).read_volatile() };
            out.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    /// Copies contents into a buffer.
    pub(crate) fn write(&self, index: u16, bytes: &[u8; HEADER_BYTES]) {
        for (word, from) in bytes.chunks_exact(8).enumerate() {
            let value = from.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)).to_le();
            // SAFETY: the word lies in the array, which is this driver's for ever.
            unsafe { self.word(index, word).write_volatile(value) };
        }
    }
}

// SAFETY: the memory is this driver's alone, wherever its thread runs.
unsafe impl Send for HeaderBuffers {}
