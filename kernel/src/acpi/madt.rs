//! The MADT: processors, I/O APICs and how interrupt lines reach them (ACPI 6.5, 5.2.12). Where a local APIC is tells
//! its own register.

use heapless::Vec;
use ipc::abi::MAX_CORES;

use super::{AcpiError, Signature};
use crate::address::PhysAddr;
use crate::machine::Trigger;
use crate::physical::field;

/// The most I/O APICs that are kept.
pub const MAX_IO_APICS: usize = 16;
/// The most lines whose routing differs from the default that are kept.
pub const MAX_LINES: usize = 32;

const TABLE: Signature = *b"APIC";
const FIRST_ENTRY: usize = 44;

/// What the MADT says.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    /// The local APICs' IDs of the processors that can run now, in the table's order, as many as the kernel can use.
    pub processors: Vec<u32, MAX_CORES>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic, MAX_IO_APICS>,
    /// ISA lines that are not wired one to one.
    pub overrides: Vec<Override, MAX_LINES>,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IoApic {
    /// Its registers.
    pub address: PhysAddr,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// At which level a line is active.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Polarity {
    /// Active high.
    High,
    /// Active low.
    Low,
}

/// How a line signals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signal {
    /// When it is active.
    pub polarity: Polarity,
    /// What of it counts.
    pub trigger: Trigger,
}

impl Signal {
    /// What the ISA bus does.
    pub const ISA: Self = Self { polarity: Polarity::High, trigger: Trigger::Edge };

    /// Decodes MPS INTI flags (ACPI 6.5, table 5.26); "conforms to the bus" means the ISA bus.
    fn from_flags(flags: u16) -> Option<Self> {
        let polarity = match flags & 3 {
            0 | 1 => Polarity::High,
            3 => Polarity::Low,
            _ => return None,
        };
        let trigger = match flags >> 2 & 3 {
            0 | 1 => Trigger::Edge,
            3 => Trigger::Level,
            _ => return None,
        };
        Some(Self { polarity, trigger })
    }
}

/// Where an ISA line goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Override {
    /// The ISA line, 0 to 15.
    pub line: u8,
    /// The global system interrupt.
    pub gsi: u32,
    /// How it signals.
    pub signal: Signal,
}

impl Madt {
    /// Where an ISA line goes and how it signals.
    #[must_use]
    pub fn isa(&self, line: u8) -> Override {
        let default = Override { line, gsi: line.into(), signal: Signal::ISA };
        self.overrides.iter().find(|o| o.line == line).copied().unwrap_or(default)
    }

    /// Reads a whole table.
    ///
    /// # Errors
    /// [`AcpiError::BadEntry`], [`AcpiError::TooMany`].
    pub fn parse(table: &[u8]) -> Result<Self, AcpiError> {
        let bad = |at| AcpiError::BadEntry(TABLE, at);
        let mut madt = Self::default();
        let mut at = FIRST_ENTRY;
        while at < table.len() {
            let [kind, length] = field(table, at).ok_or(bad(at))?;
            let end = at + usize::from(length);
            if length < 2 {
                return Err(bad(at));
            }
            let entry = table.get(at..end).ok_or(bad(at))?;
            madt.entry(kind, entry, bad(at))?;
            at = end;
        }
        Ok(madt)
    }

    /// Takes over one entry; `bad` is the error for a malformed one. Unknown kinds are passed over, as 5.2.12 asks.
    fn entry(&mut self, kind: u8, entry: &[u8], bad: AcpiError) -> Result<(), AcpiError> {
        let byte = |at| field::<u8>(entry, at).ok_or(bad);
        let word = |at| field::<u32>(entry, at).ok_or(bad);
        let too_many = |what| AcpiError::TooMany(TABLE, what);
        match kind {
            // 255 is no APIC's ID but the broadcast, and marks an entry that is not in use.
            0 if byte(3)? != 255 => self.processor(byte(3)?.into(), word(4)?),
            9 => self.processor(word(4)?, word(8)?),
            1 => {
                let io_apic = IoApic { address: PhysAddr(word(4)?.into()), gsi_base: word(8)? };
                self.io_apics.push(io_apic).map_err(|_| too_many("I/O APICs"))?;
            }
            2 => {
                let signal = field(entry, 8).and_then(Signal::from_flags).ok_or(bad)?;
                let line = Override { line: byte(3)?, gsi: word(4)?, signal };
                if line.line > 15 {
                    return Err(bad);
                }
                self.overrides.push(line).map_err(|_| too_many("overrides"))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn processor(&mut self, apic_id: u32, flags: u32) {
        const ENABLED: u32 = 1;
        // Some firmware lists a processor in both forms.
        if flags & ENABLED != 0 && !self.processors.contains(&apic_id) {
            // What finds no room stays halted.
            let _ = self.processors.push(apic_id);
        }
    }
}
