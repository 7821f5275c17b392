//! The calls of the guest's services: messages through the reliable channels, and whose a page frame is then.

use ipc::interfaces::interconnect::{
    Contents, Frames as List, Incoming, IncomingKind, NO_FRAME, Next, Outgoing, SendAnswer, Sent, Time,
};
use ipc::wire::{Class, MESSAGE_BYTES};

use super::Station;
use super::clients::{Asking, Client};
use super::port::{Outlet, PageName};
use crate::PAGE;
use crate::card::Card;
use crate::sink::Delivery;
use crate::transport::{Message, SendError};

/// Spare page frames that must be left when one is given in exchange: more than may wait out of order, so that
/// reception goes on however many pages are on their way out.
const EXCHANGE_RESERVE: usize = 48;

const fn answer(answer: SendAnswer) -> Sent {
    Sent { answer, frame: NO_FRAME }
}

const fn without_message(kind: IncomingKind) -> Incoming {
    Incoming { message: [0; MESSAGE_BYTES], frame: NO_FRAME, node: 0, class: Class::Control, kind }
}

impl<C: Card> Station<C> {
    /// Sends a client's message; `None` when the client may not send it. It leaves with the next [`Station::tick`].
    pub fn send(&mut self, client: Client, outgoing: Outgoing) -> Option<Sent> {
        let Outgoing { message, frame, node, class, contents } = outgoing;
        if Client::of(class) != client {
            return None;
        }
        let page = match contents {
            Contents::None | Contents::Awaited => None,
            Contents::Shared | Contents::Given
                if class == Class::Platform || !self.port.frames.is_others(frame) =>
            {
                return Some(answer(SendAnswer::BadFrame));
            }
            Contents::Shared => Some(PageName { number: frame, is_shared: true }),
            Contents::Given if !self.may_exchange() => {
                self.lacks_frames = true;
                return Some(answer(SendAnswer::Full));
            }
            Contents::Given => Some(PageName::own(frame)),
        };
        let message = Message { class, message, contents: page.map(|page| (page, PAGE)) };
        match self.node.send(node, message) {
            Ok(()) => {}
            Err(SendError::NoSuchMember) => return Some(answer(SendAnswer::NoSuchMember)),
            // A page has one of the lengths that go over every link with Ethernet's MTU; on any other nothing does.
            Err(SendError::Full | SendError::Length(_)) => return Some(answer(SendAnswer::Full)),
        }
        self.due = 0;
        self.port.messages.sent += u64::from(page.is_some());
        if contents == Contents::Awaited {
            self.port.queues.asking = Asking::Begun;
        }
        let mut sent = answer(SendAnswer::Taken);
        if contents == Contents::Given
            && let Some(exchange) = self.port.frames.pop()
        {
            self.port.frames.give(exchange);
            self.port.frames.own(frame);
            sent.frame = exchange;
        }
        Some(sent)
    }

    /// Whether there is a page frame in exchange for one that is given.
    pub(super) fn may_exchange(&self) -> bool {
        self.port.frames.spare() > EXCHANGE_RESERVE
    }

    /// The next message for a client; `None` when it gives a page frame that it does not owe.
    pub fn receive(&mut self, client: Client, next: Next) -> Option<Incoming> {
        if next.frame != NO_FRAME && (client != Client::Memory || !self.port.frames.is_owed()) {
            return None;
        }
        if client == Client::Memory && self.port.frames.is_owed() {
            if !self.port.frames.own(next.frame) {
                return Some(without_message(IncomingKind::Owed));
            }
            self.port.give_back(next.frame);
            self.port.refill();
        }
        let Some(delivery) = self.port.queues.pop(client) else {
            return Some(without_message(IncomingKind::Nothing));
        };
        let kind = if self.port.queues.has(client) { IncomingKind::Message } else { IncomingKind::Last };
        self.consume(&delivery);
        let Delivery { node, class, message, contents, .. } = delivery;
        let frame = contents.map_or(NO_FRAME, |(frame, _)| frame.number);
        self.port.frames.give(frame);
        Some(Incoming { message, frame, node, class, kind })
    }

    /// Whether a client has asked for something since the last call of this.
    pub fn has_asked(&mut self) -> bool {
        let has_asked = self.port.queues.asking == Asking::Begun;
        if has_asked {
            self.port.queues.asking = Asking::Waiting;
        }
        has_asked
    }

    /// Whether a client has asked for something, and no answer came yet.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.port.queues.asking != Asking::Nothing
    }

    /// Notes that a client's answer takes longer than anybody should poll for it.
    pub const fn ask_no_more(&mut self) {
        self.port.queues.asking = Asking::Nothing;
    }

    /// Gives a message's sender credit for another.
    pub(super) fn consume(&mut self, delivery: &Delivery<PageName>) {
        self.node.consumed(delivery.receipt, self.port.card.now());
        self.due = self.due.min(self.node.deadline());
    }

    /// Drops a message that came.
    fn drop_message(&mut self, delivery: &Delivery<PageName>) {
        self.consume(delivery);
        if let Some((frame, _)) = delivery.contents {
            self.port.give_back(frame.number);
        }
    }

    /// Drops the messages that no sender of ours sends, and those that are for nobody.
    pub(super) fn drop_unfit(&mut self) {
        while let Some(delivery) = self.port.queues.pop_unfit() {
            self.unexpected += 1;
            self.drop_message(&delivery);
        }
    }

    /// The page frames that the service has. What came for the memory's owner is dropped, and what it wanted sent and of
    /// which nothing was transmitted yet.
    pub fn frames(&mut self) -> List {
        while let Some(delivery) = self.port.queues.pop(Client::Memory) {
            self.drop_message(&delivery);
        }
        for class in Class::ALL.into_iter().filter(|&class| Client::of(class) == Client::Memory) {
            self.node.withdraw(class, &mut Outlet { port: &mut self.port, events: &mut |_| {} });
        }
        self.port.frames.forgive();
        self.port.refill();
        self.port.frames.list()
    }

    /// The cluster's time, once it is known.
    #[must_use]
    pub fn time(&self) -> Option<Time> {
        let local = self.port.card.now();
        let clock = self.node.clock();
        let error = self.node.clock_error(local).filter(|_| clock.is_set())?;
        Some(Time { local, cluster: clock.read(local), error })
    }
}
