//! What can be wrong with an input. The input has no other effect than to be counted.

use core::fmt;

/// Why a coherence instance cannot be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfigError {
    /// This node's number is not one of the cluster's.
    Node,
    /// There is no waiter, or no slot for evictions, or more than [`super::MAX_WAITERS`] or [`super::MAX_EVICTIONS`].
    Slots,
    /// The heap has no room for the tables.
    NoRoom,
}

macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What is wrong with an input.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum Error { $($(#[doc = $doc])+ $name,)+ }

        impl Error {
            /// All errors, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

errors! {
    /// A message of another epoch than this node's.
    Epoch = "of another epoch",
    /// A message that says nothing ([`super::message::Message::decode`]).
    Malformed = "bytes that are no message",
    /// It comes from, or names, a node that is none of the cluster's, or comes from this very node.
    UnknownNode = "names a node that is none of the cluster's",
    /// There is no such page.
    UnknownPage = "names a page that does not exist",
    /// There is no such slot.
    UnknownSlot = "names a slot that does not exist",
    /// A request went to a node that is not the page's home, or what only the home says came from another node.
    NotHome = "not to or from the page's home",
    /// The requester has another request under way in this slot.
    SlotBusy = "a second request in one slot",
    /// No such transaction is under way: it is over, or never was.
    NoTransaction = "belongs to no transaction under way",
    /// The transaction under way does not expect this now.
    Unexpected = "not expected by the transaction under way",
    /// An acknowledgement by a node that was not asked for one, or a second one.
    NotAsked = "an acknowledgement that was not asked for",
    /// Contents are asked for, or a right is said to be kept, that this node does not have.
    NotHeld = "about a copy that this node does not have",
    /// There is no such waiter, or it waits already.
    Waiter = "a waiter that does not exist or waits already",
    /// No operation is under way by this ticket.
    Ticket = "a ticket of no operation under way",
    /// Too many page operations are under way. The input was not taken: it must be offered again after the next one is
    /// done. With operations that end before the next message is read this never happens.
    Full = "too many page operations are under way",
}

impl core::error::Error for Error {}

/// How often each error was met.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ErrorCounts([u64; Error::ALL.len()]);

impl ErrorCounts {
    /// None yet.
    pub const NONE: Self = Self([0; Error::ALL.len()]);

    /// Counts one.
    pub const fn add(&mut self, error: Error) {
        self.0[error as usize] += 1;
    }

    /// How often this one was met.
    #[must_use]
    pub const fn get(&self, error: Error) -> u64 {
        self.0[error as usize]
    }

    /// How many there were in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
