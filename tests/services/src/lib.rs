//! What the test services share: their interfaces, and the faults that a victim commits.
#![no_std]
#![forbid(unsafe_code)]

pub mod crime;
pub mod random;

/// A server that does what it is asked.
pub mod echo {
    /// Bytes of a long message.
    pub type Bytes = heapless::Vec<u8, 3000>;

    ipc::interface! {
        /// Answers.
        pub interface Echo = 200 {
            /// Each word plus one.
            hot add([u64; 4]) -> [u64; 4] = 1;
            /// The bytes in reverse.
            control reverse(Bytes) -> Bytes = 2;
            /// Answers after so many microseconds.
            hot pause(u64) -> u64 = 3;
            /// What came through the channel: descriptors, their sum, frames whose contents were right.
            hot received() -> [u64; 3] = 4;
        }
    }
}

/// A server that fails on demand.
pub mod victim {
    ipc::interface! {
        /// Fails.
        pub interface Victim = 201 {
            /// Commits the [`crate::crime::Crime`] of this number.
            hot commit(u64) -> u64 = 1;
            /// Calls since its start, in memory that a restart clears, and starts, in memory that a restart keeps.
            hot counts() -> [u64; 2] = 2;
        }
    }
}

/// A client that calls without pause.
pub mod load {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    /// What became of its calls.
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    #[repr(C)]
    pub struct Tally {
        /// Calls made.
        pub calls: u64,
        /// Right answers.
        pub right: u64,
        /// Calls that ended as restarted.
        pub restarted: u64,
        /// Anything else: each is a defect.
        pub wrong: u64,
    }

    ipc::interface! {
        /// Counts.
        pub interface Load = 202 {
            /// Of its calls to the service that is killed.
            hot to_prey() -> Tally = 1;
            /// Of its calls to the service that is not.
            hot to_echo() -> Tally = 2;
        }
    }
}

/// The byte at a place of a frame that is handed over: made of both, so that a wrong frame or place shows.
#[must_use]
pub const fn frame_byte(handle: ipc::frame::FrameHandle, place: usize) -> u8 {
    let [low, ..] =
        (handle.0 ^ (handle.0 >> 8)).wrapping_mul(31).wrapping_add(place as u64 * 7).to_le_bytes();
    low
}
