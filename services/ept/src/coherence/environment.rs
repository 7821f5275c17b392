//! What the protocol asks of the service around it.

use super::message::{Access, Message, Page};
use super::node::NodeId;

/// What this node has of a page: all that is known of it here. It is what the nested table says, or will say when the page
/// operation that was asked for is done.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Holding {
    /// Nothing.
    #[default]
    Nothing,
    /// The shared page of zeros, to read.
    Zero,
    /// A frame of its own, to read.
    Read,
    /// A frame of its own, to read and write.
    Write,
}

impl Holding {
    /// Whether an access needs no transaction.
    #[must_use]
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => !matches!(self, Self::Nothing),
            Access::Write => matches!(self, Self::Write),
        }
    }

    /// Whether it takes a frame.
    #[must_use]
    pub const fn has_frame(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// Whether a page that is held so makes room when it goes; for [`Access::Read`] only one that is here to be read alone.
    #[must_use]
    pub const fn makes_room(self, access: Access) -> bool {
        match access {
            Access::Read => matches!(self, Self::Read),
            Access::Write => self.has_frame(),
        }
    }
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Contents {
    /// The shared page of zeros.
    SharedZeros,
    /// A frame from the pool, cleared.
    ClearedFrame,
    /// The page's frame as it is.
    AsIs,
}

/// A change of a page in all views of this node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Operation {
    /// The page appears with this right, in place of what was mapped before.
    Map(Access, Contents),
    /// The page may only be read from now on.
    Protect,
    /// The page disappears; its frame stays as it is.
    Unmap,
}

/// Names an operation when its end is told.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Ticket {
    /// Of a slot: for a fault or an eviction of this node.
    Slot(u8),
    /// Of a place in the table of demands: for another node.
    Demand(u16),
}

/// Who waits for a page: a vCPU or the platform's window. Each waits for one fault at a time.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Waiter(pub u8);

/// How a fault ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// The access can be made. The page stays until [`super::Coherence::retired`] is told, or the limit of holding is over.
    Granted,
    /// No node has room for a page that this one would have to give away. It may be tried again.
    OutOfFrames,
    /// The kernel did not map the page. It may be tried again.
    NotMapped,
}

/// An operation was not carried out; nothing has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failed;

/// The service around the protocol: the state of the node's pages, and where outputs go. None of these may call back.
///
/// Operations on one page are carried out in the order in which they are asked for. Each ends with a call of
/// [`super::Coherence::completed`], after every view has changed and every TLB is flushed. An [`Operation::Unmap`] or
/// [`Operation::Protect`] that fails is tried again by the service until it succeeds.
pub trait Environment {
    /// What this node has of the page; at the start nothing.
    fn holding(&self, page: Page) -> Holding;

    /// Remembers what this node has of the page.
    fn set_holding(&mut self, page: Page, holding: Holding);

    /// A page that can be given away: one that [`Holding::makes_room`], that `may_go` and that was preferably not used lately.
    /// Each call looks on from where the last one ended.
    fn victim(&mut self, access: Access, may_go: &dyn Fn(Page) -> bool) -> Option<Page>;

    /// Sends a message to another node, and with [`super::message::Kind::Data`] what the page's frame holds now.
    fn send(&mut self, to: NodeId, message: Message);

    /// The contents that came with the message being received are the page's from now on. The frame that they are in is
    /// the page's frame, and one that it had before is free.
    fn adopt(&mut self, page: Page);

    /// Asks for a page operation.
    fn operate(&mut self, ticket: Ticket, page: Page, operation: Operation);

    /// The page's frame is free, as soon as what was sent of it has left.
    fn release(&mut self, page: Page);

    /// Ends a fault.
    fn resume(&mut self, waiter: Waiter, outcome: Outcome);
}
