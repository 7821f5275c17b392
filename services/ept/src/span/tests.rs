//! Nodes as in the service, joined by a network that delivers in any order that it may; everything follows from a seed.

mod ahead;
mod directed;
mod random;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;

use ipc::abi::{Error as KernelError, Inspect, Label};
use ipc::guest::{Share, Shares, total_pages};
use ipc::interfaces::ept::{Begin, Hot, Server, Sharing};
use ipc::interfaces::interconnect::{self, Outgoing, SendAnswer, Sent};
use ipc::message::{Caller, Message as KernelMessage};
use ipc::vcpu::{ACCESS_WRITE, FAULT_OF_WINDOW, GUEST_FAULT, PRIVATE_START, Progress, memory_ranges};
use ipc::wire::Class;
use rt::inspector::Inspector;
use rt::time::Clock;

use super::links::BeginError;
use super::*;
use crate::around::Policy;
use crate::frames::Frames;
use crate::layout::Layout;
use crate::testing::{FakeSpace, Random};
use crate::{Ept, Guest, Place};

/// The frames of each interconnect.
const CARRIED: u32 = 24;
const RUN: u32 = 77;
const PRIVATE: u64 = PRIVATE_START / 4096;
/// Pages that the guest does not see, on each node.
const PRIVATE_PAGES: u64 = 3;
const PLATFORM: u16 = 6;

struct NoInspector;

impl Inspector for NoInspector {
    fn inspect(&self, _: Inspect, _: u64) -> Result<[u64; 4], KernelError> {
        Err(KernelError::Refused)
    }
}

/// An interconnect that keeps to its interface, and asserts that its client does.
struct FakeLinks {
    now: u64,
    /// Messages that were taken and are not transmitted yet, and how many there can be.
    outgoing: Vec<Outgoing>,
    room: usize,
    incoming: VecDeque<Incoming>,
    /// Frames with nothing in them.
    carried: Vec<u32>,
    is_owed: bool,
    /// It was restarted, and the client does not know yet.
    was_restarted: bool,
    /// Nodes that are members.
    members: BTreeSet<u16>,
    replies: Vec<(Token, KernelMessage)>,
    progress: Vec<Option<Progress>>,
    lost: Vec<Lost>,
    not_begun: Vec<BeginError>,
    last_frames: u32,
}

impl FakeLinks {
    fn new(frames: u32, vcpus: usize, nodes: u16) -> Self {
        Self {
            now: 1,
            outgoing: Vec::new(),
            room: 100,
            incoming: VecDeque::new(),
            carried: (frames - CARRIED..frames).collect(),
            is_owed: false,
            was_restarted: false,
            members: (0..nodes).map(number).collect(),
            replies: Vec::new(),
            progress: std::vec![None; vcpus],
            lost: Vec::new(),
            not_begun: Vec::new(),
            last_frames: frames,
        }
    }

    fn restarted(&mut self) -> Result<(), CallError> {
        if core::mem::take(&mut self.was_restarted) { Err(CallError::Restarted) } else { Ok(()) }
    }

    /// All that it has, with what is in transmission.
    fn all(&self) -> Vec<u32> {
        let outgoing = self.outgoing.iter().filter(|letter| letter.contents == interconnect::Contents::Given);
        let incoming = self.incoming.iter().filter(|letter| letter.frame != NO_FRAME);
        let moving = outgoing.map(|letter| letter.frame).chain(incoming.map(|letter| letter.frame));
        self.carried.iter().copied().chain(moving).collect()
    }
}

