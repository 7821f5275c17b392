use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::FromZeros;

use super::*;
use crate::cpuid::{Pcid, Policy, Registers};

const TSC_HZ: u64 = 2_400_000_000;
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

fn model(vendor: &[u8; 12]) -> Model {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let node = |leaf: u32, _: u32| -> Registers {
        match leaf {
            0 => [0xd, word(0), word(8), word(4)],
            0x8000_0000 => [0x8000_0008, word(0), word(8), word(4)],
            // SYSCALL, NX, fast FXSAVE, long mode; and SVM.
            0x8000_0001 => [0, 0, 4, 1 << 11 | 1 << 20 | 1 << 25 | 1 << 29],
            _ => [0; 4],
        }
    };
    let tsc_hz = NonZeroU64::new(TSC_HZ).unwrap();
    let policy = Policy { vcpus: 1, core_bits: 0, cache_bits: 0, tsc_hz, pcid: Pcid::Hidden };
    Model::new(&Table::new(node, &policy), tsc_hz)
}

/// A vCPU for tests.
struct Vcpu {
    model: Model,
    msrs: Msrs,
    system: SystemState,
    node_tsc: u64,
}

impl Vcpu {
    fn amd() -> Self {
        Self::new(model(b"AuthenticAMD"))
    }

    fn intel() -> Self {
        Self::new(model(b"GenuineIntel"))
    }

    fn new(model: Model) -> Self {
        let system = SystemState { pat: PAT_AT_RESET, ..SystemState::new_zeroed() };
        Self { model, msrs: Msrs::new(), system, node_tsc: 0 }
    }

    fn read(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        self.msrs.read(msr, &Cpu { model: &self.model, system: &mut self.system, node_tsc: self.node_tsc })
    }

    fn write(&mut self, msr: u32, value: u64) -> Result<Effect, GeneralProtection> {
        let cpu = &mut Cpu { model: &self.model, system: &mut self.system, node_tsc: self.node_tsc };
        self.msrs.write(msr, value, cpu)
    }
}

const NO: Result<Effect, GeneralProtection> = Err(GeneralProtection);

#[test]
fn direct_registers_are_plain_storage() {
    let mut vcpu = Vcpu::amd();
    for (number, msr) in (1..).zip(DIRECT) {
        assert!(needs_system(msr));
        if msr != PAT {
            assert_eq!(vcpu.write(msr, number), Ok(Effect::System));
        }
    }
    for (number, msr) in (1..).zip(DIRECT) {
        assert_eq!(vcpu.read(msr), Ok(if msr == PAT { PAT_AT_RESET } else { number }));
    }
    assert_eq!((vcpu.system.fs.base, vcpu.system.gs.base, vcpu.system.kernel_gs_base), (1, 2, 3));
    assert_eq!((vcpu.system.sysenter_cs, vcpu.system.lstar), (8, 5));
}

#[test]
fn addresses_are_canonical() {
    let mut vcpu = Vcpu::amd();
    for msr in [FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, CSTAR, SYSENTER_ESP, SYSENTER_EIP] {
        for good in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(vcpu.write(msr, good), Ok(Effect::System));
            assert_eq!(vcpu.read(msr), Ok(good));
        }
        for bad in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
            assert_eq!(vcpu.write(msr, bad), NO);
            assert_eq!(vcpu.read(msr), Ok(u64::MAX));
        }
    }
}

#[test]
fn efer() {
    const ALL: u64 = 1 | 1 << 8 | 1 << 11 | 1 << 14;
    for mut vcpu in [Vcpu::amd(), Vcpu::intel()] {
        assert_eq!(vcpu.write(EFER, ALL), Ok(Effect::System));
        assert_eq!(vcpu.read(EFER), Ok(ALL));
        // SVME, LMSLE, TCE, and bits that nobody has.
        for bit in [1, 9, 12, 13, 15, 16, 17, 18, 20, 21, 63] {
            assert_eq!(vcpu.write(EFER, ALL | 1 << bit), NO, "{bit}");
        }
        // With paging on, LME stays.
        vcpu.system.cr0 = CR0_PG;
        vcpu.system.efer |= EFER_LMA;
        assert_eq!(vcpu.write(EFER, EFER_LMA | 1), NO);
        assert_eq!(vcpu.write(EFER, EFER_LMA | EFER_LME | 1), Ok(Effect::System));
        assert_eq!(vcpu.read(EFER), Ok(EFER_LMA | EFER_LME | 1));
        // LMA is not for software to write.
        let kept = vcpu.write(EFER, EFER_LME);
        let is_amd = vcpu.model.vendor == Vendor::Amd;
        assert_eq!(kept, if is_amd { NO } else { Ok(Effect::System) });
        assert_eq!(vcpu.read(EFER).unwrap() & EFER_LMA, EFER_LMA);
        // The node's own SVME in the state is not shown.
        vcpu.system.efer |= 1 << 12;
        assert_eq!(vcpu.read(EFER).unwrap() >> 12 & 1, 0);
    }
}

