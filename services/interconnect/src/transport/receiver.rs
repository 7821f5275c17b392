//! The receiving half of one class from one peer: order, repetitions, credit, and when to acknowledge.
//!
//! What comes out of order waits in a ring until the gap before it is filled, if a page frame can be spared for it;
//! what was acknowledged selectively is never dropped. Credit is given by what the consumer has taken: no more than
//! a window of frames is ever between the peer's first transmission and the consumer.

use ipc::wire::{Fragment, MESSAGE_BYTES};

use super::sender::{Acknowledgement, INITIAL_CREDIT, SLOTS, WINDOW};
use crate::serial;

/// Frames that come in order before they are acknowledged without delay.
const ACKNOWLEDGE_EVERY: u32 = 8;

/// What came under one sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<F> {
    /// What the message says.
    pub message: [u8; MESSAGE_BYTES],
    /// The page frame with the contents and how many bytes they are, if there are any.
    pub contents: Option<(F, u16)>,
    /// Which fragment of them.
    pub fragment: Fragment,
}

/// Why a frame was not taken; it is acknowledged again, and has no other effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// It has come before.
    Repeated,
    /// There was no credit for it.
    BeyondCredit,
    /// It is out of order, and no page frame can be spared to keep it.
    NoRoom,
}

/// A page of which fragments have come.
#[derive(Clone, Copy, Debug)]
pub struct Partial<F> {
    /// The page frame that they are gathered in.
    pub frame: F,
    /// How many bytes there are.
    pub bytes: u16,
    /// The next fragment.
    pub next: u8,
}

/// The receiving half of a class.
#[derive(Debug)]
pub struct Receiver<F> {
    ring: [Option<Arrived<F>>; SLOTS],
    next: u32,
    /// How many in the ring wait for one before them.
    waiting: u32,
    /// The first number that the consumer has not taken.
    taken: u32,
    window: u32,
    /// The limit that the peer was last told.
    told: u32,
    unacknowledged: u32,
    acknowledge_at: Option<u64>,
    /// The page that is being gathered.
    pub partial: Option<Partial<F>>,
}

fn place(sequence: u32) -> usize {
    sequence as usize % SLOTS
}

impl<F: Copy> Receiver<F> {
    /// One that gives credit for `window` frames, at least [`INITIAL_CREDIT`] and at most [`WINDOW`].
    #[must_use]
    pub fn new(window: u32) -> Self {
        Self {
            ring: [const { None }; SLOTS],
            next: 0,
            waiting: 0,
            taken: 0,
            window: window.clamp(INITIAL_CREDIT, WINDOW),
            told: INITIAL_CREDIT,
            unacknowledged: 0,
            acknowledge_at: None,
            partial: None,
        }
    }

    const fn limit(&self) -> u32 {
        self.taken.wrapping_add(self.window)
    }

    /// Takes what came under a number. Out of order it is kept only when it `may_wait` or has no contents.
    ///
    /// # Errors
    /// [`Refused`]; the page frame is the caller's.
    pub fn take(
        &mut self,
        sequence: u32,
        arrived: Arrived<F>,
        may_wait: bool,
        now: u64,
        delay: u64,
    ) -> Result<(), Refused> {
        let refused = self.judge(sequence, arrived.contents.is_none() || may_wait);
        // RFC 5681, 4.2: gaps and repetitions are told at once, so that the peer finds losses soon.
        let in_order = refused.is_ok() && sequence == self.next && self.waiting == 0;
        self.unacknowledged += 1;
        let wait = if in_order && self.unacknowledged < ACKNOWLEDGE_EVERY { delay } else { 0 };
        self.acknowledge_by(now.saturating_add(wait));
        refused?;
        if let Some(slot) = self.ring.get_mut(place(sequence)) {
            *slot = Some(arrived);
            self.waiting += 1;
        }
        Ok(())
    }

    fn judge(&self, sequence: u32, may_wait: bool) -> Result<(), Refused> {
        let ahead = serial::distance(self.next, sequence).ok_or(Refused::Repeated)?;
        // The window may be smaller than the ring, never larger; so every number has a place of its own.
        if !serial::is_within(sequence, self.taken, self.limit()) {
            return Err(Refused::BeyondCredit);
        }
        if self.ring.get(place(sequence)).is_some_and(Option::is_some) {
            return Err(Refused::Repeated);
        }
        if ahead != 0 && !may_wait { Err(Refused::NoRoom) } else { Ok(()) }
    }

    /// The next in order, if it has come.
    pub fn pop(&mut self) -> Option<Arrived<F>> {
        let arrived = self.ring.get_mut(place(self.next))?.take()?;
        self.next = self.next.wrapping_add(1);
        self.waiting -= 1;
        Some(arrived)
    }

    /// Takes out what waits, in no order, when nobody wants it any more.
    pub fn discard(&mut self) -> Option<F> {
        let contents = self.ring.iter_mut().find_map(|slot| slot.take_if(|slot| slot.contents.is_some()));
        contents.and_then(|arrived| arrived.contents).map(|(frame, _)| frame)
    }