impl Links for FakeLinks {
    fn send(&mut self, outgoing: &Outgoing) -> Result<Sent, CallError> {
        self.restarted()?;
        let not = |answer| Ok(Sent { answer, frame: NO_FRAME });
        if !self.members.contains(&outgoing.node) {
            return not(SendAnswer::NoSuchMember);
        }
        let is_data = outgoing.frame != NO_FRAME;
        assert_eq!(is_data, outgoing.frame != NO_FRAME);
        assert_eq!(is_data, outgoing.class == Class::Page);
        assert!(!is_data || !self.all().contains(&outgoing.frame), "a frame of the sender's");
        let ours = self
            .outgoing
            .iter()
            .filter(|letter| (letter.node, letter.class) == (outgoing.node, outgoing.class));
        if ours.count() >= self.room {
            return not(SendAnswer::Full);
        }
        let mut frame = NO_FRAME;
        if outgoing.contents == interconnect::Contents::Given {
            let Some(other) = self.carried.pop() else { return not(SendAnswer::Full) };
            frame = other;
        }
        self.outgoing.push(*outgoing);
        Ok(Sent { answer: SendAnswer::Taken, frame })
    }

    fn receive(&mut self, next: Next) -> Result<Incoming, CallError> {
        self.restarted()?;
        let nothing =
            |kind| Incoming { message: [0; 24], frame: NO_FRAME, node: 0, class: Class::Control, kind };
        if next.frame != NO_FRAME {
            assert!(self.is_owed && !self.all().contains(&next.frame), "a frame is made up for");
            self.carried.push(next.frame);
            self.is_owed = false;
        }
        if self.is_owed {
            return Ok(nothing(IncomingKind::Owed));
        }
        let Some(incoming) = self.incoming.pop_front() else { return Ok(nothing(IncomingKind::Nothing)) };
        self.is_owed = incoming.frame != NO_FRAME;
        let kind = if self.incoming.is_empty() { IncomingKind::Last } else { IncomingKind::Message };
        Ok(Incoming { kind, ..incoming })
    }

    fn frames(&mut self) -> Result<interconnect::Frames, CallError> {
        self.outgoing.clear();
        self.incoming.clear();
        self.is_owed = false;
        // Whatever it had before, it has as many now.
        self.carried = (self.last_frames - CARRIED..self.last_frames).collect();
        Ok(self.carried.iter().copied().collect())
    }

    fn are_there(&mut self, nodes: &[u16]) -> Result<bool, CallError> {
        Ok(nodes.iter().all(|node| self.members.contains(node)))
    }

    fn reply(&mut self, token: Token, message: KernelMessage) {
        self.replies.push((token, message));
    }

    fn progress(&mut self, vcpu: u8) -> Option<Progress> {
        self.progress[usize::from(vcpu)]
    }

    fn lost(&mut self, why: Lost) {
        self.lost.push(why);
    }

    fn not_begun(&mut self, why: BeginError) {
        self.not_begun.push(why);
    }

    fn now(&self) -> u64 {
        self.now
    }
}

type Node = Ept<NoInspector, FakeSpace, FakeLinks>;

/// Nodes have numbers that are not their places.
fn number(place: u16) -> u16 {
    3 + 2 * place
}

fn clock() -> Clock {
    Clock::new(1_000_000_000)
}

fn times() -> Times {
    Times::new(clock())
}

/// What a node with this share needs besides its pages and what is private.
fn slack(nodes: usize, most_vcpus: u8) -> u32 {
    1 + CARRIED
        + u32::try_from(nodes - 1).unwrap()
            * (u32::from(most_vcpus) + 1 + u32::from(foresight::MOST_AHEAD) + u32::from(EVICTIONS))
        + u32::from(EVICTIONS)
}

fn node(shares: &Shares, place: usize, frames: u32) -> Node {
    let pages = total_pages(shares);
    let layout = Layout::new(pages, PRIVATE_PAGES).unwrap();
    let memory = GuestMemory::new(layout, Frames::new(frames, |_| true).unwrap(), Policy::new(16)).unwrap();
    let [low, high] = memory_ranges(pages);
    let mut space = FakeSpace::new(&[low, high, (PRIVATE, PRIVATE_PAGES)], frames, |_| true);
    space.is_shared = true;
    let nodes = u16::try_from(shares.len()).unwrap();
    let share = shares[place];
    let links = FakeLinks::new(frames, share.vcpus.into(), nodes);
    let (node, vcpus) = (share.node.into(), share.vcpus);
    let place = Place { platform: PLATFORM.into(), nodes: 2, node, vcpus, times: times() };
    Ept { inspector: NoInspector, space, links, guest: Some(Guest::new(memory, place)) }
}

