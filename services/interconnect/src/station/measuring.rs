//! The station's part in a measurement of exchanges: what it asks, and what it answers.

use ipc::interfaces::interconnect::{Exchange, ExchangeAnswer, ExchangeRequest, MAX_EXCHANGES, Shape};
use ipc::wire::{Class, Kind, Message, PAGE_MTU, Parsed};

use super::{Outgoing, Station};
use crate::card::Card;
use crate::exchange::{Contents, Outstanding};
use crate::peers::Peer;

/// The MTU of a link whose card does not know it: Ethernet's.
const DEFAULT_MTU: u16 = 1500;

/// What the page of a request, or the page that it asks for, is filled from: something else for each.
fn seed(node: u16, incarnation: u16, sequence: u32) -> u64 {
    u64::from(incarnation) << 48 | u64::from(node) << 32 | u64::from(sequence)
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

    /// Whether an answer is waited for.
    #[must_use]
    pub const fn is_expecting(&self) -> bool {
        self.measurement.is_expecting()
    }

    /// Whether [`Station::advance`] has something to send.
    #[must_use]
    pub fn can_advance(&self) -> bool {
        self.measurement.wants().is_some()
    }

    /// Begins a measurement.
    pub fn begin_exchange(&mut self, request: ExchangeRequest) -> ExchangeAnswer {
        let mtu = self.card.mtu();
        let carries_page = usize::from(mtu.unwrap_or(DEFAULT_MTU)) >= PAGE_MTU;
        if self.measurement.is_running() {
            ExchangeAnswer::Busy
        } else if !(1..=MAX_EXCHANGES).contains(&request.count) {
            ExchangeAnswer::OutOfRange
        } else if request.shape != Shape::Short && !carries_page {
            ExchangeAnswer::TooLong(mtu)
        } else if self.peers.get(request.node).is_none() {
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

    fn send_request(&mut self, request: ExchangeRequest) -> Option<Outstanding> {
        let &Peer { mac, .. } = self.peers.get(request.node)?;
        let (kind, class) = match request.shape {
            Shape::Short => (Kind::EchoRequest, Class::Control),
            Shape::Page => (Kind::EchoRequest, Class::Bulk),
            Shape::Fetch => (Kind::PageRequest, Class::Control),
        };
        let seed = seed(self.identity.node, self.identity.incarnation, self.next_sequence(class));
        let page = match request.shape {
            Shape::Short | Shape::Fetch => None,
            Shape::Page => match self.spare.pop() {
                Some(frame) => Some(self.written(frame, seed)),
                None => {
                    self.dropped.no_room += 1;
                    return None;
                }
            },
        };
        let begun = self.card.now();
        let sequence = self.send(Message { tag: seed, ..Message::new(kind, class) }, mac, page)?;
        Some(Outstanding { sequence, begun, seed })
    }

    /// Sends a payload back from the frame where it landed.
    pub(super) fn echo(&mut self, parsed: &Parsed, frame: C::Frame) {
        let page = match u16::try_from(parsed.payload_bytes) {
            Ok(bytes @ 1..) => Some(Outgoing { frame, bytes, checksum: parsed.payload_checksum }),
            Ok(0) | Err(_) => {
                self.give_back(frame);
                None
            }
        };
        self.reply(parsed, page);
    }

    /// Sends the page that is asked for, in the frame that the request came with.
    pub(super) fn supply(&mut self, parsed: &Parsed, frame: C::Frame) {
        let page = self.written(frame, parsed.header.tag.get());
        self.reply(parsed, Some(page));
    }

    fn reply(&mut self, parsed: &Parsed, page: Option<Outgoing<C::Frame>>) {
        let class = if page.is_some() { Class::Bulk } else { Class::Control };
        let acknowledgement = parsed.header.sequence.get();
        self.send(Message { acknowledgement, ..Message::new(Kind::Reply, class) }, parsed.from, page);
    }

    /// Takes an answer.
    pub(super) fn answered(&mut self, parsed: &Parsed, frame: C::Frame) {
        let now = self.card.now();
        let header = &parsed.header;
        let awaited =
            self.measurement.awaited(header.source.get(), header.acknowledgement.get(), parsed.payload_bytes);
        match awaited {
            Some(Outstanding { begun, seed, .. }) => {
                let right = parsed.payload_bytes == 0 || self.card.holds(&frame, seed);
                let contents = if right { Contents::Right } else { Contents::Wrong };
                self.measurement.answered(now.saturating_sub(begun), contents);
            }
            None => self.dropped.unexpected += 1,
        }
        self.give_back(frame);
    }
}
