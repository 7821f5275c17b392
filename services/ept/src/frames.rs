//! The pool of page frames, in blocks of 512, and the reservations of whole blocks.
//!
//! A block is *whole* (nobody has any of it), *loose* (its frames are given out one by one) or *reserved* for a chunk of guest
//! memory, whose pages each get the frame at their own place in the block. A block that fills up so can be mapped by one
//! large page. When nothing else is free, the reservation that was used least recently is broken: its block becomes loose,
//! the frames that the chunk has stay the chunk's (reservation-based superpages: Navarro, Iyer, Druschel, Cox, OSDI 2002,
//! sections 4.1 and 4.8).
//!
//! Every operation takes bounded time: lists are linked through the blocks, and a block's bitmap has eight words. The block
//! and frame numbers that come in are those that went out.

mod list;

use alloc::vec::Vec;

use self::list::{Link, List};
use crate::{StartError, filled};

/// Frames of a block, but for the last one's.
pub const BLOCK_FRAMES: u16 = 512;
/// The most frames of a pool: 4 TiB. A page's entry has 30 bits for its frame.
pub const MAX_FRAMES: u32 = 1 << 30;
const WORD_BITS: usize = u64::BITS as usize;
/// Words of a block's bitmap.
const WORDS: usize = BLOCK_FRAMES as usize / WORD_BITS;

/// A frame, by its number in the pool.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Frame(pub u32);

impl Frame {
    /// The frame set aside as the shared page of zeros.
    pub const ZERO_PAGE: Self = Self(0);
}

/// A block, by its number in the pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct BlockNumber(u32);

impl BlockNumber {
    const fn of(frame: Frame) -> Self {
        Self(frame.0 / BLOCK_FRAMES as u32)
    }

    const fn index(self) -> usize {
        self.0 as usize
    }

    /// The frame at a place, below 512, of the block.
    #[must_use]
    pub const fn frame(self, place: u16) -> Frame {
        Frame(self.0 * BLOCK_FRAMES as u32 + place as u32)
    }
}

/// Places of a block, one after another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// The first, below 512.
    pub first: u16,
    /// How many, 1 to 64.
    pub count: u16,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Usage {
    Whole,
    Loose,
    /// For the chunk of this number.
    Reserved(u32),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// A bit for each frame that holds no page.
    free: [u64; WORDS],
    free_count: u16,
    /// Whether it can be mapped by one large page.
    mappable: bool,
    usage: Usage,
    link: Link,
}

impl Block {
    const EMPTY: Self =
        Self { free: [0; WORDS], free_count: 0, mappable: false, usage: Usage::Loose, link: Link::NONE };

    fn is_all_free(&self) -> bool {
        self.free_count == BLOCK_FRAMES
    }
}

const _: () = assert!(size_of::<Block>() <= 88);

/// The pool.
#[derive(Debug)]
pub struct Frames {
    blocks: Vec<Block>,
    /// Whole blocks that can be mapped by one large page.
    whole: List,
    /// Loose blocks with a free frame.
    loose: List,
    /// Reserved blocks with a free frame, the one used least recently first.
    idle: List,
    total: u32,
    free: u32,
    /// Those of the free ones that are in reserved blocks.
    free_reserved: u32,
    reserved_blocks: u32,
}

impl Frames {
    /// A pool of `count` frames, of which [`Frame::ZERO_PAGE`] is set aside. `is_mappable` tells for a block's number
    /// whether its 512 frames are contiguous and begin at a multiple of 2 MiB in physical memory.
    ///
    /// # Errors
    /// [`StartError::NoFrames`], [`StartError::TooManyFrames`], or [`StartError::NoRoom`].
    pub fn new(count: u32, mut is_mappable: impl FnMut(u32) -> bool) -> Result<Self, StartError> {
        if count == 0 {
            return Err(StartError::NoFrames);
        }
        if count > MAX_FRAMES {
            return Err(StartError::TooManyFrames);
        }
        let mut frames = Self {
            blocks: filled(Block::EMPTY, (count as usize).div_ceil(BLOCK_FRAMES as usize))?,
            whole: List::EMPTY,
            loose: List::EMPTY,
            idle: List::EMPTY,
            total: count,
            free: 0,
            free_reserved: 0,
            reserved_blocks: 0,
        };
        for number in 0..count.div_ceil(BLOCK_FRAMES as u32) {
            let here = frames.frames_of(number);
            let is_mappable = here == BLOCK_FRAMES as u32 && is_mappable(number);
            frames.add(number, here, is_mappable);
        }
        Ok(frames)
    }

