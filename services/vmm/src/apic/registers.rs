//! What RDMSR and WRMSR see of the local APIC (Intel SDM 3A, 11.12.1, table 11-6).
//!
//! A bit that is reserved, a register that is not there, and the wrong direction raise #GP. A value that is reserved in a
//! field that is not (delivery and timer modes) is kept and does nothing.

use super::lvt::Source;
use super::timer::TimerMode;
use super::{
    BASE_ENABLED, BASE_X2APIC, ERROR_SEND_ILLEGAL_VECTOR, Effect, GeneralProtection, LocalApic, Mode,
    SPURIOUS_ENABLED, SPURIOUS_SUPPRESS_BROADCAST,
};
use crate::interrupt::{Destination, FIRST_VECTOR, Interrupt, Trigger, logical_id};

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first register's MSR.
pub const MSR_FIRST: u32 = 0x800;
/// The last MSR that is the local APIC's.
pub const MSR_LAST: u32 = 0x8ff;

const ID: u32 = 0x802;
const VERSION: u32 = 0x803;
const TASK_PRIORITY: u32 = 0x808;
const PROCESSOR_PRIORITY: u32 = 0x80a;
const END_OF_INTERRUPT: u32 = 0x80b;
const LOGICAL_DESTINATION: u32 = 0x80d;
const SPURIOUS: u32 = 0x80f;
const IN_SERVICE: u32 = 0x810;
const IN_SERVICE_LAST: u32 = IN_SERVICE + 7;
const LEVEL: u32 = 0x818;
const LEVEL_LAST: u32 = LEVEL + 7;
const REQUESTED: u32 = 0x820;
const REQUESTED_LAST: u32 = REQUESTED + 7;
const ERROR_STATUS: u32 = 0x828;
const COMMAND: u32 = 0x830;
const INITIAL_COUNT: u32 = 0x838;
const CURRENT_COUNT: u32 = 0x839;
const DIVIDE: u32 = 0x83e;
const SELF_INTERRUPT: u32 = 0x83f;

/// An integrated APIC, the last entry of its local vector table, and that it can suppress EOI broadcasts (bit 24).
const VERSION_VALUE: u32 = 0x14 | (Source::Error as u32) << 16 | 1 << 24;
/// The vector, enable, focus checking (without effect, as in all processors since the Pentium 4), suppression.
const SPURIOUS_DEFINED: u32 = 0xff | SPURIOUS_ENABLED | 1 << 9 | SPURIOUS_SUPPRESS_BROADCAST;
/// Bits 12 (as AMD has it; Intel's processors ignore it), 13, 16, 17 and 20 to 31.
const COMMAND_RESERVED: u64 = 0xfff3_3000;
const DIVIDE_DEFINED: u32 = 0b1011;

/// The source whose entry in the local vector table this register is.
const fn source(msr: u32) -> Option<Source> {
    Some(match msr {
        0x82f => Source::Cmci,
        0x832 => Source::Timer,
        0x833 => Source::Thermal,
        0x834 => Source::Performance,
        0x835 => Source::Lint0,
        0x836 => Source::Lint1,
        0x837 => Source::Error,
        _ => return None,
    })
}

/// Whether a write of this register sets the timer.
#[must_use]
pub const fn sets_timer(register: u32) -> bool {
    matches!(register, MSR_TSC_DEADLINE | INITIAL_COUNT)
}

/// The value, when it has none but these bits.
fn checked(value: u64, defined: u32) -> Result<u32, GeneralProtection> {
    u32::try_from(value).ok().filter(|value| value & !defined == 0).ok_or(GeneralProtection)
}

