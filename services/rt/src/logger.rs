//! The defmt logger of a service: one buffer for each thread, one system call for each frame.
//!
//! The frames of two threads never meet, so no lock is held while a frame is made. The kernel adds time,
//! service and core to each, so defmt's own timestamp stays empty.
#![expect(unsafe_code, reason = "defmt's logger interface, and buffers that belong to one thread each")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use ipc::abi::{MAX_LOG_BYTES, MAX_THREADS_PER_SERVICE};

use crate::stack::current_slot;
use crate::syscall;

struct Frame {
    bytes: [u8; MAX_LOG_BYTES],
    length: usize,
    state: State,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Idle,
    Open,
    /// More was written than fits.
    Overlong,
}

/// The frame of each thread, by its slot.
struct Frames([UnsafeCell<Frame>; MAX_THREADS_PER_SERVICE]);

// SAFETY: a thread uses the frame of its own slot alone, and no two threads have one slot at the same time.
unsafe impl Sync for Frames {}

static FRAMES: Frames = Frames(
    [const { UnsafeCell::new(Frame { bytes: [0; MAX_LOG_BYTES], length: 0, state: State::Idle }) };
        MAX_THREADS_PER_SERVICE],
);
static OVERLONG: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Frames that were cut because they were longer than [`MAX_LOG_BYTES`], and frames that the kernel did not
/// take.
#[must_use]
pub fn losses() -> (u64, u64) {
    (OVERLONG.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed))
}

/// Lets `act` at the calling thread's frame; it must not log.
fn with_frame(act: impl FnOnce(&mut Frame)) {
    let cell = &FRAMES.0[current_slot()];
    // SAFETY: the frame is this thread's, and no other reference to it is alive: `act` cannot come back here.
    act(unsafe { &mut *cell.get() });
}

#[defmt::global_logger]
struct Logger;

// SAFETY: each thread is an execution context of its own, with a frame of its own; acquiring twice in one
// panics.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        let mut nested = false;
        with_frame(|frame| {
            nested = frame.state != State::Idle;
            frame.state = State::Open;
            frame.length = 0;
        });
        assert!(!nested, "a log frame was begun inside another");
    }

    unsafe fn flush() {}

    unsafe fn release() {
        with_frame(|frame| {
            if frame.state == State::Overlong {
                OVERLONG.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(bytes) = frame.bytes.get(..frame.length)
                && syscall::log(bytes).is_err()
            {
                REFUSED.fetch_add(1, Ordering::Relaxed);
            }
            frame.state = State::Idle;
        });
    }

    unsafe fn write(bytes: &[u8]) {
        with_frame(|frame| {
            let room = frame.bytes.get_mut(frame.length..).unwrap_or_default();
            let count = bytes.len().min(room.len());
            if let (Some(room), Some(bytes)) = (room.get_mut(..count), bytes.get(..count)) {
                room.copy_from_slice(bytes);
            }
            frame.length += count;
            if count < bytes.len() {
                frame.state = State::Overlong;
            }
        });
    }
}
