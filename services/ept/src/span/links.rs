//! What a node that shares its guest's memory has round it, besides its guest space.

use core::fmt;
use core::time::Duration;

use ipc::abi::{Error, Token};
use ipc::interfaces::interconnect::{Frames, Incoming, Next, Outgoing, SendAnswer, Sent};
use ipc::message::{CallError, Message};
use ipc::vcpu::Progress;
use rt::time::Clock;

use crate::coherence::error::ConfigError;
use crate::coherence::hold::HoldTimes;

/// The interconnect, those who wait, and the clock.
pub trait Links {
    /// Sends a message.
    ///
    /// # Errors
    /// Those of the call.
    fn send(&mut self, outgoing: &Outgoing) -> Result<Sent, CallError>;

    /// Asks for the next message.
    ///
    /// # Errors
    /// Those of the call.
    fn receive(&mut self, next: Next) -> Result<Incoming, CallError>;

    /// Asks which frames are the interconnect's.
    ///
    /// # Errors
    /// Those of the call.
    fn frames(&mut self) -> Result<Frames, CallError>;

    /// Whether the nodes with these numbers are members, and this one may act.
    ///
    /// # Errors
    /// Those of the call.
    fn are_there(&mut self, nodes: &[u16]) -> Result<bool, CallError>;

    /// Answers a fault; nobody may wait for it any more.
    fn reply(&mut self, token: Token, message: Message);

    /// How far a vCPU has come; `None` when that is not known.
    fn progress(&mut self, vcpu: u8) -> Option<Progress>;

    /// Says that the guest's memory is lost, and why.
    fn lost(&mut self, why: Lost);

    /// Says why the guest's memory is not shared.
    fn not_begun(&mut self, why: BeginError);

    /// The time in TSC ticks.
    fn now(&self) -> u64;
}

/// Why the memory that nodes share is lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lost {
    /// A call of the interconnect failed: it was restarted, say.
    Call(CallError),
    /// It does not send what must be sent to the node of this number.
    NotSent(u16, SendAnswer),
    /// It gave a frame that is not its own.
    ForeignFrame(u32),
    /// It says that a frame was not made up for.
    Owed,
    /// There was no free frame where there must be one.
    NoFrame,
    /// The kernel did not carry out a page operation, again and again.
    Operation(Error),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => write!(f, "the interconnect did not answer: {error}"),
            Self::NotSent(node, answer) => write!(f, "nothing is sent to node {node}: {answer:?}"),
            Self::ForeignFrame(frame) => {
                write!(f, "the interconnect gave frame {frame}, which it did not have")
            }
            Self::Owed => f.write_str("the interconnect misses a frame"),
            Self::NoFrame => f.write_str("no frame was free for a page that came"),
            Self::Operation(error) => write!(f, "a page operation failed again and again: {error}"),
        }
    }
}

impl From<CallError> for Lost {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// Why the guest's memory cannot be shared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BeginError {
    /// The shares are not those of this node's image.
    Shares,
    /// The interconnect did not answer.
    Call(CallError),
    /// There is memory of another guest, or the interconnect's frames are not as they must be, or leave too few.
    Frames,
    /// The tables cannot be made.
    Config(ConfigError),
}

/// How long things take, in TSC ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Times {
    /// Between two looks at whether a vCPU has retired an instruction, when another node waits for that.
    pub poll: u64,
    /// After so long the platform has made the access for which the window got a page.
    pub window: u64,
    /// After so long what did not go is tried again.
    pub again: u64,
    /// After so long that the window waits it is looked whether the other nodes are there.
    pub patience: u64,
    /// How long pages stay.
    pub hold: HoldTimes,
}

impl Times {
    /// The times by this clock.
    ///
    /// A node that is silent is suspected after 1.5 s, and taken for dead after 3 s. The platform's beat must be longer.
    ///
    /// A page that bounces stays for 100 us the first time, and for 800 us at most: nodes that are emulated need some hundred
    /// microseconds to hand a page on, and what is done with it in between should not be less. The limit of 10 ms is there
    /// for a vCPU that does not run: the other threads of its core have turns of 2 ms, and an emulated processor may be away
    /// for as long. Nearly always a look at the vCPU, each 50 us, ends the wait before.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let ticks = |microseconds| clock.ticks(Duration::from_micros(microseconds));
        Self {
            poll: ticks(50),
            window: ticks(100),
            again: ticks(1_000),
            patience: ticks(3_000_000),
            hold: HoldTimes { unit: ticks(100), limit: ticks(10_000) },
        }
    }
}
