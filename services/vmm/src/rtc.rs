//! The real-time clock (Motorola MC146818A data sheet, 1984) with the century at 0x32, as a PC's firmware keeps it.
//!
//! Nothing runs by itself: time and flags are computed from the ticks ([`crate::clock`]) of each access. While the guest
//! sets the time (SET, or the divider held in reset) the ten bytes are plain memory, and the time goes on from them.

mod calendar;
#[cfg(test)]
mod tests;

use crate::clock::Timebase;
use calendar::{Calendar, DAY, Match, next_match};

/// The port that chooses a register; bit 7 masks the NMI. It can only be written.
pub const INDEX_PORT: u16 = 0x70;
/// The port of the chosen register.
pub const DATA_PORT: u16 = 0x71;
/// Which input of the I/O APIC the interrupt reaches.
pub const GSI: u32 = 8;
/// The register with the century, which the FADT names.
pub const CENTURY: u8 = 0x32;

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const WEEKDAY: usize = 6;
const DAY_OF_MONTH: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const REGISTER_A: usize = 10;
const REGISTER_B: usize = 11;
const REGISTER_C: usize = 12;
const REGISTER_D: usize = 13;
const CENTURY_BYTE: usize = CENTURY as usize;

/// Register A: the time is about to change.
const A_UPDATING: u8 = 1 << 7;
/// Register A: these two divider bits hold the divider in reset.
const A_DIVIDER_RESET: u8 = 0x60;
const A_RATE: u8 = 0x0f;
/// A crystal of 32,768 Hz and 1,024 periodic interrupts a second.
const A_AT_START: u8 = 0x26;

const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;

/// Flags of register C, and the same bits of register B that let them interrupt.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const C_INTERRUPT: u8 = 1 << 7;

/// Register D: the battery is good.
const D_VALID: u8 = 1 << 7;

const HOUR_PM: u8 = 1 << 7;
/// In an alarm's byte: any value matches.
const ALARM_ANY: u8 = 0xc0;

/// The update flag is up for so many microseconds of each second: 244 before the update and 1,984 of it (table 6).
const UPDATING_MICROSECONDS: u64 = 244 + 1984;
const MICROSECONDS: u32 = 1_000_000;

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    timebase: Timebase,
    /// Seconds since 1970 at second 0 of the divider.
    base: i64,
    /// Ticks that the divider is ahead: under a second.
    phase: u64,
    /// Seconds and periods of the divider that the flags know of.
    seen_seconds: u64,
    seen_periods: u64,
    index: u8,
    nmi_masked: bool,
    memory: [u8; 128],
}

impl Rtc {
    /// A clock that shows so many seconds after 1970 (UTC) at tick 0.
    #[must_use]
    pub fn new(timebase: Timebase, unix_seconds: u64) -> Self {
        let mut memory = [0; 128];
        memory[REGISTER_A] = A_AT_START;
        memory[REGISTER_B] = B_24_HOURS;
        memory[REGISTER_D] = D_VALID;
        let base = i64::try_from(unix_seconds).unwrap_or(0);
        Self {
            timebase,
            base,
            phase: 0,
            seen_seconds: 0,
            seen_periods: 0,
            index: 0,
            nmi_masked: false,
            memory,
        }
    }

