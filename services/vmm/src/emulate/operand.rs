//! Operands: effective addresses, segments, translation, and the memory behind them.

use iced_x86::{MemorySize, OpKind, Register};
use ipc::abi::PAGE_SIZE;
use ipc::vcpu::{Event, Segment};

use super::registers::{Gpr, Width};
use super::{
    Access, CodeMemory, CodeWidth, Emulation, Encoding, Fault, GENERAL_PROTECTION, PAGE_FAULT, Platform,
    STACK_FAULT, SegmentRegister, Stop, TranslationError,
};
use crate::memory::{GuestPhysAddr, GuestVirtAddr};

const PRESENT: u16 = 1 << 7;
const CODE: u16 = 1 << 3;
/// Of data segments: limits are lower bounds.
const EXPAND_DOWN: u16 = 1 << 2;
/// Of code segments: readable; of data segments: writable.
const READABLE_OR_WRITABLE: u16 = 1 << 1;
const BIG: u16 = 1 << 10;

/// Memory that has passed all checks: 1 to 16 bytes in one page or across two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Span {
    first: GuestPhysAddr,
    /// How many bytes lie in the first page.
    split: usize,
    second: GuestPhysAddr,
}

impl Span {
    pub(super) fn read_bytes<P: Platform>(&self, platform: &mut P, into: &mut [u8]) {
        let (head, tail) = into.split_at_mut(self.split.min(into.len()));
        platform.read(self.first, head);
        if !tail.is_empty() {
            platform.read(self.second, tail);
        }
    }

    pub(super) fn read<P: Platform>(&self, platform: &mut P, width: Width) -> u64 {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..width.bytes()) {
            self.read_bytes(platform, part);
        }
        u64::from_le_bytes(bytes)
    }

    pub(super) fn write<P: Platform>(&self, platform: &mut P, width: Width, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..width.bytes()).unwrap_or(&[]);
        let (head, tail) = bytes.split_at(self.split.min(bytes.len()));
        platform.write(self.first, head);
        if !tail.is_empty() {
            platform.write(self.second, tail);
        }
    }
}

/// An operand whose checks are behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operand {
    Register(Gpr),
    Memory(Span, Width),
    Value(u64),
}

/// Translates a canonical linear address; `encoding` is for the report when page tables are where none can be.
pub(super) fn translate<M: CodeMemory>(
    memory: &mut M,
    at: GuestVirtAddr,
    access: Access,
    encoding: Encoding,
) -> Result<GuestPhysAddr, Stop> {
    memory.translate(at, access).map_err(|error| match error {
        TranslationError::PageFault(error_code) => {
            Stop::Fault(Fault { event: Event::exception(PAGE_FAULT, Some(error_code)), address: Some(at) })
        }
        TranslationError::Contended => Stop::Changed,
        TranslationError::NotMemory(_) => Stop::Unsupported(encoding),
    })
}

impl<P: Platform> Emulation<'_, '_, P> {
    /// The operand with this number, ready for the access. A register or an immediate needs no check.
    pub(super) fn operand(&mut self, number: u32, access: Access) -> Result<Operand, Stop> {
        match self.instruction.op_kind(number) {
            OpKind::Register => self.register_operand(self.instruction.op_register(number), access),
            OpKind::Immediate8 => Ok(Operand::Value(self.instruction.immediate8().into())),
            OpKind::Immediate16 => Ok(Operand::Value(self.instruction.immediate16().into())),
            OpKind::Immediate32 => Ok(Operand::Value(self.instruction.immediate32().into())),
            OpKind::Immediate64 => Ok(Operand::Value(self.instruction.immediate64())),
            OpKind::Immediate8to16 => Ok(Operand::Value(sign_extended(self.instruction.immediate8to16()))),
            OpKind::Immediate8to32 => Ok(Operand::Value(sign_extended(self.instruction.immediate8to32()))),
            OpKind::Immediate8to64 => Ok(Operand::Value(sign_extended(self.instruction.immediate8to64()))),
            OpKind::Immediate32to64 => Ok(Operand::Value(sign_extended(self.instruction.immediate32to64()))),
            _ => {
                let width = self.memory_width()?;
                Ok(Operand::Memory(self.memory(number, 0, width.bytes(), access)?, width))
            }
        }
    }

