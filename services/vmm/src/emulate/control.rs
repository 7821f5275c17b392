//! Instructions on control registers and translations, decoded for whoever keeps those.

use iced_x86::{Mnemonic, Register};

use super::operand::Operand;
use super::registers::{Gpr, Width};
use super::{Access, Emulation, Platform, Stop, Vcpu};
use crate::memory::GuestVirtAddr;

/// An instruction that the vmm executes in the guest's place; [`Vcpu::advance`] by its length completes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ControlInstruction {
    /// What it is.
    pub control: Control,
    /// Its length in bytes.
    pub length: u8,
}

/// What the instruction asks for. The privilege level has been checked by the processor before the exit; that values
/// are valid has not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Control {
    /// `MOV` to a control register.
    Write {
        /// Its number: 0, 2, 3, 4 or 8.
        register: u8,
        /// What is written; 32 bits outside 64-bit mode.
        value: u64,
    },
    /// `MOV` from a control register.
    Read {
        /// Its number: 0, 2, 3, 4 or 8.
        register: u8,
        /// Where the value goes.
        destination: Destination,
    },
    /// `CLTS`.
    ClearTaskSwitched,
    /// `LMSW`: the low 4 bits are for CR0, in which it cannot clear bit 0.
    LoadMachineStatus(u16),
    /// `SMSW`: CR0 is to be stored.
    StoreMachineStatus(Destination),
    /// `INVLPG`: the address, which may be one that is not canonical; it has then no effect.
    InvalidatePage(GuestVirtAddr),
    /// `INVPCID`.
    InvalidateContext {
        /// The type; 0 to 3 are defined, others fault.
        kind: u64,
        /// The descriptor: a PCID in 12 bits, the others of which fault; a linear address.
        descriptor: [u64; 2],
    },
}

/// Where a value goes that only its owner knows: checked, so that the store cannot fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination(Operand);

impl Destination {
    /// Stores the value, cut to the width of the destination.
    pub fn store<P: Platform>(self, vcpu: &mut Vcpu<'_>, platform: &mut P, value: u64) {
        match self.0 {
            Operand::Register(gpr) => gpr.write(vcpu.registers, value),
            Operand::Memory(span, width) => span.write(platform, width, value),
            Operand::Value(_) => {}
        }
    }
}

/// Decodes the instruction at RIP after an exit for [`WriteControl`](ipc::vcpu::ExitReason::WriteControl),
/// [`ReadControl`](ipc::vcpu::ExitReason::ReadControl), [`InvalidatePage`](ipc::vcpu::ExitReason::InvalidatePage) or
/// [`InvalidateContext`](ipc::vcpu::ExitReason::InvalidateContext), with its operand's value. What comes back is to be
/// compared with the exit's reason: it differs when another processor has changed the code since.
///
/// # Errors
/// [`Stop`]; [`Stop::Changed`] for any other instruction.
pub fn decode_control<P: Platform>(
    vcpu: &mut Vcpu<'_>,
    platform: &mut P,
) -> Result<ControlInstruction, Stop> {
    let mut emulation = Emulation::decode(vcpu, platform)?;
    let control = emulation.control()?;
    Ok(ControlInstruction { control, length: emulation.encoding.length })
}

impl<P: Platform> Emulation<'_, '_, P> {
    fn control(&mut self) -> Result<Control, Stop> {
        match self.instruction.mnemonic() {
            Mnemonic::Mov => self.move_control(),
            Mnemonic::Clts => Ok(Control::ClearTaskSwitched),
            Mnemonic::Lmsw => {
                let source = self.operand(0, Access::Read)?;
                let value = self.load(&source) & Width::Word.mask();
                Ok(Control::LoadMachineStatus(u16::try_from(value).unwrap_or(0)))
            }
            Mnemonic::Smsw => Ok(Control::StoreMachineStatus(Destination(self.operand(0, Access::Write)?))),
            Mnemonic::Invlpg => {
                let (segment, offset) = self.effective_address(0, 0)?;
                Ok(Control::InvalidatePage(self.linear_address(segment, offset)))
            }
            Mnemonic::Invpcid => {
                let kind = self.operand(0, Access::Read)?;
                let kind = self.load(&kind);
                let mut bytes = [0; 16];
                self.memory(1, 0, bytes.len(), Access::Read)?.read_bytes(self.platform, &mut bytes);
                let both = u128::from_le_bytes(bytes);
                let half = |shift: u32| u64::try_from(both >> shift & u128::from(u64::MAX)).unwrap_or(0);
                Ok(Control::InvalidateContext { kind, descriptor: [half(0), half(64)] })
            }
            _ => Err(Stop::Changed),
        }
    }

    /// The decoder gives the general register the width that the mode has, whatever the prefixes.
    fn move_control(&self) -> Result<Control, Stop> {
        let (to, from) = (self.instruction.op0_register(), self.instruction.op1_register());
        match (control_register(to), control_register(from)) {
            (Some(register), None) => {
                let source = Gpr::of(from).ok_or(Stop::Changed)?;
                Ok(Control::Write { register, value: source.read(self.vcpu.registers) })
            }
            (None, Some(register)) => {
                let gpr = Gpr::of(to).ok_or(Stop::Changed)?;
                Ok(Control::Read { register, destination: Destination(Operand::Register(gpr)) })
            }
            _ => Err(Stop::Changed),
        }
    }
}

const fn control_register(register: Register) -> Option<u8> {
    match register {
        Register::CR0 => Some(0),
        Register::CR2 => Some(2),
        Register::CR3 => Some(3),
        Register::CR4 => Some(4),
        Register::CR8 => Some(8),
        _ => None,
    }
}
