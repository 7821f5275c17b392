//! Locked instructions count exactly, wherever their operand lies, and locks and futexes let one thread in at a time.
#![expect(unsafe_code, reason = "the instructions themselves")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::options::Options;
use crate::sys::futex::{self, Scope};
use crate::sys::map::{Map, Sharing};
use crate::sys::process::{self, Status};
use crate::sys::{PAGE, cpu};

/// Adds one to a little-endian number of memory. Unsafe: the bytes at the address must be the program's, and be used by
/// nothing but such instructions meanwhile.
type Step = unsafe fn(*mut u8);

/// What counts, the bytes of its number, and whether the number must be aligned to them.
struct Instruction {
    name: &'static str,
    bytes: usize,
    place: Place,
    step: Step,
}

enum Place {
    Anywhere,
    Aligned,
}

macro_rules! instruction {
    ($name:literal, $bytes:literal, $place:ident, $($code:literal),+; $($operands:tt)*) => {{
        unsafe fn step(at: *mut u8) {
            // SAFETY: the caller gives the number's address; nothing else in memory is changed.
            unsafe { asm!($($code,)+ at = in(reg) at, $($operands)*) }
        }
        Instruction { name: $name, bytes: $bytes, place: Place::$place, step }
    }};
}

const INSTRUCTIONS: [Instruction; 8] = [
    instruction!("xadd8", 1, Anywhere, "mov {one}, 1", "lock xadd byte ptr [{at}], {one}"; one = out(reg_byte) _),
    instruction!("inc16", 2, Anywhere, "lock inc word ptr [{at}]";),
    instruction!("add32", 4, Anywhere, "lock add dword ptr [{at}], 1";),
    instruction!("xadd64", 8, Anywhere, "mov {one:e}, 1", "lock xadd qword ptr [{at}], {one}"; one = out(reg) _),
    instruction!("sub64", 8, Anywhere, "lock sub qword ptr [{at}], -1";),
    instruction!("cmpxchg64", 8, Anywhere,
        "mov rax, [{at}]",
        "2: lea {new}, [rax + 1]",
        "lock cmpxchg qword ptr [{at}], {new}",
        "jnz 2b";
        new = out(reg) _, out("rax") _),
    // Without a lock prefix it is locked all the same.
    instruction!("xchg32", 4, Anywhere,
        // Takes the number out, leaving a mark that no count reaches, and puts it back with one more.
        "2: mov {value:e}, -1",
        "xchg dword ptr [{at}], {value:e}",
        "cmp {value:e}, -1",
        "jne 3f",
        "pause",
        "jmp 2b",
        "3: inc {value:e}",
        "xchg dword ptr [{at}], {value:e}";
        value = out(reg) _),
    // The high half counts down.
    instruction!("cmpxchg16b", 16, Aligned,
        "mov {saved}, rbx",
        "xor eax, eax",
        "xor edx, edx",
        "2: mov rbx, rax",
        "mov rcx, rdx",
        "inc rbx",
        "dec rcx",
        "lock cmpxchg16b xmmword ptr [{at}]",
        "jnz 2b",
        "mov rbx, {saved}";
        saved = out(reg) _, out("rax") _, out("rcx") _, out("rdx") _),
];

/// Where a number begins: aligned, across 16 bytes, across a cache line, and across pages.
const OFFSETS: [(&str, Crossing); 4] = [
    ("aligned", Crossing::None),
    ("in a line", Crossing::At(16)),
    ("across lines", Crossing::At(64)),
    ("across pages", Crossing::At(PAGE)),
];

enum Crossing {
    None,
    At(usize),
}

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    let iterations = options.iterations(5_000);
    let splits = split_locks()?;
    let map = Map::anonymous(2 * PAGE, Sharing::Private)?;
    let mut counted = 0;
    for instruction in &INSTRUCTIONS {
        for (name, crossing) in &OFFSETS {
            let (at, iterations) = match crossing {
                Crossing::None => (0, iterations),
                // Emulators stop every processor for one, and some kernels slow its user down.
                Crossing::At(_) if splits == Splits::Forbidden => continue,
                Crossing::At(_) if matches!(instruction.place, Place::Aligned) || instruction.bytes == 1 => {
                    continue;
                }
                Crossing::At(line) => (line - instruction.bytes / 2, (iterations / 10).max(1)),
            };
            count(instruction, &map, at, &cpus, iterations)
                .with_context(|| format!("{} {name}", instruction.name))?;
            counted += 1;
        }
    }
    spin_lock(&cpus, iterations)?;
    let turns = options.scaled(1_000);
    futex_threads(&cpus, turns)?;
    futex_processes(&cpus, turns)?;
    Ok(format!(
        "cpus={} counters={counted} adds={iterations} splits={splits:?} futex-turns={turns}",
        cpus.len()
    ))
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Splits {
    Allowed,
    Forbidden,
}

/// Whether locked instructions may cross a cache line: Linux kills their user where the processor can detect them and it
/// was told to (`split_lock_detect=fatal`).
fn split_locks() -> Result<Splits> {
    let map = Map::anonymous(PAGE, Sharing::Private)?;
    let child = process::fork(|| {
        // SAFETY: the four bytes are in the mapping, which is this child's.
        unsafe { asm!("lock inc dword ptr [{at}]", at = in(reg) map.start().wrapping_add(62)) };
        0
    })?;
    match child.wait()? {
        Status::Exited(0) => Ok(Splits::Allowed),
        Status::Killed(libc::SIGBUS) => Ok(Splits::Forbidden),
        other => Err(anyhow!("a locked instruction across a cache line: {other:?}")),
    }
}

