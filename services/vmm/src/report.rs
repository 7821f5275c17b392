//! What the log says of a guest that crashed.

use alloc::vec::Vec;
use vmm::machine::{Console, Report};

/// The longest piece of text in one record.
const PIECE: usize = 200;

/// Writes a report to the log.
pub fn tell(report: &Report, console: &Console) {
    let r = &report.registers;
    defmt::error!(
        "vCPU {=usize}: rip {=u64:x} rflags {=u64:x} rsp {=u64:x}, code {=[u8]:x}",
        report.vcpu,
        r.rip,
        r.rflags,
        r.rsp,
        report.code.get(..report.code_bytes).unwrap_or(&[])
    );
    defmt::error!(
        "rax {=u64:x} rbx {=u64:x} rcx {=u64:x} rdx {=u64:x} rsi {=u64:x} rdi {=u64:x} rbp {=u64:x}",
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp
    );
    defmt::error!(
        "r8 {=u64:x} r9 {=u64:x} r10 {=u64:x} r11 {=u64:x} r12 {=u64:x} r13 {=u64:x} r14 {=u64:x} r15 {=u64:x}",
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15
    );
    let (mode, system) = (&report.mode, &report.system);
    defmt::error!(
        "cr0 {=u64:x} cr2 {=u64:x} cr3 {=u64:x} cr4 {=u64:x} efer {=u64:x} cpl {=u32}",
        mode.cr0,
        system.cr2,
        mode.cr3,
        mode.cr4,
        mode.efer,
        mode.cpl
    );
    defmt::error!(
        "cs {=u16:x} base {=u64:x} ss {=u16:x} gdtr {=u64:x} idtr {=u64:x} gs {=u64:x} kernel gs {=u64:x}",
        system.cs.selector,
        system.cs.base,
        system.ss.selector,
        system.gdtr.base,
        system.idtr.base,
        system.gs.base,
        system.kernel_gs_base
    );
    let tail: Vec<u8> = console.tail().collect();
    for piece in tail.chunks(PIECE) {
        defmt::error!("console: {=str}", piece.utf8_chunks().next().map_or("", |chunk| chunk.valid()));
    }
}
