//! A network that loses, repeats, delays, reorders, corrupts and cuts, and the nodes on it. One tick is a microsecond.

use std::boxed::Box;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::string::String;
use std::vec;
use std::vec::Vec;

use ipc::wire::{ALL_STATIONS, Class, HEADER_BYTES, MacAddress};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::application::{self, Application, contents};
use super::surroundings::{Held, Leaving, QUEUE, Surroundings, WAITING};
use crate::membership::{Event, Member, Profile, Timing, View};
use crate::node::{Config, Node};
use crate::sink::{Delivery, Receipt};
use crate::transport::rtt::RtoLimits;
use crate::transport::{Limits, Message, SendError};

pub const TIMING: Timing = Timing {
    hello: 20_000,
    hello_gap: 1_000,
    suspect: 90_000,
    death: 200_000,
    proposal: 60_000,
    quiet: 130_000,
    form: 200_000,
};

pub const LIMITS: Limits = Limits {
    rto: RtoLimits { initial: 10_000, min: 2_000, max: 60_000 },
    acknowledge_delay: 500,
    windows: [32, 64, 32, 64],
    waiting_frames: WAITING,
    pages_in_card: 8,
    mtu: 9000,
};

pub const PROFILE: Profile = Profile { image: 7, features: 11, expected: None };

/// What the network does to a frame: of a million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lose: u32,
    pub repeat: u32,
    pub corrupt: u32,
    /// Ticks that a frame takes at least, and at most longer.
    pub delay: u64,
    pub jitter: u64,
}

/// Whether a frame from one node to another is lost.
pub type Cut = Box<dyn Fn(usize, usize, &[u8]) -> bool>;

/// A machine in the rack: it may be off.
pub struct Host {
    pub node: Node<u32, 20>,
    pub around: Surroundings,
    pub application: Application,
    pub on: bool,
    pub mac: MacAddress,
    /// Messages that the application has not dealt with.
    backlog: VecDeque<Receipt>,
    starts: u16,
    woken_for: u64,
    /// How much its clock is ahead.
    pub clock_ahead: u64,
    /// The last epoch of this life.
    epoch: u32,
    /// What its reading of the cluster's clock was last.
    last_read: Option<u64>,
}

enum What {
    Arrive(usize, Vec<u8>),
    Leave(usize, u16),
    Wake(usize),
}

pub struct World {
    seed: u64,
    pub now: u64,
    pub random: ChaCha8Rng,
    pub faults: Faults,
    pub hosts: Vec<Host>,
    /// Whether frames pass from one to the other.
    pub cut: Cut,
    /// Whether views are forged, so that they need not agree.
    pub forged: bool,
    /// A node whose messages are not looked at.
    pub distrusted: Option<u16>,
    /// What each node starts as; its incarnation is another each time.
    pub configs: Vec<Config>,
    /// All views that were ever installed.
    pub views: BTreeMap<(u32, u32), View>,
    /// Everything a node said, for tests that replay.
    pub recorded: Vec<Vec<u8>>,
    pub record: bool,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    pending: BTreeMap<usize, What>,
    order: u64,
}

pub fn mac(number: usize) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, u8::try_from(number).unwrap()])
}

fn config(number: usize, incarnation: u16, profile: Profile, limits: Limits) -> Config {
    let node = u16::try_from(number).unwrap() + 1;
    Config {
        cluster: 1,
        life: Member { node, incarnation, mac: mac(number) },
        profile,
        timing: TIMING,
        limits,
        clock_interval: 50_000,
    }
}

