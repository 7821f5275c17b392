//! Where messages go out. What a node says to itself does not leave it.

use alloc::collections::VecDeque;

use super::Counters;
use super::environment::Environment;
use super::error::ErrorCounts;
use super::message::Message;
use super::node::NodeId;

/// The way out.
pub struct Post<'a, E> {
    /// The service around the protocol.
    pub environment: &'a mut E,
    /// This node.
    pub me: NodeId,
    /// Whether this node has room for another's page.
    pub room: bool,
    /// Messages to itself. They are few: of each slot at most one request with its answer, and a `Done`.
    pub own: &'a mut VecDeque<Message>,
    /// What was wrong with inputs.
    pub errors: &'a mut ErrorCounts,
    /// What became of faults.
    pub counters: &'a mut Counters,
}

impl<E: Environment> Post<'_, E> {
    /// Sends a message.
    pub fn send(&mut self, to: NodeId, message: Message) {
        let message = Message { room: self.room, ..message };
        if to == self.me {
            self.own.push_back(message);
        } else {
            self.environment.send(to, message);
        }
    }
}
