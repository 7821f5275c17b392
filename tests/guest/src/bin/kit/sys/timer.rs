//! Timers that end in a file descriptor or in a signal.
#![expect(unsafe_code, reason = "system calls")]

use core::mem::zeroed;
use core::ptr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};

use super::check;
use super::clock::timespec;

/// A timer that counts its expirations (`timerfd_create(2)`), on `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct TimerFile(File);

impl TimerFile {
    /// One that is not running.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn new() -> Result<Self> {
        // SAFETY: makes a new descriptor.
        let descriptor = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }, "timerfd_create")?;
        // SAFETY: it is new, so nobody else has it.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// Expires first after so many nanoseconds, and then periodically unless the period is 0.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn set(&self, first: u64, period: u64) -> Result<()> {
        let times = libc::itimerspec { it_interval: timespec(period)?, it_value: timespec(first)? };
        // SAFETY: the times are only read, and the old ones are not asked for.
        let result =
            unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const times, ptr::null_mut()) };
        check(result, "timerfd_settime").map(drop)
    }

    /// Waits for an expiration; how many there were since the last call.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn wait(&mut self) -> Result<u64> {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).context("timerfd")?;
        Ok(u64::from_ne_bytes(count))
    }
}

/// A timer that sends signals to the thread that made it, until it is dropped.
#[derive(Debug)]
pub struct SignalTimer(libc::timer_t);

impl SignalTimer {
    /// Sends `signal` every `period` nanoseconds.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn start(signal: i32, period: u64) -> Result<Self> {
        // SAFETY: plain data without invalid values.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: has no arguments.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both structures are ours.
        let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        check(result, "timer_create")?;
        let timer = Self(timer);
        let times = libc::itimerspec { it_interval: timespec(period)?, it_value: timespec(period)? };
        // SAFETY: the timer was made above; the times are only read.
        let result = unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) };
        check(result, "timer_settime")?;
        Ok(timer)
    }
}

impl Drop for SignalTimer {
    fn drop(&mut self) {
        // SAFETY: made by `start`, and deleted nowhere else.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Sends SIGALRM to the process every so many microseconds of wall-clock time (`ITIMER_REAL`); 0 ends that.
///
/// # Errors
/// Linux refuses.
pub fn set_alarm(microseconds: u32) -> Result<()> {
    let period = libc::timeval { tv_sec: 0, tv_usec: i64::from(microseconds.min(999_999)) };
    let times = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: the times are only read, and the old ones are not asked for.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const times, ptr::null_mut()) }, "setitimer")
        .map(drop)
}
