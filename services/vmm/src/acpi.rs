//! The ACPI tables that describe the guest (ACPI 6.5).
//!
//! RSDP, XSDT, FADT, FACS, DSDT, MADT, SRAT and SLIT, laid out one after another for [`layout::ACPI_START`], below 1 MiB
//! where the guest's memory map says reserved. The platform is not hardware-reduced: it has the fixed PM1a registers, a
//! power-management timer and an SCI. There is no HPET, no PCI and no 8042, and no table says otherwise.
//!
//! Checksums and AML encoding are those of the `acpi_tables` crate; it has no x86 entries of MADT and SRAT, which are
//! here.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use ipc::abi::PAGE_SIZE;
use ipc::guest::{Share, total_pages};
use ipc::vcpu::memory_ranges;

use crate::boot::layout;
use crate::memory::GuestPhysAddr;
use crate::topology::Topology;
use crate::{ioapic, power};

mod affinity;
mod dsdt;
mod fixed;
mod madt;
#[cfg(test)]
mod tests;

/// ISA IRQ of the SCI, active high and level-triggered.
pub const SCI_IRQ: u8 = 9;
/// Guest-physical address of the I/O APIC's registers.
pub const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
/// The I/O APIC's ID: neither the broadcast ID 0xff nor that of one of the first 254 processors.
pub const IO_APIC_ID: u8 = 0xfe;
/// The I/O APIC's input that ISA IRQ 0, the timer, is wired to. All others are wired to the input of their number.
pub const TIMER_PIN: u32 = 2;
/// Guest-physical address of the local APICs' registers.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// The most processors that [`build`] takes: their entries fit below 1 MiB, and their names in the DSDT are distinct.
pub const MAX_PROCESSORS: usize = 1024;
/// Distance of a domain to itself (ACPI 6.5, 5.2.17).
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance between two nodes. A page takes longer from another node than on any board with several sockets, so it is above
/// Linux's `RECLAIM_DISTANCE` of 30: there Linux rather reclaims memory of its own node than take another's, and its
/// scheduler balances load between the nodes only when threads start, not while they run.
pub const REMOTE_DISTANCE: u8 = 40;

const _: () = assert!(SCI_IRQ as u32 == power::SCI_GSI && IO_APIC_ADDRESS as u64 == ioapic::BASE);

const OEM_ID: [u8; 6] = *b"UNUM  ";
const OEM_TABLE_ID: [u8; 8] = *b"UNUM    ";
const OEM_REVISION: u32 = 1;

/// A proximity domain: what is near to each other. Linux makes a NUMA node of each.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Domain(pub u32);

/// A virtual processor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Processor {
    /// Its (x2)APIC ID, also its ACPI UID. Any but 0xffff_ffff, which is broadcast.
    pub apic_id: u32,
    /// Where it is.
    pub domain: Domain,
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemoryRange {
    /// Where it begins.
    pub start: GuestPhysAddr,
    /// Bytes.
    pub bytes: u64,
    /// Where it is.
    pub domain: Domain,
}

/// Whether there is a pair of 8259 interrupt controllers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LegacyPic {
    /// There is, and it must be masked when the APICs are used.
    Present,
    /// There is none.
    Absent,
}

/// What the tables describe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Platform {
    /// The virtual processors, the boot processor first.
    pub processors: Vec<Processor>,
    /// All guest memory.
    pub memory: Vec<MemoryRange>,
    /// Distances between domains: row `i`, column `j` is that from domain `i` to `j`. It has a row for every domain, and
    /// [`LOCAL_DISTANCE`] on the diagonal and nowhere else; 255 is unreachable.
    pub distances: Vec<Vec<u8>>,
    /// The 8259s.
    pub pic: LegacyPic,
}

impl Platform {
    /// A guest of these shares: a domain for each, with its processors and its memory.
    #[must_use]
    pub fn spanning(shares: &[Share], pic: LegacyPic) -> Self {
        let topology = Topology::of(shares);
        let ranges = memory_ranges(total_pages(shares));
        let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE as u64);
        let (mut processors, mut memory) = (Vec::new(), Vec::new());
        let mut ids = topology.ids.into_iter();
        // Pages of the shares before.
        let mut before = 0_u64;
        for (domain, share) in (0..).map(Domain).zip(shares) {
            let own = ids.by_ref().take(share.vcpus.into());
            processors.extend(own.map(|apic_id| Processor { apic_id, domain }));
            let end = before.saturating_add(share.pages);
            // The part of the share in each range of the guest's memory.
            let mut passed = 0;
            for (first, pages) in ranges {
                let (from, to) = (before.max(passed), end.min(passed + pages));
                if from < to {
                    let start = GuestPhysAddr(bytes(first + (from - passed)));
                    memory.push(MemoryRange { start, bytes: bytes(to - from), domain });
                }
                passed += pages;
            }
            before = end;
        }
        let distance = |from, to| if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE };
        let domains = 0..shares.len();
        let row = |from| domains.clone().map(|to| distance(from, to)).collect();
        let distances = domains.clone().map(row).collect();
        Self { processors, memory, distances, pic }
    }

    fn check(&self) -> Result<(), AcpiError> {
        let domains = self.distances.len();
        if !(1..=MAX_PROCESSORS).contains(&self.processors.len()) {
            return Err(AcpiError::Processors { count: self.processors.len() });
        }
        let mut ids: Vec<u32> = self.processors.iter().map(|processor| processor.apic_id).collect();
        ids.sort_unstable();
        if let Some(&[id, _]) = ids.array_windows().find(|[a, b]| a == b) {
            return Err(AcpiError::ApicId { id });
        }
        if ids.last() == Some(&u32::MAX) {
            return Err(AcpiError::ApicId { id: u32::MAX });
        }
        let used = self.processors.iter().map(|processor| processor.domain);
        for domain in used.chain(self.memory.iter().map(|range| range.domain)) {
            if usize::try_from(domain.0).map_or(true, |index| index >= domains) {
                return Err(AcpiError::Domain { domain, domains });
            }
        }
        for range in &self.memory {
            if range.bytes == 0 || range.start.0.checked_add(range.bytes).is_none() {
                return Err(AcpiError::Memory { range: *range });
            }
        }
        for (from, row) in self.distances.iter().enumerate() {
            if row.len() != domains {
                return Err(AcpiError::DistanceRow { row: from, entries: row.len(), domains });
            }
            for (to, &distance) in row.iter().enumerate() {
                let possible =
                    if from == to { distance == LOCAL_DISTANCE } else { distance > LOCAL_DISTANCE };
                if !possible {
                    return Err(AcpiError::Distance { from, to, distance });
                }
            }
        }
        Ok(())
    }
}

