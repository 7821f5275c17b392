//! The sending half of one class to one peer: what waits, what is on its way, what was lost.
//!
//! Slots lie in a ring by their sequence numbers: `tail <= una <= next <= end`, and `end - tail` is at most [`WINDOW`].
//! From `tail` to `una` all is acknowledged but the card may still read it; from `una` to `next` it was transmitted;
//! from `next` to `end` it waits for credit and for the card. Slots are freed in order, so a page of several fragments
//! is the caller's again when none of them can be transmitted any more.
//!
//! Loss is found as by RFC 6675 and RFC 8985: a frame is lost when one that was transmitted at least
//! [`REORDERING`] transmissions later has come; else by the retransmission time-out of RFC 6298, of the oldest alone.

use ipc::wire::{Fragment, MESSAGE_BYTES};

use super::rtt::RttEstimator;
use crate::serial;

/// The most frames of one class and peer that wait or are on their way.
pub const WINDOW: u32 = 64;
/// Slots of a ring that holds a window.
pub const SLOTS: usize = WINDOW as usize;
/// Frames that may be sent before the peer has given credit.
pub const INITIAL_CREDIT: u32 = 8;
/// Later transmissions that must have come before one is taken for lost (`DupThresh`, RFC 6675, 5).
const REORDERING: u32 = 3;
/// Transmissions of one frame after which its peer is taken for unreachable. The header's count has room for them.
const MAX_TRANSMISSIONS: u8 = 64;

/// Bytes of a page frame that are sent: so many from this offset on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part<F> {
    /// The page frame.
    pub frame: F,
    /// Where the bytes begin.
    pub offset: u16,
    /// How many.
    pub bytes: u16,
}

/// What is sent under one sequence number.
#[derive(Clone, Copy, Debug)]
pub struct Piece<F> {
    /// What the message says.
    pub message: [u8; MESSAGE_BYTES],
    /// Its contents, or a fragment of them.
    pub part: Option<Part<F>>,
    /// Which fragment.
    pub fragment: Fragment,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Waiting,
    InFlight,
    Lost,
    /// It came, or nobody waits for it any more.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Slot<F> {
    piece: Piece<F>,
    state: State,
    /// Whether the card reads it.
    in_card: bool,
    transmissions: u8,
    sent_at: u64,
    /// The number of its last transmission among all of this class.
    order: u32,
}

/// What a peer says of what came.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledgement {
    /// The next number that it expects.
    pub next: u32,
    /// Bit *i*: `next + 1 + i` has come.
    pub selective: u64,
    /// The first number that it gives no credit for.
    pub limit: Option<u32>,
}

/// It acknowledges what was never sent, or gives credit that no window has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unexpected;

/// What to transmit.
#[derive(Clone, Copy, Debug)]
pub struct Transmission<F> {
    /// Its number.
    pub sequence: u32,
    /// From 0.
    pub count: u8,
    /// What.
    pub piece: Piece<F>,
}

/// What a time-out asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Due {
    /// Nothing, or a frame that is now ready to be transmitted again.
    Nothing,
    /// To ask the peer for credit.
    Probe,
}

/// The sending half of a class.
#[derive(Debug)]
pub struct Sender<F> {
    ring: [Option<Slot<F>>; SLOTS],
    tail: u32,
    una: u32,
    next: u32,
    end: u32,
    limit: u32,
    order: u32,
    /// The latest transmission that is known to have come.
    came: u32,
    lost: u32,
    timeouts: u32,
    /// When credit was last asked for or given.
    asked_at: u64,
    exhausted: bool,
    fast_retransmissions: u64,
    timeout_retransmissions: u64,
}

fn place(sequence: u32) -> usize {
    sequence as usize % SLOTS
}

