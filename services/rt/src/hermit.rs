//! The `sys_*` symbols of hermit-abi 0.5, on the kernel's calls: services can be written against that crate.
//!
//! Here and in the modules below: threads, futexes, the monotonic clock, sleeping, memory, `write` to
//! standard output and error (which go to the node's log), exit. What else returns a status answers `-ENOSYS`
//! ([`absent`]). A function that returns nothing and could therefore not say that it does nothing
//! (`block_current_task`, say) is not defined: the build of a service that uses one fails, rather than the
//! service.
//!
//! Each definition is compared with hermit-abi's declaration by [`same_as_declared`].
#![expect(unsafe_code, reason = "symbols with the C ABI, on raw pointers")]

mod absent;
mod heap;
mod thread;

use core::sync::atomic::AtomicU32;
use core::time::Duration;

use hermit_abi::{
    CLOCK_MONOTONIC, EAGAIN, EBADF, EINVAL, ETIMEDOUT, FUTEX_RELATIVE_TIMEOUT, STDERR_FILENO, STDOUT_FILENO,
    clockid_t, timespec,
};
use ipc::abi::{Error, MAX_LOG_BYTES, NEVER, PAGE_SIZE};

use crate::text::Text;
use crate::{clock, deadline_in, now, sleep, start, syscall};

/// Fails to compile when a definition has not the type that hermit-abi declares.
macro_rules! same_as_declared {
    ($($definition:ident = $declaration:ident: $type:ty;)*) => {
        const _: () = {
            $(
                let _: $type = $definition;
                let _: $type = hermit_abi::$declaration;
            )*
        };
    };
}
pub(crate) use same_as_declared;

same_as_declared! {
    sys_futex_wait = futex_wait: unsafe extern "C" fn(*mut u32, u32, *const timespec, u32) -> i32;
    sys_futex_wake = futex_wake: unsafe extern "C" fn(*mut u32, i32) -> i32;
    sys_clock_gettime = clock_gettime: unsafe extern "C" fn(clockid_t, *mut timespec) -> i32;
    sys_nanosleep = nanosleep: unsafe extern "C" fn(*const timespec) -> i32;
    sys_usleep = usleep: unsafe extern "C" fn(u64);
    sys_write = write: unsafe extern "C" fn(i32, *const u8, usize) -> isize;
    sys_getpagesize = getpagesize: unsafe extern "C" fn() -> i32;
    sys_available_parallelism = available_parallelism: unsafe extern "C" fn() -> usize;
    sys_exit = exit: unsafe extern "C" fn(i32) -> !;
    sys_abort = abort: unsafe extern "C" fn() -> !;
}

fn duration_of(time: timespec) -> Option<Duration> {
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u32::try_from(time.tv_nsec).ok().filter(|&n| n < 1_000_000_000)?;
    Some(Duration::new(seconds, nanoseconds))
}

/// # Safety
/// As hermit-abi says: `address` is null or names an aligned word, `timeout` is null or names a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_futex_wait(
    address: *mut u32,
    expected: u32,
    timeout: *const timespec,
    flags: u32,
) -> i32 {
    if address.is_null() || !address.is_aligned() || flags & !FUTEX_RELATIVE_TIMEOUT != 0 {
        return -EINVAL;
    }
    let deadline = if timeout.is_null() {
        NEVER
    } else {
        // SAFETY: not null, so it names a time.
        let Some(time) = duration_of(unsafe { timeout.read() }) else { return -EINVAL };
        if flags & FUTEX_RELATIVE_TIMEOUT != 0 {
            deadline_in(time)
        } else {
            clock().ticks(time).min(NEVER - 1)
        }
    };
    // SAFETY: not null and aligned, so it names a word, which is used as an atomic by all who wait on it.
    let word = unsafe { AtomicU32::from_ptr(address) };
    match syscall::futex_wait(word, expected, deadline) {
        Ok(()) => 0,
        Err(Error::Again) => -EAGAIN,
        Err(Error::TimedOut) => -ETIMEDOUT,
        Err(_) => -EINVAL,
    }
}

/// # Safety
/// As hermit-abi says: `address` is null or names an aligned word.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_futex_wake(address: *mut u32, count: i32) -> i32 {
    let Ok(count) = u32::try_from(count) else { return -EINVAL };
    if address.is_null() || !address.is_aligned() {
        return -EINVAL;
    }
    // SAFETY: not null and aligned, so it names a word, which is used as an atomic by all who wait on it.
    let word = unsafe { AtomicU32::from_ptr(address) };
    i32::try_from(syscall::futex_wake(word, count)).unwrap_or(i32::MAX)
}

/// The time since the processor's reset; a node has no clock of the time of day.
///
/// # Safety
/// As hermit-abi says: `time` is null or can be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_clock_gettime(id: clockid_t, time: *mut timespec) -> i32 {
    if id != CLOCK_MONOTONIC || time.is_null() {
        return -EINVAL;
    }
    let elapsed = clock().duration(now());
    let seconds = i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX);
    let nanoseconds = elapsed.subsec_nanos().cast_signed();
    // SAFETY: not null, so it can be written.
    unsafe { time.write(timespec { tv_sec: seconds, tv_nsec: nanoseconds }) };
    0
}

/// # Safety
/// As hermit-abi says: `time` is null or names a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_nanosleep(time: *const timespec) -> i32 {
    if time.is_null() {
        return -EINVAL;
    }
    // SAFETY: not null, so it names a time.
    let Some(time) = duration_of(unsafe { time.read() }) else { return -EINVAL };
    sleep(time);
    0
}

#[unsafe(no_mangle)]
extern "C" fn sys_usleep(microseconds: u64) {
    sleep(Duration::from_micros(microseconds));
}

/// Logs the text: at info level what goes to standard output, as a warning what goes to standard error.
///
/// # Safety
/// As hermit-abi says: `bytes` names `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_write(file: i32, bytes: *const u8, count: usize) -> isize {
    if file != STDOUT_FILENO && file != STDERR_FILENO {
        return -(EBADF as isize);
    }
    if bytes.is_null() || isize::try_from(count).is_err() {
        return -(EINVAL as isize);
    }
    // SAFETY: not null, so it names `count` bytes, which no thread writes while this call is under way.
    let bytes = unsafe { core::slice::from_raw_parts(bytes, count) };
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    // What is around the text in a frame needs less than 32 bytes.
    for part in bytes.chunks(MAX_LOG_BYTES - 32) {
        let text = Text::<MAX_LOG_BYTES>::lossy(part);
        if file == STDOUT_FILENO {
            defmt::info!("{=str}", text.as_str());
        } else {
            defmt::warn!("{=str}", text.as_str());
        }
    }
    count.cast_signed()
}

#[unsafe(no_mangle)]
extern "C" fn sys_getpagesize() -> i32 {
    const BYTES: u16 = 4096;
    const { assert!(BYTES as usize == PAGE_SIZE) };
    i32::from(BYTES)
}

#[unsafe(no_mangle)]
extern "C" fn sys_available_parallelism() -> usize {
    start().cores() as usize
}

/// Ends the whole service, whichever thread calls it.
#[unsafe(no_mangle)]
extern "C" fn sys_exit(status: i32) -> ! {
    if crate::current_slot() == 0 {
        syscall::exit_thread(u64::from(status.cast_unsigned()));
    }
    syscall::panic(Text::<64>::of(format_args!("a thread called exit({status})")).as_str())
}

#[unsafe(no_mangle)]
extern "C" fn sys_abort() -> ! {
    syscall::panic("abort() was called")
}
