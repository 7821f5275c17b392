//! The 16550 serial port (National Semiconductor PC16550D, June 1995), as a PC wires it.
//!
//! The line is as fast as whoever is at its other end: what the guest sends is at once in a buffer ([`Uart::take_output`]);
//! while that has no room for a whole FIFO the transmitter says that it is busy, and the guest waits as for a slow line.
//! What arrives waits in a queue and moves up into the FIFO as the guest reads. The interrupt is a level:
//! [`Uart::interrupt`], to be looked at after each access and after [`Uart::receive`] and [`Uart::take_output`].

#[cfg(test)]
mod tests;

/// Ports, from the base on.
pub const PORTS: u16 = 8;
/// Bytes that a FIFO holds.
const FIFO_BYTES: usize = 16;
/// Bytes that wait in front of the receiver at most.
pub const INPUT_BYTES: usize = 1024;
/// Bytes of output that wait to be taken at most.
pub const OUTPUT_BYTES: usize = 4096;

/// Interrupt enable (section 8.7).
mod ier {
    pub const RECEIVED: u8 = 1;
    pub const HOLDING_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification (section 8.6, table III).
mod iir {
    pub const NONE: u8 = 1;
    pub const MODEM_STATUS: u8 = 0;
    pub const HOLDING_EMPTY: u8 = 2;
    pub const RECEIVED: u8 = 4;
    pub const LINE_STATUS: u8 = 6;
    pub const TIMEOUT: u8 = 12;
    pub const FIFO_ON: u8 = 0xc0;
}

/// FIFO control (section 8.5).
mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    pub const TRIGGER_SHIFT: u8 = 6;
}

/// Line control (section 8.1).
mod lcr {
    pub const DIVISOR: u8 = 1 << 7;
}

/// Modem control (section 8.8).
mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOPBACK: u8 = 1 << 4;
    pub const ALL: u8 = 0x1f;
}

/// Line status (section 8.4).
mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 1 << 1;
    pub const HOLDING_EMPTY: u8 = 1 << 5;
    pub const EMPTY: u8 = 1 << 6;
}

/// Modem status (section 8.9): lines in the high half, changes since the last read in the low one.
mod msr {
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    /// What a terminal that is on shows.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// A first-in first-out buffer of `N` bytes.
#[derive(Clone, Debug)]
struct Ring<const N: usize> {
    bytes: [u8; N],
    first: usize,
    count: usize,
}

impl<const N: usize> Ring<N> {
    const EMPTY: Self = Self { bytes: [0; N], first: 0, count: 0 };

    const fn room(&self) -> usize {
        N - self.count
    }

    /// Whether there was room for it.
    fn push(&mut self, byte: u8) -> bool {
        let Some(slot) = self.bytes.get_mut((self.first + self.count) % N).filter(|_| self.count < N) else {
            return false;
        };
        *slot = byte;
        self.count += 1;
        true
    }

    fn pop(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.first).copied().filter(|_| self.count > 0)?;
        self.first = (self.first + 1) % N;
        self.count -= 1;
        Some(byte)
    }

    fn clear(&mut self) {
        self.count = 0;
    }
}

