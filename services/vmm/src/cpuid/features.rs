//! The features that are passed through, by name.
//!
//! Hidden are: what we do not virtualise (SVM, VMX, SGX, SMX, PT, RDT, DS, performance counters, APERF/MPERF, thermal and
//! power control, MONITOR, TSX, MPX, CET, AMX, LAM, supervisor states, 5-level paging, memory encryption); what would need
//! registers that are not switched (TSC_AUX for RDTSCP and RDPID, SPEC_CTRL and its like); MTRRs, which do nothing under
//! nested paging but cost each vCPU's start several flushes of all caches; and all that these lists do not know.

use super::Apic;

/// A mask of the bits named.
const fn bits(named: &[(u32, &str)]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < named.len() {
        mask |= 1 << named[at].0;
        at += 1;
    }
    mask
}

/// Leaf 1, ECX.
pub const LEAF_1_ECX: u32 = bits(&[
    (0, "SSE3"),
    (1, "PCLMULQDQ"),
    (9, "SSSE3"),
    (12, "FMA"),
    (13, "CMPXCHG16B"),
    (19, "SSE4.1"),
    (20, "SSE4.2"),
    (22, "MOVBE"),
    (23, "POPCNT"),
    (25, "AESNI"),
    (26, "XSAVE"),
    (28, "AVX"),
    (29, "F16C"),
    (30, "RDRAND"),
]);
/// Leaf 1, ECX: shown always, for they are ours.
pub const LEAF_1_ECX_ALWAYS: u32 = bits(&[(21, "x2APIC"), (24, "TSC deadline"), (31, "hypervisor")]);
pub const PCID: u32 = 1 << 17;
pub const XSAVE: u32 = 1 << 26;
pub const OSXSAVE: u32 = 1 << 27;

/// Leaf 1, EDX.
pub const LEAF_1_EDX: u32 = bits(&[
    (0, "FPU"),
    (1, "VME"),
    (2, "DE"),
    (3, "PSE"),
    (4, "TSC"),
    (5, "MSR"),
    (6, "PAE"),
    (7, "MCE"),
    (8, "CMPXCHG8B"),
    (11, "SEP"),
    (13, "PGE"),
    (14, "MCA"),
    (15, "CMOV"),
    (16, "PAT"),
    (17, "PSE-36"),
    (19, "CLFLUSH"),
    (23, "MMX"),
    (24, "FXSR"),
    (25, "SSE"),
    (26, "SSE2"),
    (27, "self-snoop"),
]);
pub const APIC: u32 = 1 << 9;
/// Several logical processors in the package.
pub const HTT: u32 = 1 << 28;

/// Leaf 6, EAX: the APIC's timer never stops.
pub const ARAT: u32 = 1 << 2;

/// Leaf 7.0, EBX.
pub const LEAF_7_EBX: u32 = bits(&[
    (0, "FSGSBASE"),
    (3, "BMI1"),
    (5, "AVX2"),
    (6, "FDP_EXCPTN_ONLY"),
    (7, "SMEP"),
    (8, "BMI2"),
    (9, "ERMS"),
    (13, "no FPU CS and DS"),
    (16, "AVX512F"),
    (17, "AVX512DQ"),
    (18, "RDSEED"),
    (19, "ADX"),
    (20, "SMAP"),
    (21, "AVX512_IFMA"),
    (23, "CLFLUSHOPT"),
    (24, "CLWB"),
    (26, "AVX512PF"),
    (27, "AVX512ER"),
    (28, "AVX512CD"),
    (29, "SHA"),
    (30, "AVX512BW"),
    (31, "AVX512VL"),
]);
/// Leaf 7.0, EBX: IA32_TSC_ADJUST, shown always. Linux then trusts the TSC without watching it.
pub const TSC_ADJUST: u32 = 1 << 1;
pub const INVPCID: u32 = 1 << 10;
const LEAF_7_EBX_AVX: u32 = bits(&[(5, "AVX2")]);
const LEAF_7_EBX_AVX512: u32 = bits(&[
    (16, "AVX512F"),
    (17, "AVX512DQ"),
    (21, "AVX512_IFMA"),
    (26, "AVX512PF"),
    (27, "AVX512ER"),
    (28, "AVX512CD"),
    (30, "AVX512BW"),
    (31, "AVX512VL"),
]);

