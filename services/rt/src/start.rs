//! What a service is told at its start: who it is, and its capabilities by name.

use core::fmt;

use ipc::abi::{
    CapabilityKind, ENTRY_CONSTANT, ENTRY_KEPT, ENTRY_WRITABLE, Handle, MAX_CAPABILITIES, Name, START_MAGIC,
    StartEntry, StartPage,
};
use ipc::image::GUEST_CAPABILITY;

use crate::capability::{
    Blob, DeviceMemory, DmaRegion, Endpoint, Guest, Interrupt, Notification, PciFunction, Ports, Region,
};
use crate::time::Clock;

/// The start page, read.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    page: &'a StartPage,
    entries: &'a [StartEntry],
}

/// A capability that the service needs and the manifest does not give.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Missing {
    /// Its kind.
    pub kind: CapabilityKind,
    /// Its name, as far as it is one.
    pub name: Option<Name>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "the manifest gives no {:?} named '{name}'", self.kind),
            None => write!(f, "the name of a {:?} is empty or too long", self.kind),
        }
    }
}

impl core::error::Error for Missing {}

impl<'a> Start<'a> {
    /// Reads a start page; `None` when it is not one.
    #[must_use]
    pub fn new(page: &'a StartPage) -> Option<Self> {
        if page.magic != START_MAGIC {
            return None;
        }
        let count = (page.entry_count as usize).min(MAX_CAPABILITIES);
        Some(Self { page, entries: page.entries.get(..count)? })
    }

    /// This service's name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.page.name.as_str()
    }

    /// This service's number.
    #[must_use]
    pub fn service(&self) -> u32 {
        self.page.service
    }

    /// How many threads the service may have.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.page.threads
    }

    /// Which start this is: 0 at boot, one more at each restart.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.page.generation
    }

    /// The node's number in its cluster.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.page.node
    }

    /// What tells the node's image from others.
    #[must_use]
    pub fn image(&self) -> u64 {
        self.page.image
    }

    /// Cores on this node.
    #[must_use]
    pub fn cores(&self) -> u32 {
        self.page.cores
    }

    /// Bytes of heap.
    #[must_use]
    pub fn heap_bytes(&self) -> u64 {
        self.page.heap_bytes
    }

    /// The rate of the time stamp counter.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock::new(self.page.tsc_hz)
    }

    /// All capabilities, in the order of the capability table's start entries.
    #[must_use]
    pub fn entries(&self) -> &'a [StartEntry] {
        self.entries
    }

    fn find(
        &self,
        kind: CapabilityKind,
        name: &str,
        accept: impl Fn(&StartEntry) -> bool,
    ) -> Result<&'a StartEntry, Missing> {
        let name = Name::new(name).ok_or(Missing { kind, name: None })?;
        self.entries
            .iter()
            .find(|entry| entry.kind == kind as u16 && entry.name == name && accept(entry))
            .ok_or(Missing { kind, name: Some(name) })
    }

    /// The endpoint of the service of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn endpoint(&self, name: &str) -> Result<Endpoint, Missing> {
        let entry = self.find(CapabilityKind::Endpoint, name, |_| true)?;
        Ok(Endpoint::new(Handle(entry.handle)))
    }

    /// The notification of this name that another service receives.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn notification(&self, name: &str) -> Result<Notification, Missing> {
        let entry = self.find(CapabilityKind::Notification, name, |entry| !self.is_own(entry))?;
        Ok(Notification::new(Handle(entry.handle)))
    }

    /// The bits that the notification of this name raises in this service.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn incoming(&self, name: &str) -> Result<u64, Missing> {
        Ok(self.find(CapabilityKind::Notification, name, |entry| self.is_own(entry))?.bits)
    }

    fn is_own(&self, entry: &StartEntry) -> bool {
        entry.length == u64::from(self.page.service)
    }

    /// The memory of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn region(&self, name: &str) -> Result<Region, Missing> {
        self.find(CapabilityKind::Region, name, |_| true).map(Region::of)
    }

    /// The DMA memory of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn dma_region(&self, name: &str) -> Result<DmaRegion, Missing> {
        self.find(CapabilityKind::DmaRegion, name, |_| true).map(DmaRegion::of)
    }

    /// The contiguous pieces of the DMA memory of this name, in order.
    pub fn dma_pieces(&self, name: &str) -> impl Iterator<Item = DmaRegion> + use<'a> {
        let name = Name::new(name);
        let entries = self.entries.iter();
        let pieces = entries
            .filter(move |entry| entry.kind == CapabilityKind::DmaRegion as u16 && Some(entry.name) == name);
        pieces.map(DmaRegion::of)
    }

    /// The I/O ports of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn ports(&self, name: &str) -> Result<Ports, Missing> {
        let kind = CapabilityKind::Ports;
        let entry = self.find(kind, name, |_| true)?;
        let missing = |_| Missing { kind, name: Some(entry.name) };
        Ok(Ports {
            handle: Handle(entry.handle),
            first: u16::try_from(entry.address).map_err(missing)?,
            count: u16::try_from(entry.length).map_err(missing)?,
        })
    }

    /// Interrupt `index` of this name: 0 for an ISA line, the MSI-X entry for a device.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn interrupt(&self, name: &str, index: u16) -> Result<Interrupt, Missing> {
        let entry = self.find(CapabilityKind::Interrupt, name, |entry| entry.index == index)?;
        Ok(Interrupt { handle: Handle(entry.handle), bits: entry.bits })
    }

    /// The file of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn blob(&self, name: &str) -> Result<Blob, Missing> {
        let constant = |entry: &StartEntry| entry.flags & ENTRY_CONSTANT != 0;
        self.find(CapabilityKind::Region, name, constant).map(|entry| Blob { region: Region::of(entry) })
    }

    /// The guest, or [`Missing`] also when the node cannot run one.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn guest(&self) -> Result<Guest, Missing> {
        let entry = self.find(CapabilityKind::Guest, GUEST_CAPABILITY, |_| true)?;
        let [vcpus, nodes, ..] = entry.bits.to_le_bytes();
        let [platform, memory] = entry.index.to_le_bytes();
        Ok(Guest {
            handle: Handle(entry.handle),
            frames: entry.address,
            pages: entry.length,
            vcpus,
            nodes,
            // The upper half.
            private_pages: (entry.bits >> 32) as u32,
            platform,
            memory,
        })
    }

    /// The PCI function of this name, or [`Missing`] also when the node has no such function.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn pci_function(&self, name: &str) -> Result<PciFunction, Missing> {
        let kind = CapabilityKind::PciFunction;
        let entry = self.find(kind, name, |_| true)?;
        let address = u16::try_from(entry.address).map_err(|_| Missing { kind, name: Some(entry.name) })?;
        Ok(PciFunction { handle: Handle(entry.handle), address })
    }

    /// The memory of BAR number `bar` of the device of this name.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn device_memory(&self, name: &str, bar: u16) -> Result<DeviceMemory, Missing> {
        let entry = self.find(CapabilityKind::DeviceMemory, name, |entry| entry.index == bar)?;
        Ok(DeviceMemory { region: Region::of(entry), physical: entry.bits })
    }
}

