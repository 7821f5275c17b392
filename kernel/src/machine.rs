//! What the kernel's logic asks of the processor and the chipset. `hw` implements it for real, the tests in memory.

use crate::address::PhysAddr;

/// Where an interrupt comes from, as the kernel masks and unmasks it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InterruptSource {
    /// A pin of an I/O APIC, by global system interrupt. Level-triggered ones are masked from when they come until
    /// the service acknowledges.
    IoApic {
        /// Global system interrupt.
        gsi: u32,
        /// Whether it is level-triggered.
        level: Trigger,
    },
    /// An entry of a PCI function's MSI-X table; edge-triggered, never masked by the kernel after boot.
    MsiX,
}

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// At a change.
    Edge,
    /// While it is active.
    Level,
}

/// The width of a port or configuration-space access.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// The width of so many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
}

/// A PCI function's place: bus << 8 | device << 3 | function.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct PciAddress(pub u16);

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
    /// Copies physical memory that does not overlap.
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, bytes: usize);
    /// Zeroes physical memory.
    fn zero(&mut self, at: PhysAddr, bytes: usize);
    /// Keeps an interrupt from coming.
    fn mask(&mut self, source: InterruptSource);
    /// Lets an interrupt come again.
    fn unmask(&mut self, source: InterruptSource);
    /// Reads an I/O port.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes an I/O port.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
    /// Reads PCI configuration space; `offset` is aligned to the width and below 4,096.
    fn config_read(&mut self, function: PciAddress, offset: u16, width: Width) -> u32;
    /// Writes PCI configuration space, likewise.
    fn config_write(&mut self, function: PciAddress, offset: u16, width: Width, value: u32);
    /// Leaves the node. Returns only in tests.
    fn stop_node(&mut self, kind: StopKind);
}
