use std::collections::BTreeSet;
use std::vec::Vec;

use super::*;
use crate::testing::Random;

impl Frames {
    /// Asserts that counts, bitmaps and lists agree.
    pub(crate) fn check(&self) {
        let [whole, loose, idle] =
            [&self.whole, &self.loose, &self.idle].map(|list| list.numbers(&self.blocks));
        let (mut free, mut free_reserved, mut reserved, mut listed) = (0, 0, 0, 0);
        for (number, block) in (0..).zip(&self.blocks) {
            let count = block.free.iter().map(|word| word.count_ones()).sum::<u32>();
            assert_eq!(u32::from(block.free_count), count);
            free += count;
            let list = match block.usage {
                Usage::Whole => {
                    assert!(block.mappable && block.is_all_free());
                    &whole
                }
                Usage::Loose => {
                    assert!(!(block.mappable && block.is_all_free()));
                    &loose
                }
                Usage::Reserved(_) => {
                    reserved += 1;
                    free_reserved += count;
                    &idle
                }
            };
            assert_eq!(list.contains(&number), count != 0);
            listed += usize::from(count != 0);
        }
        assert_eq!(listed, whole.len() + loose.len() + idle.len());
        assert_eq!((free, free_reserved), (self.free, self.free_reserved));
        assert_eq!(reserved, self.reserved_blocks);
    }

    /// Whether a frame holds no page.
    pub(crate) fn is_free(&self, frame: Frame) -> bool {
        let place = frame.0 as usize % BLOCK_FRAMES as usize;
        self.blocks[BlockNumber::of(frame).index()].free[place / 64] >> (place % 64) & 1 == 1
    }
}

fn pool(count: u32) -> Frames {
    let frames = Frames::new(count, |_| true).unwrap();
    frames.check();
    frames
}

#[test]
fn a_pool_is_what_the_node_gives() {
    for (count, whole) in [(1, 0), (2, 0), (512, 0), (513, 0), (1023, 0), (1024, 1), (1025, 1), (5000, 8)] {
        let mut frames = pool(count);
        assert_eq!((frames.total(), frames.free()), (count, count - 1));
        let reserved = (0..).take_while(|chunk| frames.reserve(*chunk).is_some()).count();
        assert_eq!(reserved, whole, "{count}");
        frames.check();
        let mut singles = BTreeSet::new();
        while let Some(frame) = frames.take_one() {
            assert!(frame != Frame::ZERO_PAGE && frame.0 < count && singles.insert(frame));
        }
        frames.check();
        assert_eq!(singles.len() + 512 * whole, count as usize - 1);
    }
    assert_eq!(Frames::new(0, |_| true).unwrap_err(), StartError::NoFrames);
    assert_eq!(Frames::new(MAX_FRAMES + 1, |_| true).unwrap_err(), StartError::TooManyFrames);
}

#[test]
fn blocks_that_are_not_contiguous_give_single_frames_only() {
    let mut frames = Frames::new(4 * 512, |block| block != 2).unwrap();
    frames.check();
    let blocks: Vec<_> = (0..).map_while(|chunk| frames.reserve(chunk)).collect();
    assert_eq!(blocks, [BlockNumber(1), BlockNumber(3)]);
    assert_eq!((0..).map_while(|_: u32| frames.take_one()).count(), 511 + 512);
}

#[test]
fn a_run_is_clipped_by_what_is_taken() {
    let mut frames = pool(1024);
    let block = frames.reserve(0).unwrap();
    assert_eq!(frames.run(block, 200, 0), Run { first: 200, count: 1 });
    assert_eq!(frames.run(block, 200, 4), Run { first: 192, count: 16 });
    for place in [0, 63, 64, 511] {
        assert_eq!(frames.run(block, place, 6), Run { first: place / 64 * 64, count: 64 });
        assert_eq!(frames.run(block, place, 255), frames.run(block, place, 6));
    }
    assert_eq!(frames.take(block, Run { first: 195, count: 1 }), 511);
    assert_eq!(frames.take(block, Run { first: 202, count: 3 }), 508);
    assert_eq!(frames.run(block, 200, 4), Run { first: 196, count: 6 });
    assert_eq!(frames.run(block, 192, 4), Run { first: 192, count: 3 });
    assert_eq!(frames.run(block, 205, 4), Run { first: 205, count: 3 });
    assert_eq!(frames.run(block, 200, 3), Run { first: 200, count: 2 });
    frames.check();
}

#[test]
fn every_run_is_the_longest_in_its_group() {
    let mut random = Random(7);
    for _ in 0..300 {
        let mut frames = pool(1024);
        let block = frames.reserve(0).unwrap();
        let mut taken = [false; 512];
        for _ in 0..random.below(400_u32) {
            let place = random.below(512_u16);
            if taken[usize::from(place)] {
                continue;
            }
            let order = random.below(7_u8);
            let run = frames.run(block, place, order);
            let group = place >> order << order;
            let is_free =
                |place: &u16| *place >= group && *place < group + (1 << order) && !taken[usize::from(*place)];
            let first = (group..=place).rev().take_while(is_free).last().unwrap();
            let count = (first..512).take_while(is_free).count();
            assert_eq!((run.first, usize::from(run.count)), (first, count));
            frames.take(block, run);
            taken[usize::from(first)..][..count].fill(true);
        }
        frames.check();
    }
}

