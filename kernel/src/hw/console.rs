//! Text on COM1 (a 16550 at 0x3f8, polled) for boot messages and panics. Everything else goes to the log.
//!
//! A machine without the port loses the text and nothing more: it is probed once, and no wait is without bound.
#![expect(unsafe_code, reason = "port I/O")]

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::instructions::{in8, out8};

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const SCRATCH: u16 = COM1 + 7;
/// Line status: the transmitter can take a byte.
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Polls before a byte is given up: at 115,200 baud a byte takes 87 us, and a port read about 1 us.
const MOST_POLLS: u32 = 100_000;

const ABSENT: u32 = 0;
const IDLE: u32 = 1;
const BUSY: u32 = 2;

/// Whether the port is there, and whether some core writes to it.
static PORT: AtomicU32 = AtomicU32::new(ABSENT);

fn read(port: u16) -> u8 {
    // SAFETY: COM1's registers; a read of them touches no memory.
    unsafe { in8(port) }
}

fn write(port: u16, value: u8) {
    // SAFETY: COM1's registers; the 16550 does no DMA and its interrupts stay off.
    unsafe { out8(port, value) };
}

/// Looks for the port and sets it to 115,200 baud, 8N1, no interrupts.
pub fn initialize() {
    for probe in [0x5a, 0xa5] {
        write(SCRATCH, probe);
        if read(SCRATCH) != probe {
            return;
        }
    }
    for (port, value) in [
        (INTERRUPT_ENABLE, 0x00),
        (LINE_CONTROL, 0x80), // the next two writes set the divisor
        (DATA, 1),
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, 0x03),
        (FIFO_CONTROL, 0x07),
        (MODEM_CONTROL, 0x03),
    ] {
        write(port, value);
    }
    PORT.store(IDLE, Ordering::Release);
}

/// The console for one message. Whoever panics takes the port even from a core that holds it.
struct Port;

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

fn put(byte: u8) {
    for _ in 0..MOST_POLLS {
        if read(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            write(DATA, byte);
            return;
        }
    }
}

/// Writes one message; [`crate::print!`] is the way to call it. A core that waits too long for another one to finish
/// writes all the same.
pub fn print(message: fmt::Arguments<'_>) {
    for _ in 0..MOST_POLLS {
        match PORT.compare_exchange(IDLE, BUSY, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break,
            Err(ABSENT) => return,
            Err(_) => core::hint::spin_loop(),
        }
    }
    // The port's writer cannot fail, so only a failing `Display` of the caller's could: its text ends there.
    let _ = fmt::Write::write_fmt(&mut Port, message);
    PORT.store(IDLE, Ordering::Release);
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => {
        $crate::hw::console::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
