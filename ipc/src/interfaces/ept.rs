//! Ept: the memory that this node can give, and what became of the guest's.

use heapless::Vec;
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
        /// What this node has, gives and takes of the memory that nodes share; `None` while no such guest runs.
        control sharing() -> Option<Sharing> = 5;
        /// The pages, and the guest's instructions, whose faults needed another node most often.
        control hottest() -> HotList = 6;
    }
}

/// The most entries of each of a [`HotList`]'s tables.
pub const MOST_HOT: usize = 16;

/// What faulted most often. Empty while no guest runs that spans nodes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct HotList {
    /// Pages: guest-physical addresses over 4,096.
    pub pages: Vec<Hot, MOST_HOT>,
    /// Instructions: what the guest's RIP was.
    pub instructions: Vec<Hot, MOST_HOT>,
}

/// An entry of a [`HotList`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hot {
    /// What.
    pub what: u64,
    /// How often at most.
    pub count: u64,
    /// By how much the count may be too high.
    pub excess: u64,
}

/// The memory that nodes share, as this node sees it. All is counted from the guest's start, but for what it has now.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sharing {
    /// The number of the guest's start.
    pub run: u32,
    /// This node's place among those that share.
    pub place: u16,
    /// How many share.
    pub nodes: u16,
    /// Pages that are mapped here to the shared page of zeros.
    pub zero: u64,
    /// Pages that are here to be read alone.
    pub read: u64,
    /// Pages that are here to be read and written.
    pub write: u64,
    /// Frames for pages that come.
    pub free: u64,
    /// Faults by reading.
    pub reads: u64,
    /// Faults by writing.
    pub writes: u64,
    /// Those of both that another node had to be asked for, or waited for.
    pub remote: u64,
    /// Those of the remote ones that were of the guest's programs, whose addresses are in the lower half.
    pub remote_user: u64,
    /// Those of both that ended without a page.
    pub refused: u64,
    /// Those of both that have to be tried again because no node had room.
    pub starved: u64,
    /// Grants of the shared page of zeros.
    pub zeros: u64,
    /// Pages that got a frame of zeros, with those that got one along with a neighbour.
    pub materialised: u64,
    /// Grants without contents, since they were here.
    pub kept: u64,
    /// Pages that came from another node.
    pub fetched: u64,
    /// Pages, or copies of them, that went to another node.
    pub given: u64,
    /// Copies that were given up.
    pub invalidated: u64,
    /// Pages that were pushed here by a node without room.
    pub taken: u64,
    /// Messages sent.
    pub sent: Messages,
    /// Messages received.
    pub received: u64,
    /// Times that the interconnect had no room for a message.
    pub full: u64,
    /// Messages that were dropped.
    pub dropped: Dropped,
    /// Pages that were asked for before they were needed.
    pub ahead: Ahead,
}

/// Pages that were asked for before they were needed. They are among the other counters too, but not among the remote faults.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ahead {
    /// Asked for.
    pub asked: u64,
    /// Came.
    pub granted: u64,
    /// Needed while they were on their way. One that comes in time is used without anybody's seeing it.
    pub hits: u64,
}

/// Messages, by their class.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Messages {
    /// Demands and answers.
    pub control: u64,
    /// Requests.
    pub request: u64,
    /// Pages, each of 4,096 bytes.
    pub page: u64,
}

/// Messages that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Dropped {
    /// Of another start of the guest.
    pub run: u64,
    /// From a node that does not share.
    pub stranger: u64,
    /// They say nothing, or came without the page of which they tell, or with one.
    pub malformed: u64,
    /// They do not fit what is under way.
    pub unexpected: u64,
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
