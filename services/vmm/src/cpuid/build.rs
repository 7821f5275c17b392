//! Makes the table from what the node has.

use alloc::vec::Vec;

use super::features::{self, StateMasks};
use super::{
    APIC_BUS_HZ, BASIC_LEAVES, COMPONENTS, Component, EXTENDED, EXTENDED_LEAVES, HYPERVISOR,
    HYPERVISOR_LEAVES, Patch, Pcid, Policy, Registers, Slot, Table, Vendor, XSAVE_AREA_BYTES,
};

/// Leaves that describe caches: no processor has more.
const CACHES: u32 = 8;
/// The highest basic leaf shown: AMD's last is the extended state, Intel's the frequencies.
const BASIC_MAX_AMD: u32 = 0xd;
const BASIC_MAX_INTEL: u32 = 0x16;
/// The highest extended leaf shown.
const EXTENDED_MAX: u32 = EXTENDED + 0x21;
/// The highest leaf of KVM's: the frequencies.
const HYPERVISOR_MAX: u32 = HYPERVISOR + 0x10;

type Node<'a> = &'a dyn Fn(u32, u32) -> Registers;

struct Builder<'a> {
    node: Node<'a>,
    table: Table,
    vcpus: u32,
    core_bits: u32,
    cache_bits: u32,
    node_basic_max: u32,
    node_extended_max: u32,
}

pub fn table(node: Node<'_>, policy: &Policy) -> Table {
    let [basic_max, ebx, ecx, edx] = node(0, 0);
    let [extended_max, ..] = node(EXTENDED, 0);
    let vendor = match [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    };
    let vcpus = u32::from(policy.vcpus.max(1));
    let core_bits = policy.core_bits.clamp(vcpus.next_power_of_two().trailing_zeros(), 8);
    let table = Table {
        vendor,
        basic: [Slot::ZEROS; BASIC_LEAVES],
        hypervisor: [Slot::ZEROS; HYPERVISOR_LEAVES],
        extended: [Slot::ZEROS; EXTENDED_LEAVES],
        beyond: Slot::ZEROS,
        values: Vec::new(),
        core_bits,
        xcr0: 0,
        components: [Component::default(); COMPONENTS],
    };
    let mut builder = Builder {
        node,
        table,
        vcpus,
        core_bits,
        cache_bits: policy.cache_bits.min(core_bits),
        node_basic_max: basic_max,
        // A node without extended leaves answers with something else.
        node_extended_max: if extended_max & 0xffff_0000 == EXTENDED { extended_max } else { EXTENDED },
    };
    builder.extended_state();
    let shown = match vendor {
        Vendor::Amd => BASIC_MAX_AMD,
        Vendor::Intel => BASIC_MAX_INTEL,
    };
    builder.put(0, [shown, ebx, ecx, edx]);
    builder.features(policy.pcid);
    builder.topology();
    builder.caches();
    builder.frequencies(policy);
    builder.hypervisor(policy);
    builder.extended();
    builder.close(shown);
    builder.table
}

