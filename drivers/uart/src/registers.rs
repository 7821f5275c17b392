//! The registers of a 16550 and their bits (PC16550D, section 8).

/// A register, by its offset from the first port. Some offsets name one register to read and another to
/// write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum Register {
    /// Receiver buffer and transmitter holding register; the divisor's low byte while its latch is open.
    Data = 0,
    /// Which interrupts come; the divisor's high byte while its latch is open.
    InterruptEnable = 1,
    /// FIFO control to write, interrupt identification to read.
    FifoControl = 2,
    /// The form of a byte on the line.
    LineControl = 3,
    /// The modem outputs.
    ModemControl = 4,
    /// What the transmitter and the receiver are at.
    LineStatus = 5,
    /// The modem inputs.
    ModemStatus = 6,
    /// Keeps a byte.
    Scratch = 7,
}

/// How the driver reaches a UART's registers.
pub trait Registers {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u8;

    /// Writes a register.
    fn write(&mut self, register: Register, value: u8);

    /// Writes bytes one after another to [`Register::Data`]; [`FIFO_BYTES`](crate::FIFO_BYTES) at most.
    fn write_burst(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write(Register::Data, byte);
        }
    }
}

/// [`Register::FifoControl`] to write.
pub(crate) mod fifo_control {
    pub(crate) const ENABLE: u8 = 0x01;
    pub(crate) const CLEAR_BOTH: u8 = 0x06;
}

/// [`Register::FifoControl`] to read.
pub(crate) mod identification {
    pub(crate) const FIFO_ON: u8 = 0xc0;
}

/// [`Register::LineControl`].
pub(crate) mod line_control {
    pub(crate) const EIGHT_BITS: u8 = 0x03;
    /// Opens the divisor's latch.
    pub(crate) const DIVISOR: u8 = 0x80;
}

/// [`Register::ModemControl`].
pub(crate) mod modem_control {
    pub(crate) const DTR: u8 = 0x01;
    pub(crate) const RTS: u8 = 0x02;
    pub(crate) const OUT2: u8 = 0x08;
    pub(crate) const LOOPBACK: u8 = 0x10;
}

/// [`Register::InterruptEnable`].
pub(crate) mod interrupt_enable {
    pub(crate) const DATA_READY: u8 = 0x01;
}

/// [`Register::LineStatus`].
pub(crate) mod line_status {
    pub(crate) const DATA_READY: u8 = 0x01;
    /// Overrun, parity, framing, break.
    pub(crate) const ERRORS: u8 = 0x1e;
    /// Those of [`ERRORS`] that concern the byte that is next to read.
    pub(crate) const DAMAGED: u8 = 0x1c;
    /// The transmitter's FIFO is empty.
    pub(crate) const HOLDING_EMPTY: u8 = 0x20;
    /// The last bit has left.
    pub(crate) const TRANSMITTER_EMPTY: u8 = 0x40;
}

/// [`Register::ModemStatus`].
pub(crate) mod modem_status {
    pub(crate) const CLEAR_TO_SEND: u8 = 0x10;
    pub(crate) const CARRIER: u8 = 0x80;
    /// The four inputs; the lower bits are their changes.
    pub(crate) const LINES: u8 = 0xf0;
}
