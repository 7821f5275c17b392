//! Which page frames the service has, by their numbers in a pool that may have millions.

use heapless::Vec;
use heapless::index_set::FnvIndexSet;
use ipc::interfaces::interconnect::Frames as List;

/// The most page frames that the service has.
pub const MAX_FRAMES: usize = ipc::guest::CARRIER_FRAMES as usize;
/// Twice as many places, so that numbers that fall on one place are few.
const PLACES: usize = 2 * MAX_FRAMES;

/// The service's page frames. Those that are not spare are in the card, or some message's.
pub(super) struct Frames {
    /// Page frames of the pool: their numbers are below this.
    pool: u32,
    owned: FnvIndexSet<u32, PLACES>,
    spare: Vec<u32, MAX_FRAMES>,
    /// How many there were at first. Of these one at most is a client's that has not made up for it yet.
    count: usize,
}

impl Frames {
    /// The first [`MAX_FRAMES`] of these, in a pool of so many.
    pub fn new(pool: u32, frames: impl IntoIterator<Item = u32>) -> Self {
        let mut new = Self { pool, owned: FnvIndexSet::new(), spare: Vec::new(), count: 0 };
        for frame in frames.into_iter().filter(|&frame| frame < pool).take(MAX_FRAMES) {
            new.take(frame);
        }
        new.count = new.owned.len();
        new
    }

    /// Whether it is a client's.
    pub fn is_others(&self, frame: u32) -> bool {
        frame < self.pool && !self.owned.contains(&frame)
    }

    /// Takes a client's page frame, which is spare then; whether it was one and there is room.
    pub fn take(&mut self, frame: u32) -> bool {
        let is_new = self.own(frame);
        if is_new {
            self.set_aside(frame);
        }
        is_new
    }

    /// Takes a client's page frame, in which a message is; whether it was one and there is room.
    pub fn own(&mut self, frame: u32) -> bool {
        let has_room = self.owned.len() < MAX_FRAMES;
        self.is_others(frame) && has_room && self.owned.insert(frame).is_ok()
    }

    /// Makes one a client's that is not spare.
    pub fn give(&mut self, frame: u32) {
        self.owned.remove(&frame);
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

    /// All of them.
    pub fn list(&self) -> List {
        self.owned.iter().copied().collect()
    }
}

#[cfg(test)]
impl Frames {
    /// The spare ones.
    pub fn spares(&self) -> &[u32] {
        &self.spare
    }
}
