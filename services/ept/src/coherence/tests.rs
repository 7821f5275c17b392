//! A node with everything round it but the network, for tests; and the tests.

mod directed;
mod hostile;
mod model;
mod simulator;

use std::hash::{Hash, Hasher};
use std::vec::Vec;

use super::environment::{Contents, Environment, Failed, Holding, Operation, Outcome, Ticket, Waiter};
use super::error::Error;
use super::fault::Fault;
use super::hold::HoldTimes;
use super::homes::Homes;
use super::message::{Access, Kind, Message, Page};
use super::node::{NodeCount, NodeId};
use super::{Coherence, Config};

/// What a vCPU of a node can do with a page, as long as no page operation that changes it has ended.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum View {
    #[default]
    Nothing,
    Zero,
    Read,
    Write,
}

impl View {
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self != Self::Nothing,
            Access::Write => self == Self::Write,
        }
    }
}

/// A message and the contents beside it. A page's contents are the number of writes to it before.
pub type Letter = (Message, Option<u64>);

/// What a node has round it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Around {
    pub holdings: Vec<Holding>,
    pub views: Vec<View>,
    pub frames: Vec<Option<u64>>,
    /// Operations that are not done yet.
    pub operations: Vec<(Ticket, Page, Operation)>,
    pub sent: Vec<(NodeId, Letter)>,
    pub resumed: Vec<(Waiter, Outcome)>,
    /// The contents beside the message being received.
    arrived: Option<u64>,
    hand: usize,
    /// What should never have been asked for.
    pub wrong: Option<&'static str>,
}

impl Around {
    fn new(pages: usize) -> Self {
        Self {
            holdings: std::vec![Holding::Nothing; pages],
            views: std::vec![View::Nothing; pages],
            frames: std::vec![None; pages],
            operations: Vec::new(),
            sent: Vec::new(),
            resumed: Vec::new(),
            arrived: None,
            hand: 0,
            wrong: None,
        }
    }

    /// What a vCPU reads.
    pub fn value(&self, page: Page) -> Option<u64> {
        match self.views[page.0 as usize] {
            View::Nothing => None,
            View::Zero => Some(0),
            View::Read | View::Write => self.frames[page.0 as usize],
        }
    }

    fn expect(&mut self, is_right: bool, wrong: &'static str) {
        if !is_right {
            self.wrong = Some(wrong);
        }
    }

    fn perform(&mut self, page: Page, operation: Operation) {
        let page = page.0 as usize;
        self.views[page] = match operation {
            Operation::Map(_, Contents::SharedZeros) => View::Zero,
            Operation::Map(access, contents) => {
                if contents == Contents::ClearedFrame {
                    let before = self.frames[page].replace(0);
                    self.expect(before.is_none(), "a page gets a second frame");
                }
                self.expect(self.frames[page].is_some(), "a page is mapped without a frame");
                if access == Access::Write { View::Write } else { View::Read }
            }
            Operation::Protect => View::Read,
            Operation::Unmap => View::Nothing,
        };
    }
}

impl Environment for Around {
    fn holding(&self, page: Page) -> Holding {
        self.holdings[page.0 as usize]
    }

    fn set_holding(&mut self, page: Page, holding: Holding) {
        self.holdings[page.0 as usize] = holding;
    }

    fn victim(&mut self, access: Access, may_go: &dyn Fn(Page) -> bool) -> Option<Page> {
        let pages = self.holdings.len();
        for _ in 0..pages {
            self.hand = (self.hand + 1) % pages;
            let page = Page(u32::try_from(self.hand).unwrap());
            if self.holdings[self.hand].makes_room(access) && may_go(page) {
                return Some(page);
            }
        }
        None
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let contents = match message.kind {
            Kind::Data => self.frames[message.page.0 as usize],
            _ => None,
        };
        self.expect(
            contents.is_some() == (message.kind == Kind::Data),
            "contents are sent that are not there",
        );
        self.sent.push((to, (message, contents)));
    }

    fn adopt(&mut self, page: Page) {
        let before = core::mem::replace(&mut self.frames[page.0 as usize], self.arrived);
        self.expect(self.arrived.is_some(), "contents are adopted that did not come");
        self.expect(before.is_none(), "a page gets a second frame");
    }

    fn operate(&mut self, ticket: Ticket, page: Page, operation: Operation) {
        self.operations.push((ticket, page, operation));
    }