    /// A register: a general one, or a segment register to be read, whose loading is another matter.
    fn register_operand(&mut self, register: Register, access: Access) -> Result<Operand, Stop> {
        match (Gpr::of(register), segment_register(register), access) {
            (Some(gpr), ..) => Ok(Operand::Register(gpr)),
            (None, Some(segment), Access::Read) => {
                Ok(Operand::Value(self.platform.segment(segment).selector.into()))
            }
            _ => Err(self.unsupported()),
        }
    }

    /// Whether an operand is in memory.
    pub(super) fn is_memory(&self, number: u32) -> bool {
        matches!(
            self.instruction.op_kind(number),
            OpKind::Memory
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
        )
    }

    /// The width of the operand in memory, of which instructions here have one.
    pub(super) fn memory_width(&self) -> Result<Width, Stop> {
        match self.instruction.memory_size() {
            MemorySize::UInt8 | MemorySize::Int8 => Ok(Width::Byte),
            MemorySize::UInt16 | MemorySize::Int16 => Ok(Width::Word),
            MemorySize::UInt32 | MemorySize::Int32 => Ok(Width::Dword),
            MemorySize::UInt64 | MemorySize::Int64 => Ok(Width::Qword),
            _ => Err(self.unsupported()),
        }
    }

    /// The width of an operand that is a register or in memory.
    pub(super) fn width(&self, operand: &Operand) -> Result<Width, Stop> {
        match operand {
            Operand::Register(gpr) => Ok(gpr.width()),
            Operand::Memory(_, width) => Ok(*width),
            Operand::Value(_) => Err(self.unsupported()),
        }
    }

    pub(super) fn load(&mut self, operand: &Operand) -> u64 {
        match operand {
            Operand::Register(gpr) => gpr.read(self.vcpu.registers),
            Operand::Memory(span, width) => span.read(self.platform, *width),
            Operand::Value(value) => *value,
        }
    }

    /// Writes an operand; an immediate takes nothing.
    pub(super) fn store(&mut self, operand: &Operand, value: u64) {
        match operand {
            Operand::Register(gpr) => gpr.write(self.vcpu.registers, value),
            Operand::Memory(span, width) => span.write(self.platform, *width, value),
            Operand::Value(_) => {}
        }
    }

    /// The operand's memory, `displacement` bytes further on than the encoding says.
    pub(super) fn memory(
        &mut self,
        number: u32,
        displacement: u64,
        bytes: usize,
        access: Access,
    ) -> Result<Span, Stop> {
        let (segment, offset) = self.effective_address(number, displacement)?;
        self.span(segment, offset, bytes, access)
    }

    /// The segment and the offset in it, cut to the address size, of an operand in memory.
    pub(super) fn effective_address(
        &self,
        number: u32,
        displacement: u64,
    ) -> Result<(SegmentRegister, u64), Stop> {
        let offset = self.instruction.virtual_address(number, 0, |register, _, _| {
            // The decoder adds the segment's base to what is the offset otherwise.
            segment_register(register)
                .map_or_else(|| Some(Gpr::of(register)?.read(self.vcpu.registers)), |_| Some(0))
        });
        let offset = offset.ok_or_else(|| self.unsupported())?.wrapping_add(displacement);
        Ok((self.operand_segment(number), offset & self.address_width(number).mask()))
    }

    /// The address size that the operand has.
    pub(super) fn address_width(&self, number: u32) -> Width {
        match self.instruction.op_kind(number) {
            OpKind::MemoryESDI | OpKind::MemorySegSI => return Width::Word,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => return Width::Dword,
            OpKind::MemoryESRDI | OpKind::MemorySegRSI => return Width::Qword,
            _ => {}
        }
        let (base, index) = (self.instruction.memory_base(), self.instruction.memory_index());
        match (Gpr::of(base).or_else(|| Gpr::of(index)), base) {
            (Some(gpr), _) => gpr.width(),
            (None, Register::EIP) => Width::Dword,
            (None, Register::RIP) => Width::Qword,
            (None, _) => match self.instruction.memory_displ_size() {
                2 => Width::Word,
                4 => Width::Dword,
                _ => Width::Qword,
            },
        }
    }

