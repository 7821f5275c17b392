//! Interconnect: the node's network card, the nodes that it hears of, and how fast a bare exchange with one is.

use heapless::Vec;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::wire::{Class, MESSAGE_BYTES, WireError};

/// The most nodes that one node hears of.
pub const MAX_PEERS: usize = 64;
/// The most exchanges in one measurement.
pub const MAX_EXCHANGES: u16 = 1000;

crate::interface! {
    /// Tells of the network, and measures it.
    pub interface Interconnect = 4 {
        /// The card, and what passed it since the service's start; `None` when the node has no card.
        control counters() -> Option<Counters> = 1;
        /// The nodes that were heard of lately.
        control peers() -> Peers = 2;
        /// Begins to measure bare exchanges with another node, one after another. Pages have other contents each
        /// time, and those of each answer are compared.
        control begin_exchange(ExchangeRequest) -> ExchangeAnswer = 3;
        /// How the measurement that was begun last stands.
        control exchange() -> Exchange = 4;
        /// Who belongs to the cluster, and how well its clock is known; `None` when the node has no card.
        control view() -> Option<View> = 5;
        /// The cluster's time, once it is known.
        control time() -> Option<Time> = 6;
        /// The frames of the guest's pool that the service has now; none when it is not the guest's carrier. All messages that
        /// came and were not taken, and all of the caller's that were not transmitted, are dropped: for the owner of the
        /// guest's memory when it begins anew. A frame that came and was not made up for is the caller's, and is not made up
        /// for any more.
        control frames() -> Frames = 7;
        /// Sends a message through the reliable channel to a member.
        hot send(Outgoing) -> Sent = 8;
        /// Gives the caller the next message that came for it. A frame that came with the last one is made up for.
        hot receive(Next) -> Incoming = 9;
    }
}

/// The card, and what passed it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// The card's address.
    pub mac: [u8; 6],
    /// The longest Ethernet payload of the link, as far as the card knows.
    pub mtu: Option<u16>,
    /// Whether its link is up.
    pub link_up: bool,
    /// Frames sent, and their bytes.
    pub sent: Traffic,
    /// Frames received and accepted, and their bytes.
    pub received: Traffic,
    /// Frames not accepted or not sent, by reason.
    pub dropped: Drops,
    /// Hellos of nodes that cannot be members beside this one.
    pub refused: u64,
    /// Messages with contents.
    pub messages: Messages,
    /// Times that an interrupt of the card told the service of frames.
    pub interrupts: u64,
    /// Frames of reliable channels that were sent again, because later ones had come or a time-out had passed.
    pub retransmissions: u64,
    /// From sending a frame of a reliable channel to its acknowledgement, which may wait for a frame to go with.
    pub round_trips: RoundTrips,
    /// Parts of pages that the processor copied. A link that carries a page in one frame needs none.
    pub copies: u64,
}

/// Round trips, with all members that there were.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RoundTrips {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer, in nanoseconds, to a quarter; 0 when there was none.
    pub median_ns: u64,
    /// 99 of 100 took no longer, in nanoseconds, to a quarter; 0 when there was none.
    pub percentile_99_ns: u64,
}

/// Messages that had a page frame, sent through reliable channels, and what became of them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Messages {
    /// Taken to be sent.
    pub sent: u64,
    /// The other node has them.
    pub acknowledged: u64,
    /// Given up, because the other node's life is no member any more.
    pub abandoned: u64,
}

/// No frame.
pub const NO_FRAME: u32 = u32::MAX;
/// Frames of the guest's pool.
pub type Frames = Vec<u32, { crate::guest::CARRIER_FRAMES as usize }>;

/// Whose the page is that goes with a message.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u8)]
pub enum Contents {
    /// No page goes with it.
    None = 0,
    /// No page goes with it, and a processor waits for what comes back: the service may poll for that.
    Awaited = 3,
    /// The page in the frame named, which stays the sender's. Until the message was delivered the sender neither changes
    /// nor frees it, which it knows from what it hears of the receiver.
    Shared = 1,
    /// The page in the frame named, which is the service's from now on; the sender gets another one for it.
    Given = 2,
}

