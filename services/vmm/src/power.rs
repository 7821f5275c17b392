//! Power management: the fixed registers of ACPI (ACPI 6.5, section 4.8) and the reset control register of PC chipsets
//! (Intel ICH10 data sheet, section 13.7.5).
//!
//! The machine is always in ACPI mode: there is no SMI command port. The interrupt (SCI) is a level: [`Power::interrupt`].

#[cfg(test)]
mod tests;

use crate::clock::Timebase;

/// PM1a event block: status and enable, 16 bits each.
pub const EVENT_PORT: u16 = 0x600;
/// Bytes of the event block.
pub const EVENT_BYTES: u8 = 4;
/// PM1a control, 16 bits.
pub const CONTROL_PORT: u16 = 0x604;
/// Bytes of the control block.
pub const CONTROL_BYTES: u8 = 2;
/// The power management timer, 32 bits (TMR_VAL_EXT in the FADT).
pub const TIMER_PORT: u16 = 0x608;
/// Bytes of the timer block.
pub const TIMER_BYTES: u8 = 4;
/// The timer's rate.
pub const TIMER_HZ: u32 = 3_579_545;
/// The reset register of the FADT. Only an access of one byte reaches it: of four, the port is PCI's.
pub const RESET_PORT: u16 = 0xcf9;
/// The value for it.
pub const RESET_VALUE: u8 = RESET_SYSTEM | RESET_CPU;
/// The value of SLP_TYPa in `\_S5`.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Which input of the I/O APIC the SCI reaches: a level, active high.
pub const SCI_GSI: u32 = 9;

/// Reset control: the whole system, not the processor alone.
const RESET_SYSTEM: u8 = 1 << 1;
/// Reset control: do it, when it goes from 0 to 1.
const RESET_CPU: u8 = 1 << 2;
const RESET_STORED: u8 = RESET_SYSTEM | RESET_CPU | 1 << 3;

/// Status and enable (tables 4.16 and 4.17).
const TIMER: u16 = 1;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const CLOCK: u16 = 1 << 10;
/// Events that can be enabled. Of these the timer and the button ever come.
const EVENTS: u16 = TIMER | GLOBAL | POWER_BUTTON | CLOCK;

/// Control (table 4.18).
const SCI_ENABLED: u16 = 1;
const BUS_MASTER_RELOAD: u16 = 1 << 1;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;
const CONTROL_STORED: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;

const OFF: u16 = (SLEEP_TYPE_OFF as u16) << SLEEP_TYPE_SHIFT;

/// What the guest did to its power.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PowerEvent {
    /// It switched the machine off.
    Off,
    /// It reset the machine.
    Reset,
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Power {
    timebase: Timebase,
    status: u16,
    enable: u16,
    control: u16,
    /// Half turns of the timer that the status knows of: its highest bit changes at each.
    seen_half_turns: u64,
    reset_control: u8,
}

impl Power {
    /// A machine that has just been switched on.
    #[must_use]
    pub const fn new(timebase: Timebase) -> Self {
        Self { timebase, status: 0, enable: 0, control: SCI_ENABLED, seen_half_turns: 0, reset_control: 0 }
    }

    /// The power button is pressed: a request to the guest to shut down.
    pub const fn press_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// Whether the SCI is raised.
    pub fn interrupt(&mut self, now: u64) -> bool {
        self.settle(now);
        self.status & self.enable != 0
    }

    /// The tick at which the SCI may be raised by itself.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        // Mostly nobody waits for it, and this is asked at each exit. What happened until now does not change that.
        if self.enable & !self.status & TIMER == 0 {
            return None;
        }
        self.settle(now);
        let next = self.seen_half_turns.saturating_add(1).saturating_mul(1 << 31);
        (self.status & TIMER == 0).then(|| self.timebase.ticks_at(next, TIMER_HZ))
    }

    /// Reads a byte of the blocks; `None` where there is no register.
    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        self.settle(now);
        let (register, at) = match port {
            0x600..=0x601 => (self.status.into(), port - EVENT_PORT),
            0x602..=0x603 => (self.enable.into(), port - EVENT_PORT - 2),
            0x604..=0x605 => (self.control.into(), port - CONTROL_PORT),
            0x608..=0x60b => (self.timer(now), port - TIMER_PORT),
            _ => return None,
        };
        register.to_le_bytes().get(usize::from(at)).copied()
    }

    /// Writes a byte of the blocks.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Option<PowerEvent> {
        self.settle(now);
        let in_word = |word: u16| {
            let [low, high] = word.to_le_bytes();
            u16::from_le_bytes(if port.is_multiple_of(2) { [value, high] } else { [low, value] })
        };
        match port {
            // Ones clear.
            0x600..=0x601 => self.status &= !in_word(0),
            0x602..=0x603 => self.enable = in_word(self.enable) & EVENTS,
            0x604..=0x605 => {
                let control = in_word(self.control);
                self.control = control & CONTROL_STORED | SCI_ENABLED;
                // Other sleeping states are not offered, and nothing sleeps.
                if control & (SLEEP_ENABLE | SLEEP_TYPE) == SLEEP_ENABLE | OFF {
                    return Some(PowerEvent::Off);
                }
            }
            _ => {}
        }
        None
    }

    /// Reads [`RESET_PORT`].
    #[must_use]
    pub const fn reset_control(&self) -> u8 {
        self.reset_control
    }

    /// Writes [`RESET_PORT`].
    pub const fn write_reset_control(&mut self, value: u8) -> Option<PowerEvent> {
        let rises = value & !self.reset_control & RESET_CPU != 0;
        self.reset_control = value & RESET_STORED;
        if rises { Some(PowerEvent::Reset) } else { None }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the timer wraps after 32 bits")]
    fn timer(&self, now: u64) -> u32 {
        self.timebase.count(now, TIMER_HZ) as u32
    }

    /// Raises the timer's status when its highest bit has changed (section 4.8.2.1).
    fn settle(&mut self, now: u64) {
        let half_turns = self.timebase.count(now, TIMER_HZ) >> 31;
        if half_turns > self.seen_half_turns {
            self.seen_half_turns = half_turns;
            self.status |= TIMER;
        }
    }
}
