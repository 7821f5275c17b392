//! Interrupt messages, and whom they reach.
//!
//! A message comes from a vCPU's interrupt command register, from a pin of the I/O APIC, or from a device as an MSI. Each
//! of the three has its own format; here they become one, [`Interrupt`]. [`Processors`] then says which vCPUs it is for.
//! All local APICs are in x2APIC mode, and no interrupts are remapped.

mod route;
#[cfg(test)]
mod tests;

pub use route::{Processors, VcpuSet, Vcpus, logical_id};

/// A message that reaches everyone, in physical and in logical mode (Intel SDM 3A, 11.12.9).
pub const BROADCAST: u32 = u32::MAX;
/// Vectors below are the processor's own: no interrupt may have them (Intel SDM 3A, 11.5.2).
pub const FIRST_VECTOR: u8 = 16;

/// How the processor is told (Intel SDM 3A, 11.6.1 and 11.11.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// An interrupt with the message's vector, to all that are named.
    Fixed = 0,
    /// The same, to one of those that are named.
    LowestPriority = 1,
    /// A system management interrupt.
    Smi = 2,
    /// A non-maskable interrupt.
    Nmi = 4,
    /// A reset of the processor.
    Init = 5,
    /// Start of a processor that waits after INIT; the vector is the page it begins in.
    StartUp = 6,
    /// An interrupt whose vector the legacy interrupt controller tells.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode in bits 8 to 10 of a message or register. `None`: reserved.
    #[must_use]
    pub const fn from_register(register: u32) -> Option<Self> {
        match register >> 8 & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// Whether the local APIC queues it by its vector, and its handler ends with an EOI.
    #[must_use]
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Whether an interrupt's source is served once or until it is quiet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// By a change.
    Edge,
    /// By a state: the end of the interrupt is told to the I/O APIC.
    Level,
}

/// To whom a message goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// The one with this x2APIC ID, or all ([`BROADCAST`]).
    Physical(u32),
    /// Those of a cluster (bits 16 to 31) whose bits are set (0 to 15), or all ([`BROADCAST`]).
    Logical(u32),
    /// The sender.
    Myself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// How many bits of a destination devices can give. Without interrupt remapping a redirection entry and an MSI have 8.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DestinationWidth {
    /// 8 bits; 0xff is everyone.
    Narrow,
    /// 15 bits, the upper 7 of them in reserved fields: as KVM's feature bit for MSI_EXT_DEST_ID promises the guest. There
    /// is no broadcast, since 0xff is an ID as any other.
    Extended,
}

/// An interrupt message.
///
/// It has no level: the only message that takes something back, INIT level de-assert, is one that no processor since the
/// Pentium 4 heeds, so that it does not become a message at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interrupt {
    /// To whom.
    pub destination: Destination,
    /// How the processor is told.
    pub delivery: DeliveryMode,
    /// The vector; a page number for [`DeliveryMode::StartUp`], without meaning unless [`DeliveryMode::has_vector`].
    pub vector: u8,
    /// [`Trigger::Level`] only where [`DeliveryMode::has_vector`].
    pub trigger: Trigger,
}

/// Bit 11 of an interrupt command and of a redirection entry: the destination is logical.
const LOGICAL: u32 = 1 << 11;
const LEVEL_ASSERT: u32 = 1 << 14;
const LEVEL_TRIGGERED: u32 = 1 << 15;

impl Interrupt {
    /// The message that a write of the interrupt command register sends (Intel SDM 3A, 11.6.1 and 11.12.9). The reserved
    /// bits are the local APIC's to check. `None`, nothing is sent: a reserved delivery mode, one that the shorthand does
    /// not go with (table 11-3), or INIT level de-assert.
    #[must_use]
    pub fn from_command(command: u64) -> Option<Self> {
        let [low, destination] = halves(command);
        let delivery = DeliveryMode::from_register(low)?;
        let destination = match low >> 18 & 3 {
            0 if low & LOGICAL != 0 => Destination::Logical(destination),
            0 => Destination::Physical(destination),
            1 => Destination::Myself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let to_itself = matches!(destination, Destination::Myself | Destination::All);
        let is_sent = match delivery {
            DeliveryMode::Fixed => true,
            DeliveryMode::ExtInt => false,
            DeliveryMode::Init if low & LEVEL_TRIGGERED != 0 && low & LEVEL_ASSERT == 0 => false,
            _ => !to_itself,
        };
        // Interrupts between processors are edges, whatever the trigger mode says.
        is_sent.then_some(Self { destination, delivery, vector: vector(low), trigger: Trigger::Edge })
    }

    /// The message of a redirection table entry (82093AA, 3.2.4), masked or not. `None`: a reserved delivery mode.
    #[must_use]
    pub fn from_redirection_entry(entry: u64, width: DestinationWidth) -> Option<Self> {
        let [low, high] = halves(entry);
        let id = destination(high >> 24, high >> 17 & 0x7f, width);
        Self::from_device(low, id, low & LOGICAL != 0)
    }

    /// The message of a device's write of `data` to `address` (Intel SDM 3A, 11.11). `None`: the address is not that of
    /// interrupts, the delivery mode is reserved, or it takes a level-triggered interrupt back.
    #[must_use]
    pub fn from_msi(address: u64, data: u32, width: DestinationWidth) -> Option<Self> {
        const LOGICAL: u32 = 1 << 2;
        const REDIRECTION_HINT: u32 = 1 << 3;
        if address >> 20 != 0xfee {
            return None;
        }
        let [address, _] = halves(address);
        let id = destination(address >> 12, address >> 5 & 0x7f, width);
        let mut interrupt = Self::from_device(data, id, address & LOGICAL != 0)?;
        if interrupt.trigger == Trigger::Level && data & LEVEL_ASSERT == 0 {
            return None;
        }
        if interrupt.delivery == DeliveryMode::Fixed && address & REDIRECTION_HINT != 0 {
            interrupt.delivery = DeliveryMode::LowestPriority;
        }
        Some(interrupt)
    }

    fn from_device(low: u32, id: u32, is_logical: bool) -> Option<Self> {
        let delivery =
            DeliveryMode::from_register(low).filter(|&delivery| delivery != DeliveryMode::StartUp)?;
        // SMI, NMI and INIT are edges even where the entry says level, and nobody would end the level of an ExtINT.
        let is_level = low & LEVEL_TRIGGERED != 0 && delivery.has_vector();
        Some(Self {
            destination: if is_logical { Destination::Logical(id) } else { Destination::Physical(id) },
            delivery,
            vector: vector(low),
            trigger: if is_level { Trigger::Level } else { Trigger::Edge },
        })
    }

    /// Whether it has a vector and no interrupt may have it.
    #[must_use]
    pub const fn has_illegal_vector(&self) -> bool {
        self.delivery.has_vector() && self.vector < FIRST_VECTOR
    }
}

/// The destination of a device's message, from its 8 bits (of `low`, the rest is ignored) and the 7 that may go above.
const fn destination(low: u32, high: u32, width: DestinationWidth) -> u32 {
    match (width, low & 0xff) {
        (DestinationWidth::Narrow, 0xff) => BROADCAST,
        (DestinationWidth::Narrow, id) => id,
        (DestinationWidth::Extended, id) => high << 8 | id,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

const fn vector(register: u32) -> u8 {
    register.to_le_bytes()[0]
}
