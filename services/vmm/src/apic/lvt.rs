//! The local vector table: what the APIC does about each local source (Intel SDM 3A, 11.5.1, figure 11-8).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::interrupt::{DeliveryMode, Trigger};

/// A local source of interrupts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// Corrected machine checks.
    Cmci,
    /// The APIC's timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// The pin LINT0: the legacy interrupt controller.
    Lint0,
    /// The pin LINT1: NMI.
    Lint1,
    /// The APIC's own errors.
    Error,
}

impl Source {
    /// How many there are.
    pub(super) const COUNT: usize = 7;

    /// The bits that software changes in its register.
    pub(super) const fn writable(self) -> u32 {
        let with_vector = VECTOR | MASKED;
        match self {
            Self::Timer => with_vector | TIMER_MODE,
            Self::Error => with_vector,
            Self::Cmci | Self::Thermal | Self::Performance => with_vector | DELIVERY_MODE,
            Self::Lint0 | Self::Lint1 => with_vector | DELIVERY_MODE | ACTIVE_LOW | LEVEL_TRIGGERED,
        }
    }

    /// The bits that software may write, also those that it does not change.
    pub(super) const fn defined(self) -> u32 {
        let defined = self.writable() | DELIVERY_STATUS;
        if matches!(self, Self::Lint0 | Self::Lint1) { defined | REMOTE_IRR } else { defined }
    }
}

const _: () = assert!(Source::Error as usize + 1 == Source::COUNT);

const VECTOR: u32 = 0xff;
const DELIVERY_MODE: u32 = 7 << 8;
const DELIVERY_STATUS: u32 = 1 << 12;
const ACTIVE_LOW: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL_TRIGGERED: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const TIMER_MODE: u32 = 3 << 17;

/// A register of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub(super) struct Entry(u32);

impl Entry {
    pub(super) const RESET: Self = Self(MASKED);

    pub(super) const fn register(self) -> u32 {
        self.0
    }

    /// This entry after a write of bits that are defined for the source.
    pub(super) const fn written(self, source: Source, value: u32) -> Self {
        let writable = source.writable();
        let written = self.0 & !writable | value & writable;
        // An edge has no end to wait for.
        Self(if written & LEVEL_TRIGGERED == 0 { written & !REMOTE_IRR } else { written })
    }

    pub(super) const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    pub(super) const fn timer_mode(self) -> u32 {
        self.0 >> 17 & 3
    }

    pub(super) const fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    pub(super) const fn mask(&mut self) {
        self.0 |= MASKED;
    }

    /// `None`: reserved here.
    pub(super) const fn delivery_mode(self) -> Option<DeliveryMode> {
        match DeliveryMode::from_register(self.0) {
            None | Some(DeliveryMode::LowestPriority | DeliveryMode::StartUp) => None,
            mode => mode,
        }
    }

    pub(super) const fn trigger(self) -> Trigger {
        if self.0 & LEVEL_TRIGGERED != 0 { Trigger::Level } else { Trigger::Edge }
    }

    /// The APIC accepts its level-triggered interrupt. Whether it may: not before the last one has ended.
    pub(super) const fn begin_level(&mut self) -> bool {
        let may = self.0 & REMOTE_IRR == 0;
        self.0 |= REMOTE_IRR;
        may
    }

    /// The interrupt with its vector has ended.
    pub(super) const fn end_level(&mut self) {
        self.0 &= !REMOTE_IRR;
    }
}
