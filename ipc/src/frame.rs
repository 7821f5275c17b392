//! Frames of 4 KiB that are handed from service to service by name: contents never pass, only handles.
//!
//! A pool is a region of DMA memory that several services map. One of them owns it: it keeps a [`FramePool`], which says
//! who has each frame. It lends a frame to another service (the *holder*) by sending a [`FrameDescriptor`], and takes it
//! back when the holder sends that handle again. A holder's handle is a claim: the pool knows to whom it lent what,
//! and whatever else is claimed is an error that says what is wrong. When a holder restarts, all its frames come back.
//!
//! What a handle cannot do is keep a holder from writing to a frame that it gave back, since all holders map the pool. A
//! pool is for services that may see each other's frames; one that may not has a pool of its own.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::PAGE_SIZE;

/// Names a frame for as long as it is in the same hands.
///
/// Bits 0 to 7: the pool. Bits 8 to 39: the frame's index in the pool. Bits 40 to 63: its generation, which changes each
/// time the frame comes back to the owner, and is the same again only after 16,777,216 times.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(transparent)]
pub struct FrameHandle(pub u64);

impl FrameHandle {
    const GENERATION_MASK: u32 = 0xff_ffff;

    /// A handle from its parts; of the generation the low 24 bits count.
    #[must_use]
    pub const fn new(pool: u8, index: u32, generation: u32) -> Self {
        let generation = generation & Self::GENERATION_MASK;
        Self(pool as u64 | (index as u64) << 8 | (generation as u64) << 40)
    }

    /// The pool.
    #[must_use]
    pub const fn pool(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The frame's index in the pool.
    #[must_use]
    pub const fn index(self) -> u32 {
        let bytes = self.0.to_le_bytes();
        u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])
    }

    /// The generation, 24 bits.
    #[must_use]
    pub const fn generation(self) -> u32 {
        let bytes = self.0.to_le_bytes();
        u32::from_le_bytes([bytes[5], bytes[6], bytes[7], 0])
    }

    /// Where the frame begins in its pool's region, in bytes.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.index() as u64 * PAGE_SIZE as u64
    }
}

/// What is sent of a frame, through a channel say.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct FrameDescriptor {
    /// The frame.
    pub handle: FrameHandle,
    /// Bytes that count.
    pub length: u32,
    /// Where these begin in the frame, in bytes.
    pub offset: u16,
    /// What is to be done with the frame, as sender and receiver agree.
    pub kind: u16,
}

const _: () = assert!(size_of::<FrameDescriptor>() == 16);

impl FrameDescriptor {
    /// Where the bytes lie in the frame, if they lie in it whole.
    #[must_use]
    pub fn range(&self) -> Option<core::ops::Range<usize>> {
        let start = usize::from(self.offset);
        let end = start.checked_add(usize::try_from(self.length).ok()?)?;
        (end <= PAGE_SIZE).then_some(start..end)
    }
}

/// The owner's record of one frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameRecord {
    generation: u32,
    hands: Hands,
}

impl FrameRecord {
    /// The record of a frame not yet in a pool.
    pub const NEW: Self = Self { generation: 0, hands: Hands::Free { next: None } };
}

/// Whose a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hands {
    /// Nobody's; `next` is the next free one.
    Free { next: Option<u32> },
    /// The owner's.
    Owner,
    /// This service's.
    Holder(u8),
}

/// Why a frame does not change hands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameError {
    /// No frame is free.
    Exhausted,
    /// The handle is one of another pool.
    ForeignPool {
        /// The pool in the handle.
        pool: u8,
    },
    /// The pool has no such frame.
    NoSuchFrame {
        /// The index in the handle.
        index: u32,
    },
    /// The frame has come back since; the handle is of an earlier time, or made up.
    Stale {
        /// The generation in the handle.
        generation: u32,
        /// The frame's generation.
        present: u32,
    },
    /// The frame is not lent to this service.
    NotLentTo {
        /// The service that claims it.
        holder: u8,
    },
    /// The owner itself does not have the frame now: it is lent, or free.
    NotOwned,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted => f.write_str("no frame is free"),
            Self::ForeignPool { pool } => write!(f, "the frame is one of pool {pool}"),
            Self::NoSuchFrame { index } => write!(f, "the pool has no frame {index}"),
            Self::Stale { generation, present } => {
                write!(f, "the frame's handle is stale: generation {generation}, now {present}")
            }
            Self::NotLentTo { holder } => write!(f, "the frame is not lent to service {holder}"),
            Self::NotOwned => f.write_str("the frame is not in its owner's hands"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Who has each frame of a pool. Every operation but [`revoke`](Self::revoke) takes constant time.
#[derive(Debug)]
pub struct FramePool<'a> {
    pool: u8,
    records: &'a mut [FrameRecord],
    free: Option<u32>,
    free_count: usize,
}