#[test]
fn the_reservation_used_least_recently_is_broken_and_full_ones_never() {
    let mut frames = pool(5 * 512);
    let blocks: Vec<_> = (0..4).map(|chunk| frames.reserve(chunk).unwrap()).collect();
    assert_eq!(frames.reserve(4), None);
    for place in 0..8 {
        frames.take(blocks[1], Run { first: place * 64, count: 64 });
    }
    for chunk in [2, 0, 3, 0] {
        let place = frames.blocks[blocks[chunk].index()].free_count - 1;
        frames.take(blocks[chunk], Run { first: place, count: 1 });
    }
    frames.check();
    assert_eq!(frames.reserved_blocks(), 4);
    assert_eq!([(); 4].map(|()| frames.break_oldest()), [Some(2), Some(3), Some(0), None]);
    frames.check();
    assert_eq!((frames.reserved_blocks(), frames.free_reserved()), (1, 0));
    assert_eq!(frames.free(), 511 + 3 * 512 - 4);
}

#[test]
fn blocks_become_whole_again() {
    let mut frames = pool(3 * 512);
    let mut taken: Vec<_> = (0..).map_while(|_: u32| frames.take_one()).collect();
    assert_eq!((frames.free(), frames.reserve(0)), (0, None));
    let mut random = Random(3);
    while !taken.is_empty() {
        let at = random.below(taken.len());
        frames.give_back(taken.swap_remove(at));
    }
    frames.check();
    assert_eq!(frames.free(), 3 * 512 - 1);
    let block = frames.reserve(1).unwrap();
    assert!(frames.reserve(2).is_some());
    frames.take(block, Run { first: 0, count: 64 });
    frames.release(block);
    frames.check();
    assert_eq!(frames.reserve(3), Some(block));
}

#[test]
fn frames_that_follow_one_another_are_taken_together() {
    let mut frames = pool(3 * 512);
    assert_eq!(frames.take_several(16), Some((Frame(1), 16)));
    assert_eq!(frames.take_several(1), Some((Frame(17), 1)));
    // No more than are left of 64 that begin at a multiple of 64, and none beyond one that is taken.
    assert_eq!(frames.take_several(64), Some((Frame(18), 46)));
    assert!(frames.take_this(Frame(70)));
    assert_eq!(frames.take_several(64), Some((Frame(64), 6)));
    assert_eq!(frames.take_several(8), Some((Frame(71), 8)));
    frames.check();
    let mut taken = BTreeSet::new();
    while let Some((first, count)) = frames.take_several(64) {
        assert!((1..=64).contains(&count));
        assert!((first.0..first.0 + u32::from(count)).all(|frame| taken.insert(frame)));
        frames.check();
    }
    assert_eq!((taken.len(), frames.free()), (3 * 512 - 79, 0));
    frames.reset();
    frames.check();
    assert_eq!((frames.free(), frames.reserve(0)), (3 * 512 - 1, Some(BlockNumber(1))));
}

#[test]
fn a_frame_is_taken_by_its_number_once() {
    let mut frames = pool(2 * 512 + 100);
    assert!(frames.take_this(Frame(512)) && frames.take_this(Frame(2 * 512 + 99)));
    for frame in [0, 512, 2 * 512 + 99, 2 * 512 + 100, 4 * 512, u32::MAX] {
        assert!(!frames.take_this(Frame(frame)), "{frame}");
    }
    frames.check();
    frames.give_back(Frame(512));
    frames.check();
    let block = frames.reserve(0).unwrap();
    assert!(!frames.take_this(block.frame(5)), "a reserved one is not given away");
    frames.reset();
    frames.check();
    assert_eq!(frames.free(), 2 * 512 + 99);
}

#[test]
fn what_is_taken_in_any_way_comes_back() {
    let mut random = Random(11);
    let mut frames = pool(4 * 512 + 33);
    let total = frames.free();
    let mut held = Vec::new();
    for _ in 0..20_000 {
        match random.below(4) {
            0 => {
                if let Some((first, count)) = frames.take_several(1 + random.below(40_u16)) {
                    held.extend((first.0..first.0 + u32::from(count)).map(Frame));
                }
            }
            1 => {
                let frame = Frame(random.below(5_u32 * 512));
                assert_eq!(
                    frames.take_this(frame),
                    frame.0 > 0 && frame.0 < total + 1 && !held.contains(&frame)
                );
                if frame.0 > 0 && frame.0 < total + 1 && !held.contains(&frame) {
                    held.push(frame);
                }
            }
            _ => {
                for _ in 0..random.below(12_u32) {
                    if !held.is_empty() {
                        let place = random.below(held.len());
                        frames.give_back(held.swap_remove(place));
                    }
                }
            }
        }
        assert_eq!(frames.free() as usize + held.len(), total as usize);
    }
    frames.check();
}