/// A serial port. After [`Uart::new`] it is as after a master reset (table II).
#[derive(Clone, Debug)]
pub struct Uart {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    modem_changes: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter has become empty, and the guest has not yet been told.
    holding_empty: bool,
    receiver: Ring<FIFO_BYTES>,
    input: Ring<INPUT_BYTES>,
    output: Ring<OUTPUT_BYTES>,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// A port with a terminal at its other end.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            modem_changes: 0,
            scratch: 0,
            // 9,600 baud, as firmware leaves it.
            divisor: 12,
            overrun: false,
            holding_empty: false,
            receiver: Ring::EMPTY,
            input: Ring::EMPTY,
            output: Ring::EMPTY,
        }
    }

    /// Whether the interrupt line is high. On a PC the chip's output passes a gate that OUT2 opens, and loopback lets go
    /// of OUT2.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        let gate = self.modem_control & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        gate && self.identification() != iir::NONE
    }

    /// Bytes that [`Uart::receive`] takes without loss.
    #[must_use]
    pub const fn input_room(&self) -> usize {
        self.input.room()
    }

    /// Bytes from the other end of the line. What has no room is lost, and the guest is told of an overrun.
    pub fn receive(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.overrun |= !self.input.push(byte);
        }
        self.move_up();
    }

    /// Takes what the guest has sent; how many bytes.
    pub fn take_output(&mut self, into: &mut [u8]) -> usize {
        let busy = !self.transmitter_empty();
        let mut count = 0;
        for slot in into {
            let Some(byte) = self.output.pop() else { break };
            *slot = byte;
            count += 1;
        }
        self.holding_empty |= busy && self.transmitter_empty();
        count
    }

    /// Whether there is something to take.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        self.output.count > 0
    }

    /// Reads the register at `offset` from the base, 0 to 7; others are all ones.
    pub fn read(&mut self, offset: u16) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if self.shows_divisor() => divisor_low,
            1 if self.shows_divisor() => divisor_high,
            0 => {
                let byte = self.receiver.pop().unwrap_or(0);
                self.move_up();
                byte
            }
            1 => self.interrupt_enable,
            2 => {
                let identification = self.identification();
                if identification == iir::HOLDING_EMPTY {
                    self.holding_empty = false;
                }
                identification | if self.has_fifo() { iir::FIFO_ON } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            6 => {
                let status = self.modem_lines() | self.modem_changes;
                self.modem_changes = 0;
                status
            }
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes the register at `offset` from the base, 0 to 7; others ignore it.
    pub fn write(&mut self, offset: u16, value: u8) {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            0 if self.shows_divisor() => self.divisor = u16::from_le_bytes([value, divisor_high]),
            1 if self.shows_divisor() => self.divisor = u16::from_le_bytes([divisor_low, value]),
            0 => self.transmit(value),
            1 => self.enable_interrupts(value & ier::ALL),
            2 => self.control_fifos(value),
            3 => self.line_control = value,
            4 => self.control_modem(value & mcr::ALL),
            // The status registers are not to be written (sections 8.4, 8.9).
            7 => self.scratch = value,
            _ => {}
        }
    }

    const fn shows_divisor(&self) -> bool {
        self.line_control & lcr::DIVISOR != 0
    }

    const fn has_fifo(&self) -> bool {
        self.fifo_control & fcr::ENABLE != 0
    }

    const fn is_loop(&self) -> bool {
        self.modem_control & mcr::LOOPBACK != 0
    }

    /// Bytes that the receiver holds: one without a FIFO.
    const fn receiver_bytes(&self) -> usize {
        if self.has_fifo() { FIFO_BYTES } else { 1 }
    }

    /// The guest may send a whole FIFO.
    const fn transmitter_empty(&self) -> bool {
        self.output.room() >= FIFO_BYTES
    }

    /// The interrupt with the highest priority (table III).
    const fn identification(&self) -> u8 {
        let enabled = self.interrupt_enable;
        let trigger = match (self.has_fifo(), self.fifo_control >> fcr::TRIGGER_SHIFT) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
        if enabled & ier::LINE_STATUS != 0 && self.overrun {
            iir::LINE_STATUS
        } else if enabled & ier::RECEIVED != 0 && self.receiver.count >= trigger {
            iir::RECEIVED
        } else if enabled & ier::RECEIVED != 0 && self.receiver.count > 0 {
            // The line has no pace, so the four character times of silence are over at once.
            iir::TIMEOUT
        } else if enabled & ier::HOLDING_EMPTY != 0 && self.holding_empty {
            iir::HOLDING_EMPTY
        } else if enabled & ier::MODEM_STATUS != 0 && self.modem_changes != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    const fn line_status(&self) -> u8 {
        let mut status = 0;
        if self.receiver.count > 0 {
            status |= lsr::DATA_READY;
        }
        if self.overrun {
            status |= lsr::OVERRUN;
        }
        if self.transmitter_empty() {
            status |= lsr::HOLDING_EMPTY | lsr::EMPTY;
        }
        status
    }

    const fn modem_lines(&self) -> u8 {
        if !self.is_loop() {
            return msr::CONNECTED;
        }
        let mut lines = 0;
        if self.modem_control & mcr::RTS != 0 {
            lines |= msr::CTS;
        }
        if self.modem_control & mcr::DTR != 0 {
            lines |= msr::DSR;
        }
        if self.modem_control & mcr::OUT1 != 0 {
            lines |= msr::RI;
        }
        if self.modem_control & mcr::OUT2 != 0 {
            lines |= msr::DCD;
        }
        lines
    }

    /// Fills the receiver from the queue, unless the line is cut off by loopback.
    fn move_up(&mut self) {
        while !self.is_loop() && self.receiver.count < self.receiver_bytes() {
            let Some(byte) = self.input.pop() else { break };
            self.receiver.push(byte);
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.is_loop() {
            if self.receiver.count < self.receiver_bytes() {
                self.receiver.push(byte);
            } else {
                self.overrun = true;
            }
        } else {
            // Without room it is lost, as when a full transmitter is written.
            self.output.push(byte);
        }
        // The write takes the request back; the byte is gone at once, and it is made again.
        self.holding_empty = self.transmitter_empty();
    }

    fn enable_interrupts(&mut self, enabled: u8) {
        // Enabling it with an empty transmitter requests it anew, which drivers test and rely on.
        let newly = enabled & !self.interrupt_enable & ier::HOLDING_EMPTY != 0;
        self.holding_empty |= newly && self.transmitter_empty();
        self.interrupt_enable = enabled;
    }

    fn control_fifos(&mut self, value: u8) {
        let switched = (value ^ self.fifo_control) & fcr::ENABLE != 0;
        if switched || value & fcr::CLEAR_RECEIVER != 0 {
            self.receiver.clear();
        }
        // The transmitter's FIFO is always empty: what was sent is on the line. The other bits count only together with the
        // first one.
        self.fifo_control = if value & fcr::ENABLE != 0 { value } else { 0 };
        self.move_up();
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value;
        let after = self.modem_lines();
        // The ring indicator counts only when it goes off.
        let changed = ((before ^ after) & (msr::CTS | msr::DSR | msr::DCD)) | (before & !after & msr::RI);
        self.modem_changes |= changed >> 4;
        self.move_up();
    }
}
