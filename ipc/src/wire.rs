//! The frame on the wire between nodes: Ethernet, then a fixed header of ours, then at most one page.
//!
//! ```text
//! network card's header (12, never on the wire) | Ethernet (14) | Unum (38) | payload (0, or 8 to 4096)
//! ```
//!
//! The first three fill 64 bytes, so a receive buffer of 64 bytes followed by a page frame has the payload at the
//! page frame's start. All numbers of ours are little-endian; the EtherType is big-endian, as Ethernet wants.
//!
//! Both checksums are CRC-32C. The headers have one of their own, Ethernet's included, so that they are judged without
//! touching the page. A frame with a key other than [`KEY_NONE`] is for authenticated encryption: its tag takes the
//! place of the two checksums ([`UnumHeader::integrity`]), and class, source, incarnation, sequence and transmission
//! make its nonce, which no two frames under one key share. Until keys exist such a frame is refused.
//!
//! What a frame says is a claim: [`FrameHeader::parse`] checks its form, [`FrameHeader::check_address`] whether it
//! is meant for this node.

mod crc;

use core::fmt;

use zerocopy::byteorder::big_endian::U16 as BigU16;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::abi::PAGE_SIZE;

pub use crc::crc32c;

/// The EtherType of our frames: IEEE 802's local experimental 1.
pub const ETHER_TYPE: u16 = 0x88b5;
/// The version of the header that this describes.
pub const VERSION: u8 = 1;
/// The shortest payload in bytes of a frame that has one; what says less is padded by its sender.
pub const MIN_PAYLOAD: usize = 8;
/// The longest payload in bytes: one page.
pub const MAX_PAYLOAD: usize = PAGE_SIZE;
/// Bytes of the Ethernet header and ours.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
/// The Ethernet payload (MTU) in bytes that a link must carry for a page to go in one frame.
pub const PAGE_MTU: usize = size_of::<UnumHeader>() + MAX_PAYLOAD;
/// The shortest Ethernet frame in bytes, without its checksum; a sender or a card pads shorter ones with anything.
pub const MIN_ETHERNET: usize = 60;
/// The node number that stands for all nodes; never a source.
pub const ALL_NODES: u16 = 0xffff;
/// The Ethernet address that stands for all stations.
pub const ALL_STATIONS: MacAddress = MacAddress([0xff; 6]);
/// [`UnumHeader::key`] of a frame that is not encrypted.
pub const KEY_NONE: u8 = 0;

/// An Ethernet address.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned,
)]
#[repr(transparent)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it names one station, as a frame's source must (IEEE 802: bit 0 of the first octet).
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The Ethernet header.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct EthernetHeader {
    /// The station it goes to.
    pub destination: MacAddress,
    /// The station it comes from.
    pub source: MacAddress,
    /// [`ETHER_TYPE`].
    pub ether_type: BigU16,
}

/// Our header.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct UnumHeader {
    /// [`VERSION`].
    pub version: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// A [`Class`].
    pub class: u8,
    /// Which key encrypts it; [`KEY_NONE`].
    pub key: u8,
    /// The cluster: frames of other clusters on the same wire are none of ours.
    pub cluster: U32,
    /// The epoch of the membership that the sender acts in.
    pub epoch: U32,
    /// The sending node.
    pub source: U16,
    /// The node it is for, or [`ALL_NODES`].
    pub destination: U16,
    /// Which life of the sending node: another number after each start.
    pub incarnation: U16,
    /// Bytes of payload: none, or [`MIN_PAYLOAD`] to [`MAX_PAYLOAD`].
    pub payload_bytes: U16,
    /// The number of this message among those of its source, class and incarnation.
    pub sequence: U32,
    /// The sequence number it answers or acknowledges.
    pub acknowledgement: U32,
    /// Which transmission of this sequence number it is, from 0.
    pub transmission: U16,
    /// CRC-32C of both headers with this field as zero, then CRC-32C of the payload; with a key, the authentication
    /// tag.
    pub integrity: [U32; 2],
}

