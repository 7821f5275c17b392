//! Instructions that may fault: what signal they end in.
//!
//! [`attempt!`](crate::sys::fault::attempt) runs assembly with where to go on in R15 and a mark in R13. The handler of a
//! fault that finds the mark puts the signal's number into R14 and goes on there; without the mark it is a mistake of
//! the program, and ends it as ever.
#![expect(unsafe_code, reason = "the interrupted context is a raw pointer")]

use anyhow::Result;

use super::signal;

/// What R13 holds while a fault is expected.
pub const MARK: i64 = 0x5afe_fa17;

/// Catches the signals of faults from now on.
///
/// # Errors
/// Linux refuses.
pub fn catch() -> Result<()> {
    for number in [libc::SIGSEGV, libc::SIGILL, libc::SIGBUS, libc::SIGFPE, libc::SIGTRAP] {
        signal::handle(number, recover, 0)?;
    }
    Ok(())
}

extern "C" fn recover(number: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: Linux passes the context of what was interrupted, which is the handler's alone.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    if registers[libc::REG_R13 as usize] == MARK {
        registers[libc::REG_R13 as usize] = 0;
        registers[libc::REG_R14 as usize] = i64::from(number);
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
        // Not in the middle of a repeated instruction, stepping, or backwards.
        const TF_DF: i64 = 1 << 8 | 1 << 10;
        registers[libc::REG_EFL as usize] &= !TF_DF;
    } else {
        signal::default_action(number);
    }
}

/// Runs assembly that may fault; the signal's number, or 0 when there was none. An unsafe operation: the assembly must be
/// sound wherever in it a fault ends it. Label 77 and registers R12 to R15 are taken; the stack pointer is
/// put right at the end.
macro_rules! attempt {
    ($($code:literal),+ $(; $($operands:tt)+)?) => {{
        let signal: u64;
        core::arch::asm!(
            "mov r12, rsp",
            "lea r15, [rip + 77f]",
            "mov r13, {mark}",
            "xor r14d, r14d",
            $($code,)+
            "77:",
            "mov rsp, r12",
            "xor r13d, r13d",
            $($($operands)+,)?
            mark = const $crate::sys::fault::MARK,
            out("r12") _,
            out("r13") _,
            out("r14") signal,
            out("r15") _,
        );
        signal
    }};
}
pub(crate) use attempt;
