//! The end of the kernel: a panic or an exception in ring 0 is told on COM1, and every core halts.
#![expect(unsafe_code, reason = "machine-check registers")]

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use super::instructions::{halt_forever, read_cr2, read_cr3, read_msr};
use super::{percpu, smp};
use crate::print;

/// Set by the first core that panics or stops the node; the NMI entry looks at it.
pub static STOPPING: AtomicU32 = AtomicU32::new(0);

/// The registers that `entry.S` saves at a fatal exception.
#[derive(Debug)]
#[repr(C)]
pub struct FatalFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Halts all other cores. A second core that asks, or a panic inside a panic, halts here.
pub fn stop_others() {
    if STOPPING.swap(1, Ordering::AcqRel) != 0 {
        halt_forever();
    }
    smp::stop_others();
}

fn print_core() {
    match percpu::core_if_known() {
        Some(core) => print!("kernel panic on core {core}"),
        None => print!("kernel panic"),
    }
}

/// Ends a boot that cannot go on, through no fault of the kernel's: says why, and halts.
pub fn refuse(reason: fmt::Arguments<'_>) -> ! {
    stop_others();
    print!("this node does not start: {reason}");
    halt_forever()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    stop_others();
    print_core();
    print!("{info}");
    halt_forever()
}

const MACHINE_CHECK: u64 = 18;

/// An exception in ring 0, a double fault or a machine check.
pub extern "C" fn on_fatal(frame: &FatalFrame) -> ! {
    stop_others();
    print_core();
    let f = frame;
    print!("exception {} in ring {}, error code {:#x}", f.vector, f.cs & 3, f.error_code);
    print!("rip {:016x} rsp {:016x} rflags {:x} cs {:x} ss {:x}", f.rip, f.rsp, f.rflags, f.cs, f.ss);
    print!("rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx);
    print!("rsi {:016x} rdi {:016x} rbp {:016x} cr2 {:016x}", f.rsi, f.rdi, f.rbp, read_cr2());
    print!("r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}", f.r8, f.r9, f.r10, f.r11);
    print!("r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}", f.r12, f.r13, f.r14, f.r15);
    print!("cr3 {:016x}", read_cr3());
    if f.vector == MACHINE_CHECK {
        print_machine_check_banks();
    }
    halt_forever()
}

/// Tells every bank that holds an error (Intel SDM 3B, 16.3).
fn print_machine_check_banks() {
    const MCG_CAP: u32 = 0x179;
    const MCG_STATUS: u32 = 0x17a;
    const BANK_0: u32 = 0x400;
    // SAFETY: a machine check came, so the processor has the registers.
    let count = unsafe { read_msr(MCG_CAP) } & 0xff;
    // SAFETY: as above.
    let status = unsafe { read_msr(MCG_STATUS) };
    print!("machine check status {status:#x}, {count} banks");
    for bank in 0..count.min(32) as u32 {
        let register = BANK_0 + 4 * bank;
        // SAFETY: the bank is among those that the processor counts.
        let status = unsafe { read_msr(register + 1) };
        if status >> 63 == 0 {
            continue;
        }
        let read_if = |bit: u32, offset: u32| {
            if status >> bit & 1 == 0 {
                return 0;
            }
            // SAFETY: the bank's status says that this register is valid.
            unsafe { read_msr(register + offset) }
        };
        print!("bank {bank}: status {status:#x} address {:#x} misc {:#x}", read_if(58, 2), read_if(59, 3));
    }
}
