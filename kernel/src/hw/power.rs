//! Leaving the machine: off by ACPI (6.5, 4.8.3.2), reset by whatever works first.
#![expect(unsafe_code, reason = "device registers, and a triple fault")]

use core::arch::asm;

use kernel::acpi::Acpi;
use kernel::acpi::fadt::Register;
use kernel::machine::Width;

use super::direct::pointer;
use super::gdt::TablePointer;
use super::instructions::halt_forever;
use super::panic::stop_others;
use super::{clock, ports};
use crate::print;

/// PM1 control, bit 0: the machine is in ACPI mode.
const SCI_ENABLE: u32 = 1;

/// What the machine has for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    /// PM1 control registers and what to write there, when \_S5 is known.
    off: [Option<(Register, u16)>; 2],
    enable: Option<(u16, u8)>,
    reset: Option<(Register, u8)>,
    tsc_hz: u64,
}

fn read(register: Register, width: Width) -> u32 {
    match (register, width) {
        (Register::Port(port), width) => ports::read(port, width),
        // SAFETY: `registers` named it to whoever maps device registers.
        (Register::Memory(at), Width::Byte) => u32::from(unsafe { pointer::<u8>(at).read_volatile() }),
        // SAFETY: as above; the register is aligned by its specification.
        (Register::Memory(at), _) => u32::from(unsafe { pointer::<u16>(at).read_volatile() }),
    }
}

fn write(register: Register, width: Width, value: u16) {
    match (register, width) {
        (Register::Port(port), width) => ports::write(port, width, u32::from(value)),
        (Register::Memory(at), Width::Byte) => {
            let [low, _] = value.to_le_bytes();
            // SAFETY: `registers` named it to whoever maps device registers.
            unsafe { pointer::<u8>(at).write_volatile(low) };
        }
        // SAFETY: as above; the register is aligned by its specification.
        (Register::Memory(at), _) => unsafe { pointer::<u16>(at).write_volatile(value) },
    }
}

impl Power {
    /// Without a way out.
    #[must_use]
    pub const fn absent() -> Self {
        Self { off: [None; 2], enable: None, reset: None, tsc_hz: 0 }
    }

    /// Takes what ACPI says.
    #[must_use]
    pub fn new(acpi: &Acpi, tsc_hz: u64) -> Self {
        let Acpi { fixed, soft_off, .. } = acpi;
        let off = soft_off.map(|[a, b]| {
            [
                fixed.pm1a_control.map(|register| (register, a)),
                fixed.pm1b_control.map(|register| (register, b)),
            ]
        });
        Self { off: off.unwrap_or_default(), enable: fixed.enable, reset: fixed.reset, tsc_hz }
    }

    /// The registers in memory, to be mapped uncached.
    pub fn registers(&self) -> impl Iterator<Item = kernel::address::PhysAddr> + use<> {
        let off = self.off.map(|off| off.map(|(register, _)| register));
        off.into_iter().chain([self.reset.map(|(register, _)| register)]).flatten().filter_map(|register| {
            match register {
                Register::Memory(at) => Some(at),
                Register::Port(_) => None,
            }
        })
    }

    /// Powers off, or halts where ACPI does not say how.
    pub fn off(&self) -> ! {
        stop_others();
        if let [Some((pm1a, _)), _] = self.off
            && let Some((port, value)) = self.enable
            && read(pm1a, Width::Word) & SCI_ENABLE == 0
        {
            ports::write(port, Width::Byte, u32::from(value));
            // ACPI gives no bound; firmware that needs longer than this has failed.
            for _ in 0..100 {
                if read(pm1a, Width::Word) & SCI_ENABLE != 0 {
                    break;
                }
                clock::wait(self.tsc_hz / 100);
            }
        }
        for (register, value) in self.off.into_iter().flatten() {
            write(register, Width::Word, value);
        }
        clock::wait(self.tsc_hz);
        print!("unum: halted; the machine can be switched off");
        halt_forever()
    }

    /// Resets: the FADT's register, the chipset's reset control, the keyboard controller, a triple fault.
    pub fn reset(&self) -> ! {
        stop_others();
        if let Some((register, value)) = self.reset {
            write(register, Width::Byte, u16::from(value));
            clock::wait(self.tsc_hz / 10);
        }
        for (port, value) in [(0xcf9, 0x02), (0xcf9, 0x06), (0x64, 0xfe)] {
            ports::write(port, Width::Byte, value);
            clock::wait(self.tsc_hz / 10);
        }
        let none = TablePointer { limit: 0, base: 0 };
        // SAFETY: an exception without a table resets the processor, which is what is wanted.
        unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const none, options(noreturn)) }
    }
}
