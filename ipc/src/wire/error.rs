//! What is wrong with a frame.

use core::fmt;

use super::{HEADER_BYTES, MacAddress};

/// What is wrong with a frame: the first wrong field, in the order of the checks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WireError {
    /// Shorter than both headers.
    Truncated {
        /// Bytes that came.
        bytes: usize,
    },
    /// The EtherType is not ours.
    EtherType(u16),
    /// The Ethernet source is a group address.
    EthernetSource(MacAddress),
    /// A version that this does not know.
    Version(u8),
    /// A key that this node does not have.
    Key(u8),
    /// The header's checksum does not fit the header.
    HeaderChecksum,
    /// No [`Kind`](super::Kind) has this number.
    Kind(u8),
    /// The source is [`NO_NODE`](super::NO_NODE).
    Source(u16),
    /// The payload length is none that a frame can have, or not what came.
    PayloadLength {
        /// What the header says.
        said: usize,
        /// Bytes that came after the headers.
        there: usize,
    },
    /// The payload's checksum does not fit the payload.
    PayloadChecksum,
    /// Another cluster's.
    Cluster(u16),
    /// Of another epoch.
    Epoch(u32),
    /// For another station.
    Destination(MacAddress),
    /// It says that it comes from this very node.
    OwnSource,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { bytes } => write!(f, "truncated: {bytes} bytes of {HEADER_BYTES}"),
            Self::EtherType(value) => write!(f, "EtherType {value:#06x}"),
            Self::EthernetSource(mac) => write!(f, "Ethernet source {mac} is a group"),
            Self::Version(value) => write!(f, "version {value}"),
            Self::Key(value) => write!(f, "unknown key {value}"),
            Self::HeaderChecksum => f.write_str("header checksum"),
            Self::Kind(value) => write!(f, "unknown kind {value}"),
            Self::Source(value) => write!(f, "source node {value}"),
            Self::PayloadLength { said, there } => {
                write!(f, "payload length {said}, but {there} bytes came")
            }
            Self::PayloadChecksum => f.write_str("payload checksum"),
            Self::Cluster(value) => write!(f, "cluster {value}"),
            Self::Epoch(value) => write!(f, "epoch {value}"),
            Self::Destination(value) => write!(f, "for {value}"),
            Self::OwnSource => f.write_str("own node number as source"),
        }
    }
}

impl core::error::Error for WireError {}
