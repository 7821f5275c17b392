//! Ept: the memory that this node can give, and what became of the guest's.

use serde::{Deserialize, Serialize};

use crate::guest::Shares;

crate::interface! {
    /// Tells what memory this node has, and how the guest uses it.
    pub interface Ept = 3 {
        /// The node's frames.
        control memory() -> Memory = 1;
        /// The guest's memory on this node; `None` when it has no guest.
        control counters() -> Option<Counters> = 2;
        /// Takes all of the guest's memory away, a part at each call; `true` when nothing is left. Its vCPUs are stopped.
        /// Refused to all but its platform.
        control release() -> bool = 3;
        /// A guest begins whose memory these nodes share, this one among them. Nothing is left of the one before. Refused to
        /// all but its platform, and while this node has pages of another.
        control begin(Begin) -> bool = 4;
    }
}

/// The nodes that share a guest's memory.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Begin {
    /// The number of the guest's start, the same on all nodes: messages of another are dropped.
    pub run: u32,
    /// What each node gives.
    pub shares: Shares,
}

/// The node's memory, in frames of 4 KiB.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Memory {
    /// Frames in all.
    pub frames_total: u64,
    /// Frames that nobody has.
    pub frames_free: u64,
}

/// The guest's memory on this node. Pages and frames are of 4 KiB, ranges of 2 MiB; faults are counted from the service's
/// start, all else is as it is now, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Pages of guest memory, with those that the guest does not see.
    pub pages: u64,
    /// Pages that are mapped read-only to the shared page of zeros.
    pub zero_pages: u64,
    /// The frames that the guest's memory can have.
    pub frames: Frames,
    /// Ranges that are mapped by one large page, or may be some day.
    pub ranges: Ranges,
    /// Faults.
    pub faults: Faults,
}

/// The frames that the guest's memory can have.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Frames {
    /// In all.
    pub total: u64,
    /// Those that hold a page, with the shared page of zeros.
    pub used: u64,
    /// Those of the others that are set aside for a range; given to other ranges when there is nothing else.
    pub reserved: u64,
}

/// Ranges that are mapped by one large page, or may be some day.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ranges {
    /// Those that have 512 contiguous frames to themselves, with the large ones.
    pub reserved: u64,
    /// Those that are mapped by one large page.
    pub large: u64,
    /// Those that lost their unused frames to others, since the start.
    pub broken: u64,
    /// Those that became full and could not be mapped by one large page, since the start.
    pub not_promoted: u64,
}

/// Faults, by what they were; each is counted once, but for `of_window` and `around_pages`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Faults {
    /// Reads of a page never written: answered with the shared page of zeros.
    pub read_dormant: u64,
    /// First writes of a page: answered with a frame.
    pub write_dormant: u64,
    /// First writes of a page that had been read before: the shared page of zeros is replaced by a frame.
    pub upgrade: u64,
    /// Faults that were over before they were looked at: another processor had the same.
    pub spurious: u64,
    /// Refused: there is no guest memory at the address.
    pub outside: u64,
    /// Refused: all frames hold pages.
    pub out_of_memory: u64,
    /// Refused: the kernel did not map what it was asked to.
    pub not_mapped: u64,
    /// Refused: the guest's memory is being taken away.
    pub stopping: u64,
    /// How many of all these came from the platform's window and not from a vCPU.
    pub of_window: u64,
    /// Pages that got a frame along with a neighbour, before anything wrote to them.
    pub around_pages: u64,
}
