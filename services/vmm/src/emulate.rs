//! Instructions that the processor hands over: those that touch device registers, `INS` and `OUTS`, and the decoding of
//! the privileged ones, for a processor that tells no more than that it left guest mode.
//!
//! Invariants:
//! - An instruction either happens as a whole or not at all: every segment check and translation of all its operands
//!   comes before the first byte is read or written, and registers change last. A repeated string instruction is as
//!   many such instructions as it has iterations; [`ITERATIONS`] at most are done in a call, and the registers say
//!   where it is.
//! - The bytes at RIP are read again after the exit, so another processor may have changed them. What is executed is
//!   never more than the exit's own checks have allowed: memory instructions need no privilege, and string I/O is only
//!   done when it is the access that the exit reported.
//! - Nothing depends on the guest's values for its bounds: 15 bytes are decoded, two pages hold an operand.
//!
//! Left out, and reported as [`Stop::Unsupported`]: x87, MMX, SSE and later registers; shifts, multiplication and
//! division; conditional moves and sets; control transfers through device memory; loading a segment register from it;
//! `CMPXCHG16B`. `LOCK` is accepted; the accesses are not atomic against other processors, which no device register
//! notices. Alignment checks (#AC) and data breakpoints do not happen.

mod alu;
mod control;
mod execute;
mod fetch;
mod length;
mod operand;
mod registers;
mod string;
#[cfg(test)]
mod tests;

use iced_x86::{Instruction, Mnemonic};
use ipc::abi::UserRegisters;
use ipc::vcpu::{Event, Mode, PortAccess, Segment, VcpuPage};

use crate::memory::{GuestPhysAddr, GuestVirtAddr, NotMemory};

pub use crate::walk::Access;
pub use control::{Control, ControlInstruction, Destination, decode_control};
pub use fetch::MAX_INSTRUCTION_BYTES;
pub use length::{length_of, plain_length};

/// The most iterations of a repeated string instruction in one call.
pub const ITERATIONS: usize = 256;

const CR0_PE: u64 = 1;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_DF: u64 = 1 << 10;
const RFLAGS_RF: u64 = 1 << 16;
const RFLAGS_VM: u64 = 1 << 17;
const SEGMENT_LONG: u32 = 1 << 9;
const SEGMENT_BIG: u32 = 1 << 10;

const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const INVALID_OPCODE: u8 = 6;

/// Why a linear address leads nowhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TranslationError {
    /// The guest's page tables do not allow it: the error code of the page fault.
    PageFault(u32),
    /// The guest's page tables are not in memory, or of a kind that it is not offered.
    NotMemory(NotMemory),
    /// The guest changes its page tables faster than they can be walked: [`Stop::Changed`].
    Contended,
}

/// A segment register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the registers of the processor, by their names")]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// What the vCPU sees as its memory when it fetches instructions.
pub trait CodeMemory {
    /// Translates a linear address as [`crate::walk`] does, with the vCPU's own rights. The result holds to the end of
    /// the 4 KiB page.
    ///
    /// # Errors
    /// [`TranslationError`].
    fn translate(&mut self, at: GuestVirtAddr, access: Access) -> Result<GuestPhysAddr, TranslationError>;

    /// Reads code, which never crosses a page. Device registers hold none.
    ///
    /// # Errors
    /// [`NotMemory`].
    fn fetch(&mut self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory>;
}

/// What an emulated instruction sees of its vCPU and of the platform. Accesses are of 1 to 16 bytes within a page; an
/// operand across two pages is two accesses. They cannot fail: what is nowhere reads as all ones and loses writes.
pub trait Platform: CodeMemory {
    /// The segment register as it was at the exit. Asked for only when it matters: in 64-bit mode FS and GS alone.
    fn segment(&mut self, register: SegmentRegister) -> Segment;
    /// Reads memory or a device's registers.
    fn read(&mut self, at: GuestPhysAddr, into: &mut [u8]);
    /// Writes memory or a device's registers.
    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]);
    /// Reads a port: 1, 2 or 4 bytes.
    fn port_in(&mut self, port: u16, into: &mut [u8]);
    /// Writes a port: 1, 2 or 4 bytes.
    fn port_out(&mut self, port: u16, bytes: &[u8]);
}

/// The part of a vCPU's state that every emulation needs.
#[derive(Debug)]
pub struct Vcpu<'a> {
    /// General registers, RIP and RFLAGS, of which only what the instruction changes is changed.
    pub registers: &'a mut UserRegisters,
    /// How it reads instructions.
    pub mode: &'a Mode,
    /// The bytes at RIP that the processor told at the exit; empty when it tells none.
    pub prefetched: &'a [u8],
}

impl<'a> Vcpu<'a> {
    /// The part of a state page.
    #[must_use]
    pub fn of(page: &'a mut VcpuPage) -> Self {
        let VcpuPage { registers, mode, instruction, instruction_bytes, .. } = page;
        let prefetched = instruction.get(..usize::from(*instruction_bytes)).unwrap_or(&[]);
        Self { registers, mode, prefetched }
    }

    /// Goes past an instruction of so many bytes, as its completion does. What else a completed instruction does is the
    /// caller's: it ends an interrupt shadow, and with RFLAGS.TF it is followed by a debug exception.
    pub fn advance(&mut self, bytes: u8) {
        let next = self.registers.rip.wrapping_add(u64::from(bytes));
        self.registers.rip = self.linear(next);
        self.registers.rflags &= !RFLAGS_RF;
    }

