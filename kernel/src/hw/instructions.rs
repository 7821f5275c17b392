//! Single instructions that Rust cannot express.
#![expect(unsafe_code, reason = "the instructions themselves")]

use core::arch::asm;

/// Reads a model-specific register.
///
/// # Safety
/// The processor has this register, and reading it has no side effect that matters.
#[inline]
pub unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for the register.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor has this register, the value is legal, and what it changes keeps the kernel's promises.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the value")]
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the caller vouches for the register and the value.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") register,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
}

/// What CPUID says: `[eax, ebx, ecx, edx]`.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The time-stamp counter.
#[inline]
#[must_use]
pub fn read_tsc() -> u64 {
    // SAFETY: every processor in long mode has a time-stamp counter, and ring 0 may read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

macro_rules! port_instructions {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        #[doc = concat!("Reads a port through `", $register, "`.")]
        ///
        /// # Safety
        /// Reading this port has no effect on memory.
        #[inline]
        pub unsafe fn $read(port: u16) -> $type {
            let value;
            // SAFETY: the caller vouches for the port.
            unsafe {
                asm!(
                    concat!("in ", $register, ", dx"),
                    in("dx") port, out($register) value, options(nomem, nostack, preserves_flags)
                );
            }
            value
        }

        #[doc = concat!("Writes a port through `", $register, "`.")]
        ///
        /// # Safety
        /// The write makes no device touch memory that Rust owns, and leaves the machine as the kernel needs it.
        #[inline]
        pub unsafe fn $write(port: u16, value: $type) {
            // SAFETY: the caller vouches for the port and the value.
            unsafe {
                asm!(
                    concat!("out dx, ", $register),
                    in("dx") port, in($register) value, options(nostack, preserves_flags)
                );
            }
        }
    };
}

port_instructions!(in8, out8, u8, "al");
port_instructions!(in16, out16, u16, "ax");
port_instructions!(in32, out32, u32, "eax");

/// Loads the root of the page tables, which flushes every translation that is not global.
///
/// # Safety
/// The tables map the kernel as it runs at this moment, stack included.
#[inline]
pub unsafe fn write_cr3(root: u64) {
    // SAFETY: the caller vouches for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// The root of the page tables.
#[inline]
#[must_use]
pub fn read_cr3() -> u64 {
    let value;
    // SAFETY: reading a control register in ring 0 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// The address of the last page fault.
#[inline]
#[must_use]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reading a control register in ring 0 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR4.
#[inline]
#[must_use]
pub fn read_cr4() -> u64 {
    let value;
    // SAFETY: reading a control register in ring 0 changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets CR0.
///
/// # Safety
/// Paging and protection stay on, and the bits are legal.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Sets CR4.
///
/// # Safety
/// PAE and OSFXSR stay on, and the processor has what the other bits enable.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Stops this processor for good; only an NMI wakes it, and it stops again.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off a halt touches nothing.
        unsafe { asm!("cli; hlt", options(nomem, nostack)) };
    }
}
