//! Addresses and frames as distinct types, with no conversion between them but named ones.

use ipc::abi::PAGE_SIZE;

/// A physical address of the node.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

/// A virtual address of a service or of the kernel.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct VirtAddr(pub u64);

/// A physical address of the guest.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct GuestPhysAddr(pub u64);

/// The number of a 4 KiB page frame of the node.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct FrameNumber(pub u64);

impl FrameNumber {
    /// The frame that holds an address.
    #[must_use]
    pub const fn containing(address: PhysAddr) -> Self {
        Self(address.0 / PAGE_SIZE as u64)
    }

    /// The address of the frame's first byte.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        PhysAddr(self.0 * PAGE_SIZE as u64)
    }
}
