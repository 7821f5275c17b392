//! Which thread of the service this is: told by the stack it runs on.
#![expect(unsafe_code, reason = "reads the stack pointer")]

use core::arch::asm;

use ipc::abi::slot_of_stack;

/// The slot of the calling thread, from 0 (the first) to [`ipc::abi::MAX_THREADS_PER_SERVICE`] - 1.
///
/// # Panics
/// When the thread runs on a stack that the kernel did not give it.
#[inline]
#[must_use]
pub fn current_slot() -> usize {
    let pointer: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    match slot_of_stack(pointer) {
        Some(slot) => slot,
        None => foreign_stack(),
    }
}

#[cold]
fn foreign_stack() -> ! {
    panic!("the stack pointer lies in no stack of this service")
}
