//! Which page frames the service has, by their numbers in a pool that may have millions.
//!
//! A later life of the service receives into none but those that the former one had, or it would ruin the guest's memory. So
//! each is noted in memory that outlives a restart: in words that are zero at boot, first [`MAGIC`], then the pool's size, then
//! for each place a frame's number and one, or zero. A frame that changes hands is one store, and is taken out of the list
//! before another takes its place: whenever the service dies, what the list has is nobody else's.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;
use heapless::index_map::FnvIndexMap;
use ipc::interfaces::interconnect::Frames as List;

/// The most page frames that the service has.
pub const MAX_FRAMES: usize = ipc::guest::CARRIER_FRAMES as usize;
/// With fewer the service cannot go on: each restart may cost two, which are the guest's then.
const LEAST: usize = MAX_FRAMES / 4 * 3;
/// Twice as many places, so that numbers that fall on one place are few.
const PLACES: usize = 2 * MAX_FRAMES;
/// The first word once the others mean something.
const MAGIC: u64 = u64::from_le_bytes(*b"FRAMES01");
/// Words before the list.
const HEADER: usize = 2;

/// The service's page frames. Those that are not spare are in the card, or some message's.
pub struct Frames {
    /// Page frames of the pool: their numbers are below this.
    pool: u32,
    /// With the place of each in the list.
    owned: FnvIndexMap<u32, usize, PLACES>,
    spare: Vec<u32, MAX_FRAMES>,
    /// How many there are to be. Of these one at most is a client's that has not made up for it yet.
    count: usize,
    /// Places of the list that hold nothing.
    vacant: Vec<usize, MAX_FRAMES>,
    /// What outlives a restart; empty when nothing does.
    kept: &'static [AtomicU64],
}

impl Frames {
    /// The first [`MAX_FRAMES`] of these, in a pool of so many, noted in `kept`.
    pub fn new(pool: u32, frames: impl IntoIterator<Item = u32>, kept: &'static [AtomicU64]) -> Self {
        let mut new = Self {
            pool,
            owned: FnvIndexMap::new(),
            spare: Vec::new(),
            count: 0,
            vacant: (0..MAX_FRAMES).rev().collect(),
            kept,
        };
        new.note(0, 0);
        (0..MAX_FRAMES).for_each(|place| new.note(HEADER + place, 0));
        for frame in frames.into_iter().filter(|&frame| frame < pool).take(MAX_FRAMES) {
            if new.own(frame) {
                new.set_aside(frame);
            }
        }
        new.note(1, pool.into());
        new.note(0, MAGIC);
        new.count = new.owned.len();
        new
    }

    /// Those that the service's last life had in a pool of so many, all of them spare; `None` when it noted nothing that is
    /// sound, or when they are too few.
    pub fn recall(pool: u32, kept: &'static [AtomicU64]) -> Option<Self> {
        let mut words = kept.iter().map(|word| word.load(Ordering::Relaxed));
        if words.next() != Some(MAGIC) || words.next() != Some(pool.into()) {
            return None;
        }
        let mut frames: Vec<u32, MAX_FRAMES> = Vec::new();
        for word in words.take(MAX_FRAMES).filter(|&word| word != 0) {
            let frame = u32::try_from(word - 1).ok().filter(|frame| *frame < pool && !frames.contains(frame));
            frames.push(frame?).ok()?;
        }
        (frames.len() >= LEAST).then(|| Self::new(pool, frames, kept))
    }

