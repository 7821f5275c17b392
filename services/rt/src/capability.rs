//! The kinds of capability as types. What can be done with one is beside its subject, in the bare-metal modules
//! `endpoint`, `region`, `ports` and `pci_access`.

use core::sync::atomic::{AtomicU64, Ordering};

use ipc::abi::Handle;

/// A handle that follows its service's restarts; threads may share it.
#[derive(Debug)]
pub(crate) struct Current(AtomicU64);

impl Current {
    pub(crate) const fn new(handle: Handle) -> Self {
        Self(AtomicU64::new(handle.0))
    }

    #[inline]
    pub(crate) fn get(&self) -> Handle {
        Handle(self.0.load(Ordering::Relaxed))
    }

    #[cfg(feature = "metal")]
    pub(crate) fn set(&self, handle: Handle) {
        self.0.store(handle.0, Ordering::Relaxed);
    }
}

/// The right to call a service.
#[derive(Debug)]
pub struct Endpoint(pub(crate) Current);

impl Endpoint {
    /// The endpoint behind a handle.
    #[must_use]
    pub const fn new(handle: Handle) -> Self {
        Self(Current::new(handle))
    }

    /// The handle, as of the last call.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.get()
    }
}

/// The right to raise notification bits of a service.
#[derive(Debug)]
pub struct Notification(pub(crate) Current);

impl Notification {
    /// The notification behind a handle.
    #[must_use]
    pub const fn new(handle: Handle) -> Self {
        Self(Current::new(handle))
    }

    /// The handle, as of the last use.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.get()
    }
}

/// Memory that the manifest names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Region {
    /// Where the service finds it; a multiple of a page.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// Whether the service may write it.
    pub writable: bool,
    /// Whether it outlives a restart of the service.
    pub kept: bool,
}

/// Memory that devices can reach.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DmaRegion {
    /// Its handle.
    pub handle: Handle,
    /// Where the service finds it.
    pub region: Region,
    /// The physical address of its first byte; it is contiguous.
    pub physical: u64,
}

/// The memory of a device's BAR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceMemory {
    /// Where the service finds it.
    pub region: Region,
    /// The physical address of its first byte.
    pub physical: u64,
}

/// An interrupt of this service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interrupt {
    /// Its handle.
    pub handle: Handle,
    /// The notification bits that it raises.
    pub bits: u64,
}

/// A range of I/O ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// Its handle.
    pub handle: Handle,
    /// The first port.
    pub first: u16,
    /// How many ports.
    pub count: u16,
}

/// A file of the image: memory that nobody ever writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Blob {
    pub(crate) region: Region,
}

/// The guest, as the service that holds it serves it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guest {
    /// Its handle.
    pub handle: Handle,
    /// Frames in its pool.
    pub frames: u64,
    /// Pages of its memory, on all nodes together.
    pub pages: u64,
    /// Its vCPUs on this node.
    pub vcpus: u8,
    /// How many nodes it spans.
    pub nodes: u8,
    /// Pages of its private memory.
    pub private_pages: u32,
    /// The number of its platform's service.
    pub platform: u8,
    /// The number of the service that owns its memory.
    pub memory: u8,
}

/// A PCI function's configuration space.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PciFunction {
    /// Its handle.
    pub handle: Handle,
    /// bus << 8 | device << 3 | function.
    pub address: u16,
}