/// Leaf 7.0, ECX.
pub const LEAF_7_ECX: u32 = bits(&[
    (0, "PREFETCHWT1"),
    (1, "AVX512_VBMI"),
    (2, "UMIP"),
    (3, "PKU"),
    (6, "AVX512_VBMI2"),
    (8, "GFNI"),
    (9, "VAES"),
    (10, "VPCLMULQDQ"),
    (11, "AVX512_VNNI"),
    (12, "AVX512_BITALG"),
    (14, "AVX512_VPOPCNTDQ"),
    (25, "CLDEMOTE"),
    (27, "MOVDIRI"),
    (28, "MOVDIR64B"),
]);
pub const PKU: u32 = 1 << 3;
pub const OSPKE: u32 = 1 << 4;
const LEAF_7_ECX_AVX: u32 = bits(&[(9, "VAES"), (10, "VPCLMULQDQ")]);
const LEAF_7_ECX_AVX512: u32 =
    bits(&[(1, "VBMI"), (6, "VBMI2"), (11, "VNNI"), (12, "BITALG"), (14, "VPOPCNTDQ")]);

/// Leaf 7.0, EDX.
pub const LEAF_7_EDX: u32 = bits(&[
    (2, "AVX512_4VNNIW"),
    (3, "AVX512_4FMAPS"),
    (4, "FSRM"),
    (8, "AVX512_VP2INTERSECT"),
    (10, "MD_CLEAR"),
    (14, "SERIALIZE"),
    (23, "AVX512_FP16"),
]);
const LEAF_7_EDX_AVX512: u32 = bits(&[(2, "4VNNIW"), (3, "4FMAPS"), (8, "VP2INTERSECT"), (23, "FP16")]);

/// Leaf 7.1, EAX.
pub const LEAF_7_1_EAX: u32 = bits(&[
    (4, "AVX-VNNI"),
    (5, "AVX512_BF16"),
    (7, "CMPCCXADD"),
    (10, "fast zero-length REP MOVSB"),
    (11, "fast short REP STOSB"),
    (12, "fast short REP CMPSB and SCASB"),
    (23, "AVX-IFMA"),
]);
const LEAF_7_1_EAX_AVX: u32 = bits(&[(4, "AVX-VNNI"), (23, "AVX-IFMA")]);
const LEAF_7_1_EAX_AVX512: u32 = bits(&[(5, "AVX512_BF16")]);
/// Leaf 7.1, EDX.
pub const LEAF_7_1_EDX: u32 =
    bits(&[(4, "AVX-VNNI-INT8"), (5, "AVX-NE-CONVERT"), (10, "AVX-VNNI-INT16"), (14, "PREFETCHI")]);
const LEAF_7_1_EDX_AVX: u32 = bits(&[(4, "AVX-VNNI-INT8"), (5, "AVX-NE-CONVERT"), (10, "AVX-VNNI-INT16")]);

/// Leaf 0xd.1, EAX. Without XSAVES there is no supervisor state.
pub const LEAF_D_1_EAX: u32 = bits(&[(0, "XSAVEOPT"), (1, "XSAVEC"), (2, "XGETBV of 1")]);
pub const XSAVEC: u32 = 1 << 1;

/// Leaf 0x80000001, ECX.
pub const EXTENDED_1_ECX: u32 = bits(&[
    (0, "LAHF in 64 bits"),
    (4, "CR8 in 32 bits"),
    (5, "LZCNT"),
    (6, "SSE4A"),
    (7, "misaligned SSE"),
    (8, "PREFETCHW"),
    (11, "XOP"),
    (16, "FMA4"),
    (21, "TBM"),
    (22, "topology extensions"),
]);
/// Leaf 0x80000001, ECX of AMD: with [`HTT`], the processors of the package are cores.
pub const CMP_LEGACY: u32 = 1 << 1;
pub const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const EXTENDED_1_ECX_AVX: u32 = bits(&[(11, "XOP"), (16, "FMA4")]);

/// Leaf 0x80000001, EDX; AMD repeats much of leaf 1.
pub const EXTENDED_1_EDX: u32 = LEAF_1_EDX
    & bits(&[
        (0, "FPU"),
        (1, "VME"),
        (2, "DE"),
        (3, "PSE"),
        (4, "TSC"),
        (5, "MSR"),
        (6, "PAE"),
        (7, "MCE"),
        (8, "CMPXCHG8B"),
        (13, "PGE"),
        (14, "MCA"),
        (15, "CMOV"),
        (16, "PAT"),
        (17, "PSE-36"),
        (23, "MMX"),
        (24, "FXSR"),
    ])
    | bits(&[
        (11, "SYSCALL"),
        (20, "NX"),
        (22, "MMX extensions"),
        (25, "fast FXSAVE"),
        (26, "1 GiB pages"),
        (29, "long mode"),
        (30, "3DNow! extensions"),
        (31, "3DNow!"),
    ]);
