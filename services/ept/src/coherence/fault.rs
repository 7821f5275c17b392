//! What this node wants: a fault's way from the request to the vCPU that goes on.

use super::environment::{Contents, Environment, Holding, Operation, Outcome, Ticket, Waiter};
use super::error::Error;
use super::member::{Granted, Member, Phase, Slot};
use super::message::{Access, Kind, Message, Page};
use super::node::{NodeId, NodeSet};
use super::post::Post;

/// An access that the node's tables do not allow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Who waits.
    pub waiter: Waiter,
    /// The page.
    pub page: Page,
    /// What was tried.
    pub access: Access,
    /// Whether a device model tried it.
    pub device: bool,
}

/// What to do with a page that is here already.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Here {
    /// It was mapped just now.
    Take,
    /// It faulted although it is here: perhaps it could not be mapped before.
    MapAgain,
}

impl Member {
    /// Begins a fault.
    ///
    /// # Errors
    /// [`Error::Waiter`].
    pub(super) fn fault<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        fault: &Fault,
    ) -> Result<(), Error> {
        let slot = usize::from(fault.waiter.0);
        if fault.waiter.0 >= self.waiters || self.slots[slot].phase != Phase::Idle {
            return Err(Error::Waiter);
        }
        self.holds.wait(fault.waiter, fault.page);
        self.slots[slot] =
            Slot { page: fault.page, access: fault.access, device: fault.device, ..Slot::IDLE };
        self.start(post, now, slot, Here::MapAgain);
        self.release_holds(post, now);
        Ok(())
    }

    /// Takes `count` pages of which this node is the home, in place of a fault at one of them ([`super::Coherence::claim`]).
    ///
    /// # Errors
    /// [`Error::Waiter`], [`Error::NotHeld`].
    pub(super) fn claim<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        waiter: Waiter,
        page: Page,
        count: usize,
    ) -> Result<(), Error> {
        if waiter.0 >= self.waiters || self.slots[usize::from(waiter.0)].phase != Phase::Idle {
            return Err(Error::Waiter);
        }
        let left = u32::try_from(count).ok().and_then(|count| self.free_frames.checked_sub(count));
        self.free_frames = left.ok_or(Error::NotHeld)?;
        post.counters.writes += 1;
        post.counters.materialised += count as u64;
        self.holds.wait(waiter, page);
        let released = self.holds.add(page, waiter, 0, now);
        self.meet_put_off(post, released);
        self.holds.run(waiter, now);
        self.release_holds(post, now);
        Ok(())
    }

    /// Does what a slot's page needs next.
    pub(super) fn start<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        slot: usize,
        here: Here,
    ) {
        let Slot { page, access, .. } = self.slots[slot];
        let others = self.slots.iter().enumerate().filter(|(other, _)| *other != slot);
        if others.into_iter().any(|(_, other)| other.is_in_transit() && other.page == page) {
            self.slots[slot].phase = Phase::Behind;
            return;
        }
        let holding = post.environment.holding(page);
        if holding.allows(access) {
            self.hold(post, now, slot, 0);
            if here == Here::Take {
                return self.got(post, now, slot, Outcome::Granted);
            }
            let operation = match holding {
                Holding::Write => Operation::Map(Access::Write, Contents::AsIs),
                Holding::Read => Operation::Map(Access::Read, Contents::AsIs),
                Holding::Zero | Holding::Nothing => Operation::Map(Access::Read, Contents::SharedZeros),
            };
            self.slots[slot].phase = Phase::Remapping;
            post.environment.operate(Self::ticket(slot), page, operation);
            return;
        }
        if !holding.has_frame() && !self.slots[slot].is_reserved {
            if self.free_frames == 0 {
                self.slots[slot].phase = Phase::Starved;
                return;
            }
            self.free_frames -= 1;
            self.slots[slot].is_reserved = true;
        }
        let kind = if access == Access::Write { Kind::Write } else { Kind::Read };
        self.ask(post, slot, kind);
    }

    pub(super) fn ticket(slot: usize) -> Ticket {
        Ticket::Slot(u8::try_from(slot).unwrap_or(u8::MAX))
    }

    /// Sends a slot's request to its page's home.
    pub(super) fn ask<E: Environment>(&mut self, post: &mut Post<'_, E>, slot: usize, kind: Kind) {
        let number = self.next_number();
        let entry = &mut self.slots[slot];
        entry.phase = Phase::Asked;
        entry.number = number;
        entry.granted = None;
        entry.acknowledged = NodeSet::EMPTY;
        let (access, device) = (entry.access, entry.device);
        let message = Message { access, device, ..self.about(slot, kind) };
        post.room = self.has_room();
        post.send(self.homes.of(message.page), message);
    }

    /// A message of a slot's transaction.
    pub(super) fn about(&self, slot: usize, kind: Kind) -> Message {
        let entry = &self.slots[slot];
        Message::new(kind, entry.page, u8::try_from(slot).unwrap_or(u8::MAX), entry.number)
    }

    /// The slot whose transaction a message belongs to.
    pub(super) fn slot_of(&self, message: &Message) -> Result<usize, Error> {
        let slot = usize::from(message.slot);
        let entry = self.slots.get(slot).ok_or(Error::UnknownSlot)?;
        let is_same = entry.page == message.page && entry.number == message.number;
        if entry.is_in_transit() && is_same { Ok(slot) } else { Err(Error::NoTransaction) }
    }

    /// Takes a `Keep` or a `Zero` from the page's home, or `Data`.
    ///
    /// # Errors
    /// [`Error::NoTransaction`], [`Error::Unexpected`], [`Error::NotHeld`].
    pub(super) fn granted<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        let slot = self.slot_of(&message)?;
        let entry = &self.slots[slot];
        if entry.phase != Phase::Asked || entry.granted.is_some() || message.access < entry.access {
            return Err(Error::Unexpected);
        }
        let holding = post.environment.holding(message.page);
        match message.kind {
            Kind::Keep if !holding.has_frame() => return Err(Error::NotHeld),
            Kind::Zero if holding.has_frame() => return Err(Error::Unexpected),
            // This node would be owner and reader at once.
            Kind::Data if matches!(holding, Holding::Zero | Holding::Write) => return Err(Error::Unexpected),
            Kind::Data if holding == Holding::Nothing => {
                if !core::mem::take(&mut self.slots[slot].is_reserved) {
                    return Err(Error::Unexpected);
                }
                post.environment.adopt(message.page);
                // What is adopted has a frame, though it is not mapped yet.
                post.environment.set_holding(message.page, Holding::Read);
            }
            // With a copy, which no transaction since can have made old, the contents that came are the same.
            _ => {}
        }
        let mut expected = message.readers.expand(self.homes.nodes());
        expected.remove(self.me);
        if message.kind == Kind::Data {
            expected.remove(from);
        }
        let entry = &mut self.slots[slot];
        let asked = entry.acknowledged.intersection(&expected);
        for _ in asked.len()..entry.acknowledged.len() {
            post.errors.add(Error::NotAsked);
        }
        entry.acknowledged = asked;
        entry.granted = Some(Granted { message, expected });
        self.map_if_complete(post, slot);
        Ok(())
    }

    /// Takes the acknowledgement of a reader.
    ///
    /// # Errors
    /// [`Error::NoTransaction`], [`Error::NotAsked`], [`Error::Unexpected`].
    pub(super) fn acknowledged<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        from: NodeId,
        message: &Message,
    ) -> Result<(), Error> {
        let slot = self.slot_of(message)?;
        if slot >= usize::from(self.waiters) {
            return self.push_acknowledged(post, now, from, slot);
        }
        let entry = &mut self.slots[slot];
        if entry.phase != Phase::Asked {
            return Err(Error::Unexpected);
        }
        let is_asked = entry.granted.is_none_or(|granted| granted.expected.contains(from));
        if !is_asked || entry.acknowledged.contains(from) {
            return Err(Error::NotAsked);
        }
        entry.acknowledged.insert(from);
        self.map_if_complete(post, slot);
        Ok(())
    }

    fn map_if_complete<E: Environment>(&mut self, post: &mut Post<'_, E>, slot: usize) {
        let entry = &self.slots[slot];
        let Some(granted) = entry.granted.filter(|granted| granted.expected == entry.acknowledged) else {
            return;
        };
        let Message { page, access, kind, .. } = granted.message;
        let is_zero = kind == Kind::Zero;
        let contents = match (is_zero, access) {
            (true, Access::Read) => Contents::SharedZeros,
            (true, Access::Write) => Contents::ClearedFrame,
            (false, _) => Contents::AsIs,
        };
        match kind {
            Kind::Zero if access == Access::Read => post.counters.zeros_shared += 1,
            Kind::Zero => post.counters.materialised += 1,
            Kind::Keep => post.counters.kept += 1,
            _ => post.counters.fetched += 1,
        }
        let entry = &mut self.slots[slot];
        entry.phase = Phase::Mapping;
        if contents == Contents::ClearedFrame {
            entry.is_reserved = false;
        }
        post.environment.set_holding(page, Self::granted_holding(access, is_zero));
        post.environment.operate(Self::ticket(slot), page, Operation::Map(access, contents));
    }

    /// The page operation of a fault is done, or has failed.
    pub(super) fn mapped<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        slot: usize,
        outcome: Outcome,
    ) {
        let entry = &self.slots[slot];
        if entry.phase == Phase::Mapping {
            let level = entry.granted.map_or(0, |granted| granted.message.hold);
            self.hold(post, now, slot, level);
            let done = self.about(slot, Kind::Done);
            post.room = self.has_room();
            post.send(self.homes.of(done.page), done);
        }
        self.got(post, now, slot, outcome);
    }

    fn hold<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64, slot: usize, level: u8) {
        let waiter = Waiter(u8::try_from(slot).unwrap_or(u8::MAX));
        let released = self.holds.add(self.slots[slot].page, waiter, level, now);
        self.meet_put_off(post, released);
    }

    /// The slot's page is here, or cannot be mapped.
    fn got<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64, slot: usize, outcome: Outcome) {
        let page = self.slots[slot].page;
        self.finish(post, now, slot, outcome);
        self.wake(post, now, page);
    }

    /// Ends a slot's fault.
    pub(super) fn finish<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        slot: usize,
        outcome: Outcome,
    ) {
        let waiter = Waiter(u8::try_from(slot).unwrap_or(u8::MAX));
        self.free_frames += u32::from(self.slots[slot].is_reserved);
        self.slots[slot] = Slot::IDLE;
        if outcome == Outcome::Granted {
            self.holds.run(waiter, now);
        } else {
            self.holds.retire(waiter);
        }
        post.environment.resume(waiter, outcome);
    }

    /// Goes on with the slots that waited for another slot's transaction for the page.
    pub(super) fn wake<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64, page: Page) {
        for slot in 0..usize::from(self.waiters) {
            let entry = &self.slots[slot];
            if entry.phase == Phase::Behind && entry.page == page {
                self.start(post, now, slot, Here::Take);
            }
        }
    }
}
