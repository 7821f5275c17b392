//! Reliable, ordered channels to the members: for each member and class one in each direction.
//!
//! Messages have 24 bytes and up to a page of contents in a page frame. They are delivered once and in
//! order within their class, as long as their peer is a member; then they are given up. Time is an argument, and
//! frames go to a [`Sink`]. An urgent class goes before all others whenever the card has room; and the pages that the
//! card holds are few, so that what is urgent does not wait in the card's own queue.

mod link;
pub mod receiver;
pub mod rtt;
pub mod sender;

use alloc::boxed::Box;

use heapless::Vec;
use ipc::wire::{
    CLASSES, Class, Fragment, FrameHeader, Identity, Kind, MAX_FRAGMENTS, MAX_PAYLOAD, MESSAGE_BYTES,
    MIN_PAYLOAD, MacAddress, Message as Fields, Parsed, UnumHeader, tag,
};

use crate::membership::Member;
use crate::sink::{Outcome, Output, Payload, Receipt, Sink, Token};
use crate::statistics::{ClassCounters, Histogram, Totals};
use link::{Link, Standing};
use rtt::RtoLimits;
use sender::{Acknowledgement, Part, Piece};

/// How long, how many.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Retransmission time-outs.
    pub rto: RtoLimits,
    /// The most that an acknowledgement waits for a frame to go with, in ticks.
    pub acknowledge_delay: u64,
    /// Frames that a peer may send in each class before the consumer has dealt with the first: `INITIAL_CREDIT` to
    /// `WINDOW` of [`sender`].
    pub windows: [u32; CLASSES],
    /// Page frames that may wait for others before them, all peers together.
    pub waiting_frames: usize,
    /// Frames with contents of the class `Page` that the card may hold at a time.
    pub pages_in_card: usize,
    /// The longest Ethernet payload of the link in bytes; pages that do not fit go as fragments.
    pub mtu: u16,
}

/// A message to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message<F> {
    /// How urgent.
    pub class: Class,
    /// What is delivered with the contents, or alone.
    pub message: [u8; MESSAGE_BYTES],
    /// A page frame and how many of its first bytes: 8 to 4096, a multiple of 8. It must not change until it is done.
    pub contents: Option<(F, u16)>,
}

/// Why a message is not sent; a page frame is the caller's again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SendError {
    /// The node is no member.
    NoSuchMember,
    /// So many frames of its class wait that there is no room; `Output::Writable` tells of room.
    Full,
    /// Its contents have a length that no message has, or need more fragments than there can be.
    Length(u16),
}

/// Why a frame was not taken; its page frame is the caller's again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejected {
    /// It is from no member.
    Stranger,
    /// It is from a member's number, and another card's.
    OtherCard,
    /// It acknowledges what was never sent.
    Unexpected,
    /// The class has counted it.
    Counted,
}

/// The channels to at most `PEERS` members.
#[derive(Debug)]
pub struct Transport<F, const PEERS: usize> {
    limits: Limits,
    /// One is some 20 KiB, in memory that is taken while its peer is a member.
    links: Vec<Box<Link<F>>, PEERS>,
    generation: u32,
    /// Page frames that wait for others before them.
    waiting: usize,
    in_card: usize,
    /// Which link is served first.
    turn: usize,
    /// Of the links that were closed.
    former: Totals,
}

