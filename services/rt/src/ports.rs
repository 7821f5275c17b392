//! I/O ports, through the kernel, and the 16550 behind them.

use ipc::abi::Error;

use crate::capability::Ports;
use crate::syscall::{self, Width};

impl Ports {
    /// Reads port number `first + offset`.
    ///
    /// # Errors
    /// [`Error::Refused`] outside the range.
    pub fn read(&self, offset: u16, width: Width) -> Result<u32, Error> {
        syscall::port_read(self.handle, self.first.wrapping_add(offset), width)
    }

    /// Writes port number `first + offset`.
    ///
    /// # Errors
    /// [`Error::Refused`] outside the range.
    pub fn write(&self, offset: u16, width: Width, value: u32) -> Result<(), Error> {
        syscall::port_write(self.handle, self.first.wrapping_add(offset), width, value)
    }

    /// Writes bytes, 64 at most, one after another to port number `first + offset`.
    ///
    /// # Errors
    /// [`Error::Refused`] outside the range, [`Error::Malformed`] when there are more than 64.
    pub fn write_bytes(&self, offset: u16, bytes: &[u8]) -> Result<(), Error> {
        syscall::port_write_bytes(self.handle, self.first.wrapping_add(offset), bytes)
    }
}

/// A range of eight ports is a 16550. Where the kernel refuses an access, the port reads as an empty bus
/// does, so that the driver's probe finds nothing there.
impl uart::Registers for Ports {
    fn read(&mut self, register: uart::Register) -> u8 {
        let value = Ports::read(self, register as u16, Width::Byte).unwrap_or(0xff);
        value.to_le_bytes()[0]
    }

    fn write(&mut self, register: uart::Register, value: u8) {
        // As on an empty bus, nothing happens; see above.
        let _ = Ports::write(self, register as u16, Width::Byte, u32::from(value));
    }

    fn write_burst(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(64) {
            let _ = Ports::write_bytes(self, uart::Register::Data as u16, part);
        }
    }
}
