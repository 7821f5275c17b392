//! The station's part in a measurement of exchanges: what it asks, and what it answers.

use ipc::interfaces::interconnect::{Exchange, ExchangeAnswer, ExchangeRequest, MAX_EXCHANGES, Shape};
use ipc::wire::{Class, FrameHeader, Kind, MacAddress, Message, PAGE_MTU, Parsed, tag};

use super::Station;
use super::port::Leaving;
use crate::PAGE;
use crate::card::{Card, Part};
use crate::exchange::{Contents, Outstanding};

/// What the page of a request, or the page that it asks for, is filled from: something else for each.
fn seed(node: u16, incarnation: u16, sequence: u32) -> u64 {
    u64::from(incarnation) << 48 | u64::from(node) << 32 | u64::from(sequence)
}

/// The first bytes of a page frame that are to go out, and their checksum.
struct Page {
    frame: u32,
    bytes: u16,
    checksum: u32,
}

impl<C: Card> Station<C> {
    /// Sends the next request of a running measurement, if it is time for one; whether it did.
    pub fn advance(&mut self) -> bool {
        let Some(request) = self.measurement.wants() else { return false };
        match self.send_request(request) {
            Some(outstanding) => {
                self.measurement.sent(outstanding);
                true
            }
            None => {
                self.measurement.not_sent();
                false
            }
        }
    }

    /// Whether an answer is waited for, a measurement's or a client's.
    #[must_use]
    pub fn is_expecting(&self) -> bool {
        self.measurement.is_expecting() || self.is_asking()
    }

    /// Whether [`Station::advance`] has something to send.
    #[must_use]
    pub fn can_advance(&self) -> bool {
        self.measurement.wants().is_some()
    }

    /// Begins a measurement.
    pub fn begin_exchange(&mut self, request: ExchangeRequest) -> ExchangeAnswer {
        let carries_page = usize::from(self.mtu()) >= PAGE_MTU;
        if self.measurement.is_running() {
            ExchangeAnswer::Busy
        } else if !(1..=MAX_EXCHANGES).contains(&request.count) {
            ExchangeAnswer::OutOfRange
        } else if request.shape != Shape::Short && !carries_page {
            ExchangeAnswer::TooLong(self.port.card.mtu())
        } else if self.member(request.node).is_none() {
            ExchangeAnswer::NoSuchPeer
        } else {
            self.measurement.begin(request);
            ExchangeAnswer::Begun
        }
    }

    /// How the measurement that was begun last stands.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        self.measurement.state()
    }

    /// The card of another member.
    fn member(&self, node: u16) -> Option<MacAddress> {
        let me = self.node.membership().me();
        self.node.view().get(node).filter(|&member| member != me).map(|member| member.mac)
    }

    fn send_request(&mut self, request: ExchangeRequest) -> Option<Outstanding> {
        let mac = self.member(request.node)?;
        let (kind, class) = match request.shape {
            Shape::Short => (Kind::EchoRequest, Class::Control),
            Shape::Page => (Kind::EchoRequest, Class::Page),
            Shape::Fetch => (Kind::PageRequest, Class::Control),
        };
        let identity = self.node.identity();
        let seed = seed(identity.node, identity.incarnation, self.next_sequence(class));
        let page = match request.shape {
            Shape::Short | Shape::Fetch => None,
            Shape::Page => match self.port.frames.pop() {
                Some(frame) => Some(self.written(frame, seed)),
                None => {
                    self.port.no_room += 1;
                    return None;
                }
            },
        };
        let begun = self.port.card.now();
        let sequence =
            self.send_bare(Message { message: tag(seed), ..Message::new(kind, class) }, mac, page)?;
        Some(Outstanding { sequence, begun, seed })
    }

    /// Sends a payload back from the frame where it landed.
    fn echo(&mut self, parsed: &Parsed, frame: u32) {
        let page = match u16::try_from(parsed.payload_bytes) {
            Ok(bytes @ 1..) => Some(Page { frame, bytes, checksum: parsed.payload_checksum }),
            Ok(0) | Err(_) => {
                self.port.give_back(frame);
                None
            }
        };
        self.reply(parsed, page);
    }

    /// Sends the page that is asked for, in the frame that the request came with.
    fn supply(&mut self, parsed: &Parsed, frame: u32) {
        let page = self.written(frame, parsed.header.tag());
        self.reply(parsed, Some(page));
    }

    fn reply(&mut self, parsed: &Parsed, page: Option<Page>) {
        let class = if page.is_some() { Class::Page } else { Class::Control };
        let acknowledgement = parsed.header.sequence.get();
        self.send_bare(Message { acknowledgement, ..Message::new(Kind::Reply, class) }, parsed.from, page);
    }

    /// Takes an answer.
    fn answered(&mut self, parsed: &Parsed, frame: u32) {
        let now = self.port.card.now();
        let header = &parsed.header;
        let awaited =
            self.measurement.awaited(header.source.get(), header.acknowledgement.get(), parsed.payload_bytes);
        match awaited {
            Some(Outstanding { begun, seed, .. }) => {
                let right = parsed.payload_bytes == 0 || self.port.card.holds(frame, seed);
                let contents = if right { Contents::Right } else { Contents::Wrong };
                self.measurement.answered(now.saturating_sub(begun), contents);
            }
            None => self.unexpected += 1,
        }
        self.port.give_back(frame);
    }

    /// Takes a frame of a bare exchange that the state machine has judged.
    pub(super) fn take_bare(&mut self, parsed: &Parsed, frame: u32) {
        match parsed.kind {
            Kind::EchoRequest => self.echo(parsed, frame),
            Kind::PageRequest => self.supply(parsed, frame),
            _ => self.answered(parsed, frame),
        }
    }

    /// Sends a frame with the next sequence number of its class; that number, or `None` when the card does not take
    /// it.
    fn send_bare(&mut self, message: Message, to: MacAddress, page: Option<Page>) -> Option<u32> {
        let sequence = self.next_sequence(message.class);
        if let Some(next) = self.next_sequences.get_mut(message.class as usize) {
            *next = sequence.wrapping_add(1);
        }
        let payload_bytes = page.as_ref().map_or(0, |page| page.bytes);
        let message = Message { sequence, payload_bytes, ..message };
        let header = FrameHeader::new(self.node.identity(), self.port.card.mac(), to, message);
        let is_sent = match page {
            None => self.port.send(header, None, Leaving::Header),
            Some(Page { frame, bytes, checksum }) => self.port.send_page(header, frame, bytes, checksum),
        };
        is_sent.then_some(sequence)
    }

    /// A page of test contents that is to go out.
    fn written(&mut self, frame: u32, seed: u64) -> Page {
        self.port.card.fill(frame, seed);
        Page { frame, bytes: PAGE, checksum: self.port.card.checksum(Part { frame, offset: 0, bytes: PAGE }) }
    }

    /// The sequence number of the next frame of a class.
    fn next_sequence(&self, class: Class) -> u32 {
        self.next_sequences.get(class as usize).copied().unwrap_or(0)
    }
}
