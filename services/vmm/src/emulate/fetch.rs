//! The bytes at RIP, and the instruction that they are.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::operand::translate;
use super::{Access, CodeMemory, CodeWidth, Encoding, GENERAL_PROTECTION, INVALID_OPCODE, Stop, Vcpu};
use crate::memory::GuestVirtAddr;
use ipc::abi::PAGE_SIZE;

/// The longest instruction in bytes (AMD APM 3, 1.1).
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// What some of the bytes at RIP are.
pub(super) enum Parsed<T> {
    /// An instruction.
    Instruction(T),
    /// The beginning of one.
    Short,
    /// No instruction, or one too long.
    Fault(u8),
}

/// Parses the bytes at RIP: first those that the processor told or that the first page holds, and those of a second
/// page only when the first do not suffice, so that a fault there is one that the instruction makes. `limit` is that of
/// CS, which counts outside 64-bit mode.
pub(super) fn parse<M: CodeMemory, T>(
    vcpu: &Vcpu<'_>,
    memory: &mut M,
    limit: u32,
    mut parser: impl FnMut(&[u8]) -> Parsed<T>,
) -> Result<T, Stop> {
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    let (start, available) = window(vcpu, limit)?;
    let in_page = PAGE_SIZE - usize::try_from(start % PAGE_SIZE as u64).unwrap_or(0);
    let mut attempt = |bytes: &[u8]| match parser(bytes) {
        Parsed::Instruction(instruction) => Ok(Some(instruction)),
        Parsed::Short => Ok(None),
        Parsed::Fault(vector) => Err(vcpu.fault(vector)),
    };
    if !vcpu.prefetched.is_empty()
        && let Some(instruction) = attempt(vcpu.prefetched)?
    {
        return Ok(instruction);
    }
    let mut filled = 0;
    for wanted in [available.min(in_page), available] {
        let Some(part) = bytes.get_mut(filled..wanted).filter(|part| !part.is_empty()) else { break };
        let at = vcpu.linear(start.wrapping_add(filled as u64));
        if vcpu.code_width() == CodeWidth::Bits64 && !vcpu.canonical(at) {
            return Err(vcpu.fault(GENERAL_PROTECTION));
        }
        let physical = translate(memory, GuestVirtAddr(at), Access::Execute, Encoding::default())?;
        memory.fetch(physical, part).map_err(|_| Stop::Unsupported(Encoding::default()))?;
        filled = wanted;
        if let Some(instruction) = attempt(bytes.get(..filled).unwrap_or(&[]))? {
            return Ok(instruction);
        }
    }
    // The instruction goes past the segment's limit.
    Err(vcpu.fault(GENERAL_PROTECTION))
}

/// The linear address of RIP, and how many bytes from there on can belong to an instruction.
fn window(vcpu: &Vcpu<'_>, limit: u32) -> Result<(u64, usize), Stop> {
    let rip = vcpu.registers.rip;
    if vcpu.code_width() == CodeWidth::Bits64 {
        return Ok((rip, MAX_INSTRUCTION_BYTES));
    }
    let offset = rip & u64::from(u32::MAX);
    let past = (u64::from(limit) + 1).checked_sub(offset).filter(|&past| past != 0);
    let past = past.ok_or_else(|| vcpu.fault(GENERAL_PROTECTION))?;
    let available =
        usize::try_from(past).map_or(MAX_INSTRUCTION_BYTES, |past| past.min(MAX_INSTRUCTION_BYTES));
    Ok((vcpu.linear(vcpu.mode.cs_base.wrapping_add(offset)), available))
}

/// The instruction at RIP.
pub(super) fn decode<M: CodeMemory>(
    vcpu: &Vcpu<'_>,
    memory: &mut M,
    limit: u32,
) -> Result<(Instruction, Encoding), Stop> {
    parse(vcpu, memory, limit, |bytes| decode_bytes(vcpu, bytes))
}

/// The instruction that these bytes begin with. AMD's decoding is chosen for its `LOCK MOV CR0`, which is CR8; on a
/// processor that has no such instruction it never made an exit.
pub(super) fn decode_bytes(vcpu: &Vcpu<'_>, bytes: &[u8]) -> Parsed<(Instruction, Encoding)> {
    let bits = vcpu.code_width().bits();
    let Ok(mut decoder) = Decoder::try_with_ip(bits, bytes, vcpu.registers.rip, DecoderOptions::AMD) else {
        return Parsed::Fault(INVALID_OPCODE);
    };
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {
            let mut encoding = Encoding::default();
            for (to, from) in encoding.bytes.iter_mut().zip(bytes.iter().take(instruction.len())) {
                *to = *from;
                encoding.length += 1;
            }
            Parsed::Instruction((instruction, encoding))
        }
        DecoderError::NoMoreBytes => Parsed::Short,
        // All 15 bytes and no end of it (AMD APM 2, 8.2.14).
        _ if instruction.len() >= MAX_INSTRUCTION_BYTES => Parsed::Fault(GENERAL_PROTECTION),
        _ => Parsed::Fault(INVALID_OPCODE),
    }
}
