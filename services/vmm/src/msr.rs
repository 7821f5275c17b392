//! Model-specific registers that are not of the APIC.
//!
//! Those of [`DIRECT`] the guest reads and writes itself; they are here too, for when the kernel exits for them. An access
//! to any other exits, and what is not here is absent: #GP, which Linux expects of what it probes. Hidden with their
//! features ([`crate::cpuid`]): MTRRs, performance counters, thermal and power control, speculation control, TSC_AUX,
//! supervisor states, SVM, SMM, OSVW. There are machine-check registers, but no banks.
//!
//! (AMD APM 2, appendix A; Intel SDM 4, chapter 2; Linux, Documentation/virt/kvm/x86/msr.rst.)

mod numbers;
#[cfg(test)]
mod tests;

use core::num::NonZeroU64;

use ipc::vcpu::SystemState;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpuid::{Table, Vendor};
use crate::memory::GuestPhysAddr;
pub use numbers::DIRECT;
use numbers::{
    CSTAR, DE_CFG, DEBUGCTL, EFER, FS_BASE, GS_BASE, HWCR, INT_PENDING, KERNEL_GS_BASE, KVM_SYSTEM_TIME,
    KVM_WALL_CLOCK, LAST_BRANCH_FROM, LAST_EXCEPTION_TO, LSTAR, MCG_CAP, MCG_STATUS, MICROCODE_LEVEL,
    MISC_ENABLE, MMIO_CONF_BASE, NB_CFG, P5_MC_ADDR, P5_MC_TYPE, PAT, PATCH_LOADER, PLATFORM_ID,
    PLATFORM_INFO, SFMASK, STAR, SYSCFG, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP, TOP_MEM, TOP_MEM2, TSC,
    TSC_ADJUST, UCODE_WRITE, VM_CR,
};

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GeneralProtection;

/// What a write asks of whoever runs the vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The system state has changed: mark it dirty.
    System,
    /// The TSC has stepped: mark the system state dirty, publish the vCPU's clock page with the new
    /// [`Msrs::tsc_adjust`], and set the APIC's deadline anew.
    Tsc,
    /// The vCPU's clock page is here from now on, or nowhere.
    SystemTime(Option<GuestPhysAddr>),
    /// Publish the wall clock here, once.
    WallClock(GuestPhysAddr),
}

/// EFER: long mode is active.
const EFER_LMA: u64 = 1 << 10;
const EFER_LME: u64 = 1 << 8;
const CR0_PG: u64 = 1 << 31;

/// MCG_STATUS: RIPV, EIPV, MCIP.
const MCG_STATUS_BITS: u64 = 7;
/// DEBUGCTL: last branches and single steps by branch, and AMD's four breakpoint pins. None does anything here: they
/// are of the node's register.
const DEBUGCTL_IGNORED: u64 = 0x3f;
/// MISC_ENABLE: fast strings; no branch trace, no precise events.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;
/// HWCR: the TSC counts at P0's frequency. It cannot be changed.
const HWCR_TSC_FREQUENCY: u64 = 1 << 24;
/// HWCR: what can be changed and does nothing: caching of the TLB, the flush filter, IGNNE, writes of machine-check
/// status.
const HWCR_STORED: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18;
/// DE_CFG: LFENCE serialises.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// VM_CR: SVM is disabled, and locked so.
const VM_CR_DISABLED: u64 = 1 << 3 | 1 << 4;
/// Revisions that no fix is known to need: what the node has loaded is not known here.
const MICROCODE_AMD: u64 = 0x0100_0065;
const MICROCODE_INTEL: u64 = 1 << 32;

/// What is the same for all vCPUs of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    vendor: Vendor,
    efer: u64,
    platform_info: u64,
}

impl Model {
    /// The registers that go with a CPUID.
    #[must_use]
    pub fn new(cpuid: &Table, tsc_hz: NonZeroU64) -> Self {
        // The highest ratio without turbo, in units of 100 MHz, bits 8 to 15.
        let ratio = (tsc_hz.get() / 100_000_000).min(0xff);
        Self { vendor: cpuid.vendor(), efer: cpuid.efer(), platform_info: ratio << 8 }
    }
}

/// What the access works on besides [`Msrs`]. Of `system`, only what [`needs_system`] names is looked at.
#[derive(Debug)]
pub struct Cpu<'a> {
    /// The guest's model.
    pub model: &'a Model,
    /// The vCPU's system state.
    pub system: &'a mut SystemState,
    /// The node's TSC.
    pub node_tsc: u64,
}

