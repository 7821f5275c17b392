//! The 16550 UART (National Semiconductor PC16550D, June 1995), polled.
//!
//! The driver reaches the device through [`Registers`], so it knows nothing of ports and runs on the host
//! against a simulated one. No wait is unbounded: a device that stops taking bytes is an error,
//! [`UartError::Stuck`].
#![no_std]
#![forbid(unsafe_code)]

mod registers;
#[cfg(test)]
mod simulated;

use core::fmt;

use embedded_io::{Error, ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};

pub use registers::{Register, Registers};
use registers::{
    fifo_control, identification, interrupt_enable, line_control, line_status, modem_control, modem_status,
};

/// Bytes that the transmitter's FIFO takes at once when it is empty.
pub const FIFO_BYTES: usize = 16;
/// The divisor for 115,200 baud with the PC's clock of 1.8432 MHz.
pub const DIVISOR_115200: u16 = 1;

/// Why the UART did not do it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UartError {
    /// No 16550 answers at these registers.
    Absent,
    /// The device took no byte for as long as the driver waits.
    Stuck,
    /// The receiver lost bytes, or a byte came with wrong parity or framing. The bytes before are not
    /// affected.
    Line,
}

impl fmt::Display for UartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "no 16550 there",
            Self::Stuck => "the 16550 takes no bytes",
            Self::Line => "bytes were lost or damaged on the line",
        })
    }
}

impl core::error::Error for UartError {}

impl Error for UartError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent => ErrorKind::NotFound,
            Self::Stuck => ErrorKind::TimedOut,
            Self::Line => ErrorKind::InvalidData,
        }
    }
}

/// A 16550 that answered and was set up.
#[derive(Debug)]
pub struct Uart<R> {
    registers: R,
    burst: usize,
    patience: u32,
    /// Receive errors that the status showed and nobody was told of: reading the status clears them there.
    errors: u8,
}

impl<R: Registers> Uart<R> {
    /// Looks whether a 16550 answers and sets it up: 8 bits, no parity, 1 stop bit, FIFOs on, interrupts off,
    /// the clock divided by `divisor` * 16 (0 counts as 1). Waits for room look at the status `patience`
    /// times.
    ///
    /// # Errors
    /// [`UartError::Absent`].
    pub fn open(mut registers: R, divisor: u16, patience: u32) -> Result<Self, UartError> {
        if !answers(&mut registers) {
            return Err(UartError::Absent);
        }
        let [low, high] = divisor.max(1).to_le_bytes();
        registers.write(Register::InterruptEnable, 0);
        registers.write(Register::LineControl, line_control::DIVISOR | line_control::EIGHT_BITS);
        registers.write(Register::Data, low);
        registers.write(Register::InterruptEnable, high);
        registers.write(Register::LineControl, line_control::EIGHT_BITS);
        registers.write(Register::FifoControl, fifo_control::ENABLE | fifo_control::CLEAR_BOTH);
        registers.write(Register::ModemControl, modem_control::DTR | modem_control::RTS);
        // An 8250 or a 16550 without its A has no FIFO that works (section 8.6.3).
        let fifo = registers.read(Register::FifoControl) & identification::FIFO_ON == identification::FIFO_ON;
        Ok(Self { registers, burst: if fifo { FIFO_BYTES } else { 1 }, patience, errors: 0 })
    }

    /// The registers again.
    pub fn into_registers(self) -> R {
        self.registers
    }

    /// Makes the device interrupt when bytes have come, until they are read. On a PC its line passes a gate that OUT2 opens.
    pub fn interrupt_on_input(&mut self) {
        self.registers
            .write(Register::ModemControl, modem_control::DTR | modem_control::RTS | modem_control::OUT2);
        self.registers.write(Register::InterruptEnable, interrupt_enable::DATA_READY);
    }

    /// Gives the transmitter as many of the bytes as it takes at this moment; how many.
    pub fn write_now(&mut self, bytes: &[u8]) -> usize {
        if !self.status(line_status::HOLDING_EMPTY) {
            return 0;
        }
        let count = bytes.len().min(self.burst);
        if let Some(bytes) = bytes.get(..count) {
            self.registers.write_burst(bytes);
        }
        count
    }

    fn status(&mut self, bits: u8) -> bool {
        let status = self.registers.read(Register::LineStatus);
        self.errors |= status & line_status::ERRORS;
        status & bits == bits
    }

    fn wait_for(&mut self, bits: u8) -> Result<(), UartError> {
        for _ in 0..self.patience {
            if self.status(bits) {
                return Ok(());
            }
            core::hint::spin_loop();
        }
        Err(UartError::Stuck)
    }
}

/// Whether a 16550 is there: its scratch register keeps what is written, and in loopback its modem outputs
/// come back as its modem inputs. An empty bus, which reads as ones, does neither.
fn answers(registers: &mut impl Registers) -> bool {
    for pattern in [0x5a, 0xa5] {
        registers.write(Register::Scratch, pattern);
        if registers.read(Register::Scratch) != pattern {
            return false;
        }
    }
    let before = registers.read(Register::ModemControl);
    registers
        .write(Register::ModemControl, modem_control::LOOPBACK | modem_control::OUT2 | modem_control::RTS);
    let looped = registers.read(Register::ModemStatus) & modem_status::LINES;
    registers.write(Register::ModemControl, before);
    looped == modem_status::CARRIER | modem_status::CLEAR_TO_SEND
}

impl<R> ErrorType for Uart<R> {
    type Error = UartError;
}

impl<R: Registers> Write for Uart<R> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, UartError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.wait_for(line_status::HOLDING_EMPTY)?;
        let count = bytes.len().min(self.burst);
        if let Some(bytes) = bytes.get(..count) {
            self.registers.write_burst(bytes);
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<(), UartError> {
        self.wait_for(line_status::HOLDING_EMPTY | line_status::TRANSMITTER_EMPTY)
    }
}

impl<R: Registers> WriteReady for Uart<R> {
    fn write_ready(&mut self) -> Result<bool, UartError> {
        Ok(self.status(line_status::HOLDING_EMPTY))
    }
}

impl<R: Registers> Read for Uart<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, UartError> {
        if into.is_empty() {
            return Ok(0);
        }
        self.wait_for(line_status::DATA_READY)?;
        let mut count = 0;
        for byte in into {
            if !self.status(line_status::DATA_READY) {
                break;
            }
            if self.errors != 0 {
                if count > 0 {
                    // The bytes before the error are good; the next read tells of it.
                    break;
                }
                if self.errors & line_status::DAMAGED != 0 {
                    self.registers.read(Register::Data);
                }
                self.errors = 0;
                return Err(UartError::Line);
            }
            *byte = self.registers.read(Register::Data);
            count += 1;
        }
        Ok(count)
    }
}

impl<R: Registers> ReadReady for Uart<R> {
    fn read_ready(&mut self) -> Result<bool, UartError> {
        Ok(self.status(line_status::DATA_READY))
    }
}

#[cfg(test)]
mod tests;
