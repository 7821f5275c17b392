//! A cluster in simulated time: hundreds of nodes, messages that take any time and overtake those between other nodes, page
//! operations that take time. Everything follows from a seed.
//!
//! After each page operation it is checked who can do what with the page, and at each access what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::message::Channel;
use super::*;

/// An instruction: it needs all these pages at once.
#[derive(Clone, Debug)]
pub struct Instruction {
    pub pages: Vec<u32>,
    pub access: Access,
}

impl Instruction {
    pub fn new(page: u32, access: Access) -> Self {
        Self { pages: std::vec![page], access }
    }
}

/// What a vCPU does next: given its number, how many instructions it has executed, and a source of numbers.
pub type Workload = fn(usize, u32, &mut ChaCha8Rng) -> Instruction;

#[derive(Clone, Debug)]
enum Event {
    Deliver(NodeId, NodeId, Letter),
    Perform(usize, Ticket, Page, Operation),
    Execute(usize),
    Wait(usize),
}

/// Bytes of Ethernet's header and ours on the wire.
const HEADER_BYTES: usize = ipc::wire::HEADER_BYTES;
const PAGE_BYTES: usize = ipc::abi::PAGE_SIZE;

/// More events than any of these runs has.
const MOST_EVENTS: u64 = 10_000_000;

/// What was seen. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    pub accesses: u64,
    pub faults: u64,
    pub refused: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Messages with the contents of a page.
    pub pages_moved: u64,
    pub time: u64,
}

pub struct Simulator {
    pub sites: Vec<Site>,
    waiters: usize,
    workload: Workload,
    instructions: u32,
    /// Whether nodes take pages of theirs that nobody has touched at once.
    pub claims: bool,
    random: ChaCha8Rng,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    now: u64,
    /// When the last message of a channel arrives.
    arrivals: BTreeMap<(NodeId, NodeId, Channel), u64>,
    /// When the last operation on a page of a node ends.
    endings: BTreeMap<(usize, Page), u64>,
    waits: BTreeSet<(usize, u64)>,
    current: Vec<Option<Instruction>>,
    done: Vec<u32>,
    writes: Vec<u64>,
    pub seen: Seen,
}

impl Simulator {
    /// `nodes` nodes of which each has what `config` says; each vCPU executes so many instructions.
    pub fn new(seed: u64, nodes: u16, config: Config, instructions: u32, workload: Workload) -> Self {
        let pages = config.homes.pages();
        let homes = equal_shares(nodes, pages);
        let site = |node: u16| {
            let node = homes.nodes().wrap(node.into());
            Site::new(Config { node, homes: homes.clone(), ..config.clone() })
        };
        let sites = (0..nodes).map(site).collect();
        let waiters = usize::from(config.waiters);
        let vcpus = usize::from(nodes) * waiters;
        let mut simulator = Self {
            sites,
            waiters,
            workload,
            instructions,
            claims: false,
            random: ChaCha8Rng::seed_from_u64(seed),
            events: BTreeMap::new(),
            number: 0,
            now: 0,
            arrivals: BTreeMap::new(),
            endings: BTreeMap::new(),
            waits: BTreeSet::new(),
            current: std::vec![None; vcpus],
            done: std::vec![0; vcpus],
            writes: std::vec![0; pages as usize],
            seen: Seen::default(),
        };
        for vcpu in 0..vcpus {
            let time = simulator.random.random_range(0..2_000);
            simulator.at(time, Event::Execute(vcpu));
        }
        simulator
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.events.insert((time, self.number), event);
    }

