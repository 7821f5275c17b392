//! The I/O APICs, which turn interrupt lines into vectors (Intel 82093AA datasheet, 3).
#![expect(unsafe_code, reason = "device registers")]

use core::fmt;

use heapless::Vec;
use kernel::acpi::madt::{IoApic as Description, MAX_IO_APICS, Polarity, Signal};
use kernel::address::PhysAddr;
use kernel::machine::Trigger;

use super::direct::pointer;

/// Registers: which one is meant, and its contents.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Bytes of registers, to be mapped uncached.
pub const REGISTER_BYTES: u64 = 0x20;
const VERSION: u32 = 1;
/// The low half of the first line's entry; the high half is the next register.
const ENTRIES: u32 = 0x10;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

/// Why an I/O APIC's line or an MSI-X entry cannot be routed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RouteError {
    /// No I/O APIC has this global system interrupt, or the table no such entry.
    NoSuchLine(u32),
    /// The core's local APIC number has more than the 8 bits that there are for it.
    Unreachable(u32),
}

impl RouteError {
    /// A local APIC's number as a route has it: 8 bits, of which 255 would be all cores.
    pub fn destination(apic_id: u32) -> Result<u8, Self> {
        u8::try_from(apic_id).ok().filter(|&id| id != 0xff).ok_or(Self::Unreachable(apic_id))
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchLine(line) => write!(f, "there is no interrupt {line}"),
            Self::Unreachable(id) => write!(f, "no interrupt reaches local APIC {id}"),
        }
    }
}

/// One I/O APIC.
#[derive(Debug)]
struct IoApic {
    registers: PhysAddr,
    first: u32,
    lines: u32,
}

impl IoApic {
    fn select(&mut self, register: u32) -> *mut u32 {
        let select: *mut u32 = pointer(self.registers);
        // SAFETY: `IoApics::new`'s caller has mapped the registers; they touch no memory.
        unsafe { select.write_volatile(register) };
        pointer(PhysAddr(self.registers.0 + WINDOW))
    }

    fn read(&mut self, register: u32) -> u32 {
        let window = self.select(register);
        // SAFETY: as for the selection.
        unsafe { window.read_volatile() }
    }

    fn write(&mut self, register: u32, value: u32) {
        let window = self.select(register);
        // SAFETY: as for the selection. A vector that is sent finds the kernel's descriptor table.
        unsafe { window.write_volatile(value) };
    }
}

const _: () = assert!(SELECT == 0);

/// All I/O APICs, under the kernel lock.
#[derive(Debug)]
pub struct IoApics(Vec<IoApic, MAX_IO_APICS>);

impl IoApics {
    /// None.
    #[must_use]
    pub const fn absent() -> Self {
        Self(Vec::new())
    }

    /// Takes over the machine's I/O APICs with every line masked.
    ///
    /// # Safety
    /// Each one's [`REGISTER_BYTES`] are mapped, uncached, in the direct map, and there is one value of this type.
    pub unsafe fn new(descriptions: &[Description]) -> Self {
        let mut all = Vec::new();
        for description in descriptions {
            let mut one = IoApic { registers: description.address, first: description.gsi_base, lines: 0 };
            one.lines = (one.read(VERSION) >> 16 & 0xff) + 1;
            for line in 0..one.lines {
                one.write(ENTRIES + 2 * line, MASKED);
            }
            // There are at most as many descriptions as fit.
            let _ = all.push(one);
        }
        Self(all)
    }

    /// The I/O APIC that has this global system interrupt, and the register with the low half of its entry.
    fn find(&mut self, gsi: u32) -> Option<(&mut IoApic, u32)> {
        self.0.iter_mut().find_map(|one| {
            let line = gsi.checked_sub(one.first).filter(|&line| line < one.lines)?;
            Some((one, ENTRIES + 2 * line))
        })
    }

    /// Sends a line, which stays masked, to the core with this local APIC number as `vector`.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn route(&mut self, gsi: u32, signal: Signal, vector: u8, apic_id: u32) -> Result<(), RouteError> {
        let destination = RouteError::destination(apic_id)?;
        let (one, register) = self.find(gsi).ok_or(RouteError::NoSuchLine(gsi))?;
        let polarity = if signal.polarity == Polarity::Low { ACTIVE_LOW } else { 0 };
        let trigger = if signal.trigger == Trigger::Level { LEVEL } else { 0 };
        one.write(register, MASKED | polarity | trigger | u32::from(vector));
        one.write(register + 1, u32::from(destination) << 24);
        Ok(())
    }

    /// Keeps a line from interrupting; one that no I/O APIC has does not anyway.
    pub fn mask(&mut self, gsi: u32) {
        if let Some((one, register)) = self.find(gsi) {
            let entry = one.read(register);
            one.write(register, entry | MASKED);
        }
    }

    /// Lets a line interrupt that was routed.
    pub fn unmask(&mut self, gsi: u32) {
        if let Some((one, register)) = self.find(gsi) {
            let entry = one.read(register);
            one.write(register, entry & !MASKED);
        }
    }
}