    fn release(&mut self, page: Page) {
        self.expect(self.views[page.0 as usize] == View::Nothing, "a page leaves while it is mapped");
        let before = self.frames[page.0 as usize].take();
        self.expect(before.is_some(), "a page leaves that has no frame");
    }

    fn resume(&mut self, waiter: Waiter, outcome: Outcome) {
        self.resumed.push((waiter, outcome));
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct Site {
    pub coherence: Coherence,
    pub around: Around,
    /// Its clock.
    pub now: u64,
}

impl PartialEq for Site {
    fn eq(&self, other: &Self) -> bool {
        self.coherence.state() == other.coherence.state()
            && (&self.around, self.now) == (&other.around, other.now)
    }
}

impl Hash for Site {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.coherence.state().hash(state);
        (&self.around, self.now).hash(state);
    }
}

pub const EPOCH: u32 = 3;

/// Nodes that give as many pages each, or one more.
pub fn equal_shares(nodes: u16, pages: u32) -> Homes {
    let count = u32::from(nodes);
    Homes::new((0..count).map(|node| u64::from(pages / count + u32::from(node < pages % count)))).unwrap()
}

pub fn config(node: u16, nodes: u16, pages: u32, frames: u32) -> Config {
    let homes = equal_shares(nodes, pages);
    Config {
        node: homes.nodes().wrap(node.into()),
        homes,
        waiters: 1,
        evictions: 1,
        frames,
        spare_frames: 0,
        hold: HoldTimes { unit: 100, limit: u64::MAX },
        epoch: EPOCH,
        seed: 0x5eed,
    }
}

impl Site {
    pub fn new(config: Config) -> Self {
        let around = Around::new(config.homes.pages() as usize);
        Self { coherence: Coherence::new(config).unwrap(), around, now: 0 }
    }

    pub fn fault(&mut self, waiter: u8, page: Page, access: Access) -> Result<(), Error> {
        let fault = Fault { waiter: Waiter(waiter), page, access, device: false };
        self.coherence.fault(&mut self.around, self.now, &fault)
    }

    /// In place of a fault by writing: takes the page, and at most three that follow it, if nobody has touched them and this node
    /// is their home. Whether it is so.
    pub fn claim(&mut self, waiter: u8, page: Page) -> bool {
        let most = self.coherence.free_frames().min(4);
        let pages = (page.0..page.0 + most).take_while(|page| self.coherence.is_untouched(Page(*page)));
        let count = u32::try_from(pages.count()).unwrap();
        if count == 0 || self.coherence.is_waiting(Waiter(waiter)) {
            return false;
        }
        let pages = page.0..page.0 + count;
        for page in pages.clone() {
            self.around.perform(Page(page), Operation::Map(Access::Write, Contents::ClearedFrame));
            self.around.holdings[page as usize] = Holding::Write;
        }
        self.coherence.claim(&mut self.around, self.now, Waiter(waiter), page, pages).unwrap();
        true
    }

    pub fn receive(&mut self, from: NodeId, letter: Letter) -> Result<(), Error> {
        self.around.arrived = letter.1;
        let result = self.coherence.receive(&mut self.around, self.now, from, EPOCH, letter.0);
        self.around.arrived = None;
        result
    }

    pub fn retired(&mut self, waiter: u8) -> Result<(), Error> {
        self.coherence.retired(&mut self.around, self.now, Waiter(waiter))
    }

    /// Whether operation number `index` of those under way can be carried out: those on one page keep their order.
    pub fn can_perform(&self, index: usize) -> bool {
        let operations = &self.around.operations;
        operations.iter().take(index).all(|(_, page, _)| *page != operations[index].1)
    }

    /// Carries out an operation and tells so.
    pub fn perform(&mut self, index: usize) -> Result<(), Error> {
        let (ticket, page, operation) = self.around.operations.remove(index);
        self.around.perform(page, operation);
        self.coherence.completed(&mut self.around, self.now, ticket, Ok(()))
    }

    /// Lets time pass until something is to be done, if there is such a time.
    pub fn wait(&mut self) {
        if let Some(deadline) = self.coherence.deadline() {
            self.now = deadline;
            self.coherence.tick(&mut self.around, deadline);
        }
    }

    /// Carries out an operation that cannot be carried out.
    pub fn fail(&mut self, index: usize) -> Result<(), Error> {
        let (ticket, ..) = self.around.operations.remove(index);
        self.coherence.completed(&mut self.around, self.now, ticket, Err(Failed))
    }
}
