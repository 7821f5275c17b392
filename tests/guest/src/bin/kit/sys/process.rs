//! Processes: fork, exec, wait.
#![expect(unsafe_code, reason = "system calls")]

use core::ffi::CStr;
use core::ptr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};

use super::check;
use super::map::Map;

/// What became of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
    /// A signal stopped it.
    Stopped(i32),
    /// It goes on after a stop.
    Continued,
}

/// A child process. Dropped unwaited, it stays as it is.
#[derive(Debug)]
pub struct Child(pub libc::pid_t);

impl Child {
    /// Waits for its end.
    ///
    /// # Errors
    /// It is not our child, or not any more.
    pub fn wait(&self) -> Result<Status> {
        self.wait_for(0)
    }

    /// Waits for its end or what else `flags` say (`WUNTRACED`, `WCONTINUED`).
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait_for(&self, flags: i32) -> Result<Status> {
        let mut status = 0;
        // SAFETY: the status is ours.
        check(unsafe { libc::waitpid(self.0, &raw mut status, flags) }, "waitpid")?;
        Ok(if libc::WIFEXITED(status) {
            Status::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Status::Killed(libc::WTERMSIG(status))
        } else if libc::WIFSTOPPED(status) {
            Status::Stopped(libc::WSTOPSIG(status))
        } else if libc::WIFCONTINUED(status) {
            Status::Continued
        } else {
            bail!("wait status {status:#x}")
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn kill(&self, signal: i32) -> Result<()> {
        // SAFETY: a child that was not waited for keeps its number.
        check(unsafe { libc::kill(self.0, signal) }, "kill").map(drop)
    }
}

/// Forks a child that does `work` and exits with the code that it returns. This process must have one thread.
///
/// # Errors
/// Linux refuses.
pub fn fork(work: impl FnOnce() -> i32) -> Result<Child> {
    // SAFETY: one thread, so the child finds no lock held.
    match check(unsafe { libc::fork() }, "fork")? {
        0 => {
            let code = work();
            exit(code)
        }
        child => Ok(Child(child)),
    }
}

/// Ends this process at once.
pub fn exit(code: i32) -> ! {
    // SAFETY: no destructor has to run in a child.
    unsafe { libc::_exit(code) }
}

/// Forks a child that shares this one's memory and runs while this one waits, as `vfork(2)`, on a stack of its own.
///
/// # Errors
/// Linux refuses.
pub fn vfork(stack: &Map, work: extern "C" fn(*mut libc::c_void) -> i32) -> Result<Child> {
    let top = stack.start().wrapping_add(stack.bytes());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone and outlives it, since this process waits for its end.
    let child = unsafe { libc::clone(work, top.cast(), flags, ptr::null_mut()) };
    Ok(Child(check(child, "clone")?))
}

/// Becomes another program.
///
/// # Errors
/// It cannot; otherwise this does not return.
pub fn exec(program: &CStr, arguments: &[&CStr]) -> Result<core::convert::Infallible> {
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: strings that end in zero, in a list that ends in null.
    unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    Err(std::io::Error::last_os_error()).context("execv")
}

/// Kills a process and all others of its group, which it leads.
///
/// # Errors
/// There is no such group.
pub fn kill_group(leader: u32) -> Result<()> {
    let leader = libc::pid_t::try_from(leader)?;
    // SAFETY: the group is that of a child that was not waited for.
    check(unsafe { libc::kill(-leader, libc::SIGKILL) }, "kill").map(drop)
}

/// Replaces standard input by a pipe that has ended.
///
/// # Errors
/// Linux refuses.
pub fn close_input() -> Result<()> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    drop(writer);
    // SAFETY: the reader is open; what was standard input is nobody's in a child that is about to exec.
    check(unsafe { libc::dup2(reader.as_raw_fd(), libc::STDIN_FILENO) }, "dup2").map(drop)
}
