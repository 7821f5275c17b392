//! The card, and what is in it: page frames that are posted for reception, and frames on their way out.

use heapless::Vec;
use ipc::interfaces::interconnect::{Messages, Traffic};
use ipc::wire::{FrameHeader, HEADER_BYTES, Parsed};
use virtio_net::MAX_CHAINS;
use zerocopy::IntoBytes;

use super::clients::Queues;
use super::frames::Frames;
use crate::PAGE;
use crate::card::{Card, Part};
use crate::membership::Event;
use crate::sink::{Outcome, Output, Payload, Sink, Token};

/// Page frames that are kept for sending when others are posted.
const RESERVE: usize = 8;

/// A page frame as the state machine knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageName {
    /// Its number.
    pub number: u32,
    /// Whether it is a client's, and only sent from.
    pub is_shared: bool,
}

impl PageName {
    /// One of the service's.
    pub const fn own(number: u32) -> Self {
        Self { number, is_shared: false }
    }
}

/// What a frame in the card is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaving {
    /// A header alone.
    Header,
    /// Of a page frame that is free when it has left.
    Page(u32),
    /// A message's: the state machine wants to know when it has left.
    Message(Token),
}

/// The card and the page frames.
pub(super) struct Port<C: Card> {
    pub card: C,
    pub frames: Frames,
    /// What is in each of the card's slots.
    pub leaving: [Option<Leaving>; MAX_CHAINS],
    /// Of messages that the card did not take.
    rejected: Vec<Token, MAX_CHAINS>,
    /// A frame of a bare exchange that the state machine has judged.
    pub bare: Option<(Parsed, u32)>,
    /// Messages that came.
    pub queues: Queues,
    posted: bool,
    pub sent: Traffic,
    pub received: Traffic,
    pub no_room: u64,
    pub messages: Messages,
    pub copies: u64,
}

impl<C: Card> Port<C> {
    pub fn new(card: C, frames: Frames, queues: Queues) -> Self {
        let mut port = Self {
            card,
            frames,
            leaving: [None; MAX_CHAINS],
            rejected: Vec::new(),
            bare: None,
            queues,
            posted: false,
            sent: Traffic::default(),
            received: Traffic::default(),
            no_room: 0,
            messages: Messages::default(),
            copies: 0,
        };
        port.refill();
        port
    }

    /// Takes out what was in a slot of the card; what the state machine wants back.
    pub fn has_left(&mut self, slot: u16) -> Option<Token> {
        match self.leaving.get_mut(usize::from(slot))?.take()? {
            Leaving::Header => None,
            Leaving::Page(frame) => {
                self.give_back(frame);
                None
            }
            Leaving::Message(token) => Some(token),
        }
    }

    /// What the state machine wants back of a message that the card did not take.
    pub fn was_rejected(&mut self) -> Option<Token> {
        self.rejected.pop()
    }

    /// Posts a page frame for reception, or keeps it when the card has enough.
    pub fn give_back(&mut self, frame: u32) {
        match self.card.post_receive(frame) {
            Ok(()) => self.posted = true,
            Err(_) => self.frames.set_aside(frame),
        }
    }

    /// Posts spare page frames, but for a reserve, and tells the card of all that were posted.
    pub fn refill(&mut self) {
        while self.frames.spare() > RESERVE {
            let Some(frame) = self.frames.pop() else { break };
            if self.card.post_receive(frame).is_err() {
                self.frames.set_aside(frame);
                break;
            }
            self.posted = true;
        }
        if self.posted {
            self.posted = false;
            self.card.notify_receive();
        }
    }

    /// Gives a frame to the card, with a part of a page frame whose checksum is this; whether the card took it.
    pub fn send(&mut self, header: FrameHeader, part: Option<(Part, u32)>, what: Leaving) -> bool {
        let (bytes, checksum) = part.map_or((0, 0), |(part, checksum)| (part.bytes, checksum));
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(header.seal(checksum).as_bytes());
        let Ok(slot) = self.card.send(&head, part.map(|(part, _)| part)) else {
            self.no_room += 1;
            return false;
        };
        if let Some(place) = self.leaving.get_mut(usize::from(slot)) {
            *place = Some(what);
        }
        self.sent.frames += 1;
        self.sent.bytes += HEADER_BYTES as u64 + u64::from(bytes);
        true
    }

    /// Sends the first bytes of a page frame that is free when they have left.
    pub fn send_page(&mut self, header: FrameHeader, frame: u32, bytes: u16, checksum: u32) -> bool {
        let part = Part { frame, offset: 0, bytes };
        let is_sent = self.send(header, Some((part, checksum)), Leaving::Page(frame));
        if !is_sent {
            self.give_back(frame);
        }
        is_sent
    }

    fn send_bytes(&mut self, header: FrameHeader, contents: &[u8]) {
        let Some(frame) = self.frames.pop() else {
            self.no_room += 1;
            return;
        };
        self.card.write(frame, contents);
        let bytes = u16::try_from(contents.len()).unwrap_or(PAGE);
        let checksum = self.card.checksum(Part { frame, offset: 0, bytes });
        self.send_page(header, frame, bytes, checksum);
    }
}

/// The port as the state machine sees it, and who is told of events.
pub(super) struct Outlet<'a, C: Card, E> {
    pub port: &'a mut Port<C>,
    pub events: &'a mut E,
}

impl<C: Card, E: FnMut(Event)> Sink<PageName> for Outlet<'_, C, E> {
    fn checksum(&self, frame: PageName, bytes: u16) -> u32 {
        self.port.card.checksum(Part { frame: frame.number, offset: 0, bytes })
    }

    fn read(&self, frame: PageName, bytes: &mut [u8]) {
        self.port.card.read(frame.number, bytes);
    }

    fn append(&mut self, from: PageName, to: PageName, offset: u16, bytes: u16) {
        self.port.copies += 1;
        self.port.card.append(from.number, to.number, offset, bytes);
    }

    fn put(&mut self, output: Output<'_, PageName>) {
        let port = &mut *self.port;
        match output {
            Output::Transmit { header, payload: Payload::None } => {
                port.send(header, None, Leaving::Header);
            }
            Output::Transmit { header, payload: Payload::Bytes(contents) } => {
                port.send_bytes(header, contents)
            }
            Output::Transmit { header, payload: Payload::Part { frame, offset, bytes, token } } => {
                let part = Part { frame: frame.number, offset, bytes };
                let checksum = port.card.checksum(part);
                if !port.send(header, Some((part, checksum)), Leaving::Message(token)) {
                    // There is room: a poll transmits no more than the card had room for.
                    let _ = port.rejected.push(token);
                }
            }
            Output::Bare { parsed, frame } => port.bare = Some((parsed, frame.number)),
            Output::Recycle(frame) => port.give_back(frame.number),
            Output::Event(event) => {
                port.queues.heard(event);
                (self.events)(event);
            }
            Output::Deliver(delivery) => port.queues.push(delivery),
            Output::Done { frame, outcome, .. } => {
                match outcome {
                    Outcome::Acknowledged => port.messages.acknowledged += 1,
                    Outcome::Abandoned => port.messages.abandoned += 1,
                }
                if !frame.is_shared {
                    port.give_back(frame.number);
                }
            }
            Output::Writable { class, .. } => port.queues.has_room(class),
        }
    }
}
