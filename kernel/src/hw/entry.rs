//! The ways into the kernel and out of it: what `entry.S` needs of Rust, and the handlers that it calls.
#![expect(unsafe_code, reason = "assembly, and the registers that lead to it")]

use core::arch::global_asm;
use core::mem::offset_of;

use ipc::abi::UserRegisters;
use kernel::context::{CONTROL_BLOCK_OFFSET, FPU_OFFSET, FpuState, RESUME_OFFSET, Return, STATE_PAGE_OFFSET};
use kernel::svm::vmcb::{EXIT_CODE_OFFSET, code};

use super::boot::DIRECT_MAP;
use super::instructions::{read_msr, write_msr};
use super::panic::{STOPPING, on_fatal};
use super::percpu::{self, PerCpu};
use super::{apic, gdt};

global_asm!(
    include_str!("entry.S"),
    THIS = const percpu::THIS,
    CURRENT = const percpu::CURRENT,
    KERNEL_STACK = const percpu::KERNEL_STACK,
    SCRATCH = const percpu::SCRATCH,
    RAX = const offset_of!(UserRegisters, rax),
    RBX = const offset_of!(UserRegisters, rbx),
    RCX = const offset_of!(UserRegisters, rcx),
    RDX = const offset_of!(UserRegisters, rdx),
    RSI = const offset_of!(UserRegisters, rsi),
    RDI = const offset_of!(UserRegisters, rdi),
    RBP = const offset_of!(UserRegisters, rbp),
    RSP = const offset_of!(UserRegisters, rsp),
    R8 = const offset_of!(UserRegisters, r8),
    R9 = const offset_of!(UserRegisters, r9),
    R10 = const offset_of!(UserRegisters, r10),
    R11 = const offset_of!(UserRegisters, r11),
    R12 = const offset_of!(UserRegisters, r12),
    R13 = const offset_of!(UserRegisters, r13),
    R14 = const offset_of!(UserRegisters, r14),
    R15 = const offset_of!(UserRegisters, r15),
    RIP = const offset_of!(UserRegisters, rip),
    RFLAGS = const offset_of!(UserRegisters, rflags),
    RESUME = const RESUME_OFFSET,
    FPU = const FPU_OFFSET,
    USER_CODE = const gdt::USER_CODE,
    USER_DATA = const gdt::USER_DATA,
    MSR_GS_BASE = const percpu::MSR_GS_BASE,
    GUEST = const Return::Guest as u64,
    CONTROL_BLOCK = const CONTROL_BLOCK_OFFSET,
    STATE_PAGE = const STATE_PAGE_OFFSET,
    HOST_SAVE = const percpu::HOST_SAVE,
    STATUS = const percpu::STATUS,
    DIRECT_MAP = const DIRECT_MAP,
    EXIT_CODE = const EXIT_CODE_OFFSET,
    EXIT_INTERRUPT = const code::INTR,
    on_guest_exit = sym on_guest_exit,
    INITIAL_FPU = sym INITIAL_FPU,
    STOPPING = sym STOPPING,
    on_syscall = sym on_syscall,
    on_interrupt = sym on_interrupt,
    on_exception = sym on_exception,
    on_fatal = sym on_fatal,
);

static INITIAL_FPU: FpuState = FpuState::INITIAL;

unsafe extern "C" {
    fn syscall_entry();
    fn resume() -> !;
}

/// EFER, STAR, LSTAR, CSTAR, SFMASK (AMD APM 2, 6.1.1) and IA32_SYSENTER_CS.
const MSR_EFER: u32 = 0xc000_0080;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_SYSENTER_CS: u32 = 0x174;
const EFER_SYSCALL: u64 = 1;
/// RFLAGS that a system call clears: TF, IF, DF, IOPL, NT, RF, AC.
const SYSCALL_FLAG_MASK: u64 = 0x0005_7700;

/// Opens the system-call gate of this core.
///
/// # Safety
/// This core's descriptor table and GS are loaded.
pub unsafe fn enable_syscalls() {
    let segments = u64::from(gdt::KERNEL_CODE) << 32 | u64::from(gdt::KERNEL_DATA) << 48;
    // SAFETY: long mode has these registers; the selectors are those of the table.
    unsafe { write_msr(MSR_STAR, segments) };
    // SAFETY: the entry expects what this function's caller vouches for.
    unsafe { write_msr(MSR_LSTAR, syscall_entry as *const () as usize as u64) };
    // SAFETY: the entry needs IF and DF clear.
    unsafe { write_msr(MSR_SFMASK, SYSCALL_FLAG_MASK) };
    // SAFETY: every processor has this register; zero makes SYSENTER a general protection fault.
    unsafe { write_msr(MSR_SYSENTER_CS, 0) };
    // SAFETY: every processor in long mode has this register.
    let efer = unsafe { read_msr(MSR_EFER) };
    // SAFETY: the gate's other registers are set.
    unsafe { write_msr(MSR_EFER, efer | EFER_SYSCALL) };
}

/// Ends the boot of this core: goes on with what is current, on the core's own stack.
///
/// # Safety
/// This core's descriptor tables, GS and stacks are those of the final address space.
pub unsafe fn leave() -> ! {
    // SAFETY: the caller vouches for all that the exit code uses.
    unsafe { resume() }
}

/// `SYSCALL` from ring 3.
extern "C" fn on_syscall(core: &mut PerCpu) {
    crate::on_syscall(core);
}

/// An interrupt from ring 3, or that ended the idle halt.
extern "C" fn on_interrupt(core: &mut PerCpu, vector: u8) {
    percpu::status().note_entry();
    crate::on_interrupt(core, vector);
    apic::end_of_interrupt();
}

/// A vCPU left guest mode, not for an interrupt that is still to come.
extern "C" fn on_guest_exit(core: &mut PerCpu) {
    crate::on_guest_exit(core);
}

/// An exception in ring 3.
extern "C" fn on_exception(core: &mut PerCpu, vector: u8, error_code: u64, address: u64) {
    crate::on_exception(core, vector, error_code, address);
}