/// A vCPU's registers that are not in its [`SystemState`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Msrs {
    tsc_adjust: u64,
    mcg_status: u64,
    hwcr: u64,
    de_cfg: u64,
    system_time: u64,
    wall_clock: u64,
}

const _: () = assert!(size_of::<Msrs>() == 48);

impl Default for Msrs {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether an access to this register needs the vCPU's system state fetched.
#[must_use]
pub fn needs_system(msr: u32) -> bool {
    matches!(msr, TSC | TSC_ADJUST | EFER) || DIRECT.contains(&msr)
}

impl Msrs {
    /// As after power-on.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tsc_adjust: 0,
            mcg_status: 0,
            hwcr: HWCR_TSC_FREQUENCY,
            de_cfg: DE_CFG_LFENCE,
            system_time: 0,
            wall_clock: 0,
        }
    }

    /// IA32_TSC_ADJUST: the sum of what the guest's writes added to the vCPU's TSC.
    #[must_use]
    pub const fn tsc_adjust(&self) -> u64 {
        self.tsc_adjust
    }

    /// Where the vCPU's clock page is.
    #[must_use]
    pub const fn system_time(&self) -> Option<GuestPhysAddr> {
        if self.system_time & 1 == 0 { None } else { Some(GuestPhysAddr(self.system_time & !1)) }
    }

    /// `RDMSR`.
    ///
    /// # Errors
    /// [`GeneralProtection`].
    pub fn read(&self, msr: u32, cpu: &Cpu<'_>) -> Result<u64, GeneralProtection> {
        use Vendor::{Amd, Intel};
        let (model, system) = (cpu.model, &*cpu.system);
        Ok(match (msr, model.vendor) {
            (TSC, _) => cpu.node_tsc.wrapping_add(system.tsc_offset),
            (TSC_ADJUST, _) => self.tsc_adjust,
            (EFER, _) => system.efer & (model.efer | EFER_LMA),
            (PAT, _) => system.pat,
            (STAR, _) => system.star,
            (LSTAR, _) => system.lstar,
            (CSTAR, _) => system.cstar,
            (SFMASK, _) => system.sfmask,
            (FS_BASE, _) => system.fs.base,
            (GS_BASE, _) => system.gs.base,
            (KERNEL_GS_BASE, _) => system.kernel_gs_base,
            (SYSENTER_CS, _) => system.sysenter_cs,
            (SYSENTER_ESP, _) => system.sysenter_esp,
            (SYSENTER_EIP, _) => system.sysenter_eip,
            (MCG_STATUS, _) => self.mcg_status,
            // No banks, and none of the capabilities.
            (P5_MC_ADDR | P5_MC_TYPE | MCG_CAP | DEBUGCTL | LAST_BRANCH_FROM..=LAST_EXCEPTION_TO, _) => 0,
            (KVM_WALL_CLOCK, _) => self.wall_clock,
            (KVM_SYSTEM_TIME, _) => self.system_time,
            (PLATFORM_ID, Intel) => 0,
            (PLATFORM_INFO, Intel) => model.platform_info,
            (MISC_ENABLE, Intel) => MISC_ENABLE_VALUE,
            (MICROCODE_LEVEL, Intel) => MICROCODE_INTEL,
            (MICROCODE_LEVEL, Amd) => MICROCODE_AMD,
            (HWCR, Amd) => self.hwcr,
            (DE_CFG, Amd) => self.de_cfg,
            (VM_CR, Amd) => VM_CR_DISABLED,
            // The chipset's: nothing is mapped by it.
            (SYSCFG | TOP_MEM | TOP_MEM2 | NB_CFG | INT_PENDING | MMIO_CONF_BASE, Amd) => 0,
            _ => return Err(GeneralProtection),
        })
    }

    /// `WRMSR`.
    ///
    /// # Errors
    /// [`GeneralProtection`], and nothing is changed.
    pub fn write(&mut self, msr: u32, value: u64, cpu: &mut Cpu<'_>) -> Result<Effect, GeneralProtection> {
        let system = &mut *cpu.system;
        match msr {
            TSC => {
                let now = cpu.node_tsc.wrapping_add(system.tsc_offset);
                return Ok(self.step_tsc(value.wrapping_sub(now), system));
            }
            TSC_ADJUST => return Ok(self.step_tsc(value.wrapping_sub(self.tsc_adjust), system)),
            EFER => system.efer = checked_efer(value, system, cpu.model)?,
            PAT => system.pat = checked_pat(value)?,
            STAR => system.star = value,
            LSTAR => system.lstar = canonical(value)?,
            CSTAR => system.cstar = canonical(value)?,
            SFMASK => system.sfmask = value & 0xffff_ffff,
            FS_BASE => system.fs.base = canonical(value)?,
            GS_BASE => system.gs.base = canonical(value)?,
            KERNEL_GS_BASE => system.kernel_gs_base = canonical(value)?,
            SYSENTER_CS => system.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => system.sysenter_esp = canonical(value)?,
            SYSENTER_EIP => system.sysenter_eip = canonical(value)?,
            _ => return self.write_other(msr, value, cpu.model.vendor),
        }
        Ok(Effect::System)
    }

    /// Writes a register that is not in the system state.
    fn write_other(&mut self, msr: u32, value: u64, vendor: Vendor) -> Result<Effect, GeneralProtection> {
        use Vendor::{Amd, Intel};
        match (msr, vendor) {
            (MCG_STATUS, _) if value & !MCG_STATUS_BITS == 0 => self.mcg_status = value,
            (DEBUGCTL, _) if value & !DEBUGCTL_IGNORED == 0 => {}
            (P5_MC_ADDR | P5_MC_TYPE, _) => {}
            // Both structures are aligned to four bytes; bit 0 of the second switches it on.
            (KVM_WALL_CLOCK, _) if value & 3 == 0 => {
                self.wall_clock = value;
                return Ok(Effect::WallClock(GuestPhysAddr(value)));
            }
            (KVM_SYSTEM_TIME, _) if value & 2 == 0 => {
                self.system_time = value;
                return Ok(Effect::SystemTime(self.system_time()));
            }
            (HWCR, Amd) => self.hwcr = self.hwcr & !HWCR_STORED | value & HWCR_STORED,
            (DE_CFG, Amd) => self.de_cfg = value & DE_CFG_LFENCE,
            // VM_CR is locked; updates of microcode are the node's affair; the rest is fixed.
            (VM_CR | PATCH_LOADER, Amd) => {}
            (SYSCFG | TOP_MEM | TOP_MEM2 | NB_CFG | INT_PENDING | MMIO_CONF_BASE, Amd) => {}
            (MISC_ENABLE | UCODE_WRITE | MICROCODE_LEVEL, Intel) => {}
            _ => return Err(GeneralProtection),
        }
        Ok(Effect::None)
    }

    /// Moves the vCPU's TSC, which its adjustment follows (Intel SDM 3B, 18.17.3).
    const fn step_tsc(&mut self, by: u64, system: &mut SystemState) -> Effect {
        self.tsc_adjust = self.tsc_adjust.wrapping_add(by);
        system.tsc_offset = system.tsc_offset.wrapping_add(by);
        Effect::Tsc
    }
}