impl<F: Copy, const PEERS: usize> Transport<F, PEERS> {
    /// Without members.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        let former = Totals { retransmissions: 0, round_trips: Histogram::new() };
        Self { limits, waiting: 0, links: Vec::new(), generation: 0, in_card: 0, turn: 0, former }
    }

    /// Whether there is a channel to this life of a node.
    #[must_use]
    pub fn has(&self, life: Member) -> bool {
        self.links.iter().any(|link| link.is_member() && link.life == life)
    }

    /// Opens the channels to a life of a node; whether there was room.
    pub fn open(&mut self, life: Member) -> bool {
        self.links.retain(|link| !link.is_over());
        self.generation = self.generation.wrapping_add(1);
        self.links.push(Box::new(Link::new(life, self.generation, &self.limits))).is_ok()
    }

    /// Closes the channels to the lives that do not `stay`.
    pub fn close(&mut self, stays: impl Fn(Member) -> bool, sink: &mut impl Sink<F>) {
        for link in &mut self.links {
            if link.is_member() && !stays(link.life) {
                link.close(&mut self.waiting, sink);
                link.add_to(&mut self.former);
            }
        }
        self.links.retain(|link| !link.is_over());
    }

    /// Queues a message.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&mut self, node: u16, message: Message<F>) -> Result<(), SendError> {
        let Message { class, message, contents } = message;
        let capacity = self.capacity();
        let link = self.links.iter_mut().find(|link| link.is_member() && link.life.node == node);
        let lane = link.ok_or(SendError::NoSuchMember)?.lane(class);
        let bytes = contents.map_or(0, |(_, bytes)| bytes);
        let is_length = (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&usize::from(bytes)) && bytes % 8 == 0;
        let pieces = usize::from(bytes.div_ceil(capacity)).max(1);
        if contents.is_some() && (!is_length || pieces > MAX_FRAGMENTS) {
            return Err(SendError::Length(bytes));
        }
        if lane.sender.room() < pieces {
            lane.refused = true;
            return Err(SendError::Full);
        }
        let mut offset = 0;
        for index in 0..=u8::MAX {
            let bytes = (bytes - offset).min(capacity);
            let part = contents.map(|(frame, _)| Part { frame, offset, bytes });
            let last = usize::from(index) + 1 == pieces;
            lane.sender.queue(Piece { message, part, fragment: Fragment { index, last } });
            if last {
                break;
            }
            offset += bytes;
        }
        Ok(())
    }

    /// Bytes of contents that one frame carries: a multiple of 8, so that no fragment is shorter than a frame's least.
    fn capacity(&self) -> u16 {
        let room = usize::from(self.limits.mtu).saturating_sub(size_of::<UnumHeader>());
        let bytes = room.clamp(MIN_PAYLOAD, MAX_PAYLOAD) & !7;
        u16::try_from(bytes).unwrap_or(u16::MAX)
    }

    /// Gives up the messages of a class of which nothing was transmitted yet, to all peers.
    pub fn withdraw(&mut self, class: Class, sink: &mut impl Sink<F>) {
        self.links.iter_mut().filter(|link| link.is_member()).for_each(|link| link.withdraw(class, sink));
    }

    /// Notes that a message was dealt with: its sender gets credit for another.
    pub fn consumed(&mut self, receipt: Receipt, now: u64) {
        if let Some(link) = self.links.iter_mut().find(|link| link.generation == receipt.generation) {
            link.lane(receipt.class).receiver.consumed(1, now);
        }
    }

    /// Notes that the card has read what it was given with this token.
    pub fn transmitted(&mut self, token: Token, sink: &mut impl Sink<F>) {
        let Receipt { generation, class } = token.link;
        self.in_card = self.in_card.saturating_sub(usize::from(is_capped(class)));
        if let Some(link) = self.links.iter_mut().find(|link| link.generation == generation) {
            link.lane(class).sender.completed(token.sequence);
            let outcome = if link.is_member() { Outcome::Acknowledged } else { Outcome::Abandoned };
            link.release(class, outcome, sink);
        }
        self.links.retain(|link| !link.is_over());
    }

    /// Takes a frame of a member that is well-formed, addressed to this node and of its epoch.
    ///
    /// # Errors
    /// [`Rejected`]. Else the page frame went to the sink, now or later.
    pub fn receive(
        &mut self,
        parsed: &Parsed,
        frame: F,
        now: u64,
        sink: &mut impl Sink<F>,
    ) -> Result<(), Rejected> {
        let source = parsed.header.source.get();
        let link = self.links.iter_mut().find(|link| link.is_member() && link.life.node == source);
        let link = link.ok_or(Rejected::Stranger)?;
        if link.life.mac != parsed.from {
            return Err(Rejected::OtherCard);
        }
        let next = parsed.header.acknowledgement.get();
        let plain = Acknowledgement { next, selective: 0, limit: None };
        match parsed.kind {
            Kind::Data => {
                link.acknowledge(parsed.acknowledged, plain, now, sink)?;
                link.receive(parsed, frame, now, &self.limits, &mut self.waiting, sink)?;
                return Ok(());
            }
            Kind::Acknowledge | Kind::Probe => {
                let limit = Some(parsed.header.sequence.get());
                let ack = Acknowledgement { selective: parsed.header.tag(), limit, ..plain };
                link.acknowledge(parsed.class, ack, now, sink)?;
                if parsed.kind == Kind::Probe {
                    link.lane(parsed.class).receiver.probed(now);
                }
            }
            _ => return Err(Rejected::Unexpected),
        }
        sink.put(Output::Recycle(frame));
        Ok(())
    }

    /// Looks at the clock, and transmits what the card has `room` for, the most urgent first; the room that is left.
    pub fn poll(
        &mut self,
        now: u64,
        from: (Identity, MacAddress),
        mut room: usize,
        sink: &mut impl Sink<F>,
    ) -> usize {
        self.turn = self.turn.wrapping_add(1);
        let Some(start) = self.turn.checked_rem(self.links.len()) else { return room };
        self.links.iter_mut().filter(|link| link.is_member()).for_each(|link| link.expire(now));
        for class in Class::ALL {
            // One frame of each peer in turn, so that none waits for another's burst.
            let mut some = true;
            while some && room != 0 {
                some = false;
                for at in (start..self.links.len()).chain(0..start) {
                    let sent = room != 0 && self.transmit_one(at, class, now, from, sink);
                    room -= usize::from(sent);
                    some |= sent;
                }
            }
            if class == Class::Control {
                room = self.transmit_due(now, from, room, sink);
            }
        }
        room
    }

    /// Transmits the next frame of a class to a peer, if there is one; whether there was.
    fn transmit_one(
        &mut self,
        at: usize,
        class: Class,
        now: u64,
        (identity, mac): (Identity, MacAddress),
        sink: &mut impl Sink<F>,
    ) -> bool {
        let capped = is_capped(class) && self.in_card >= self.limits.pages_in_card;
        let Some(link) = self.links.get_mut(at).filter(|link| link.is_member()) else { return false };
        let (generation, to) = (link.generation, link.life.mac);
        let lane = link.lane(class);
        let Some(number) = lane.sender.ready() else { return false };
        let has_part = lane.sender.has_part(number);
        if has_part && capped {
            return false;
        }
        let Some(transmission) = lane.sender.transmit(number, now) else { return false };
        let Piece { message, part, fragment } = transmission.piece;
        lane.counters.sent_frames += 1;
        lane.counters.sent_bytes += u64::from(part.map_or(0, |part| part.bytes));
        // The acknowledgement that is due soonest goes with it.
        let acknowledged = Class::ALL
            .into_iter()
            .min_by_key(|&c| link.lane(c).receiver.acknowledge_at().unwrap_or(u64::MAX));
        let acknowledged = acknowledged.unwrap_or(class);
        let acknowledgement = link.lane(acknowledged).receiver.piggyback();
        let fields = Fields {
            acknowledged,
            transmission: transmission.count,
            fragment,
            payload_bytes: part.map_or(0, |part| part.bytes),
            sequence: number,
            acknowledgement,
            message,
            ..Fields::new(Kind::Data, class)
        };
        let payload = match part {
            None => Payload::None,
            Some(Part { frame, offset, bytes }) => {
                self.in_card += usize::from(is_capped(class));
                let token = Token { link: Receipt { generation, class }, sequence: number };
                Payload::Part { frame, offset, bytes, token }
            }
        };
        sink.put(Output::Transmit { header: FrameHeader::new(identity, mac, to, fields), payload });
        true
    }

    /// Transmits acknowledgements and probes that are due; the room that is left.
    fn transmit_due(
        &mut self,
        now: u64,
        (identity, mac): (Identity, MacAddress),
        mut room: usize,
        sink: &mut impl Sink<F>,
    ) -> usize {
        for link in self.links.iter_mut().filter(|link| link.is_member()) {
            let to = link.life.mac;
            for class in Class::ALL {
                if room == 0 {
                    return 0;
                }
                let lane = link.lane(class);
                let probe = core::mem::take(&mut lane.probe);
                let acknowledge = lane.receiver.acknowledge_at().is_some_and(|at| now >= at);
                if !probe && !acknowledge {
                    continue;
                }
                let ack = lane.receiver.acknowledgement();
                let kind = if probe { Kind::Probe } else { Kind::Acknowledge };
                let fields = Fields {
                    sequence: ack.limit.unwrap_or(0),
                    acknowledgement: ack.next,
                    message: tag(ack.selective),
                    ..Fields::new(kind, class)
                };
                *if probe { &mut lane.counters.probes } else { &mut lane.counters.acknowledgements } += 1;
                let header = FrameHeader::new(identity, mac, to, fields);
                sink.put(Output::Transmit { header, payload: Payload::None });
                room -= 1;
            }
        }
        room
    }

    /// When [`Transport::poll`] is due, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.links.iter().filter_map(|link| link.deadline()).min()
    }

    /// Whether something could be transmitted now if the card had room.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let lanes = self.links.iter().filter(|link| link.is_member()).flat_map(|link| &link.lanes);
        lanes.into_iter().any(|lane| lane.sender.ready().is_some())
    }

    /// A member to which a frame was transmitted over and over without being acknowledged.
    #[must_use]
    pub fn unreachable(&self) -> Option<u16> {
        let is_lost = |link: &Link<F>| {
            link.standing == Standing::Member && link.lanes.iter().any(|lane| lane.sender.is_exhausted())
        };
        self.links.iter().find(|link| is_lost(link)).map(|link| link.life.node)
    }

    /// What passed between this node and a member, by class.
    #[must_use]
    pub fn counters(&self, node: u16) -> Option<[ClassCounters; CLASSES]> {
        let link = self.links.iter().find(|link| link.is_member() && link.life.node == node)?;
        Some(link.lanes.each_ref().map(|lane| {
            let (fast_retransmissions, timeout_retransmissions) = lane.sender.retransmissions();
            ClassCounters { fast_retransmissions, timeout_retransmissions, ..lane.counters }
        }))
    }

    /// What passed between this node and all members that there were.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = self.former.clone();
        self.links.iter().filter(|link| link.is_member()).for_each(|link| link.add_to(&mut totals));
        totals
    }

    /// The round trips to a member.
    #[must_use]
    pub fn round_trips(&self, node: u16) -> Option<&Histogram> {
        let link = self.links.iter().find(|link| link.is_member() && link.life.node == node)?;
        Some(&link.round_trips)
    }
}

/// Whether frames of a class count for [`Limits::pages_in_card`].
const fn is_capped(class: Class) -> bool {
    matches!(class, Class::Page)
}
