//! A 16550 in memory, for the tests: time passes with each look at the line status.

extern crate std;

use std::collections::VecDeque;
use std::vec::Vec;

use crate::registers::{Register, Registers};

/// What kind of device answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Model {
    /// A 16550A.
    Working,
    /// An 8250: no FIFO.
    NoFifo,
    /// A 16550A whose transmitter stopped.
    Stuck,
    /// Nothing: reads as ones.
    Absent,
    /// Memory at the registers' place: keeps what is written, but has no loopback.
    Memory,
}

pub(crate) struct Simulated {
    pub(crate) model: Model,
    /// Looks at the status that one byte takes to leave.
    pub(crate) looks_per_byte: u32,
    /// What left on the line.
    pub(crate) sent: Vec<u8>,
    /// Bytes written while there was no room.
    pub(crate) overrun: usize,
    /// What waits to be read: a byte and its error bits.
    pub(crate) arriving: VecDeque<(u8, u8)>,
    pub(crate) divisor: u16,
    pub(crate) registers: [u8; 8],
    fifo: VecDeque<u8>,
    looks: u32,
    told: bool,
}

impl Simulated {
    pub(crate) fn new(model: Model) -> Self {
        Self {
            model,
            looks_per_byte: 1,
            sent: Vec::new(),
            overrun: 0,
            arriving: VecDeque::new(),
            divisor: 0,
            registers: [0; 8],
            fifo: VecDeque::new(),
            looks: 0,
            told: false,
        }
    }

    fn latch_open(&self) -> bool {
        self.registers[3] & 0x80 != 0
    }

    fn look(&mut self) -> u8 {
        self.looks += 1;
        if self.model != Model::Stuck && self.looks >= self.looks_per_byte {
            self.looks = 0;
            self.sent.extend(self.fifo.pop_front());
        }
        let mut status = if self.fifo.is_empty() { 0x60 } else { 0 };
        if let Some((_, errors)) = self.arriving.front() {
            status |= 1;
            // An error is shown once, when its byte is the next.
            if !self.told {
                status |= errors;
                self.told = true;
            }
        }
        status
    }
}

impl Registers for &mut Simulated {
    fn read(&mut self, register: Register) -> u8 {
        match (self.model, register) {
            (Model::Absent, _) => 0xff,
            (Model::Memory, _) => self.registers[register as usize],
            (_, Register::Data) if self.latch_open() => self.divisor.to_le_bytes()[0],
            (_, Register::Data) => {
                self.told = false;
                self.arriving.pop_front().map_or(0, |(byte, _)| byte)
            }
            (Model::NoFifo, Register::FifoControl) => 0x01,
            (_, Register::FifoControl) => 0x01 | if self.registers[2] & 1 != 0 { 0xc0 } else { 0 },
            (_, Register::LineStatus) => self.look(),
            (_, Register::ModemStatus) => {
                let control = self.registers[4];
                if control & 0x10 == 0 {
                    return 0xb0;
                }
                (control & 0x0c) << 4 | (control & 0x02) << 3 | (control & 0x01) << 5
            }
            _ => self.registers[register as usize],
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        match (self.model, register) {
            (Model::Absent, _) => {}
            (Model::Memory, _) => self.registers[register as usize] = value,
            (_, Register::Data) if self.latch_open() => {
                self.divisor = self.divisor & 0xff00 | u16::from(value)
            }
            (_, Register::InterruptEnable) if self.latch_open() => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            (model, Register::Data) => {
                if self.fifo.len() < if model == Model::NoFifo { 1 } else { 16 } {
                    self.fifo.push_back(value);
                } else {
                    self.overrun += 1;
                }
            }
            (_, Register::FifoControl) => {
                self.registers[2] = value;
                if value & 4 != 0 {
                    self.fifo.clear();
                }
            }
            _ => self.registers[register as usize] = value,
        }
    }
}
