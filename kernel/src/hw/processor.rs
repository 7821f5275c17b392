//! The control registers of a core: protections that the processor offers are on, and nothing else is.
#![expect(unsafe_code, reason = "control registers")]

use kernel::paging::host::PAT;

use super::instructions::{cpuid, write_cr0, write_cr4, write_msr};

/// IA32_PAT.
const MSR_PAT: u32 = 0x277;
/// PG, WP, NE, ET, MP, PE: caches on, FPU on, the kernel bound by page rights.
const CR0: u64 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT. OSXSAVE and FSGSBASE stay off: the entry code relies on both.
const CR4: u64 = 0x0620;
const CR4_MACHINE_CHECK: u64 = 1 << 6;
const CR4_GLOBAL_PAGES: u64 = 1 << 7;
const CR4_UMIP: u64 = 1 << 11;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// Sets this core's control registers by what CPUID says (Intel SDM 2A, CPUID leaves 1 and 7).
pub fn protect() {
    let basic = cpuid(1, 0);
    let extended = if cpuid(0, 0)[0] >= 7 { cpuid(7, 0) } else { [0; 4] };
    let offered = [
        (basic[3] >> 7, CR4_MACHINE_CHECK),
        (basic[3] >> 13, CR4_GLOBAL_PAGES),
        (extended[2] >> 2, CR4_UMIP),
        (extended[1] >> 7, CR4_SMEP),
        (extended[1] >> 20, CR4_SMAP),
    ];
    let cr4 = offered.iter().filter(|(has, _)| has & 1 != 0).fold(CR4, |bits, (_, bit)| bits | bit);
    // SAFETY: paging stays on; the kernel writes to no read-only page.
    unsafe { write_cr0(CR0) };
    // SAFETY: the processor has all of these, and no kernel code touches or runs user pages.
    unsafe { write_cr4(cr4) };
    // SAFETY: every processor in long mode has the register, and no page was mapped through an entry that changes.
    unsafe { write_msr(MSR_PAT, PAT) };
}

/// Whether pages of 1 GiB can be mapped.
#[must_use]
pub fn has_gigabyte_pages() -> bool {
    cpuid(0x8000_0001, 0)[3] >> 26 & 1 != 0
}

/// This core's local APIC number: 32 bits where the processor tells them (leaf 0xb), else 8.
#[must_use]
pub fn apic_id() -> u32 {
    if cpuid(0, 0)[0] >= 0xb {
        let topology = cpuid(0xb, 0);
        if topology[1] != 0 {
            return topology[3];
        }
    }
    cpuid(1, 0)[1] >> 24
}