    fn note(&self, word: usize, value: u64) {
        if let Some(word) = self.kept.get(word) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Whether it is a client's.
    pub fn is_others(&self, frame: u32) -> bool {
        frame < self.pool && !self.owned.contains_key(&frame)
    }

    /// Takes a client's page frame, in which a message is; whether it was one and there is room.
    pub fn own(&mut self, frame: u32) -> bool {
        if !self.is_others(frame) {
            return false;
        }
        let Some(place) = self.vacant.pop() else { return false };
        // There is room: it has more than the list.
        let _ = self.owned.insert(frame, place);
        self.note(HEADER + place, u64::from(frame) + 1);
        true
    }

    /// Makes one a client's that is not spare.
    pub fn give(&mut self, frame: u32) {
        if let Some(place) = self.owned.remove(&frame) {
            self.note(HEADER + place, 0);
            // There is room: it was taken from there.
            let _ = self.vacant.push(place);
        }
    }

    /// How many are spare.
    pub fn spare(&self) -> usize {
        self.spare.len()
    }

    /// A spare one, to be used.
    pub fn pop(&mut self) -> Option<u32> {
        self.spare.pop()
    }

    /// Notes that one is spare.
    pub fn set_aside(&mut self, frame: u32) {
        // There is room: as many are owned at most.
        let _ = self.spare.push(frame);
    }

    /// Whether a client has one that it has not made up for.
    pub fn is_owed(&self) -> bool {
        self.owned.len() < self.count
    }

    /// Nobody makes up for one any more that is a client's.
    pub fn forgive(&mut self) {
        self.count = self.owned.len();
    }

    /// All of them.
    pub fn list(&self) -> List {
        self.owned.keys().copied().collect()
    }
}

#[cfg(test)]
impl Frames {
    /// The spare ones.
    pub fn spares(&self) -> &[u32] {
        &self.spare
    }
}

/// Memory that outlives a restart.
#[cfg(test)]
pub(super) fn kept() -> &'static [AtomicU64] {
    let words: std::vec::Vec<_> = (0..512).map(|_| AtomicU64::new(0)).collect();
    words.leak()
}

#[cfg(test)]
mod tests {
    use std::vec;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const POOL: u32 = 1_000;

    fn sorted(frames: &Frames) -> vec::Vec<u32> {
        let mut list = frames.list().to_vec();
        list.sort_unstable();
        list
    }

    /// Whenever the service dies, the next life has those that it had, and no others.
    #[test]
    fn the_next_life_has_what_the_last_one_had() {
        let kept = kept();
        assert!(Frames::recall(POOL, kept).is_none(), "there was no last life");
        let mut frames = Frames::new(POOL, POOL - 256..POOL, kept);
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..5_000 {
            let frame = random.random_range(0..POOL + 5);
            if random.random() {
                if frames.own(frame) {
                    frames.set_aside(frame);
                }
            } else if frames.list().len() > LEAST
                && let Some(frame) = frames.pop()
            {
                frames.give(frame);
            }
            if random.random_ratio(1, 50) {
                let before = sorted(&frames);
                frames = Frames::recall(POOL, kept).unwrap();
                assert_eq!((sorted(&frames), frames.spare()), (before, frames.list().len()));
                assert!(!frames.is_owed(), "nobody who could make up for it knows");
            }
        }
    }

    #[test]
    fn a_list_that_is_not_sound_is_not_used() {
        let kept = kept();
        let store = |word: usize, value| kept[word].store(value, Ordering::Relaxed);
        let fresh = || Frames::new(POOL, 0..256, kept);
        let is_sound = || Frames::recall(POOL, kept).is_some();
        fresh();
        assert!(is_sound() && Frames::recall(POOL + 1, kept).is_none(), "of another pool");
        for bad in [u64::MAX, u64::from(POOL) + 1, 1 << 32, 7] {
            fresh();
            store(HEADER + 100, bad);
            assert!(!is_sound(), "{bad}: outside the pool, or there twice");
        }
        fresh();
        store(0, MAGIC - 1);
        assert!(!is_sound());
        fresh();
        (0..64).for_each(|place| store(HEADER + place, 0));
        assert_eq!(Frames::recall(POOL, kept).unwrap().list().len(), LEAST);
        store(HEADER + 64, 0);
        assert!(!is_sound(), "too few");
        assert!(Frames::recall(POOL, &kept[..1]).is_none() && Frames::recall(POOL, &[]).is_none());
        let mut random = ChaCha8Rng::seed_from_u64(8);
        for _ in 0..2_000 {
            fresh();
            for _ in 0..random.random_range(1..4) {
                store(random.random_range(0..512), random.random::<u64>() >> random.random_range(0..64));
            }
            if let Some(frames) = Frames::recall(POOL, kept) {
                let list = sorted(&frames);
                assert!(list.is_sorted_by(|a, b| a < b) && list.iter().all(|frame| *frame < POOL));
            }
        }
    }

    #[test]
    fn without_memory_that_is_kept_all_else_works() {
        let mut frames = Frames::new(POOL, 0..300, &[]);
        assert_eq!(frames.list().len(), MAX_FRAMES);
        assert!(!frames.own(900) && !frames.own(POOL) && !frames.is_owed());
        let frame = frames.pop().unwrap();
        frames.give(frame);
        assert!(frames.is_owed() && frames.is_others(frame) && frames.own(900) && !frames.is_owed());
    }
}
