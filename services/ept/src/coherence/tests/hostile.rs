//! A node that sends anything: whatever it says, the others go on, and no page in which it has no part suffers.

use std::collections::{BTreeMap, VecDeque};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::message::{Channel, MAX_HOLD};
use super::super::word::Readers;
use super::*;

const NODES: u16 = 4;
/// The node that lies. It runs no protocol.
const LIAR: NodeId = NodeId(3);
const PAGES: u32 = 24;

/// Whether the liar is a page's home, as it is of the last ones.
const fn is_the_liars(page: u32) -> bool {
    page / (PAGES / NODES as u32) == LIAR.0 as u32
}

struct Cluster {
    sites: Vec<Site>,
    network: BTreeMap<(NodeId, NodeId, Channel), VecDeque<Letter>>,
    /// What the liar was sent: it may say it again, changed or not.
    heard: Vec<Letter>,
    current: Vec<Option<(u32, Access)>>,
    done: Vec<u32>,
    writes: Vec<u64>,
    refused: u64,
    random: ChaCha8Rng,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let honest = NODES - 1;
        let hold = HoldTimes { unit: 2, limit: 50 };
        let site = |node| {
            Site::new(Config { hold, seed: seed + u64::from(node), ..config(node, NODES, PAGES, PAGES) })
        };
        Self {
            sites: (0..honest).map(site).collect(),
            network: BTreeMap::new(),
            heard: Vec::new(),
            current: std::vec![None; honest.into()],
            done: std::vec![0; honest.into()],
            writes: std::vec![0; PAGES as usize],
            refused: 0,
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Pages of which an honest node is the home.
    fn honest_page(&mut self) -> u32 {
        loop {
            let page = self.random.random_range(0..PAGES);
            if !is_the_liars(page) {
                return page;
            }
        }
    }

    fn take_outputs(&mut self, index: usize) {
        let site = &mut self.sites[index];
        assert_eq!(site.around.wrong, None);
        let from = site.coherence.config.node;
        for (to, letter) in site.around.sent.drain(..) {
            if to == LIAR {
                self.heard.push(letter);
            } else {
                self.network.entry((from, to, letter.0.kind.channel())).or_default().push_back(letter);
            }
        }
        for (_, outcome) in site.around.resumed.drain(..) {
            assert_eq!(outcome, Outcome::Granted);
        }
    }

    /// A message that the liar makes up. It takes no part in honest pages: it never asks for one.
    fn lie(&mut self) -> (u32, Letter) {
        let random = &mut self.random;
        let mut message = match self.heard.len() {
            0 => Message::new(Kind::Ack, Page(0), 0, 1),
            heard => self.heard[random.random_range(0..heard)].0,
        };
        if random.random_range(0..8) != 0 {
            message.kind = Kind::ALL[random.random_range(0..Kind::ALL.len())];
            message.page = Page(random.random_range(0..PAGES + 2));
            message.node = NodeId(random.random_range(0..6));
            message.slot = random.random_range(0..4);
            message.number = if random.random_range(0..2) == 0 { random.random() } else { message.number };
            message.access = if random.random_range(0..2) == 0 { Access::Read } else { Access::Write };
            message.device = random.random();
            message.room = random.random();
            message.hold = random.random_range(0..=MAX_HOLD);
            message.readers = Readers::from_bits(random.random());
        }
        let is_request = matches!(message.kind, Kind::Read | Kind::Write | Kind::Evict);
        if is_request && !is_the_liars(message.page.0) {
            message.kind = Kind::Done;
        }
        let epoch = EPOCH + u32::from(random.random_range(0..16) == 0);
        (epoch, (message, Some(0xbad)))
    }

    fn step(&mut self, lies: bool) {
        match self.random.random_range(0..if lies { 5 } else { 4 }) {
            0 => {
                let index = self.random.random_range(0..self.sites.len());
                self.execute(index);
            }
            1 if !self.network.is_empty() => {
                let place = self.random.random_range(0..self.network.len());
                let (from, to, channel) = *self.network.keys().nth(place).unwrap();
                let letters = self.network.get_mut(&(from, to, channel)).unwrap();
                let letter = letters.pop_front().unwrap();
                if letters.is_empty() {
                    self.network.remove(&(from, to, channel));
                }
                self.deliver(from, to.index(), EPOCH, letter);
            }
            2 => {
                let index = self.random.random_range(0..self.sites.len());
                let site = &mut self.sites[index];
                if !site.around.operations.is_empty() {
                    site.perform(0).unwrap();
                }
                self.take_outputs(index);
            }
            3 => {
                let index = self.random.random_range(0..self.sites.len());
                let site = &mut self.sites[index];
                site.now += 1;
                site.coherence.tick(&mut site.around, site.now);
                self.take_outputs(index);
            }
            _ => {
                let index = self.random.random_range(0..self.sites.len());
                let (epoch, letter) = self.lie();
                self.deliver(LIAR, index, epoch, letter);
            }
        }
    }

    fn deliver(&mut self, from: NodeId, index: usize, epoch: u32, letter: Letter) {
        let site = &mut self.sites[index];
        let before = site.coherence.errors().total();
        site.around.arrived = letter.1;
        let result = site.coherence.receive(&mut site.around, site.now, from, epoch, letter.0);
        site.around.arrived = None;
        if let Err(error) = result {
            let is_honest = from != LIAR && !is_the_liars(letter.0.page.0);
            assert!(!is_honest, "{error}: {letter:?} from {from:?} to node {index}");
            assert!(site.coherence.errors().total() > before && site.coherence.errors().get(error) > 0);
            self.refused += 1;
        }
        self.take_outputs(index);
    }

    /// A vCPU reads or writes an honest page.
    fn execute(&mut self, index: usize) {
        let (page, access) = match self.current[index] {
            Some(current) => current,
            None => {
                let access = if self.random.random_range(0..2) == 0 { Access::Read } else { Access::Write };
                (self.honest_page(), access)
            }
        };
        self.current[index] = Some((page, access));
        let site = &mut self.sites[index];
        if !site.around.views[page as usize].allows(access) {
            if access == Access::Write && self.random.random_range(0..2) == 0 && site.claim(0, Page(page)) {
                return self.take_outputs(index);
            }
            // It may wait already.
            let _: Result<(), Error> = site.fault(0, Page(page), access);
            return self.take_outputs(index);
        }
        assert_eq!(site.around.value(Page(page)), Some(self.writes[page as usize]), "page {page}");
        if access == Access::Write {
            self.writes[page as usize] += 1;
            site.around.frames[page as usize] = Some(self.writes[page as usize]);
        }
        self.current[index] = None;
        self.done[index] += 1;
        site.retired(0).unwrap();
        self.take_outputs(index);
    }
}

#[test]
fn a_node_that_lies_harms_no_page_in_which_it_has_no_part() {
    let (mut refused, mut errors) = (0, BTreeMap::new());
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        for _ in 0..20_000 {
            cluster.step(true);
        }
        // When it is silent the others still get all they ask for.
        let before = cluster.done.clone();
        for _ in 0..20_000 {
            cluster.step(false);
        }
        for (before, after) in before.iter().zip(&cluster.done) {
            assert!(*after > before + 100, "a node does not go on: {before} {after}");
        }
        refused += cluster.refused;
        for error in Error::ALL {
            let count: u64 = cluster.sites.iter().map(|site| site.coherence.errors().get(*error)).sum();
            *errors.entry(std::format!("{error:?}")).or_insert(0) += count;
        }
    }
    std::println!("{refused} lies were refused: {errors:?}");
    assert!(refused > 10_000);
    for named in ["Epoch", "UnknownNode", "UnknownPage", "UnknownSlot", "NotHome", "NoTransaction", "NotHeld"]
    {
        assert!(errors[named] > 0, "{named}");
    }
}