/// What both headers look like together.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// Ethernet's.
    pub ethernet: EthernetHeader,
    /// Ours.
    pub unum: UnumHeader,
}

const _: () = assert!(size_of::<EthernetHeader>() == 14);
const _: () = assert!(size_of::<UnumHeader>() == 38);
const _: () = assert!(size_of::<FrameHeader>() == 52);
const _: () = assert!(core::mem::offset_of!(UnumHeader, cluster) == 4);
const _: () = assert!(core::mem::offset_of!(UnumHeader, source) == 12);
const _: () = assert!(core::mem::offset_of!(UnumHeader, payload_bytes) == 18);
const _: () = assert!(core::mem::offset_of!(UnumHeader, sequence) == 20);
const _: () = assert!(core::mem::offset_of!(UnumHeader, integrity) == 30);
// A payload length fits its field.
const _: () = assert!(MAX_PAYLOAD <= u16::MAX as usize);

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// "This node is here, at this Ethernet address": no payload.
    Announce = 1,
    /// Asks for the same payload back.
    EchoRequest = 2,
    /// What the request whose sequence number is the acknowledgement asked for.
    Reply = 3,
    /// Asks for a page that is filled by the request's source, incarnation and sequence number: no payload.
    PageRequest = 4,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Announce),
            2 => Some(Self::EchoRequest),
            3 => Some(Self::Reply),
            4 => Some(Self::PageRequest),
            _ => None,
        }
    }
}

/// How urgent a frame is: one class never waits for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Class {
    /// Short messages.
    Control = 0,
    /// Page contents.
    Bulk = 1,
}

impl Class {
    /// The class with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Control),
            1 => Some(Self::Bulk),
            _ => None,
        }
    }
}

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
    /// No [`Kind`] has this number.
    Kind(u8),
    /// No [`Class`] has this number.
    Class(u8),
    /// The source is [`ALL_NODES`].
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
    Cluster(u32),
    /// Of another epoch.
    Epoch(u32),
    /// For another node.
    Destination(u16),
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
            Self::Class(value) => write!(f, "unknown class {value}"),
            Self::Source(value) => write!(f, "source node {value}"),
            Self::PayloadLength { said, there } => {
                write!(f, "payload length {said}, but {there} bytes came")
            }
            Self::PayloadChecksum => f.write_str("payload checksum"),
            Self::Cluster(value) => write!(f, "cluster {value}"),
            Self::Epoch(value) => write!(f, "epoch {value}"),
            Self::Destination(value) => write!(f, "for node {value}"),
            Self::OwnSource => f.write_str("own node number as source"),
        }
    }
}

impl core::error::Error for WireError {}

/// A frame whose header is well-formed; the payload's checksum is still to be compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parsed {
    /// The Ethernet address it came from.
    pub from: MacAddress,
    /// What it is.
    pub kind: Kind,
    /// How urgent.
    pub class: Class,
    /// Bytes of payload, all of which came.
    pub payload_bytes: usize,
    /// What [`crc32c`] over the payload must be.
    pub payload_checksum: u32,
    /// The header.
    pub header: UnumHeader,
}

/// Who this node is: what a frame for it must say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u32,
    /// The epoch of the membership.
    pub epoch: u32,
    /// The node's number, not [`ALL_NODES`].
    pub node: u16,
    /// Which life of the node.
    pub incarnation: u16,
}

/// What a frame to be sent says, besides the addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// How urgent.
    pub class: Class,
    /// Its number.
    pub sequence: u32,
    /// What it answers.
    pub acknowledgement: u32,
    /// Bytes of payload: none, or [`MIN_PAYLOAD`] to [`MAX_PAYLOAD`].
    pub payload_bytes: u16,
    /// [`crc32c`] of the payload; of no bytes, 0.
    pub payload_checksum: u32,
}

