//! Decides over every page of guest memory.
//!
//! * [`memory`]: the guest's memory on this node: which page has which frame, and what a fault changes.
//! * [`layout`]: which guest pages there are.
//! * [`frames`]: the frames that they can have, and reservations for large pages.
//! * [`around`]: how many pages a first write materialises.
//! * [`fault`]: a fault's message and its answer.
//! * [`space`]: what is asked of the kernel.
//! * [`coherence`]: which node has which page, once there are several.
//!
//! All of it is safe code that makes no call of the kernel; the program adds the calls and the loop. There is one node: no
//! page comes from another or goes there.
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

#[cfg(test)]
mod testing;

use alloc::vec::Vec;

use ipc::abi::Inspect;
use ipc::interfaces::ept::{Counters, Memory, Server};
use ipc::message::{Caller, Message, Refused};
use rt::inspector::Inspector;

use crate::fault::{Fault, Refusal};
use crate::memory::{GuestMemory, Progress};
use crate::space::Space;

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
pub struct Ept<I, S> {
    /// The kernel's counters.
    pub inspector: I,
    /// The guest space of this node.
    pub space: S,
    /// The guest's memory, when this node has a guest, and the number of its platform's service.
    pub guest: Option<(GuestMemory, usize)>,
}

impl<I, S: Space> Ept<I, S> {
    /// Answers a message of the kernel's that tells of a fault; `None` when it tells of something else.
    #[inline]
    pub fn fault(&mut self, message: &Message) -> Option<Message> {
        let fault = Fault::of(message)?;
        let answer = match &mut self.guest {
            Some((guest, _)) => guest.fault(&mut self.space, fault),
            None => Err(Refusal::Outside),
        };
        Some(fault::reply(answer))
    }
}

impl<I: Inspector, S: Space> Server for Ept<I, S> {
    fn memory(&mut self, _caller: Caller) -> Result<Memory, Refused> {
        let [frames_total, frames_free, ..] =
            self.inspector.inspect(Inspect::Node, 0).map_err(|_| Refused)?;
        Ok(Memory { frames_total, frames_free })
    }

    fn counters(&mut self, _caller: Caller) -> Result<Option<Counters>, Refused> {
        Ok(self.guest.as_ref().map(|(guest, _)| guest.counters()))
    }

    fn begin(&mut self, _: Caller, _: ipc::interfaces::ept::Begin) -> Result<bool, Refused> {
        Err(Refused)
    }

    fn release(&mut self, caller: Caller) -> Result<bool, Refused> {
        match &mut self.guest {
            Some((guest, platform)) if caller.service == *platform => {
                let progress = guest.reset_step(&mut self.space).map_err(|_| Refused)?;
                Ok(progress == Progress::Done)
            }
            Some(_) => Err(Refused),
            None => Ok(true),
        }
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
    use crate::testing::FakeSpace;
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
        let mut ept = Ept { inspector: Node(Ok([1_000, 600, 4, 1])), space: NoSpace, guest: None };
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
        let mut ept = Ept { inspector: Node(Err(Error::Refused)), space, guest: None };
        let outside = fault::reply(Err(Refusal::Outside));
        assert_eq!(ept.fault(&fault(0)), Some(outside));
        let memory = GuestMemory::new(
            Layout::new(16, 0).unwrap(),
            Frames::new(32, |_| true).unwrap(),
            Policy::default(),
        );
        ept.guest = Some((memory.unwrap(), 1));
        assert_eq!(ept.fault(&fault(0xfff8)), Some(fault::reply(Ok(()))));
        assert!(ept.space.write(15, 1));
        assert_eq!(ept.fault(&fault(0x1_0000)), Some(outside));
        assert_eq!(ept.fault(&Message::default()), None);
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