fn platform() -> Caller {
    Caller::of(Token::new(9, PLATFORM, 1))
}

fn stranger() -> Caller {
    Caller::of(Token::new(9, PLATFORM + 1, 1))
}

/// Who makes accesses: a vCPU, or after the vCPUs the window.
#[derive(Clone, Debug, Default)]
struct Actor {
    /// The pages that its instruction needs at once, and whether it writes.
    instruction: Option<(Vec<u64>, bool)>,
    waits: bool,
    retired: u32,
}

/// Nodes and their guest.
struct World {
    nodes: Vec<Node>,
    shares: Shares,
    actors: Vec<Vec<Actor>>,
    /// What each page holds, by its address.
    latest: BTreeMap<u64, u64>,
    stamp: u64,
    /// Messages came that a node was not told of.
    arrived: Vec<bool>,
    refused: u64,
    random: Random,
}

impl World {
    /// Nodes with vCPUs and pages as in `shares`, and so many frames more than they need for their pages.
    fn new(seed: u64, shares: &[(u8, u64)], more: u32) -> Self {
        let given = |(place, (vcpus, pages)): (u16, &(u8, u64))| Share {
            node: number(place),
            vcpus: *vcpus,
            pages: *pages,
        };
        let given: Shares = (0..).zip(shares).map(given).collect();
        let most = shares.iter().map(|(vcpus, _)| *vcpus).max().unwrap();
        let frames =
            |pages: u64| u32::try_from(pages + PRIVATE_PAGES).unwrap() + slack(shares.len(), most) + more;
        let nodes = (0..).zip(shares).map(|(place, (_, pages))| node(&given, place, frames(*pages)));
        let mut world = Self {
            nodes: nodes.collect(),
            actors: shares
                .iter()
                .map(|(vcpus, _)| std::vec![Actor::default(); usize::from(*vcpus) + 1])
                .collect(),
            shares: given,
            latest: BTreeMap::new(),
            stamp: 0,
            arrived: std::vec![false; shares.len()],
            refused: 0,
            random: Random(seed),
        };
        world.begin(RUN);
        world
    }

    fn begin(&mut self, run: u32) {
        for node in &mut self.nodes {
            let begin = Begin { run, shares: self.shares.clone() };
            assert_eq!(node.begin(stranger(), begin.clone()), Err(ipc::message::Refused));
            assert_eq!(node.begin(platform(), begin), Ok(true), "{:?}", node.links.not_begun);
        }
        self.latest.clear();
    }

    fn span(&self, node: usize) -> &Span {
        self.nodes[node].guest.as_ref().unwrap().span.as_ref().unwrap()
    }

    /// The guest-physical page of a page by its number.
    fn page(&self, page: u64) -> u64 {
        let [low, high] = memory_ranges(total_pages(&self.shares));
        if page < low.1 { page } else { high.0 + page - low.1 }
    }

    /// Sends a fault to a node; the reply's method, when there is one.
    fn fault(&mut self, node: usize, actor: usize, page: u64, write: bool) -> Option<u16> {
        let is_window = actor + 1 == self.actors[node].len();
        let who = if is_window { FAULT_OF_WINDOW } else { actor as u64 };
        let fingerprint = if is_window { 0 } else { 1 + u64::from(self.actors[node][actor].retired) };
        let access = if write { ACCESS_WRITE } else { 0 };
        let words = [page * 4096 + 16, access | fingerprint << 32, who, 0x1000 + page];
        let message = KernelMessage { label: Label::new(GUEST_FAULT, 0), words };
        let token = Token::new(u16::try_from(actor).unwrap(), PLATFORM, u32::try_from(node + 1).unwrap());
        let fault = Fault::of(&message).unwrap();
        let answer = self.nodes[node].fault(fault, &message, token);
        self.take_replies(node);
        answer.map(|answer| answer.label.method())
    }

