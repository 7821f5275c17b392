//! CPUID with any leaf.
#![expect(unsafe_code, reason = "the instruction itself")]

use core::arch::asm;

use anyhow::{Result, ensure};
use guest_kit::random::Random;

/// Where leaves are likely.
const BASES: [u64; 5] = [0, 0x4000_0000, 0x8000_0000, 0x2000_0000, 0xc000_0000];

/// All of RAX, RBX, RCX and RDX after CPUID with these in RAX and RCX.
fn cpuid(rax: u64, rcx: u64) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = [rax, !0, rcx, !0];
    // SAFETY: changes these four registers; RBX, which the compiler keeps, is exchanged around it.
    unsafe {
        asm!("xchg {b}, rbx", "cpuid", "xchg {b}, rbx", b = inout(reg) b,
            inout("rax") a, inout("rcx") c, inout("rdx") d, options(nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Random leaves: the answer is the same each time and fills 32 bits of each register.
pub fn run(random: &mut Random, iterations: u64) -> Result<String> {
    for _ in 0..iterations {
        let number = random.number();
        let leaf = match number & 3 {
            0 => random.number(),
            1 => random.below(0x30),
            _ => BASES[random.index(BASES.len())] + random.below(0x30),
        };
        let subleaf = if number & 4 == 0 { random.below(8) } else { random.number() };
        let answer = cpuid(leaf, subleaf);
        ensure!(
            answer.iter().all(|&register| register >> 32 == 0),
            "leaf {leaf:#x}/{subleaf:#x}: {answer:x?}"
        );
        // The upper half of either register plays no part. Leaf 8000_001e and others may differ only between processors.
        let again = cpuid(leaf & 0xffff_ffff, subleaf & 0xffff_ffff);
        ensure!(answer == again, "leaf {leaf:#x}/{subleaf:#x}: {answer:x?}, then {again:x?}");
    }
    Ok(iterations.to_string())
}
