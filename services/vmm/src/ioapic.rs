//! The I/O APIC: 24 pins, each with an entry that says which message it sends.
//!
//! It is version 0x20, which adds the EOI register to Intel's 82093AA: local APICs may keep the end of an interrupt to
//! themselves, and the guest then tells it here. Sources: Intel 82093AA data sheet, 3.1 and 3.2; Intel ICH9 data sheet, 13.5.
//!
//! A pin's line is asserted or not as its device means it. What that is in volts is the wiring's business, so that the
//! polarity bit of an entry is kept and has no effect, as with KVM and QEMU.
//!
//! A level-triggered pin sends once and then waits, with Remote IRR set, for the end of the interrupt; if the line is still
//! asserted then, it sends again. An edge at a masked pin is lost.

#[cfg(test)]
mod tests;

use crate::interrupt::{DestinationWidth, Interrupt, Trigger};

/// Pins, and entries of the redirection table.
pub const PINS: usize = 24;
/// Where Linux and the ACPI tables expect the first I/O APIC's registers: a guest-physical address.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of its registers' window.
pub const WINDOW_BYTES: u64 = 0x1000;

const _: () = assert!(PINS == (VERSION_VALUE >> 16) as usize + 1 && PINS <= u32::BITS as usize);

/// Offsets in the window.
const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;
const EOI: u64 = 0x40;

/// Registers behind the window's data register.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;

/// The version, and the last pin.
const VERSION_VALUE: u32 = 0x20 | 23 << 16;
const ID_MASK: u32 = 0x0f00_0000;

/// Bits of an entry.
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;
const VECTOR: u64 = 0xff;
/// What a write changes in an entry: neither delivery status (12) nor Remote IRR (14), nor reserved bits.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
/// The same with the upper part of an extended destination.
const WRITABLE_EXTENDED: u64 = WRITABLE | 0x7f << 49;

/// What a device does with its line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Line {
    /// It wants service.
    Asserted,
    /// It does not.
    Deasserted,
}

/// The I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    entries: [u64; PINS],
    /// A bit for each pin whose line is asserted.
    asserted: u32,
    id: u32,
    select: u8,
    width: DestinationWidth,
}

impl IoApic {
    /// As after a reset: all pins are masked. `width` says how an entry's destination is read.
    #[must_use]
    pub const fn new(width: DestinationWidth) -> Self {
        Self { entries: [MASKED; PINS], asserted: 0, id: 0, select: 0, width }
    }

    /// A device changed its line, or says again what it was. The message to deliver, if any. A pin that does not exist is
    /// connected to nothing.
    #[must_use]
    pub fn set_line(&mut self, pin: usize, line: Line) -> Option<Interrupt> {
        let entry = *self.entries.get(pin)?;
        let bit = 1 << pin;
        let was_asserted = self.asserted & bit != 0;
        if line == Line::Deasserted {
            self.asserted &= !bit;
            return None;
        }
        self.asserted |= bit;
        let interrupt = self.message(entry)?;
        if interrupt.trigger == Trigger::Edge {
            return (!was_asserted && entry & MASKED == 0).then_some(interrupt);
        }
        self.send_level(pin)
    }