/// Carries out all operations and takes what was sent.
fn take_sent(sites: &mut [Site]) -> Vec<(NodeId, NodeId, Letter)> {
    let mut letters = Vec::new();
    for site in sites {
        while !site.around.operations.is_empty() {
            site.perform(0).unwrap();
        }
        let from = site.coherence.config.node;
        letters.extend(site.around.sent.drain(..).map(|(to, letter)| (from, to, letter)));
    }
    letters
}

#[test]
fn what_was_sent_once_has_no_effect_the_second_time() {
    const READ: Access = Access::Read;
    const WRITE: Access = Access::Write;
    // A reader, a writer and their home; every message is delivered twice.
    let mut sites: Vec<_> = (0..3).map(|node| Site::new(config(node, 3, 1, 1))).collect();
    let mut writes = 0;
    for (index, access) in [(1, WRITE), (2, READ), (1, WRITE), (2, WRITE), (0, READ), (1, WRITE)] {
        sites[index].fault(0, Page(0), access).unwrap();
        let mut refused = 0;
        let mut letters = take_sent(&mut sites);
        while !letters.is_empty() {
            let mut next = Vec::new();
            for (from, to, letter) in letters {
                sites[to.index()].receive(from, letter).unwrap();
                // What it leads to comes after the second delivery, for which nothing may be sent before a flush.
                let sent = sites[to.index()].around.sent.len();
                refused += u32::from(sites[to.index()].receive(from, letter).is_err());
                let again = sites[to.index()].around.sent.split_off(sent);
                next.extend(take_sent(&mut sites));
                // A copy that is sent twice is refused where it goes.
                for (receiver, letter) in again {
                    assert_eq!(letter.0.kind, Kind::Data);
                    let first = next.iter().position(|(_, _, sent)| *sent == letter).unwrap();
                    let (_, _, letter) = next.remove(first);
                    sites[receiver.index()].receive(to, letter).unwrap();
                    assert!(sites[receiver.index()].receive(to, letter).is_err());
                    next.extend(take_sent(&mut sites));
                }
            }
            letters = next;
        }
        assert!(refused > 0);
        assert_eq!(std::mem::take(&mut sites[index].around.resumed), [(Waiter(0), Outcome::Granted)]);
        assert_eq!(sites[index].around.value(Page(0)), Some(writes));
        if access == WRITE {
            writes += 1;
            sites[index].around.frames[0] = Some(writes);
        }
        sites[index].retired(0).unwrap();
    }
    assert!(sites.iter().all(|site| site.coherence.is_idle() && site.around.wrong.is_none()));
    for error in [Error::SlotBusy, Error::NoTransaction, Error::Unexpected] {
        assert!(sites.iter().any(|site| site.coherence.errors().get(error) > 0), "{error:?}");
    }
}

