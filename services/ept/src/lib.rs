//! Decides over every page of guest memory.
//!
//! * [`memory`]: the guest's memory on this node: which page has which frame, and what a fault changes.
//! * [`layout`]: which guest pages there are.
//! * [`frames`]: the frames that they can have, and reservations for large pages.
//! * [`around`]: how many pages a first write materialises.
//! * [`fault`]: a fault's message and its answer.
//! * [`space`]: what is asked of the kernel.
//! * [`coherence`]: which node has which page, when there are several.
//! * [`span`]: drives that.
//!
//! All of it is safe code that makes no call of the kernel; the program adds the calls and the loop.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod around;
pub mod coherence;
pub mod fault;
pub mod frames;
pub mod layout;
pub mod memory;
pub mod space;
pub mod span;

#[cfg(test)]
mod testing;

use alloc::boxed::Box;
use alloc::vec::Vec;

use ipc::abi::{Inspect, NEVER, Token};
use ipc::interfaces::ept::{Begin, Counters, HotList, Memory, Server, Sharing};
use ipc::interfaces::interconnect::NO_FRAME;
use ipc::message::{Caller, Message, Refused};
use rt::inspector::Inspector;

use crate::fault::{Fault, Refusal, Trace};
use crate::memory::{GuestMemory, Progress};
use crate::space::Space;
use crate::span::links::{Links, Lost, Times};
use crate::span::{Round, Span};

/// Why a guest cannot have memory on this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StartError {
    /// It has more pages than there are addresses for.
    TooManyPages,
    /// The node gives no frame.
    NoFrames,
    /// The node gives more frames than [`frames::MAX_FRAMES`].
    TooManyFrames,
    /// The service's heap has no room for the tables.
    NoRoom,
}

/// The service's state.
#[derive(Debug)]
pub struct Ept<I, S, L> {
    /// The kernel's counters.
    pub inspector: I,
    /// The guest space of this node.
    pub space: S,
    /// What else there is.
    pub links: L,
    /// The guest, when this node has one.
    pub guest: Option<Guest>,
}

/// The guest, as far as its memory on this node goes.
#[derive(Debug)]
pub struct Guest {
    memory: GuestMemory,
    place: Place,
    /// While it runs and its memory is shared.
    span: Option<Box<Span>>,
    /// While it does not: the frame for the one that came with the last message, and whether there may be more messages.
    owed: u32,
    has_more: bool,
}

/// This node's part in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The number of the guest's platform's service.
    pub platform: usize,
    /// How many nodes it spans.
    pub nodes: u8,
    /// This node's number.
    pub node: u64,
    /// The vCPUs on this node.
    pub vcpus: u8,
    /// How long things take.
    pub times: Times,
}

impl Guest {
    /// A guest that has not begun.
    #[must_use]
    pub const fn new(memory: GuestMemory, place: Place) -> Self {
        Self { memory, place, span: None, owed: NO_FRAME, has_more: false }
    }

    /// Whether its memory is this node's alone.
    const fn is_local(&self) -> bool {
        self.place.nodes <= 1
    }

    /// Its memory on this node.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Ends the sharing: what is mapped is taken away from now on, and all that wait but `except` are told so.
    fn end<L: Links>(&mut self, links: &mut L, except: Token) {
        if let Some(span) = self.span.take() {
            self.owed = span.end(links, except);
            self.has_more = true;
            self.memory.begin_reset();
        }
    }

