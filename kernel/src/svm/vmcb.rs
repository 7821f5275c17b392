//! The virtual machine control block (AMD APM 2, appendix B): what `VMRUN` loads and `#VMEXIT` stores.

use core::mem::offset_of;

use ipc::vcpu::Segment;

/// The control area, without what is not used: that is zero.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the manual's names")]
pub struct Control {
    pub intercept_cr_reads: u16,
    pub intercept_cr_writes: u16,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercepts: [u32; 3],
    reserved1: [u8; 0x3c - 0x18],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm: u64,
    pub msrpm: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info: [u64; 2],
    pub exit_interrupt: u64,
    pub nested_paging: u64,
    reserved2: [u8; 0xa8 - 0x98],
    pub event: u64,
    pub nested_cr3: u64,
    pub lbr_virtualization: u64,
    pub clean: u64,
    pub next_rip: u64,
    pub fetched: u8,
    pub instruction: [u8; 15],
    reserved3: [u8; 0x400 - 0xe0],
}

/// The state save area.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers of the processor, by their names")]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved1: [u8; 0x4cb - 0x4a0],
    pub cpl: u8,
    reserved2: [u8; 4],
    pub efer: u64,
    reserved3: [u8; 0x548 - 0x4d8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved4: [u8; 0x5d8 - 0x580],
    pub rsp: u64,
    reserved5: [u8; 0x5f8 - 0x5e0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved6: [u8; 0x668 - 0x648],
    pub pat: u64,
    reserved7: [u8; 0x1000 - 0x670],
}

/// A control block: a page. Its alignment is that of the [`crate::vcpu::Vcpu`] that it begins.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Vmcb {
    /// What is intercepted, and why the guest left.
    pub control: Control,
    /// The guest's registers that the processor loads and stores.
    pub save: Save,
}

const _: () = assert!(size_of::<Vmcb>() == 4096);
const _: () = assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
const _: () = assert!(offset_of!(Control, iopm) == 0x40);
const _: () = assert!(offset_of!(Control, asid) == 0x58);
const _: () = assert!(offset_of!(Control, exit_code) == EXIT_CODE_OFFSET);
const _: () = assert!(offset_of!(Control, nested_paging) == 0x90);
const _: () = assert!(offset_of!(Control, event) == 0xa8);
const _: () = assert!(offset_of!(Control, next_rip) == 0xc8);
const _: () = assert!(offset_of!(Vmcb, save) == 0x400);
const _: () = assert!(offset_of!(Save, cpl) == 0xcb);
const _: () = assert!(offset_of!(Save, efer) == 0xd0);
const _: () = assert!(offset_of!(Save, cr4) == 0x148);
const _: () = assert!(offset_of!(Save, rip) == 0x178);
const _: () = assert!(offset_of!(Save, rsp) == 0x1d8);
const _: () = assert!(offset_of!(Save, rax) == 0x1f8);
const _: () = assert!(offset_of!(Save, cr2) == 0x240);
const _: () = assert!(offset_of!(Save, pat) == 0x268);

/// Where the exit code is, for the entry code.
pub const EXIT_CODE_OFFSET: usize = 0x70;

impl Vmcb {
    /// All zero.
    #[must_use]
    pub const fn zero() -> Self {
        const SEGMENT: Segment = Segment { selector: 0, attributes: 0, limit: 0, base: 0 };
        Self {
            control: Control {
                intercept_cr_reads: 0,
                intercept_cr_writes: 0,
                intercept_dr: 0,
                intercept_exceptions: 0,
                intercepts: [0; 3],
                reserved1: [0; 0x3c - 0x18],
                pause_filter_threshold: 0,
                pause_filter_count: 0,
                iopm: 0,
                msrpm: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: 0,
                virtual_interrupt: 0,
                interrupt_shadow: 0,
                exit_code: 0,
                exit_info: [0; 2],
                exit_interrupt: 0,
                nested_paging: 0,
                reserved2: [0; 0xa8 - 0x98],
                event: 0,
                nested_cr3: 0,
                lbr_virtualization: 0,
                clean: 0,
                next_rip: 0,
                fetched: 0,
                instruction: [0; 15],
                reserved3: [0; 0x400 - 0xe0],
            },
            save: Save {
                es: SEGMENT,
                cs: SEGMENT,
                ss: SEGMENT,
                ds: SEGMENT,
                fs: SEGMENT,
                gs: SEGMENT,
                gdtr: SEGMENT,
                ldtr: SEGMENT,
                idtr: SEGMENT,
                tr: SEGMENT,
                reserved1: [0; 0x4cb - 0x4a0],
                cpl: 0,
                reserved2: [0; 4],
                efer: 0,
                reserved3: [0; 0x548 - 0x4d8],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                reserved4: [0; 0x5d8 - 0x580],
                rsp: 0,
                reserved5: [0; 0x5f8 - 0x5e0],
                rax: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                cr2: 0,
                reserved6: [0; 0x668 - 0x648],
                pat: 0,
                reserved7: [0; 0x1000 - 0x670],
            },
        }
    }
}

/// [`Control::intercepts`], by word and bit (offsets 0x0c, 0x10, 0x14).
#[expect(missing_docs, reason = "the manual's names")]
pub mod intercept {
    pub const INTR: u32 = 1;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPG: u32 = 1 << 25;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
    /// `VMRUN`, `VMMCALL`, `VMLOAD`, `VMSAVE`, `STGI`, `CLGI`, `SKINIT`, `RDTSCP`, `ICEBP`, `WBINVD`, `MONITOR`, both
    /// `MWAIT`, `XSETBV`, `RDPRU`.
    pub const SECOND_WORD: u32 = 0x7fff & !ICEBP;
    const ICEBP: u32 = 1 << 8;
    /// Third word: `INVLPGB`, its illegal form, `MCOMMIT`, `TLBSYNC`.
    pub const THIRD_WORD: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4;
    pub const INVPCID: u32 = 1 << 2;
}

/// [`Control::exit_code`] (AMD APM 2, appendix C).
#[expect(missing_docs, reason = "the manual's names")]
pub mod code {
    pub const CR3_READ: u64 = 0x03;
    pub const CR4_READ: u64 = 0x04;
    pub const CR0_WRITE: u64 = 0x10;
    pub const CR15_WRITE: u64 = 0x1f;
    pub const EXCEPTION: u64 = 0x40;
    pub const LAST_EXCEPTION: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPG: u64 = 0x79;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const FERR_FREEZE: u64 = 0x7e;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const ICEBP: u64 = 0x88;
    pub const WBINVD: u64 = 0x89;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const INVLPGB: u64 = 0xa0;
    pub const INVPCID: u64 = 0xa2;
    pub const TLBSYNC: u64 = 0xa4;
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
    /// What QEMU up to 10.1 stores for [`INVALID`].
    pub const INVALID_LOW: u64 = 0xffff_ffff;
}