#[test]
fn who_was_not_asked_cannot_acknowledge() {
    let nodes = NodeCount::new(4).unwrap();
    let mut site = Site::new(config(1, 4, 1, 1));
    site.fault(0, Page(0), Access::Write).unwrap();
    let (_, (request, _)) = site.around.sent[0];
    let acknowledgement = (Message { kind: Kind::Ack, ..request }, None);
    // Before it is known who acknowledges both are heeded; then one turns out to be wrong.
    site.receive(NodeId(2), acknowledgement).unwrap();
    site.receive(NodeId(3), acknowledgement).unwrap();
    assert_eq!(site.receive(NodeId(3), acknowledgement), Err(Error::NotAsked));
    let readers = Readers::EMPTY.with(NodeId(0), nodes).with(NodeId(2), nodes);
    let grant = Message { kind: Kind::Zero, access: Access::Write, readers, ..request };
    site.receive(NodeId(0), (grant, None)).unwrap();
    assert_eq!(site.receive(NodeId(0), (grant, None)), Err(Error::Unexpected));
    assert_eq!(site.receive(NodeId(3), acknowledgement), Err(Error::NotAsked));
    assert_eq!((site.coherence.errors().get(Error::NotAsked), site.around.operations.len()), (3, 0));
    site.receive(NodeId(0), acknowledgement).unwrap();
    assert_eq!(site.around.operations.len(), 1);
}