    /// Has the span take an input, perhaps of who waits with `token`. When the memory is lost by that, it ends, and the platform
    /// is told; `None`, and `token` is not answered.
    fn input<S: Space, L: Links, R>(
        &mut self,
        space: &mut S,
        links: &mut L,
        token: Token,
        input: impl FnOnce(&mut Span, &mut Round<'_, S, L>) -> Result<R, Lost>,
    ) -> Option<R> {
        let span = self.span.as_mut()?;
        let mut round = Round { memory: &mut self.memory, space, links };
        match input(span, &mut round) {
            Ok(result) => Some(result),
            Err(why) => {
                self.end(links, token);
                links.lost(why);
                None
            }
        }
    }

    // Not part of the path of a guest on one node, whose instructions are counted.
    #[inline(never)]
    fn shared_fault<S: Space, L: Links>(
        &mut self,
        space: &mut S,
        links: &mut L,
        fault: Fault,
        (message, token): (&Message, Token),
    ) -> Option<Message> {
        let trace = Trace::of(message);
        let answer = self.input(space, links, token, |span, round| span.fault(round, fault, trace, token));
        answer.unwrap_or(Some(Err(Refusal::Stopping))).map(fault::reply)
    }
}

impl<I, S: Space, L: Links> Ept<I, S, L> {
    /// Answers a message of the kernel's that tells of a fault; `None` when that is done later.
    #[inline]
    pub fn fault(&mut self, fault: Fault, message: &Message, token: Token) -> Option<Message> {
        let answer = match &mut self.guest {
            Some(guest) if guest.is_local() => guest.memory.fault(&mut self.space, fault),
            Some(guest) => {
                return guest.shared_fault(&mut self.space, &mut self.links, fault, (message, token));
            }
            None => Err(Refusal::Outside),
        };
        Some(fault::reply(answer))
    }

    /// Takes the messages of other nodes.
    pub fn arrived(&mut self) {
        let Some(guest) = self.guest.as_mut().filter(|guest| !guest.is_local()) else { return };
        if guest.span.is_some() {
            guest.input(&mut self.space, &mut self.links, Token::NOBODY, |span, round| span.arrived(round));
        } else {
            // A call that fails leaves nothing to do: who begins asks for the frames.
            let more = span::drop_messages(&mut self.links, &mut guest.owed);
            guest.has_more = more.unwrap_or(false);
        }
    }

    /// When [`Ept::work`] is to be called, in TSC ticks.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        match &self.guest {
            Some(guest) if !guest.is_local() => match &guest.span {
                Some(span) => span.deadline(),
                None if guest.has_more || guest.memory.is_being_reset() => 0,
                None => NEVER,
            },
            _ => NEVER,
        }
    }

    /// Does what is to be done at this time.
    pub fn work(&mut self, now: u64) {
        let Some(guest) = self.guest.as_mut().filter(|guest| !guest.is_local()) else { return };
        if guest.span.is_some() {
            guest.input(&mut self.space, &mut self.links, Token::NOBODY, |span, round| span.work(round, now));
            return;
        }
        if guest.memory.is_being_reset() {
            // What fails is tried again; the platform does so too.
            let _ = guest.memory.reset_step(&mut self.space);
        }
        if guest.has_more {
            self.arrived();
        }
    }
}

impl<I: Inspector, S: Space, L: Links> Server for Ept<I, S, L> {
    fn memory(&mut self, _caller: Caller) -> Result<Memory, Refused> {
        let [frames_total, frames_free, ..] =
            self.inspector.inspect(Inspect::Node, 0).map_err(|_| Refused)?;
        Ok(Memory { frames_total, frames_free })
    }

    fn counters(&mut self, _caller: Caller) -> Result<Option<Counters>, Refused> {
        Ok(self.guest.as_ref().map(|guest| guest.memory.counters()))
    }

    fn release(&mut self, caller: Caller) -> Result<bool, Refused> {
        match &mut self.guest {
            Some(guest) if caller.service == guest.place.platform => {
                guest.end(&mut self.links, Token::NOBODY);
                let progress = guest.memory.reset_step(&mut self.space).map_err(|_| Refused)?;
                Ok(progress == Progress::Done)
            }
            Some(_) => Err(Refused),
            None => Ok(true),
        }
    }

    fn begin(&mut self, caller: Caller, begin: Begin) -> Result<bool, Refused> {
        let guest =
            self.guest.as_mut().filter(|guest| caller.service == guest.place.platform).ok_or(Refused)?;
        if guest.is_local() {
            return Ok(begin.shares.len() == 1);
        }
        if guest.span.is_some() || begin.shares.len() < 2 {
            return Err(Refused);
        }
        let place = (guest.place.node, guest.place.vcpus);
        let mut round = Round { memory: &mut guest.memory, space: &mut self.space, links: &mut self.links };
        match Span::begin(&mut round, &begin, place, guest.place.times) {
            Ok(span) => {
                guest.span = Some(Box::new(span));
                guest.owed = NO_FRAME;
                Ok(true)
            }
            Err(error) => {
                self.links.not_begun(error);
                Err(Refused)
            }
        }
    }