    fn code_width(&self) -> CodeWidth {
        CodeWidth::of(self.mode)
    }

    /// An address cut to what linear addresses are in this mode.
    fn linear(&self, at: u64) -> u64 {
        if self.code_width() == CodeWidth::Bits64 { at } else { at & u64::from(u32::MAX) }
    }

    /// Whether the linear address is one that paging can translate (AMD APM 2, 1.1.3).
    fn canonical(&self, at: u64) -> bool {
        let unused = if self.mode.cr4 & CR4_LA57 != 0 { 64 - 57 } else { 64 - 48 };
        (at << unused).cast_signed() >> unused == at.cast_signed()
    }

    /// Whether segments have descriptors: protected mode, and not virtual-8086 mode.
    fn has_descriptors(&self) -> bool {
        self.mode.cr0 & CR0_PE != 0 && self.registers.rflags & RFLAGS_VM == 0
    }

    /// A fault whose error code, if the mode has any, is zero.
    fn fault(&self, vector: u8) -> Stop {
        let error_code = (vector != INVALID_OPCODE && self.mode.cr0 & CR0_PE != 0).then_some(0);
        Stop::Fault(Fault { event: Event::exception(vector, error_code), address: None })
    }
}

/// The default operand and address size of code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CodeWidth {
    Bits16,
    Bits32,
    Bits64,
}

impl CodeWidth {
    /// AMD APM 2, table 4-8: CS.L counts in long mode only, and CS.D in every mode.
    const fn of(mode: &Mode) -> Self {
        if mode.efer & EFER_LMA != 0 && mode.cs_attributes & SEGMENT_LONG != 0 {
            Self::Bits64
        } else if mode.cs_attributes & SEGMENT_BIG != 0 {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What to inject.
    pub event: Event,
    /// What CR2 becomes, for a page fault.
    pub address: Option<GuestVirtAddr>,
}

/// The bytes of an instruction, for a report.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Encoding {
    /// The bytes at RIP.
    pub bytes: [u8; MAX_INSTRUCTION_BYTES],
    /// How many of them are the instruction; 0 when they could not be fetched.
    pub length: u8,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The guest gets this exception.
    Fault(Fault),
    /// Another processor has changed the instruction since the exit, or goes on changing its page tables. The guest is
    /// to execute what is there; a vCPU that comes back from the same RIP with this for ever is to be given up.
    Changed,
    /// This instruction is not emulated, or its code or page tables are where none can be.
    Unsupported(Encoding),
}

/// How far the instruction came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// It is complete, and RIP is at the next one.
    Done,
    /// A repeated string instruction has done some iterations, and RIP is still there: as after an interrupt, the vCPU
    /// executes the rest of it when it goes on.
    Again,
}

/// Does the instruction at RIP, which touched guest-physical memory where there is a device (an exit for
/// [`Memory`](ipc::vcpu::ExitReason::Memory) that did not fetch and did not interrupt an event's delivery).
///
/// With RFLAGS.TF a repeated string instruction does one iteration, for the debug exception that follows each.
///
/// # Errors
/// [`Stop`]. Memory is unchanged, and so are registers but for the completed iterations of a string instruction.
pub fn emulate_memory<P: Platform>(vcpu: &mut Vcpu<'_>, platform: &mut P) -> Result<Progress, Stop> {
    let mut emulation = Emulation::decode(vcpu, platform)?;
    match emulation.instruction.mnemonic() {
        // Their exit is another one, and so are their checks; a breakpoint is how code is changed while it runs.
        Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd
        | Mnemonic::Int3 => Err(Stop::Changed),
        _ => emulation.execute(),
    }
}

/// Does the `INS` or `OUTS` at RIP that made an exit with this access.
///
/// # Errors
/// As [`emulate_memory`]; a page fault comes before its element is taken from the port or given to it.
pub fn emulate_string_io<P: Platform>(
    vcpu: &mut Vcpu<'_>,
    platform: &mut P,
    access: PortAccess,
) -> Result<Progress, Stop> {
    Emulation::decode(vcpu, platform)?.string_io(access)
}

/// An instruction on its way.
struct Emulation<'e, 'v, P> {
    vcpu: &'e mut Vcpu<'v>,
    platform: &'e mut P,
    instruction: Instruction,
    encoding: Encoding,
}

impl<'e, 'v, P: Platform> Emulation<'e, 'v, P> {
    fn decode(vcpu: &'e mut Vcpu<'v>, platform: &'e mut P) -> Result<Self, Stop> {
        let limit = match vcpu.code_width() {
            CodeWidth::Bits64 => u32::MAX,
            CodeWidth::Bits16 | CodeWidth::Bits32 => platform.segment(SegmentRegister::Cs).limit,
        };
        let (instruction, encoding) = fetch::decode(vcpu, platform, limit)?;
        Ok(Self { vcpu, platform, instruction, encoding })
    }

    fn unsupported(&self) -> Stop {
        Stop::Unsupported(self.encoding)
    }

    fn done(&mut self) -> Progress {
        self.vcpu.advance(self.encoding.length);
        Progress::Done
    }
}
