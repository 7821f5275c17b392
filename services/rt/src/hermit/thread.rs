//! Threads.
//!
//! A thread has a record with what it runs and where it stands. Its identifier is the record's index + 2 (1
//! is the first thread, 0 nobody) and above that how often the record was used, so an old identifier never
//! names a new thread. All threads of a service have its priority, and the stack size that its manifest
//! gives.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use hermit_abi::{EAGAIN, EINVAL, Tid, pid_t};
use ipc::abi::{Error, MAX_THREADS_PER_SERVICE, NEVER};

use super::same_as_declared;
use crate::{current_slot, start, syscall};

same_as_declared! {
    sys_spawn = spawn: unsafe extern "C" fn(*mut Tid, extern "C" fn(usize), usize, u8, isize) -> i32;
    sys_spawn2 = spawn2: unsafe extern "C" fn(extern "C" fn(usize), usize, u8, usize, isize) -> Tid;
    sys_join = join: unsafe extern "C" fn(Tid) -> i32;
    sys_yield = yield_now: unsafe extern "C" fn();
    sys_getpid = getpid: unsafe extern "C" fn() -> pid_t;
}

/// The identifier of the first thread.
const FIRST: Tid = 1;
/// Bits of an identifier that hold the record's index + 2.
const INDEX_BITS: u32 = 8;
const _: () = assert!(MAX_THREADS_PER_SERVICE + 2 <= 1 << INDEX_BITS);

/// Where the thread of a record stands: the low two bits of [`Record::state`]; how often the record was used
/// is above.
const FREE: u32 = 0;
const RUNNING: u32 = 1;
const ENDED: u32 = 2;
const PHASE: u32 = 3;

struct Record {
    state: AtomicU32,
    function: AtomicPtr<()>,
    argument: AtomicUsize,
}

static RECORDS: [Record; MAX_THREADS_PER_SERVICE] = [const {
    Record {
        state: AtomicU32::new(FREE),
        function: AtomicPtr::new(core::ptr::null_mut()),
        argument: AtomicUsize::new(0),
    }
}; MAX_THREADS_PER_SERVICE];

/// The identifier of the thread in each slot.
static BY_SLOT: [AtomicU32; MAX_THREADS_PER_SERVICE] =
    [const { AtomicU32::new(FIRST) }; MAX_THREADS_PER_SERVICE];

/// Where the next thread that may run anywhere goes.
static NEXT_CORE: AtomicU32 = AtomicU32::new(1);

/// How often a spawn that finds no room tries again: a thread that was joined a moment ago may still be on
/// its way out.
const PATIENCE: u32 = 1_000;

#[expect(clippy::cast_possible_truncation, reason = "an index is below MAX_THREADS_PER_SERVICE")]
fn identifier(index: usize, state: u32) -> Tid {
    // How often the record was used wraps after 2^24 threads.
    (state >> 2) << INDEX_BITS | (index as Tid + 2)
}

fn record(id: Tid) -> Option<(&'static Record, u32)> {
    let index = (id & ((1 << INDEX_BITS) - 1)).checked_sub(2)?;
    let record = RECORDS.get(index as usize)?;
    Some((record, (id >> INDEX_BITS) << 2))
}

/// Takes a record for a new thread: one that nobody uses, or whose thread ended and was not waited for.
fn claim() -> Option<(usize, &'static Record, u32)> {
    for phase in [FREE, ENDED] {
        for (index, record) in RECORDS.iter().enumerate() {
            let state = record.state.load(Ordering::Acquire);
            if state & PHASE != phase {
                continue;
            }
            let uses = (state >> 2).wrapping_add(1) & (u32::MAX >> INDEX_BITS);
            let running = uses << 2 | RUNNING;
            if record.state.compare_exchange(state, running, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return Some((index, record, running));
            }
        }
    }
    None
}

fn spawn(function: extern "C" fn(usize), argument: usize, core: isize) -> Option<Tid> {
    let (index, record, running) = claim()?;
    record.function.store(function as *mut (), Ordering::Relaxed);
    record.argument.store(argument, Ordering::Relaxed);
    let core = u64::try_from(core)
        .unwrap_or_else(|_| u64::from(NEXT_CORE.fetch_add(1, Ordering::Relaxed) % start().cores().max(1)));
    for _ in 0..PATIENCE {
        match syscall::spawn_thread(run, index, core) {
            Ok(_) => return Some(identifier(index, running)),
            Err(Error::NoRoom) => syscall::yield_now(),
            Err(_) => break,
        }
    }
    record.state.store(running & !PHASE | FREE, Ordering::Release);
    None
}

/// Where a thread begins.
extern "C" fn run(index: usize, slot: usize) -> ! {
    if let (Some(record), Some(own)) = (RECORDS.get(index), BY_SLOT.get(slot)) {
        let running = record.state.load(Ordering::Acquire);
        own.store(identifier(index, running), Ordering::Relaxed);
        let function = record.function.load(Ordering::Relaxed);
        // SAFETY: `spawn` stored a function of this type before this thread began.
        let function = unsafe { core::mem::transmute::<*mut (), extern "C" fn(usize)>(function) };
        function(record.argument.load(Ordering::Relaxed));
        record.state.store(running & !PHASE | ENDED, Ordering::Release);
        syscall::futex_wake(&record.state, u32::MAX);
    }
    syscall::exit_thread(0)
}

/// # Safety
/// As hermit-abi says: `id` is null or can be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_spawn(
    id: *mut Tid,
    function: extern "C" fn(usize),
    argument: usize,
    _priority: u8,
    core: isize,
) -> i32 {
    let Some(new) = spawn(function, argument, core) else { return -EAGAIN };
    if !id.is_null() {
        // SAFETY: not null, so it can be written.
        unsafe { id.write(new) };
    }
    0
}

/// 0 when no thread could be started.
#[unsafe(no_mangle)]
extern "C" fn sys_spawn2(
    function: extern "C" fn(usize),
    argument: usize,
    _priority: u8,
    _stack_size: usize,
    core: isize,
) -> Tid {
    spawn(function, argument, core).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn sys_join(id: Tid) -> i32 {
    let Some((record, uses)) = record(id) else { return -EINVAL };
    if id == own() {
        return -EINVAL;
    }
    while record.state.load(Ordering::Acquire) == uses | RUNNING {
        // However the wait ends, the state is looked at again.
        let _ = syscall::futex_wait(&record.state, uses | RUNNING, NEVER);
    }
    // When it was used again already, or another thread waited too, there is nothing left to do.
    let _ = record.state.compare_exchange(uses | ENDED, uses | FREE, Ordering::AcqRel, Ordering::Relaxed);
    0
}

#[unsafe(no_mangle)]
extern "C" fn sys_yield() {
    syscall::yield_now();
}

fn own() -> Tid {
    BY_SLOT.get(current_slot()).map_or(FIRST, |id| id.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
extern "C" fn sys_getpid() -> pid_t {
    own().cast_signed()
}