impl<F: Copy> Sender<F> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ring: [const { None }; SLOTS],
            tail: 0,
            una: 0,
            next: 0,
            end: 0,
            limit: INITIAL_CREDIT,
            order: 0,
            came: 0,
            lost: 0,
            timeouts: 0,
            asked_at: 0,
            exhausted: false,
            fast_retransmissions: 0,
            timeout_retransmissions: 0,
        }
    }

    /// How many more pieces find room.
    #[must_use]
    pub const fn room(&self) -> usize {
        SLOTS - self.end.wrapping_sub(self.tail) as usize
    }

    /// Whether nothing waits, is on its way or in the card.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == self.tail
    }

    /// Whether a frame was transmitted so often that the peer cannot be there.
    #[must_use]
    pub const fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Frames taken for lost because later ones came, and because of time-outs.
    #[must_use]
    pub const fn retransmissions(&self) -> (u64, u64) {
        (self.fast_retransmissions, self.timeout_retransmissions)
    }

    /// Adds a piece, for which there must be [room](Self::room).
    pub fn queue(&mut self, piece: Piece<F>) {
        let slot =
            Slot { piece, state: State::Waiting, in_card: false, transmissions: 0, sent_at: 0, order: 0 };
        if let Some(free) = self.ring.get_mut(place(self.end)).filter(|free| free.is_none()) {
            *free = Some(slot);
            self.end = self.end.wrapping_add(1);
        }
    }

    fn slot(&mut self, sequence: u32) -> Option<&mut Slot<F>> {
        let held = serial::is_within(sequence, self.tail, self.end);
        self.ring.get_mut(place(sequence)).and_then(Option::as_mut).filter(|_| held)
    }

    fn get(&self, sequence: u32) -> Option<&Slot<F>> {
        self.ring.get(place(sequence)).and_then(Option::as_ref)
    }

    /// The numbers that are on their way.
    fn outstanding(&self) -> impl Iterator<Item = u32> + use<F> {
        let una = self.una;
        (0..self.next.wrapping_sub(una)).map(move |i| una.wrapping_add(i))
    }

    /// What should be transmitted next: what was lost, then what is new and has credit.
    #[must_use]
    pub fn ready(&self) -> Option<u32> {
        if self.lost != 0 {
            let is_ready = |slot: &Slot<F>| slot.state == State::Lost && !slot.in_card;
            if let Some(lost) = self.outstanding().find(|&number| self.get(number).is_some_and(is_ready)) {
                return Some(lost);
            }
        }
        serial::is_within(self.next, self.una, self.limit)
            .then_some(self.next)
            .filter(|&next| next != self.end)
    }

    /// Whether the number is transmitted with contents.
    #[must_use]
    pub fn has_part(&self, sequence: u32) -> bool {
        self.get(sequence).is_some_and(|slot| slot.piece.part.is_some())
    }

    /// Notes that what is [ready](Self::ready) is given to the card; what it is.
    pub fn transmit(&mut self, sequence: u32, now: u64) -> Option<Transmission<F>> {
        let order = self.order.wrapping_add(1);
        let slot = self.slot(sequence)?;
        let was_lost = slot.state == State::Lost;
        slot.state = State::InFlight;
        slot.in_card = slot.piece.part.is_some();
        slot.sent_at = now;
        slot.order = order;
        let count = slot.transmissions;
        slot.transmissions = count.saturating_add(1);
        let piece = slot.piece;
        self.order = order;
        self.lost -= u32::from(was_lost);
        self.exhausted |= count >= MAX_TRANSMISSIONS;
        if sequence == self.next {
            self.next = sequence.wrapping_add(1);
        }
        Some(Transmission { sequence, count, piece })
    }

    /// Notes that the card has read a number's contents.
    pub fn completed(&mut self, sequence: u32) {
        if let Some(slot) = self.slot(sequence) {
            slot.in_card = false;
        }
    }

    /// Takes what the peer says; a sample of the round-trip time if it gives one.
    ///
    /// # Errors
    /// [`Unexpected`]: nothing of it was heeded.
    pub fn acknowledge(&mut self, ack: Acknowledgement, now: u64) -> Result<Option<u64>, Unexpected> {
        let flight = self.next.wrapping_sub(self.una);
        let Some(advance) = serial::distance(self.una, ack.next) else { return Ok(None) };
        if advance > flight {
            return Err(Unexpected);
        }
        let beyond = flight - advance;
        // Bit i stands for the i-th after `ack.next`, which itself has not come.
        if ack.selective != 0 && ack.selective.ilog2() + 1 >= beyond {
            return Err(Unexpected);
        }
        if let Some(limit) = ack.limit {
            let credit = serial::distance(ack.next, limit).ok_or(Unexpected)?;
            if credit > WINDOW {
                return Err(Unexpected);
            }
            if serial::distance(self.limit, limit).is_some_and(|more| more > 0) {
                self.limit = limit;
                self.timeouts = 0;
            }
            self.asked_at = now;
        }
        let mut sample = None;
        for i in 0..advance {
            self.arrived(self.una.wrapping_add(i), &mut sample);
        }
        for bit in (0..u64::BITS).filter(|bit| ack.selective >> bit & 1 == 1) {
            self.arrived(ack.next.wrapping_add(1 + bit), &mut sample);
        }
        self.una = ack.next;
        self.find_losses();
        // The latest sample is the least delayed one.
        Ok(sample.map(|sent_at| now.saturating_sub(sent_at)))
    }

    /// Notes that a number came; when it was sent, if that tells a round-trip time (Karn's rule).
    fn arrived(&mut self, sequence: u32, sample: &mut Option<u64>) {
        let Some(slot) = self.slot(sequence).filter(|slot| slot.state != State::Over) else { return };
        let was_lost = slot.state == State::Lost;
        slot.state = State::Over;
        if slot.transmissions == 1 {
            *sample = (*sample).max(Some(slot.sent_at));
        }
        let order = slot.order;
        if serial::distance(self.came, order).is_some() {
            self.came = order;
        }
        self.lost -= u32::from(was_lost);
        self.timeouts = 0;
    }

    fn find_losses(&mut self) {
        let came = self.came;
        for number in self.outstanding() {
            let Some(slot) = self.slot(number).filter(|slot| slot.state == State::InFlight) else { continue };
            if serial::distance(slot.order, came).is_some_and(|later| later >= REORDERING) {
                slot.state = State::Lost;
                self.lost += 1;
                self.fast_retransmissions += 1;
            }
        }
    }

    /// The oldest that is on its way, if the card has let go of it.
    fn oldest(&self) -> Option<(u32, &Slot<F>)> {
        self.outstanding()
            .filter_map(|number| self.get(number).map(|slot| (number, slot)))
            .find(|(_, slot)| slot.state == State::InFlight)
            .filter(|(_, slot)| !slot.in_card)
    }

    /// Whether something waits that only more credit can set free.
    fn is_blocked(&self) -> bool {
        self.una == self.next && self.next != self.end && self.next == self.limit
    }

    /// When [`Sender::expire`] is due.
    #[must_use]
    pub fn deadline(&self, rtt: &RttEstimator) -> Option<u64> {
        let rto = rtt.rto(self.timeouts);
        if self.is_blocked() {
            return Some(self.asked_at.saturating_add(rto));
        }
        self.oldest().map(|(_, slot)| slot.sent_at.saturating_add(rto))
    }

    /// Takes note of the time.
    pub fn expire(&mut self, now: u64, rtt: &RttEstimator) -> Due {
        if self.deadline(rtt).is_none_or(|deadline| now < deadline) {
            return Due::Nothing;
        }
        self.timeouts += 1;
        if self.is_blocked() {
            self.asked_at = now;
            return Due::Probe;
        }
        if let Some((number, _)) = self.oldest()
            && let Some(slot) = self.slot(number)
        {
            slot.state = State::Lost;
            self.lost += 1;
            self.timeout_retransmissions += 1;
        }
        Due::Nothing
    }

    /// Takes back the last message if nothing of it was transmitted yet: its page frame, if it has one. `None` when
    /// there is no such message.
    pub fn withdraw(&mut self) -> Option<Option<F>> {
        let waits = self.end.wrapping_sub(self.next);
        // The last first fragment among what waits. What is before it belongs to a message that was begun.
        let is_first = |&number: &u32| self.get(number).is_some_and(|slot| slot.piece.fragment.index == 0);
        let first = (0..waits).map(|i| self.end.wrapping_sub(1 + i)).find(is_first)?;
        let frame = self.get(first).and_then(|slot| slot.piece.part).map(|part| part.frame);
        while self.end != first {
            self.end = self.end.wrapping_sub(1);
            if let Some(slot) = self.ring.get_mut(place(self.end)) {
                *slot = None;
            }
        }
        Some(frame)
    }

    /// Gives up all that waits or is on its way.
    pub fn abandon(&mut self) {
        for slot in self.ring.iter_mut().flatten() {
            slot.state = State::Over;
        }
        (self.una, self.next, self.lost) = (self.end, self.end, 0);
    }

    /// The next page frame that is the caller's again, in the order of sending. Call until there is none.
    pub fn pop_done(&mut self) -> Option<F> {
        while self.tail != self.una {
            let slot = self.ring.get_mut(place(self.tail))?;
            if slot.as_ref().is_some_and(|slot| slot.in_card) {
                return None;
            }
            let freed = slot.take();
            self.tail = self.tail.wrapping_add(1);
            if let Some(Slot { piece: Piece { part: Some(part), fragment, .. }, .. }) = freed
                && fragment.last
            {
                return Some(part.frame);
            }
        }
        None
    }
}

impl<F: Copy> Default for Sender<F> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
