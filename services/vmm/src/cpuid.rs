//! What CPUID shows (AMD APM 3, appendix E; Intel SDM 2A, CPUID; Linux, Documentation/virt/kvm/x86/cpuid.rst).
//!
//! A [`Table`] is made once for a guest from what the node has ([`build`]): features that the guest can use without our
//! help are passed through by a list of names, so that what is new and unknown stays hidden ([`features`]). A look-up is two
//! array accesses; what depends on the moment (APIC, CR4, XCR0) is put in then.
//!
//! Each vCPU is a core of its own. Which of them are one package their APIC IDs say ([`crate::topology`]).

mod build;
mod features;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::num::NonZeroU64;

/// EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// Whose rules the processor follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel and all others.
    Intel,
}

/// Whether process-context identifiers are shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pcid {
    /// Never.
    Hidden,
    /// If the node has them.
    AsNode,
    /// Always: CR3 is virtualised. INVPCID still only if the node has it.
    Always,
}

/// What the guest is, as far as CPUID says it.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// vCPUs of the package, 1 to 255.
    pub vcpus: u8,
    /// Bits of an APIC ID that number the vCPUs of a package, enough for those, 8 at most.
    pub core_bits: u32,
    /// Bits of an APIC ID that number the vCPUs that share a last-level cache, from 0 to `core_bits`.
    pub cache_bits: u32,
    /// Ticks of the TSC in a second.
    pub tsc_hz: NonZeroU64,
    /// See there.
    pub pcid: Pcid,
}

/// What changes while a vCPU runs.
#[derive(Clone, Copy, Debug)]
pub struct Dynamic {
    /// The vCPU's APIC ID.
    pub apic_id: u32,
    /// Its CR4.
    pub cr4: u64,
    /// Its XCR0.
    pub xcr0: u64,
    /// Whether IA32_APIC_BASE has the APIC on.
    pub apic: Apic,
}

/// The global enable bit of IA32_APIC_BASE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Apic {
    /// On.
    Enabled,
    /// Off: CPUID shows no APIC.
    Disabled,
}

/// The kernel's area for a vCPU's extended state, in XSAVE's standard format, is so large.
pub const XSAVE_AREA_BYTES: u32 = 2752;
/// The frequency of the APIC's timer, which leaf 0x40000010 tells.
pub const APIC_BUS_HZ: u32 = 1_000_000_000;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// The XSAVE area of x87 and SSE with its header.
const XSAVE_LEGACY_BYTES: u32 = 576;
/// Components of the extended state that can be shown: x87 to PKRU.
const COMPONENTS: usize = 10;

const BASIC_LEAVES: usize = 0x20;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_LEAVES: usize = 0x11;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_LEAVES: usize = 0x22;

/// What is put in at look-up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Patch {
    None,
    /// Leaf 1: the APIC's number and presence, OSXSAVE.
    Features,
    /// Leaf 7: OSPKE.
    MoreFeatures,
    /// Leaf 0xb: the APIC's number, the subleaf.
    Topology,
    /// Leaf 0xd: sizes.
    Xsave,
    /// Leaf 0x80000001 of AMD: the APIC's presence.
    ExtendedFeatures,
    /// Leaf 0x8000001e: the APIC's number.
    ExtendedTopology,
}

/// Where a leaf is in the table.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u16,
    /// Subleaves; 0 is a leaf of zeros.
    count: u16,
    /// Whether ECX chooses; otherwise all subleaves are the first.
    is_indexed: bool,
    patch: Patch,
}

impl Slot {
    const ZEROS: Self = Self { first: 0, count: 0, is_indexed: false, patch: Patch::None };
}

/// A component of the extended state.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    offset: u32,
    bytes: u32,
    /// In the compacted format it begins at a multiple of 64.
    is_aligned: bool,
}

/// All leaves of a guest.
#[derive(Clone, Debug)]
pub struct Table {
    vendor: Vendor,
    basic: [Slot; BASIC_LEAVES],
    hypervisor: [Slot; HYPERVISOR_LEAVES],
    extended: [Slot; EXTENDED_LEAVES],
    /// For leaves that are in no range: zeros on AMD, the highest basic leaf on Intel.
    beyond: Slot,
    values: Vec<Registers>,
    /// Bits of an APIC ID that number the vCPUs of a package.
    core_bits: u32,
    xcr0: u64,
    components: [Component; COMPONENTS],
}

impl Table {
    /// The table of a guest on a node whose own CPUID is `node(leaf, subleaf)`.
    #[must_use]
    pub fn new(node: impl Fn(u32, u32) -> Registers, policy: &Policy) -> Self {
        build::table(&node, policy)
    }

