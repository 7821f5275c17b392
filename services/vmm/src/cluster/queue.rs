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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::cluster::message::Signal;
    use crate::interrupt::{DeliveryMode, Trigger};

    fn answer(id: u32) -> Message {
        Message { run: 1, say: Say::Answer { id, value: 0 } }
    }

    fn signal(vcpu: u8, delivery: DeliveryMode) -> Message {
        Message { run: 1, say: Say::Signal(Signal { vcpu, delivery, vector: 0x40, trigger: Trigger::Edge }) }
    }

    #[test]
    fn order_is_kept_for_each_node() {
        let mut queue = Queue::new();
        for id in 0..6 {
            queue.push(if id % 2 == 0 { 4 } else { 9 }, answer(id));
        }
        // Node 4 takes one and is full; node 9 takes all.
        let mut taken = Vec::new();
        queue.offer(|node, message| {
            let takes = node == 9 || taken.is_empty();
            if takes {
                taken.push(*message);
            }
            takes
        });
        assert_eq!(taken, [0, 1, 3, 5].map(answer));
        assert_eq!(queue.pop(), Some((4, answer(2))));
        assert_eq!(queue.pop(), Some((4, answer(4))));
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    #[test]
    fn interrupts_that_wait_are_not_put_in_twice() {
        let mut queue = Queue::new();
        for delivery in [DeliveryMode::Fixed, DeliveryMode::Init, DeliveryMode::StartUp, DeliveryMode::Init] {
            queue.push(1, signal(3, delivery));
            queue.push(1, signal(3, delivery));
        }
        queue.push(1, signal(2, DeliveryMode::Fixed));
        queue.push(2, signal(3, DeliveryMode::Fixed));
        assert_eq!(core::iter::from_fn(|| queue.pop()).count(), 1 + 6 + 2);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut queue = Queue::new();
        for id in 0..5000 {
            queue.push(1, answer(id));
        }
        assert_eq!(queue.dropped(), 5000 - MAX_WAITING as u64);
        assert_eq!(queue.pop(), Some((1, answer(0))));
    }
}
