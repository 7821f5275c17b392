//! This node on the wire: it announces itself, hears of others, answers echoes, and counts what it does not take.
//!
//! Every page frame is in one place at any time: posted for reception, on its way out, or spare. What comes goes back from the very frame it landed in; no contents are copied.

mod measuring;
mod pages;

use heapless::Vec;
use ipc::interfaces::interconnect::{Counters, Drops, Peer, Traffic};
use ipc::wire::{
    ALL_STATIONS, CLASSES, Class, FrameHeader, HEADER_BYTES, Identity, Kind, MacAddress, Message, Parsed,
    WireError,
};
use virtio_net::NetError;
use zerocopy::IntoBytes;

use crate::card::{Card, Received};
use crate::exchange::Measurement;
use crate::peers::{Heard, Peers};

/// The most page frames that a station works with.
pub const MAX_FRAMES: usize = 256;
/// Frames that one [`Station::poll`] takes at most, so that a flood does not keep the service from its other duties.
const BATCH: usize = 32;

/// How often and how long, in TSC ticks.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two announcements.
    pub announce: u64,
    /// The silence after which a peer is forgotten.
    pub peer_lifetime: u64,
    /// The least time between two starts of a peer.
    pub peer_settle: u64,
    /// The wait for an answer.
    pub patience: u64,
}

/// What the operator should hear of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A node appeared.
    PeerFound(u16, MacAddress),
    /// A node was started again.
    PeerRestarted(u16, MacAddress),
    /// A node has not been heard of for long.
    PeerLost(u16, MacAddress),
    /// Two cards claim one node number: the known one, the other one.
    DuplicateNode(u16, MacAddress, MacAddress),
    /// A card claims this node's number.
    OwnNumberTaken(MacAddress),
    /// There are more nodes than the table holds; this one is ignored.
    TooManyPeers(u16),
}

/// A page that is to go out, and its checksum.
struct Outgoing<F> {
    frame: F,
    bytes: u16,
    checksum: u32,
}

/// This node on the wire.
pub struct Station<C: Card> {
    card: C,
    identity: Identity,
    timing: Timing,
    peers: Peers,
    measurement: Measurement,
    spare: Vec<C::Frame, MAX_FRAMES>,
    posted: bool,
    next_announcement: u64,
    next_sequences: [u32; CLASSES],
    sent: Traffic,
    received: Traffic,
    dropped: Drops,
    interrupts: u64,
    taken_told: Option<u64>,
    full_told: bool,
}

impl<C: Card> Station<C> {
    /// The station of `identity` at `card`, with page frames of which it takes [`MAX_FRAMES`] at most. Its first
    /// announcement is due at once.
    pub fn new(
        card: C,
        identity: Identity,
        timing: Timing,
        frames: impl IntoIterator<Item = C::Frame>,
    ) -> Self {
        let next_announcement = card.now();
        let mut station = Self {
            card,
            identity,
            timing,
            peers: Peers::new(timing.peer_lifetime, timing.peer_settle),
            measurement: Measurement::new(),
            spare: Vec::new(),
            posted: false,
            next_announcement,
            next_sequences: [0; CLASSES],
            sent: Traffic::default(),
            received: Traffic::default(),
            dropped: Drops::default(),
            interrupts: 0,
            taken_told: None,
            full_told: false,
        };
        for frame in frames.into_iter().take(MAX_FRAMES) {
            station.keep(frame);
        }
        station.refill();
        station
    }

    /// The card.
    pub fn card(&mut self) -> &mut C {
        &mut self.card
    }

    /// Takes what came, as far as a batch goes; how many frames that were.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`]: the card must not be used any more.
    pub fn poll(&mut self, events: &mut impl FnMut(Event)) -> Result<usize, NetError> {
        while let Some(frame) = self.card.reclaim_sent()? {
            if let Some(frame) = frame {
                self.give_back(frame);
            }
        }
        let mut count = 0;
        while count < BATCH {
            let Some(received) = self.card.poll_receive()? else { break };
            count += 1;
            self.take(received, events);
        }
        self.refill();
        Ok(count)
    }