impl World {
    pub fn new(seed: u64, count: usize, profile: Profile, limits: Limits, faults: Faults) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let hosts = (0..count)
            .map(|number| {
                let clock_ahead = random.random_range(0..1 << 40);
                Host {
                    node: Node::new(config(number, 100, profile, limits), clock_ahead),
                    around: Surroundings::default(),
                    application: Application::default(),
                    on: true,
                    mac: mac(number),
                    backlog: VecDeque::new(),
                    starts: 1,
                    woken_for: u64::MAX,
                    clock_ahead,
                    epoch: 0,
                    last_read: None,
                }
            })
            .collect();
        let mut world = Self {
            seed,
            now: 0,
            random,
            faults,
            hosts,
            cut: Box::new(|_, _, _| false),
            forged: false,
            distrusted: None,
            configs: (0..count).map(|number| config(number, 0, profile, limits)).collect(),
            views: BTreeMap::new(),
            recorded: vec![],
            record: false,
            queue: BinaryHeap::new(),
            pending: BTreeMap::new(),
            order: 0,
        };
        (0..count).for_each(|at| world.at(0, What::Wake(at)));
        world
    }

    fn at(&mut self, time: u64, what: What) {
        self.order += 1;
        let key = usize::try_from(self.order).unwrap();
        self.pending.insert(key, what);
        self.queue.push(Reverse((time, self.order, key)));
    }

    /// Starts a node anew, in another life, with empty memory.
    pub fn restart(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let mut config = self.configs[at];
        config.life.incarnation = (host.starts + 1) * 100;
        host.starts += 1;
        host.on = true;
        host.epoch = 0;
        host.node = Node::new(config, self.now + host.clock_ahead);
        host.last_read = None;
        host.around.reset();
        host.backlog.clear();
        host.woken_for = u64::MAX;
        self.at(self.now, What::Wake(at));
    }

    pub fn stop(&mut self, at: usize) {
        self.hosts[at].on = false;
    }

    /// Lets time pass, and the nodes do what they do.
    pub fn run(&mut self, ticks: u64) {
        let end = self.now + ticks;
        while let Some(&Reverse((time, _, key))) = self.queue.peek()
            && time <= end
        {
            self.queue.pop();
            self.now = time;
            let what = self.pending.remove(&key).unwrap();
            self.happen(what);
        }
        self.now = end;
    }

    /// Runs until something holds, or fails when it takes too long.
    pub fn run_until(&mut self, limit: u64, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !holds(self) {
            assert!(self.now < end, "seed {}: not within {limit}: {what}\n{}", self.seed, self.describe());
            self.run(5_000);
        }
    }

    pub fn describe(&self) -> String {
        let lines = self.hosts.iter().map(|host| {
            let events = &host.around.events[host.around.events.len().saturating_sub(8)..];
            let (view, drops) = (host.node.view(), host.node.drops());
            let who: Vec<u16> = view.members().iter().map(|m| m.node).collect();
            std::format!("on {} epoch {} of {who:?}, {events:?}\n{drops:?}\n", host.on, view.epoch)
        });
        lines.collect()
    }

    fn happen(&mut self, what: What) {
        let at = match what {
            What::Arrive(at, bytes) => {
                self.arrive(at, &bytes);
                at
            }
            What::Leave(at, starts) => {
                if self.hosts[at].starts == starts {
                    self.leave_card(at);
                }
                at
            }
            What::Wake(at) => {
                if self.hosts[at].woken_for == self.now {
                    self.hosts[at].woken_for = u64::MAX;
                }
                at
            }
        };
        self.attend(at);
    }

    /// A frame reaches a card.
    pub fn arrive(&mut self, at: usize, bytes: &[u8]) {
        let host = &mut self.hosts[at];
        if !host.on {
            return;
        }
        let Some(frame) = host.around.free() else { return };
        host.around.hand(frame, Held::Free, Held::Machine);
        let mut header = [0; HEADER_BYTES];
        let split = bytes.len().min(HEADER_BYTES);
        header[..split].copy_from_slice(&bytes[..split]);
        let rest = bytes[split..].len().min(4096);
        host.around.memory[frame as usize][..rest].copy_from_slice(&bytes[split..split + rest]);
        let now = self.now + host.clock_ahead;
        host.node.receive(now, &header, bytes.len(), frame, &mut host.around);
    }

    /// The card reads the next frame from memory and sends it.
    fn leave_card(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let Some(Leaving { header, bytes, part }) = host.around.leaving.pop_front() else { return };
        let mut frame = header.to_vec();
        frame.extend(bytes);
        if let Some((number, offset, bytes, token)) = part {
            assert_eq!(host.around.held[number as usize], Held::Sending, "the card reads what is not its");
            frame.extend(
                &host.around.memory[number as usize][usize::from(offset)..usize::from(offset + bytes)],
            );
            host.node.transmitted(token, &mut host.around);
        }
        if self.hosts[at].on {
            self.carry(at, &frame);
        }
    }

    /// Carries a frame to whom it is for.
    pub fn carry(&mut self, from: usize, frame: &[u8]) {
        if self.record && self.recorded.len() < 20_000 {
            self.recorded.push(frame.to_vec());
        }
        for to in 0..self.hosts.len() {
            let is_for = frame[..6] == ALL_STATIONS.0 || frame[..6] == self.hosts[to].mac.0;
            if to == from || !is_for || (self.cut)(from, to, frame) {
                continue;
            }
            let Faults { lose, repeat, corrupt, delay, jitter } = self.faults;
            if self.random.random_ratio(lose, 1_000_000) {
                continue;
            }
            for _ in 0..1 + u32::from(self.random.random_ratio(repeat, 1_000_000)) {
                let mut frame = frame.to_vec();
                if self.random.random_ratio(corrupt, 1_000_000) {
                    let bit = self.random.random_range(0..frame.len() * 8);
                    frame[bit / 8] ^= 1 << (bit % 8);
                }
                let late = self.now + delay + self.random.random_range(0..=jitter);
                self.at(late, What::Arrive(to, frame));
            }
        }
    }

    /// Polls a node, and has its application and its card do what they do.
    pub fn attend(&mut self, at: usize) {
        if !self.hosts[at].on {
            return;
        }
        self.consume(at);
        let host = &mut self.hosts[at];
        let now = self.now + host.clock_ahead;
        let before = host.around.leaving.len();
        host.node.poll(now, QUEUE - before, &mut host.around);
        let (after, starts) = (host.around.leaving.len(), host.starts);
        // The card takes a tick a frame, and those before it first.
        for place in before..after {
            self.at(self.now + 1 + place as u64, What::Leave(at, starts));
        }
        self.observe(at);
        let host = &mut self.hosts[at];
        let busy = !host.backlog.is_empty() || !host.around.delivered.is_empty();
        let mut wake = host.node.deadline().saturating_sub(host.clock_ahead).max(self.now + 1);
        if busy {
            wake = wake.min(self.now + 200);
        }
        if wake < host.woken_for {
            host.woken_for = wake;
            self.at(wake, What::Wake(at));
        }
    }

    /// The application looks at what came, and deals with some of it.
    fn consume(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        while let Some(delivery) = host.around.delivered.pop_front() {
            let Delivery { node, class, message, contents, receipt } = delivery;
            let bytes = match contents {
                Some((frame, bytes)) => {
                    host.around.hand(frame, Held::Application, Held::Free);
                    host.around.memory[frame as usize][..usize::from(bytes)].to_vec()
                }
                None => vec![],
            };
            let mine = host.node.identity().incarnation;
            if let Some(peer) = host.node.view().get(node)
                && self.distrusted != Some(node)
            {
                host.application.take((node, peer.incarnation, mine, class as u8), message, &bytes);
            }
            host.backlog.push_back(receipt);
        }
        let now = self.now + host.clock_ahead;
        let some = self.random.random_range(0..=host.backlog.len());
        for receipt in host.backlog.drain(..some) {
            host.node.consumed(receipt, now);
        }
    }

    /// Sends a message with contents; whether there was room.
    pub fn send(&mut self, at: usize, to: u16, class: Class, bytes: u16) -> bool {
        let host = &mut self.hosts[at];
        let identity = host.node.identity();
        let Some(peer) = host.node.view().get(to) else { return false };
        let stream = (to, peer.incarnation, identity.incarnation, class as u8);
        let next = host.application.next(stream);
        let message = application::message(class, bytes, *next);
        let contents = if bytes == 0 {
            None
        } else {
            let Some(frame) = host.around.free() else { return false };
            host.around.memory[frame as usize][..usize::from(bytes)].copy_from_slice(&contents(
                identity.node,
                &message,
                bytes,
            ));
            host.around.hand(frame, Held::Free, Held::Sending);
            Some((frame, bytes))
        };
        match host.node.send(to, Message { class, message, contents }) {
            Ok(()) => *next += 1,
            Err(SendError::Full) => {
                if let Some((frame, _)) = contents {
                    host.around.hand(frame, Held::Sending, Held::Free);
                }
                return false;
            }
            Err(error) => panic!("{error:?}"),
        }
        true
    }

    /// What must hold of views and of who acts, at every step.
    fn observe(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let view = host.node.view();
        if host.around.events.iter().any(|event| matches!(event, Event::Expelled(_))) && !view.is_some() {
            host.epoch = 0;
        }
        if view.is_some() && view.epoch != host.epoch && !self.forged {
            assert!(view.epoch > host.epoch, "node {at} went back to {}", view.epoch);
            host.epoch = view.epoch;
            let agreed = self.views.entry((view.origin, view.epoch)).or_insert_with(|| view.clone());
            assert_eq!(agreed, view, "two views of one epoch");
        }
        let machine = host.around.count(Held::Machine);
        // What waits out of order, and a page in pieces for each peer and class.
        assert!(machine <= WAITING + 20 * 4, "{machine} page frames are kept");
        if host.node.clock().is_set() {
            let read = host.node.clock().read(self.now + host.clock_ahead);
            assert!(host.last_read.is_none_or(|last| read >= last), "the clock of node {at} went back");
            host.last_read = Some(read);
        }
        let now = self.now;
        let acts = |host: &&Host| host.on && host.node.membership().is_quorate();
        let me = &self.hosts[at];
        for other in self.hosts.iter().filter(acts).filter(|_| acts(&me)) {
            let (one, two) = (me.node.view(), other.node.view());
            let know = one.contains(other.node.membership().me()) || two.contains(me.node.membership().me());
            let apart =
                self.forged || one.origin != two.origin && self.configs[at].profile.expected.is_none();
            assert!(
                know || apart,
                "seed {}: two clusters act at {now}: {one:?} and {two:?}\n{}",
                self.seed,
                self.describe()
            );
        }
    }

    /// Whether all that are on have this view.
    pub fn agree_on(&self, nodes: &[u16]) -> bool {
        self.hosts.iter().filter(|host| nodes.contains(&host.node.identity().node)).all(|host| {
            let members = host.node.view().members();
            host.on
                && host.node.membership().is_quorate()
                && members.iter().map(|m| m.node).eq(nodes.iter().copied())
        })
    }

    /// Whether every message that was sent between lives that still are members came.
    pub fn all_came(&self) -> bool {
        self.hosts.iter().filter(|host| host.on).all(|host| {
            let me = host.node.identity();
            host.application.sent.iter().all(|(&(to, life, mine, class), &count)| {
                let is_current = mine == me.incarnation
                    && host.node.view().get(to).is_some_and(|member| member.incarnation == life);
                let stream = (me.node, mine, life, class);
                let peer = &self.hosts[usize::from(to) - 1];
                !is_current || !peer.on || peer.application.came.get(&stream).copied().unwrap_or(0) == count
            })
        })
    }
}
