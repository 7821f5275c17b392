//! A node on the wire as one state machine: what comes is judged and goes to membership, transport or clock.
//!
//! It has no clock, no card and no memory of its own: times are arguments, frames are names, and all it does goes to
//! a [`Sink`]. All tables have fixed sizes; channels alone are allocated, when their peer becomes a member.

use heapless::Vec;
use ipc::interfaces::interconnect::Drops;
use ipc::wire::{
    ALL_STATIONS, CLASSES, Class, FrameHeader, Identity, Kind, MacAddress, Message as Fields, Parsed,
    WireError, tag,
};

use crate::clock::{ClusterClock, Estimator};
use crate::membership::{self, MAX_HELLO, Member, Membership, Profile, View};
use crate::sink::{Output, Payload, Receipt, Sink, Token};
use crate::statistics::{ClassCounters, Histogram, Totals};
use crate::transport::{self, Message, Rejected, SendError, Transport};

/// So many times as often the cluster's clock is asked for until it is known well.
const CLOCK_HURRY: u64 = 8;

/// The most questions for the time that wait to be answered; more are dropped, and asked again.
const QUESTIONS: usize = 8;

/// A question for the time.
#[derive(Clone, Copy, Debug)]
struct Question {
    from: MacAddress,
    sequence: u32,
    came: u64,
}

/// What a node is.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: u16,
    /// This life of the node.
    pub life: Member,
    /// What it has in common with the others.
    pub profile: Profile,
    /// The times of membership.
    pub timing: membership::Timing,
    /// The limits of the channels.
    pub limits: transport::Limits,
    /// Ticks between two questions for the time.
    pub clock_interval: u64,
}

/// A node with channels to at most `PEERS` others, those closing down included.
#[derive(Debug)]
pub struct Node<F, const PEERS: usize> {
    cluster: u16,
    membership: Membership,
    transport: Transport<F, PEERS>,
    /// The life and the view that the channels are open for.
    channels: Option<(u16, u32, u32)>,
    /// Whether there was room for all of them.
    complete: bool,
    clock: ClusterClock,
    estimator: Estimator,
    leader: Option<Member>,
    clock_interval: u64,
    next_question: u64,
    question: u32,
    asked: Option<u64>,
    questions: Vec<Question, QUESTIONS>,
    drops: Drops,
}

impl<F: Copy, const PEERS: usize> Node<F, PEERS> {
    /// A node that starts at `now`.
    #[must_use]
    pub fn new(config: Config, now: u64) -> Self {
        Self {
            cluster: config.cluster,
            membership: Membership::new(config.life, config.profile, config.timing, now),
            transport: Transport::new(config.limits),
            channels: None,
            complete: false,
            clock: ClusterClock::new(),
            estimator: Estimator::new(),
            leader: None,
            clock_interval: config.clock_interval,
            next_question: now,
            question: 0,
            asked: None,
            questions: Vec::new(),
            drops: Drops::default(),
        }
    }

    /// Takes a frame that came: its first bytes, how long it was, and the page frame with what follows the header.
    pub fn receive(&mut self, now: u64, header: &[u8], bytes: usize, frame: F, sink: &mut impl Sink<F>) {
        match self.judge(header, bytes, frame, sink) {
            Ok(parsed) if parsed.kind == Kind::Hello => {
                self.hear(&parsed, frame, now, sink);
                sink.put(Output::Recycle(frame));
            }
            Ok(parsed) if matches!(parsed.kind, Kind::ClockRequest | Kind::ClockReply) => {
                self.tell_time(&parsed, now);
                sink.put(Output::Recycle(frame));
            }
            Ok(parsed) if matches!(parsed.kind, Kind::EchoRequest | Kind::PageRequest | Kind::Reply) => {
                sink.put(match self.is_member(&parsed) {
                    true => Output::Bare { parsed, frame },
                    false => Output::Recycle(frame),
                });
            }
            Ok(parsed) => {
                if let Err(rejected) = self.transport.receive(&parsed, frame, now, sink) {
                    match rejected {
                        Rejected::Stranger => self.drops.stranger += 1,
                        Rejected::OtherCard => self.drops.duplicate += 1,
                        Rejected::Unexpected => self.drops.unexpected += 1,
                        Rejected::Counted => {}
                    }
                    sink.put(Output::Recycle(frame));
                }
            }
            Err(error) => {
                self.drops.count(&error);
                if error == WireError::OwnSource
                    && let Ok(parsed) = FrameHeader::parse(header, bytes)
                    && parsed.from != self.membership.me().mac
                {
                    self.membership
                        .own_number_taken(parsed.from, &mut |event| sink.put(Output::Event(event)));
                }
                sink.put(Output::Recycle(frame));
            }
        }
    }

