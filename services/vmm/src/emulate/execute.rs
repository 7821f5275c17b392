//! What instructions with an operand in memory do.

use iced_x86::{Mnemonic, OpKind};

use super::alu::{self, ALL, CF, Computed, ZF};
use super::operand::Operand;
use super::registers::{Gpr, Width};
use super::{Access, CodeWidth, Emulation, Platform, Progress, SEGMENT_BIG, SegmentRegister, Stop};

/// The general registers that instructions imply, by their number in encodings.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;

/// Instructions with two operands of which the first is computed from both.
#[derive(Clone, Copy)]
enum Binary {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
    /// `SUB` for its flags.
    Cmp,
    /// `AND` for its flags.
    Test,
}

/// Instructions with one operand.
#[derive(Clone, Copy)]
enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

/// What a bit test does to the bit.
#[derive(Clone, Copy)]
enum Bit {
    Leave,
    Set,
    Reset,
    Complement,
}

impl<P: Platform> Emulation<'_, '_, P> {
    pub(super) fn execute(&mut self) -> Result<Progress, Stop> {
        if let Some(operation) = self.string_operation() {
            return self.string(operation);
        }
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movzx => self.copy(|value, _| value),
            Mnemonic::Movsx | Mnemonic::Movsxd => self.copy(|value, width| width.sign_extend(value)),
            Mnemonic::Xchg => self.exchange(),
            Mnemonic::Add => self.binary(Binary::Add),
            Mnemonic::Adc => self.binary(Binary::Adc),
            Mnemonic::Sub => self.binary(Binary::Sub),
            Mnemonic::Sbb => self.binary(Binary::Sbb),
            Mnemonic::And => self.binary(Binary::And),
            Mnemonic::Or => self.binary(Binary::Or),
            Mnemonic::Xor => self.binary(Binary::Xor),
            Mnemonic::Cmp => self.binary(Binary::Cmp),
            Mnemonic::Test => self.binary(Binary::Test),
            Mnemonic::Inc => self.unary(Unary::Inc),
            Mnemonic::Dec => self.unary(Unary::Dec),
            Mnemonic::Not => self.unary(Unary::Not),
            Mnemonic::Neg => self.unary(Unary::Neg),
            Mnemonic::Bt => self.bit(Bit::Leave),
            Mnemonic::Bts => self.bit(Bit::Set),
            Mnemonic::Btr => self.bit(Bit::Reset),
            Mnemonic::Btc => self.bit(Bit::Complement),
            Mnemonic::Xadd => self.exchange_add(),
            Mnemonic::Cmpxchg => self.compare_exchange(),
            Mnemonic::Cmpxchg8b => self.compare_exchange_8_bytes(),
            Mnemonic::Push => self.push(),
            Mnemonic::Pop => self.pop(),
            _ => Err(self.unsupported()),
        }
    }

    pub(super) fn set_flags(&mut self, of: u64, flags: u64) {
        self.vcpu.registers.rflags = self.vcpu.registers.rflags & !of | flags & of;
    }

    fn carry(&self) -> u64 {
        self.vcpu.registers.rflags & CF
    }

    /// `MOV` and its kin: the first operand becomes the second, extended from the width that it has there.
    fn copy(&mut self, extend: impl Fn(u64, Width) -> u64) -> Result<Progress, Stop> {
        let destination = self.operand(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        // An immediate, or a segment register, is as wide as what it goes to.
        let width = self.width(&source).or_else(|_| self.width(&destination))?;
        let value = self.load(&source);
        self.store(&destination, extend(value, width));
        Ok(self.done())
    }

    fn exchange(&mut self) -> Result<Progress, Stop> {
        let (first, second) = (self.operand(0, Access::Write)?, self.operand(1, Access::Write)?);
        let (a, b) = (self.load(&first), self.load(&second));
        self.store(&first, b);
        self.store(&second, a);
        Ok(self.done())
    }

    fn binary(&mut self, operation: Binary) -> Result<Progress, Stop> {
        let writes = !matches!(operation, Binary::Cmp | Binary::Test);
        let destination = self.operand(0, if writes { Access::Write } else { Access::Read })?;
        let source = self.operand(1, Access::Read)?;
        let width = self.width(&destination)?;
        let (a, b) = (self.load(&destination), self.load(&source));
        let Computed { value, flags } = match operation {
            Binary::Add => alu::add(a, b, 0, width),
            Binary::Adc => alu::add(a, b, self.carry(), width),
            Binary::Sub | Binary::Cmp => alu::sub(a, b, 0, width),
            Binary::Sbb => alu::sub(a, b, self.carry(), width),
            Binary::And | Binary::Test => alu::logic(a & b, width),
            Binary::Or => alu::logic(a | b, width),
            Binary::Xor => alu::logic(a ^ b, width),
        };
        if writes {
            self.store(&destination, value);
        }
        self.set_flags(ALL, flags);
        Ok(self.done())
    }

    fn unary(&mut self, operation: Unary) -> Result<Progress, Stop> {
        let operand = self.operand(0, Access::Write)?;
        let width = self.width(&operand)?;
        let value = self.load(&operand);
        let (computed, changed) = match operation {
            Unary::Inc => (alu::add(value, 1, 0, width), ALL & !CF),
            Unary::Dec => (alu::sub(value, 1, 0, width), ALL & !CF),
            Unary::Neg => (alu::sub(0, value, 0, width), ALL),
            Unary::Not => (Computed { value: !value, flags: 0 }, 0),
        };
        self.store(&operand, computed.value);
        self.set_flags(changed, computed.flags);
        Ok(self.done())
    }

    /// A bit test. The number of the bit is signed and reaches beyond the operand when a register holds it and the
    /// operand is in memory (AMD APM 3, BT).
    fn bit(&mut self, operation: Bit) -> Result<Progress, Stop> {
        let access = if matches!(operation, Bit::Leave) { Access::Read } else { Access::Write };
        let source = self.operand(1, Access::Read)?;
        let number = self.load(&source);
        let operand = match source {
            Operand::Register(gpr) if self.is_memory(0) => {
                let width = gpr.width();
                let elements = width.sign_extend(number).cast_signed() >> width.bits().ilog2();
                let displacement = elements.wrapping_mul(width.bytes() as i64).cast_unsigned();
                Operand::Memory(self.memory(0, displacement, width.bytes(), access)?, width)
            }
            _ => self.operand(0, access)?,
        };
        let bit = 1 << (number & u64::from(self.width(&operand)?.bits() - 1));
        let value = self.load(&operand);
        match operation {
            Bit::Leave => {}
            Bit::Set => self.store(&operand, value | bit),
            Bit::Reset => self.store(&operand, value & !bit),
            Bit::Complement => self.store(&operand, value ^ bit),
        }
        self.set_flags(CF, if value & bit != 0 { CF } else { 0 });
        Ok(self.done())
    }

    fn exchange_add(&mut self) -> Result<Progress, Stop> {
        let (destination, source) = (self.operand(0, Access::Write)?, self.operand(1, Access::Read)?);
        let width = self.width(&destination)?;
        let (a, b) = (self.load(&destination), self.load(&source));
        let sum = alu::add(a, b, 0, width);
        // The source first: when both are one register, it holds the sum.
        self.store(&source, a);
        self.store(&destination, sum.value);
        self.set_flags(ALL, sum.flags);
        Ok(self.done())
    }

    /// `CMPXCHG`, which writes in either case, as the processor does (Intel SDM 2A, CMPXCHG).
    fn compare_exchange(&mut self) -> Result<Progress, Stop> {
        let (destination, source) = (self.operand(0, Access::Write)?, self.operand(1, Access::Read)?);
        let width = self.width(&destination)?;
        let accumulator = Gpr::new(RAX, width);
        let (there, new) = (self.load(&destination), self.load(&source));
        let compared = alu::sub(accumulator.read(self.vcpu.registers), there, 0, width);
        if compared.value == 0 {
            self.store(&destination, new);
        } else {
            self.store(&destination, there);
            accumulator.write(self.vcpu.registers, there);
        }
        self.set_flags(ALL, compared.flags);
        Ok(self.done())
    }

    fn compare_exchange_8_bytes(&mut self) -> Result<Progress, Stop> {
        let half = |number| Gpr::new(number, Width::Dword);
        let destination = self.operand(0, Access::Write)?;
        let there = self.load(&destination);
        let registers = &mut *self.vcpu.registers;
        let pair = |high, low| half(high).read(registers) << 32 | half(low).read(registers);
        let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
        if there == expected {
            self.store(&destination, new);
            self.set_flags(ZF, ZF);
        } else {
            self.store(&destination, there);
            half(RAX).write(self.vcpu.registers, there);
            half(RDX).write(self.vcpu.registers, there >> 32);
            self.set_flags(ZF, 0);
        }
        Ok(self.done())
    }

    /// The part of RSP that addresses the stack.
    fn stack_pointer(&mut self) -> Gpr {
        let big = |attributes: u16| u32::from(attributes) & SEGMENT_BIG != 0;
        let width = match self.vcpu.code_width() {
            CodeWidth::Bits64 => Width::Qword,
            _ if big(self.platform.segment(SegmentRegister::Ss).attributes) => Width::Dword,
            _ => Width::Word,
        };
        Gpr::new(RSP, width)
    }

    fn push(&mut self) -> Result<Progress, Stop> {
        let source = self.operand(0, Access::Read)?;
        let width = match self.instruction.op_kind(0) {
            OpKind::Immediate8to16 | OpKind::Immediate16 => Width::Word,
            OpKind::Immediate8to32 | OpKind::Immediate32 => Width::Dword,
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => Width::Qword,
            // A segment register's width is not its own.
            _ => self.width(&source)?,
        };
        let pointer = self.stack_pointer();
        let top =
            pointer.read(self.vcpu.registers).wrapping_sub(width.bytes() as u64) & pointer.width().mask();
        let stack = self.span(SegmentRegister::Ss, top, width.bytes(), Access::Write)?;
        let value = self.load(&source);
        stack.write(self.platform, width, value);
        pointer.write(self.vcpu.registers, top);
        Ok(self.done())
    }

    /// `POP`, whose destination's address counts from RSP as it is afterwards (AMD APM 3, POP).
    fn pop(&mut self) -> Result<Progress, Stop> {
        let width = match Gpr::of(self.instruction.op0_register()) {
            Some(gpr) => gpr.width(),
            None => self.memory_width()?,
        };
        let pointer = self.stack_pointer();
        let before = self.vcpu.registers.rsp;
        let top = pointer.read(self.vcpu.registers);
        let stack = self.span(SegmentRegister::Ss, top, width.bytes(), Access::Read)?;
        pointer.write(self.vcpu.registers, top.wrapping_add(width.bytes() as u64));
        match self.operand(0, Access::Write) {
            Ok(destination) => {
                let value = stack.read(self.platform, width);
                self.store(&destination, value);
                Ok(self.done())
            }
            Err(stop) => {
                self.vcpu.registers.rsp = before;
                Err(stop)
            }
        }
    }
}