impl FrameHeader {
    /// The headers of a first transmission from `identity` at `from` to the node `destination` at `to`.
    #[must_use]
    pub fn new(
        identity: Identity,
        from: MacAddress,
        destination: u16,
        to: MacAddress,
        message: Message,
    ) -> Self {
        let unum = UnumHeader {
            version: VERSION,
            kind: message.kind as u8,
            class: message.class as u8,
            key: KEY_NONE,
            cluster: identity.cluster.into(),
            epoch: identity.epoch.into(),
            source: identity.node.into(),
            destination: destination.into(),
            incarnation: identity.incarnation.into(),
            payload_bytes: message.payload_bytes.into(),
            sequence: message.sequence.into(),
            acknowledgement: message.acknowledgement.into(),
            transmission: 0.into(),
            integrity: [U32::ZERO; 2],
        };
        let ethernet = EthernetHeader { destination: to, source: from, ether_type: BigU16::new(ETHER_TYPE) };
        let mut header = Self { ethernet, unum };
        header.unum.integrity = [header.checksum().into(), message.payload_checksum.into()];
        header
    }

    /// Checks the form of a frame of which `total_bytes` came, headers included, and whose first bytes are `bytes`.
    ///
    /// # Errors
    /// The [`WireError`] that names the first wrong field.
    pub fn parse(bytes: &[u8], total_bytes: usize) -> Result<Parsed, WireError> {
        let truncated = WireError::Truncated { bytes: bytes.len().min(total_bytes) };
        let there = total_bytes.checked_sub(HEADER_BYTES).ok_or(truncated)?;
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| truncated)?;
        let Self { ethernet, unum } = header;
        if ethernet.ether_type.get() != ETHER_TYPE {
            return Err(WireError::EtherType(ethernet.ether_type.get()));
        }
        if !ethernet.source.is_unicast() {
            return Err(WireError::EthernetSource(ethernet.source));
        }
        if unum.version != VERSION {
            return Err(WireError::Version(unum.version));
        }
        if unum.key != KEY_NONE {
            return Err(WireError::Key(unum.key));
        }
        let [header_checksum, payload_checksum] = unum.integrity.map(U32::get);
        if header.checksum() != header_checksum {
            return Err(WireError::HeaderChecksum);
        }
        let kind = Kind::from_number(unum.kind).ok_or(WireError::Kind(unum.kind))?;
        let class = Class::from_number(unum.class).ok_or(WireError::Class(unum.class))?;
        if unum.source.get() == ALL_NODES {
            return Err(WireError::Source(ALL_NODES));
        }
        let said = usize::from(unum.payload_bytes.get());
        let padded = there > said && total_bytes <= MIN_ETHERNET;
        let allowed = said == 0 || (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&said);
        if !allowed || (there != said && !padded) {
            return Err(WireError::PayloadLength { said, there });
        }
        Ok(Parsed { from: ethernet.source, kind, class, payload_bytes: said, payload_checksum, header: unum })
    }
}

impl FrameHeader {
    /// The CRC-32C of both headers with [`UnumHeader::integrity`] as zero.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let mut header = *self;
        header.unum.integrity = [U32::ZERO; 2];
        crc32c(0, header.as_bytes())
    }
}

impl Parsed {
    /// Whether the frame is for the node `identity`, or for all nodes of its cluster and epoch.
    ///
    /// # Errors
    /// [`WireError::Cluster`], [`WireError::Epoch`], [`WireError::Destination`], [`WireError::OwnSource`].
    pub fn check_address(&self, identity: &Identity) -> Result<(), WireError> {
        let UnumHeader { cluster, epoch, source, destination, .. } = self.header;
        if cluster.get() != identity.cluster {
            return Err(WireError::Cluster(cluster.get()));
        }
        if epoch.get() != identity.epoch {
            return Err(WireError::Epoch(epoch.get()));
        }
        if destination.get() != identity.node && destination.get() != ALL_NODES {
            return Err(WireError::Destination(destination.get()));
        }
        if source.get() == identity.node {
            return Err(WireError::OwnSource);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