/// EFER after a write of `value` (AMD APM 2, 3.1.7 and 14.6.1; Intel SDM 3A, 2.2.1).
const fn checked_efer(value: u64, system: &SystemState, model: &Model) -> Result<u64, GeneralProtection> {
    let changed = value ^ system.efer;
    let is_reserved = value & !(model.efer | EFER_LMA) != 0;
    // AMD refuses to change LMA, Intel ignores it.
    let sets_lma = matches!(model.vendor, Vendor::Amd) && changed & EFER_LMA != 0;
    let sets_lme_while_paging = changed & EFER_LME != 0 && system.cr0 & CR0_PG != 0;
    if is_reserved || sets_lma || sets_lme_while_paging {
        return Err(GeneralProtection);
    }
    Ok(value & model.efer | system.efer & EFER_LMA)
}

/// PAT: each byte a memory type: UC, WC, WT, WP, WB, UC- (AMD APM 2, table 7-9).
fn checked_pat(value: u64) -> Result<u64, GeneralProtection> {
    let is_type = |byte: &u8| matches!(byte, 0 | 1 | 4..=7);
    if value.to_le_bytes().iter().all(is_type) { Ok(value) } else { Err(GeneralProtection) }
}

/// An address of 48 bits.
const fn canonical(address: u64) -> Result<u64, GeneralProtection> {
    let high = address.cast_signed() >> 47;
    if high == 0 || high == -1 { Ok(address) } else { Err(GeneralProtection) }
}