    /// Whether the guest masks NMIs here.
    #[must_use]
    pub const fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// Writes [`INDEX_PORT`].
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
        self.nmi_masked = value & 0x80 != 0;
    }

    /// Reads [`DATA_PORT`].
    pub fn read(&mut self, now: u64) -> u8 {
        match usize::from(self.index) {
            index @ (SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY_BYTE) => {
                self.show_time(now);
                self.byte(index)
            }
            REGISTER_A if self.is_updating(now) => self.memory[REGISTER_A] | A_UPDATING,
            REGISTER_C => {
                let line = if self.interrupt(now) { C_INTERRUPT } else { 0 };
                line | core::mem::take(&mut self.memory[REGISTER_C])
            }
            index => self.byte(index),
        }
    }

    /// Writes [`DATA_PORT`].
    pub fn write(&mut self, value: u8, now: u64) {
        self.settle(now);
        match usize::from(self.index) {
            index @ (SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY_BYTE) => {
                self.show_time(now);
                self.set_byte(index, value);
                if self.runs() {
                    self.take_time(now);
                }
            }
            REGISTER_A => self.control(REGISTER_A, value & !A_UPDATING, now),
            // A clock that is being set announces no updates.
            REGISTER_B if value & B_SET != 0 => self.control(REGISTER_B, value & !UPDATE, now),
            REGISTER_B => self.control(REGISTER_B, value, now),
            REGISTER_C | REGISTER_D => {}
            index => self.set_byte(index, value),
        }
    }

    /// Whether the interrupt line is high.
    pub fn interrupt(&mut self, now: u64) -> bool {
        self.settle(now);
        self.memory[REGISTER_C] & self.memory[REGISTER_B] & (PERIODIC | ALARM | UPDATE) != 0
    }

    /// The tick at which the line may go high by itself.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        // Mostly nobody waits for anything, and this is asked at each exit. What happened until now changes nothing of that.
        if self.waited_for() == 0 {
            return None;
        }
        self.settle(now);
        let waited_for = self.waited_for();
        let seconds = |more| self.timebase.ticks_at(self.seen_seconds.saturating_add(more), 1);
        let update = (waited_for & UPDATE != 0 && self.runs()).then(|| seconds(1));
        let alarm = if waited_for & ALARM != 0 && self.runs() { self.alarm_in().map(seconds) } else { None };
        let periodic = match self.periodic_hz() {
            Some(hz) if waited_for & PERIODIC != 0 => {
                Some(self.timebase.ticks_at(self.seen_periods.saturating_add(1), hz))
            }
            _ => None,
        };
        let first = [update, alarm, periodic].into_iter().flatten().min()?;
        Some(first.saturating_sub(self.phase))
    }

    fn byte(&self, index: usize) -> u8 {
        self.memory.get(index).copied().unwrap_or(0xff)
    }

    fn set_byte(&mut self, index: usize, value: u8) {
        if let Some(byte) = self.memory.get_mut(index) {
            *byte = value;
        }
    }

    /// The interrupts that are on and have not happened.
    const fn waited_for(&self) -> u8 {
        self.memory[REGISTER_B] & !self.memory[REGISTER_C] & (PERIODIC | ALARM | UPDATE)
    }

    const fn divider_runs(&self) -> bool {
        self.memory[REGISTER_A] & A_DIVIDER_RESET != A_DIVIDER_RESET
    }

    const fn runs(&self) -> bool {
        self.divider_runs() && self.memory[REGISTER_B] & B_SET == 0
    }

    /// Whole beats of a clock of `hz` that the divider has made.
    fn divided(&self, now: u64, hz: u32) -> u64 {
        self.timebase.count(now.saturating_add(self.phase), hz)
    }

    fn is_updating(&self, now: u64) -> bool {
        let second = u64::from(MICROSECONDS);
        self.runs() && self.divided(now, MICROSECONDS) % second >= second - UPDATING_MICROSECONDS
    }

    /// Interrupts a second (table 5, crystals of 1.048576 MHz or 32,768 Hz).
    const fn periodic_hz(&self) -> Option<u32> {
        match self.memory[REGISTER_A] & A_RATE {
            _ if !self.divider_runs() => None,
            0 => None,
            rate @ 1..=2 => Some(512 >> rate),
            rate => Some(65_536 >> rate),
        }
    }

    /// Raises the flags of what has happened until `now`.
    fn settle(&mut self, now: u64) {
        if self.runs() {
            let seconds = self.divided(now, 1);
            let elapsed = seconds.saturating_sub(self.seen_seconds);
            if elapsed > 0 {
                self.memory[REGISTER_C] |= UPDATE;
                if self.alarm_in().is_some_and(|alarm| alarm <= elapsed) {
                    self.memory[REGISTER_C] |= ALARM;
                }
                self.seen_seconds = seconds;
            }
        }
        if let Some(hz) = self.periodic_hz() {
            let periods = self.divided(now, hz);
            if periods > self.seen_periods {
                self.memory[REGISTER_C] |= PERIODIC;
                self.seen_periods = periods;
            }
        }
    }

    /// Writes register A or B, which may stop the time or let it go on.
    fn control(&mut self, register: usize, value: u8, now: u64) {
        let (ran, divided) = (self.runs(), self.divider_runs());
        self.show_time(now);
        self.set_byte(register, value);
        if !divided && self.divider_runs() {
            // The first update comes half a second after the reset ends (section "Divider control").
            let second = self.timebase.tsc_hz();
            let fraction = now % second;
            self.phase =
                if fraction <= second / 2 { second / 2 - fraction } else { second - fraction + second / 2 };
        }
        if !ran && self.runs() {
            self.take_time(now);
        }
        self.seen_periods = self.periodic_hz().map_or(0, |hz| self.divided(now, hz));
    }

    /// Seconds since 1970 at a second of the divider.
    fn unix(&self, second: u64) -> i64 {
        self.base.wrapping_add(i64::try_from(second).unwrap_or(i64::MAX))
    }

    /// Puts the time into the registers, while it runs.
    fn show_time(&mut self, now: u64) {
        if !self.runs() {
            return;
        }
        let time = Calendar::from_unix(self.unix(self.divided(now, 1)));
        self.memory[SECONDS] = self.encode(time.second);
        self.memory[MINUTES] = self.encode(time.minute);
        self.memory[HOURS] = self.encode_hour(time.hour);
        self.memory[WEEKDAY] = self.encode(time.weekday);
        self.memory[DAY_OF_MONTH] = self.encode(time.day);
        self.memory[MONTH] = self.encode(time.month);
        self.memory[YEAR] = self.encode(time.year);
        self.memory[CENTURY_BYTE] = self.encode(time.century);
    }

    /// Lets the time go on from what the registers say.
    fn take_time(&mut self, now: u64) {
        let time = Calendar {
            second: self.decode(self.memory[SECONDS]),
            minute: self.decode(self.memory[MINUTES]),
            hour: self.decode_hour(self.memory[HOURS]),
            weekday: 0,
            day: self.decode(self.memory[DAY_OF_MONTH]),
            month: self.decode(self.memory[MONTH]),
            year: self.decode(self.memory[YEAR]),
            century: self.decode(self.memory[CENTURY_BYTE]),
        };
        self.seen_seconds = self.divided(now, 1);
        self.base = time.to_unix().wrapping_sub(i64::try_from(self.seen_seconds).unwrap_or(i64::MAX));
    }

    /// Seconds until the alarm comes next; `None` when its bytes match no time.
    fn alarm_in(&self) -> Option<u64> {
        let matcher = |byte: u8, decoded: u8| {
            if byte & ALARM_ANY == ALARM_ANY { Match::Any } else { Match::Only(decoded) }
        };
        let [hour, minute, second] =
            [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].map(|index| self.byte(index));
        let alarm = [
            matcher(hour, self.decode_hour(hour)),
            matcher(minute, self.decode(minute)),
            matcher(second, self.decode(second)),
        ];
        next_match(alarm, self.unix(self.seen_seconds).rem_euclid(DAY))
    }

    const fn encode(&self, value: u8) -> u8 {
        if self.memory[REGISTER_B] & B_BINARY != 0 { value } else { (value / 10) << 4 | (value % 10) }
    }

    const fn decode(&self, byte: u8) -> u8 {
        if self.memory[REGISTER_B] & B_BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 15) }
    }

    const fn encode_hour(&self, hour: u8) -> u8 {
        if self.memory[REGISTER_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let of_twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(of_twelve) | if hour >= 12 { HOUR_PM } else { 0 }
    }

    const fn decode_hour(&self, byte: u8) -> u8 {
        if self.memory[REGISTER_B] & B_24_HOURS != 0 {
            return self.decode(byte);
        }
        self.decode(byte & !HOUR_PM) % 12 + if byte & HOUR_PM != 0 { 12 } else { 0 }
    }
}
