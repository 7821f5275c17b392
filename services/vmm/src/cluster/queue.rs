//! Messages that wait: those that came while the platform waited for an answer, and those that cannot be sent yet.

use alloc::collections::VecDeque;

use ipc::guest::MAX_NODES;

use super::message::{Message, Say};

/// The most that wait. Interrupts that wait already are not put in twice, so that only hostile nodes come near.
pub const MAX_WAITING: usize = 4096;

/// Messages in their order, each with the node that it is from or for.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<(u16, Message)>,
    dropped: u64,
}

impl Queue {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { waiting: VecDeque::new(), dropped: 0 }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many were dropped because too many waited.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Puts a message at the end.
    pub fn push(&mut self, node: u16, message: Message) {
        // One vector is pending once, however often it comes.
        let coalesces = matches!(message.say, Say::Signal(signal) if signal.delivery.has_vector());
        if coalesces && self.waiting.contains(&(node, message)) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
        } else {
            self.waiting.push_back((node, message));
        }
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<(u16, Message)> {
        self.waiting.pop_front()
    }

    /// Offers all in their order; what is not taken stays, and so does all for the same node behind it.
    pub fn offer(&mut self, mut take: impl FnMut(u16, &Message) -> bool) {
        let mut full: heapless::Vec<u16, MAX_NODES> = heapless::Vec::new();
        self.waiting.retain(|(node, message)| {
            if full.contains(node) {
                return true;
            }
            let taken = take(*node, message);
            if !taken {
                // There are no more nodes than it has places.
                let _ = full.push(*node);
            }
            !taken
        });
    }
}
