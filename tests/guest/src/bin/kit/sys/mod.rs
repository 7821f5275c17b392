//! Linux and the processor behind safe functions: all system calls of the tests are here.

pub mod clock;
pub mod cpu;
pub mod fault;
pub mod futex;
pub mod map;
pub mod process;
pub mod signal;
pub mod timer;

use anyhow::{Context, Result};

/// The size of a page in bytes.
pub const PAGE: usize = 4096;

/// The error that the last system call of this thread left when `result` is -1.
///
/// # Errors
/// That one, with what was tried.
pub fn check<T: PartialEq + From<i8>>(result: T, what: &'static str) -> Result<T> {
    if result == T::from(-1) { Err(std::io::Error::last_os_error()).context(what) } else { Ok(result) }
}
