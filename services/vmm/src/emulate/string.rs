//! String instructions: on memory, and between memory and a port.

use iced_x86::Mnemonic;
use ipc::vcpu::PortAccess;

use super::alu::{self, ALL, ZF};
use super::registers::{Gpr, Width};
use super::{Access, Emulation, ITERATIONS, Platform, Progress, RFLAGS_DF, RFLAGS_TF, Stop};

/// The general registers that string instructions imply, by their number in encodings.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What is done with each element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    /// From `seg:[rSI]` to `ES:[rDI]`.
    Move,
    /// The accumulator to `ES:[rDI]`.
    Store,
    /// `seg:[rSI]` to the accumulator.
    Load,
    /// `seg:[rSI]` with `ES:[rDI]`.
    Compare,
    /// The accumulator with `ES:[rDI]`.
    Scan,
    /// From a port to `ES:[rDI]`.
    Input(u16),
    /// `seg:[rSI]` to a port.
    Output(u16),
}

/// When an instruction comes to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Repeat {
    /// After one iteration.
    Once,
    /// When rCX has come to 0.
    Counted,
    /// Then, or after an iteration that leaves ZF clear.
    WhileEqual,
    /// Then, or after an iteration that leaves ZF set.
    WhileNotEqual,
}

impl<P: Platform> Emulation<'_, '_, P> {
    /// The instruction as a string instruction on memory. `MOVSD` and `CMPSD` are names of SSE instructions, too; those
    /// have a register.
    pub(super) fn string_operation(&self) -> Option<Operation> {
        match self.instruction.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => Some(Operation::Move),
            Mnemonic::Movsd if self.is_memory(0) && self.is_memory(1) => Some(Operation::Move),
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Some(Operation::Store),
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Some(Operation::Load),
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq => Some(Operation::Compare),
            Mnemonic::Cmpsd if self.is_memory(0) && self.is_memory(1) => Some(Operation::Compare),
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Some(Operation::Scan),
            _ => None,
        }
    }

    /// `INS` or `OUTS`, when it is what made an exit with this access.
    pub(super) fn string_io(&mut self, access: PortAccess) -> Result<Progress, Stop> {
        let port = access.port();
        let (operation, direction) = match self.instruction.mnemonic() {
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => (Operation::Input(port), PortAccess::IN),
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => (Operation::Output(port), 0),
            _ => return Err(Stop::Changed),
        };
        let same = access.has(PortAccess::STRING)
            && access.0 & PortAccess::IN == direction
            && usize::from(access.bytes()) == self.memory_width()?.bytes()
            && u64::from(port) == self.vcpu.registers.rdx & 0xffff;
        if same { self.string(operation) } else { Err(Stop::Changed) }
    }

    /// Iterates. The registers are brought up to date after each iteration, so that a fault in the next finds them as
    /// the processor leaves them.
    pub(super) fn string(&mut self, operation: Operation) -> Result<Progress, Stop> {
        let element = self.memory_width()?;
        let pointers = self.address_width(if self.is_memory(0) { 0 } else { 1 });
        let count = Gpr::new(RCX, pointers);
        let repeat = self.repeat(operation);
        let rflags = self.vcpu.registers.rflags;
        for _ in 0..if rflags & RFLAGS_TF != 0 { 1 } else { ITERATIONS } {
            if repeat != Repeat::Once && count.read(self.vcpu.registers) == 0 {
                return Ok(self.done());
            }
            self.iterate(operation, element, pointers)?;
            if repeat == Repeat::Once {
                return Ok(self.done());
            }
            let left = count.read(self.vcpu.registers).wrapping_sub(1);
            count.write(self.vcpu.registers, left);
            let equal = self.vcpu.registers.rflags & ZF != 0;
            let found = repeat == Repeat::WhileEqual && !equal || repeat == Repeat::WhileNotEqual && equal;
            if left == 0 || found {
                return Ok(self.done());
            }
        }
        Ok(Progress::Again)
    }

    /// Either prefix repeats; they differ for comparisons only.
    fn repeat(&self, operation: Operation) -> Repeat {
        let compares = matches!(operation, Operation::Compare | Operation::Scan);
        match (self.instruction.has_repe_prefix(), self.instruction.has_repne_prefix()) {
            (false, false) => Repeat::Once,
            _ if !compares => Repeat::Counted,
            (_, true) => Repeat::WhileNotEqual,
            (true, false) => Repeat::WhileEqual,
        }
    }

    fn iterate(&mut self, operation: Operation, element: Width, pointers: Width) -> Result<(), Stop> {
        let bytes = element.bytes();
        let accumulator = Gpr::new(RAX, element);
        match operation {
            Operation::Move => {
                let source = self.memory(1, 0, bytes, Access::Read)?;
                let destination = self.memory(0, 0, bytes, Access::Write)?;
                let value = source.read(self.platform, element);
                destination.write(self.platform, element, value);
            }
            Operation::Store => {
                let destination = self.memory(0, 0, bytes, Access::Write)?;
                destination.write(self.platform, element, accumulator.read(self.vcpu.registers));
            }
            Operation::Load => {
                let source = self.memory(1, 0, bytes, Access::Read)?;
                let value = source.read(self.platform, element);
                accumulator.write(self.vcpu.registers, value);
            }
            Operation::Compare => {
                // The operands' order is that of the comparison: the source first.
                let source = self.memory(0, 0, bytes, Access::Read)?;
                let destination = self.memory(1, 0, bytes, Access::Read)?;
                let (a, b) = (source.read(self.platform, element), destination.read(self.platform, element));
                self.set_flags(ALL, alu::sub(a, b, 0, element).flags);
            }
            Operation::Scan => {
                let destination = self.memory(1, 0, bytes, Access::Read)?;
                let there = destination.read(self.platform, element);
                let compared = alu::sub(accumulator.read(self.vcpu.registers), there, 0, element);
                self.set_flags(ALL, compared.flags);
            }
            Operation::Input(port) => {
                let destination = self.memory(0, 0, bytes, Access::Write)?;
                let mut value = [0; 8];
                if let Some(value) = value.get_mut(..bytes) {
                    self.platform.port_in(port, value);
                }
                destination.write(self.platform, element, u64::from_le_bytes(value));
            }
            Operation::Output(port) => {
                let source = self.memory(1, 0, bytes, Access::Read)?;
                let value = source.read(self.platform, element).to_le_bytes();
                if let Some(value) = value.get(..bytes) {
                    self.platform.port_out(port, value);
                }
            }
        }
        let step = if self.vcpu.registers.rflags & RFLAGS_DF != 0 {
            (bytes as u64).wrapping_neg()
        } else {
            bytes as u64
        };
        let (source, destination) = match operation {
            Operation::Move | Operation::Compare => (true, true),
            Operation::Load | Operation::Output(_) => (true, false),
            Operation::Store | Operation::Scan | Operation::Input(_) => (false, true),
        };
        for (number, _) in [(RSI, source), (RDI, destination)].iter().filter(|(_, moves)| *moves) {
            let pointer = Gpr::new(*number, pointers);
            let next = pointer.read(self.vcpu.registers).wrapping_add(step);
            pointer.write(self.vcpu.registers, next);
        }
        Ok(())
    }
}
