//! The switch without its sockets: which frame goes to which port, when, and in what state.
//!
//! A deterministic state machine. Time is a parameter, since the switch started, and must not run backwards. What
//! happens to a frame on request depends only on the seed, the two ports, the frame's number at its port, and the
//! impairment. Every draw is made whether it is needed or not: to add one impairment does not change another's
//! choices, and the frames lost at 2 % include those lost at 1 %.
//!
//! From one port to another frames stay in order, but for those held back by `reorder` and the copies that they
//! leave behind.

use super::counters::{Counters, DropReason, LinkState, PortId, PortSet};
use super::impairment::{Impairment, Probability};
use super::mac::MacTable;
use super::wire::{PREFIX_BYTES, Wire};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// The most frames that are delayed from one port to another at any time.
pub const MAX_IN_FLIGHT: usize = 4096;
/// How long a frame is held back to be overtaken, at least and at most.
const HOLD_MICROSECONDS: (u64, u64) = (100, 1000);

/// A copy of a frame that has arrived at a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delivery {
    /// The port where the frame came in.
    pub from: PortId,
    /// The port where it goes out.
    pub to: PortId,
    /// The frame, with its length before it.
    pub bytes: Box<[u8]>,
}

/// What a frame that comes in leads to at once.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Verdict {
    /// The ports that get the frame as it is.
    pub originals: PortSet,
    /// What else is delivered, after the originals.
    pub copies: Vec<Delivery>,
}

struct Port {
    link: LinkState,
    frame_limit: usize,
    /// The ports that get nothing from this one.
    cut_from: PortSet,
    counters: Counters,
}

/// The way from one port to another.
#[derive(Clone, Default)]
struct Path {
    impairment: Impairment,
    /// Frames on the way.
    in_flight: usize,
    /// Of these, those that later frames must not overtake.
    in_order: usize,
    /// When the last of those arrives.
    last_due: Duration,
}

struct InFlight {
    delivery: Delivery,
    /// Later frames may overtake it.
    held: bool,
}

/// Orders frames in flight by when they are due, then by when they set out.
type Due = (Duration, u64);

struct Entry(Due, InFlight);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// The learning switch and its impairments.
pub struct Fabric {
    seed: u64,
    ports: Vec<Port>,
    /// By sending port, then by receiving port.
    paths: Vec<Vec<Path>>,
    macs: MacTable,
    in_flight: BinaryHeap<Reverse<Entry>>,
    /// Frames that ever were in flight.
    sequence: u64,
}

