//! The local APIC of a vCPU, in x2APIC mode.
//!
//! It is found in x2APIC mode, as firmware leaves it, and there are no registers in memory: a guest that turns it off and
//! on again (Intel SDM 3A, 11.12.5) passes through xAPIC mode without being able to do anything there. Everything is plain
//! data without pointers, so that a vCPU moves as a block; whatever the bytes, no method panics.
//!
//! Time is the guest's TSC. Whoever runs the vCPU calls [`LocalApic::expire`] when [`LocalApic::next_due`] has come.
//!
//! The layers: `vectors` is a set of vectors, `timer` counts, `lvt` names the local vector table's bits, `registers` is what
//! RDMSR and WRMSR see; here is how interrupts are accepted, taken and ended.

mod lvt;
mod registers;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::clock::Timebase;
use crate::interrupt::{DeliveryMode, FIRST_VECTOR, Interrupt, Trigger};
use crate::msr::GeneralProtection;
use lvt::Entry;
use timer::{Timer, TimerMode};
use vectors::Vectors;

pub use lvt::Source;
pub use registers::{MSR_APIC_BASE, MSR_FIRST, MSR_LAST, MSR_TSC_DEADLINE, sets_timer};

/// What others have to do after a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Deliver this message; it is not only for the sender.
    Send(Interrupt),
    /// Tell the I/O APIC that a level-triggered interrupt with this vector has ended.
    EndOfInterrupt(u8),
}

/// What IA32_APIC_BASE says (Intel SDM 3A, table 11-5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// There is no local APIC: CPUID shows none, LINT0 and LINT1 are the processor's INTR and NMI.
    Disabled,
    /// Enabled, with registers in memory; which there are none of, here.
    XApic,
    /// Enabled, with registers as MSRs.
    X2Apic,
}

/// Which processor it is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The one that boots.
    Bootstrap,
    /// One that waits for INIT and SIPI.
    Application,
}

/// What a local APIC is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The x2APIC ID; not [`crate::interrupt::BROADCAST`].
    pub id: u32,
    /// See there.
    pub role: Role,
    /// How fast the guest's TSC is.
    pub timebase: Timebase,
    /// The guest's physical addresses have so many bits (CPUID 0x8000_0008): 36 to 52.
    pub physical_address_bits: u8,
}

const BASE_BOOTSTRAP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
/// Bits 0 to 7 and 9 of IA32_APIC_BASE.
const BASE_RESERVED: u64 = 0x2ff;
const DEFAULT_BASE: u64 = 0xfee0_0000;

/// Spurious interrupt vector register: software enables the APIC.
const SPURIOUS_ENABLED: u32 = 1 << 8;
/// The same: the end of a level-triggered interrupt is not told to I/O APICs.
const SPURIOUS_SUPPRESS_BROADCAST: u32 = 1 << 12;
const SPURIOUS_RESET: u32 = 0xff;

/// Error status register (Intel SDM 3A, 11.5.3).
const ERROR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;

/// A local APIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LocalApic {
    /// IA32_APIC_BASE.
    base: u64,
    /// Its bits that are reserved.
    base_reserved: u64,
    /// The last interrupt command.
    command: u64,
    /// In service: taken by the processor and not ended.
    in_service: Vectors,
    /// Requested: accepted and not yet taken.
    requested: Vectors,
    /// Of those accepted, the level-triggered ones.
    level: Vectors,
    timer: Timer,
    lvt: [Entry; Source::COUNT],
    id: u32,
    task_priority: u32,
    spurious: u32,
    /// What the error status register shows.
    error_status: u32,
    /// What it will show after the next write of it.
    errors: u32,
}

const _: () = assert!(size_of::<LocalApic>() <= 256);