impl Builder<'_> {
    /// The node's leaf; zeros if it has not so many.
    fn node(&self, leaf: u32, subleaf: u32) -> Registers {
        let max = if leaf < EXTENDED { self.node_basic_max } else { self.node_extended_max };
        if leaf <= max { (self.node)(leaf, subleaf) } else { Registers::default() }
    }

    fn put(&mut self, leaf: u32, registers: Registers) {
        self.put_patched(leaf, registers, Patch::None);
    }

    fn put_patched(&mut self, leaf: u32, registers: Registers, patch: Patch) {
        self.put_slot(leaf, &[registers], Slot { is_indexed: false, patch, ..Slot::ZEROS });
    }

    fn put_indexed(&mut self, leaf: u32, subleaves: &[Registers], patch: Patch) {
        self.put_slot(leaf, subleaves, Slot { is_indexed: true, patch, ..Slot::ZEROS });
    }

    fn put_slot(&mut self, leaf: u32, values: &[Registers], slot: Slot) {
        let (slots, base): (&mut [Slot], u32) = match leaf & 0xf000_0000 {
            0 => (&mut self.table.basic, 0),
            HYPERVISOR => (&mut self.table.hypervisor, HYPERVISOR),
            _ => (&mut self.table.extended, EXTENDED),
        };
        // All leaves and subleaves together are less than two hundred.
        let first = u16::try_from(self.table.values.len());
        let (Some(place), Ok(first), Ok(count)) =
            (slots.get_mut((leaf - base) as usize), first, u16::try_from(values.len()))
        else {
            return;
        };
        *place = Slot { first, count, ..slot };
        self.table.values.extend_from_slice(values);
    }

    fn is_amd(&self) -> bool {
        self.table.vendor == Vendor::Amd
    }

    /// Leaf 0xd, and which parts of the state there are: those that the kernel's area has room for.
    fn extended_state(&mut self) {
        let [_, _, leaf_1_ecx, _] = self.node(1, 0);
        let [supported, _, _, _] = self.node(0xd, 0);
        let legacy = features::XCR0_X87 | features::XCR0_SSE;
        let supported = u64::from(supported);
        if leaf_1_ecx & features::XSAVE == 0 || supported & legacy != legacy {
            return;
        }
        let mut fits = legacy;
        let mut subleaves = [Registers::default(); COMPONENTS];
        for (bit, subleaf) in (0_u32..).zip(&mut subleaves).skip(2) {
            let [bytes, offset, flags, _] = self.node(0xd, bit);
            if bytes != 0 && offset.checked_add(bytes).is_some_and(|end| end <= XSAVE_AREA_BYTES) {
                fits |= 1 << bit;
                *subleaf = [bytes, offset, flags & 2, 0];
            }
        }
        let mut xcr0 = legacy;
        // Each only as a whole, and AVX-512 only on top of AVX.
        let [_, _, leaf_7_ecx, _] = self.node(7, 0);
        let has_keys = leaf_7_ecx & features::PKU != 0;
        for (part, wanted) in [
            (features::XCR0_AVX, true),
            (features::XCR0_AVX512, supported & fits & features::XCR0_AVX != 0),
            (features::XCR0_PKRU, has_keys),
        ] {
            if wanted && supported & fits & part == part {
                xcr0 |= part;
            }
        }
        for (bit, subleaf) in subleaves.iter_mut().enumerate().skip(2) {
            if xcr0 >> bit & 1 == 0 {
                *subleaf = Registers::default();
            }
            let [bytes, offset, flags, _] = *subleaf;
            if let Some(component) = self.table.components.get_mut(bit) {
                *component = Component { offset, bytes, is_aligned: flags & 2 != 0 };
            }
        }
        self.table.xcr0 = xcr0;
        let all = self.table.standard_bytes(xcr0);
        let [formats, ..] = self.node(0xd, 1);
        let formats = formats & features::LEAF_D_1_EAX;
        // The size of the compacted format is told only if there is one.
        let compacted = if formats & features::XSAVEC != 0 { self.table.compacted_bytes(xcr0) } else { 0 };
        #[expect(clippy::cast_possible_truncation, reason = "bits 0 to 9")]
        let low = xcr0 as u32;
        let [first, second, ..] = &mut subleaves;
        *first = [low, 0, all, 0];
        *second = [formats, compacted, 0, 0];
        self.put_indexed(0xd, &subleaves, Patch::Xsave);
    }

    /// Leaves 1, 2, 6 and 7.
    fn features(&mut self, pcid: Pcid) {
        let masks = StateMasks::of(self.table.xcr0);
        let [signature, ebx, node_ecx, edx] = self.node(1, 0);
        let shows_pcid = match pcid {
            Pcid::Hidden => false,
            Pcid::AsNode => node_ecx & features::PCID != 0,
            Pcid::Always => true,
        };
        let mut ecx = node_ecx & features::LEAF_1_ECX & masks.leaf_1_ecx | features::LEAF_1_ECX_ALWAYS;
        ecx |= if shows_pcid { features::PCID } else { 0 };
        let mut edx = edx & features::LEAF_1_EDX | features::APIC;
        edx |= if self.vcpus > 1 { features::HTT } else { 0 };
        // AMD counts the processors, Intel the numbers that they can have.
        let numbers = if self.is_amd() { self.vcpus } else { (1 << self.core_bits).min(255) };
        let ebx = ebx & 0xffff | numbers << 16;
        self.put_patched(1, [signature, ebx, ecx, edx], Patch::Features);
        if !self.is_amd() {
            // TLBs and caches as numbers of a list.
            let descriptors = self.node(2, 0);
            self.put(2, descriptors);
        }
        self.put(6, [features::ARAT, 0, 0, 0]);

        let [max, ebx, ecx, edx] = self.node(7, 0);
        let mut ebx =
            ebx & (features::LEAF_7_EBX | features::INVPCID) & masks.leaf_7[0] | features::TSC_ADJUST;
        if !shows_pcid {
            ebx &= !features::INVPCID;
        }
        let ecx = ecx & features::LEAF_7_ECX & masks.leaf_7[1];
        let edx = edx & features::LEAF_7_EDX & masks.leaf_7[2];
        let mut subleaves = Vec::from([[0, ebx, ecx, edx]]);
        if max >= 1 {
            let [eax, _, _, edx] = self.node(7, 1);
            subleaves[0][0] = 1;
            subleaves.push([
                eax & features::LEAF_7_1_EAX & masks.leaf_7_1[0],
                0,
                0,
                edx & features::LEAF_7_1_EDX & masks.leaf_7_1[1],
            ]);
        }
        self.put_indexed(7, &subleaves, Patch::MoreFeatures);
    }

    /// Leaf 0xb: one thread in a core, all cores in the package.
    fn topology(&mut self) {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        let threads = [0, 1, THREADS, 0];
        let cores = [self.core_bits, self.vcpus, CORES, 0];
        self.put_indexed(0xb, &[threads, cores], Patch::Topology);
    }

    /// Leaf 4 of Intel, 0x8000001d of AMD: the node's caches, shared by whom we say.
    fn caches(&mut self) {
        let leaf = if self.is_amd() { EXTENDED + 0x1d } else { 4 };
        let mut subleaves = Vec::new();
        for subleaf in 0..CACHES {
            let [eax, ebx, ecx, edx] = self.node(leaf, subleaf);
            if eax & 0x1f == 0 {
                break;
            }
            let sharers = if eax >> 5 & 7 >= 3 { 1 << self.cache_bits } else { 1 };
            let cores = if self.is_amd() { 0 } else { ((1 << self.core_bits) - 1).min(63) };
            subleaves.push([eax & 0x3ff | (sharers - 1) << 14 | cores << 26, ebx, ecx, edx & 7]);
        }
        self.put_indexed(leaf, &subleaves, Patch::None);
    }

    /// Leaves 0x15 and 0x16, which only Intel defines.
    fn frequencies(&mut self, policy: &Policy) {
        if self.is_amd() {
            return;
        }
        // The crystal is the APIC's clock (Intel SDM 3A, 11.5.4); the TSC's rate is an exact fraction of it.
        let tsc_hz = policy.tsc_hz.get();
        let (mut divisor, mut rest) = (tsc_hz, u64::from(APIC_BUS_HZ));
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        let numerator = u32::try_from(tsc_hz / divisor);
        let denominator = u32::try_from(u64::from(APIC_BUS_HZ) / divisor);
        if let (Ok(numerator), Ok(denominator)) = (numerator, denominator) {
            self.put(0x15, [denominator, numerator, APIC_BUS_HZ, 0]);
        }
        let [_, max, bus, _] = self.node(0x16, 0);
        let base = u32::try_from(tsc_hz / 1_000_000).unwrap_or(0xffff).min(0xffff);
        self.put(0x16, [base, (max & 0xffff).max(base), bus & 0xffff, 0]);
    }

    /// KVM's leaves.
    fn hypervisor(&mut self, policy: &Policy) {
        const SIGNATURE: [u32; 3] =
            [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];
        let [ebx, ecx, edx] = SIGNATURE;
        self.put(HYPERVISOR, [HYPERVISOR_MAX, ebx, ecx, edx]);
        self.put(HYPERVISOR + 1, [features::KVM_FEATURES, 0, 0, 0]);
        let tsc_khz = u32::try_from(policy.tsc_hz.get() / 1000).unwrap_or(u32::MAX);
        self.put(HYPERVISOR_MAX, [tsc_khz, APIC_BUS_HZ / 1000, 0, 0]);
    }

    /// Leaves from 0x80000000 on, but for AMD's caches.
    fn extended(&mut self) {
        let [_, ebx, ecx, edx] = self.node(EXTENDED, 0);
        let max = self.node_extended_max.min(EXTENDED_MAX);
        self.put(EXTENDED, [max, ebx, ecx, edx]);

        let [signature, ebx, node_ecx, node_edx] = self.node(EXTENDED + 1, 0);
        let mut ecx = node_ecx & features::EXTENDED_1_ECX & StateMasks::of(self.table.xcr0).extended_1_ecx;
        let mut edx = node_edx & features::EXTENDED_1_EDX;
        if self.is_amd() {
            edx |= node_edx & features::APIC;
            ecx |= if self.vcpus > 1 { features::CMP_LEGACY } else { 0 };
        } else {
            ecx &= !features::TOPOLOGY_EXTENSIONS;
        }
        self.put_patched(EXTENDED + 1, [signature, ebx, ecx, edx], Patch::ExtendedFeatures);

        // The processor's name, then L1 caches and TLBs as they are.
        for leaf in EXTENDED + 2..=EXTENDED + 5 {
            let registers = self.node(leaf, 0);
            self.put(leaf, registers);
        }
        // L2 and L3. Old AMD processors have one L3 for the package, and Linux finds that here: not in a package of nodes.
        let [eax, ebx, ecx, edx] = self.node(EXTENDED + 6, 0);
        let edx = if self.cache_bits >= self.core_bits { edx } else { 0 };
        self.put(EXTENDED + 6, [eax, ebx, ecx, edx]);
        let [_, _, _, edx] = self.node(EXTENDED + 7, 0);
        self.put(EXTENDED + 7, [0, 0, 0, edx & features::INVARIANT_TSC]);

        // Physical bits as they are, linear ones without a fifth level.
        let [sizes, ebx, _, _] = self.node(EXTENDED + 8, 0);
        let sizes = sizes & 0xff | (sizes >> 8 & 0xff).min(48) << 8;
        let cores = if self.is_amd() { (self.vcpus - 1) | self.core_bits << 12 } else { 0 };
        self.put(EXTENDED + 8, [sizes, ebx & features::EXTENDED_8_EBX, cores, 0]);

        if !self.is_amd() {
            return;
        }
        // TLBs for pages of 1 GiB; hints; each core's number, one node in a package; more features.
        let [eax, ebx, ..] = self.node(EXTENDED + 0x19, 0);
        self.put(EXTENDED + 0x19, [eax, ebx, 0, 0]);
        let [eax, ..] = self.node(EXTENDED + 0x1a, 0);
        self.put(EXTENDED + 0x1a, [eax & features::EXTENDED_1A_EAX, 0, 0, 0]);
        if ecx_has_topology(self.node(EXTENDED + 1, 0)) && max >= EXTENDED + 0x1e {
            self.put_patched(EXTENDED + 0x1e, [0; 4], Patch::ExtendedTopology);
        }
        let [eax, ..] = self.node(EXTENDED + 0x21, 0);
        self.put(EXTENDED + 0x21, [eax & features::EXTENDED_21_EAX, 0, 0, 0]);
    }

    /// Intel answers leaves beyond the last of their range with the highest basic one (SDM 2A, CPUID, "Input EAX").
    fn close(&mut self, basic_max: u32) {
        if self.is_amd() {
            return;
        }
        let table = &mut self.table;
        let highest = table.basic.get(basic_max as usize).copied().unwrap_or(Slot::ZEROS);
        table.beyond = highest;
        let extended_max = self.node_extended_max.min(EXTENDED_MAX) - EXTENDED;
        for (slots, max) in [
            (&mut table.basic[..], basic_max),
            (&mut table.hypervisor[..], HYPERVISOR_MAX - HYPERVISOR),
            (&mut table.extended[..], extended_max),
        ] {
            for slot in slots.iter_mut().skip(max as usize + 1) {
                *slot = highest;
            }
        }
    }
}

fn ecx_has_topology([_, _, ecx, _]: Registers) -> bool {
    ecx & features::TOPOLOGY_EXTENSIONS != 0
}