impl Fabric {
    /// A switch with a port for each of `frame_limits`, the longest frame in bytes that the port takes or gives. At
    /// most [`super::counters::MAX_PORTS`]. All links are down.
    #[must_use]
    pub fn new(seed: u64, frame_limits: &[usize]) -> Self {
        let port = |frame_limit: &usize| Port {
            link: LinkState::Down,
            frame_limit: *frame_limit,
            cut_from: PortSet::default(),
            counters: Counters::default(),
        };
        let count = frame_limits.len();
        Self {
            seed,
            ports: frame_limits.iter().map(port).collect(),
            paths: vec![vec![Path::default(); count]; count],
            macs: MacTable::new(count),
            in_flight: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = PortId> + use<> {
        PortId::all(self.ports.len())
    }

    /// A node came to `port` or went.
    pub fn set_link(&mut self, port: PortId, link: LinkState) {
        self.ports[port.index()].link = link;
        if link == LinkState::Down {
            self.macs.forget(port);
        }
    }

    /// Whether a node is at `port`.
    #[must_use]
    pub fn link(&self, port: PortId) -> LinkState {
        self.ports[port.index()].link
    }

    /// Sets what happens to frames from `from` to `to` that come in from now on.
    pub fn set_impairment(&mut self, from: PortId, to: PortId, impairment: Impairment) {
        self.paths[from.index()][to.index()].impairment = impairment;
    }

    /// Lets nothing through between a port in `one` and a port in `other`, in addition to earlier cuts. This takes
    /// the frames in flight, too.
    pub fn cut(&mut self, one: PortSet, other: PortSet) {
        for port in self.ports() {
            let cut = &mut self.ports[port.index()].cut_from;
            if one.contains(port) {
                *cut = cut.union(other);
            }
            if other.contains(port) {
                *cut = cut.union(one);
            }
        }
    }

    /// Undoes all cuts.
    pub fn heal(&mut self) {
        for port in &mut self.ports {
            port.cut_from = PortSet::default();
        }
    }

    /// What has been counted at `port`; not what went out, which only the socket knows.
    #[must_use]
    pub fn counters(&self, port: PortId) -> &Counters {
        &self.ports[port.index()].counters
    }

    /// The node at `port` sent something that is dropped before it is looked at.
    pub fn reject(&mut self, port: PortId, reason: DropReason) {
        self.ports[port.index()].counters.dropped.count(reason);
    }

    /// The node at `from` sent a frame, at the time `now`.
    pub fn ingress(&mut self, now: Duration, from: PortId, wire: Wire<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        let port = &mut self.ports[from.index()];
        let number = port.counters.in_frames;
        port.counters.in_frames += 1;
        port.counters.in_bytes += u64::try_from(wire.frame().len()).unwrap_or(u64::MAX);
        if wire.frame().len() > port.frame_limit {
            port.counters.dropped.count(DropReason::TooLong);
            return verdict;
        }
        if is_group(wire.source()) {
            port.counters.dropped.count(DropReason::Malformed);
            return verdict;
        }
        self.macs.learn(wire.source(), from);
        let known = if is_group(wire.destination()) { None } else { self.macs.find(wire.destination()) };
        match known {
            Some(to) if to == from => port.counters.dropped.count(DropReason::OwnPort),
            Some(to) => self.forward(now, (from, to), number, wire, &mut verdict),
            None => {
                for to in self.ports().filter(|to| *to != from) {
                    if self.link(to) == LinkState::Up {
                        self.forward(now, (from, to), number, wire, &mut verdict);
                    }
                }
            }
        }
        verdict
    }

    /// When the next frame in flight arrives.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.in_flight.peek().map(|Reverse(Entry((due, _), _))| *due)
    }

    /// The next frame in flight that has arrived by `now`.
    pub fn release(&mut self, now: Duration) -> Option<Delivery> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(Entry(_, InFlight { delivery, held })) = self.in_flight.pop()?;
            let (from, to) = (delivery.from, delivery.to);
            let path = &mut self.paths[from.index()][to.index()];
            path.in_flight -= 1;
            path.in_order -= usize::from(!held);
            if self.ports[from.index()].cut_from.contains(to) {
                self.reject(to, DropReason::Cut);
            } else if self.link(to) == LinkState::Down {
                self.reject(to, DropReason::NoLink);
            } else {
                return Some(delivery);
            }
        }
        None
    }

    fn forward(
        &mut self,
        now: Duration,
        (from, to): (PortId, PortId),
        number: u64,
        wire: Wire<'_>,
        verdict: &mut Verdict,
    ) {
        let cut = self.ports[from.index()].cut_from.contains(to);
        let Port { counters, frame_limit, .. } = &mut self.ports[to.index()];
        let path = &mut self.paths[from.index()][to.index()];
        let impairment = path.impairment;
        if cut {
            counters.dropped.count(DropReason::Cut);
            return;
        }
        if wire.frame().len() > *frame_limit {
            counters.dropped.count(DropReason::TooLong);
            return;
        }
        if impairment == Impairment::default() && path.in_order == 0 {
            verdict.originals.insert(to);
            return;
        }
        let mut draw = Draw::new(self.seed, from, to, number);
        let lost = draw.happens(impairment.loss);
        let twice = draw.happens(impairment.duplicate);
        if lost {
            counters.dropped.count(DropReason::Lost);
            return;
        }
        counters.duplicated += u64::from(twice);
        for _ in 0..1 + usize::from(twice) {
            let corrupt = draw.happens(impairment.corrupt);
            let bit = draw.below(wire.frame().len() * 8);
            let held = draw.happens(impairment.reorder);
            let hold = draw.between(HOLD_MICROSECONDS.0, HOLD_MICROSECONDS.1);
            let jitter =
                draw.between(0, u64::try_from(impairment.jitter.as_micros()).unwrap_or(u64::MAX - 1));
            if path.in_flight >= MAX_IN_FLIGHT {
                counters.dropped.count(DropReason::QueueFull);
                continue;
            }
            let own_due = now + impairment.delay + jitter;
            let due = if held {
                counters.reordered += 1;
                own_due + hold
            } else {
                path.last_due = path.last_due.max(own_due);
                path.last_due
            };
            counters.delayed += u64::from(own_due > now);
            counters.corrupted += u64::from(corrupt);
            let at_once = due <= now && path.in_order == 0;
            if at_once && !corrupt && verdict.originals.insert(to) {
                continue;
            }
            let mut bytes = Box::<[u8]>::from(wire.bytes());
            if corrupt && let Some(byte) = bytes.get_mut(PREFIX_BYTES + bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            let delivery = Delivery { from, to, bytes };
            if at_once {
                verdict.copies.push(delivery);
            } else {
                path.in_flight += 1;
                path.in_order += usize::from(!held);
                self.sequence += 1;
                self.in_flight.push(Reverse(Entry((due, self.sequence), InFlight { delivery, held })));
            }
        }
    }
}

const fn is_group(mac: super::wire::Mac) -> bool {
    mac[0] & 1 != 0
}

/// The choices made for one frame on its way from one port to another: a key stream of its own.
struct Draw(ChaCha8Rng);

impl Draw {
    fn new(seed: u64, from: PortId, to: PortId, number: u64) -> Self {
        let mut key = [0; 32];
        let words = [seed, u64::from(from.0), u64::from(to.0), number];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    fn happens(&mut self, probability: Probability) -> bool {
        self.0.next_u64() % u64::from(Probability::ALWAYS.ppm()) < u64::from(probability.ppm())
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.0.next_u64() % end).unwrap_or(0)
    }

    /// A time in whole microseconds, both limits included.
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(least + self.0.next_u64() % (most - least + 1))
    }
}
