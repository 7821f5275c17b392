//! Channels: a single-producer single-consumer ring of typed descriptors in memory that both sides can write.
//!
//! # Layout, in 64-bit words
//!
//! | words | written by | what |
//! | --- | --- | --- |
//! | 0 | producer | its index |
//! | 8 | consumer | its index |
//! | 16 | producer | the consumer's index at which the producer is to be woken |
//! | 17, 18 | producer | its epoch, and the consumer's epoch that it acknowledges |
//! | 24 | consumer | the producer's index at which the consumer is to be woken |
//! | 25, 26 | consumer | its epoch, and the producer's epoch that it acknowledges |
//! | 32.. | producer | the descriptors |
//!
//! What changes with each descriptor and what changes with each sleep or restart have cache lines of their own. An index counts descriptors since the two sides found each other, and
//! never wraps; its low bits are the position in the ring, whose capacity is the largest power of two that the
//! region holds.
//!
//! # Trust
//!
//! A side never reads back what it wrote: its own index is private, and the shared copy is for the other side. What
//! the other side wrote is a claim. An index outside what is possible is [`ChannelError::Misbehaved`]; positions are
//! computed from private indices alone, so whatever the other side writes, nothing outside the ring is read.
//!
//! # Sleeping and waking
//!
//! A side that can go no further asks to be woken when the other's index passes what it has seen of it, then looks
//! again, and sleeps only when there is still nothing ([`Sleep::Ready`]). The other side publishes its index, then looks
//! whether a wake was asked for between its old and its new index ([`Wake::Needed`]). Each does *store, fence, load*
//! with the two words swapped:
//!
//! ```text
//! sleeper:    store wake word;  SeqCst fence;  load index
//! publisher:  store index;      SeqCst fence;  load wake word
//! ```
//!
//! The two fences stand in one total order. If the sleeper's is first, the publisher's load, after its own fence,
//! sees the wake word, and it wakes. If the publisher's is first, the sleeper's load sees the index, and it does not
//! sleep. There is no third case, so no wake-up is lost; a release store and an acquire load alone would allow both
//! loads to see old values. The notification itself is sticky, so one that comes before the sleep ends the sleep.
//! As an index passes a value once, a sleep costs one notification at most.
//!
//! # Restart
//!
//! A side that opens the channel takes a new epoch and starts at index 0. The other side finds an epoch that it has
//! not acknowledged, starts at 0 as well, acknowledges, and reports [`ChannelError::PeerRestarted`]. A side believes
//! the other's index only while the other acknowledges its epoch. The order of stores (in the module `side`) makes a restart at
//! any point safe. Since either side may be asleep meanwhile, **a side raises the notification after it opened and
//! after each `PeerRestarted`**, whatever [`Wake`] says.

use core::fmt;
use core::sync::atomic::{self, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

mod consumer;
mod producer;
mod side;

pub use consumer::Consumer;
pub use producer::Producer;

/// Words before the descriptors.
const HEADER_WORDS: usize = 32;

/// Bytes that a channel of `entries` descriptors (rounded up to a power of two) needs.
#[must_use]
pub const fn region_bytes(entries: usize, descriptor_bytes: usize) -> usize {
    HEADER_WORDS * size_of::<u64>() + entries.next_power_of_two() * descriptor_bytes
}

/// Memory that the peer can write at any time.
pub trait SharedWords {
    /// How many words there are.
    fn count(&self) -> usize;

    /// Loads a word. `index` is less than [`count`](Self::count).
    fn load(&self, index: usize, order: Ordering) -> u64;

    /// Stores a word. `index` is less than [`count`](Self::count).
    fn store(&self, index: usize, value: u64, order: Ordering);

    /// A sequentially consistent fence.
    fn fence(&self) {
        atomic::fence(Ordering::SeqCst);
    }
}

/// What a channel carries: a fixed layout of whole words.
pub trait Descriptor: FromBytes + IntoBytes + Immutable {}

impl<D: FromBytes + IntoBytes + Immutable> Descriptor for D {}

/// Whether to raise the notification for the other side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "a wake-up that is not passed on is lost"]
pub enum Wake {
    /// It asked for it.
    Needed,
    /// It did not.
    NotNeeded,
}

/// Whether to wait for the notification now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "sleeping without having asked for a wake-up may last for ever"]
pub enum Sleep {
    /// The other side will raise the notification: wait for it.
    Ready,
    /// There is something to do.
    NotNow,
}

/// Why a channel does not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChannelError {
    /// The consumer has not made room, or is not there yet.
    Full,
    /// The other side (re)started. What was under way is lost, and both sides begin anew: raise the notification,
    /// then go on.
    PeerRestarted,
    /// The other side wrote an index that cannot be: open the channel anew, or have nothing more to do with it.
    Misbehaved,
    /// The region does not hold a single descriptor.
    TooSmall,
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the channel is full",
            Self::PeerRestarted => "the channel's other side was restarted",
            Self::Misbehaved => "the channel's other side wrote an impossible index",
            Self::TooSmall => "the channel's region is too small",
        })
    }
}

impl core::error::Error for ChannelError {}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
