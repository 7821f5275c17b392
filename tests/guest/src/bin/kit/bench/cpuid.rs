//! What a CPUID costs: the shortest way out of guest mode and back.
#![expect(unsafe_code, reason = "the instructions themselves")]

use core::arch::asm;

use anyhow::Result;

use super::{median, report};
use crate::options::Options;
use crate::sys::cpu;

macro_rules! ticks_of {
    ($leaf:expr, $($code:literal),*) => {{
        let ticks: u64;
        // SAFETY: reads a counter and changes the declared registers; RBX, which the compiler keeps, is put back.
        unsafe {
            asm!(
                "mov r8, rbx",
                "rdtsc",
                "mov r9d, eax",
                "mov r10d, edx",
                "mov eax, r11d",
                "xor ecx, ecx",
                $($code,)*
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "shl r10, 32",
                "or r9, r10",
                "sub rax, r9",
                "mov rbx, r8",
                out("rax") ticks, out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _,
                in("r11") u64::from($leaf),
                options(nomem, nostack),
            );
        }
        ticks
    }};
}

pub fn run(options: &Options) -> Result<()> {
    cpu::pin(cpu::cpus()?[0])?;
    let runs = options.iterations(1_000);
    for (name, leaf) in [("cpuid-0", 0u32), ("cpuid-40000000", 0x4000_0000)] {
        let mut empty: Vec<u64> = (0..runs).map(|_| ticks_of!(leaf,)).collect();
        let mut with: Vec<u64> = (0..runs).map(|_| ticks_of!(leaf, "cpuid")).collect();
        // Both are sorted after this, so the first is the least.
        let medians = median(&mut with).saturating_sub(median(&mut empty));
        report(&format!("{name}-min"), with[0].saturating_sub(empty[0]));
        report(&format!("{name}-median"), medians);
        report(&format!("{name}-overhead"), empty[0]);
    }
    Ok(())
}
