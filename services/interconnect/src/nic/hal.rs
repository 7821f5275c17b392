//! What the driver needs of the hardware: the card's registers, memory for its rings, page frames, and the processor's
//! checksum instruction.
#![expect(
    unsafe_code,
    reason = "device memory and DMA memory by address, and an instruction not all processors have"
)]

use core::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use heapless::Vec;
use ipc::abi::{MAX_CAPABILITIES, PAGE_SIZE};
use ipc::interfaces::interconnect::NO_FRAME;
use rt::capability::{DeviceMemory, DmaRegion};
use virtio_net::transport::Registers;
use virtio_net::{DmaMemory, Frame};

/// 64-bit words in a page frame.
pub const WORDS: usize = PAGE_SIZE / 8;

/// The card's registers in one BAR.
pub struct Bar {
    base: NonNull<u8>,
    bytes: usize,
}

impl Bar {
    /// The registers in this memory.
    pub fn new(memory: DeviceMemory) -> Self {
        Self { base: memory.base(), bytes: usize::try_from(memory.region.bytes).unwrap_or(0) }
    }

    /// The register of this type at an offset.
    fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "a register outside its BAR");
        assert!(offset.is_multiple_of(size_of::<T>()), "a misaligned register");
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

impl Registers for Bar {
    fn length(&self) -> usize {
        self.bytes
    }

    fn read_u8(&self, offset: usize) -> u8 {
        // SAFETY: the register lies in device memory that stays mapped.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    fn read_u16(&self, offset: usize) -> u16 {
        // SAFETY: as above, and it is aligned.
        unsafe { self.at::<u16>(offset).read_volatile() }
    }

    fn read_u32(&self, offset: usize) -> u32 {
        // SAFETY: likewise.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    fn write_u8(&self, offset: usize, value: u8) {
        // SAFETY: the register lies in device memory that stays mapped; what the card does to memory on account of
        // it is bounded by the addresses that it was given, all of them set aside for it.
        unsafe { self.at::<u8>(offset).write_volatile(value) }
    }

