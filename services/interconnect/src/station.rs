//! This node at its card: it drives the state machine, and has part in bare exchanges.
//!
//! Every page frame is in one place at any time: posted for reception, on its way out, kept under its number for the
//! state machine or a client, or spare. What is asked for in a bare exchange goes back from the very frame that the
//! question landed in; no contents are copied.

mod measuring;
mod messages;
mod port;

use ipc::interfaces::interconnect::{Counters, Drops, MAX_PEERS, Peer, View};
use ipc::wire::CLASSES;
use virtio_net::NetError;

use crate::card::{Card, Received};
use crate::exchange::Measurement;
use crate::membership::Event;
use crate::node::{Config, Node};
use messages::Lent;
use port::{Outlet, Port};

pub use port::MAX_FRAMES;

/// Frames that one [`Station::poll`] takes at most, so that a flood does not keep the service from its other duties.
const BATCH: usize = 32;
/// The MTU of a link whose card does not know it: Ethernet's.
pub const DEFAULT_MTU: u16 = 1500;

/// This node at its card.
pub struct Station<C: Card> {
    node: Node<u32, MAX_PEERS>,
    port: Port<C>,
    lent: Lent,
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
    /// The station of a node at its `card`, with page frames whose numbers are below [`MAX_FRAMES`]. An answer of a
    /// bare exchange is waited for `patience` ticks.
    pub fn new(card: C, config: Config, patience: u64, frames: impl IntoIterator<Item = C::Frame>) -> Self {
        Self {
            node: Node::new(config, card.now()),
            port: Port::new(card, frames),
            lent: Lent::new(),
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
        while let Some(frame) = self.port.card.reclaim_sent()? {
            if let Some(token) = frame.and_then(|frame| self.port.was_sent(frame)) {
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
        Ok(count)
    }

    fn take(&mut self, received: Received<C::Frame>, events: &mut impl FnMut(Event)) {
        let Received { header, bytes, frame } = received;
        let now = self.port.card.now();
        let dropped = self.node.drops().total();
        let number = self.port.keep(frame);
        self.node.receive(now, &header, bytes, number, &mut Outlet { port: &mut self.port, events });
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
    pub const fn node(&self) -> &Node<u32, MAX_PEERS> {
        &self.node
    }

    /// The card, and what passed it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let dropped = *self.node.drops();
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
        }
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
