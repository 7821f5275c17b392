//! The frame on the wire between nodes: Ethernet, then a fixed header of ours, then at most one page.
//!
//! ```text
//! network card's header (12, never on the wire) | Ethernet (14) | Unum (54) | payload (0, or 8 to 4096)
//! ```
//!
//! The first three fill 80 bytes, so a receive buffer of 80 bytes followed by a page frame has the payload at the
//! page frame's start. All numbers of ours are little-endian; the EtherType is big-endian, as Ethernet wants.
//!
//! Both checksums are CRC-32C. The headers have one of their own, Ethernet's included, so that they are judged without
//! touching the page. A frame with a key other than [`KEY_NONE`] is for authenticated encryption: its tag takes the
//! place of the two checksums ([`UnumHeader::integrity`]), and class, source, epoch, sequence and transmission make
//! its nonce, which no two frames under one key share. Until keys exist such a frame is refused.
//!
//! No field says which life of its source a frame is from: a cluster's epoch names the lives of all its members.
//!
//! What a frame says is a claim: [`FrameHeader::parse`] checks its form, [`FrameHeader::check_address`] whether it
//! is meant for this node.

mod crc;
mod error;
mod kind;

use core::fmt;

use zerocopy::byteorder::big_endian::U16 as BigU16;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::abi::PAGE_SIZE;

pub use crc::crc32c;
pub use error::WireError;
pub use kind::{CLASSES, Class, Fragment, Kind, MAX_FRAGMENTS};

/// The EtherType of our frames: IEEE 802's local experimental 1.
pub const ETHER_TYPE: u16 = 0x88b5;
/// Bytes that a message has of its own, beside its contents.
pub const MESSAGE_BYTES: usize = 24;
/// The version of the header that this describes.
pub const VERSION: u8 = 3;
/// The shortest payload in bytes of a frame that has one; what says less is padded by its sender.
pub const MIN_PAYLOAD: usize = 8;
/// The longest payload in bytes: one page.
pub const MAX_PAYLOAD: usize = PAGE_SIZE;
/// Bytes of the Ethernet header and ours.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
/// The Ethernet payload (MTU) in bytes that a link must carry for a page to go in one frame.
pub const PAGE_MTU: usize = size_of::<UnumHeader>() + MAX_PAYLOAD;
/// The number that no node has: it can never be a source.
pub const NO_NODE: u16 = 0xffff;
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
    /// Which key encrypts it; [`KEY_NONE`].
    pub key: u8,
    /// Bits 0 to 3: a [`Kind`]. Bits 4 and 5: its [`Class`]. Bits 6 and 7: the class that it acknowledges.
    pub kind: u8,
    /// Which transmission of this sequence number it is, from 0.
    pub transmission: u8,
    /// The cluster: frames of other clusters on the same wire are none of ours.
    pub cluster: U16,
    /// The epoch of the membership that the sender acts in.
    pub epoch: U32,
    /// The sending node.
    pub source: U16,
    /// Bits 0 to 12: bytes of payload, none, or [`MIN_PAYLOAD`] to [`MAX_PAYLOAD`]. Bits 13 and 14: which fragment of
    /// a page. Bit 15: more fragments follow.
    pub extent: U16,
    /// The number of this frame among those of its class from this life of its source.
    pub sequence: U32,
    /// The next sequence number that the sender expects in the acknowledged class.
    pub acknowledgement: U32,
    /// What the message says beside its page. Other kinds than [`Kind::Data`] use the first eight bytes alone
    /// ([`UnumHeader::tag`]).
    pub message: [u8; MESSAGE_BYTES],
    /// CRC-32C of both headers with this field as zero, then CRC-32C of the payload; with a key, the authentication
    /// tag.
    pub integrity: [U32; 2],
}

/// A number in the place of a message, in its first eight bytes.
#[must_use]
pub fn tag(number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..size_of::<u64>()].copy_from_slice(&number.to_le_bytes());
    message
}

impl UnumHeader {
    /// The number in the message's first eight bytes.
    #[must_use]
    pub fn tag(&self) -> u64 {
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = self.message;
        u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
    }
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
const _: () = assert!(size_of::<UnumHeader>() == 54);
const _: () = assert!(size_of::<FrameHeader>() == 68);
const _: () = assert!(core::mem::offset_of!(UnumHeader, cluster) == 4);
const _: () = assert!(core::mem::offset_of!(UnumHeader, epoch) == 6);
const _: () = assert!(core::mem::offset_of!(UnumHeader, extent) == 12);
const _: () = assert!(core::mem::offset_of!(UnumHeader, sequence) == 14);
const _: () = assert!(core::mem::offset_of!(UnumHeader, message) == 22);
const _: () = assert!(core::mem::offset_of!(UnumHeader, integrity) == 46);
// Ethernet's shortest frame is 60 bytes: none of ours is ever padded.
const _: () = assert!(HEADER_BYTES >= 60);

/// Bits of [`UnumHeader::extent`] that count bytes.
const EXTENT_BYTES: u16 = 0x1fff;
/// Where in [`UnumHeader::extent`] the fragment's number begins.
const EXTENT_FRAGMENT: u32 = 13;
/// The bit of [`UnumHeader::extent`] that says that more fragments follow.
const EXTENT_MORE: u16 = 1 << 15;
// A payload length fits its field.
const _: () = assert!(MAX_PAYLOAD <= EXTENT_BYTES as usize);

/// A frame whose header is well-formed; the payload's checksum is still to be compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parsed {
    /// The Ethernet address it came from.
    pub from: MacAddress,
    /// The Ethernet address it is for.
    pub to: MacAddress,
    /// What it is.
    pub kind: Kind,
    /// How urgent.
    pub class: Class,
    /// The class that it acknowledges.
    pub acknowledged: Class,
    /// Which part of a message it carries.
    pub fragment: Fragment,
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
    pub cluster: u16,
    /// The epoch of the membership.
    pub epoch: u32,
    /// The node's number, not [`NO_NODE`].
    pub node: u16,
    /// Which life of the node: another number after each start.
    pub incarnation: u16,
}

