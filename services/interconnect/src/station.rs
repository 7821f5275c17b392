//! This node at its card: it drives the state machine, and has part in bare exchanges.
//!
//! Every page frame of the service is in one place at any time: posted for reception, on its way out, the state machine's,
//! in a message that came, or spare. A client's is only sent from. What is asked for in a bare exchange goes back from
//! the very frame that the question landed in; no contents are copied.

mod clients;
mod frames;
mod measuring;
mod messages;
mod port;

use ipc::interfaces::interconnect::{Counters, Drops, MAX_PEERS, Peer, RoundTrips, View};
use ipc::wire::CLASSES;
use virtio_net::NetError;

use crate::card::{Card, Received};
use crate::exchange::Measurement;
use crate::membership::Event;
use crate::node::{Config, Node};
use crate::statistics::Totals;
use clients::Queues;
use port::{Outlet, PageName, Port};

pub use clients::{Alerts, Client};
pub use frames::Frames;

/// Frames that one [`Station::poll`] takes at most, so that a flood does not keep the service from its other duties.
const BATCH: usize = 32;
/// The MTU of a link whose card does not know it: Ethernet's.
pub const DEFAULT_MTU: u16 = 1500;

/// The page frames that a station works with.
pub struct Pool {
    /// The service's.
    pub frames: Frames,
    /// Whether the others are the guest's, whose services send and receive messages.
    pub is_guests: bool,
}

/// This node at its card.
pub struct Station<C: Card> {
    node: Node<PageName, MAX_PEERS>,
    port: Port<C>,
    /// Whether a client was told that there is no page frame in exchange.
    lacks_frames: bool,
    measurement: Measurement,
    /// The wait for the answer of a bare exchange, in TSC ticks.
    patience: u64,
    next_sequences: [u32; CLASSES],
    /// When the state machine is due.
    due: u64,
    unexpected: u64,
    interrupts: u64,
}

impl<C: Card> Station<C> {
    /// The station of a node at its `card`, with page frames of a pool. An answer of a bare exchange is waited for
    /// `patience` ticks.
    pub fn new(card: C, config: Config, patience: u64, pool: Pool) -> Self {
        let Pool { frames, is_guests } = pool;
        Self {
            node: Node::new(config, card.now()),
            port: Port::new(card, frames, Queues::new(is_guests)),
            lacks_frames: false,
            measurement: Measurement::new(),
            patience,
            next_sequences: [0; CLASSES],
            due: 0,
            unexpected: 0,
            interrupts: 0,
        }
    }

    /// The card.
    pub fn card(&mut self) -> &mut C {
        &mut self.port.card
    }

    /// Takes what came, as far as a batch goes; how many frames that were.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`]: the card must not be used any more.
    pub fn poll(&mut self, events: &mut impl FnMut(Event)) -> Result<usize, NetError> {
        while let Some(slot) = self.port.card.reclaim_sent()? {
            if let Some(token) = self.port.has_left(slot) {
                self.node.transmitted(token, &mut Outlet { port: &mut self.port, events });
                self.due = 0;
            }
        }
        let mut count = 0;
        while count < BATCH {
            let Some(received) = self.port.card.poll_receive()? else { break };
            count += 1;
            self.take(received, events);
        }
        self.port.refill();
        if self.lacks_frames && self.may_exchange() {
            self.lacks_frames = false;
            self.port.queues.alert(Client::Memory);
        }
        Ok(count)
    }

    fn take(&mut self, received: Received, events: &mut impl FnMut(Event)) {
        let Received { header, bytes, frame } = received;
        let now = self.port.card.now();
        let dropped = self.node.drops().total();
        let name = PageName::own(frame);
        self.node.receive(now, &header, bytes, name, &mut Outlet { port: &mut self.port, events });
        self.drop_unfit();
        if self.node.drops().total() == dropped {
            self.port.received.frames += 1;
            self.port.received.bytes += bytes as u64;
        }
        match self.port.bare.take() {
            Some((parsed, frame)) => self.take_bare(&parsed, frame),
            None => self.due = 0,
        }
    }