    /// Makes all frames free, as they were at the start.
    pub fn reset(&mut self) {
        (self.whole, self.loose, self.idle) = (List::EMPTY, List::EMPTY, List::EMPTY);
        (self.free, self.free_reserved, self.reserved_blocks) = (0, 0, 0);
        for number in 0..self.total.div_ceil(BLOCK_FRAMES as u32) {
            let mappable = self.blocks[number as usize].mappable;
            self.blocks[number as usize] = Block::EMPTY;
            self.add(number, self.frames_of(number), mappable);
        }
    }

    /// How many frames a block has.
    fn frames_of(&self, number: u32) -> u32 {
        (self.total - number * BLOCK_FRAMES as u32).min(BLOCK_FRAMES as u32)
    }

    /// Fills in an empty block of `count` frames, but for [`Frame::ZERO_PAGE`].
    fn add(&mut self, number: u32, count: u32, mappable: bool) {
        let block = &mut self.blocks[number as usize];
        block.mappable = mappable;
        for (word, first) in block.free.iter_mut().zip((0..).step_by(WORD_BITS)) {
            let bits = count.saturating_sub(first).min(u64::BITS);
            *word = u64::MAX.checked_shr(u64::BITS - bits).unwrap_or(0);
        }
        if BlockNumber(number) == BlockNumber::of(Frame::ZERO_PAGE) {
            block.free[0] &= !1;
        }
        let free = block.free.iter().map(|word| word.count_ones()).sum::<u32>();
        // At most 512.
        block.free_count = u16::try_from(free).unwrap_or(0);
        self.free += free;
        if mappable && block.is_all_free() {
            block.usage = Usage::Whole;
            self.whole.push_back(&mut self.blocks, number);
        } else if free != 0 {
            self.loose.push_back(&mut self.blocks, number);
        }
    }