    /// The segment of an operand: overrides but for FS and GS count for nothing in 64-bit mode, where the default still
    /// says which fault an address that is not canonical makes (AMD APM 2, 4.5.3).
    fn operand_segment(&self, number: u32) -> SegmentRegister {
        if matches!(
            self.instruction.op_kind(number),
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI
        ) {
            return SegmentRegister::Es;
        }
        let default = match self.instruction.memory_base() {
            Register::BP | Register::EBP | Register::RBP | Register::ESP | Register::RSP => {
                SegmentRegister::Ss
            }
            _ => SegmentRegister::Ds,
        };
        match segment_register(self.instruction.segment_prefix()) {
            None => default,
            Some(over @ (SegmentRegister::Fs | SegmentRegister::Gs)) => over,
            Some(_) if self.vcpu.code_width() == CodeWidth::Bits64 => default,
            Some(over) => over,
        }
    }

    /// Checks and translates memory at an offset in a segment.
    pub(super) fn span(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        bytes: usize,
        access: Access,
    ) -> Result<Span, Stop> {
        let at = self.checked_linear(segment, offset, bytes, access)?;
        let in_page = PAGE_SIZE - usize::try_from(at % PAGE_SIZE as u64).unwrap_or(0);
        let split = bytes.min(in_page);
        let first = translate(self.platform, GuestVirtAddr(at), access, self.encoding)?;
        let mut second = first;
        if split < bytes {
            let next = self.vcpu.linear(at.wrapping_add(split as u64));
            second = translate(self.platform, GuestVirtAddr(next), access, self.encoding)?;
        }
        Ok(Span { first, split, second })
    }

    fn checked_linear(
        &mut self,
        register: SegmentRegister,
        offset: u64,
        bytes: usize,
        access: Access,
    ) -> Result<u64, Stop> {
        let vector = if register == SegmentRegister::Ss { STACK_FAULT } else { GENERAL_PROTECTION };
        let at = self.linear_address(register, offset).0;
        let past_first = (bytes as u64).saturating_sub(1);
        let allowed = if self.vcpu.code_width() == CodeWidth::Bits64 {
            self.vcpu.canonical(at) && self.vcpu.canonical(at.wrapping_add(past_first))
        } else {
            let segment = self.platform.segment(register);
            let last = offset.saturating_add(past_first);
            if self.vcpu.has_descriptors() {
                permits(&segment, access) && within(&segment, offset, last)
            } else {
                last <= segment.limit.into()
            }
        };
        if allowed { Ok(at) } else { Err(self.vcpu.fault(vector)) }
    }

    /// The linear address of an offset in a segment, unchecked.
    pub(super) fn linear_address(&mut self, register: SegmentRegister, offset: u64) -> GuestVirtAddr {
        let flat = self.vcpu.code_width() == CodeWidth::Bits64
            && !matches!(register, SegmentRegister::Fs | SegmentRegister::Gs);
        let base = if flat { 0 } else { self.platform.segment(register).base };
        GuestVirtAddr(self.vcpu.linear(base.wrapping_add(offset)))
    }
}

/// Whether the segment's type permits the access (AMD APM 2, 4.7.1 and 4.12).
const fn permits(segment: &Segment, access: Access) -> bool {
    let granted = segment.attributes & READABLE_OR_WRITABLE != 0;
    segment.attributes & PRESENT != 0
        && match (segment.attributes & CODE != 0, access) {
            (true, Access::Write) => false,
            (true, Access::Read) | (false, Access::Write) => granted,
            (false, Access::Read) | (_, Access::Execute) => true,
        }
}

/// Whether offsets lie within the limit, for data that expands down above it (AMD APM 2, 4.12.1).
fn within(segment: &Segment, first: u64, last: u64) -> bool {
    let limit = u64::from(segment.limit);
    if segment.attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let highest = if segment.attributes & BIG != 0 { u64::from(u32::MAX) } else { 0xffff };
        first > limit && last <= highest
    } else {
        last <= limit
    }
}

const fn segment_register(register: Register) -> Option<SegmentRegister> {
    match register {
        Register::ES => Some(SegmentRegister::Es),
        Register::CS => Some(SegmentRegister::Cs),
        Register::SS => Some(SegmentRegister::Ss),
        Register::DS => Some(SegmentRegister::Ds),
        Register::FS => Some(SegmentRegister::Fs),
        Register::GS => Some(SegmentRegister::Gs),
        _ => None,
    }
}

fn sign_extended(value: impl Into<i64>) -> u64 {
    value.into().cast_unsigned()
}