impl LocalApic {
    /// As after INIT, but in x2APIC mode: software has yet to enable it, every local interrupt is masked.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let role = match config.role {
            Role::Bootstrap => BASE_BOOTSTRAP,
            Role::Application => 0,
        };
        let mut apic = Self {
            base: DEFAULT_BASE | BASE_ENABLED | BASE_X2APIC | role,
            timer: Timer::new(config.timebase),
            id: config.id,
            base_reserved: BASE_RESERVED
                | u64::MAX.checked_shl(config.physical_address_bits.into()).unwrap_or(0),
            ..Self::new_zeroed()
        };
        apic.init_reset();
        apic
    }

    /// INIT: all but the ID and IA32_APIC_BASE is as after a reset (Intel SDM 3A, 11.4.7.3).
    pub fn init_reset(&mut self) {
        let Self { base, base_reserved, id, .. } = *self;
        *self = Self {
            base,
            base_reserved,
            id,
            timer: Timer::new(self.timer.timebase()),
            lvt: [Entry::RESET; Source::COUNT],
            spurious: SPURIOUS_RESET,
            ..Self::new_zeroed()
        };
    }

    /// Its x2APIC ID.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The mode it is in.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match (self.base & BASE_ENABLED != 0, self.base & BASE_X2APIC != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// Whether the processor takes what comes on the legacy interrupt controller's line, which is wired to LINT0.
    #[must_use]
    pub fn takes_external_interrupts(&self) -> bool {
        let lint0 = self.lvt[Source::Lint0 as usize];
        self.mode() == Mode::Disabled
            || !lint0.is_masked() && lint0.delivery_mode() == Some(DeliveryMode::ExtInt)
    }

    /// An interrupt message has come ([`DeliveryMode::Fixed`], or [`DeliveryMode::LowestPriority`] and this is the one).
    /// Whether it is pending now and was not before. An APIC that is not enabled refuses it.
    pub fn accept(&mut self, vector: u8, trigger: Trigger) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < FIRST_VECTOR {
            self.error(ERROR_RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        match trigger {
            Trigger::Edge => self.level.remove(vector),
            Trigger::Level => self.level.insert(vector),
        }
        let is_new = !self.requested.contains(vector);
        self.requested.insert(vector);
        is_new
    }

    /// The interrupt that the processor would take now if it takes interrupts: the highest that is requested, when its
    /// class is above the processor's priority (Intel SDM 3A, 11.8.3). What was accepted before software disabled the APIC
    /// can still be taken (11.4.7.2).
    #[must_use]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (vector & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    /// The processor takes the interrupt that is [`LocalApic::deliverable`], and its vector.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.requested.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    /// The vector that the processor takes when it began to take an interrupt and by now there is none to take.
    #[must_use]
    pub const fn spurious_vector(&self) -> u8 {
        self.spurious.to_le_bytes()[0]
    }

    /// The processor priority, register PPR.
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let task = self.task_priority();
        let serviced = self.in_service.highest().unwrap_or(0) & 0xf0;
        if task & 0xf0 >= serviced { task } else { serviced }
    }

    /// The task priority: register TPR, and CR8 is its upper half.
    #[must_use]
    pub const fn task_priority(&self) -> u8 {
        self.task_priority.to_le_bytes()[0]
    }

    /// Sets the task priority, as a write of CR8 does.
    pub fn set_task_priority(&mut self, priority: u8) {
        self.task_priority = priority.into();
    }

    /// How busy the processor is with or before what it would get: who is lowest gets an interrupt of lowest priority.
    /// `None`: it takes no interrupts (Intel SDM 3A, 11.6.2.4).
    #[must_use]
    pub fn arbitration_priority(&self) -> Option<u8> {
        let requested = self.requested.highest().unwrap_or(0) & 0xf0;
        self.is_software_enabled().then(|| self.processor_priority().max(requested))
    }

    /// When [`LocalApic::expire`] will have something to do, in ticks of the guest's TSC.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        // While its interrupt is masked the timer goes on, but nobody needs to wake up for it.
        if self.lvt[Source::Timer as usize].is_masked() { None } else { self.timer.due() }
    }

    /// The guest's TSC is `now`: requests the timer's interrupt when it is due. Whether it is pending now and was not
    /// before. A timer that is several periods late gives one interrupt and goes on with the period that runs.
    pub fn expire(&mut self, now: u64) -> bool {
        let entry = self.lvt[Source::Timer as usize];
        if !self.timer.pass(TimerMode::of(entry), now) || entry.is_masked() {
            return false;
        }
        self.accept(entry.vector(), Trigger::Edge)
    }

    /// The guest changed its TSC (IA32_TSC, IA32_TSC_ADJUST): a count goes on as it did, a deadline stays what it is.
    pub fn tsc_changed(&mut self, from: u64, to: u64) {
        self.timer.tsc_changed(from, to);
    }

    /// Something happened at one of the local sources; at LINT0 and LINT1, that the line was asserted. How the processor is
    /// to be told; [`DeliveryMode::Fixed`]: the interrupt is pending now. `None`: masked, refused, or pending already.
    ///
    /// The timer and errors are not signalled from outside: nothing happens.
    pub fn signal(&mut self, source: Source) -> Option<DeliveryMode> {
        if self.mode() == Mode::Disabled {
            return match source {
                Source::Lint0 => Some(DeliveryMode::ExtInt),
                Source::Lint1 => Some(DeliveryMode::Nmi),
                _ => None,
            };
        }
        let entry = &mut self.lvt[source as usize];
        if entry.is_masked() || matches!(source, Source::Timer | Source::Error) {
            return None;
        }
        if source == Source::Performance {
            // Until its handler unmasks it again (Intel SDM 3A, 11.5.1).
            entry.mask();
        }
        let delivery = entry.delivery_mode()?;
        if delivery != DeliveryMode::Fixed {
            return Some(delivery);
        }
        // Only LINT0 can be level-triggered; until the EOI it then waits.
        let trigger = if source == Source::Lint0 { entry.trigger() } else { Trigger::Edge };
        let vector = entry.vector();
        if trigger == Trigger::Level && vector >= FIRST_VECTOR && !entry.begin_level() {
            return None;
        }
        self.accept(vector, trigger).then_some(DeliveryMode::Fixed)
    }

    /// The processor has served the interrupt of the highest priority that is in service.
    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else { return Effect::None };
        self.in_service.remove(vector);
        if !self.level.contains(vector) {
            return Effect::None;
        }
        let lint0 = &mut self.lvt[Source::Lint0 as usize];
        if lint0.vector() == vector {
            lint0.end_level();
        }
        if self.spurious & SPURIOUS_SUPPRESS_BROADCAST != 0 {
            return Effect::None;
        }
        Effect::EndOfInterrupt(vector)
    }

    fn is_software_enabled(&self) -> bool {
        self.spurious & SPURIOUS_ENABLED != 0 && self.mode() != Mode::Disabled
    }

    /// Notes errors. The first after a write of the error status register also gives an interrupt.
    fn error(&mut self, errors: u32) {
        let is_first = self.errors == 0;
        self.errors |= errors;
        let entry = self.lvt[Source::Error as usize];
        if !is_first || entry.is_masked() {
            return;
        }
        if entry.vector() < FIRST_VECTOR {
            self.errors |= ERROR_RECEIVE_ILLEGAL_VECTOR;
        } else {
            self.accept(entry.vector(), Trigger::Edge);
        }
    }
}
