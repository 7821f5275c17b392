//! How a guest ended, and what its console said last.

use core::fmt;

use ipc::abi::UserRegisters;
use ipc::vcpu::{Mode, SystemState};

use super::{Host, Machine};
use crate::emulate::Encoding;
use crate::memory::GuestVirtAddr;
use crate::walk::{self, Access, Privilege};

/// How a guest ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// It switched itself off.
    PoweredOff,
    /// It reset itself.
    Reset,
    /// A triple fault.
    TripleFault,
    /// All its processors halted with interrupts off.
    HaltedForEver,
    /// It touched device memory by an instruction that is not emulated, or that cannot be read.
    Unsupported(Encoding),
    /// It went on at this guest-physical address, where there is no memory.
    CodeNotMemory(u64),
    /// The stack or the table for an event's delivery lies there, where there is no memory.
    DeliveryNotMemory(u64),
    /// Its page tables lie where there is no memory.
    TablesNotMemory(u64),
    /// The node could not say what is at this guest-physical address.
    MemoryLost(u64),
    /// The processor refuses its state.
    InvalidState,
    /// A hardware task switch.
    TaskSwitch,
    /// An exit that nobody knows, with the processor's code and details.
    UnknownExit([u64; 3]),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Reset => f.write_str("reset"),
            Self::TripleFault => f.write_str("crashed: triple fault"),
            Self::HaltedForEver => f.write_str("crashed: all processors halted with interrupts off"),
            Self::Unsupported(_) => {
                f.write_str("crashed: an instruction that is not emulated touched device memory")
            }
            Self::CodeNotMemory(at) => write!(f, "crashed: code at {at:#x}, where there is no memory"),
            Self::DeliveryNotMemory(at) => {
                write!(f, "crashed: stack or vectors at {at:#x}, where there is no memory")
            }
            Self::TablesNotMemory(at) => {
                write!(f, "crashed: page tables at {at:#x}, where there is no memory")
            }
            Self::MemoryLost(at) => write!(f, "crashed: the node lost the memory at {at:#x}"),
            Self::InvalidState => f.write_str("crashed: the processor refuses its state"),
            Self::TaskSwitch => f.write_str("crashed: hardware task switch"),
            Self::UnknownExit([code, first, second]) => {
                write!(f, "crashed: unknown exit {code:#x} ({first:#x}, {second:#x})")
            }
        }
    }
}

/// What was there when a guest ended.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// How.
    pub end: End,
    /// The vCPU whose exit it was.
    pub vcpu: usize,
    /// Its registers.
    pub registers: UserRegisters,
    /// See there.
    pub mode: Mode,
    /// The rest of its state.
    pub system: SystemState,
    /// The bytes at RIP, as far as they can be read.
    pub code: [u8; 15],
    /// How many there are.
    pub code_bytes: usize,
}

/// The last of what the guest's console said.
#[derive(Clone, Debug)]
pub struct Console {
    bytes: [u8; Self::BYTES],
    written: usize,
}

impl Console {
    /// How much is kept.
    pub const BYTES: usize = 1024;

    pub(super) const fn new() -> Self {
        Self { bytes: [0; Self::BYTES], written: 0 }
    }

    pub(super) fn note(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.written % Self::BYTES) {
                *place = byte;
            }
            self.written = self.written.wrapping_add(1);
        }
    }

    /// What was said last, in order.
    pub fn tail(&self) -> impl Iterator<Item = u8> + '_ {
        let kept = self.written.min(Self::BYTES);
        let start = self.written - kept;
        (start..self.written).filter_map(|at| self.bytes.get(at % Self::BYTES).copied())
    }
}

impl Machine {
    /// The guest is over; the first reason counts.
    #[cold]
    pub(super) fn end_with<H: Host>(&mut self, host: &mut H, vcpu: usize, end: End) {
        if self.end.is_some() {
            return;
        }
        Self::fetched(host, vcpu);
        let page = *host.page(vcpu);
        let mode = self.mode(host, vcpu);
        let mut report = Report {
            end,
            vcpu,
            registers: page.registers,
            mode,
            system: page.system,
            code: [0; 15],
            code_bytes: 0,
        };
        let privilege = Privilege::explicit(&mode, page.registers.rflags);
        let start = mode.cs_base.wrapping_add(page.registers.rip);
        for (offset, byte) in (0..).zip(&mut report.code) {
            let at = GuestVirtAddr(start.wrapping_add(offset));
            let translated = walk::translate(host, self.processor, &mode, privilege, at, Access::Execute);
            let Ok(translation) = translated else { break };
            let Ok(read) = host.get::<u8>(translation.address) else { break };
            *byte = read;
            report.code_bytes += 1;
        }
        self.end = Some(report);
    }
}
