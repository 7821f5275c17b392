//! The two 8259s, which the I/O APICs replace: silenced.
#![expect(unsafe_code, reason = "port I/O")]

use super::instructions::out8;

/// Moves their vectors off the exceptions', because a spurious interrupt comes in spite of the mask, and masks all lines
/// (Intel 8259A datasheet, "initialization command words").
///
/// This comes before the local APIC's LINT0 is masked: an 8259 that still asks through it then takes its request back.
/// QEMU otherwise delivers an interrupt without a vector, as a general protection fault in the first instruction that
/// runs with interrupts on.
pub fn silence() {
    const MASTER: u16 = 0x20;
    const SLAVE: u16 = 0xa0;
    for (port, value) in [
        (MASTER, 0x11), // initialise, four words
        (SLAVE, 0x11),
        (MASTER + 1, 0x20), // first vector; 0x27 and 0x2f are then the spurious ones
        (SLAVE + 1, 0x28),
        (MASTER + 1, 0x04), // the slave is at line 2
        (SLAVE + 1, 0x02),
        (MASTER + 1, 0x01), // 8086 mode
        (SLAVE + 1, 0x01),
        (MASTER + 1, 0xff), // mask
        (SLAVE + 1, 0xff),
    ] {
        // SAFETY: the 8259s' ports; all they do from now on is nothing.
        unsafe { out8(port, value) };
    }
}
