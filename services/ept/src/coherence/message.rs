//! What nodes say to each other about pages.
//!
//! On the wire a message is 12 bytes, and 20 when somebody must acknowledge ([`Message::encode`]); the contents of a page travel
//! beside it. All numbers are little-endian.
//!
//! | kind | from, to | what it says |
//! | --- | --- | --- |
//! | `Read`, `Write` | requester to home | this node wants the page |
//! | `Evict` | holder to home | this node wants to be rid of the page |
//! | `Done` | requester to home | the transaction is over, the next one may begin |
//! | `Forward` | home to owner | send contents to the requester, and keep a copy to read, or none |
//! | `Invalidate` | home to reader | give up the copy and acknowledge to the requester |
//! | `Keep` | home to requester | it has the current contents already, or need not have them |
//! | `Zero` | home to requester | the page is all zeros |
//! | `Data` | owner to requester | the contents |
//! | `Ack` | reader to requester | the copy is gone from every view; of an eviction: the contents are taken |
//! | `Drop` | home to holder | others have copies: drop this one |
//! | `Take` | home to a node with room | will you own this page? |
//! | `Room`, `NoRoom` | that node to home | yes, no |
//! | `Push` | home to holder | send it to that node |
//! | `Stay` | home to holder | nobody has room |

use super::node::NodeId;
use super::word::Readers;

/// A page of the guest's, by its number among them: 16 TiB are within reach. It is its slot in the flat tables
/// ([`crate::layout`]).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Page(pub u32);

/// What somebody does, or may do, with a page.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Access {
    /// Read.
    #[default]
    Read,
    /// Read and write.
    Write,
}

/// What a message is. The number is the one on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the module's table says what each is")]
pub enum Kind {
    Read = 1,
    Write = 2,
    Evict = 3,
    Done = 4,
    Forward = 5,
    Invalidate = 6,
    Keep = 7,
    Zero = 8,
    Data = 9,
    Ack = 10,
    Drop = 11,
    Take = 12,
    Room = 13,
    NoRoom = 14,
    Push = 15,
    Stay = 16,
}

impl Kind {
    /// All kinds, by their numbers.
    pub const ALL: [Self; 16] = [
        Self::Read,
        Self::Write,
        Self::Evict,
        Self::Done,
        Self::Forward,
        Self::Invalidate,
        Self::Keep,
        Self::Zero,
        Self::Data,
        Self::Ack,
        Self::Drop,
        Self::Take,
        Self::Room,
        Self::NoRoom,
        Self::Push,
        Self::Stay,
    ];

    /// Which messages between two nodes keep their order, and which wait for no other.
    #[must_use]
    pub const fn channel(self) -> Channel {
        match self {
            Self::Read | Self::Write | Self::Evict | Self::Done => Channel::Request,
            Self::Forward | Self::Invalidate | Self::Take => Channel::Demand,
            Self::Data => Channel::Bulk,
            Self::Keep
            | Self::Zero
            | Self::Ack
            | Self::Drop
            | Self::Room
            | Self::NoRoom
            | Self::Push
            | Self::Stay => Channel::Answer,
        }
    }
}

/// The messages of one channel between two nodes arrive in the order in which they were sent. The protocol needs that of
/// `Request` alone: the `Done` of a slot comes before its next request.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Channel {
    /// To the home, to begin and to end a transaction.
    Request,
    /// From the home, to those who have copies.
    Demand,
    /// What lets somebody go on.
    Answer,
    /// Page contents.
    Bulk,
}

/// A message. Fields that a kind does not use are zero.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The page.
    pub page: Page,
    /// Of `Forward`, `Invalidate`, `Take` and the answers to that: who began the transaction. Of `Push`: who has room.
    pub node: NodeId,
    /// The requester's slot in which the transaction runs.
    pub slot: u8,
    /// The transaction's number, which its requester chose.
    pub number: u32,
    /// Of what grants or forwards: the right that the requester gets.
    pub access: Access,
    /// Of requests: whether a device model wants it.
    pub device: bool,
    /// Whether the sender could take a page that another node has no room for.
    pub room: bool,
    /// Of what grants or forwards: how long the requester may keep the page at least, 0 to [`MAX_HOLD`]
    /// ([`super::hold`]).
    pub hold: u8,
    /// Of what grants or forwards: who acknowledges to the requester. The requester itself and the sender of contents are
    /// not meant.
    pub readers: Readers,
}

