//! The MADT: processors, I/O APICs and how interrupt lines reach them (ACPI 6.5, 5.2.12).

use heapless::Vec;
use ipc::abi::MAX_CORES;

use super::{AcpiError, Signature};
use crate::address::PhysAddr;
use crate::machine::Trigger;
use crate::physical::field;

/// The most I/O APICs that are kept.
pub const MAX_IO_APICS: usize = 16;
/// The most lines whose routing differs from the default, and the most lines that are NMIs, that are kept.
pub const MAX_LINES: usize = 32;

const TABLE: Signature = *b"APIC";
const FIRST_ENTRY: usize = 44;

/// What the MADT says.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    /// Where every core finds its local APIC while that is in xAPIC mode.
    pub local_apic: PhysAddr,
    /// The processors that can run, in the table's order.
    pub processors: Vec<Processor, MAX_CORES>,
    /// Processors that can run but found no room in `processors`.
    pub processors_left_out: u32,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic, MAX_IO_APICS>,
    /// ISA lines that are not wired one to one.
    pub overrides: Vec<Override, MAX_LINES>,
    /// I/O APIC inputs that are non-maskable interrupts.
    pub nmi_sources: Vec<NmiSource, MAX_LINES>,
    /// Local APIC inputs that are non-maskable interrupts.
    pub local_nmis: Vec<LocalNmi, MAX_LINES>,
}

/// A processor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Processor {
    /// Its local APIC's ID; above 254 only in x2APIC mode.
    pub apic_id: u32,
    /// ACPI's own number for it.
    pub uid: u32,
    /// Whether it can be started now.
    pub state: ProcessorState,
}

/// Whether a processor can be started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProcessorState {
    /// Now.
    Enabled,
    /// After it was plugged in; it is not there at boot.
    OnlineCapable,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IoApic {
    /// Its ID.
    pub id: u8,
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
    /// What the PCI bus does.
    pub const PCI: Self = Self { polarity: Polarity::Low, trigger: Trigger::Level };

    /// Decodes MPS INTI flags (ACPI 6.5, table 5.26); `bus` is what "conforms to the bus" means.
    fn from_flags(flags: u16, bus: Self) -> Option<Self> {
        let polarity = match flags & 3 {
            0 => bus.polarity,
            1 => Polarity::High,
            3 => Polarity::Low,
            _ => return None,
        };
        let trigger = match flags >> 2 & 3 {
            0 => bus.trigger,
            1 => Trigger::Edge,
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

/// An I/O APIC input that is a non-maskable interrupt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NmiSource {
    /// The global system interrupt.
    pub gsi: u32,
    /// How it signals.
    pub signal: Signal,
}

/// A local APIC input that is a non-maskable interrupt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalNmi {
    /// ACPI's number of the processor; `None` for all of them.
    pub uid: Option<u32>,
    /// LINT0 or LINT1.
    pub lint: u8,
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
        let local_apic: u32 = field(table, 36).ok_or(bad(36))?;
        let mut madt = Self { local_apic: PhysAddr(local_apic.into()), ..Self::default() };
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
        let signal = |at| {
            let flags = field::<u16>(entry, at).ok_or(bad)?;
            Signal::from_flags(flags, Signal::ISA).ok_or(bad)
        };
        let too_many = |what| AcpiError::TooMany(TABLE, what);
        match kind {
            // 255 is no APIC's ID but the broadcast, and marks an entry that is not in use.
            0 if byte(3)? != 255 => self.processor(byte(3)?.into(), byte(2)?.into(), word(4)?),
            9 => self.processor(word(4)?, word(12)?, word(8)?),
            1 => {
                let io_apic = IoApic { id: byte(2)?, address: PhysAddr(word(4)?.into()), gsi_base: word(8)? };
                self.io_apics.push(io_apic).map_err(|_| too_many("I/O APICs"))?;
            }
            2 => {
                let line = Override { line: byte(3)?, gsi: word(4)?, signal: signal(8)? };
                if line.line > 15 {
                    return Err(bad);
                }
                self.overrides.push(line).map_err(|_| too_many("overrides"))?;
            }
            3 => {
                let source = NmiSource { gsi: word(4)?, signal: signal(2)? };
                self.nmi_sources.push(source).map_err(|_| too_many("NMI sources"))?;
            }
            4 | 10 => {
                let (uid, all, lint, flags) =
                    if kind == 4 { (byte(2)?.into(), 0xff, 5, 3) } else { (word(4)?, u32::MAX, 8, 2) };
                let nmi = LocalNmi {
                    uid: Some(uid).filter(|uid| *uid != all),
                    lint: byte(lint)?,
                    signal: signal(flags)?,
                };
                if nmi.lint > 1 {
                    return Err(bad);
                }
                self.local_nmis.push(nmi).map_err(|_| too_many("local NMIs"))?;
            }
            5 => self.local_apic = PhysAddr(field(entry, 4).ok_or(bad)?),
            _ => {}
        }
        Ok(())
    }

    fn processor(&mut self, apic_id: u32, uid: u32, flags: u32) {
        let state = match flags & 3 {
            0 => return,
            2 => ProcessorState::OnlineCapable,
            _ => ProcessorState::Enabled,
        };
        // Some firmware lists a processor both ways.
        if self.processors.iter().any(|p| p.apic_id == apic_id) {
            return;
        }
        if self.processors.push(Processor { apic_id, uid, state }).is_err() {
            self.processors_left_out += 1;
        }
    }
}