    /// What CPUID returns.
    #[must_use]
    #[inline]
    pub fn lookup(&self, leaf: u32, subleaf: u32, dynamic: &Dynamic) -> Registers {
        let slots: &[Slot] = match leaf & 0xf000_0000 {
            0 => &self.basic,
            HYPERVISOR => &self.hypervisor,
            EXTENDED => &self.extended,
            _ => &[],
        };
        let slot = slots.get((leaf & 0x0fff_ffff) as usize).unwrap_or(&self.beyond);
        let index = if slot.is_indexed { subleaf } else { 0 };
        let mut registers = if index < u32::from(slot.count) {
            let at = usize::from(slot.first) + index as usize;
            self.values.get(at).copied().unwrap_or_default()
        } else {
            Registers::default()
        };
        let [_, ebx, ecx, edx] = &mut registers;
        match slot.patch {
            Patch::None => {}
            Patch::Features => {
                *ebx |= dynamic.apic_id << 24;
                if dynamic.cr4 & CR4_OSXSAVE != 0 && *ecx & features::XSAVE != 0 {
                    *ecx |= features::OSXSAVE;
                }
                *edx &= features::without_apic(dynamic.apic);
            }
            Patch::MoreFeatures => {
                if subleaf == 0 && dynamic.cr4 & CR4_PKE != 0 && *ecx & features::PKU != 0 {
                    *ecx |= features::OSPKE;
                }
            }
            Patch::Topology => {
                *ecx |= subleaf & 0xff;
                *edx = dynamic.apic_id;
            }
            Patch::Xsave => match subleaf {
                0 => *ebx = self.standard_bytes(dynamic.xcr0),
                1 if *ebx != 0 => *ebx = self.compacted_bytes(dynamic.xcr0),
                _ => {}
            },
            Patch::ExtendedFeatures => *edx &= features::without_apic(dynamic.apic),
            Patch::ExtendedTopology => {
                // The core's number in its package, and the package's as that of the only node in it.
                *ebx |= dynamic.apic_id & ((1 << self.core_bits) - 1);
                *ecx |= dynamic.apic_id >> self.core_bits & 0xff;
                return [dynamic.apic_id, *ebx, *ecx, *edx];
            }
        }
        registers
    }

    /// Whose rules the processor follows.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The bits of EFER that the guest may write.
    #[must_use]
    pub fn efer(&self) -> u64 {
        let dynamic = Dynamic { apic_id: 0, cr4: 0, xcr0: 0, apic: Apic::Enabled };
        let [_, _, _, edx] = self.lookup(EXTENDED + 1, 0, &dynamic);
        features::EFER.iter().filter(|(feature, _)| edx & feature != 0).map(|(_, bit)| bit).sum()
    }

    /// The bits of XCR0 that the guest may set; 0 when it has no XSAVE.
    #[must_use]
    pub const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Whether `XSETBV` takes this value for XCR0 (Intel SDM 1, 13.3): x87 always, AVX only with SSE, the three parts of
    /// AVX-512 only together and with AVX.
    #[must_use]
    pub const fn accepts_xcr0(&self, value: u64) -> bool {
        use features::{XCR0_AVX, XCR0_AVX512, XCR0_SSE, XCR0_X87};
        let avx512 = value & XCR0_AVX512;
        value & !self.xcr0 == 0
            && value & XCR0_X87 != 0
            && (value & XCR0_AVX == 0 || value & XCR0_SSE != 0)
            && (avx512 == 0 || avx512 == XCR0_AVX512 && value & XCR0_AVX != 0)
    }

    /// The end of the last component that is on, in the standard format.
    fn standard_bytes(&self, xcr0: u64) -> u32 {
        self.components_of(xcr0).map(|part| part.offset + part.bytes).fold(XSAVE_LEGACY_BYTES, u32::max)
    }

    /// The same in the compacted format.
    fn compacted_bytes(&self, xcr0: u64) -> u32 {
        self.components_of(xcr0).fold(XSAVE_LEGACY_BYTES, |end, part| {
            let start = if part.is_aligned { end.next_multiple_of(64) } else { end };
            start + part.bytes
        })
    }

    fn components_of(&self, xcr0: u64) -> impl Iterator<Item = &Component> {
        self.components
            .iter()
            .enumerate()
            .skip(2)
            .filter(move |(bit, _)| xcr0 >> bit & 1 != 0)
            .map(|(_, part)| part)
    }
}