    fn take_replies(&mut self, node: usize) {
        for (token, message) in std::mem::take(&mut self.nodes[node].links.replies) {
            if token == Token::NOBODY {
                continue;
            }
            let actor = &mut self.actors[node][token.thread().unwrap()];
            assert!(std::mem::take(&mut actor.waits), "an answer that nobody waits for");
            if message.label.method() != 0 {
                self.refused += 1;
            }
        }
    }

    /// An actor goes on with its instruction; whether it is done.
    fn execute(&mut self, node: usize, actor: usize) -> bool {
        if self.actors[node][actor].waits {
            return false;
        }
        let Some((pages, write)) = self.actors[node][actor].instruction.clone() else { return true };
        let space = &mut self.nodes[node].space;
        let allows = |space: &FakeSpace, page: u64| match space.mapped.get(&page) {
            Some((_, space::Access::ReadWrite)) => true,
            Some((_, space::Access::Read)) => !write,
            None => false,
        };
        if let Some(lacks) = pages.iter().find(|page| !allows(space, **page)) {
            match self.fault(node, actor, *lacks, write) {
                None => self.actors[node][actor].waits = true,
                Some(0) => {}
                Some(_) => self.refused += 1,
            }
            return false;
        }
        for page in &pages {
            let latest = self.latest.entry(*page).or_insert(0);
            assert_eq!(space.read(*page), Some(*latest), "page {page:#x} at node {node}");
            if write {
                self.stamp += 1;
                *latest = self.stamp;
                assert!(space.write(*page, self.stamp));
            }
        }
        let actor_state = &mut self.actors[node][actor];
        actor_state.instruction = None;
        actor_state.retired += 1;
        let fingerprint = 1 + actor_state.retired;
        if let Some(progress) = self.nodes[node].links.progress.get_mut(actor) {
            *progress = Some(Progress { fingerprint, in_guest_mode: true });
        }
        true
    }

    /// Transmits a message of a node's, if there is one and the other node has a frame for it.
    fn transmit(&mut self, node: usize) -> bool {
        let outgoing = &self.nodes[node].links.outgoing;
        if outgoing.is_empty() {
            return false;
        }
        let any = outgoing[self.random.below(outgoing.len())];
        let first = outgoing.iter().position(|letter| (letter.node, letter.class) == (any.node, any.class));
        let letter = outgoing[first.unwrap()];
        let to = self.shares.iter().position(|share| share.node == letter.node).unwrap();
        let mut frame = NO_FRAME;
        if letter.frame != NO_FRAME {
            let Some(other) = self.nodes[to].links.carried.pop() else { return false };
            frame = other;
            self.nodes[to].space.contents[other as usize] =
                self.nodes[node].space.contents[letter.frame as usize];
        }
        self.nodes[node].links.outgoing.remove(first.unwrap());
        if letter.contents == interconnect::Contents::Given {
            self.nodes[node].links.carried.push(letter.frame);
        }
        let incoming = Incoming {
            message: letter.message,
            frame,
            node: self.shares[node].node,
            class: letter.class,
            kind: IncomingKind::Message,
        };
        self.nodes[to].links.incoming.push_back(incoming);
        self.arrived[to] = true;
        // There is room again.
        self.arrived[node] = true;
        true
    }

    fn take_arrived(&mut self, node: usize) -> bool {
        let has = std::mem::take(&mut self.arrived[node]);
        if has {
            self.nodes[node].arrived();
            self.take_replies(node);
        }
        has
    }

