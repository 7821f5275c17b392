//! What the protocol asks for: the pages are changed at once in what is known of them; page operations, messages and
//! answers are kept until the input is taken, since none of them may lead to another one meanwhile.

use alloc::collections::VecDeque;

use ipc::interfaces::interconnect::{Contents, NO_FRAME, Outgoing};
use ipc::wire::{Class, MESSAGE_BYTES};

use super::outbox::Outbox;
use crate::coherence::environment::{Environment, Holding, Operation, Outcome, Ticket, Waiter};
use crate::coherence::message::{Access, Channel, Kind, LONG_BYTES, Message, Page};
use crate::coherence::node::NodeId;
use crate::frames::Frame;
use crate::memory::GuestMemory;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// The nodes' numbers, by their places.
    pub nodes: alloc::vec::Vec<u16>,
    pub run: u32,
    pub operations: VecDeque<(Ticket, Page, Operation)>,
    pub outbox: Outbox,
    pub resumed: VecDeque<(Waiter, Outcome)>,
    /// The frame with the contents that came with the message being received.
    pub arrived: Option<Frame>,
    /// The frame that had been set aside for contents that were adopted.
    pub made_up: Option<Frame>,
    /// A frame was missing.
    pub is_short: bool,
}

/// The pages, and what is to be done.
pub(super) struct Hands<'a> {
    pub memory: &'a mut GuestMemory,
    pub desk: &'a mut Desk,
}

/// The bytes of a message of this run of the guest.
pub(super) fn bytes(message: &Message, run: u32) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..LONG_BYTES].copy_from_slice(&message.encode().0);
    bytes[LONG_BYTES..].copy_from_slice(&run.to_le_bytes());
    bytes
}

impl Environment for Hands<'_> {
    fn holding(&self, page: Page) -> Holding {
        self.memory.holding(page)
    }

    fn set_holding(&mut self, page: Page, holding: Holding) {
        self.memory.set_holding(page, holding);
    }

    fn victim(&mut self, access: Access, may_go: &dyn Fn(Page) -> bool) -> Option<Page> {
        self.memory.victim(access, may_go)
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let Some(node) = self.desk.nodes.get(to.index()).copied() else { return };
        let class = match message.kind.channel() {
            Channel::Request => Class::Request,
            Channel::Demand | Channel::Answer => Class::Control,
            Channel::Bulk => Class::Page,
        };
        let (frame, contents) = match self.memory.frame(message.page) {
            Some(frame) if message.kind == Kind::Data => (frame.0, Contents::Shared),
            _ if matches!(message.kind, Kind::Read | Kind::Write | Kind::Evict) => {
                (NO_FRAME, Contents::Awaited)
            }
            _ => (NO_FRAME, Contents::None),
        };
        let message = bytes(&message, self.desk.run);
        self.desk.outbox.push(Outgoing { message, frame, node, class, contents });
    }

    fn adopt(&mut self, page: Page) {
        let Some(frame) = self.desk.arrived.take() else { return };
        self.desk.made_up = self.memory.free_frame();
        self.desk.is_short |= self.desk.made_up.is_none();
        self.memory.adopt(page, frame);
    }

    fn operate(&mut self, ticket: Ticket, page: Page, operation: Operation) {
        self.desk.operations.push_back((ticket, page, operation));
    }

    fn release(&mut self, page: Page) {
        let Some(frame) = self.memory.take_frame(page) else { return };
        if !self.desk.outbox.give(frame) {
            self.memory.give_back(frame);
        }
    }

    fn resume(&mut self, waiter: Waiter, outcome: Outcome) {
        self.desk.resumed.push_back((waiter, outcome));
    }
}
