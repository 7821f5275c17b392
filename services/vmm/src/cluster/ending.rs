//! How a guest that spans nodes ended, in so few bytes that it fits into a message.

use core::fmt;

use ipc::guest::Share;

use super::vcpu_at;
use crate::emulate::Encoding;
use crate::machine::End;

/// How a guest ended. Nodes are named by their numbers, vCPUs by theirs among all of the guest's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// On a vCPU, as on one node. Of an instruction only its first 7 bytes are known, and of an exit that nobody knows the code.
    Guest {
        /// How.
        end: End,
        /// Where.
        vcpu: u8,
    },
    /// It was stopped by a call.
    Stopped,
    /// A node did not come in time.
    DidNotCome(u16),
    /// A node cannot take part.
    Refused {
        /// Which.
        node: u16,
        /// Why.
        why: Refusal,
    },
    /// A node is no member any more.
    Lost(u16),
    /// A node may not act, because it hears too little of the others.
    CutOff(u16),
    /// A node's platform failed and was restarted.
    Failed(u16),
}

/// Why a node cannot take part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Its memory's service refuses.
    Memory = 1,
    /// Its part of the machine cannot be made; its log says why.
    Machine = 2,
    /// Its vCPUs do not start.
    Vcpus = 3,
    /// It does not know the cluster's time.
    Time = 4,
}

impl Ending {
    /// Code, node or vCPU, and a word.
    pub(super) fn encode(self) -> (u8, u16, u64) {
        match self {
            Self::Guest { end, vcpu } => {
                let (code, word) = match end {
                    End::PoweredOff => (1, 0),
                    End::Reset => (2, 0),
                    End::TripleFault => (3, 0),
                    End::HaltedForEver => (4, 0),
                    End::Unsupported(Encoding { bytes, length }) => {
                        let [a, b, c, d, e, f, g, ..] = bytes;
                        (5, u64::from_le_bytes([a, b, c, d, e, f, g, length]))
                    }
                    End::CodeNotMemory(at) => (6, at),
                    End::DeliveryNotMemory(at) => (7, at),
                    End::TablesNotMemory(at) => (8, at),
                    End::MemoryLost(at) => (9, at),
                    End::InvalidState => (10, 0),
                    End::TaskSwitch => (11, 0),
                    End::UnknownExit([code, ..]) => (12, code),
                };
                (code, vcpu.into(), word)
            }
            Self::Stopped => (32, 0, 0),
            Self::DidNotCome(node) => (33, node, 0),
            Self::Refused { node, why } => (34, node, why as u64),
            Self::Lost(node) => (35, node, 0),
            Self::CutOff(node) => (36, node, 0),
            Self::Failed(node) => (37, node, 0),
        }
    }

    pub(super) fn decode(code: u8, who: u16, word: u64) -> Option<Self> {
        let guest = |end| Some(Self::Guest { end, vcpu: u8::try_from(who).ok()? });
        match (code, word) {
            (1, 0) => guest(End::PoweredOff),
            (2, 0) => guest(End::Reset),
            (3, 0) => guest(End::TripleFault),
            (4, 0) => guest(End::HaltedForEver),
            (5, word) => {
                let [first @ .., length] = word.to_le_bytes();
                let mut encoding = Encoding { bytes: Default::default(), length };
                encoding.bytes.iter_mut().zip(first).for_each(|(to, from)| *to = from);
                guest(End::Unsupported(encoding))
            }
            (6, at) => guest(End::CodeNotMemory(at)),
            (7, at) => guest(End::DeliveryNotMemory(at)),
            (8, at) => guest(End::TablesNotMemory(at)),
            (9, at) => guest(End::MemoryLost(at)),
            (10, 0) => guest(End::InvalidState),
            (11, 0) => guest(End::TaskSwitch),
            (12, code) => guest(End::UnknownExit([code, 0, 0])),
            (32, 0) if who == 0 => Some(Self::Stopped),
            (33, 0) => Some(Self::DidNotCome(who)),
            (34, why) => {
                let why = match why {
                    1 => Refusal::Memory,
                    2 => Refusal::Machine,
                    3 => Refusal::Vcpus,
                    4 => Refusal::Time,
                    _ => return None,
                };
                Some(Self::Refused { node: who, why })
            }
            (35, 0) => Some(Self::Lost(who)),
            (36, 0) => Some(Self::CutOff(who)),
            (37, 0) => Some(Self::Failed(who)),
            _ => None,
        }
    }

    /// In words, for a guest of these shares whose first node waits for so many seconds.
    #[must_use]
    pub const fn told(self, shares: &[Share], patience_s: u16) -> Told<'_> {
        Told { ending: self, shares, patience_s }
    }
}

/// See [`Ending::told`].
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    ending: Ending,
    shares: &'a [Share],
    patience_s: u16,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ending {
            Ending::Guest { end: end @ (End::PoweredOff | End::Reset), .. } => end.fmt(f),
            Ending::Guest { end, vcpu } => {
                end.fmt(f)?;
                match vcpu_at(self.shares, vcpu.into()) {
                    Some((place, local)) => {
                        let node = self.shares.get(place).map_or(0, |share| share.node);
                        write!(f, " (vCPU {vcpu}, which is {local} of node {node})")
                    }
                    None => write!(f, " (vCPU {vcpu}, which is none)"),
                }
            }
            Ending::Stopped => f.write_str("stopped"),
            Ending::DidNotCome(node) => {
                write!(f, "refused: node {node} did not come within {} s", self.patience_s)
            }
            Ending::Refused { node, why } => {
                write!(f, "refused: node {node} ")?;
                f.write_str(match why {
                    Refusal::Memory => "has no memory for it now",
                    Refusal::Machine => "cannot make its part of it",
                    Refusal::Vcpus => "cannot start its vCPUs",
                    Refusal::Time => "does not know the cluster's time",
                })
            }
            Ending::Lost(node) => match self.shares.iter().find(|share| share.node == node) {
                Some(share) => write!(
                    f,
                    "crashed: node {node} is lost, and with it {} vCPUs and {} MiB",
                    share.vcpus,
                    share.pages / 256
                ),
                None => write!(f, "crashed: node {node} is lost"),
            },
            Ending::CutOff(node) => write!(f, "crashed: node {node} is cut off from the others"),
            Ending::Failed(node) => {
                write!(f, "crashed: the platform of node {node} failed and was restarted")
            }
        }
    }
}