    fn sharing(&mut self, _caller: Caller) -> Result<Option<Sharing>, Refused> {
        let guest = self.guest.as_ref();
        Ok(guest.and_then(|guest| Some(guest.span.as_ref()?.sharing(&guest.memory))))
    }

    fn hottest(&mut self, _caller: Caller) -> Result<HotList, Refused> {
        let guest = self.guest.as_ref();
        let hottest = guest.and_then(|guest| Some(guest.span.as_ref()?.hottest(&guest.memory)));
        Ok(hottest.unwrap_or_default())
    }
}

/// A table of `count` equal values, which never grows.
fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, StartError> {
    let mut table = Vec::new();
    table.try_reserve_exact(count).map_err(|_| StartError::NoRoom)?;
    table.resize(count, value);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::around::Policy;
    use crate::frames::Frames;
    use crate::layout::Layout;
    use crate::testing::{FakeSpace, NoLinks};
    use ipc::abi::{Error, Label, Token};
    use ipc::vcpu::{ACCESS_WRITE, FAULT_OF_WINDOW, GUEST_FAULT};

    struct Node(Result<[u64; 4], Error>);

    impl Inspector for Node {
        fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
            assert_eq!((item, index), (Inspect::Node, 0));
            self.0
        }
    }

    /// A guest space that does not exist.
    struct NoSpace;

    impl Space for NoSpace {
        fn map(
            &mut self,
            _: layout::GuestPage,
            _: frames::Frame,
            _: usize,
            _: space::Access,
            _: space::Contents,
        ) -> Result<(), Error> {
            Err(Error::Refused)
        }

        fn unmap(&mut self, _: layout::GuestPage, _: usize) -> Result<(), Error> {
            Err(Error::Refused)
        }
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        let caller = Caller::of(Token::new(0, 1, 1));
        let inspector = Node(Ok([1_000, 600, 4, 1]));
        let mut ept = Ept { inspector, space: NoSpace, links: NoLinks, guest: None };
        assert_eq!(ept.memory(caller), Ok(Memory { frames_total: 1_000, frames_free: 600 }));
        assert_eq!(ept.counters(caller), Ok(None));
        ept.inspector = Node(Err(Error::Refused));
        assert_eq!(ept.memory(caller), Err(Refused));
    }

    #[test]
    fn a_fault_is_answered_and_counted() {
        let fault = |address| Message {
            label: Label::new(GUEST_FAULT, 0),
            words: [address, ACCESS_WRITE, FAULT_OF_WINDOW, 0],
        };
        let space = FakeSpace::new(&[(0, 16)], 32, |_| true);
        let inspector = Node(Err(Error::Refused));
        let mut ept = Ept { inspector, space, links: NoLinks, guest: None };
        let outside = fault::reply(Err(Refusal::Outside));
        let answer = |ept: &mut Ept<_, _, _>, address| {
            let message = fault(address);
            ept.fault(Fault::of(&message).unwrap(), &message, Token::NOBODY)
        };
        assert_eq!(answer(&mut ept, 0), Some(outside));
        let memory = GuestMemory::new(
            Layout::new(16, 0).unwrap(),
            Frames::new(32, |_| true).unwrap(),
            Policy::default(),
        );
        let clock = rt::time::Clock::new(1_000_000_000);
        let place = Place { platform: 1, nodes: 1, node: 9, vcpus: 1, times: Times::new(clock) };
        ept.guest = Some(Guest::new(memory.unwrap(), place));
        assert_eq!(answer(&mut ept, 0xfff8), Some(fault::reply(Ok(()))));
        assert!(ept.space.write(15, 1));
        assert_eq!(answer(&mut ept, 0x1_0000), Some(outside));
        assert_eq!(ept.deadline(), NEVER);
        let (platform, other) = (Caller::of(Token::new(0, 1, 1)), Caller::of(Token::new(0, 2, 1)));
        let counters = ept.counters(platform).unwrap().unwrap();
        let faults = counters.faults;
        assert_eq!((faults.write_dormant, faults.outside, faults.of_window), (1, 1, 2));
        assert_eq!((counters.pages, counters.frames.total, counters.frames.used), (16, 32, 2));
        assert_eq!(ept.release(other), Err(Refused));
        assert_eq!(ept.release(platform), Ok(true));
        assert_eq!(ept.counters(platform).unwrap().unwrap().frames.used, 1);
    }
}
