//! The station's part in a measurement of exchanges.

use ipc::interfaces::interconnect::{Exchange, ExchangeAnswer, ExchangeRequest, MAX_EXCHANGES};
use ipc::wire::{Kind, MAX_PAYLOAD, MIN_PAYLOAD, UnumHeader};

use super::{Event, Station};
use crate::card::Card;

/// The MTU of a link whose card does not know it: Ethernet's.
const DEFAULT_MTU: u16 = 1500;

impl<C: Card> Station<C> {
    /// Sends the next request of a running measurement, if it is time for one; whether it did.
    pub fn advance(&mut self, events: &mut impl FnMut(Event)) -> bool {
        let Some(request) = self.measurement.wants() else { return false };
        if !self.send_request(request) {
            self.measurement.not_sent();
            self.tell_if_over(events);
            return false;
        }
        true
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
        let ExchangeRequest { node, payload_bytes, count } = request;
        let payload = usize::from(payload_bytes);
        let mtu = self.card.mtu();
        if self.measurement.is_running() {
            ExchangeAnswer::Busy
        } else if !(1..=MAX_EXCHANGES).contains(&count)
            || (payload != 0 && !(MIN_PAYLOAD..=MAX_PAYLOAD).contains(&payload))
        {
            ExchangeAnswer::OutOfRange
        } else if size_of::<UnumHeader>() + payload > usize::from(mtu.unwrap_or(DEFAULT_MTU)) {
            ExchangeAnswer::TooLong(mtu)
        } else if self.peers.get(node).is_none() {
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

    fn send_request(&mut self, request: ExchangeRequest) -> bool {
        let Some(&crate::peers::Peer { mac, .. }) = self.peers.get(request.node) else { return false };
        let page = match request.payload_bytes {
            0 => None,
            bytes => match self.page_to_send(bytes) {
                Some(page) => Some(page),
                None => {
                    self.dropped.no_room += 1;
                    return false;
                }
            },
        };
        let begun = self.card.now();
        match self.send(Kind::EchoRequest, 0, request.node, mac, page) {
            Some(sequence) => {
                self.measurement.sent(sequence, begun);
                true
            }
            None => false,
        }
    }

    pub(super) fn tell_if_over(&mut self, events: &mut impl FnMut(Event)) {
        if let Exchange::Done(times) = self.measurement.state() {
            if let Some(ready) = self.ready.take() {
                self.give_back(ready.frame);
            }
            events(Event::Measured(times));
        }
    }
}