    /// Everything that can be said of a frame before it has an effect, the payload's checksum last.
    fn judge(&self, header: &[u8], bytes: usize, frame: F, sink: &impl Sink<F>) -> Result<Parsed, WireError> {
        let parsed = FrameHeader::parse(header, bytes)?;
        let identity = self.identity();
        let me = self.membership.me().mac;
        match parsed.kind {
            Kind::Hello => parsed.check_station(&identity, me)?,
            _ => parsed.check_address(&identity, me)?,
        }
        if parsed.kind != Kind::Hello && parsed.to == ALL_STATIONS {
            return Err(WireError::Destination(parsed.to));
        }
        let checksum = match u16::try_from(parsed.payload_bytes) {
            Ok(0) | Err(_) => 0,
            Ok(bytes) => sink.checksum(frame, bytes),
        };
        if checksum == parsed.payload_checksum { Ok(parsed) } else { Err(WireError::PayloadChecksum) }
    }

    fn hear(&mut self, parsed: &Parsed, frame: F, now: u64, sink: &mut impl Sink<F>) {
        let mut buffer = [0; MAX_HELLO];
        // One that is longer says more than a hello can: not even its beginning is read.
        let bytes = buffer.get_mut(..parsed.payload_bytes).unwrap_or_default();
        sink.read(frame, bytes);
        let from = (parsed.header.source.get(), parsed.from);
        // What is refused is counted there.
        let _ = self.membership.hear(from, parsed.header.sequence.get(), bytes, now, &mut |event| {
            sink.put(Output::Event(event));
        });
        self.keep_channels(now, sink);
    }

    /// Opens and closes channels as the view has it.
    fn keep_channels(&mut self, now: u64, sink: &mut impl Sink<F>) {
        let view = self.membership.view();
        let me = self.membership.me();
        let current = (me.incarnation, view.epoch, view.origin);
        if self.channels == Some(current) && self.complete {
            return;
        }
        // Of a new life of this node, or of another series of views, no channel is an old one.
        let is_same =
            self.channels.is_some_and(|(life, _, origin)| (life, origin) == (me.incarnation, view.origin));
        let stays = |life| is_same && view.contains(life);
        self.transport.close(stays, sink);
        self.channels = Some(current);
        self.complete = true;
        for &life in view.members() {
            if life != me && !self.transport.has(life) {
                // When there is no room, the card still has frames of former members: it is tried again.
                self.complete &= self.transport.open(life);
            }
        }
        let leader = view.members().first().copied();
        if leader != self.leader {
            self.leader = leader;
            self.estimator = Estimator::new();
            self.asked = None;
            self.next_question = now;
        }
        if leader == Some(me) {
            self.clock.lead();
        }
    }

    /// Whether a frame is from a member; else it is counted.
    fn is_member(&mut self, parsed: &Parsed) -> bool {
        match self.membership.view().get(parsed.header.source.get()) {
            Some(member) if member.mac == parsed.from => return true,
            Some(_) => self.drops.duplicate += 1,
            None => self.drops.stranger += 1,
        }
        false
    }

    /// Takes a question for the time, or an answer.
    fn tell_time(&mut self, parsed: &Parsed, now: u64) {
        if !self.is_member(parsed) {
            return;
        }
        let from = parsed.header.source.get();
        let sequence = parsed.header.sequence.get();
        if parsed.kind == Kind::ClockRequest && self.clock.is_set() {
            if self.questions.push(Question { from: parsed.from, sequence, came: now }).is_err() {
                self.drops.unexpected += 1;
            }
            return;
        }
        let is_answer = parsed.kind == Kind::ClockReply
            && sequence == self.question
            && self.leader.is_some_and(|leader| leader.node == from);
        match self.asked.take_if(|_| is_answer) {
            Some(asked) => {
                let held = parsed.header.acknowledgement.get().into();
                self.estimator.sample(asked, parsed.header.tag(), held, now);
                if let Some(estimate) = self.estimator.estimate() {
                    self.clock.steer(now, &estimate, self.clock_interval.saturating_mul(2));
                }
            }
            None => self.drops.unexpected += 1,
        }
    }

    fn transmit(&self, to: MacAddress, fields: Fields, sink: &mut impl Sink<F>) {
        let header = FrameHeader::new(self.identity(), self.membership.me().mac, to, fields);
        sink.put(Output::Transmit { header, payload: Payload::None });
    }

    /// Does what is due, and transmits as far as the card has `room` for frames.
    pub fn poll(&mut self, now: u64, mut room: usize, sink: &mut impl Sink<F>) {
        if now >= self.membership.deadline() {
            if let Some(node) = self.transport.unreachable() {
                self.membership.complain(node, now);
            }
            self.membership.tick(now, &mut |event| sink.put(Output::Event(event)));
        }
        self.keep_channels(now, sink);
        if room != 0
            && let Some((hello, sequence)) = self.membership.hello(now)
        {
            let bytes = hello.encode();
            let payload_bytes = u16::try_from(bytes.len()).unwrap_or(0);
            let fields = Fields { sequence, payload_bytes, ..Fields::new(Kind::Hello, Class::Control) };
            let from = self.membership.me().mac;
            let header = FrameHeader::new(self.identity(), from, ALL_STATIONS, fields);
            sink.put(Output::Transmit { header, payload: Payload::Bytes(&bytes) });
            room -= 1;
        }
        room = self.talk_of_time(now, room, sink);
        self.transport.poll(now, (self.identity(), self.membership.me().mac), room, sink);
    }

