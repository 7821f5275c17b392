//! What the kernel's logic asks of the processor and the chipset. `hw` implements it for real, the tests in memory.

pub use pci::{Address as PciAddress, Width};

use crate::address::PhysAddr;
use crate::context::Extended;
use crate::svm::vmcb::Vmcb;

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// At a change.
    Edge,
    /// While it is active.
    Level,
}

/// How the node is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StopKind {
    /// Power off, as far as the chipset can.
    PowerOff,
    /// Reset.
    Reset,
}

/// The processor that the kernel runs on at this moment, and the chipset.
///
/// Physical addresses that the logic passes always lie in memory that it allocated at boot; an implementation may
/// take that for granted.
pub trait Machine {
    /// The time in TSC ticks.
    fn now(&self) -> u64;
    /// Arms this core's one-shot timer for `deadline` (TSC ticks); [`ipc::abi::NEVER`] disarms it.
    fn set_timer(&mut self, deadline: u64);
    /// Makes another core look at its run queue.
    fn reschedule(&mut self, core: usize);
    /// Makes the page tables with this root (of a service) the current ones of this core.
    fn switch_address_space(&mut self, root: PhysAddr);
    /// Reads physical memory.
    fn read(&self, from: PhysAddr, into: &mut [u8]);
    /// Writes physical memory.
    fn write(&mut self, to: PhysAddr, bytes: &[u8]);
    /// Reads an aligned 32-bit word, atomically.
    fn read_u32(&self, from: PhysAddr) -> u32;
    /// Reads an aligned 64-bit word, atomically.
    fn read_u64(&self, from: PhysAddr) -> u64;
    /// Writes an aligned 64-bit word, atomically.
    fn write_u64(&mut self, to: PhysAddr, value: u64);
    /// Copies physical memory that does not overlap.
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, bytes: usize);
    /// Zeroes physical memory.
    fn zero(&mut self, at: PhysAddr, bytes: usize);
    /// Keeps the interrupt of an I/O APIC's input from coming; `gsi` is its global system interrupt.
    fn mask(&mut self, gsi: u32);
    /// Lets it come again.
    fn unmask(&mut self, gsi: u32);
    /// Reads an I/O port.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes an I/O port.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
    /// Reads PCI configuration space; `offset` is aligned to the width and below 4,096.
    fn config_read(&mut self, function: PciAddress, offset: u16, width: Width) -> u32;
    /// Writes PCI configuration space, likewise.
    fn config_write(&mut self, function: PciAddress, offset: u16, width: Width, value: u32);
    /// The physical address of a part of the kernel's state.
    fn physical_address(&self, block: &Vmcb) -> PhysAddr;
    /// This core goes to guest mode next.
    fn begin_guest(&mut self);
    /// Makes another core leave ring 3 or guest mode, and waits until it is in the kernel or on its way in.
    fn expel(&mut self, core: usize);
    /// Saves what a vCPU left in this core.
    fn save_extended(&mut self, into: &mut Extended);
    /// Loads it.
    fn load_extended(&mut self, from: &Extended);
    /// The node's hardware failed while a vCPU ran. Returns only in tests.
    fn machine_check(&mut self);
    /// Leaves the node. Returns only in tests.
    fn stop_node(&mut self, kind: StopKind);
}
