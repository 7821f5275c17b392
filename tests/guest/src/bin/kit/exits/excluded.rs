//! What is left alone: it ends the machine by design, or takes from Linux what it needs to go on. Everything that is not
//! tried is listed here.

use core::ops::RangeInclusive;

/// Ports.
const PORTS: [(RangeInclusive<u16>, &str); 12] = [
    (0x20..=0x21, "interrupt controller: could unmask what Linux has no handler for"),
    (0xa0..=0xa1, "the second one"),
    (0x40..=0x43, "timer: Linux may run on it"),
    (0x64..=0x64, "keyboard controller: reset"),
    (0x92..=0x92, "system control port A: reset"),
    (0xb2..=0xb3, "system management: ACPI off"),
    (0x3f8..=0x3ff, "COM1: the console, and reading it steals its interrupts"),
    (0xcf8..=0xcff, "PCI configuration: moves devices that Linux uses; 0xcf9 is reset"),
    (0x510..=0x51b, "QEMU's firmware configuration: writes any memory"),
    (0x600..=0x6ff, "ACPI power management; 0x604 is power off"),
    (0xb000..=0xb0ff, "the same at its place in QEMU's older machine"),
    (0xae00..=0xafff, "hotplug and general-purpose events of QEMU: ejects devices"),
];

/// MSRs that are not written: each is state that the running kernel rests on. Others may be read and written.
const MSRS: [(RangeInclusive<u32>, &str); 17] = [
    (0x10..=0x10, "TSC"),
    (0x11..=0x12, "old kvmclock: the monitor writes memory where it says"),
    (0x1b..=0x1b, "local APIC base"),
    (0x3b..=0x3b, "TSC adjustment"),
    (0x48..=0x49, "speculation control, which Linux keeps a copy of"),
    (0x79..=0x79, "microcode: loads it from memory where it says"),
    (0x122..=0x122, "TSX control"),
    (0x174..=0x176, "SYSENTER"),
    (0x1d9..=0x1d9, "debug control"),
    (0x200..=0x2ff, "memory types"),
    (0x6a0..=0x6e0, "shadow stacks, TSC deadline"),
    (0x800..=0x8ff, "local APIC"),
    (0xda0..=0xda0, "extended state that Linux saves"),
    (0x4b56_4d00..=0x4b56_4dff, "KVM's: the monitor writes memory where they say"),
    (0x4000_0000..=0x4000_1fff, "Hyper-V's: the same"),
    (0xc000_0080..=0xc000_0104, "EFER, system calls, segment bases, TSC ratio and number"),
    (0xc001_0000..=0xc001_ffff, "AMD's: system configuration, memory map, SVM"),
];

/// Whether one of `bytes` ports from `port` on is left alone, or is beyond the last: its bit in the permission map is
/// always set.
pub fn ports(port: u16, bytes: u16) -> bool {
    let Some(last) = port.checked_add(bytes - 1) else { return true };
    PORTS.iter().any(|(range, _)| *range.start() <= last && port <= *range.end())
}

/// Whether an MSR is not written.
pub fn msr(number: u32) -> bool {
    MSRS.iter().any(|(range, _)| range.contains(&number))
}

/// MSRs that are likely to exist, so that random numbers find some: the beginnings of the ranges that are in use.
pub const LIKELY_MSRS: [u32; 12] =
    [0, 0x10, 0xc0, 0x174, 0x200, 0x277, 0x400, 0x480, 0x800, 0x4b56_4d00, 0xc000_0080, 0xc001_0000];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_that_reaches_into_a_range_is_left_alone() {
        assert!(ports(0x64, 1) && ports(0x63, 2) && ports(0x61, 4) && ports(0x3f5, 4));
        assert!(!ports(0x60, 4) && !ports(0x65, 4) && !ports(0x3f4, 4) && !ports(0x80, 4));
        assert!(ports(0xfffd, 4) && ports(0xffff, 2) && !ports(0xfffc, 4) && !ports(0xffff, 1));
        assert!(msr(0x1b) && msr(0xc000_0082) && !msr(0xc0));
    }
}