const SYSCALL: u32 = 1 << 11;
const NX: u32 = 1 << 20;
const FAST_FXSAVE: u32 = 1 << 25;
const LONG_MODE: u32 = 1 << 29;

/// The feature that each writable bit of EFER needs: SCE, LME, NXE, FFXSR.
pub const EFER: [(u32, u64); 4] = [(SYSCALL, 1), (LONG_MODE, 1 << 8), (NX, 1 << 11), (FAST_FXSAVE, 1 << 14)];

/// Leaf 0x80000007, EDX.
pub const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 0x80000008, EBX.
pub const EXTENDED_8_EBX: u32 =
    bits(&[(0, "CLZERO"), (2, "FXSAVE always saves error pointers"), (9, "WBNOINVD"), (20, "no EFER.LMSLE")]);

/// Leaf 0x8000001a, EAX: what is fast.
pub const EXTENDED_1A_EAX: u32 = bits(&[(0, "FP128"), (1, "MOVU"), (2, "FP256")]);

/// Leaf 0x80000021, EAX.
pub const EXTENDED_21_EAX: u32 = bits(&[
    (0, "no nested data breakpoints"),
    (1, "WRMSR to bases does not serialise"),
    (2, "LFENCE serialises"),
    (6, "null selectors clear the base"),
    (10, "fast short REP STOSB"),
    (11, "fast short REP CMPSB"),
]);

/// Leaf 0x40000001, EAX: what of KVM's interface there is. Never what makes shared pages written: PV-EOI, steal time,
/// asynchronous page faults.
pub const KVM_FEATURES: u32 = bits(&[
    (1, "no delay after port accesses"),
    (3, "clock, by the new MSRs"),
    (24, "the clock's flags count"),
]);

pub const XCR0_X87: u64 = 1;
pub const XCR0_SSE: u64 = 1 << 1;
pub const XCR0_AVX: u64 = 1 << 2;
pub const XCR0_AVX512: u64 = 7 << 5;
pub const XCR0_PKRU: u64 = 1 << 9;

/// The bits of EDX that stay when the APIC is off or on.
pub const fn without_apic(apic: Apic) -> u32 {
    match apic {
        Apic::Enabled => u32::MAX,
        Apic::Disabled => !APIC,
    }
}

/// What the extended state allows to be shown, as masks of the registers that depend on it.
pub struct StateMasks {
    pub leaf_1_ecx: u32,
    /// EBX, ECX, EDX.
    pub leaf_7: [u32; 3],
    /// EAX, EDX.
    pub leaf_7_1: [u32; 2],
    pub extended_1_ecx: u32,
}

impl StateMasks {
    /// The masks when these bits of XCR0 can be set; 0 is without XSAVE.
    pub const fn of(xcr0: u64) -> Self {
        const LEAF_1_ECX_AVX: u32 = bits(&[(12, "FMA"), (28, "AVX"), (29, "F16C")]);
        // All ones if the bits cannot be set, to pick what is then hidden.
        const fn lacking(xcr0: u64, bits: u64) -> u32 {
            if xcr0 & bits == bits { 0 } else { u32::MAX }
        }
        let xsave = lacking(xcr0, XCR0_X87);
        let avx = lacking(xcr0, XCR0_AVX);
        let avx512 = lacking(xcr0, XCR0_AVX512);
        let pkru = lacking(xcr0, XCR0_PKRU);
        Self {
            leaf_1_ecx: !(xsave & XSAVE | avx & LEAF_1_ECX_AVX),
            leaf_7: [
                !(avx & LEAF_7_EBX_AVX | avx512 & LEAF_7_EBX_AVX512),
                !(avx & LEAF_7_ECX_AVX | avx512 & LEAF_7_ECX_AVX512 | pkru & PKU),
                !(avx512 & LEAF_7_EDX_AVX512),
            ],
            leaf_7_1: [!(avx & LEAF_7_1_EAX_AVX | avx512 & LEAF_7_1_EAX_AVX512), !(avx & LEAF_7_1_EDX_AVX)],
            extended_1_ecx: !(avx & EXTENDED_1_ECX_AVX),
        }
    }
}