/// A message to be sent.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
pub struct Outgoing {
    /// What it says.
    pub message: [u8; MESSAGE_BYTES],
    /// A frame of the guest's pool, or [`NO_FRAME`].
    pub frame: u32,
    /// To which node.
    pub node: u16,
    /// How urgent: [`Class::Platform`] reaches the guest's platform there, every other the owner of its memory.
    pub class: Class,
    /// Whether a page goes with it.
    pub contents: Contents,
}

/// What the service makes of an [`Outgoing`].
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
pub struct Sent {
    /// Whether it is taken.
    pub answer: SendAnswer,
    /// The frame in exchange for one that was [`Contents::Given`], when it is taken; else [`NO_FRAME`].
    pub frame: u32,
}

/// Whether a message is taken. Unless it is, a frame stays the caller's.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u32)]
pub enum SendAnswer {
    /// It is taken: it comes once and in order, or is given up with the other node's life.
    Taken = 0,
    /// The node has no card.
    NoCard = 1,
    /// The other node is not a member.
    NoSuchMember = 2,
    /// So many wait that there is no room for it now, or no frame in exchange. `arrived` is raised when there is again.
    Full = 3,
    /// The frame is none of the pool's, or is the service's.
    BadFrame = 4,
}

/// What a client says when it asks for the next message.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Next {
    /// A frame for the one that came with the last message: each is made up for before the next one comes. Otherwise
    /// [`NO_FRAME`].
    pub frame: u32,
    /// Zero.
    pub reserved: u32,
}

/// A message that came, or none.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
pub struct Incoming {
    /// What it says.
    pub message: [u8; MESSAGE_BYTES],
    /// The frame with the page that came with it, which is the caller's from now on; or [`NO_FRAME`].
    pub frame: u32,
    /// From which node.
    pub node: u16,
    /// How urgent it was.
    pub class: Class,
    /// What this is.
    pub kind: IncomingKind,
}

/// What an [`Incoming`] is.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u8)]
pub enum IncomingKind {
    /// There is no message.
    Nothing = 0,
    /// A message, behind which there are more.
    Message = 1,
    /// A message, behind which there is none: the caller is told when the next one comes.
    Last = 3,
    /// No message is given, because the frame that came with the last one was not made up for.
    Owed = 2,
}

impl IncomingKind {
    /// Whether there is a message.
    #[must_use]
    pub const fn is_message(self) -> bool {
        matches!(self, Self::Message | Self::Last)
    }
}

/// The cluster's time.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Time {
    /// A tick of the node's TSC.
    pub local: u64,
    /// The cluster's time then, in ticks.
    pub cluster: u64,
    /// How far it may be from the first member's, in ticks.
    pub error: u64,
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Ethernet frames.
    pub frames: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// Frames not accepted or not sent, by reason. All but the last were received.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Drops {
    /// Shorter than its headers.
    pub short: u64,
    /// Of another Ethernet type.
    pub foreign: u64,
    /// Of another version of the protocol.
    pub version: u64,
    /// Encrypted with a key that this node does not have.
    pub key: u64,
    /// A field of its header is none of ours.
    pub malformed: u64,
    /// Its header's or its payload's checksum is wrong.
    pub corrupt: u64,
    /// Of another cluster.
    pub other_cluster: u64,
    /// Of another epoch.
    pub other_epoch: u64,
    /// For another station.
    pub elsewhere: u64,
    /// From a card that claims a number which is this node's, or another card's.
    pub duplicate: u64,
    /// From a node that is no member.
    pub stranger: u64,
    /// Answers nothing that was asked, or goes to all where it must go to one.
    pub unexpected: u64,
    /// Not sent: the card's queue was full, or there was no page frame.
    pub no_room: u64,
}

