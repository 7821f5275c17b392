//! The architectural state that a processor begins with: at the kernel's entry, after a reset, INIT and SIPI.
//!
//! Control state of the virtualisation itself, such as EFER.SVME, is not the guest's and not here.

use ipc::abi::UserRegisters;
use ipc::vcpu::{Segment, SystemState};

use super::layout;
use crate::memory::GuestPhysAddr;

const CR0_PROTECTION: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_NOT_WRITETHROUGH: u64 = 1 << 29;
const CR0_CACHE_DISABLE: u64 = 1 << 30;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// RFLAGS with no flag set: bit 1 always is.
const RFLAGS_RESET: u64 = 2;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// The PAT's entries after a reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// XCR0 after a reset: x87 alone.
const XCR0_RESET: u64 = 1;

/// The selector that the boot protocol calls `__BOOT_CS`.
const BOOT_CS: u16 = 0x10;
/// The selector that the boot protocol calls `__BOOT_DS`.
const BOOT_DS: u16 = 0x18;
/// The task state's selector. The protocol names none, but VMX demands a usable one.
const BOOT_TR: u16 = 0x20;
/// Accessed code, readable: long mode (L), 4 KiB granularity.
const CODE_64: u16 = 0xa9b;
/// Accessed data, writable: 32-bit (D), 4 KiB granularity.
const DATA_32: u16 = 0xc93;
/// Accessed code, readable, 16-bit.
const CODE_16: u16 = 0x09b;
/// Accessed data, writable, 16-bit.
const DATA_16: u16 = 0x093;
/// A local descriptor table.
const LDT: u16 = 0x082;
/// A busy task state: the one type that both makers take in every mode.
const BUSY_TSS: u16 = 0x08b;
const FLAT_LIMIT: u32 = 0xffff_ffff;
const REAL_MODE_LIMIT: u32 = 0xffff;
/// The smallest limit of a 64-bit task state.
const TSS_LIMIT: u32 = 0x67;

/// Entries of the GDT: null, unused, code, data, and the task state, which takes two.
const GDT_ENTRIES: usize = 6;
const GDT_LIMIT: u32 = 0x2f;
const _: () = assert!(GDT_LIMIT as usize + 1 == GDT_ENTRIES * size_of::<u64>());

/// A processor's registers.
#[derive(Clone, Copy, Debug)]
pub struct ProcessorState {
    /// General registers, RIP and RFLAGS.
    pub registers: UserRegisters,
    /// Everything else.
    pub system: SystemState,
}

/// The boot processor at the kernel's 64-bit entry (boot.rst, "64-bit Boot Protocol"): long mode, identity mapping,
/// `__BOOT_CS` and `__BOOT_DS`, interrupts off, RSI with the boot parameters.
#[must_use]
pub fn linux_entry(entry: GuestPhysAddr) -> ProcessorState {
    let data = Segment { selector: BOOT_DS, attributes: DATA_32, limit: FLAT_LIMIT, base: 0 };
    ProcessorState {
        registers: UserRegisters {
            rsi: layout::BOOT_PARAMS.0,
            rsp: layout::STACK_TOP.0,
            rip: entry.0,
            rflags: RFLAGS_RESET,
            ..UserRegisters::ZERO
        },
        system: SystemState {
            es: data,
            cs: Segment { selector: BOOT_CS, attributes: CODE_64, limit: FLAT_LIMIT, base: 0 },
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            tr: Segment { selector: BOOT_TR, attributes: BUSY_TSS, limit: TSS_LIMIT, base: 0 },
            gdtr: Segment { limit: GDT_LIMIT, base: layout::GDT.0, ..Segment::default() },
            cr0: CR0_PROTECTION | CR0_EXTENSION_TYPE | CR0_NUMERIC_ERROR | CR0_PAGING,
            cr3: layout::PAGE_TABLES.0,
            cr4: CR4_PHYSICAL_ADDRESS_EXTENSION,
            efer: EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE,
            dr6: DR6_RESET,
            dr7: DR7_RESET,
            pat: PAT_RESET,
            xcr0: XCR0_RESET,
            reset_fpu: 1,
            ..SystemState::default()
        },
    }
}

/// The GDT that [`linux_entry`] expects at [`layout::GDT`].
pub(super) fn gdt() -> [u64; GDT_ENTRIES] {
    [
        0,
        0,
        descriptor(CODE_64, FLAT_LIMIT),
        descriptor(DATA_32, FLAT_LIMIT),
        descriptor(BUSY_TSS, TSS_LIMIT),
        0,
    ]
}

/// A segment descriptor with base 0 (AMD APM 2, 4.7 and 4.8). With 4 KiB granularity it holds the limit's upper 20 bits.
const fn descriptor(attributes: u16, limit: u32) -> u64 {
    const GRANULARITY: u16 = 1 << 11;
    let limit = (if attributes & GRANULARITY != 0 { limit >> 12 } else { limit }) as u64;
    let attributes = attributes as u64;
    limit & 0xffff | (limit >> 16 & 0xf) << 48 | (attributes & 0xff) << 40 | (attributes >> 8 & 0xf) << 52
}

/// A processor after a reset (AMD APM 2, table 14-1). `signature` is what CPUID function 1 shows in EAX.
#[must_use]
pub fn reset(signature: u32) -> ProcessorState {
    let blank = SystemState { pat: PAT_RESET, xcr0: XCR0_RESET, ..SystemState::default() };
    let mut state = init(&blank, signature);
    state.system.cr0 |= CR0_CACHE_DISABLE | CR0_NOT_WRITETHROUGH;
    state.system.reset_fpu = 1;
    state
}

/// The same processor after INIT (AMD APM 2, 14.1.3): as after a reset, but cache control, floating-point state, XCR0 and
/// model-specific registers other than EFER stay, and so does the clock. It then waits for a SIPI; the boot processor runs
/// instead, from the reset vector.
#[must_use]
pub fn init(before: &SystemState, signature: u32) -> ProcessorState {
    let data = Segment { selector: 0, attributes: DATA_16, limit: REAL_MODE_LIMIT, base: 0 };
    let table = Segment { selector: 0, attributes: 0, limit: REAL_MODE_LIMIT, base: 0 };
    ProcessorState {
        registers: UserRegisters {
            rdx: signature.into(),
            rip: 0xfff0,
            rflags: RFLAGS_RESET,
            ..UserRegisters::ZERO
        },
        system: SystemState {
            es: data,
            cs: Segment { selector: 0xf000, attributes: CODE_16, limit: REAL_MODE_LIMIT, base: 0xffff_0000 },
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldtr: Segment { attributes: LDT, ..table },
            tr: Segment { attributes: BUSY_TSS, ..table },
            gdtr: table,
            idtr: table,
            cr0: CR0_EXTENSION_TYPE | before.cr0 & (CR0_CACHE_DISABLE | CR0_NOT_WRITETHROUGH),
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr6: DR6_RESET,
            dr7: DR7_RESET,
            cpl: 0,
            reset_fpu: 0,
            ..*before
        },
    }
}

/// What a SIPI makes of a processor that waits for it after INIT (AMD APM 2, 16.5; Intel SDM 3A, 9.4.3): it runs in real mode
/// from the page whose number is the vector.
pub fn start_up(state: &mut ProcessorState, vector: u8) {
    state.system.cs.selector = u16::from(vector) << 8;
    state.system.cs.base = u64::from(vector) << 12;
    state.registers.rip = 0;
}

#[cfg(test)]
mod tests;