#[test]
fn pat() {
    let mut vcpu = Vcpu::amd();
    assert_eq!(vcpu.write(PAT, 0x0706_0504_0100_0607), Ok(Effect::System));
    for kind in [2, 3, 8, 0x80, 0xff] {
        for byte in 0..8 {
            assert_eq!(vcpu.write(PAT, kind << (8 * byte)), NO);
        }
    }
    assert_eq!(vcpu.read(PAT), Ok(0x0706_0504_0100_0607));
}

#[test]
fn tsc_and_its_adjustment() {
    let mut vcpu = Vcpu::amd();
    vcpu.system.tsc_offset = 1_000_u64.wrapping_neg();
    vcpu.node_tsc = 5_000;
    assert_eq!(vcpu.read(TSC), Ok(4_000));
    assert_eq!(vcpu.write(TSC, 100), Ok(Effect::Tsc));
    assert_eq!(vcpu.read(TSC), Ok(100));
    assert_eq!(vcpu.read(TSC_ADJUST), Ok(3_900_u64.wrapping_neg()));
    vcpu.node_tsc += 50;
    assert_eq!(vcpu.read(TSC), Ok(150));
    // Taking the adjustment back takes the write back.
    assert_eq!(vcpu.write(TSC_ADJUST, 0), Ok(Effect::Tsc));
    assert_eq!((vcpu.read(TSC), vcpu.system.tsc_offset), (Ok(4_050), 1_000_u64.wrapping_neg()));
    assert_eq!(vcpu.msrs.tsc_adjust(), 0);
    assert!(needs_system(TSC) && needs_system(TSC_ADJUST) && needs_system(EFER) && !needs_system(HWCR));
}

#[test]
fn kvm_clock() {
    let mut vcpu = Vcpu::intel();
    assert_eq!(vcpu.msrs.system_time(), None);
    assert_eq!(
        vcpu.write(KVM_SYSTEM_TIME, 0x1_2345_6041),
        Ok(Effect::SystemTime(Some(GuestPhysAddr(0x1_2345_6040))))
    );
    assert_eq!(vcpu.read(KVM_SYSTEM_TIME), Ok(0x1_2345_6041));
    assert_eq!(vcpu.msrs.system_time(), Some(GuestPhysAddr(0x1_2345_6040)));
    assert_eq!(vcpu.write(KVM_SYSTEM_TIME, 0x43), NO);
    assert_eq!(vcpu.write(KVM_SYSTEM_TIME, 0x40), Ok(Effect::SystemTime(None)));
    assert_eq!(vcpu.write(KVM_WALL_CLOCK, 0x1000), Ok(Effect::WallClock(GuestPhysAddr(0x1000))));
    assert_eq!(vcpu.write(KVM_WALL_CLOCK, 0x1002), NO);
    // The old clock, asynchronous faults, steal time, end of interrupt, poll control.
    for msr in [0x11, 0x12, 0x4b56_4d02, 0x4b56_4d03, 0x4b56_4d04, 0x4b56_4d05, 0x4b56_4d06] {
        assert_eq!((vcpu.read(msr), vcpu.write(msr, 0)), (Err(GeneralProtection), NO));
    }
}

#[test]
fn machine_check_without_banks() {
    let mut vcpu = Vcpu::amd();
    assert_eq!([MCG_CAP, P5_MC_ADDR, P5_MC_TYPE].map(|msr| vcpu.read(msr)), [Ok(0); 3]);
    assert_eq!(vcpu.write(MCG_CAP, 0), NO);
    assert_eq!(vcpu.write(MCG_STATUS, 7), Ok(Effect::None));
    assert_eq!(vcpu.write(MCG_STATUS, 8), NO);
    assert_eq!(vcpu.read(MCG_STATUS), Ok(7));
    for msr in [0x17b, 0x280, 0x400, 0x401, 0x404] {
        assert_eq!(vcpu.read(msr), Err(GeneralProtection));
    }
}