impl Drops {
    /// Counts a frame that is refused for this reason.
    pub const fn count(&mut self, error: &WireError) {
        *match error {
            WireError::Truncated { .. } => &mut self.short,
            WireError::EtherType(_) => &mut self.foreign,
            WireError::Version(_) => &mut self.version,
            WireError::Key(_) => &mut self.key,
            WireError::EthernetSource(_)
            | WireError::Kind(_)
            | WireError::Source(_)
            | WireError::PayloadLength { .. } => &mut self.malformed,
            WireError::HeaderChecksum | WireError::PayloadChecksum => &mut self.corrupt,
            WireError::Cluster(_) => &mut self.other_cluster,
            WireError::Epoch(_) => &mut self.other_epoch,
            WireError::Destination(_) => &mut self.elsewhere,
            WireError::OwnSource => &mut self.duplicate,
        } += 1;
    }

    /// All that were received.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let Self { short, foreign, version, key, malformed, corrupt, .. } = *self;
        let Self { other_cluster, other_epoch, elsewhere, duplicate, stranger, unexpected, .. } = *self;
        short
            + foreign
            + version
            + key
            + malformed
            + corrupt
            + other_cluster
            + other_epoch
            + elsewhere
            + duplicate
            + stranger
            + unexpected
    }
}

/// The nodes that were heard of lately.
pub type Peers = Vec<Peer, MAX_PEERS>;

/// Another node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peer {
    /// Its number.
    pub node: u16,
    /// Its card's address.
    pub mac: [u8; 6],
    /// Which of its lives: another number after each start.
    pub incarnation: u16,
    /// Whether this life of it is a member of the view that is installed.
    pub is_member: bool,
    /// Milliseconds since it was last heard of.
    pub silent_ms: u32,
}

/// Who belongs to the cluster, as this node knows it, and the cluster's clock.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct View {
    /// Which view is installed; 0 for none.
    pub epoch: u32,
    /// The numbers of its members, in their order.
    pub members: Vec<u16, MAX_PEERS>,
    /// This node's number.
    pub node: u16,
    /// Which life of this node.
    pub incarnation: u16,
    /// Whether this node hears enough of the members to act in the view.
    pub may_act: bool,
    /// How far this node's reading of the cluster's clock may be from the first member's, in nanoseconds, once it is
    /// known.
    pub clock_error_ns: Option<u64>,
}

/// What to measure.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExchangeRequest {
    /// With which node.
    pub node: u16,
    /// What goes there and back.
    pub shape: Shape,
    /// How many exchanges, 1 to [`MAX_EXCHANGES`].
    pub count: u16,
}

/// What goes there and back in an exchange; 80 bytes are a frame's headers, the card's included.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Shape {
    /// 80 bytes there and 80 back.
    #[default]
    Short,
    /// A page there and the same page back.
    Page,
    /// 80 bytes there and a page back, as when a page of another node is asked for.
    Fetch,
}

/// What the service makes of an [`ExchangeRequest`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExchangeAnswer {
    /// It has begun.
    Begun,
    /// The node has no card.
    NoCard,
    /// The node is not a member.
    NoSuchPeer,
    /// Another measurement runs.
    Busy,
    /// The count is out of its range.
    OutOfRange,
    /// The link carries no page in one frame; its MTU, as far as the card knows.
    TooLong(Option<u16>),
}

/// A measurement.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Exchange {
    /// None was begun since the service's start.
    #[default]
    None,
    /// It runs; so many exchanges were answered.
    Running(u16),
    /// It is over.
    Done(ExchangeTimes),
}

/// What was measured, in TSC ticks from giving the request to the card to having checked the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExchangeTimes {
    /// What was asked for.
    pub request: ExchangeRequest,
    /// Exchanges whose answer came.
    pub completed: u16,
    /// Exchanges whose answer did not come in time. Each was made up for by another one; but after several in a row
    /// the rest was not tried.
    pub lost: u16,
    /// Answers that did not hold what they should, although their checksums said so.
    pub wrong: u16,
    /// The shortest; 0 when none was completed.
    pub least_ticks: u64,
    /// Half of them took no longer.
    pub median_ticks: u64,
    /// 99 of 100 took no longer.
    pub percentile_99_ticks: u64,
    /// The longest.
    pub most_ticks: u64,
}