/// Runs `work` in a thread on each processor (two at least), all at the same time.
fn together(cpus: &[usize], work: impl Fn(usize) -> Result<()> + Sync) -> Result<usize> {
    let threads = cpus.len().max(2);
    let start = Barrier::new(threads);
    let (start, work) = (&start, &work);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|number| {
                let cpu = cpus[number % cpus.len()];
                scope.spawn(move || {
                    let pinned = cpu::pin(cpu);
                    start.wait();
                    pinned.and_then(|()| work(number))
                })
            })
            .collect();
        handles.into_iter().try_for_each(|handle| handle.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    Ok(threads)
}

fn count(instruction: &Instruction, map: &Map, at: usize, cpus: &[usize], iterations: u64) -> Result<()> {
    let bytes = map.as_bytes();
    for byte in bytes {
        byte.store(0, Ordering::Relaxed);
    }
    let threads = together(cpus, |_| {
        for _ in 0..iterations {
            // SAFETY: the number is inside the mapping, which only these threads use.
            unsafe { (instruction.step)(map.start().wrapping_add(at)) };
        }
        Ok(())
    })?;
    let adds = iterations * threads as u64;
    let wanted = match instruction.bytes {
        16 => u128::from(adds) | u128::from(adds.wrapping_neg()) << 64,
        bytes => u128::from(adds) & ((1 << (8 * bytes)) - 1),
    };
    let found = |from: usize, length: usize| {
        let bytes = bytes[from..from + length].iter().rev();
        bytes.fold(0u128, |number, byte| number << 8 | u128::from(byte.load(Ordering::Relaxed)))
    };
    let number = found(at, instruction.bytes);
    ensure!(number == wanted, "{number:#x} after {adds} adds, not {wanted:#x}");
    let around = bytes[..at].iter().chain(&bytes[at + instruction.bytes..]);
    let strays = around.filter(|byte| byte.load(Ordering::Relaxed) != 0).count();
    ensure!(strays == 0, "{strays} bytes beside the number were changed");
    Ok(())
}

/// Numbers on two pages that only the holder of a lock changes, by plain loads and stores.
fn spin_lock(cpus: &[usize], iterations: u64) -> Result<()> {
    let lock = AtomicBool::new(false);
    let map = Map::anonymous(2 * PAGE, Sharing::Private)?;
    let words = map.words();
    let (first, second) = (&words[0], &words[PAGE / 8]);
    let bump = |word: &AtomicU64| word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let threads = together(cpus, |number| {
        for _ in 0..iterations {
            let mut waited = 0;
            while lock.swap(true, Ordering::Acquire) {
                cpu::relax(&mut waited);
            }
            let (one, two) = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
            bump(first);
            bump(second);
            lock.store(false, Ordering::Release);
            ensure!(one == two, "thread {number} found {one} and {two} under the spin lock");
        }
        Ok(())
    })?;
    let (found, wanted) = (first.load(Ordering::Relaxed), iterations * threads as u64);
    ensure!(found == wanted, "{found} under the spin lock, not {wanted}");
    Ok(())
}

/// Waits until it is turn `turn`, and then makes it the next one; again and again, every second turn.
fn ping_pong(word: &AtomicU32, first: u32, turns: u64, scope: Scope) -> Result<()> {
    let mut turn = first;
    for _ in 0..turns {
        loop {
            let now = word.load(Ordering::Acquire);
            if now == turn {
                break;
            }
            ensure!(now == turn.wrapping_sub(1), "the futex is at turn {now}, not near {turn}");
            futex::wait(word, now, scope)?;
        }
        word.store(turn.wrapping_add(1), Ordering::Release);
        futex::wake(word, scope)?;
        turn = turn.wrapping_add(2);
    }
    Ok(())
}

fn futex_threads(cpus: &[usize], turns: u64) -> Result<()> {
    let word = AtomicU32::new(0);
    let pair = [cpus[0], cpus[cpus.len() - 1]];
    let pass = |first: u32| {
        cpu::pin(pair[first as usize]).and_then(|()| ping_pong(&word, first, turns, Scope::Process))
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| pass(1));
        pass(0)?;
        other.join().map_err(|_| anyhow!("a thread panicked"))?
    })?;
    ensure!(u64::from(word.load(Ordering::Relaxed)) == 2 * turns, "the futex's turns were not all taken");
    Ok(())
}

fn futex_processes(cpus: &[usize], turns: u64) -> Result<()> {
    let map = Map::anonymous(PAGE, Sharing::Shared)?;
    // SAFETY: the mapping begins with these four aligned bytes, and they are used as this atomic alone.
    let word = unsafe { AtomicU32::from_ptr(map.start().cast()) };
    let last = cpus[cpus.len() - 1];
    let child = process::fork(|| {
        i32::from(cpu::pin(last).and_then(|()| ping_pong(word, 1, turns, Scope::Shared)).is_err())
    })?;
    cpu::pin(cpus[0])?;
    ping_pong(word, 0, turns, Scope::Shared)?;
    let status = child.wait()?;
    ensure!(status == Status::Exited(0), "the other process of the futex: {status:?}");
    // A wake-up that is lost shows as a hang, a wait that does not sleep as a pass: see that it sleeps.
    let start = std::time::Instant::now();
    thread::scope(|scope| {
        let now = word.load(Ordering::Relaxed);
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            word.store(now.wrapping_add(1), Ordering::Release);
            futex::wake(word, Scope::Shared)
        });
        while word.load(Ordering::Acquire) == now {
            futex::wait(word, now, Scope::Shared)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(start.elapsed() >= Duration::from_millis(20), "a futex woke before it was woken");
    Ok(())
}
