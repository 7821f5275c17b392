//! Interconnect: the node's network card, the nodes that it hears of, and how fast a bare exchange with one is.

use heapless::Vec;
use serde::{Deserialize, Serialize};

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
    /// Times that an interrupt of the card told the service of frames.
    pub interrupts: u64,
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Ethernet frames.
    pub frames: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// Frames not accepted or not sent, by reason.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Drops {
    /// Received: shorter than its headers.
    pub short: u64,
    /// Received: of another Ethernet type.
    pub foreign: u64,
    /// Received: of our type, but a field of its header is none of ours.
    pub malformed: u64,
    /// Received: its header's or its payload's checksum is wrong.
    pub corrupt: u64,
    /// Received: of another cluster or epoch, or for another node.
    pub elsewhere: u64,
    /// Received: from a node that has this node's number, or another node's.
    pub duplicate: u64,
    /// Received: answers nothing that was asked, or asks everybody what is for one.
    pub unexpected: u64,
    /// Not sent: the card's queue was full.
    pub no_room: u64,
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
    /// Milliseconds since it was last heard of.
    pub silent_ms: u32,
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

/// What goes there and back in an exchange; 64 bytes are a frame's headers, the card's included.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Shape {
    /// 64 bytes there and 64 back.
    #[default]
    Short,
    /// A page there and the same page back.
    Page,
    /// 64 bytes there and a page back, as when a page of another node is asked for.
    Fetch,
}

/// What the service makes of an [`ExchangeRequest`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExchangeAnswer {
    /// It has begun.
    Begun,
    /// The node has no card.
    NoCard,
    /// The node is not among the [`Peers`].
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