/// Why a platform cannot be described.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AcpiError {
    /// No processor, or more than [`MAX_PROCESSORS`].
    Processors {
        /// How many.
        count: usize,
    },
    /// An APIC ID that is given twice or reserved.
    ApicId {
        /// The ID.
        id: u32,
    },
    /// A domain that the distances do not have.
    Domain {
        /// The domain.
        domain: Domain,
        /// How many there are.
        domains: usize,
    },
    /// A memory range that is empty or passes the end of the address space.
    Memory {
        /// The range.
        range: MemoryRange,
    },
    /// A row of distances that has not one for every domain.
    DistanceRow {
        /// Which row.
        row: usize,
        /// How many distances it has.
        entries: usize,
        /// How many domains there are.
        domains: usize,
    },
    /// A distance that Linux would reject, and the whole table with it.
    Distance {
        /// From this domain
        from: usize,
        /// to this one.
        to: usize,
        /// The distance.
        distance: u8,
    },
    /// The tables do not fit into their place.
    TooLarge {
        /// Bytes that they have.
        bytes: usize,
    },
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest ACPI tables: ")?;
        match *self {
            Self::Processors { count } => write!(f, "{count} processors, not 1 to {MAX_PROCESSORS}"),
            Self::ApicId { id } => write!(f, "APIC ID {id:#x} is reserved or given twice"),
            Self::Domain { domain, domains } => {
                write!(f, "proximity domain {}, but distances for {domains} only", domain.0)
            }
            Self::Memory { range: MemoryRange { start, bytes, domain } } => {
                write!(f, "memory of {bytes} bytes at {:#x}, domain {}", start.0, domain.0)
            }
            Self::DistanceRow { row, entries, domains } => {
                write!(f, "{entries} distances from domain {row} to {domains} domains")
            }
            Self::Distance { from, to, distance } => {
                write!(
                    f,
                    "distance {distance} from domain {from} to {to}: {LOCAL_DISTANCE} is that to itself alone"
                )
            }
            Self::TooLarge { bytes } => write!(f, "{bytes} bytes, but room for {} only", layout::ACPI_BYTES),
        }
    }
}

impl core::error::Error for AcpiError {}

/// The tables for a platform: bytes for [`layout::ACPI_START`], the RSDP first.
///
/// # Errors
/// [`AcpiError`].
pub fn build(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    platform.check()?;
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let facs = area.place(&fixed::facs());
    let dsdt = area.place(&dsdt::dsdt(platform));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.place(&fixed::fadt(facs, dsdt)));
    xsdt.add_entry(area.place(&madt::madt(platform)));
    xsdt.add_entry(area.place(&affinity::srat(platform)));
    xsdt.add_entry(area.place(&affinity::slit(platform)));
    let rsdp = Rsdp::new(OEM_ID, area.place(&xsdt));
    let mut bytes = Vec::new();
    rsdp.to_aml_bytes(&mut bytes);
    bytes.extend_from_slice(area.bytes.get(bytes.len()..).unwrap_or_default());
    if bytes.len() > layout::ACPI_BYTES { Err(AcpiError::TooLarge { bytes: bytes.len() }) } else { Ok(bytes) }
}

/// A table with the common header (ACPI 6.5, 5.2.6) and this body.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER_BYTES: u32 = 36;
    let mut table = Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

/// What lies at [`layout::ACPI_START`].
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// What the FACS must be aligned to, the only table with a rule (ACPI 6.5, 5.2.10).
    const ALIGNMENT: usize = 64;

    /// Appends a table; its guest-physical address.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let offset = self.bytes.len().next_multiple_of(Self::ALIGNMENT);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        layout::ACPI_START.0 + offset as u64
    }
}

const _: () = assert!(layout::ACPI_START.0.is_multiple_of(Area::ALIGNMENT as u64));

#[cfg(test)]
pub mod testing {
    //! Platforms for tests.
    use super::{LegacyPic, Platform};
    use ipc::guest::Share;

    /// A guest on one node.
    pub fn one_node(vcpus: u8, pages: u64, pic: LegacyPic) -> Platform {
        Platform::spanning(&[Share { node: 0, vcpus, pages }], pic)
    }
}