/// What a frame to be sent says, besides the addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// How urgent.
    pub class: Class,
    /// The class that it acknowledges.
    pub acknowledged: Class,
    /// Which transmission of it this is, from 0.
    pub transmission: u8,
    /// Which part of a message it carries.
    pub fragment: Fragment,
    /// Bytes of payload: none, or [`MIN_PAYLOAD`] to [`MAX_PAYLOAD`].
    pub payload_bytes: u16,
    /// Its number.
    pub sequence: u32,
    /// What it answers or acknowledges.
    pub acknowledgement: u32,
    /// What it says beside its page.
    pub message: [u8; MESSAGE_BYTES],
}

impl Message {
    /// A whole message without payload, number and contents, transmitted for the first time.
    #[must_use]
    pub const fn new(kind: Kind, class: Class) -> Self {
        Self {
            kind,
            class,
            acknowledged: class,
            transmission: 0,
            fragment: Fragment::WHOLE,
            payload_bytes: 0,
            sequence: 0,
            acknowledgement: 0,
            message: [0; MESSAGE_BYTES],
        }
    }
}

impl FrameHeader {
    /// The headers of a frame from `identity` at `from` to `to`, not yet [sealed](Self::seal).
    #[must_use]
    pub fn new(identity: Identity, from: MacAddress, to: MacAddress, message: Message) -> Self {
        let Message { kind, class, acknowledged, fragment, .. } = message;
        let more = if fragment.last { 0 } else { EXTENT_MORE };
        let unum = UnumHeader {
            version: VERSION,
            key: KEY_NONE,
            kind: kind as u8 | (class as u8) << 4 | (acknowledged as u8) << 6,
            transmission: message.transmission,
            cluster: identity.cluster.into(),
            epoch: identity.epoch.into(),
            source: identity.node.into(),
            extent: (message.payload_bytes | u16::from(fragment.index) << EXTENT_FRAGMENT | more).into(),
            sequence: message.sequence.into(),
            acknowledgement: message.acknowledgement.into(),
            message: message.message,
            integrity: [U32::ZERO; 2],
        };
        let ethernet = EthernetHeader { destination: to, source: from, ether_type: BigU16::new(ETHER_TYPE) };
        Self { ethernet, unum }
    }

    /// The same with both checksums; `payload_checksum` is [`crc32c`] of the payload, of no bytes 0.
    #[must_use]
    pub fn seal(mut self, payload_checksum: u32) -> Self {
        self.unum.integrity = [self.checksum().into(), payload_checksum.into()];
        self
    }

    /// The CRC-32C of both headers with [`UnumHeader::integrity`] as zero.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let mut header = *self;
        header.unum.integrity = [U32::ZERO; 2];
        crc32c(0, header.as_bytes())
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
        let kind = Kind::from_number(unum.kind & 0xf).ok_or(WireError::Kind(unum.kind))?;
        if unum.source.get() == NO_NODE {
            return Err(WireError::Source(NO_NODE));
        }
        let extent = unum.extent.get();
        let said = usize::from(extent & EXTENT_BYTES);
        let allowed = said == 0 || (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&said);
        if !allowed || there != said {
            return Err(WireError::PayloadLength { said, there });
        }
        let [_, high] = extent.to_le_bytes();
        let fragment = Fragment { index: high >> 5 & 3, last: extent & EXTENT_MORE == 0 };
        Ok(Parsed {
            from: ethernet.source,
            to: ethernet.destination,
            kind,
            class: Class::from_bits(unum.kind >> 4),
            acknowledged: Class::from_bits(unum.kind >> 6),
            fragment,
            payload_bytes: said,
            payload_checksum,
            header: unum,
        })
    }
}

impl Parsed {
    /// Whether the frame is for the node `identity` at `mac`, or for all of its cluster and epoch.
    ///
    /// # Errors
    /// [`WireError::Epoch`], and those of [`Parsed::check_station`].
    pub fn check_address(&self, identity: &Identity, mac: MacAddress) -> Result<(), WireError> {
        self.check_station(identity, mac)?;
        self.check_epoch(identity.epoch)
    }

    /// Whether the frame is for the node `identity` at `mac`, or for all of its cluster, in whatever epoch.
    ///
    /// # Errors
    /// [`WireError::Cluster`], [`WireError::Destination`], [`WireError::OwnSource`].
    pub fn check_station(&self, identity: &Identity, mac: MacAddress) -> Result<(), WireError> {
        let UnumHeader { cluster, source, .. } = self.header;
        if cluster.get() != identity.cluster {
            return Err(WireError::Cluster(cluster.get()));
        }
        if self.to != mac && self.to != ALL_STATIONS {
            return Err(WireError::Destination(self.to));
        }
        if source.get() == identity.node {
            return Err(WireError::OwnSource);
        }
        Ok(())
    }

    /// Whether the frame is of this epoch.
    ///
    /// # Errors
    /// [`WireError::Epoch`].
    pub fn check_epoch(&self, epoch: u32) -> Result<(), WireError> {
        let stated = self.header.epoch.get();
        if stated == epoch { Ok(()) } else { Err(WireError::Epoch(stated)) }
    }
}

#[cfg(test)]
mod tests;
