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

fn in_order(start: &Start<'_>) -> Outcome {
    let core = u64::from(start.cores()) - 1;
    // The same for all, and far enough away for all to have begun by then.
    FIRST.store(rt::deadline_in(Duration::from_millis(200)), Ordering::Release);
    // The longest sleep starts first.
    for place in (0..WOKEN.len()).rev() {
        if let Err(error) = rt::syscall::spawn_thread(sleeper, place, core) {
            fail!("no thread: {error}");
        }
    }
    until(60, "three sleeps", || Ok(WOKEN.iter().all(|woken| woken.load(Ordering::Acquire) != 0)))?;
    let woken = [0, 1, 2].map(|place: usize| WOKEN[place].load(Ordering::Relaxed));
    ensure!(woken == [1, 2, 3], "sleeps until three times, one after another, ended in the order {woken:?}");
    Ok(())
}

/// The first of the three deadlines.
static FIRST: AtomicU64 = AtomicU64::new(0);
/// How many sleeps have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

extern "C" fn sleeper(place: usize, _: usize) -> ! {
    let deadline = FIRST.load(Ordering::Acquire) + 1000 * place as u64;
    while rt::now() < deadline {
        // Nobody raises the bit; it ends at the deadline.
        let _ = rt::syscall::wait(1 << 60, deadline);
    }
    WOKEN[place % WOKEN.len()].store(ENDED.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
    rt::syscall::exit_thread(0)
}