    /// Notes that the consumer has taken so many of the frames that were delivered; more count as all.
    pub fn consumed(&mut self, frames: u32, now: u64) {
        let delivered = self.next.wrapping_sub(self.taken);
        self.taken = self.taken.wrapping_add(frames.min(delivered));
        let news = self.limit().wrapping_sub(self.told);
        if news >= self.window / 2 || (news > 0 && self.told == self.next) {
            self.acknowledge_by(now);
        }
    }

    fn acknowledge_by(&mut self, time: u64) {
        self.acknowledge_at = Some(self.acknowledge_at.map_or(time, |at| at.min(time)));
    }

    /// Has the state told at once.
    pub fn probed(&mut self, now: u64) {
        self.acknowledge_by(now);
    }

    /// When an acknowledgement is due.
    #[must_use]
    pub const fn acknowledge_at(&self) -> Option<u64> {
        self.acknowledge_at
    }

    /// What to tell the peer, in a frame of its own.
    pub fn acknowledgement(&mut self) -> Acknowledgement {
        let mut selective = 0;
        if self.waiting != 0 {
            for bit in 0..u64::BITS - 1 {
                let number = self.next.wrapping_add(1 + bit);
                let has_come = self.ring.get(place(number)).is_some_and(Option::is_some);
                selective |= u64::from(has_come) << bit;
            }
        }
        self.told = self.limit();
        self.acknowledge_at = None;
        self.unacknowledged = 0;
        Acknowledgement { next: self.next, selective, limit: Some(self.told) }
    }

    /// What a frame that goes to the peer anyway can say: the next number that is expected. That is all there is to
    /// say unless frames wait for one before them or there is news of credit.
    pub fn piggyback(&mut self) -> u32 {
        let news = self.limit().wrapping_sub(self.told);
        if self.waiting == 0 && news < self.window / 2 && self.told != self.next {
            self.acknowledge_at = None;
            self.unacknowledged = 0;
        }
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(frame: u32) -> Arrived<u32> {
        Arrived { message: [0; MESSAGE_BYTES], contents: Some((frame, 8)), fragment: Fragment::WHOLE }
    }

    fn popped(receiver: &mut Receiver<u32>) -> std::vec::Vec<u32> {
        core::iter::from_fn(|| receiver.pop()).map(|a| a.contents.unwrap().0).collect()
    }

    #[test]
    fn order_is_restored_and_told() {
        let mut receiver = Receiver::new(16);
        receiver.take(1, arrived(1), true, 10, 5).unwrap();
        receiver.take(3, arrived(3), true, 10, 5).unwrap();
        assert_eq!(receiver.acknowledge_at(), Some(10));
        assert!(receiver.pop().is_none());
        let ack = receiver.acknowledgement();
        assert_eq!((ack.next, ack.selective, ack.limit), (0, 0b101, Some(16)));
        assert_eq!(receiver.take(3, arrived(9), true, 11, 5), Err(Refused::Repeated));
        receiver.take(0, arrived(0), true, 11, 5).unwrap();
        assert_eq!(popped(&mut receiver), [0, 1]);
        receiver.take(2, arrived(2), true, 12, 5).unwrap();
        assert_eq!(popped(&mut receiver), [2, 3]);
        assert_eq!(receiver.take(0, arrived(9), true, 13, 5), Err(Refused::Repeated));
        let ack = receiver.acknowledgement();
        assert_eq!((ack.next, ack.selective), (4, 0));
        assert_eq!(receiver.acknowledge_at(), None);
    }

    #[test]
    fn credit_follows_the_consumer() {
        let mut receiver = Receiver::new(8);
        for number in 0..8 {
            receiver.take(number, arrived(number), true, 0, 5).unwrap();
        }
        assert_eq!(popped(&mut receiver).len(), 8);
        assert_eq!(receiver.take(8, arrived(8), true, 0, 5), Err(Refused::BeyondCredit));
        assert_eq!(receiver.acknowledgement().limit, Some(8));
        // The peer waits for credit, so even one is told at once.
        receiver.consumed(1, 7);
        assert_eq!(receiver.acknowledge_at(), Some(7));
        assert_eq!(receiver.acknowledgement().limit, Some(9));
        // A consumer that claims to have taken more than there was gives no more than the window.
        receiver.consumed(1000, 8);
        assert_eq!(receiver.acknowledgement().limit, Some(16));
        receiver.take(8, arrived(8), true, 9, 5).unwrap();
        assert_eq!(receiver.acknowledge_at(), Some(14));
        assert_eq!((receiver.piggyback(), receiver.acknowledge_at()), (8, Some(14)));
    }

    #[test]
    fn without_a_spare_frame_only_what_is_in_order_is_taken() {
        let mut receiver = Receiver::new(16);
        assert_eq!(receiver.take(1, arrived(1), false, 0, 5), Err(Refused::NoRoom));
        let without = Arrived { contents: None, ..arrived(0) };
        receiver.take(2, without, false, 0, 5).unwrap();
        receiver.take(0, arrived(0), false, 0, 5).unwrap();
        assert!(receiver.pop().is_some() && receiver.pop().is_none());
        assert_eq!(receiver.acknowledgement().selective, 1);
        assert!(receiver.discard().is_none());
    }
}
