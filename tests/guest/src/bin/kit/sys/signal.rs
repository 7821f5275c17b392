//! Signal handlers.
#![expect(unsafe_code, reason = "system calls")]

use core::mem::zeroed;
use core::ptr;

use anyhow::Result;

use super::check;

/// A handler as `SA_SIGINFO` has it: signal, information, interrupted context.
pub type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets a signal's handler. System calls go on after it; it runs on the thread's alternate stack when there is one.
///
/// # Errors
/// Linux refuses.
pub fn handle(signal: i32, handler: Handler, flags: i32) -> Result<()> {
    // SAFETY: plain data; all zero is the default action with an empty mask.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK | flags;
    // SAFETY: the handler has the form that the flags say, and is there for ever.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }, "sigaction").map(drop)
}

/// Gives a signal its default action again. For use in handlers, so it reports nothing.
pub fn default_action(signal: i32) {
    // SAFETY: the default action needs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Sends a signal to the calling thread; its handler has run when this returns.
///
/// # Errors
/// Linux refuses.
pub fn raise(signal: i32) -> Result<()> {
    // SAFETY: what happens is what the handler does.
    check(unsafe { libc::raise(signal) }, "raise").map(drop)
}

/// A stack on which the calling thread's handlers run until it ends.
///
/// # Errors
/// Linux refuses.
pub fn set_alternate_stack(stack: &'static super::map::Map) -> Result<()> {
    let stack = libc::stack_t { ss_sp: stack.start().cast(), ss_flags: 0, ss_size: stack.bytes() };
    // SAFETY: the stack is never unmapped.
    check(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, "sigaltstack").map(drop)
}
