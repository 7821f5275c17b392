//! How long the instruction is that made an exit: without next-RIP, a processor does not tell.

use iced_x86::{Instruction, Mnemonic, Register};
use ipc::vcpu::ExitReason;

use super::fetch::{Parsed, decode_bytes, parse};
use super::{CodeMemory, Stop, Vcpu};

/// The length in bytes of the instruction at RIP that made an exit for `reason`, by the plainest way: most are there in
/// their shortest encoding, which is compared; others are decoded.
///
/// # Errors
/// [`Stop`]; [`Stop::Changed`] when what is there is not an instruction with such an exit, or when the reason is none
/// that an instruction makes by being what it is.
pub fn length_of<M: CodeMemory>(reason: ExitReason, vcpu: &Vcpu<'_>, memory: &mut M) -> Result<u8, Stop> {
    // The processor has fetched this instruction, so it lies within the limit of CS.
    parse(vcpu, memory, u32::MAX, |bytes| {
        if let Some(length) = plain_length(reason, bytes) {
            return Parsed::Instruction(Ok(length));
        }
        match decode_bytes(vcpu, bytes) {
            Parsed::Instruction((instruction, encoding)) if makes_exit(reason, &instruction) => {
                Parsed::Instruction(Ok(encoding.length))
            }
            Parsed::Instruction(_) => Parsed::Instruction(Err(Stop::Changed)),
            Parsed::Short => Parsed::Short,
            Parsed::Fault(vector) => Parsed::Fault(vector),
        }
    })?
}

/// The length in bytes of the instruction that made an exit for `reason`, if `bytes` begin with its shortest encoding.
#[must_use]
pub const fn plain_length(reason: ExitReason, bytes: &[u8]) -> Option<u8> {
    match (reason, bytes) {
        (ExitReason::Halt, [0xf4, ..]) => Some(1),
        (ExitReason::Cpuid, [0x0f, 0xa2, ..])
        | (ExitReason::ReadMsr, [0x0f, 0x32, ..])
        | (ExitReason::WriteMsr, [0x0f, 0x30, ..])
        | (ExitReason::Caches, [0x0f, 0x08 | 0x09, ..]) => Some(2),
        (ExitReason::SetXcr, [0x0f, 0x01, 0xd1, ..])
        | (ExitReason::Hypercall, [0x0f, 0x01, 0xc1 | 0xd9, ..]) => Some(3),
        _ => None,
    }
}

/// Whether the instruction is one whose exit has this reason.
fn makes_exit(reason: ExitReason, instruction: &Instruction) -> bool {
    let mnemonic = instruction.mnemonic();
    let control = |register| (Register::CR0..=Register::CR15).contains(&register);
    match reason {
        ExitReason::Cpuid => mnemonic == Mnemonic::Cpuid,
        ExitReason::Halt => mnemonic == Mnemonic::Hlt,
        ExitReason::ReadMsr => mnemonic == Mnemonic::Rdmsr,
        ExitReason::WriteMsr => mnemonic == Mnemonic::Wrmsr,
        ExitReason::SetXcr => mnemonic == Mnemonic::Xsetbv,
        ExitReason::Hypercall => matches!(mnemonic, Mnemonic::Vmcall | Mnemonic::Vmmcall),
        ExitReason::Caches => matches!(mnemonic, Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd),
        ExitReason::Port => matches!(
            mnemonic,
            Mnemonic::In
                | Mnemonic::Out
                | Mnemonic::Insb
                | Mnemonic::Insw
                | Mnemonic::Insd
                | Mnemonic::Outsb
                | Mnemonic::Outsw
                | Mnemonic::Outsd
        ),
        ExitReason::WriteControl => match mnemonic {
            Mnemonic::Lmsw | Mnemonic::Clts => true,
            _ => mnemonic == Mnemonic::Mov && control(instruction.op0_register()),
        },
        ExitReason::ReadControl => match mnemonic {
            Mnemonic::Smsw => true,
            _ => mnemonic == Mnemonic::Mov && control(instruction.op1_register()),
        },
        ExitReason::InvalidatePage => mnemonic == Mnemonic::Invlpg,
        ExitReason::InvalidateContext => mnemonic == Mnemonic::Invpcid,
        ExitReason::Forbidden => matches!(
            mnemonic,
            Mnemonic::Rdpmc
                | Mnemonic::Monitor
                | Mnemonic::Mwait
                | Mnemonic::Monitorx
                | Mnemonic::Mwaitx
                | Mnemonic::Vmrun
                | Mnemonic::Vmload
                | Mnemonic::Vmsave
                | Mnemonic::Stgi
                | Mnemonic::Clgi
                | Mnemonic::Skinit
                | Mnemonic::Invlpga
                | Mnemonic::Rsm
        ),
        _ => false,
    }
}
