//! What a PC has at fixed ports, and Linux probes.
//!
//! Present: the interrupt controllers ([`pic`]), the timer ([`pit`]), port 0x61 that goes with it, and the one command of
//! the keyboard controller that resets the machine. Everything else is absent, and as on a machine without it reads are all
//! ones: the rest of the keyboard controller (0x60, 0x64), PCI's configuration ports (0xcf8, 0xcfc), DMA controllers and
//! page registers (0x00 to 0x0f, 0x80 to 0x8f, 0xc0 to 0xdf; 0x80 takes power-on codes and delays), VGA, the coprocessor's
//! reset (0xf0), ELCR (0x4d0), fast A20 (0x92).

mod pic;
mod pit;
#[cfg(test)]
mod tests;

use crate::clock::Timebase;
use crate::power::PowerEvent;
use pic::Pic;
use pit::Pit;

/// The timer's second channel, its gate and its output (port B of the first PC's 8255).
pub const SYSTEM_PORT: u16 = 0x61;
/// The keyboard controller's command port.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

/// [`SYSTEM_PORT`]: the gate of channel 2.
const GATE: u8 = 1;
/// [`SYSTEM_PORT`]: bits that are as written: gate, speaker, and the two that enable checks which never fail.
const STORED: u8 = 0x0f;
/// [`SYSTEM_PORT`]: changes with each refresh of memory on the first AT.
const REFRESH: u8 = 1 << 4;
const REFRESH_HZ: u32 = 66_288;
/// [`SYSTEM_PORT`]: the output of channel 2.
const OUTPUT: u8 = 1 << 5;

/// The devices of this module.
#[derive(Clone, Debug)]
pub struct Legacy {
    timebase: Timebase,
    pics: [Pic; 2],
    pit: Pit,
    system: u8,
}

impl Legacy {
    /// As after a reset.
    #[must_use]
    pub const fn new(timebase: Timebase) -> Self {
        Self { timebase, pics: [Pic::new(), Pic::new()], pit: Pit::new(), system: 0 }
    }

    /// Whether one of them has this port, to read or to write.
    #[must_use]
    pub const fn answers(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x40..=0x43 | SYSTEM_PORT | KEYBOARD_COMMAND_PORT)
    }

    /// Reads a port; `None` where nothing answers.
    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        let pit_ticks = || self.timebase.count(now, pit::HZ);
        let [master, slave] = &self.pics;
        Some(match port {
            0x20 | 0x21 => master.read(port & 1),
            0xa0 | 0xa1 => slave.read(port & 1),
            0x40..=0x42 => self.pit.read(usize::from(port & 3), pit_ticks()),
            SYSTEM_PORT => {
                let refresh =
                    if self.timebase.count(now, REFRESH_HZ).is_multiple_of(2) { 0 } else { REFRESH };
                let output = if self.pit.output(2, pit_ticks()) { OUTPUT } else { 0 };
                self.system | refresh | output
            }
            _ => return None,
        })
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Option<PowerEvent> {
        let pit_ticks = || self.timebase.count(now, pit::HZ);
        let [master, slave] = &mut self.pics;
        match port {
            0x20 | 0x21 => master.write(port & 1, value),
            0xa0 | 0xa1 => slave.write(port & 1, value),
            0x40..=0x42 => self.pit.write(usize::from(port & 3), value, pit_ticks()),
            0x43 => self.pit.control(value, pit_ticks()),
            SYSTEM_PORT => {
                self.system = value & STORED;
                self.pit.set_gate(value & GATE != 0, pit_ticks());
            }
            // Pulse output lines; line 0 is the processor's reset.
            KEYBOARD_COMMAND_PORT if value & 0xf1 == 0xf0 => return Some(PowerEvent::Reset),
            _ => {}
        }
        None
    }
}
