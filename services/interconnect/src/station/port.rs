//! The card, and where each page frame is: posted for reception, on its way out, kept under its number for the state
//! machine or a client, or spare.

use alloc::collections::VecDeque;

use heapless::Vec;
use ipc::interfaces::interconnect::{Messages, Traffic};
use ipc::wire::{FrameHeader, HEADER_BYTES, Parsed};
use zerocopy::IntoBytes;

use crate::PAGE;
use crate::card::Card;
use crate::membership::Event;
use crate::sink::{Delivery, Outcome, Output, Payload, Sink, Token};

/// The most page frames that a station works with; their numbers are below this.
pub const MAX_FRAMES: usize = 256;
/// Page frames that are kept for sending when others are posted.
const RESERVE: usize = 8;

/// A page that is to go out, and its checksum.
pub(super) struct Outgoing<F> {
    pub frame: F,
    pub bytes: u16,
    pub checksum: u32,
}

/// The card and the page frames.
pub(super) struct Port<C: Card> {
    pub card: C,
    pub spare: Vec<C::Frame, MAX_FRAMES>,
    /// Those that go by their number.
    pub kept: [Option<C::Frame>; MAX_FRAMES],
    /// What the state machine wants back when the card has read a page frame.
    tokens: [Option<Token>; MAX_FRAMES],
    /// Of page frames that the card did not take.
    rejected: Vec<Token, MAX_FRAMES>,
    /// A frame of a bare exchange that the state machine has judged.
    pub bare: Option<(Parsed, C::Frame)>,
    /// Messages that nobody has taken yet: no more than there is credit for.
    pub delivered: VecDeque<Delivery<u32>>,
    posted: bool,
    pub sent: Traffic,
    pub received: Traffic,
    pub no_room: u64,
    pub messages: Messages,
}

/// The place of a page frame in a table.
pub(super) fn place(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<C: Card> Port<C> {
    pub fn new(card: C, frames: impl IntoIterator<Item = C::Frame>) -> Self {
        let mut port = Self {
            card,
            spare: Vec::new(),
            kept: [const { None }; MAX_FRAMES],
            tokens: [None; MAX_FRAMES],
            rejected: Vec::new(),
            bare: None,
            delivered: VecDeque::new(),
            posted: false,
            sent: Traffic::default(),
            received: Traffic::default(),
            no_room: 0,
            messages: Messages::default(),
        };
        for frame in frames.into_iter().filter(|frame| place(C::number(frame)) < MAX_FRAMES) {
            port.set_aside(frame);
        }
        port.refill();
        port
    }

    /// Keeps a page frame under its number.
    pub fn keep(&mut self, frame: C::Frame) -> u32 {
        let number = C::number(&frame);
        if let Some(kept) = self.kept.get_mut(place(number)) {
            *kept = Some(frame);
        }
        number
    }

    /// The page frame that is kept under a number.
    pub fn kept(&self, number: u32) -> Option<&C::Frame> {
        self.kept.get(place(number))?.as_ref()
    }

    /// Takes the page frame that is kept under a number.
    pub fn take(&mut self, number: u32) -> Option<C::Frame> {
        self.kept.get_mut(place(number))?.take()
    }

    /// What the state machine wants back of a page frame that the card has read, which is then kept; a page frame of
    /// anybody else is free.
    pub fn was_sent(&mut self, frame: C::Frame) -> Option<Token> {
        let token = self.tokens.get_mut(place(C::number(&frame))).and_then(Option::take);
        match token {
            Some(_) => drop(self.keep(frame)),
            None => self.give_back(frame),
        }
        token
    }

    /// What the state machine wants back of a page frame that the card did not take.
    pub fn was_rejected(&mut self) -> Option<Token> {
        self.rejected.pop()
    }

    /// A page of test contents that is to go out.
    pub fn written(&mut self, mut frame: C::Frame, seed: u64) -> Outgoing<C::Frame> {
        self.card.fill(&mut frame, seed);
        let checksum = self.card.checksum(&frame, PAGE);
        Outgoing { frame, bytes: PAGE, checksum }
    }

    /// Posts a page frame for reception, or keeps it when the card has enough.
    pub fn give_back(&mut self, frame: C::Frame) {
        match self.card.post_receive(frame) {
            Ok(()) => self.posted = true,
            Err(rejected) => {
                if let Some(frame) = rejected.frame {
                    self.set_aside(frame);
                }
            }
        }
    }

    /// Posts spare page frames, but for a reserve, and tells the card of all that were posted.
    pub fn refill(&mut self) {
        while self.spare.len() > RESERVE {
            let Some(frame) = self.spare.pop() else { break };
            if let Err(rejected) = self.card.post_receive(frame) {
                if let Some(frame) = rejected.frame {
                    self.set_aside(frame);
                }
                break;
            }
            self.posted = true;
        }
        if self.posted {
            self.posted = false;
            self.card.notify_receive();
        }
    }

    fn set_aside(&mut self, frame: C::Frame) {
        // There is room: there are `MAX_FRAMES` at most.
        let _ = self.spare.push(frame);
    }

    /// Gives a frame to the card; the page frame that it did not take.
    pub fn send(
        &mut self,
        header: FrameHeader,
        page: Option<Outgoing<C::Frame>>,
    ) -> Result<(), Option<C::Frame>> {
        let (bytes, checksum) = page.as_ref().map_or((0, 0), |page| (page.bytes, page.checksum));
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(header.seal(checksum).as_bytes());
        match self.card.send(&head, page.map(|page| (page.frame, page.bytes))) {
            Ok(()) => {
                self.sent.frames += 1;
                self.sent.bytes += HEADER_BYTES as u64 + u64::from(bytes);
                Ok(())
            }
            Err(rejected) => {
                self.no_room += 1;
                Err(rejected.frame)
            }
        }
    }

    /// Sends a part of a page frame that is kept.
    fn send_part(&mut self, header: FrameHeader, number: u32, bytes: u16, token: Token) {
        let Some(frame) = self.take(number) else { return };
        let checksum = self.card.checksum(&frame, bytes);
        match self.send(header, Some(Outgoing { frame, bytes, checksum })) {
            Ok(()) => {
                if let Some(place) = self.tokens.get_mut(place(number)) {
                    *place = Some(token);
                }
            }
            Err(frame) => {
                frame.map(|frame| self.keep(frame));
                // There is room: a page frame has one token at most.
                let _ = self.rejected.push(token);
            }
        }
    }

    fn send_bytes(&mut self, header: FrameHeader, contents: &[u8]) {
        let Some(mut frame) = self.spare.pop() else {
            self.no_room += 1;
            return;
        };
        self.card.write(&mut frame, contents);
        let bytes = u16::try_from(contents.len()).unwrap_or(PAGE);
        let checksum = self.card.checksum(&frame, bytes);
        if let Err(Some(frame)) = self.send(header, Some(Outgoing { frame, bytes, checksum })) {
            self.give_back(frame);
        }
    }
}

/// The port as the state machine sees it, and who is told of events.
pub(super) struct Outlet<'a, C: Card, E> {
    pub port: &'a mut Port<C>,
    pub events: &'a mut E,
}