    fn write_u16(&self, offset: usize, value: u16) {
        // SAFETY: as above, and it is aligned.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }

    fn write_u32(&self, offset: usize, value: u32) {
        // SAFETY: likewise.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }
}

/// Memory for the card's rings: a region of this service's alone, handed out from its start.
pub struct Rings;

static RINGS_BASE: AtomicUsize = AtomicUsize::new(0);
static RINGS_PHYSICAL: AtomicU64 = AtomicU64::new(0);
static RINGS_PAGES: AtomicUsize = AtomicUsize::new(0);
static RINGS_NEXT: AtomicUsize = AtomicUsize::new(0);

/// Zeroes the region and lets [`Rings`] hand it out. The card must not use it any more.
pub fn give_rings(region: &DmaRegion) {
    for word in region.region.words() {
        word.store(0, Ordering::Relaxed);
    }
    RINGS_BASE.store(region.region.base().as_ptr().expose_provenance(), Ordering::Relaxed);
    RINGS_PHYSICAL.store(region.physical, Ordering::Relaxed);
    let pages = usize::try_from(region.region.bytes).unwrap_or(0) / PAGE_SIZE;
    RINGS_PAGES.store(pages, Ordering::Relaxed);
}

// SAFETY: the region is page-aligned, contiguous, zeroed by `give_rings`, of this service alone, and no page of it is
// handed out twice.
unsafe impl DmaMemory for Rings {
    fn allocate(pages: usize) -> Option<(u64, NonNull<u8>)> {
        let first = RINGS_NEXT.load(Ordering::Relaxed);
        let end = first.checked_add(pages)?;
        if end > RINGS_PAGES.load(Ordering::Relaxed) {
            return None;
        }
        // One thread alone sets up the card.
        RINGS_NEXT.store(end, Ordering::Relaxed);
        let offset = first * PAGE_SIZE;
        let base = RINGS_BASE.load(Ordering::Relaxed);
        let memory = NonNull::new(core::ptr::with_exposed_provenance_mut(base + offset))?;
        Some((RINGS_PHYSICAL.load(Ordering::Relaxed) + offset as u64, memory))
    }
}

/// A contiguous piece of a pool: its first frame's number, and where it is.
struct Piece {
    first: u32,
    region: DmaRegion,
}

/// Page frames that the card can reach, numbered through all pieces of their pool, in order.
pub struct Pool {
    pieces: Vec<Piece, MAX_CAPABILITIES>,
    frames: u32,
}

impl Pool {
    /// The frames of these pieces.
    pub fn of(regions: impl Iterator<Item = DmaRegion>) -> Self {
        let mut pool = Self { pieces: Vec::new(), frames: 0 };
        for region in regions {
            // No pool reaches the number that stands for none: that would be 16 TiB.
            let pages = u32::try_from(region.region.bytes / PAGE_SIZE as u64).unwrap_or(0);
            let Some(frames) = pool.frames.checked_add(pages).filter(|&frames| frames != NO_FRAME) else {
                break;
            };
            if pool.pieces.push(Piece { first: pool.frames, region }).is_err() {
                break;
            }
            pool.frames = frames;
        }
        pool
    }

    /// How many frames there are.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// The piece that a frame is in, and its place there.
    fn find(&self, number: u32) -> Option<(&DmaRegion, usize)> {
        if number >= self.frames {
            return None;
        }
        let piece = self.pieces.iter().rev().find(|piece| piece.first <= number)?;
        Some((&piece.region, (number - piece.first) as usize))
    }

    /// The frame of this number, for the card.
    pub fn frame(&self, number: u32) -> Option<Frame> {
        let (region, place) = self.find(number)?;
        let address = region.physical + (place * PAGE_SIZE) as u64;
        // SAFETY: a page of DMA memory, which stays so for as long as the node runs and which Rust code reaches as atomic
        // words and by volatile copies alone.
        Some(unsafe { Frame::new(number, address) })
    }

    /// The words of the frame of this number; none when there is no such frame.
    pub fn words(&self, number: u32) -> &'static [AtomicU64] {
        let words = |(region, place): (&DmaRegion, usize)| {
            region.region.words().get(place * WORDS..).and_then(|words| words.get(..WORDS))
        };
        self.find(number).and_then(words).unwrap_or_default()
    }
}

/// The CRC-32C of the first bytes of shared words.
pub fn crc32c(words: &[AtomicU64], bytes: usize) -> u32 {
    if has_crc_instruction() {
        // SAFETY: the processor has SSE 4.2.
        unsafe { crc32c_by_instruction(words, bytes) }
    } else {
        crc32c_by_table(words, bytes)
    }
}

/// Whether the processor has SSE 4.2: CPUID function 1, ECX bit 20 (AMD APM 3, appendix E).
fn has_crc_instruction() -> bool {
    static KNOWN: AtomicUsize = AtomicUsize::new(UNKNOWN);
    const UNKNOWN: usize = 0;
    const THERE: usize = 1;
    const MISSING: usize = 2;
    match KNOWN.load(Ordering::Relaxed) {
        THERE => true,
        MISSING => false,
        _ => {
            let there = core::arch::x86_64::__cpuid(1).ecx & 1 << 20 != 0;
            KNOWN.store(if there { THERE } else { MISSING }, Ordering::Relaxed);
            there
        }
    }
}

#[target_feature(enable = "sse4.2")]
#[expect(clippy::cast_possible_truncation, reason = "the instruction leaves the upper half zero")]
fn crc32c_by_instruction(words: &[AtomicU64], bytes: usize) -> u32 {
    let mut crc = u64::from(u32::MAX);
    let (whole, rest) = words.split_at(words.len().min(bytes / 8));
    for word in whole {
        crc = _mm_crc32_u64(crc, word.load(Ordering::Relaxed));
    }
    let mut crc = crc as u32;
    if let Some(last) = rest.first() {
        for &byte in last.load(Ordering::Relaxed).to_le_bytes().iter().take(bytes % 8) {
            crc = _mm_crc32_u8(crc, byte);
        }
    }
    !crc
}

fn crc32c_by_table(words: &[AtomicU64], bytes: usize) -> u32 {
    let mut left = bytes;
    words.iter().fold(0, |crc, word| {
        let word = word.load(Ordering::Relaxed).to_le_bytes();
        let part = left.min(8);
        left -= part;
        ipc::wire::crc32c(crc, word.get(..part).unwrap_or_default())
    })
}