/// What Linux reads without being ready for #GP, on AMD and on Intel.
#[test]
fn what_linux_takes_for_granted() {
    let mut amd = Vcpu::amd();
    assert_eq!(amd.read(HWCR).unwrap() & HWCR_TSC_FREQUENCY, HWCR_TSC_FREQUENCY);
    assert_eq!(amd.write(HWCR, 1 << 6), Ok(Effect::None));
    assert_eq!(amd.read(HWCR), Ok(HWCR_TSC_FREQUENCY | 1 << 6));
    assert_eq!(amd.read(DE_CFG), Ok(DE_CFG_LFENCE));
    assert_eq!(amd.write(DE_CFG, u64::MAX), Ok(Effect::None));
    assert_eq!(amd.read(DE_CFG), Ok(DE_CFG_LFENCE));
    assert_eq!([INT_PENDING, NB_CFG, SYSCFG].map(|msr| amd.read(msr)), [Ok(0); 3]);
    assert_eq!(amd.read(VM_CR), Ok(0x18));
    assert_eq!(amd.write(VM_CR, 0), Ok(Effect::None));
    assert_eq!(amd.read(VM_CR), Ok(0x18));
    assert_eq!(amd.write(PATCH_LOADER, 0x1000), Ok(Effect::None));
    let mut intel = Vcpu::intel();
    assert_eq!(intel.read(MISC_ENABLE), Ok(0x1801));
    assert_eq!(intel.write(MISC_ENABLE, 0), Ok(Effect::None));
    assert_eq!(intel.read(MISC_ENABLE), Ok(0x1801));
    assert_eq!(intel.write(MICROCODE_LEVEL, 0), Ok(Effect::None));
    assert_eq!(intel.read(MICROCODE_LEVEL).unwrap() >> 32, 1);
    assert_eq!(intel.read(PLATFORM_INFO), Ok(24 << 8));
    for mut vcpu in [amd, intel] {
        assert_eq!(vcpu.write(DEBUGCTL, 3), Ok(Effect::None));
        assert_eq!(vcpu.read(DEBUGCTL), Ok(0));
        assert_eq!(vcpu.write(DEBUGCTL, 1 << 6), NO);
    }
}

#[test]
fn a_vendors_registers_are_its_own() {
    let (mut amd, mut intel) = (Vcpu::amd(), Vcpu::intel());
    for msr in [MISC_ENABLE, PLATFORM_INFO, PLATFORM_ID, UCODE_WRITE] {
        assert_eq!((amd.read(msr), amd.write(msr, 0)), (Err(GeneralProtection), NO));
    }
    for msr in [HWCR, DE_CFG, VM_CR, SYSCFG, TOP_MEM, PATCH_LOADER] {
        assert_eq!((intel.read(msr), intel.write(msr, 0)), (Err(GeneralProtection), NO));
    }
}

#[test]
fn what_is_hidden_is_absent() {
    const ABSENT: [u32; 30] = [
        0x1b,
        0x3a,
        0x48,
        0x49,
        0xc1,
        0xe7,
        0xe8,
        0xfe,
        0x10a,
        0x10b,
        0x122,
        0x140,
        0x186,
        0x198,
        0x199,
        0x19c,
        0x1b0,
        0x200,
        0x2ff,
        0x345,
        0x38f,
        0x480,
        0x6e0,
        0x800,
        0xda0,
        0xc000_0103,
        0xc001_0000,
        0xc001_0112,
        0xc001_0117,
        0xc001_1020,
    ];
    for mut vcpu in [Vcpu::amd(), Vcpu::intel()] {
        for msr in ABSENT {
            assert_eq!((vcpu.read(msr), vcpu.write(msr, 0)), (Err(GeneralProtection), NO), "{msr:#x}");
        }
    }
}

#[test]
fn random_accesses_keep_the_state_sound() {
    let mut random = ChaCha8Rng::seed_from_u64(13);
    for mut vcpu in [Vcpu::amd(), Vcpu::intel()] {
        for base in [0, 0x4000_0000, 0x4b56_4d00, 0xc000_0000, 0xc001_0000, 0xffff_e000_u32] {
            for msr in base..=base.saturating_add(0x1fff) {
                for _ in 0..4 {
                    let value = random.random::<u64>() >> random.random_range(0..64);
                    vcpu.node_tsc = random.random();
                    vcpu.system.cr0 = random.random();
                    let before = (vcpu.msrs, vcpu.system);
                    let readable = vcpu.read(msr).is_ok();
                    assert_eq!((vcpu.msrs, vcpu.system), before, "a read changes nothing");
                    match vcpu.write(msr, value) {
                        Err(GeneralProtection) | Ok(Effect::None) if before.1 != vcpu.system => {
                            panic!("{msr:#x}")
                        }
                        Err(GeneralProtection) => assert_eq!(vcpu.msrs, before.0),
                        Ok(Effect::System | Effect::Tsc) => assert!(needs_system(msr)),
                        Ok(_) => assert!(readable || matches!(msr, UCODE_WRITE | PATCH_LOADER)),
                    }
                    assert_eq!(vcpu.system.efer & !(vcpu.model.efer | EFER_LMA), 0);
                    assert!(checked_pat(vcpu.system.pat).is_ok());
                }
            }
        }
    }
}