    /// Does what is due on a node; whether there was something.
    fn work(&mut self, node: usize) -> bool {
        let now = self.nodes[node].links.now;
        let is_due = now >= self.nodes[node].deadline();
        if is_due {
            self.nodes[node].work(now);
            self.take_replies(node);
        }
        is_due
    }

    /// Goes on until nothing happens without a new access. Time passes when nothing else does.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let mut is_busy = false;
            for node in 0..self.nodes.len() {
                is_busy |= self.transmit(node) | self.take_arrived(node) | self.work(node);
                for actor in 0..self.actors[node].len() {
                    let can =
                        !self.actors[node][actor].waits && self.actors[node][actor].instruction.is_some();
                    is_busy |= can;
                    self.execute(node, actor);
                }
            }
            if !is_busy {
                let Some(next) =
                    self.nodes.iter().map(|node| node.deadline()).filter(|due| *due != NEVER).min()
                else {
                    return;
                };
                for node in &mut self.nodes {
                    node.links.now = node.links.now.max(next);
                }
            }
        }
        panic!("it goes on for ever");
    }

    /// Reads or writes a page by its number, and waits for the end.
    fn access(&mut self, node: usize, actor: usize, page: u64, write: bool) {
        let page = self.page(page);
        self.actors[node][actor].instruction = Some((std::vec![page], write));
        self.settle();
        assert_eq!(self.actors[node][actor].instruction, None, "the access is made");
    }

    /// Asserts that each frame is somewhere, and at one place.
    fn check(&self) {
        for (node, ept) in self.nodes.iter().enumerate() {
            let guest = ept.guest.as_ref().unwrap();
            let [pages, free] = guest.memory.census();
            let Some(span) = &guest.span else { continue };
            assert_eq!(ept.links.lost, []);
            let owed = if ept.links.is_owed { std::vec![span.owed] } else { Vec::new() };
            assert_eq!(ept.links.is_owed, span.owed != NO_FRAME);
            let given: Vec<u32> = span.desk.outbox.given().collect();
            let carried = ept.links.all();
            let mut believed = span.carried.clone();
            believed.sort_unstable();
            let mut all: Vec<u32> = carried.clone();
            all.sort_unstable();
            assert_eq!(believed, all, "node {node} knows which frames are the interconnect's");
            all.extend(pages.iter().chain(&free).chain(&owed).chain(&given));
            all.push(0);
            all.sort_unstable();
            let frames = u32::try_from(ept.space.contents.len()).unwrap();
            assert_eq!(all, (0..frames).collect::<Vec<_>>(), "node {node}: each frame is at one place");
            assert!(free.len() >= span.coherence.free_frames() as usize);
        }
    }

    /// Asserts that nothing is under way, and that the protocol counts frames as they are.
    fn check_quiet(&self) {
        self.check();
        for (node, ept) in self.nodes.iter().enumerate() {
            let span = self.span(node);
            assert!(span.coherence.is_idle() && span.desk.outbox.is_empty());
            let memory = &ept.guest.as_ref().unwrap().memory;
            let private = ept.space.mapped.keys().filter(|page| **page >= PRIVATE);
            let private = private.filter(|page| ept.space.mapped[page].0 != 0).count() as u64;
            let [_, free] = memory.census();
            let most = self.shares.iter().map(|share| share.vcpus).max().unwrap();
            let slack = slack(self.nodes.len(), most) - CARRIED - 1;
            let free_frames = u64::from(span.coherence.free_frames() + slack);
            let expected = free_frames + PRIVATE_PAGES - private;
            assert_eq!(free.len() as u64, expected, "node {node}");
        }
    }

    fn total(&self, of: impl Fn(&Sharing) -> u64) -> u64 {
        (0..self.nodes.len()).map(|node| of(&self.sharing(node))).sum()
    }

    fn sharing(&self, node: usize) -> Sharing {
        self.span(node).sharing(&self.nodes[node].guest.as_ref().unwrap().memory)
    }
}