    /// A local APIC broadcasts the end of a level-triggered interrupt (or the EOI register is written): pins with this
    /// vector may send again, and do where the line is still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Messages {
        let mut messages = Messages::none(self.width);
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else { continue };
            if *entry & (VECTOR | REMOTE_IRR) == u64::from(vector) | REMOTE_IRR {
                *entry &= !REMOTE_IRR;
                if self.send_level(pin).is_some() {
                    messages.add(pin, &self.entries);
                }
            }
        }
        messages
    }

    /// Reads the register at `offset` of the window. Registers are read from their first byte on: an access of fewer than 4
    /// bytes sees the lower ones, of one that is longer the upper ones are 0, and there is nothing (0) elsewhere.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            DATA => match self.select {
                ID | ARBITRATION => self.id,
                VERSION => VERSION_VALUE,
                register => self.entry_half(register).map_or(0, |(pin, shift)| {
                    let entry = self.entries.get(pin).copied().unwrap_or(0);
                    u32::try_from(entry >> shift & u64::from(u32::MAX)).unwrap_or(0)
                }),
            },
            _ => 0,
        }
    }

    /// Writes `bytes` bytes to the register at `offset` of the window: the messages that this makes pins send. The index
    /// and the EOI register have 8 bits and take them from an access of any width; the data register takes only 4 bytes at
    /// once. Other writes change nothing.
    pub fn write(&mut self, offset: u64, value: u32, bytes: usize) -> Messages {
        let low = value.to_le_bytes()[0];
        match (offset, bytes) {
            (SELECT, _) => self.select = low,
            (EOI, _) => return self.end_of_interrupt(low),
            (DATA, 4) if self.select == ID => self.id = value & ID_MASK,
            (DATA, 4) => {
                if let Some((pin, shift)) = self.entry_half(self.select) {
                    return self.write_entry(pin, shift, value);
                }
            }
            _ => {}
        }
        Messages::none(self.width)
    }

    /// The pin and the shift in its entry of a register of the redirection table.
    fn entry_half(&self, register: u8) -> Option<(usize, u32)> {
        let place = register.checked_sub(TABLE)?;
        let pin = usize::from(place / 2);
        (pin < PINS).then_some((pin, u32::from(place % 2) * 32))
    }

    fn write_entry(&mut self, pin: usize, shift: u32, value: u32) -> Messages {
        let mut messages = Messages::none(self.width);
        let width = self.width;
        let Some(entry) = self.entries.get_mut(pin) else { return messages };
        let writable = match width {
            DestinationWidth::Narrow => WRITABLE,
            DestinationWidth::Extended => WRITABLE_EXTENDED,
        } & u64::from(u32::MAX) << shift;
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        let is_level = Interrupt::from_redirection_entry(*entry, width)
            .is_some_and(|interrupt| interrupt.trigger == Trigger::Level);
        if !is_level {
            // Nobody will end it. Linux relies on this to end an interrupt where there is no EOI register.
            *entry &= !REMOTE_IRR;
        } else if self.send_level(pin).is_some() {
            messages.add(pin, &self.entries);
        }
        messages
    }

    /// Sends the message of a level-triggered pin, if it may.
    fn send_level(&mut self, pin: usize) -> Option<Interrupt> {
        let entry = *self.entries.get(pin)?;
        let interrupt = self.message(entry)?;
        let may_send = entry & (MASKED | REMOTE_IRR) == 0 && self.asserted & 1 << pin != 0;
        if interrupt.trigger == Trigger::Edge || !may_send {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(pin) {
            *entry |= REMOTE_IRR;
        }
        Some(interrupt)
    }

    fn message(&self, entry: u64) -> Option<Interrupt> {
        Interrupt::from_redirection_entry(entry, self.width)
    }
}

/// Messages to deliver, [`PINS`] at most.
#[derive(Clone, Debug)]
#[must_use]
pub struct Messages {
    /// The pins whose messages are still to come.
    pins: u32,
    entries: [u64; PINS],
    width: DestinationWidth,
}

impl Messages {
    const fn none(width: DestinationWidth) -> Self {
        Self { pins: 0, entries: [0; PINS], width }
    }

    fn add(&mut self, pin: usize, entries: &[u64; PINS]) {
        if let (Some(copy), Some(&entry)) = (self.entries.get_mut(pin), entries.get(pin)) {
            *copy = entry;
            self.pins |= 1 << pin;
        }
    }
}

impl Iterator for Messages {
    type Item = Interrupt;

    fn next(&mut self) -> Option<Interrupt> {
        while self.pins != 0 {
            let pin = self.pins.trailing_zeros() as usize;
            self.pins &= self.pins - 1;
            let entry = self.entries.get(pin).copied()?;
            if let Some(interrupt) = Interrupt::from_redirection_entry(entry, self.width) {
                return Some(interrupt);
            }
        }
        None
    }
}