    /// Runs until nothing happens any more, and checks that all is done then.
    pub fn run(mut self, name: &str) -> (Seen, Self) {
        while let Some(((time, _), event)) = self.events.pop_first() {
            assert!(self.number < MOST_EVENTS, "it goes on for ever");
            self.now = time;
            self.happen(event);
        }
        assert!(self.done.iter().all(|done| *done == self.instructions), "a vCPU waits for ever");
        for site in &self.sites {
            assert!(site.coherence.is_idle(), "node {:?}", site.coherence.config.node);
            assert_eq!(site.coherence.errors().total(), 0);
            let used = site.around.frames.iter().flatten().count();
            assert_eq!(used + site.coherence.free_frames() as usize, site.coherence.config.frames as usize);
        }
        let Seen { accesses, faults, refused, messages, bytes, pages_moved, time } = self.seen;
        #[expect(clippy::cast_precision_loss, reason = "to be printed")]
        let each = |count: u64| count as f64 / faults.max(1) as f64;
        std::println!(
            "simulator {name}: {accesses} accesses, {faults} misses, {refused} refused; a miss: {:.2} messages, \
             {:.0} bytes, {:.2} pages moved; {} us",
            each(messages),
            each(bytes),
            each(pages_moved),
            time / 1_000
        );
        (self.seen, self)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(from, to, letter) => {
                let site = &mut self.sites[to.index()];
                site.now = self.now;
                match site.receive(from, letter) {
                    Ok(()) => self.take_outputs(to.index()),
                    Err(Error::Full) => self.at(self.now + 100, Event::Deliver(from, to, letter)),
                    Err(error) => panic!("{error}: {letter:?} from {from:?} to {to:?}"),
                }
            }
            Event::Perform(index, ticket, page, operation) => {
                let site = &mut self.sites[index];
                site.now = self.now;
                site.around.perform(page, operation);
                site.coherence.completed(&mut site.around, self.now, ticket, Ok(())).unwrap();
                self.check(page);
                self.take_outputs(index);
            }
            Event::Execute(vcpu) => self.execute(vcpu),
            Event::Wait(index) => {
                self.waits.remove(&(index, self.now));
                let site = &mut self.sites[index];
                site.now = self.now;
                site.coherence.tick(&mut site.around, self.now);
                self.take_outputs(index);
            }
        }
    }

    fn check(&self, page: Page) {
        let views = || self.sites.iter().map(|site| site.around.views[page.0 as usize]);
        if views().any(|view| view == View::Write) {
            assert_eq!(views().filter(|view| *view != View::Nothing).count(), 1, "{page:?} has one writer");
        }
        for site in &self.sites {
            let value = site.around.value(page);
            assert!(value.is_none_or(|value| value == self.writes[page.0 as usize]), "{page:?} is old");
        }
    }

    fn execute(&mut self, vcpu: usize) {
        if self.done[vcpu] == self.instructions {
            return;
        }
        let instruction = match self.current[vcpu].clone() {
            Some(instruction) => instruction,
            None => (self.workload)(vcpu, self.done[vcpu], &mut self.random),
        };
        let (index, waiter) = (vcpu / self.waiters, u8::try_from(vcpu % self.waiters).unwrap());
        let site = &mut self.sites[index];
        site.now = self.now;
        let lacks = |page: &&u32| !site.around.views[**page as usize].allows(instruction.access);
        if let Some(page) = instruction.pages.iter().find(lacks) {
            self.seen.faults += 1;
            let may_claim = self.claims && instruction.access == Access::Write;
            if may_claim && site.claim(waiter, Page(*page)) {
                self.at(self.now + 500, Event::Execute(vcpu));
            } else {
                site.fault(waiter, Page(*page), instruction.access).unwrap();
            }
            self.current[vcpu] = Some(instruction);
            return self.take_outputs(index);
        }
        for page in &instruction.pages {
            let (value, latest) = (site.around.value(Page(*page)), &mut self.writes[*page as usize]);
            assert_eq!(value, Some(*latest), "page {page} at node {index}");
            if instruction.access == Access::Write {
                *latest += 1;
                site.around.frames[*page as usize] = Some(*latest);
            }
        }
        site.retired(waiter).unwrap();
        self.seen.accesses += 1;
        self.seen.time = self.now;
        self.current[vcpu] = None;
        self.done[vcpu] += 1;
        let time = self.now + self.random.random_range(50..2_000);
        self.at(time, Event::Execute(vcpu));
        self.take_outputs(index);
    }

    fn take_outputs(&mut self, index: usize) {
        let site = &mut self.sites[index];
        assert_eq!(site.around.wrong, None);
        let from = site.coherence.config.node;
        let sent = std::mem::take(&mut site.around.sent);
        let operations = std::mem::take(&mut site.around.operations);
        let resumed = std::mem::take(&mut site.around.resumed);
        let deadline = site.coherence.deadline();
        for (to, letter) in sent {
            let is_page = letter.1.is_some();
            let bytes = HEADER_BYTES + if is_page { PAGE_BYTES } else { 0 };
            self.seen.messages += 1;
            self.seen.bytes += bytes as u64;
            self.seen.pages_moved += u64::from(is_page);
            let delay = self.random.random_range(1_000..20_000) + if is_page { 3_000 } else { 0 };
            let last = self.arrivals.entry((from, to, letter.0.kind.channel())).or_default();
            let time = (self.now + delay).max(*last + 1);
            *last = time;
            self.at(time, Event::Deliver(from, to, letter));
        }
        for (ticket, page, operation) in operations {
            let delay = self.random.random_range(200..2_000);
            let last = self.endings.entry((index, page)).or_default();
            let time = (self.now + delay).max(*last + 1);
            *last = time;
            self.at(time, Event::Perform(index, ticket, page, operation));
        }
        for (waiter, outcome) in resumed {
            let vcpu = index * self.waiters + usize::from(waiter.0);
            let delay = match outcome {
                Outcome::Granted => self.random.random_range(100..1_000),
                Outcome::OutOfFrames | Outcome::NotMapped => {
                    self.seen.refused += 1;
                    self.random.random_range(10_000..100_000)
                }
            };
            self.at(self.now + delay, Event::Execute(vcpu));
        }
        if let Some(deadline) = deadline
            && self.waits.insert((index, deadline.max(self.now)))
        {
            self.at(deadline.max(self.now), Event::Wait(index));
        }
    }
}

