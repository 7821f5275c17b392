//! virtio-net (virtio 1.x over PCI) with [80-byte header][page] descriptor chains.
//!
//! Every frame is 80 bytes, then nothing or (part of) a page: the card's header (12), Ethernet's (14) and 54 of the
//! protocol above. A receive chain is a header buffer of the driver's and a page frame of the caller's, so what
//! follows the 80 bytes lands at the start of a page frame; sending is the same the other way. The processor copies
//! 68 bytes a frame and never touches the page.
//!
//! * [`structures`] finds the device's registers, [`transport`] drives them, [`queue`] wraps `virtio-drivers`' queue,
//!   [`device`] is the card.
//! * What the device writes is a claim: used indices, lengths and headers are checked against what was posted, and
//!   [`Misbehaviour`] says what was wrong.
//! * A page frame is a name ([`Frame`]); who may use the page when is the caller's business. The card may read one page
//!   for several frames at a time, so a sent frame is known by its [`Slot`].
//!
//! Of the features, `RING_EVENT_IDX` is left alone on purpose: `virtio-drivers` 0.13 compares event indices without
//! regard to their wrap at 65,536, so notifications would be lost there. The flags of the rings do as well.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod device;
pub mod memory;
pub mod queue;
pub mod structures;
pub mod transport;

#[cfg(test)]
mod simulation;

pub use device::{InterruptEntries, NetError, Received, VirtioNet};
pub use memory::{DmaMemory, Frame};
pub use queue::{Misbehaviour, Part, QueueKind, Slot};
pub use transport::{ModernPci, RouteInterrupts, TransportError};

/// Bytes of the card's header: `virtio_net_hdr` with `VIRTIO_F_VERSION_1` (virtio 1.2, 5.1.6).
pub const CARD_HEADER_BYTES: usize = 12;
/// Bytes that precede the page: the card's header, Ethernet's and the protocol's.
pub const HEADER_BYTES: usize = 80;
/// Bytes of the header that go over the wire.
pub const WIRE_HEADER_BYTES: usize = HEADER_BYTES - CARD_HEADER_BYTES;
/// Bytes of a page frame, the most that follow the header.
pub const PAGE_BYTES: usize = 4096;
/// The fewest bytes of a page frame that can be sent; a shorter payload is padded by the protocol above.
pub const MIN_PAYLOAD_BYTES: usize = 8;
/// The largest MTU of which every frame fits a receive chain.
pub const PAGE_MTU: u16 = 4150;
/// Descriptors of each queue.
pub const QUEUE_SIZE: usize = 256;
/// Chains that can be posted in each queue at a time.
pub const MAX_CHAINS: usize = QUEUE_SIZE / 2;

const _: () = assert!(PAGE_MTU as usize + 14 == WIRE_HEADER_BYTES + PAGE_BYTES);