    /// When [`Station::tick`] is due, in TSC ticks.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        let answer = self.measurement.deadline(self.timing.patience);
        answer.map_or(self.next_announcement, |answer| answer.min(self.next_announcement))
    }

    /// Does what is due: announces, forgets the silent, gives up what is not answered.
    pub fn tick(&mut self, events: &mut impl FnMut(Event)) {
        let now = self.card.now();
        self.measurement.give_up(now, self.timing.patience);
        if now >= self.next_announcement {
            self.next_announcement = now.saturating_add(self.timing.announce);
            self.announce(ALL_STATIONS);
            while let Some(peer) = self.peers.forget_one(now) {
                self.full_told = false;
                events(Event::PeerLost(peer.node, peer.mac));
            }
        }
    }

    /// The card, and what passed it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            mac: self.card.mac().0,
            mtu: self.card.mtu(),
            link_up: self.card.link_is_up(),
            sent: self.sent,
            received: self.received,
            dropped: self.dropped,
            interrupts: self.interrupts,
        }
    }

    /// Counts an interrupt that told of a frame.
    pub fn interrupted(&mut self) {
        self.interrupts += 1;
    }

    /// The peers; `milliseconds` converts ticks.
    pub fn peers(&self, milliseconds: impl Fn(u64) -> u64) -> ipc::interfaces::interconnect::Peers {
        let now = self.card.now();
        self.peers
            .iter()
            .map(|peer| Peer {
                node: peer.node,
                mac: peer.mac.0,
                incarnation: peer.incarnation,
                silent_ms: u32::try_from(milliseconds(now.saturating_sub(peer.heard))).unwrap_or(u32::MAX),
            })
            .collect()
    }

    fn take(&mut self, received: Received<C::Frame>, events: &mut impl FnMut(Event)) {
        let Received { header, bytes, frame } = received;
        let judged = FrameHeader::parse(&header, bytes).and_then(|parsed| {
            parsed.check_address(&self.identity, self.card.mac())?;
            self.check_payload(&parsed, &frame)?;
            Ok(parsed)
        });
        match judged {
            Ok(parsed) => {
                self.received.frames += 1;
                self.received.bytes += bytes as u64;
                self.act(&parsed, frame, events);
            }
            Err(error) => {
                self.refuse(&error, &header, events);
                self.give_back(frame);
            }
        }
    }

    fn check_payload(&self, parsed: &Parsed, frame: &C::Frame) -> Result<(), WireError> {
        let checksum = match u16::try_from(parsed.payload_bytes) {
            Ok(0) | Err(_) => 0,
            Ok(bytes) => self.card.checksum(frame, bytes),
        };
        if checksum == parsed.payload_checksum { Ok(()) } else { Err(WireError::PayloadChecksum) }
    }

    /// Counts a frame that is not taken.
    fn refuse(&mut self, error: &WireError, header: &[u8; HEADER_BYTES], events: &mut impl FnMut(Event)) {
        let counter = match error {
            WireError::Truncated { .. } => &mut self.dropped.short,
            WireError::EtherType(_) => &mut self.dropped.foreign,
            WireError::EthernetSource(_)
            | WireError::Version(_)
            | WireError::Key(_)
            | WireError::Kind(_)
            | WireError::Source(_)
            | WireError::PayloadLength { .. } => &mut self.dropped.malformed,
            WireError::HeaderChecksum | WireError::PayloadChecksum => &mut self.dropped.corrupt,
            WireError::Cluster(_) | WireError::Epoch(_) | WireError::Destination(_) => {
                &mut self.dropped.elsewhere
            }
            WireError::OwnSource => &mut self.dropped.duplicate,
        };
        *counter += 1;
        let [_, _, _, _, _, _, mac @ .., _, _] = header.first_chunk::<14>().copied().unwrap_or_default();
        let mac = MacAddress(mac);
        let now = self.card.now();
        // A frame of this very card that comes back is no second node; and one that claims so is told of rarely.
        if *error == WireError::OwnSource
            && mac != self.card.mac()
            && self.taken_told.is_none_or(|told| now.saturating_sub(told) >= self.timing.peer_lifetime)
        {
            self.taken_told = Some(now);
            events(Event::OwnNumberTaken(mac));
        }
    }

    fn act(&mut self, parsed: &Parsed, frame: C::Frame, events: &mut impl FnMut(Event)) {
        // What is for all is answered by none: the answers would be a flood.
        let for_this_node_alone = parsed.to != ALL_STATIONS;
        match parsed.kind {
            Kind::Announce => {
                self.give_back(frame);
                self.hear(parsed, events);
            }
            Kind::EchoRequest if for_this_node_alone => self.echo(parsed, frame),
            Kind::PageRequest if for_this_node_alone => self.supply(parsed, frame),
            Kind::Reply => self.answered(parsed, frame),
            // Reliable delivery and membership are not part of a station.
            _ => {
                self.dropped.unexpected += 1;
                self.give_back(frame);
            }
        }
    }

    fn hear(&mut self, parsed: &Parsed, events: &mut impl FnMut(Event)) {
        let (node, mac) = (parsed.header.source.get(), parsed.from);
        let [low, high, ..] = parsed.header.tag.get().to_le_bytes();
        let incarnation = u16::from_le_bytes([low, high]);
        match self.peers.hear(node, mac, incarnation, self.card.now()) {
            Heard::Known => {}
            Heard::New => {
                events(Event::PeerFound(node, mac));
                // It may be as new to the wire as it is here: it need not wait for the next announcement.
                self.announce(mac);
            }
            Heard::Restarted => {
                events(Event::PeerRestarted(node, mac));
                self.announce(mac);
            }
            Heard::Duplicate { other, first } => {
                self.dropped.duplicate += 1;
                if first {
                    events(Event::DuplicateNode(node, other, mac));
                }
            }
            Heard::NoRoom => {
                self.dropped.unexpected += 1;
                if !self.full_told {
                    self.full_told = true;
                    events(Event::TooManyPeers(node));
                }
            }
        }
    }

    fn announce(&mut self, to: MacAddress) {
        let tag = u64::from(self.identity.incarnation);
        self.send(Message { tag, ..Message::new(Kind::Announce, Class::Control) }, to, None);
    }

    /// The sequence number of the next frame of a class.
    fn next_sequence(&self, class: Class) -> u32 {
        self.next_sequences[class as usize]
    }

    /// Sends a frame with the next sequence number of its class; that number, or `None` when the card does not take
    /// it.
    fn send(&mut self, message: Message, to: MacAddress, page: Option<Outgoing<C::Frame>>) -> Option<u32> {
        let sequence = self.next_sequence(message.class);
        self.next_sequences[message.class as usize] = sequence.wrapping_add(1);
        let (payload_bytes, checksum) = page.as_ref().map_or((0, 0), |page| (page.bytes, page.checksum));
        let message = Message { sequence, payload_bytes, ..message };
        let header = FrameHeader::new(self.identity, self.card.mac(), to, message).seal(checksum);
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(header.as_bytes());
        match self.card.send(&bytes, page.map(|page| (page.frame, page.bytes))) {
            Ok(()) => {
                self.sent.frames += 1;
                self.sent.bytes += HEADER_BYTES as u64 + u64::from(payload_bytes);
                Some(sequence)
            }
            Err(rejected) => {
                self.dropped.no_room += 1;
                if let Some(frame) = rejected.frame {
                    self.give_back(frame);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
