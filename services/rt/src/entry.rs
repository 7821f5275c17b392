//! Where a service begins, and how it ends when it panics.
#![expect(unsafe_code, reason = "the entry from the kernel, and the one-time set-up of the heap")]

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::sync::atomic::AtomicU32;
use core::time::Duration;

use ipc::abi::{MAX_PANIC_BYTES, NEVER, StartPage};

use crate::region::address;
use crate::start::Start;
use crate::text::Text;
use crate::time::Clock;
use crate::{heap, syscall};

unsafe extern "Rust" {
    /// The service's `main`, named by [`crate::entry!`].
    safe fn __service_main(start: &'static Start<'static>) -> !;
}

/// Names the function that a service begins with: `fn main(start: &'static Start<'static>) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            // The name that the runtime's entry calls; this macro alone defines it.
            #[unsafe(no_mangle)]
            fn __service_main(start: &'static $crate::start::Start<'static>) -> ! {
                $main(start)
            }
        };
    };
}

struct StartCell(UnsafeCell<Option<Start<'static>>>);

// SAFETY: written once, by the first thread before there is a second; only read afterwards.
unsafe impl Sync for StartCell {}

static START: StartCell = StartCell(UnsafeCell::new(None));

/// The kernel enters the first thread here with `rdi` = the start page, `rsi` = the slot 0, `rsp` as after a
/// call. The debugger's view of the stack ends here.
///
/// # Safety
/// For the kernel alone.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "jmp {begin}", begin = sym begin)
}

extern "C" fn begin(page: *const StartPage) -> ! {
    // SAFETY: the kernel passes the address of the start page, which is mapped read-only and written by
    // nobody while the service runs.
    let page: &'static StartPage = unsafe { &*page };
    let Some(start) = Start::new(page) else { panic!("no start page") };
    // SAFETY: the only thread there is; nothing has read the cell yet.
    unsafe { *START.0.get() = Some(start) };
    // SAFETY: the first and only time, before any allocation.
    unsafe { heap::initialise(address(start.heap_bytes())) };
    __service_main(self::start())
}

/// What the service was told at its start.
#[must_use]
pub fn start() -> &'static Start<'static> {
    // SAFETY: the cell was written before anything could call this and is only read from then on.
    let start: &'static Option<Start<'static>> = unsafe { &*START.0.get() };
    match start {
        Some(start) => start,
        None => panic!("the runtime is not set up"),
    }
}

/// The rate of the time stamp counter.
#[must_use]
pub fn clock() -> Clock {
    start().clock()
}

/// The time now, in ticks of the time stamp counter.
#[inline]
#[must_use]
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and the kernel leaves it open to ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The deadline that lies `duration` from now, in ticks.
#[must_use]
pub fn deadline_in(duration: Duration) -> u64 {
    // One less than "never" at most.
    now().saturating_add(clock().ticks(duration)).min(NEVER - 1)
}

/// Sleeps.
pub fn sleep(duration: Duration) {
    let deadline = deadline_in(duration);
    let nobody_wakes = AtomicU32::new(0);
    // Ends with its deadline.
    let _ = syscall::futex_wait(&nobody_wakes, 0, deadline);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let text = match info.location() {
        Some(place) => Text::<MAX_PANIC_BYTES>::of(format_args!(
            "{} ({}:{})",
            info.message(),
            place.file(),
            place.line()
        )),
        None => Text::of(format_args!("{}", info.message())),
    };
    syscall::panic(text.as_str())
}
