//! The guest's console: the node's first serial port.

use embedded_io::{Read, ReadReady};
use rt::capability::{Interrupt, Ports};
use rt::start::Start;
use uart::{DIVISOR_115200, Uart};

/// Looks at the port's status for one byte.
const PATIENCE: u32 = 10_000;
/// How much can wait for the port.
const PIECE: usize = 64;

/// The serial port, if the node has one; without, output is lost and there is no input.
pub struct Terminal {
    line: Option<Uart<Ports>>,
    interrupt: Option<Interrupt>,
    /// What the port did not take yet.
    pending: [u8; PIECE],
    count: usize,
}

impl Terminal {
    /// The port that the manifest names.
    pub fn open(start: &Start<'_>) -> Self {
        let ports = start.ports("console").ok();
        let mut line = ports.and_then(|ports| Uart::open(ports, DIVISOR_115200, PATIENCE).ok());
        if let Some(line) = &mut line {
            line.interrupt_on_input();
        }
        Self { line, interrupt: start.interrupt("console-irq", 0).ok(), pending: [0; PIECE], count: 0 }
    }

    /// No port: the guest's console is on another node.
    pub const fn none() -> Self {
        Self { line: None, interrupt: None, pending: [0; PIECE], count: 0 }
    }

    /// The notification bits of its interrupt.
    pub fn bits(&self) -> u64 {
        self.interrupt.map_or(0, |interrupt| interrupt.bits)
    }

    /// Whether there is no room for 16 bytes more.
    pub const fn is_full(&self) -> bool {
        self.count > PIECE - 16
    }

    /// Whether the port has yet to take something.
    pub const fn waits(&self) -> bool {
        self.count > 0
    }

    /// Writes bytes; what is more than there is room for is lost.
    pub fn write(&mut self, bytes: &[u8]) {
        for (place, byte) in self.pending.iter_mut().skip(self.count).zip(bytes) {
            *place = *byte;
            self.count += 1;
        }
        self.flush();
    }

    /// Gives the port what it takes now.
    pub fn flush(&mut self) {
        while self.count > 0 {
            let left = self.pending.get(..self.count).unwrap_or(&[]);
            let written = match &mut self.line {
                Some(line) => line.write_now(left),
                None => left.len(),
            };
            if written == 0 {
                return;
            }
            self.pending.copy_within(written..self.count, 0);
            self.count -= written;
        }
    }

    /// What came in.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let mut count = 0;
        if let Some(line) = &mut self.line {
            while count < into.len() && line.read_ready().unwrap_or(false) {
                let Some(place) = into.get_mut(count..) else { break };
                // Damaged bytes are lost, as on any line.
                count += line.read(place).unwrap_or(0);
            }
        }
        if let Some(interrupt) = &self.interrupt {
            // A handle of this service's own does not go stale.
            let _ = rt::syscall::acknowledge_interrupt(interrupt.handle);
        }
        count
    }
}
