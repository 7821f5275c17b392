//! The supervisor: registration, beats, and what became of each service.

use heapless::String;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::abi::FaultCause;
use crate::image::NameString;

crate::interface! {
    /// Registers services and watches over them.
    pub interface Supervisor = 1 {
        /// Tells that the caller is up and what it is. Refused when the name is not that of the caller.
        control register(Description) -> Registration = 1;
        /// Tells that the caller is alive.
        hot beat(Beat) -> BeatReply = 2;
        /// What became of the service with this number; `None` past the last.
        control service_report(u8) -> Option<ServiceReport> = 3;
        /// How the node's services are, in sum.
        control node_state() -> NodeState = 4;
    }
}

/// What a service says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Description {
    /// Its name.
    pub name: NameString,
    /// Its version, as in its Cargo.toml.
    pub version: String<16>,
    /// The interface that it serves, if any.
    pub interface: Option<u8>,
}

/// What the supervisor makes of a [`Description`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registration {
    /// The service's number.
    pub service: u8,
    /// The longest time between two beats in milliseconds; 0: none are due.
    pub beat_ms: u32,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Beat {
    /// One more at each beat since the service's start.
    pub sequence: u64,
}

/// The answer to a [`Beat`].
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
pub struct BeatReply {
    /// What to do now.
    pub answer: BeatAnswer,
    /// The longest time to the next beat in milliseconds; 0: none is due.
    pub due_ms: u64,
}

/// What a service does after a [`Beat`].
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u64)]
pub enum BeatAnswer {
    /// It goes on.
    Accepted = 0,
    /// It registers again: the supervisor does not know it, because it was itself restarted.
    RegisterAgain = 1,
}

/// What became of one service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: NameString,
    /// Where it stands.
    pub standing: Standing,
    /// Which start this is: 0 at boot, one more at each restart.
    pub generation: u32,
    /// Restarts within the period that its limit counts over.
    pub recent_restarts: u16,
    /// Why it was last stopped, if ever.
    pub last_fault: Option<LastFault>,
    /// Milliseconds since its last beat, if it has sent one since its start.
    pub beat_age_ms: Option<u32>,
}

/// Where a service stands with the supervisor.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Standing {
    /// Started, not yet registered.
    Starting,
    /// Registered, and its beats, where due, come in time.
    Up,
    /// Stopped; its restart waits or is under way.
    Restarting,
    /// Past its restart limit: stays down.
    Down,
}

/// Why a service was stopped.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct LastFault {
    /// The cause.
    #[serde(with = "Cause")]
    pub cause: FaultCause,
    /// Where it ran.
    pub instruction: u64,
    /// The address of a page fault, 0 for other causes.
    pub address: u64,
    /// Milliseconds since then.
    pub age_ms: u64,
}

/// How the node's services are, in sum.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeState {
    /// Services that are [`Standing::Up`].
    pub up: u8,
    /// Services that are [`Standing::Down`].
    pub down: u8,
    /// Services in all.
    pub total: u8,
    /// Milliseconds since one of these last changed.
    pub since_ms: u64,
}

impl NodeState {
    /// Whether all services are up.
    #[must_use]
    pub const fn all_up(&self) -> bool {
        self.up == self.total
    }
}

/// [`FaultCause`] as serde sees it.
#[derive(Deserialize, Serialize)]
#[serde(remote = "FaultCause")]
enum Cause {
    Exception,
    PageFault,
    StackOverflow,
    Panic,
    Budget,
    Exit,
    Stopped,
}
