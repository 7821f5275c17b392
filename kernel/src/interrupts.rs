//! Which interrupt goes to which service.

use heapless::Vec;

use crate::ids::ServiceId;

/// The first vector that the kernel gives to a device.
pub const FIRST_VECTOR: u8 = 0x30;
/// The most interrupts that services can have on one node.
pub const MAX_INTERRUPTS: usize = 64;

/// One interrupt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InterruptLine {
    /// The global system interrupt to mask from when it comes until the service acknowledges it: of an I/O APIC's
    /// level-triggered input, which would otherwise come again and again until its device is served.
    pub masked: Option<u32>,
    /// Whose it is.
    pub service: ServiceId,
    /// The notification bits that it raises there.
    pub bits: u64,
}

/// All interrupts, in the order of their vectors from [`FIRST_VECTOR`] on.
#[derive(Clone, Debug, Default)]
pub struct InterruptTable {
    lines: Vec<InterruptLine, MAX_INTERRUPTS>,
}

impl InterruptTable {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self { lines: Vec::new() }
    }

    /// Adds an interrupt; its place in the table and its vector, or `None` when the table is full.
    pub fn add(&mut self, line: InterruptLine) -> Option<(u8, u8)> {
        let index = u8::try_from(self.lines.len()).ok()?;
        self.lines.push(line).ok()?;
        Some((index, FIRST_VECTOR.checked_add(index)?))
    }

    /// The interrupt at a place in the table.
    #[must_use]
    pub fn get(&self, index: u8) -> Option<InterruptLine> {
        self.lines.get(usize::from(index)).copied()
    }

    /// The global system interrupts of a service's that may be masked.
    pub fn masked_of(&self, service: ServiceId) -> impl Iterator<Item = u32> {
        self.lines.iter().filter(move |line| line.service == service).filter_map(|line| line.masked)
    }

    /// The interrupt with a vector.
    #[must_use]
    pub fn by_vector(&self, vector: u8) -> Option<InterruptLine> {
        self.get(vector.checked_sub(FIRST_VECTOR)?)
    }
}
