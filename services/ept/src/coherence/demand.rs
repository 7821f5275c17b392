//! What other nodes want of this one: contents, the end of a copy, room for a page.
//!
//! Nothing is sent before the page operation that it speaks of is done.

use super::environment::{Contents, Environment, Holding, Operation, Ticket};
use super::error::Error;
use super::member::Member;
use super::message::{Access, Kind, Message, Page};
use super::node::NodeId;
use super::post::Post;

/// A demand of another node's transaction.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Demand {
    /// The page.
    pub page: Page,
    /// What came: `Forward` or `Invalidate`, or `Data` of an eviction, which is being mapped.
    pub message: Message,
    /// Whom the answer goes to.
    pub answer_to: NodeId,
    /// Whether a frame is given away.
    pub gives_frame: bool,
}

/// An eviction's page for which this node has set a frame aside.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Taking {
    from: NodeId,
    message: Message,
    /// Whether a frame was set aside for it: not when this node has a copy.
    reserved: bool,
}

impl Member {
    /// Takes a `Forward` or an `Invalidate`, which comes from the page's home.
    ///
    /// # Errors
    /// [`Error::UnknownNode`], [`Error::NotHeld`], or [`Error::Unexpected`].
    pub(super) fn demand<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        now: u64,
        message: Message,
    ) -> Result<(), Error> {
        if message.node == self.me {
            return Err(Error::UnknownNode);
        }
        let page = message.page;
        // What this page holds will be so only when the operation is done.
        if self.demands.iter().flatten().any(|demand| demand.page == page) {
            return Err(Error::Unexpected);
        }
        let demand = Demand { page, message, answer_to: message.node, gives_frame: false };
        let is_copied = message.kind == Kind::Forward
            && message.access == Access::Read
            && post.environment.holding(page) == Holding::Read;
        if self.holds.is_held(page, now) && !is_copied {
            return if self.holds.put_off(demand) { Ok(()) } else { Err(Error::Unexpected) };
        }
        self.meet(post, demand)
    }

    /// Meets a demand for a page that may go.
    ///
    /// # Errors
    /// [`Error::NotHeld`].
    pub(super) fn meet<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        demand: Demand,
    ) -> Result<(), Error> {
        let Demand { page, message, .. } = demand;
        let holding = post.environment.holding(page);
        let (left, operation) = match (message.kind, message.access, holding) {
            (Kind::Forward, Access::Read, Holding::Write) => (Holding::Read, Operation::Protect),
            (Kind::Forward, Access::Write, Holding::Read | Holding::Write)
            | (Kind::Invalidate, _, Holding::Zero | Holding::Read) => (Holding::Nothing, Operation::Unmap),
            // Nothing has to change.
            (Kind::Forward, Access::Read, Holding::Read) | (Kind::Invalidate, _, Holding::Nothing) => {
                self.answer(post, demand);
                return Ok(());
            }
            _ => return Err(Error::NotHeld),
        };
        post.environment.set_holding(page, left);
        let gives_frame = holding.has_frame() && left == Holding::Nothing;
        self.operate(post, Demand { gives_frame, ..demand }, operation);
        Ok(())
    }

    fn operate<E: Environment>(&mut self, post: &mut Post<'_, E>, demand: Demand, operation: Operation) {
        let free = self.demands.iter().position(Option::is_none);
        // Messages are refused long before the table is full ([`Member::has_headroom`]).
        let place = free.unwrap_or_else(|| {
            self.demands.push(None);
            self.demands.len() - 1
        });
        self.demands[place] = Some(demand);
        let ticket = Ticket::Demand(u16::try_from(place).unwrap_or(u16::MAX));
        post.environment.operate(ticket, demand.page, operation);
    }

    /// The page operation of a demand is done.
    ///
    /// # Errors
    /// [`Error::Ticket`].
    pub(super) fn demand_done<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        place: u16,
    ) -> Result<(), Error> {
        let demand = self.demands.get_mut(usize::from(place)).and_then(Option::take).ok_or(Error::Ticket)?;
        self.answer(post, demand);
        Ok(())
    }

    fn answer<E: Environment>(&mut self, post: &mut Post<'_, E>, demand: Demand) {
        let Demand { page, message, .. } = demand;
        let kind = if message.kind == Kind::Forward { Kind::Data } else { Kind::Ack };
        let answer = Message { kind, ..message };
        let answer =
            if kind == Kind::Data { answer } else { Message::new(kind, page, message.slot, message.number) };
        post.send(demand.answer_to, Message { node: self.me, ..answer });
        match kind {
            Kind::Data => post.counters.given += 1,
            _ if message.kind == Kind::Data => post.counters.taken += 1,
            _ => post.counters.invalidated += 1,
        }
        if demand.gives_frame {
            self.leave(post, page);
        }
    }

    /// A page's frame has no use any more. Whoever of this node has asked for the page needs one again.
    pub(super) fn leave<E: Environment>(&mut self, post: &mut Post<'_, E>, page: Page) {
        post.environment.release(page);
        match self.lacks_frame(post, page) {
            Some(slot) => self.slots[slot].is_reserved = true,
            None => self.free_frames += 1,
        }
    }

    /// The home asks whether this node has room for a page.
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub(super) fn take<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        home: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        if message.node == self.me {
            return Err(Error::UnknownNode);
        }
        let has_frame = match post.environment.holding(message.page) {
            Holding::Read => true,
            Holding::Nothing => false,
            // Neither can be in a page that another node owns.
            Holding::Zero | Holding::Write => return self.refuse(post, home, message),
        };
        if self.taking[home.index()].is_some() || !has_frame && !self.has_room() {
            return self.refuse(post, home, message);
        }
        self.free_frames -= u32::from(!has_frame);
        self.taking[home.index()] = Some(Taking { from: message.node, message, reserved: !has_frame });
        post.room = self.has_room();
        post.send(home, Message { kind: Kind::Room, ..message });
        Ok(())
    }

    fn refuse<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        home: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        // Copies that others have as well are dropped, so that there is room the next time.
        self.is_pressed = true;
        post.send(home, Message { kind: Kind::NoRoom, ..message });
        Ok(())
    }

    /// The contents of an eviction's page have come.
    ///
    /// # Errors
    /// [`Error::NoTransaction`].
    pub(super) fn taken<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        let page = message.page;
        let entry = &mut self.taking[self.homes.of(page).index()];
        let expected = entry.filter(|taking| {
            let asked = taking.message;
            taking.from == from
                && (asked.page, asked.slot, asked.number) == (page, message.slot, message.number)
        });
        let taking = expected.ok_or(Error::NoTransaction)?;
        *entry = None;
        let demand = Demand { page, message, answer_to: from, gives_frame: false };
        match post.environment.holding(page) {
            Holding::Nothing if taking.reserved => {
                post.environment.adopt(page);
                post.environment.set_holding(page, Holding::Read);
                self.operate(post, demand, Operation::Map(Access::Read, Contents::AsIs));
            }
            Holding::Read if !taking.reserved => self.answer(post, demand),
            // No transaction but this can have changed the page meanwhile: the home does not keep to the protocol.
            _ => {
                self.free_frames += u32::from(taking.reserved);
                return Err(Error::NotHeld);
            }
        }
        Ok(())
    }
}
