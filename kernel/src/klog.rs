//! The kernel's own log: defmt frames like everybody's.
//!
//! A frame is put together in the buffer of the core that logs. Whole frames wait in one small queue until somebody
//! with the kernel's state at hand moves them to that core's log ring: the kernel logs seldom, at boot above all.
#![expect(unsafe_code, reason = "defmt's logger trait, and one buffer per core in a static")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use heapless::Vec;
use ipc::abi::{LOG_KERNEL, MAX_CORES, MAX_LOG_BYTES};
use kernel::ids::CoreId;
use kernel::machine::Machine;
use kernel::state::State;

use crate::hw::lock::Lock;
use crate::hw::percpu;

/// Frames that wait: each its length in two bytes, then its bytes.
static WAITING: Lock<Vec<u8, 4096>> = Lock::new(Vec::new());
/// Whether there are any.
static SOME: AtomicBool = AtomicBool::new(false);

struct Buffers([UnsafeCell<Vec<u8, MAX_LOG_BYTES>>; MAX_CORES]);

// SAFETY: a core uses its own buffer alone, and nothing interrupts the kernel.
unsafe impl Sync for Buffers {}

static BUFFERS: Buffers = Buffers([const { UnsafeCell::new(Vec::new()) }; MAX_CORES]);

fn with_buffer(act: impl FnOnce(&mut Vec<u8, MAX_LOG_BYTES>)) {
    let core = percpu::core_if_known().unwrap_or(0);
    // SAFETY: the buffer is this core's, and `act` does not log.
    act(unsafe { &mut *BUFFERS.0[core].get() });
}

#[defmt::global_logger]
struct Logger;

// SAFETY: a frame is acquired and released on one core, without interruption, so frames do not mix.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        with_buffer(Vec::clear);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        with_buffer(|frame| {
            let mut waiting = WAITING.lock();
            let room = waiting.capacity() - waiting.len();
            let Ok(length) = u16::try_from(frame.len()) else { return };
            // What does not fit is lost: the queue holds more than a boot says.
            if frame.len() + 2 <= room {
                let _ = waiting.extend_from_slice(&length.to_le_bytes());
                let _ = waiting.extend_from_slice(frame);
                SOME.store(true, Ordering::Release);
            }
        });
    }

    unsafe fn write(bytes: &[u8]) {
        // A frame that is too long is cut; its decoder says so.
        with_buffer(|frame| {
            let room = frame.capacity() - frame.len();
            let _ = frame.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        });
    }
}

/// Moves the frames that wait to this core's log ring.
pub fn flush<M: Machine>(state: &mut State, m: &mut M, core: CoreId) {
    if !SOME.load(Ordering::Acquire) {
        return;
    }
    let mut waiting = WAITING.lock();
    let mut rest: &[u8] = &waiting;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let Some((frame, tail)) = tail.split_at_checked(usize::from(u16::from_le_bytes(*length))) else {
            break;
        };
        state.log(m, core, LOG_KERNEL, 0, frame);
        rest = tail;
    }
    waiting.clear();
    SOME.store(false, Ordering::Release);
}