impl<'a> FramePool<'a> {
    /// A pool of as many frames as there are records, all of them free. What the records say of generations stays, so
    /// that records that outlive the owner's restart keep old handles stale.
    pub fn new(pool: u8, records: &'a mut [FrameRecord]) -> Self {
        let mut this = Self { pool, records, free: None, free_count: 0 };
        for index in (0..this.records.len()).rev() {
            if let Ok(index) = u32::try_from(index) {
                this.put_back(index);
            }
        }
        this
    }

    /// Frames that nobody has.
    #[must_use]
    pub const fn free_count(&self) -> usize {
        self.free_count
    }

    /// Takes a free frame into the owner's hands.
    ///
    /// # Errors
    /// [`FrameError::Exhausted`].
    pub fn allocate(&mut self) -> Result<FrameHandle, FrameError> {
        let index = self.free.ok_or(FrameError::Exhausted)?;
        let record = self.records.get_mut(index as usize).ok_or(FrameError::Exhausted)?;
        if let Hands::Free { next } = record.hands {
            self.free = next;
        }
        record.hands = Hands::Owner;
        self.free_count -= 1;
        Ok(FrameHandle::new(self.pool, index, record.generation))
    }

    /// Frees a frame that is in the owner's hands.
    ///
    /// # Errors
    /// [`FrameError::NotOwned`], and those of a handle that names no frame.
    pub fn free(&mut self, handle: FrameHandle) -> Result<(), FrameError> {
        self.owned(handle)?;
        self.put_back(handle.index());
        Ok(())
    }

    /// Lends a frame in the owner's hands to the service `holder`, to whom the handle is then sent.
    ///
    /// # Errors
    /// [`FrameError::NotOwned`], and those of a handle that names no frame.
    pub fn lend(&mut self, handle: FrameHandle, holder: u8) -> Result<(), FrameError> {
        self.owned(handle)?.hands = Hands::Holder(holder);
        Ok(())
    }

    /// Takes a frame back from the service `holder`, which sent this handle; the handle by which the owner has it now.
    ///
    /// # Errors
    /// [`FrameError::NotLentTo`], and those of a handle that names no frame.
    pub fn take_back(&mut self, handle: FrameHandle, holder: u8) -> Result<FrameHandle, FrameError> {
        let pool = self.pool;
        let record = self.record(handle)?;
        if record.hands != Hands::Holder(holder) {
            return Err(FrameError::NotLentTo { holder });
        }
        record.hands = Hands::Owner;
        record.generation = record.generation.wrapping_add(1) & FrameHandle::GENERATION_MASK;
        Ok(FrameHandle::new(pool, handle.index(), record.generation))
    }

    /// Frees every frame that is lent to a service that restarted; how many these were.
    pub fn revoke(&mut self, holder: u8) -> usize {
        let mut revoked = 0;
        for index in 0..self.records.len() {
            let is_lent = self.records.get(index).is_some_and(|record| record.hands == Hands::Holder(holder));
            if let (true, Ok(index)) = (is_lent, u32::try_from(index)) {
                self.put_back(index);
                revoked += 1;
            }
        }
        revoked
    }

    /// The record that a handle names.
    fn record(&mut self, handle: FrameHandle) -> Result<&mut FrameRecord, FrameError> {
        if handle.pool() != self.pool {
            return Err(FrameError::ForeignPool { pool: handle.pool() });
        }
        let index = handle.index();
        let record = self.records.get_mut(index as usize).ok_or(FrameError::NoSuchFrame { index })?;
        if handle.generation() != record.generation {
            return Err(FrameError::Stale { generation: handle.generation(), present: record.generation });
        }
        Ok(record)
    }

    fn owned(&mut self, handle: FrameHandle) -> Result<&mut FrameRecord, FrameError> {
        let record = self.record(handle)?;
        if record.hands == Hands::Owner { Ok(record) } else { Err(FrameError::NotOwned) }
    }

    /// Makes a frame free, and its handles stale.
    fn put_back(&mut self, index: u32) {
        let Some(record) = self.records.get_mut(index as usize) else { return };
        record.generation = record.generation.wrapping_add(1) & FrameHandle::GENERATION_MASK;
        record.hands = Hands::Free { next: self.free };
        self.free = Some(index);
        self.free_count += 1;
    }
}

#[cfg(test)]
mod tests;
