//! Nodes of the tests: messages take their time, and a membership tells who is there.

use std::collections::VecDeque;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::*;

/// A tick is a millisecond.
pub(super) const CLOCK: Clock = Clock::new(1000);
pub(super) const PATIENCE_S: u16 = 20;
pub(super) const GO: Go = Go { start: 5, unix_seconds: 6, tsc_khz: 7 };
/// When a silent node is suspected, and when it is taken for dead.
pub(super) const SUSPICION: u64 = 1500;
pub(super) const DEATH: u64 = 3000;

pub(super) fn shares(nodes: usize) -> Shares {
    (0..nodes).map(|place| Share { node: number(place), vcpus: 2, pages: 256 }).collect()
}

pub(super) fn number(place: usize) -> u16 {
    u16::try_from(place * 3 + 1).unwrap()
}

/// One node, with its kernel and the service of memory.
pub(super) struct Node {
    pub(super) cluster: Cluster,
    pub(super) incarnation: u16,
    /// From when on it is there, and until when.
    pub(super) up: std::ops::Range<u64>,
    pub(super) look_due: u64,
    /// The run that its memory is of.
    pub(super) memory: Option<u32>,
    pub(super) machine: bool,
    pub(super) vcpus_run: bool,
    /// How often its vCPUs were started.
    pub(super) runs: usize,
    pub(super) overs: Vec<(Ending, bool)>,
    pub(super) refuses_begin: bool,
    pub(super) refuses_run: bool,
}

pub(super) struct Sim {
    pub(super) random: ChaCha8Rng,
    pub(super) now: u64,
    pub(super) nodes: Vec<Node>,
    /// For each sender and receiver, what is on its way and when it comes.
    pub(super) wires: Vec<Vec<VecDeque<(u64, Message)>>>,
    /// From when on one node hears nobody and nobody hears it.
    pub(super) cut: Option<(usize, u64)>,
    pub(super) max_delay: u64,
    pub(super) waited_for: Option<Places>,
}

