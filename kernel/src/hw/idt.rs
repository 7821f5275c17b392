//! The interrupt descriptor table (Intel SDM 3A, 6.14): one for all cores, made once.
#![expect(unsafe_code, reason = "descriptor table register")]

use core::arch::asm;
use core::cell::UnsafeCell;

use super::gdt::{KERNEL_CODE, TablePointer};
use super::stacks::Ist;

const VECTORS: usize = 256;
const TABLE_BYTES: u16 = 4096;
const _: () = assert!(TABLE_BYTES as usize == VECTORS * 16);
/// Bytes of each vector's code in `entry.S`.
const STUB_BYTES: u64 = 16;

#[repr(align(16))]
struct Table(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: written once by the first core, before any other runs.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; VECTORS]));

unsafe extern "C" {
    static vector_stubs: u8;
}

/// Interrupt gate: present, ring 0, interrupts off.
const GATE: u64 = 0x8e00;

const fn gate(target: u64, stack: Ist) -> [u64; 2] {
    let low = target & 0xffff
        | (KERNEL_CODE as u64) << 16
        | (stack as u64) << 32
        | GATE << 32
        | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

const fn stack_of(vector: usize) -> Ist {
    match vector {
        2 => Ist::Nmi,
        8 => Ist::DoubleFault,
        18 => Ist::MachineCheck,
        0..32 => Ist::Exception,
        _ => Ist::Interrupt,
    }
}

/// Fills the table.
///
/// # Safety
/// No other core runs, and no interrupt can come.
pub unsafe fn prepare() {
    let stubs = (&raw const vector_stubs).expose_provenance() as u64;
    let table = core::array::from_fn(|vector| gate(stubs + vector as u64 * STUB_BYTES, stack_of(vector)));
    // SAFETY: the caller vouches that nobody uses the table.
    unsafe { TABLE.0.get().write(table) };
}

/// Makes the table this core's.
///
/// # Safety
/// The table is filled, and this core's task state has its stacks.
pub unsafe fn load() {
    let base = TABLE.0.get().expose_provenance() as u64;
    let pointer = TablePointer { limit: TABLE_BYTES - 1, base };
    // SAFETY: the table is static, and the caller vouches for what is in it.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
}
