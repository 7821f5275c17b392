//! The server of the smallest call there is: a loop of three instructions that `bench.rs` counts.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a loop whose instructions are counted")]

use core::arch::asm;

use ipc::abi::{NEVER, RECEIVE_MESSAGES, Syscall};
use rt::start::Start;

rt::entry!(main);

fn main(_: &'static Start<'static>) -> ! {
    // SAFETY: receives for ever; the token to reply to stays in RDI, the message's label and words in theirs.
    unsafe {
        asm!(
            "2: mov eax, {receive}",
            "syscall",
            "jmp 2b",
            receive = const Syscall::Receive as u64,
            in("rdi") 0u64,
            in("rsi") 0u64,
            in("r12") NEVER,
            in("r13") RECEIVE_MESSAGES,
            options(noreturn, nostack),
        )
    }
}