/// The highest level of hold time.
pub const MAX_HOLD: u8 = 7;
/// Bytes of a message for which nobody acknowledges.
pub const SHORT_BYTES: usize = 12;
/// Bytes of the longest message.
pub const LONG_BYTES: usize = SHORT_BYTES + 8;

const WRITE: u8 = 1;
const DEVICE: u8 = 2;
const ROOM: u8 = 4;
const HOLD_SHIFT: u32 = 3;
const UNUSED: u8 = 0xc0;

impl Message {
    /// A message about a page of which only the kind is said.
    #[must_use]
    pub const fn new(kind: Kind, page: Page, slot: u8, number: u32) -> Self {
        Self {
            kind,
            page,
            node: NodeId(0),
            slot,
            number,
            access: Access::Read,
            device: false,
            room: false,
            hold: 0,
            readers: Readers::EMPTY,
        }
    }

    /// The bytes on the wire, and how many of them count.
    #[must_use]
    pub fn encode(&self) -> ([u8; LONG_BYTES], usize) {
        let mut bytes = [0; LONG_BYTES];
        let write = if self.access == Access::Write { WRITE } else { 0 };
        let device = if self.device { DEVICE } else { 0 };
        let room = if self.room { ROOM } else { 0 };
        bytes[..4].copy_from_slice(&[
            self.kind as u8,
            write | device | room | self.hold.min(MAX_HOLD) << HOLD_SHIFT,
            self.node.0,
            self.slot,
        ]);
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.readers.bits().to_le_bytes());
        (bytes, if self.readers == Readers::EMPTY { SHORT_BYTES } else { LONG_BYTES })
    }

    /// The message that bytes from the wire say; more may follow. `None` when they say none: too few, an unknown kind, or bits that
    /// have no meaning.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (short, rest) = bytes.split_first_chunk::<SHORT_BYTES>()?;
        let [kind, flags, node, slot, n0, n1, n2, n3, p0, p1, p2, p3] = *short;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        if flags & UNUSED != 0 {
            return None;
        }
        let readers = rest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Some(Self {
            kind,
            page: Page(u32::from_le_bytes([p0, p1, p2, p3])),
            node: NodeId(node),
            slot,
            number: u32::from_le_bytes([n0, n1, n2, n3]),
            access: if flags & WRITE != 0 { Access::Write } else { Access::Read },
            device: flags & DEVICE != 0,
            room: flags & ROOM != 0,
            hold: flags >> HOLD_SHIFT & MAX_HOLD,
            readers: Readers::from_bits(readers),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::vec::Vec;

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut random = Random(8);
        for kind in Kind::ALL {
            for _ in 0..100 {
                let message = Message {
                    kind,
                    page: Page(random.below(u64::from(u32::MAX)).try_into().unwrap()),
                    node: NodeId(random.below(u8::MAX)),
                    slot: random.below(u8::MAX),
                    number: random.below(u32::MAX),
                    access: if random.one_in(2) { Access::Read } else { Access::Write },
                    device: random.one_in(2),
                    room: random.one_in(2),
                    hold: random.below(MAX_HOLD + 1),
                    readers: Readers::from_bits(if random.one_in(2) { 0 } else { random.next() }),
                };
                let (bytes, length) = message.encode();
                assert_eq!(length, if message.readers.bits() == 0 { SHORT_BYTES } else { LONG_BYTES });
                assert_eq!(Message::decode(&bytes[..length]), Some(message));
            }
        }
    }

    #[test]
    fn bytes_that_say_nothing_are_refused() {
        let (bytes, _) = Message::new(Kind::Ack, Page(1), 2, 3).encode();
        for length in 0..SHORT_BYTES {
            assert_eq!(Message::decode(&bytes[..length]), None);
        }
        for kind in [0, 17, 255] {
            let bytes = [&[kind], &bytes[1..]].concat();
            assert_eq!(Message::decode(&bytes), None);
        }
        for flags in [0x40, 0x80, 0xff] {
            let bytes = [&bytes[..1], &[flags], &bytes[2..]].concat();
            assert_eq!(Message::decode(&bytes), None);
        }
    }

    #[test]
    fn any_bytes_decode_to_what_encodes_again() {
        let mut random = Random(9);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.below(30_usize)).map(|_| random.below(40_u8)).collect();
            if let Some(message) = Message::decode(&bytes) {
                let (again, length) = message.encode();
                assert_eq!(Message::decode(&again[..length]), Some(message));
            }
        }
    }
}
