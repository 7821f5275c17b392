//! Messages of this node's clients through the reliable channels, and whose a page frame is meanwhile.

use ipc::frame::FrameHandle;
use ipc::interfaces::interconnect::{Handle, Incoming, Outgoing, SendAnswer};
use ipc::wire::UnumHeader;

use super::Station;
use super::port::{MAX_FRAMES, place};
use crate::card::Card;
use crate::sink::Delivery;
use crate::transport::{Message, SendError};

/// The pool that handles name.
const POOL: u8 = 0;
/// Page frames that clients may have at a time, those of messages that they have sent included.
const MAX_LENT: u32 = 64;

/// Which page frames clients have. A handle is a claim: one that is not of this lending is refused.
pub(super) struct Lent {
    generations: [u32; MAX_FRAMES],
    is_lent: [bool; MAX_FRAMES],
    count: u32,
}

impl Lent {
    pub const fn new() -> Self {
        Self { generations: [0; MAX_FRAMES], is_lent: [false; MAX_FRAMES], count: 0 }
    }

    fn lend(&mut self, number: u32) -> Option<Handle> {
        *self.is_lent.get_mut(place(number))? = true;
        self.count += 1;
        Some(FrameHandle::new(POOL, number, self.generations.get(place(number)).copied()?).0)
    }

    /// The number of a page frame that this handle names.
    fn find(&self, handle: Handle) -> Option<u32> {
        let handle = FrameHandle(handle);
        let number = handle.index();
        let generation = self.generations.get(place(number)).copied()?;
        let is_this = FrameHandle::new(POOL, number, generation) == handle;
        (is_this && self.is_lent.get(place(number)).copied()?).then_some(number)
    }

    fn take_back(&mut self, number: u32) {
        if let (Some(lent), Some(generation)) =
            (self.is_lent.get_mut(place(number)), self.generations.get_mut(place(number)))
            && core::mem::take(lent)
        {
            *generation = generation.wrapping_add(1);
            self.count -= 1;
        }
    }
}

impl<C: Card> Station<C> {
    /// Lends a page frame to a client.
    pub fn lend(&mut self) -> Option<Handle> {
        let on_their_way =
            self.port.messages.sent - self.port.messages.acknowledged - self.port.messages.abandoned;
        if u64::from(self.lent.count) + on_their_way >= u64::from(MAX_LENT) {
            return None;
        }
        let frame = self.port.spare.pop()?;
        let number = self.port.keep(frame);
        self.lent.lend(number)
    }

    /// Takes a page frame back from a client; whether it was its.
    pub fn give_back(&mut self, handle: Handle) -> bool {
        let Some(number) = self.lent.find(handle) else { return false };
        self.lent.take_back(number);
        if let Some(frame) = self.port.take(number) {
            self.port.give_back(frame);
        }
        true
    }

    /// Sends a client's message.
    pub fn send(&mut self, outgoing: Outgoing) -> SendAnswer {
        let Outgoing { node, class, tag, contents } = outgoing;
        let longest = usize::from(self.mtu()).saturating_sub(size_of::<UnumHeader>());
        let contents = match contents {
            None => None,
            Some((handle, bytes)) => match self.lent.find(handle) {
                Some(number) if usize::from(bytes) <= longest => Some((number, bytes)),
                _ => return SendAnswer::BadContents,
            },
        };
        match self.node.send(node, Message { class, tag, contents }) {
            Ok(()) => {
                self.due = 0;
                if let Some((number, _)) = contents {
                    self.lent.take_back(number);
                    self.port.messages.sent += 1;
                }
                SendAnswer::Taken
            }
            Err(SendError::NoSuchMember) => SendAnswer::NoSuchMember,
            Err(SendError::Full) => SendAnswer::Full,
            Err(SendError::Length(_)) => SendAnswer::BadContents,
        }
    }

    /// The next message for a client.
    pub fn receive(&mut self) -> Option<Incoming> {
        let Delivery { node, class, tag, contents, receipt } = self.port.delivered.pop_front()?;
        self.node.consumed(receipt, self.port.card.now());
        self.due = 0;
        let contents = contents.and_then(|(number, bytes)| Some((self.lent.lend(number)?, bytes)));
        Some(Incoming { node, class, tag, contents })
    }
}