impl Sim {
    pub(super) fn new(seed: u64, count: usize) -> Self {
        let shares = shares(count);
        let node = |place| Node {
            cluster: Cluster::new(&shares, place, PATIENCE_S, CLOCK),
            incarnation: 7,
            up: 0..u64::MAX,
            look_due: NEVER,
            memory: None,
            machine: false,
            vcpus_run: false,
            runs: 0,
            overs: Vec::new(),
            refuses_begin: false,
            refuses_run: false,
        };
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            now: 0,
            nodes: (0..count).map(node).collect(),
            wires: vec![vec![VecDeque::new(); count]; count],
            cut: None,
            max_delay: 40,
            waited_for: None,
        }
    }

    pub(super) fn is_cut(&self, place: usize, at: u64) -> bool {
        self.cut.is_some_and(|(cut, since)| cut == place && at >= since)
    }

    /// Since when the one has not heard of the other.
    pub(super) fn silent_since(&self, place: usize, other: usize) -> Option<u64> {
        if place == other {
            return None;
        }
        let dead = Some(self.nodes[other].up.end).filter(|&end| end <= self.now);
        let cut = self.cut.filter(|&(cut, since)| (cut == place || cut == other) && since <= self.now);
        [dead, cut.map(|(_, since)| since)].into_iter().flatten().min()
    }

    /// What the membership tells a node.
    pub(super) fn sight(&self, place: usize) -> Sight {
        let count = self.nodes.len();
        let silent: Vec<u64> = (0..count)
            .map(|other| self.silent_since(place, other).map_or(0, |since| self.now - since))
            .collect();
        let heard = silent.iter().filter(|&&silent| silent < SUSPICION).count();
        let has_majority = heard * 2 > count;
        let life = |other: usize| {
            let node = &self.nodes[other];
            let left_out = silent[other] >= DEATH && has_majority;
            let silent_ms = u32::try_from(silent[other]).unwrap();
            (node.up.start <= self.now && !left_out)
                .then_some(Life { incarnation: node.incarnation, silent_ms })
        };
        Sight {
            lives: (0..count).map(life).collect(),
            may_act: has_majority && self.nodes.iter().all(|node| node.up.start <= self.now),
            knows_time: true,
        }
    }

    pub(super) fn is_up(&self, place: usize) -> bool {
        self.nodes[place].up.contains(&self.now)
    }

    pub(super) fn look(&mut self, place: usize) {
        let sight = self.sight(place);
        self.nodes[place].cluster.see(self.now, sight);
        self.nodes[place].look_due = NEVER;
        self.act(place);
    }

    pub(super) fn act(&mut self, place: usize) {
        while let Some(action) = self.nodes[place].cluster.next_action() {
            let now = self.now;
            match action {
                Action::Send(to, message) => {
                    assert_ne!(to, number(place), "nobody tells himself");
                    let to = usize::from((to - 1) / 3);
                    let last = self.wires[place][to].back().map_or(0, |&(due, _)| due);
                    let due = last.max(now + self.random.random_range(0..=self.max_delay));
                    let message = Message::decode(&message.encode()).unwrap();
                    self.wires[place][to].push_back((due, message));
                }
                Action::Waits(places) => {
                    assert!(place == 0 && self.waited_for.is_none());
                    self.waited_for = Some(places);
                }
                Action::Begin(run) => {
                    let node = &mut self.nodes[place];
                    assert_ne!(run, ANY_RUN);
                    assert_eq!(node.memory, None, "the memory before was given back");
                    if !node.refuses_begin {
                        node.memory = Some(run);
                    }
                    node.cluster.begun(now, !node.refuses_begin);
                }
                Action::Load => {
                    assert_eq!(place, 0);
                    let run = self.nodes[0].memory;
                    assert!(run.is_some());
                    let all = (0..self.nodes.len()).filter(|&other| self.silent_since(0, other).is_none());
                    assert!(all.into_iter().all(|other| self.nodes[other].memory == run), "all have begun");
                    self.nodes[0].machine = true;
                    self.nodes[0].cluster.loaded(GO);
                }
                Action::Run(go) => {
                    assert_eq!(go, GO);
                    let node = &mut self.nodes[place];
                    assert!(node.memory.is_some() && !node.vcpus_run);
                    assert_eq!(node.machine, place == 0);
                    (node.machine, node.vcpus_run) = (true, true);
                    node.runs += 1;
                    if node.refuses_run {
                        let node = &mut self.nodes[place];
                        let why = Refusal::Vcpus;
                        node.cluster.end(now, Ending::Refused { node: number(place), why });
                    }
                }
                Action::Halt => {
                    let node = &mut self.nodes[place];
                    (node.machine, node.vcpus_run) = (false, false);
                }
                Action::Release => {
                    let run = self.nodes[place].memory;
                    assert!(!self.nodes[place].vcpus_run);
                    for other in 0..self.nodes.len() {
                        let there = self.is_up(other) && self.silent_since(place, other).is_none();
                        let node = &self.nodes[other];
                        assert!(
                            self.max_delay > 1000 || !there || !node.vcpus_run || node.memory != run,
                            "node {other} still runs with the memory that node {place} gives back"
                        );
                    }
                    self.nodes[place].memory = None;
                }
                Action::Over { ending, power_off } => {
                    let node = &mut self.nodes[place];
                    assert!(!node.vcpus_run && node.memory.is_none());
                    node.overs.push((ending, power_off));
                    if power_off {
                        node.up.end = now + 1;
                    }
                }
            }
        }
        let node = &mut self.nodes[place];
        let period = node.cluster.period();
        node.look_due = if period == NEVER { NEVER } else { node.look_due.min(self.now + period) };
    }

    pub(super) fn step(&mut self) {
        self.now += 10;
        let count = self.nodes.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            while let Some(&(due, message)) = self.wires[from][to].front()
                && due <= self.now
            {
                if !self.is_up(to) || self.is_cut(from, due) || self.is_cut(to, due) {
                    // To a node that is not there a channel gives nothing, and it is no member again in this life.
                    self.wires[from][to].pop_front();
                    continue;
                }
                self.wires[from][to].pop_front();
                if message.say == Say::Prepare {
                    self.look(to);
                }
                self.nodes[to].cluster.receive(self.now, number(from), &message);
                self.act(to);
            }
        }
        for place in 0..count {
            if self.is_up(place) && self.now >= self.nodes[place].look_due {
                self.look(place);
            }
        }
    }

    pub(super) fn until(&mut self, end: u64) {
        while self.now < end {
            self.step();
        }
    }

    pub(super) fn start(&mut self, run: u32, last: bool) {
        assert!(self.nodes[0].cluster.start(self.now, run, last));
        self.look(0);
    }

    pub(super) fn end(&mut self, place: usize, ending: Ending) {
        self.nodes[place].cluster.end(self.now, ending);
        self.act(place);
    }

    pub(super) fn all_run(&self) -> bool {
        self.nodes.iter().all(|node| node.vcpus_run && node.cluster.running().is_some())
    }

    /// All that are up have no guest, and nothing of it.
    pub(super) fn assert_idle(&self) {
        for (place, node) in self.nodes.iter().enumerate().filter(|&(place, _)| self.is_up(place)) {
            assert!(node.cluster.is_idle(), "node {place}: {:?}", node.cluster.state);
            assert!(!node.vcpus_run && !node.machine && node.memory.is_none(), "node {place}");
        }
    }
}