    /// Frames in all, with [`Frame::ZERO_PAGE`].
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// Frames that hold no page.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.free
    }

    /// Free frames that are set aside for a chunk.
    #[must_use]
    pub const fn free_reserved(&self) -> u32 {
        self.free_reserved
    }

    /// Blocks that are reserved.
    #[must_use]
    pub const fn reserved_blocks(&self) -> u32 {
        self.reserved_blocks
    }

    /// Bytes that the pool's own tables take.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }

    /// Reserves a whole block for a chunk, if there is one.
    pub fn reserve(&mut self, chunk: u32) -> Option<BlockNumber> {
        let number = self.whole.pop_front(&mut self.blocks)?;
        self.blocks[number as usize].usage = Usage::Reserved(chunk);
        self.idle.push_back(&mut self.blocks, number);
        self.free_reserved += BLOCK_FRAMES as u32;
        self.reserved_blocks += 1;
        Some(BlockNumber(number))
    }

    /// The free frames round a place of a reserved block that is free itself: at most those of the aligned group of
    /// 2^`order`, `order` at most 6, and none beyond one that is taken.
    #[inline]
    #[must_use]
    pub fn run(&self, block: BlockNumber, place: u16, order: u8) -> Run {
        if order == 0 {
            return Run { first: place, count: 1 };
        }
        let bit = u32::from(place) % u64::BITS;
        let size = 1u32 << order.min(6);
        let group = u64::MAX >> (u64::BITS - size) << (bit & !(size - 1));
        let free = self.blocks[block.index()].free[usize::from(place) / WORD_BITS] & group;
        debug_assert!(free >> bit & 1 == 1, "the place is free");
        let above = (!(free >> bit >> 1)).trailing_zeros();
        let below = (!(free << (u64::BITS - 1 - bit) << 1)).leading_zeros();
        #[expect(clippy::cast_possible_truncation, reason = "neither is above 63")]
        Run { first: place - below as u16, count: (below + 1 + above) as u16 }
    }

    /// Takes a run of [`Frames::run`]; how many frames of the block are free now.
    #[inline]
    pub fn take(&mut self, block: BlockNumber, run: Run) -> u16 {
        let record = &mut self.blocks[block.index()];
        let mask = u64::MAX >> (u64::BITS - u32::from(run.count)) << (u32::from(run.first) % u64::BITS);
        record.free[usize::from(run.first) / WORD_BITS] &= !mask;
        record.free_count -= run.count;
        let left = record.free_count;
        self.free -= u32::from(run.count);
        self.free_reserved -= u32::from(run.count);
        if left == 0 {
            self.idle.remove(&mut self.blocks, block.0);
        } else {
            self.idle.move_to_back(&mut self.blocks, block.0);
        }
        left
    }

    /// Whether no page has a frame of a reserved block.
    #[must_use]
    pub fn is_unused(&self, block: BlockNumber) -> bool {
        self.blocks[block.index()].is_all_free()
    }

    /// Ends a reservation whose chunk has given up all of its pages.
    pub fn release(&mut self, block: BlockNumber) {
        let record = &mut self.blocks[block.index()];
        let was_free = record.free_count;
        record.free = [u64::MAX; WORDS];
        record.free_count = BLOCK_FRAMES;
        record.usage = Usage::Whole;
        if was_free != 0 {
            self.idle.remove(&mut self.blocks, block.0);
        }
        self.whole.push_front(&mut self.blocks, block.0);
        self.free += u32::from(BLOCK_FRAMES - was_free);
        self.free_reserved -= u32::from(was_free);
        self.reserved_blocks -= 1;
    }

    /// Breaks the reservation that has free frames and was used least recently; the chunk that it was for.
    pub fn break_oldest(&mut self) -> Option<u32> {
        let number = self.idle.pop_front(&mut self.blocks)?;
        let record = &mut self.blocks[number as usize];
        let owner = record.usage;
        record.usage = Usage::Loose;
        self.free_reserved -= u32::from(record.free_count);
        self.reserved_blocks -= 1;
        self.loose.push_back(&mut self.blocks, number);
        match owner {
            Usage::Reserved(chunk) => Some(chunk),
            Usage::Whole | Usage::Loose => None,
        }
    }

    /// A block that has a frame in no reservation.
    fn loose_block(&mut self) -> Option<u32> {
        if self.loose.front().is_none() {
            let number = self.whole.pop_front(&mut self.blocks)?;
            self.blocks[number as usize].usage = Usage::Loose;
            self.loose.push_back(&mut self.blocks, number);
        }
        self.loose.front()
    }

    /// Takes frames that follow one another and are in no reservation, `most` of them or fewer, 64 at most: the first, and how
    /// many.
    pub fn take_several(&mut self, most: u16) -> Option<(Frame, u16)> {
        let number = self.loose_block()?;
        let free = &self.blocks[number as usize].free;
        let (at, word) = free.iter().enumerate().find(|(_, word)| **word != 0)?;
        let first = word.trailing_zeros();
        let follow = (!(*word >> first)).trailing_zeros();
        #[expect(clippy::cast_possible_truncation, reason = "neither is above 511")]
        let (place, count) = ((at * WORD_BITS) as u16 + first as u16, most.min(follow as u16));
        for place in place..place + count {
            self.take_place(number, place);
        }
        Some((BlockNumber(number).frame(place), count))
    }

    /// Takes this very frame, whose block is not reserved; whether it was free.
    pub fn take_this(&mut self, frame: Frame) -> bool {
        let number = BlockNumber::of(frame);
        #[expect(clippy::cast_possible_truncation, reason = "below 512")]
        let place = (frame.0 % BLOCK_FRAMES as u32) as u16;
        let Some(block) = self.blocks.get_mut(number.index()) else { return false };
        let is_free = block.free[usize::from(place) / WORD_BITS] >> (usize::from(place) % WORD_BITS) & 1 == 1;
        match block.usage {
            _ if !is_free => return false,
            Usage::Reserved(_) => return false,
            Usage::Whole => {
                block.usage = Usage::Loose;
                self.whole.remove(&mut self.blocks, number.0);
                self.loose.push_back(&mut self.blocks, number.0);
            }
            Usage::Loose => {}
        }
        self.take_place(number.0, place);
        true
    }

    /// Takes a free frame of a loose block.
    fn take_place(&mut self, number: u32, place: u16) {
        let record = &mut self.blocks[number as usize];
        record.free[usize::from(place) / WORD_BITS] &= !(1 << (usize::from(place) % WORD_BITS));
        record.free_count -= 1;
        if record.free_count == 0 {
            self.loose.remove(&mut self.blocks, number);
        }
        self.free -= 1;
    }

    /// Takes one frame that is in no reservation.
    pub fn take_one(&mut self) -> Option<Frame> {
        self.take_several(1).map(|(frame, _)| frame)
    }

    /// Gives back a frame of [`Frames::take_one`], or one that its chunk got before its reservation was broken.
    pub fn give_back(&mut self, frame: Frame) {
        let number = BlockNumber::of(frame);
        let place = frame.0 as usize % BLOCK_FRAMES as usize;
        let record = &mut self.blocks[number.index()];
        let bit = 1 << (place % WORD_BITS);
        debug_assert!(record.usage == Usage::Loose && record.free[place / WORD_BITS] & bit == 0);
        record.free[place / WORD_BITS] |= bit;
        record.free_count += 1;
        self.free += 1;
        if record.mappable && record.is_all_free() {
            record.usage = Usage::Whole;
            self.loose.remove(&mut self.blocks, number.0);
            self.whole.push_back(&mut self.blocks, number.0);
        } else if record.free_count == 1 {
            self.loose.push_back(&mut self.blocks, number.0);
        }
    }
}

#[cfg(test)]
mod tests;
