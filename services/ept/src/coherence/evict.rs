//! What this node wants to be rid of, when a fault finds no free frame.
//!
//! Any page may go, each in its turn. The home knows whether others have it too, and if so it is enough to drop this copy; what
//! only this node has goes to a node with room. Copies do not go first, although that is cheaper: what several nodes
//! read is mostly what all of them use, as the guest's kernel is, and who drops that has it to fetch at the next instruction.

use super::environment::{Environment, Holding, Operation, Outcome};
use super::error::Error;
use super::fault::Here;
use super::member::{Member, Phase, Slot};
use super::message::{Access, Kind, Message, Page};
use super::node::NodeId;
use super::post::Post;

/// After so many pages in a row of which this node cannot rid itself a fault is refused.
const MAX_REFUSALS: u8 = 16;

impl Member {
    /// Takes a `Drop`, a `Push` or a `Stay` from the page's home.
    ///
    /// # Errors
    /// [`Error::NoTransaction`], [`Error::Unexpected`], [`Error::NotHeld`].
    pub(super) fn evict<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        message: &Message,
    ) -> Result<(), Error> {
        let slot = self.slot_of(message)?;
        let entry = &self.slots[slot];
        if slot < usize::from(self.waiters) || entry.phase != Phase::Asked {
            return Err(Error::Unexpected);
        }
        let page = entry.page;
        let phase = match (message.kind, post.environment.holding(page)) {
            // It has left already, by a transaction that was before this one.
            (Kind::Drop, Holding::Nothing) => {
                self.evicted(post, now, slot);
                return Ok(());
            }
            (Kind::Stay, _) => {
                self.refusals = self.refusals.saturating_add(1);
                self.evicted(post, now, slot);
                return Ok(());
            }
            (Kind::Drop, Holding::Zero | Holding::Read) => Phase::Dropping,
            (Kind::Push, Holding::Read | Holding::Write) => Phase::Pushing,
            _ => return Err(Error::NotHeld),
        };
        self.refusals = 0;
        let entry = &mut self.slots[slot];
        entry.phase = phase;
        entry.target = message.node;
        post.environment.set_holding(page, Holding::Nothing);
        post.environment.operate(Self::ticket(slot), page, Operation::Unmap);
        Ok(())
    }

    /// The page of an eviction is unmapped.
    pub(super) fn unmapped<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64, slot: usize) {
        let Slot { phase, page, target, .. } = self.slots[slot];
        if phase == Phase::Pushing {
            self.slots[slot].phase = Phase::Pushed;
            post.send(target, self.about(slot, Kind::Data));
            self.leave(post, page);
        } else {
            self.leave(post, page);
            self.evicted(post, now, slot);
        }
    }

    /// The page of an eviction is where it was sent.
    ///
    /// # Errors
    /// [`Error::Unexpected`], [`Error::NotAsked`].
    pub(super) fn push_acknowledged<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        from: NodeId,
        slot: usize,
    ) -> Result<(), Error> {
        let entry = &self.slots[slot];
        if entry.phase != Phase::Pushed {
            return Err(Error::Unexpected);
        }
        if entry.target != from {
            return Err(Error::NotAsked);
        }
        self.slots[slot].phase = Phase::Dropping;
        self.evicted(post, now, slot);
        Ok(())
    }

    /// Ends an eviction.
    fn evicted<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64, slot: usize) {
        let done = self.about(slot, Kind::Done);
        self.slots[slot] = Slot::IDLE;
        post.room = self.has_room();
        post.send(self.homes.of(done.page), done);
        self.wake(post, now, done.page);
    }

    /// Gives free frames to the faults that wait for some, and makes room where there are none. Called at the end of each
    /// input.
    pub(super) fn settle<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64) {
        let waiters = usize::from(self.waiters);
        loop {
            let mut starved = 0;
            for step in 0..waiters {
                let slot = (usize::from(self.turn) + step) % waiters;
                if self.slots[slot].phase == Phase::Starved {
                    self.start(post, now, slot, Here::Take);
                    starved += usize::from(self.slots[slot].phase == Phase::Starved);
                }
            }
            let mut under_way =
                self.slots.iter().skip(waiters).filter(|slot| slot.phase != Phase::Idle).count();
            if starved == 0 {
                self.refusals = 0;
                if core::mem::take(&mut self.is_pressed) && under_way == 0 && !self.has_room() {
                    self.begin_eviction(post, Access::Read);
                }
                return;
            }
            // When nobody had room for one page, others are dropped if they can be.
            while under_way < starved && self.refusals <= MAX_REFUSALS {
                let access = if self.refusals == 0 { Access::Write } else { Access::Read };
                if !self.begin_eviction(post, access) {
                    break;
                }
                under_way += 1;
            }
            if under_way > 0 {
                return;
            }
            self.refusals = 0;
            self.refuse_one(post, now);
        }
    }

    /// Begins to evict a page: any for `Write`, one that others have as well for `Read`. Whether there was one, and a slot.
    fn begin_eviction<E: Environment>(&mut self, post: &mut Post<'_, E>, access: Access) -> bool {
        let first = usize::from(self.waiters);
        let Some(slot) = (first..self.slots.len()).find(|slot| self.slots[*slot].phase == Phase::Idle) else {
            return false;
        };
        let may_go = |page: Page| self.may_go(page);
        let Some(page) = post.environment.victim(access, &may_go) else { return false };
        self.slots[slot] = Slot { page, access, ..Slot::IDLE };
        self.ask(post, slot, Kind::Evict);
        true
    }

    /// Ends the fault whose turn it is of those that wait for a frame.
    fn refuse_one<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64) {
        let waiters = self.waiters;
        let order = (0..waiters).map(|step| (u16::from(self.turn) + u16::from(step)) % u16::from(waiters));
        let starved = order.map(usize::from).find(|slot| self.slots[*slot].phase == Phase::Starved);
        if let Some(slot) = starved {
            self.turn = u8::try_from(slot).map_or(0, |slot| (slot + 1) % waiters);
            self.finish(post, now, slot, Outcome::OutOfFrames);
        }
    }
}
