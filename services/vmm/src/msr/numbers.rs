//! The registers' numbers.

/// What the guest accesses without an exit: the kernel keeps them in the vCPU's state. PAT is in the VMCB with nested paging
/// (AMD APM 2, 15.25.8), and loaded at VM entry and exit on Intel.
pub const DIRECT: [u32; 11] = [
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    PAT,
];

pub const P5_MC_ADDR: u32 = 0x0;
pub const P5_MC_TYPE: u32 = 0x1;
pub const TSC: u32 = 0x10;
pub const PLATFORM_ID: u32 = 0x17;
pub const TSC_ADJUST: u32 = 0x3b;
pub const UCODE_WRITE: u32 = 0x79;
/// IA32_BIOS_SIGN_ID; AMD's PATCH_LEVEL.
pub const MICROCODE_LEVEL: u32 = 0x8b;
pub const PLATFORM_INFO: u32 = 0xce;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const MCG_CAP: u32 = 0x179;
pub const MCG_STATUS: u32 = 0x17a;
pub const MISC_ENABLE: u32 = 0x1a0;
pub const DEBUGCTL: u32 = 0x1d9;
/// The first of four: last branch from and to, last exception from and to.
pub const LAST_BRANCH_FROM: u32 = 0x1db;
pub const LAST_EXCEPTION_TO: u32 = 0x1de;
pub const PAT: u32 = 0x277;

pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

pub const EFER: u32 = 0xc000_0080;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;

pub const SYSCFG: u32 = 0xc001_0010;
pub const HWCR: u32 = 0xc001_0015;
pub const TOP_MEM: u32 = 0xc001_001a;
pub const TOP_MEM2: u32 = 0xc001_001d;
pub const NB_CFG: u32 = 0xc001_001f;
pub const PATCH_LOADER: u32 = 0xc001_0020;
pub const INT_PENDING: u32 = 0xc001_0055;
pub const MMIO_CONF_BASE: u32 = 0xc001_0058;
pub const VM_CR: u32 = 0xc001_0114;
pub const DE_CFG: u32 = 0xc001_1029;
