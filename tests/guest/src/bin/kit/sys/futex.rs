//! Futexes: Linux's primitive for waiting (`futex(2)`).
#![expect(unsafe_code, reason = "system calls")]

use core::ptr;
use core::sync::atomic::AtomicU32;

use anyhow::{Context, Result};

/// Who uses a futex.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// The threads of this process.
    Process,
    /// Other processes, too.
    Shared,
}

impl Scope {
    fn flag(self) -> i32 {
        match self {
            Self::Process => libc::FUTEX_PRIVATE_FLAG,
            Self::Shared => 0,
        }
    }
}

/// Sleeps until woken, unless the word has another value than `value`. It may return for no reason.
///
/// # Errors
/// Linux refuses.
pub fn wait(word: &AtomicU32, value: u32, scope: Scope) -> Result<()> {
    let operation = libc::FUTEX_WAIT | scope.flag();
    let forever = ptr::null::<libc::timespec>();
    // SAFETY: the word is borrowed for the call, and Linux only reads it.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, forever) };
    if result == -1 {
        let error = std::io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(error).context("futex wait");
        }
    }
    Ok(())
}

/// Wakes one sleeper.
///
/// # Errors
/// Linux refuses.
pub fn wake(word: &AtomicU32, scope: Scope) -> Result<()> {
    // SAFETY: only the word's address is used.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | scope.flag(), 1) };
    super::check(result, "futex wake").map(drop)
}