impl<C: Card, E: FnMut(Event)> Sink<u32> for Outlet<'_, C, E> {
    fn checksum(&self, frame: u32, bytes: u16) -> u32 {
        self.port.kept(frame).map_or(0, |frame| self.port.card.checksum(frame, bytes))
    }

    fn read(&self, frame: u32, bytes: &mut [u8]) {
        if let Some(frame) = self.port.kept(frame) {
            self.port.card.read(frame, bytes);
        }
    }

    fn append(&mut self, from: u32, to: u32, offset: u16, bytes: u16) {
        let Some(source) = self.port.take(from) else { return };
        if let Some(mut target) = self.port.take(to) {
            self.port.card.append(&source, &mut target, offset, bytes);
            self.port.keep(target);
        }
        self.port.keep(source);
    }

    fn put(&mut self, output: Output<'_, u32>) {
        match output {
            Output::Transmit { header, payload: Payload::None } => drop(self.port.send(header, None)),
            Output::Transmit { header, payload: Payload::Bytes(contents) } => {
                self.port.send_bytes(header, contents);
            }
            // The offset is 0: messages that would go in parts are not taken.
            Output::Transmit { header, payload: Payload::Part { frame, bytes, token, .. } } => {
                self.port.send_part(header, frame, bytes, token);
            }
            Output::Bare { parsed, frame } => {
                self.port.bare = self.port.take(frame).map(|frame| (parsed, frame));
            }
            Output::Recycle(frame) => {
                if let Some(frame) = self.port.take(frame) {
                    self.port.give_back(frame);
                }
            }
            Output::Event(event) => (self.events)(event),
            Output::Deliver(delivery) => self.port.delivered.push_back(delivery),
            Output::Done { frame, outcome, .. } => {
                match outcome {
                    Outcome::Acknowledged => self.port.messages.acknowledged += 1,
                    Outcome::Abandoned => self.port.messages.abandoned += 1,
                }
                self.put(Output::Recycle(frame));
            }
            Output::Writable { .. } => {}
        }
    }
}
