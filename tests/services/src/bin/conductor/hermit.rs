//! hermit-abi's calls, as a program that knows nothing else would make them: threads, futexes, time, memory, output.
#![expect(unsafe_code, reason = "the calls are declared with the C ABI")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hermit_abi::{CLOCK_MONOTONIC, ENOSYS, ETIMEDOUT, FUTEX_RELATIVE_TIMEOUT, timespec};
use rt::start::Start;

use crate::{Outcome, ensure};

/// What each thread adds to, under the lock.
static SUM: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicU32 = AtomicU32::new(0);
const ROUNDS: u64 = 500;

/// A lock of two states on a futex: 0 free, 1 taken.
fn locked(act: impl FnOnce()) {
    while LOCK.swap(1, Ordering::Acquire) != 0 {
        // SAFETY: the word is a static.
        unsafe { hermit_abi::futex_wait(LOCK.as_ptr(), 1, core::ptr::null(), 0) };
    }
    act();
    LOCK.store(0, Ordering::Release);
    // SAFETY: the word is a static.
    unsafe { hermit_abi::futex_wake(LOCK.as_ptr(), 1) };
}

extern "C" fn add(amount: usize) {
    for _ in 0..ROUNDS {
        locked(|| {
            // Not one atomic step: only the lock keeps it whole.
            let before = SUM.load(Ordering::Relaxed);
            // SAFETY: it may be called at any time.
            unsafe { hermit_abi::yield_now() };
            SUM.store(before + amount as u64, Ordering::Relaxed);
        });
    }
}

fn now() -> Option<u64> {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place can be written.
    let status = unsafe { hermit_abi::clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    let nanoseconds = u64::try_from(time.tv_nsec).ok()?;
    if status == 0 { Some(u64::try_from(time.tv_sec).ok()? * 1_000_000_000 + nanoseconds) } else { None }
}

/// Makes the calls, and looks at what each says.
pub fn run(start: &Start<'_>) -> Outcome {
    threads(start)?;
    time()?;
    memory()?;
    let text = b"hermit-abi writes to the log";
    // SAFETY: the bytes can be read.
    let written = unsafe { hermit_abi::write(hermit_abi::STDOUT_FILENO, text.as_ptr(), text.len()) };
    ensure!(written == 28, "write gives {written}");
    // SAFETY: the name ends with a zero.
    let absent = unsafe { hermit_abi::open(c"/etc/passwd".as_ptr(), 0, 0) };
    ensure!(absent == -ENOSYS, "open, which is not there, gives {absent}");
    Ok(())
}

fn threads(start: &Start<'_>) -> Outcome {
    // SAFETY: it may be called at any time.
    let cores = unsafe { hermit_abi::available_parallelism() };
    ensure!(cores as u64 == u64::from(start.cores()), "{cores} cores");
    let mut ids = [0; 3];
    for (place, id) in ids.iter_mut().enumerate() {
        let core = isize::try_from(place % cores).unwrap_or(-1);
        // SAFETY: the function takes what is passed, and the place can be written.
        let status = unsafe { hermit_abi::spawn(id, add, place + 1, 1, core) };
        ensure!(status == 0, "spawn gives {status}");
    }
    for id in ids {
        // SAFETY: any number may be passed.
        let status = unsafe { hermit_abi::join(id) };
        ensure!(status == 0, "join gives {status}");
    }
    let sum = SUM.load(Ordering::Relaxed);
    ensure!(sum == ROUNDS * 6, "three threads added up {sum}");
    Ok(())
}

fn time() -> Outcome {
    let Some(before) = now() else { crate::fail!("the clock does not answer") };
    let pause = timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    // SAFETY: the time can be read.
    let status = unsafe { hermit_abi::nanosleep(&raw const pause) };
    let between = now().unwrap_or(0);
    ensure!(status == 0 && between >= before + 2_000_000, "a sleep of 2 ms gives {status}, {between}");
    let word = AtomicU32::new(5);
    // SAFETY: the word and the time are there until the call returns.
    let status =
        unsafe { hermit_abi::futex_wait(word.as_ptr(), 5, &raw const pause, FUTEX_RELATIVE_TIMEOUT) };
    let after = now().unwrap_or(0);
    ensure!(status == -ETIMEDOUT && after >= between + 2_000_000, "a futex of 2 ms gives {status}, {after}");
    Ok(())
}

fn memory() -> Outcome {
    for round in 0..100usize {
        let size = 64 << (round % 8);
        // SAFETY: size and alignment are sound.
        let block = unsafe { hermit_abi::alloc(size, 64) };
        ensure!(!block.is_null() && block.addr().is_multiple_of(64), "{size} bytes are {block:?}");
        // SAFETY: the block was given just now.
        unsafe { block.write_bytes(7, size) };
        // SAFETY: the block is what was given, of this size.
        let larger = unsafe { hermit_abi::realloc(block, size, 64, 2 * size) };
        ensure!(!larger.is_null(), "no room for {} bytes", 2 * size);
        let last = larger.wrapping_add(size - 1);
        // SAFETY: the last byte of what was copied.
        let kept = unsafe { last.read() };
        ensure!(kept == 7, "a block lost its contents when it grew");
        // SAFETY: the block is what was given, of this size.
        unsafe { hermit_abi::dealloc(larger, 2 * size, 64) };
    }
    Ok(())
}