/// Nodes with a frame for every page.
pub fn roomy(pages: u32) -> Config {
    Config {
        waiters: 2,
        evictions: 2,
        hold: HoldTimes { unit: 20_000, limit: 10_000_000 },
        ..config(0, 1, pages, pages)
    }
}

const MIXED_PAGES: u32 = 320;

const fn access(is_write: bool) -> Access {
    if is_write { Access::Write } else { Access::Read }
}

/// Half of the accesses go to a few pages: some that are mostly read, some that are read and then written. Some need two
/// pages at once, and ask for the upper one first.
fn mixed(vcpu: usize, done: u32, random: &mut ChaCha8Rng) -> Instruction {
    match random.random_range(0..10) {
        0..3 => Instruction::new(random.random_range(0..4), access(random.random_range(0..50) == 0)),
        3..5 => Instruction::new(4 + u32::try_from(vcpu % 4).unwrap(), access(done % 2 == 1)),
        5 => {
            let page = random.random_range(0..MIXED_PAGES - 1);
            Instruction { pages: std::vec![page + 1, page], access: Access::Write }
        }
        _ => Instruction::new(random.random_range(0..MIXED_PAGES), access(random.random_range(0..3) == 0)),
    }
}

#[test]
fn hundreds_of_nodes() {
    for seed in 0..2 {
        let name = std::format!("mixed, 256 nodes, seed {seed}");
        let (seen, simulator) = Simulator::new(seed, 256, roomy(MIXED_PAGES), 60, mixed).run(&name);
        assert_eq!((seen.refused, seen.accesses), (0, 256 * 2 * 60));
        // Enough nodes read the same pages for coarse words.
        let nodes = NodeCount::new(256).unwrap();
        let coarse = (0..MIXED_PAGES).map(Page).filter(|page| {
            let home = &simulator.sites[simulator.sites[0].coherence.config.homes.of(*page).index()];
            !home.coherence.home().word(*page).unwrap().readers().is_exact(nodes)
        });
        assert!(coarse.count() > 0);
    }
}

#[test]
fn hundreds_of_nodes_short_of_frames() {
    for seed in 0..2 {
        let config = Config { frames: 3, spare_frames: 1, ..roomy(MIXED_PAGES) };
        let name = std::format!("mixed, 256 nodes of 3 frames, seed {seed}");
        let (seen, simulator) = Simulator::new(seed, 256, config, 20, mixed).run(&name);
        assert_eq!(seen.accesses, 256 * 2 * 20);
        assert!(simulator.sites.iter().any(|site| site.coherence.counters().taken > 0));
    }
}