impl DmaRegion {
    fn of(entry: &StartEntry) -> Self {
        Self { handle: Handle(entry.handle), region: Region::of(entry), physical: entry.bits }
    }
}

impl Region {
    fn of(entry: &StartEntry) -> Self {
        Self {
            address: entry.address,
            bytes: entry.length,
            writable: entry.flags & ENTRY_WRITABLE != 0,
            kept: entry.flags & ENTRY_KEPT != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn entry(name: &str, kind: CapabilityKind, handle: u64) -> StartEntry {
        StartEntry { name: Name::new(name).unwrap(), kind: kind as u16, handle, ..StartEntry::new_zeroed() }
    }

    fn page(entries: &[StartEntry]) -> StartPage {
        let mut page = StartPage::new_zeroed();
        page.magic = START_MAGIC;
        page.service = 3;
        page.tsc_hz = 1_000;
        page.entry_count = u32::try_from(entries.len()).unwrap();
        page.entries[..entries.len()].copy_from_slice(entries);
        page
    }

    #[test]
    fn a_capability_is_found_by_kind_name_and_index() {
        let page = page(&[
            entry("ept", CapabilityKind::Endpoint, 1),
            StartEntry { length: 7, bits: 1, ..entry("samples", CapabilityKind::Notification, 2) },
            StartEntry { length: 3, bits: 4, ..entry("samples", CapabilityKind::Notification, 3) },
            StartEntry { address: 0x2f8, length: 8, ..entry("log-port", CapabilityKind::Ports, 4) },
            StartEntry { index: 0, bits: 16, ..entry("nic", CapabilityKind::Interrupt, 5) },
            StartEntry { index: 1, bits: 32, ..entry("nic", CapabilityKind::Interrupt, 6) },
            StartEntry { flags: ENTRY_KEPT, length: 4096, ..entry("state", CapabilityKind::Region, 7) },
        ]);
        let start = Start::new(&page).unwrap();
        assert_eq!(start.endpoint("ept").unwrap().handle(), Handle(1));
        assert_eq!(start.notification("samples").unwrap().handle(), Handle(2));
        assert_eq!(start.incoming("samples").unwrap(), 4);
        assert_eq!(start.ports("log-port").unwrap(), Ports { handle: Handle(4), first: 0x2f8, count: 8 });
        assert_eq!(start.interrupt("nic", 1).unwrap(), Interrupt { handle: Handle(6), bits: 32 });
        let region = start.region("state").unwrap();
        assert!(region.kept && !region.writable);
        assert_eq!(region.bytes, 4096);

        let missing = start.endpoint("samples").unwrap_err();
        assert_eq!(missing.kind, CapabilityKind::Endpoint);
        assert_eq!(start.interrupt("nic", 2).unwrap_err().name, Name::new("nic"));
        assert_eq!(start.region("far-too-long-a-name").unwrap_err().name, None);
    }

    #[test]
    fn a_page_that_lies_is_bounded() {
        let mut bad = page(&[]);
        bad.entry_count = u32::MAX;
        assert_eq!(Start::new(&bad).unwrap().entries().len(), MAX_CAPABILITIES);
        bad.magic = 0;
        assert!(Start::new(&bad).is_none());
        let wide = page(&[StartEntry { address: 0x1_0000, ..entry("wide", CapabilityKind::Ports, 0) }]);
        assert!(Start::new(&wide).unwrap().ports("wide").is_err());
    }
}
