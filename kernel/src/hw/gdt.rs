//! Segments and the task state (Intel SDM 3A, 3.4 and 8.7): what long mode still needs of them.
#![expect(unsafe_code, reason = "descriptor table registers")]

use core::arch::asm;

use super::stacks::Stacks;

/// The kernel's code segment. `SYSCALL` makes the one after it the stack segment.
pub const KERNEL_CODE: u16 = 0x08;
/// The kernel's data segment.
pub const KERNEL_DATA: u16 = 0x10;
/// Ring 3's data segment; `SYSRET` wants it just before the code segment.
pub const USER_DATA: u16 = 0x18 | 3;
/// Ring 3's code segment.
pub const USER_CODE: u16 = 0x20 | 3;
const TSS: u16 = 0x28;

/// A global descriptor table.
#[repr(C, align(16))]
pub struct Gdt([u64; 8]);

const GDT_BYTES: u16 = 64;
const _: () = assert!(size_of::<Gdt>() == GDT_BYTES as usize);

/// What LGDT and LIDT read.
#[repr(C, packed)]
pub struct TablePointer {
    /// Bytes less one.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

impl Gdt {
    /// The segments, without a task state.
    pub const fn new() -> Self {
        Self([
            0,
            0x00af_9b00_0000_ffff, // code, ring 0, 64-bit
            0x00cf_9300_0000_ffff, // data, ring 0
            0x00cf_f300_0000_ffff, // data, ring 3
            0x00af_fb00_0000_ffff, // code, ring 3, 64-bit
            0,                     // two for the task state
            0,
            0,
        ])
    }

    /// Names the task state.
    pub fn set_tss(&mut self, tss: *const Tss) {
        let base = tss.expose_provenance() as u64;
        let limit = u64::from(TSS_BYTES) - 1;
        // Present, available 64-bit TSS.
        self.0[5] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        self.0[6] = base >> 32;
    }

    /// Makes this the core's table, and reloads every segment and the task register from it.
    ///
    /// # Safety
    /// The table and its task state stay where they are. GS is set anew afterwards.
    pub unsafe fn load(&self) {
        let pointer =
            TablePointer { limit: GDT_BYTES - 1, base: core::ptr::from_ref(self).expose_provenance() as u64 };
        // SAFETY: the caller vouches for the table; the selectors are the ones it holds.
        unsafe {
            asm!(
                "lgdt [{pointer}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "mov fs, {null:e}",
                "mov gs, {null:e}",
                "ltr {tss:x}",
                pointer = in(reg) &raw const pointer,
                code = in(reg) u64::from(KERNEL_CODE),
                data = in(reg) u64::from(KERNEL_DATA),
                null = in(reg) 0_u64,
                tss = in(reg) u64::from(TSS),
                scratch = out(reg) _,
            );
        }
    }
}

/// The 64-bit task state: where interrupts find their stacks.
#[repr(C, packed(4))]
pub struct Tss {
    reserved_0: u32,
    rsp: [u64; 3],
    reserved_1: u64,
    ist: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    io_map: u16,
}

const TSS_BYTES: u16 = 104;
const _: () = assert!(size_of::<Tss>() == TSS_BYTES as usize);

impl Tss {
    /// A task state without stacks, and without I/O permissions: the map lies past the limit.
    pub const fn new() -> Self {
        Self {
            reserved_0: 0,
            rsp: [0; 3],
            reserved_1: 0,
            ist: [0; 7],
            reserved_2: 0,
            reserved_3: 0,
            io_map: TSS_BYTES,
        }
    }

    /// Sets the interrupt stacks.
    pub fn set_stacks(&mut self, stacks: &Stacks) {
        let mut ist = [0; 7];
        ist[..stacks.ist.len()].copy_from_slice(&stacks.ist);
        self.ist = ist;
    }
}
