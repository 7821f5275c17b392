//! What the guest is to be: the parts of the boot module that xtask makes for the vmm service.
//!
//! Each is a blob of the image ([`crate::image::EntryKind::Blob`]) that the service finds as a read-only region of the same
//! name: a page of 4 KiB with a [`BlobHeader`], then the contents.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The blob that holds a [`GuestConfig`], as postcard.
pub const CONFIG_BLOB: &str = "guest-config";
/// The blob that holds the guest's kernel, a bzImage.
pub const KERNEL_BLOB: &str = "guest-kernel";
/// The blob that holds the guest's initrd; absent when there is none.
pub const INITRD_BLOB: &str = "guest-initrd";
/// The longest command line in bytes; what Linux takes on x86 (COMMAND_LINE_SIZE less the final zero).
pub const MAX_COMMAND_LINE: usize = 2047;

/// The first bytes of a blob's region.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BlobHeader {
    /// [`BLOB_MAGIC`].
    pub magic: u64,
    /// Bytes of contents, from offset 4,096 on.
    pub bytes: u64,
    /// CRC-32 (IEEE) of the contents.
    pub crc: u32,
    /// Zero.
    pub reserved: u32,
}

/// "UNUMBLOB".
pub const BLOB_MAGIC: u64 = u64::from_le_bytes(*b"UNUMBLOB");
/// Where a blob's contents begin in its region.
pub const BLOB_CONTENTS: usize = 4096;

/// The most nodes that one guest spans.
pub const MAX_NODES: usize = 32;
/// Frames at the end of a node's pool that are its carrier's at the start, when the guest spans nodes: what comes from other
/// nodes lands in them.
pub const CARRIER_FRAMES: u32 = 256;

/// Frames of a node's pool beyond those of its share, when the guest spans so many nodes: the carrier's, and those of pages
/// that are on their way out.
#[must_use]
pub const fn extra_frames(nodes: usize) -> u64 {
    const ON_THEIR_WAY: u64 = crate::vcpu::MAX_VCPUS as u64 + 24;
    if nodes > 1 { CARRIER_FRAMES as u64 + ON_THEIR_WAY * nodes as u64 } else { 0 }
}

/// Frames of a node's pool, when its share has so many pages and the guest spans so many nodes: one for each page of the share
/// and each private one, one for the page of zeros, and the extra ones.
#[must_use]
pub const fn pool_frames(pages: u64, private_pages: u32, nodes: usize) -> u64 {
    pages.saturating_add(private_pages as u64 + 1 + extra_frames(nodes))
}

/// What one node gives to the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Share {
    /// The node's number. Where there is one share, any node has it.
    pub node: u16,
    /// Virtual processors that start there.
    pub vcpus: u8,
    /// Pages of memory. The guest's memory has them in the order of the shares.
    pub pages: u64,
}

/// What each node gives, by the nodes' numbers. One share alone: the guest spans no nodes.
pub type Shares = Vec<Share, MAX_NODES>;

/// Virtual processors of all shares.
#[must_use]
pub fn total_vcpus(shares: &[Share]) -> u32 {
    shares.iter().map(|share| u32::from(share.vcpus)).sum()
}

/// Pages of all shares.
#[must_use]
pub fn total_pages(shares: &[Share]) -> u64 {
    shares.iter().fold(0, |sum, share| sum.saturating_add(share.pages))
}

/// Which of the shares is a node's, and its place among them.
#[must_use]
pub fn share_of(shares: &[Share], node: u64) -> Option<(usize, &Share)> {
    match shares {
        [all] => Some((0, all)),
        _ => shares.iter().enumerate().find(|(_, share)| u64::from(share.node) == node),
    }
}

/// The guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GuestConfig {
    /// What each node gives.
    pub shares: Shares,
    /// How long the first node waits for the others, in seconds.
    pub patience_s: u16,
    /// Linux's command line.
    pub command_line: String<MAX_COMMAND_LINE>,
    /// Whether the walk cache is on.
    pub walk_cache: bool,
    /// What to do when the guest ends.
    pub at_end: AtEnd,
}

/// What is done when the guest has ended by itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum AtEnd {
    /// The node is powered off.
    PowerOff,
    /// Nothing: the node waits for the next start ([`crate::interfaces`]'s vmm).
    Stay,
    /// The guest is started again, so many times in all; then the node is powered off.
    Again(u32),
}