#[test]
fn a_few_nodes_and_many_seeds() {
    for seed in 0..100 {
        let nodes = 2 + u16::try_from(seed % 5).unwrap();
        let frames = if seed % 2 == 0 { 170 } else { MIXED_PAGES };
        let config = Config { frames, spare_frames: 4, ..roomy(MIXED_PAGES) };
        let mut simulator = Simulator::new(seed, nodes, config, 400, mixed);
        simulator.claims = seed % 4 < 2;
        simulator.run(&std::format!("mixed, {nodes} nodes, seed {seed}"));
    }
}

#[test]
fn words_that_do_not_name_all_readers() {
    // Enough nodes for coarse words, and so few pages that each is read, upgraded, written and evicted all the time.
    let few = |_, _, random: &mut ChaCha8Rng| {
        Instruction::new(random.random_range(0..4), access(random.random_range(0..20) == 0))
    };
    for seed in 0..40 {
        let frames = if seed % 2 == 0 { 2 } else { 4 };
        let config = Config { frames, ..roomy(4) };
        Simulator::new(seed, 50, config, 40, few)
            .run(&std::format!("few pages, 50 nodes of {frames} frames, seed {seed}"));
    }
}

#[test]
fn threads_that_touch_their_own_data_move_no_page() {
    let own = |vcpu: usize, _, random: &mut ChaCha8Rng| {
        let page = u32::try_from(vcpu).unwrap() * 8 + random.random_range(0..8);
        Instruction::new(page, access(random.random_range(0..2) == 0))
    };
    let (seen, simulator) = Simulator::new(1, 2, roomy(32), 5_000, own).run("own data, 2 nodes");
    assert_eq!((seen.accesses, seen.pages_moved), (20_000, 0));
    // A page is missed once, or read and then written for the first time.
    assert!(seen.faults <= 2 * 32, "{seen:?}");
    assert!(simulator.sites.iter().all(|site| site.coherence.counters().given == 0));
}

#[test]
fn pages_stay_longer_where_they_bounce() {
    let bouncing = |_, _, _: &mut ChaCha8Rng| Instruction::new(0, Access::Write);
    let run = |name, unit| {
        let hold = HoldTimes { unit, limit: 10_000_000 };
        Simulator::new(2, 4, Config { waiters: 1, hold, ..roomy(1) }, 500, bouncing).run(name).0
    };
    let at_once = run("bouncing, 4 nodes, no hold time", 0);
    let held = run("bouncing, 4 nodes, hold time of 20 us and more", 20_000);
    assert_eq!((at_once.accesses, held.accesses), (2_000, 2_000));
    assert!(held.faults * 4 < at_once.faults && held.time < at_once.time);
}

#[test]
fn what_is_read_and_then_written_comes_with_the_right_to_write() {
    let migratory = |_, done: u32, _: &mut ChaCha8Rng| Instruction::new(done / 2 % 4, access(done % 2 == 1));
    let (seen, simulator) =
        Simulator::new(3, 8, Config { waiters: 1, ..roomy(4) }, 1_000, migratory).run("migratory, 8 nodes");
    let kept: u64 = simulator.sites.iter().map(|site| site.coherence.counters().kept).sum();
    // Every fourth read is granted reading alone.
    assert!(kept * 3 < seen.pages_moved, "{kept} of {seen:?}");
}

#[test]
fn reading_ends_in_copies_everywhere() {
    let reading = |_, done, _: &mut ChaCha8Rng| Instruction::new(0, access(done == 0));
    let (seen, _) =
        Simulator::new(4, 64, Config { waiters: 1, ..roomy(1) }, 200, reading).run("read-mostly, 64 nodes");
    assert!(seen.faults <= 3 * 64, "{seen:?}");
}

#[test]
fn locked_operations_across_pages_end() {
    // Every order in which an instruction can miss its pages, on all nodes at once.
    let locked = |_, _, random: &mut ChaCha8Rng| {
        let first = random.random_range(0..3);
        let second = (first + 1 + random.random_range(0..2)) % 3;
        Instruction { pages: std::vec![first, second], access: Access::Write }
    };
    // With so high a limit nothing but the order of pages ends a circle.
    let hold = HoldTimes { unit: 1_000, limit: u64::MAX };
    for seed in 0..10 {
        let config = Config { hold, ..roomy(3) };
        Simulator::new(seed, 8, config, 50, locked).run(&std::format!("locked, 8 nodes, seed {seed}"));
    }
}