    /// Answers questions for the time, and asks one when it is time; the room that is left.
    fn talk_of_time(&mut self, now: u64, mut room: usize, sink: &mut impl Sink<F>) -> usize {
        while room != 0
            && let Some(Question { from, sequence, came }) = self.questions.pop()
        {
            let acknowledgement = u32::try_from(now.saturating_sub(came)).unwrap_or(u32::MAX);
            let message = tag(self.clock.read(came));
            let reply = Fields::new(Kind::ClockReply, Class::Control);
            self.transmit(from, Fields { sequence, acknowledgement, message, ..reply }, sink);
            room -= 1;
        }
        if room != 0
            && now >= self.next_question
            && let Some(leader) = self.leader.filter(|&leader| leader != self.membership.me())
        {
            // At first the clock is not known well, and a guest may be waiting for it.
            let hurry = if self.estimator.is_settled() { 1 } else { CLOCK_HURRY };
            self.next_question = now.saturating_add(self.clock_interval / hurry);
            self.question = self.question.wrapping_add(1);
            self.asked = Some(now);
            let fields =
                Fields { sequence: self.question, ..Fields::new(Kind::ClockRequest, Class::Control) };
            self.transmit(leader.mac, fields, sink);
            room -= 1;
        }
        room
    }

    /// When [`Node::poll`] is due, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        let me = self.membership.me();
        let question = self.leader.filter(|&leader| leader != me).map(|_| self.next_question);
        let others = [self.transport.deadline(), question];
        others.into_iter().flatten().fold(self.membership.deadline(), u64::min)
    }

    /// Whether something could be transmitted now if the card had room.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.transport.is_ready()
    }

    /// Queues a message to a member; [`Node::poll`] transmits it.
    ///
    /// # Errors
    /// [`SendError`]; a page frame is the caller's again.
    pub fn send(&mut self, node: u16, message: Message<F>) -> Result<(), SendError> {
        self.transport.send(node, message)
    }

    /// Gives up the messages of a class of which nothing was transmitted yet, to all members.
    pub fn withdraw(&mut self, class: Class, sink: &mut impl Sink<F>) {
        self.transport.withdraw(class, sink);
    }

    /// Notes that a message that was delivered is dealt with.
    pub fn consumed(&mut self, receipt: Receipt, now: u64) {
        self.transport.consumed(receipt, now);
    }

    /// Notes that the card has read the page frame that it was given with this token.
    pub fn transmitted(&mut self, token: Token, sink: &mut impl Sink<F>) {
        self.transport.transmitted(token, sink);
    }

    /// Asks the others to go on without this node; `Event::Left` follows.
    pub fn leave(&mut self, now: u64, sink: &mut impl Sink<F>) {
        self.membership.leave(now, &mut |event| sink.put(Output::Event(event)));
        self.keep_channels(now, sink);
    }

    /// What a frame of this node says of it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let Member { node, incarnation, .. } = self.membership.me();
        Identity { cluster: self.cluster, epoch: self.membership.view().epoch, node, incarnation }
    }

    /// The view that is installed.
    #[must_use]
    pub const fn view(&self) -> &View {
        self.membership.view()
    }

    /// The membership.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The cluster's clock.
    #[must_use]
    pub const fn clock(&self) -> &ClusterClock {
        &self.clock
    }

    /// How far [`Node::clock`] may be from the first member's at `now`, in ticks, once it is known as well as it can be.
    #[must_use]
    pub fn clock_error(&self, now: u64) -> Option<u64> {
        if self.leader == Some(self.membership.me()) {
            return Some(0);
        }
        let estimate = self.estimator.estimate().filter(|_| self.estimator.is_settled())?;
        Some(estimate.error_at(now).saturating_add(estimate.at(now).abs_diff(self.clock.read(now))))
    }

    /// What passed between this node and a member, by class.
    #[must_use]
    pub fn counters(&self, node: u16) -> Option<[ClassCounters; CLASSES]> {
        self.transport.counters(node)
    }

    /// What passed between this node and all members that there were.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.transport.totals()
    }

    /// The round trips to a member.
    #[must_use]
    pub fn round_trips(&self, node: u16) -> Option<&Histogram> {
        self.transport.round_trips(node)
    }

    /// Frames that were not taken, by reason.
    #[must_use]
    pub const fn drops(&self) -> &Drops {
        &self.drops
    }
}

#[cfg(test)]
mod tests;
