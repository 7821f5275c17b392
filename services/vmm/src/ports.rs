//! Which device answers an I/O port.
//!
//! All devices are eight bits wide, as on an ISA bus: a wider access is one of each byte, lowest first, all at the same
//! tick. So a timer that is read whole is read at one moment, and an access may reach two devices or half of one.

#[cfg(test)]
mod tests;

use crate::clock::Timebase;
use crate::legacy::Legacy;
use crate::power::{self, Power, PowerEvent};
use crate::rtc::{self, Rtc};
use crate::uart::{self, Uart};

/// The serial port's base.
pub const COM1_PORT: u16 = 0x3f8;
/// Which input of the I/O APIC the serial port's interrupt reaches: an edge, as on the ISA bus.
pub const COM1_GSI: u32 = 4;

const COM1_LAST: u16 = COM1_PORT + uart::PORTS - 1;

/// What an absent device answers.
const ABSENT: u8 = 0xff;

/// What a write asks of whoever runs the machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortEffect {
    /// Nothing.
    None,
    /// The serial port has output to take.
    Output,
    /// The guest switched off or reset the machine.
    Power(PowerEvent),
}

/// A device that interrupts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The serial port.
    Uart,
    /// The real-time clock.
    Rtc,
    /// Power management: the SCI.
    Power,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Uart, Self::Rtc, Self::Power];

    /// The device whose line an access to this port, or to the three after it, may change.
    #[must_use]
    pub const fn at(port: u16) -> Option<Self> {
        match port {
            0x3f5..=COM1_LAST => Some(Self::Uart),
            0x6d..=rtc::DATA_PORT => Some(Self::Rtc),
            0x5fd..=0x60b => Some(Self::Power),
            _ => None,
        }
    }

    /// Which input of the I/O APIC its line reaches.
    #[must_use]
    pub const fn gsi(self) -> u32 {
        match self {
            Self::Uart => COM1_GSI,
            Self::Rtc => rtc::GSI,
            Self::Power => power::SCI_GSI,
        }
    }
}

/// Whether an access of so many bytes reaches a device, and not only an empty bus, which reads as all ones.
#[must_use]
pub const fn answers(port: u16, bytes: u8) -> bool {
    let mut at = 0;
    while at < bytes {
        let there = match port.checked_add(at as u16) {
            Some(power::RESET_PORT) => bytes == 1,
            Some(COM1_PORT..=COM1_LAST | rtc::INDEX_PORT | rtc::DATA_PORT | 0x600..=0x60b) => true,
            Some(port) => Legacy::answers(port),
            None => false,
        };
        if there {
            return true;
        }
        at += 1;
    }
    false
}

/// The devices at fixed ports. `now` is in ticks ([`crate::clock`]).
#[derive(Clone, Debug)]
pub struct Devices {
    /// The console.
    pub uart: Uart,
    /// The real-time clock.
    pub rtc: Rtc,
    /// Power management.
    pub power: Power,
    /// The rest.
    pub legacy: Legacy,
}

impl Devices {
    /// The devices of a machine that was switched on so many seconds after 1970.
    #[must_use]
    pub fn new(timebase: Timebase, unix_seconds: u64) -> Self {
        Self {
            uart: Uart::new(),
            rtc: Rtc::new(timebase, unix_seconds),
            power: Power::new(timebase),
            legacy: Legacy::new(timebase),
        }
    }

    /// Reads 1, 2 or 4 bytes from a port; higher bits are 0. Afterwards look at the line of [`Source::at`].
    pub fn read(&mut self, port: u16, bytes: u8, now: u64) -> u32 {
        let mut value = [0; 4];
        for (at, byte) in (0_u16..).zip(value.iter_mut().take(bytes.into())) {
            // Beyond the last port there is nothing.
            *byte = match port.checked_add(at) {
                Some(power::RESET_PORT) if bytes != 1 => ABSENT,
                Some(port) => self.read_byte(port, now),
                None => ABSENT,
            };
        }
        u32::from_le_bytes(value)
    }

    /// Writes 1, 2 or 4 bytes to a port. Afterwards look at the line of [`Source::at`].
    pub fn write(&mut self, port: u16, bytes: u8, value: u32, now: u64) -> PortEffect {
        let had_output = self.uart.has_output();
        for (at, byte) in (0_u16..).zip(value.to_le_bytes().into_iter().take(bytes.into())) {
            let event = match port.checked_add(at) {
                Some(power::RESET_PORT) if bytes != 1 => None,
                Some(port) => self.write_byte(port, byte, now),
                None => None,
            };
            if let Some(event) = event {
                return PortEffect::Power(event);
            }
        }
        if !had_output && self.uart.has_output() { PortEffect::Output } else { PortEffect::None }
    }

    /// Whether a device's interrupt line is high.
    pub fn interrupt(&mut self, source: Source, now: u64) -> bool {
        match source {
            Source::Uart => self.uart.interrupt(),
            Source::Rtc => self.rtc.interrupt(now),
            Source::Power => self.power.interrupt(now),
        }
    }

    /// The tick at which the line of the clock or of power management may change by itself.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        [self.rtc.next_event(now), self.power.next_event(now)].into_iter().flatten().min()
    }

    fn read_byte(&mut self, port: u16, now: u64) -> u8 {
        match port {
            COM1_PORT..=COM1_LAST => self.uart.read(port - COM1_PORT),
            rtc::DATA_PORT => self.rtc.read(now),
            0x600..=0x60b => self.power.read(port, now).unwrap_or(ABSENT),
            power::RESET_PORT => self.power.reset_control(),
            _ => self.legacy.read(port, now).unwrap_or(ABSENT),
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: u64) -> Option<PowerEvent> {
        match port {
            COM1_PORT..=COM1_LAST => self.uart.write(port - COM1_PORT, value),
            rtc::INDEX_PORT => self.rtc.select(value),
            rtc::DATA_PORT => self.rtc.write(value, now),
            0x600..=0x60b => return self.power.write(port, value, now),
            power::RESET_PORT => return self.power.write_reset_control(value),
            _ => return self.legacy.write(port, value, now),
        }
        None
    }
}
