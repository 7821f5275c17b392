//! PCI configuration space: access, enumeration, BARs, capabilities and MSI-X.
//!
//! Pure logic over [`ConfigAccess`], which reaches the registers: the kernel implements it by ports or memory to find
//! the devices of its manifest and set up their interrupts, a service by system calls on the one device it holds.
//! What a device answers is a claim: every walk is bounded and every value checked, for a device may be broken,
//! gone (it then reads as all ones) or hostile.
//!
//! Sources: PCI Local Bus 3.0, chapter 6 and 3.2.2.3 (configuration mechanism); PCI-to-PCI Bridge 1.2, 3.2; PCI
//! Express Base 5.0, 7.2.2 (ECAM) and 7.7.2 (MSI-X).
#![no_std]
#![forbid(unsafe_code)]

mod bar;
mod capability;
mod config;
mod enumerate;
mod msix;
#[cfg(test)]
mod simulated;

pub use bar::{Bar, BarError, BarKind, Bars, MAX_BARS, Prefetch, bars};
pub use capability::{CAPABILITY_MSIX, CAPABILITY_VENDOR, Capabilities, Capability, find_capability};
pub use config::{
    Address, CAM_ADDRESS_PORT, CAM_DATA_PORT, Command, ConfigAccess, Width, cam_address, cam_data_port,
    ecam_offset, update_command,
};
pub use enumerate::{Class, Function, HeaderKind, Scan, function};
pub use msix::{MSIX_ENTRY_BYTES, MsiX, MsiXError, MsiXState, Place, table_entry};