impl LocalApic {
    /// RDMSR when the guest's TSC is `now`.
    ///
    /// # Errors
    /// There is no such register to read.
    pub fn read(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => return Ok(self.base),
            MSR_TSC_DEADLINE => return Ok(self.timer.deadline(now)),
            _ => {}
        }
        if self.mode() != Mode::X2Apic {
            return Err(GeneralProtection);
        }
        let register = match msr {
            ID => self.id,
            VERSION => VERSION_VALUE,
            TASK_PRIORITY => self.task_priority,
            PROCESSOR_PRIORITY => self.processor_priority().into(),
            LOGICAL_DESTINATION => logical_id(self.id),
            SPURIOUS => self.spurious,
            IN_SERVICE..=IN_SERVICE_LAST => self.in_service.register(msr - IN_SERVICE),
            LEVEL..=LEVEL_LAST => self.level.register(msr - LEVEL),
            REQUESTED..=REQUESTED_LAST => self.requested.register(msr - REQUESTED),
            ERROR_STATUS => self.error_status,
            COMMAND => return Ok(self.command),
            INITIAL_COUNT => self.timer.initial_count(),
            CURRENT_COUNT => self.timer.current_count(self.timer_mode(), now),
            DIVIDE => self.timer.divide(),
            _ => self.lvt[source(msr).ok_or(GeneralProtection)? as usize].register(),
        };
        Ok(register.into())
    }

    /// WRMSR when the guest's TSC is `now`. What may be deliverable, and when the timer is due, can be different afterwards.
    ///
    /// # Errors
    /// There is no such register to write, or not this value.
    pub fn write(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => return self.write_base(value).map(|()| Effect::None),
            MSR_TSC_DEADLINE => {
                self.expire(now);
                self.timer.set_deadline(self.timer_mode(), value);
                // One that has passed already is due at once.
                self.expire(now);
                return Ok(Effect::None);
            }
            _ => {}
        }
        if self.mode() != Mode::X2Apic {
            return Err(GeneralProtection);
        }
        match msr {
            END_OF_INTERRUPT => {
                checked(value, 0)?;
                return Ok(self.end_of_interrupt());
            }
            COMMAND => return self.write_command(value),
            TASK_PRIORITY => self.task_priority = checked(value, 0xff)?,
            SPURIOUS => {
                let spurious = checked(value, SPURIOUS_DEFINED)?;
                self.expire(now);
                self.write_spurious(spurious);
            }
            ERROR_STATUS => {
                checked(value, 0)?;
                self.error_status = core::mem::take(&mut self.errors);
            }
            INITIAL_COUNT => {
                let count = checked(value, u32::MAX)?;
                self.expire(now);
                self.timer.set_initial_count(self.timer_mode(), count, now);
            }
            DIVIDE => {
                let divide = checked(value, DIVIDE_DEFINED)?;
                self.expire(now);
                self.timer.set_divide(self.timer_mode(), divide, now);
            }
            SELF_INTERRUPT => {
                let [vector, ..] = checked(value, 0xff)?.to_le_bytes();
                self.send_to_itself(vector);
            }
            _ => {
                let source = source(msr).ok_or(GeneralProtection)?;
                self.write_lvt(source, checked(value, source.defined())?, now);
            }
        }
        Ok(Effect::None)
    }

    fn timer_mode(&self) -> TimerMode {
        TimerMode::of(self.lvt[Source::Timer as usize])
    }

    /// From x2APIC mode the only way out is off; on again it is by way of xAPIC mode (figure 11-27).
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value & self.base_reserved != 0 {
            return Err(GeneralProtection);
        }
        match (self.mode(), value & BASE_ENABLED != 0, value & BASE_X2APIC != 0) {
            (Mode::X2Apic, true, true) | (Mode::XApic, true, _) | (Mode::Disabled, false, false) => {}
            (_, false, false) | (Mode::Disabled, true, false) => self.init_reset(),
            _ => return Err(GeneralProtection),
        }
        self.base = value;
        Ok(())
    }

    fn write_spurious(&mut self, value: u32) {
        self.spurious = value;
        if value & SPURIOUS_ENABLED == 0 {
            for entry in &mut self.lvt {
                entry.mask();
            }
        }
    }

    fn write_lvt(&mut self, source: Source, value: u32, now: u64) {
        if source == Source::Timer {
            // What was due before is due under the old entry.
            self.expire(now);
        }
        let entry = &mut self.lvt[source as usize];
        let old = *entry;
        *entry = old.written(source, value);
        if self.spurious & SPURIOUS_ENABLED == 0 {
            entry.mask();
        }
        if source == Source::Timer {
            self.timer.change_mode(TimerMode::of(old), self.timer_mode(), now);
        }
    }

    fn write_command(&mut self, command: u64) -> Result<Effect, GeneralProtection> {
        if command & COMMAND_RESERVED != 0 {
            return Err(GeneralProtection);
        }
        self.command = command;
        let Some(interrupt) = Interrupt::from_command(command) else { return Ok(Effect::None) };
        if interrupt.has_illegal_vector() {
            self.error(ERROR_SEND_ILLEGAL_VECTOR);
            return Ok(Effect::None);
        }
        if interrupt.destination == Destination::Myself {
            self.send_to_itself(interrupt.vector);
            return Ok(Effect::None);
        }
        Ok(Effect::Send(interrupt))
    }

    fn send_to_itself(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.error(ERROR_SEND_ILLEGAL_VECTOR);
        } else {
            self.accept(vector, Trigger::Edge);
        }
    }
}
