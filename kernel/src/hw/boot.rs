//! The way from the boot loader to [`crate::kernel_main`].
//!
//! The assembly (`boot.S`) turns on long mode with tables that map the first 4 GiB three times: at their own
//! addresses, at [`DIRECT_MAP`], and (1 GiB of it) at the kernel's base. They serve until
//! [`super::space`] has built the final ones, and again when an application processor starts.
#![expect(unsafe_code, reason = "assembly and its entry point")]

use core::cell::UnsafeCell;

use kernel::address::PhysAddr;

use super::direct::BootMemory;
use super::percpu::{self, PerCpu};
use super::stacks::Stacks;
use super::{console, entry, idt, pic, processor};

/// Where the kernel's address space shows all physical memory.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// What is mapped there by the tables of `boot.S`.
pub const BOOT_MAPPED: u64 = 1 << 32;

/// Who started the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// PVH: the information is an `hvm_start_info`.
    Pvh,
    /// Multiboot2: the information is its boot information structure.
    Multiboot2,
}

/// What the first core starts with.
#[derive(Debug)]
pub struct Handover {
    /// The protocol.
    pub protocol: Protocol,
    /// Where its information is.
    pub information: PhysAddr,
    /// The memory that it, ACPI's tables and all else that firmware left is read from.
    pub memory: BootMemory,
}

const PVH: u32 = 0;
const MULTIBOOT2: u32 = 1;
const AP: u32 = 2;

core::arch::global_asm!(
    include_str!("boot.S"),
    PVH = const PVH,
    MULTIBOOT2 = const MULTIBOOT2,
    AP = const AP,
    boot_entry = sym boot_entry,
    options(att_syntax)
);

/// The stack of exceptions until the final address space gives the first core its own.
#[repr(align(16))]
struct EarlyStack(
    #[expect(dead_code, reason = "only its address is used")] UnsafeCell<[u8; EARLY_STACK_BYTES]>,
);

const EARLY_STACK_BYTES: usize = 16 << 10;

// SAFETY: only the first core's processor uses it, as its stack.
unsafe impl Sync for EarlyStack {}

static EARLY_STACK: EarlyStack = EarlyStack(UnsafeCell::new([0; EARLY_STACK_BYTES]));

/// Entered by `boot.S` on the boot stack, once.
extern "C" fn boot_entry(kind: u32, information: u32) -> ! {
    console::initialize();
    pic::silence();
    // SAFETY: no other core runs, and interrupts are off.
    unsafe { idt::prepare() };
    let end = (&raw const EARLY_STACK).expose_provenance() as u64 + EARLY_STACK_BYTES as u64;
    let stacks = Stacks { kernel: end, ist: [end; 5] };
    // SAFETY: nobody has used a block yet; the stack is there, and nothing but a fatal exception comes before the
    // final address space brings better ones.
    let block = unsafe { percpu::prepare(0, processor::apic_id(), &stacks) };
    // SAFETY: this is the first core, and the block is its own.
    let core = unsafe { set_up_core(block) };
    let protocol = if kind == PVH { Protocol::Pvh } else { Protocol::Multiboot2 };
    let information = PhysAddr(u64::from(information));
    // SAFETY: the boot tables are in use until `KernelSpace::activate` takes the value.
    let memory = unsafe { BootMemory::new() };
    crate::kernel_main(Handover { protocol, information, memory }, core)
}

/// Gives this core its registers of every kind but the local APIC's.
///
/// # Safety
/// `block` was prepared for this core; no reference to it exists. The interrupt descriptor table is filled.
pub unsafe fn set_up_core(block: *mut PerCpu) -> &'static mut PerCpu {
    processor::protect();
    // SAFETY: the caller vouches for the block.
    unsafe { percpu::load(block) };
    // SAFETY: the caller vouches for the table, and the task state was loaded just now.
    unsafe { idt::load() };
    // SAFETY: descriptor table and GS were loaded just now.
    unsafe { entry::enable_syscalls() };
    // SAFETY: the caller vouches that there is no other reference; handlers get theirs after this one's last use.
    unsafe { &mut *block }
}

/// Ends the boot of a core: it goes on with what is current, on its own stack.
pub fn leave(core: &'static mut PerCpu) -> ! {
    let _ = core;
    // SAFETY: who has the block has set up this core.
    unsafe { entry::leave() }
}