    /// When [`Station::tick`] is due, in TSC ticks.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.measurement.deadline(self.patience).map_or(self.due, |answer| answer.min(self.due))
    }

    /// Does what is due: what the state machine has to do and to send, and gives up what is not answered.
    pub fn tick(&mut self, events: &mut impl FnMut(Event)) {
        let now = self.port.card.now();
        self.measurement.give_up(now, self.patience);
        if now < self.due {
            return;
        }
        let room = self.port.card.send_room();
        self.node.poll(now, room, &mut Outlet { port: &mut self.port, events });
        while let Some(token) = self.port.was_rejected() {
            self.node.transmitted(token, &mut Outlet { port: &mut self.port, events });
        }
        // What is ready and had no room goes when the card has read something, which nobody tells of.
        self.due = if self.node.is_ready() { now } else { self.node.deadline() };
    }

    /// The state machine.
    #[must_use]
    pub const fn node(&self) -> &Node<PageName, MAX_PEERS> {
        &self.node
    }

    /// The card, and what passed it; `nanoseconds` converts ticks.
    pub fn counters(&self, nanoseconds: impl Fn(u64) -> u64) -> Counters {
        let dropped = *self.node.drops();
        let Totals { retransmissions, round_trips } = self.node.totals();
        Counters {
            mac: self.port.card.mac().0,
            mtu: self.port.card.mtu(),
            link_up: self.port.card.link_is_up(),
            sent: self.port.sent,
            received: self.port.received,
            dropped: Drops {
                unexpected: dropped.unexpected + self.unexpected,
                no_room: self.port.no_room,
                ..dropped
            },
            refused: self.node.membership().refusals().iter().sum(),
            messages: self.port.messages,
            interrupts: self.interrupts,
            retransmissions,
            round_trips: RoundTrips {
                count: round_trips.total(),
                median_ns: nanoseconds(round_trips.percentile(50)),
                percentile_99_ns: nanoseconds(round_trips.percentile(99)),
            },
            copies: self.port.copies,
        }
    }

    /// Whom to tell that there is something to ask for; told once.
    pub fn alerts(&mut self) -> Alerts {
        self.port.queues.alerts()
    }

    /// Whether somebody is to be told.
    #[must_use]
    pub const fn has_alerts(&self) -> bool {
        self.port.queues.has_alerts()
    }

    /// Counts an interrupt that told of a frame.
    pub fn interrupted(&mut self) {
        self.interrupts += 1;
    }

    /// The nodes that were heard of lately; `milliseconds` converts ticks.
    pub fn peers(&self, milliseconds: impl Fn(u64) -> u64) -> ipc::interfaces::interconnect::Peers {
        let now = self.port.card.now();
        let peers = self.node.membership().peers();
        peers
            .map(|(life, heard)| Peer {
                node: life.node,
                mac: life.mac.0,
                incarnation: life.incarnation,
                is_member: self.node.view().contains(life),
                silent_ms: u32::try_from(milliseconds(now.saturating_sub(heard))).unwrap_or(u32::MAX),
            })
            .collect()
    }

    /// The view that is installed, and the cluster's clock; `nanoseconds` converts ticks.
    pub fn view(&self, nanoseconds: impl Fn(u64) -> u64) -> View {
        let view = self.node.view();
        let me = self.node.membership().me();
        View {
            epoch: view.epoch,
            members: view.members().iter().map(|member| member.node).collect(),
            node: me.node,
            incarnation: me.incarnation,
            may_act: self.node.membership().is_quorate(),
            clock_error_ns: self.node.clock_error(self.port.card.now()).map(nanoseconds),
        }
    }

    fn mtu(&self) -> u16 {
        self.port.card.mtu().unwrap_or(DEFAULT_MTU)
    }
}

#[cfg(test)]
mod tests;
