//! Waits end at their deadlines: never before, and in order.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ipc::abi::Error;
use rt::start::Start;

use crate::{Outcome, ensure, fail, until};

static WOKEN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Sleeps through the calls of the runtime and of hermit-abi, then in three threads at once.
pub fn run(start: &Start<'_>) -> Outcome {
    for microseconds in [1, 50, 1_000, 20_000] {
        let duration = Duration::from_micros(microseconds);
        let deadline = rt::deadline_in(duration);
        rt::sleep(duration);
        ensure!(rt::now() >= deadline, "a sleep of {microseconds} us ended too early");
    }
    let deadline = rt::deadline_in(Duration::from_millis(2));
    let result = rt::syscall::wait(1 << 61, deadline);
    ensure!(result == Err(Error::TimedOut), "a wait for nothing ended with {result:?}");
    ensure!(rt::now() >= deadline, "a wait ended too early");
    let past = rt::syscall::wait(1 << 61, 1);
    ensure!(past == Err(Error::TimedOut), "a wait until a time that is past ended with {past:?}");
    in_order(start)
}

/// A service that is more urgent can keep the core so long that a sleep begins after its end; then the round says nothing
/// and is repeated.
fn in_order(start: &Start<'_>) -> Outcome {
    for _ in 0..100 {
        if round(start)? {
            return Ok(());
        }
    }
    fail!("a hundred times a sleep began too late")
}

/// Three sleeps; whether all of them began in time.
fn round(start: &Start<'_>) -> Result<bool, crate::Failure> {
    let core = u64::from(start.cores()) - 1;
    ENDED.store(0, Ordering::Relaxed);
    LATE.store(0, Ordering::Relaxed);
    WOKEN.iter().for_each(|woken| woken.store(0, Ordering::Relaxed));
    // The same for all, and far enough away for all to have begun by then.
    FIRST.store(rt::deadline_in(Duration::from_millis(200)), Ordering::Release);
    // The longest sleep starts first.
    for place in (0..WOKEN.len()).rev() {
        // The threads of the round before may still be ending.
        until(60, "a thread", || match rt::syscall::spawn_thread(sleeper, place, core) {
            Ok(_) => Ok(true),
            Err(Error::NoRoom) => Ok(false),
            Err(error) => fail!("no thread: {error}"),
        })?;
    }
    until(60, "three sleeps", || Ok(WOKEN.iter().all(|woken| woken.load(Ordering::Acquire) != 0)))?;
    if LATE.load(Ordering::Relaxed) != 0 {
        return Ok(false);
    }
    let woken = [0, 1, 2].map(|place: usize| WOKEN[place].load(Ordering::Relaxed));
    ensure!(woken == [1, 2, 3], "sleeps until three times, one after another, ended in the order {woken:?}");
    Ok(true)
}

/// The first of the three deadlines.
static FIRST: AtomicU64 = AtomicU64::new(0);
/// How many sleeps have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);
/// How many began when they should have ended.
static LATE: AtomicU64 = AtomicU64::new(0);

extern "C" fn sleeper(place: usize, _: usize) -> ! {
    let deadline = FIRST.load(Ordering::Acquire) + 1000 * place as u64;
    if rt::now() >= deadline {
        LATE.fetch_add(1, Ordering::Relaxed);
    }
    while rt::now() < deadline {
        // Nobody raises the bit; it ends at the deadline.
        let _ = rt::syscall::wait(1 << 60, deadline);
    }
    WOKEN[place % WOKEN.len()].store(ENDED.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
    rt::syscall::exit_thread(0)
}
