//! What faults teach about how a page is used. The home sees all of them; two bits of streak and three of class remember.
//!
//! * *Read-mostly*: three more readers in a row, without a write.
//! * *Migratory*: the only reader besides the owner writes (Stenström, Brorsson, Sandberg, ISCA 1993; Cox and Fowler, same
//!   place). From then on a read of the page is granted the right to write. Whether the reader then writes cannot
//!   be seen, so every fourth such read is granted reading alone: if somebody else reads before that one writes, the page is
//!   not migratory any more.
//! * *Bouncing*: when it has come to a new owner, somebody already waits for it. The more often in a row, the longer it stays.
//! * *Device*: touched by a device model. It loses that after four requests of others.

use super::message::{Access, MAX_HOLD};
use super::node::{NodeCount, NodeId};
use super::word::{Class, MAX_STREAK, State, Word};

/// Another reader in a row that makes a page read-mostly.
const READ_MOSTLY: u8 = 3;
const _: () = assert!(READ_MOSTLY <= MAX_STREAK);

/// A request for a page.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Wanted {
    /// By whom.
    pub by: NodeId,
    /// What for.
    pub access: Access,
    /// Whether a device model wants it.
    pub device: bool,
}

/// The word with what a request teaches, and the right to grant to it.
#[must_use]
pub fn request(word: Word, wanted: Wanted, nodes: NodeCount) -> (Word, Access) {
    let streak = word.streak();
    if word.state() == State::Dormant {
        return (word, wanted.access);
    }
    if wanted.device {
        return (word.used(Class::Device, MAX_STREAK), wanted.access);
    }
    if word.class() == Class::Device {
        let word = if streak > 0 { word.used(Class::Device, streak - 1) } else { word.used(Class::Plain, 0) };
        return (word, wanted.access);
    }
    let word = match (wanted.access, word.state(), word.class()) {
        (Access::Read, State::Exclusive, Class::Migratory) if word.owner() != wanted.by => {
            return if streak < MAX_STREAK {
                (word.used(Class::Migratory, streak + 1), Access::Write)
            } else {
                (word.used(Class::Migratory, 0), Access::Read)
            };
        }
        (Access::Read, State::Shared, Class::Plain) if streak + 1 >= READ_MOSTLY => {
            word.used(Class::ReadMostly, 0)
        }
        (Access::Read, State::Shared, Class::Plain) => word.used(Class::Plain, streak + 1),
        (Access::Read, State::Shared, Class::Migratory) => word.used(Class::Plain, 0),
        (Access::Write, State::Shared, Class::Migratory) if is_handed_on(word, wanted.by, nodes) => word,
        (Access::Write, State::Shared, Class::Plain | Class::ReadMostly) => {
            let class = if is_handed_on(word, wanted.by, nodes) { Class::Migratory } else { Class::Plain };
            word.used(class, 0)
        }
        _ => word,
    };
    (word, wanted.access)
}

/// Whether the one reader besides the owner is the one that writes now.
fn is_handed_on(word: Word, writer: NodeId, nodes: NodeCount) -> bool {
    word.owner() != writer
        && word.readers().surely_has(writer, nodes)
        && word.readers().expand(nodes).len() == 1
}

/// The word with what the end of a transaction teaches that brought the page to a new exclusive owner; `waiting` tells
/// whether another request for it is there already.
#[must_use]
pub fn moved(word: Word, waiting: bool) -> Word {
    match (word.class(), waiting) {
        (Class::Plain, true) => word.used(Class::Bouncing, 0),
        (Class::Bouncing, true) => word.used(Class::Bouncing, (word.streak() + 1).min(MAX_STREAK)),
        (Class::Bouncing, false) if word.streak() > 0 => word.used(Class::Bouncing, word.streak() - 1),
        (Class::Bouncing, false) => word.used(Class::Plain, 0),
        _ => word,
    }
}

/// The level of hold time that a grant says.
#[must_use]
pub fn hold(word: Word, waiting: bool) -> u8 {
    let level = match word.class() {
        Class::Bouncing => word.streak() + 1,
        Class::Migratory => u8::from(waiting),
        Class::Plain | Class::ReadMostly | Class::Device => 0,
    };
    level.min(MAX_HOLD)
}
