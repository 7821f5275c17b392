//! Linux's clocks in nanoseconds.
#![expect(unsafe_code, reason = "system calls")]

use core::time::Duration;

use anyhow::{Result, bail};

use super::check;

/// A clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_REALTIME`.
    Realtime,
}

impl Clock {
    /// Linux's number for it.
    pub fn id(self) -> libc::clockid_t {
        match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::Realtime => libc::CLOCK_REALTIME,
        }
    }

    /// Its time in nanoseconds; without a system call where the clock source allows that.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn now(self) -> Result<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is ours.
        check(unsafe { libc::clock_gettime(self.id(), &raw mut time) }, "clock_gettime")?;
        nanoseconds(time)
    }

    /// Its time in nanoseconds as the kernel itself reads it.
    ///
    /// # Errors
    /// Linux refuses.
    pub fn now_by_kernel(self) -> Result<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is ours.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, self.id(), &raw mut time) };
        check(result, "clock_gettime")?;
        nanoseconds(time)
    }
}

fn nanoseconds(time: libc::timespec) -> Result<u64> {
    Ok(u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_nsec)?)
}

/// The duration as Linux takes it.
///
/// # Errors
/// It is longer than Linux can say.
pub fn timespec(nanoseconds: u64) -> Result<libc::timespec> {
    Ok(libc::timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000)?,
        tv_nsec: i64::try_from(nanoseconds % 1_000_000_000)?,
    })
}

/// Until when a sleep is.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So long from now on.
    After(Duration),
    /// `CLOCK_MONOTONIC` shows so many nanoseconds.
    At(u64),
}

/// Sleeps by `clock_nanosleep` on `CLOCK_MONOTONIC`; a signal ends it early, with an error.
///
/// # Errors
/// Linux refuses.
pub fn sleep(until: Until) -> Result<()> {
    let (flags, time) = match until {
        Until::After(duration) => (0, timespec(u64::try_from(duration.as_nanos())?)?),
        Until::At(time) => (libc::TIMER_ABSTIME, timespec(time)?),
    };
    // SAFETY: the time is only read, and no remainder is asked for.
    match unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, flags, &raw const time, core::ptr::null_mut())
    } {
        0 => Ok(()),
        error => bail!("clock_nanosleep: {}", std::io::Error::from_raw_os_error(error)),
    }
}
