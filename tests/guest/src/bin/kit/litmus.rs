//! Litmus tests: what the x86 memory model (x86-TSO: Owens, Sarkar and Sewell, "A better x86 memory model", TPHOLs 2009)
//! forbids is never seen.
//!
//! A test is two or four threads that each make two accesses to two variables, at first zero, and an outcome that is
//! forbidden or at most allowed. The variables of one run lie on different pages or in different lines of one page, since a
//! distributed machine keeps pages coherent and not lines. Threads go through a batch of runs; where each has a
//! processor of its own they meet before every run, so that the accesses fall together.
#![expect(unsafe_code, reason = "accesses in the order of the instructions")]

use core::arch::asm;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::Barrier;
use std::thread;

use anyhow::{Result, anyhow, ensure};

use crate::options::Options;
use crate::sys::map::{Map, Sharing};
use crate::sys::{PAGE, cpu};

/// The two variables of a run.
#[derive(Clone, Copy)]
struct Variables<'a> {
    x: &'a AtomicU32,
    y: &'a AtomicU32,
}

/// What a thread does in a run, and the two values that it read (0 for what it did not read).
type Thread = fn(Variables<'_>) -> [u32; 2];

macro_rules! thread {
    ($name:ident, $($code:literal),+) => {
        fn $name(variables: Variables<'_>) -> [u32; 2] {
            let (mut first, mut second) = (0, 0);
            // SAFETY: plain accesses to two atomics, which are borrowed.
            unsafe {
                asm!($($code,)+
                    x = in(reg) variables.x.as_ptr(), y = in(reg) variables.y.as_ptr(),
                    r0 = inout(reg) first, r1 = inout(reg) second);
            }
            [first, second]
        }
    };
}

// Unused operands are an error, so each names all four: the comment lines do.
macro_rules! threads {
    ($($name:ident: $($code:literal),+;)+) => {
        $(thread!($name, "# {x} {y} {r0:e} {r1:e}", $($code),+);)+
    };
}

threads! {
    write_x_read_y: "mov dword ptr [{x}], 1", "mov {r0:e}, [{y}]";
    write_y_read_x: "mov dword ptr [{y}], 1", "mov {r0:e}, [{x}]";
    write_x_fence_read_y: "mov dword ptr [{x}], 1", "mfence", "mov {r0:e}, [{y}]";
    write_y_fence_read_x: "mov dword ptr [{y}], 1", "mfence", "mov {r0:e}, [{x}]";
    write_x_lock_read_y: "mov dword ptr [{x}], 1", "lock or dword ptr [rsp], 0", "mov {r0:e}, [{y}]";
    swap_y_read_x: "mov {r1:e}, 1", "xchg [{y}], {r1:e}", "xor {r1:e}, {r1:e}", "mov {r0:e}, [{x}]";
    write_x_write_y: "mov dword ptr [{x}], 1", "mov dword ptr [{y}], 1";
    read_y_read_x: "mov {r0:e}, [{y}]", "mov {r1:e}, [{x}]";
    read_x_read_y: "mov {r0:e}, [{x}]", "mov {r1:e}, [{y}]";
    read_x_write_y: "mov {r0:e}, [{x}]", "mov dword ptr [{y}], 1";
    read_y_write_x: "mov {r0:e}, [{y}]", "mov dword ptr [{x}], 1";
    write_x: "mov dword ptr [{x}], 1";
    write_y: "mov dword ptr [{y}], 1";
    write_x_then_2_to_y: "mov dword ptr [{x}], 1", "mov dword ptr [{y}], 2";
    write_y_then_2_to_x: "mov dword ptr [{y}], 1", "mov dword ptr [{x}], 2";
    write_2_to_y_read_x: "mov dword ptr [{y}], 2", "mov {r0:e}, [{x}]";
    write_2_to_y_fence_read_x: "mov dword ptr [{y}], 2", "mfence", "mov {r0:e}, [{x}]";
    write_2_to_x_write_y: "mov dword ptr [{x}], 2", "mov dword ptr [{y}], 1";
}

/// What a run ended with: what each thread read, and the variables.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    read: [[u32; 2]; 4],
    x: u32,
    y: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Allowed,
    Forbidden,
}

struct Litmus {
    name: &'static str,
    threads: &'static [Thread],
    /// The outcome that the test is about; every other is one of some order of the accesses.
    weak: fn(&Outcome) -> bool,
    verdict: Verdict,
}

use Verdict::{Allowed, Forbidden};

/// The tests by their usual names. `+f`: MFENCE between write and read; `+l`: a locked instruction.
const TESTS: [Litmus; 10] = [
    Litmus { name: "SB", threads: &[write_x_read_y, write_y_read_x], weak: both_read_0, verdict: Allowed },
    Litmus {
        name: "SB+f",
        threads: &[write_x_fence_read_y, write_y_fence_read_x],
        weak: both_read_0,
        verdict: Forbidden,
    },
    Litmus {
        name: "SB+l",
        threads: &[write_x_lock_read_y, swap_y_read_x],
        weak: both_read_0,
        verdict: Forbidden,
    },
    Litmus {
        name: "MP",
        threads: &[write_x_write_y, read_y_read_x],
        weak: |o| o.read[1] == [1, 0],
        verdict: Forbidden,
    },
    Litmus {
        name: "LB",
        threads: &[read_x_write_y, read_y_write_x],
        weak: |o| o.read[0][0] == 1 && o.read[1][0] == 1,
        verdict: Forbidden,
    },
    Litmus {
        name: "IRIW",
        threads: &[write_x, write_y, read_x_read_y, read_y_read_x],
        weak: |o| o.read[2] == [1, 0] && o.read[3] == [1, 0],
        verdict: Forbidden,
    },
    Litmus {
        name: "2+2W",
        threads: &[write_x_then_2_to_y, write_y_then_2_to_x],
        weak: |o| (o.x, o.y) == (1, 1),
        verdict: Forbidden,
    },
    Litmus {
        name: "R",
        threads: &[write_x_write_y, write_2_to_y_read_x],
        weak: |o| o.y == 2 && o.read[1][0] == 0,
        verdict: Allowed,
    },
    Litmus {
        name: "R+f",
        threads: &[write_x_write_y, write_2_to_y_fence_read_x],
        weak: |o| o.y == 2 && o.read[1][0] == 0,
        verdict: Forbidden,
    },
    Litmus {
        name: "S",
        threads: &[write_2_to_x_write_y, read_y_write_x],
        weak: |o| o.x == 2 && o.read[1][0] == 1,
        verdict: Forbidden,
    },
];

fn both_read_0(outcome: &Outcome) -> bool {
    outcome.read[0][0] == 0 && outcome.read[1][0] == 0
}

/// Runs of a batch.
const BATCH: usize = 250;
/// Bytes from one variable to that of the next run: two cache lines, which processors fetch in pairs.
const STRIDE: usize = 128;

/// Where the two variables of a run are.
#[derive(Clone, Copy, Debug)]
enum Placement {
    /// On two pages.
    Pages,
    /// In two lines of one page.
    Lines,
}

impl Placement {
    fn of_batch(batch: usize) -> Self {
        if batch.is_multiple_of(2) { Self::Pages } else { Self::Lines }
    }

    fn variables(self, map: &Map, run: usize) -> Variables<'_> {
        let x = run * STRIDE;
        let y = match self {
            Self::Pages => (BATCH * STRIDE).next_multiple_of(PAGE) + x,
            Self::Lines => x + STRIDE / 2,
        };
        let words = map.words();
        Variables { x: half(&words[x / 8]), y: half(&words[y / 8]) }
    }
}

/// The low half of a word.
fn half(word: &AtomicU64) -> &AtomicU32 {
    // SAFETY: aligned, borrowed as long, and used through the half alone while the tests run.
    unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
}

pub fn run(options: &Options) -> Result<String> {
    let cpus = cpu::cpus()?;
    let iterations = usize::try_from(options.iterations(10_000))?;
    let map = Map::anonymous(2 * (BATCH * STRIDE).next_multiple_of(PAGE), Sharing::Private)?;
    let mut figures = format!("cpus={} runs={iterations}", cpus.len());
    let mut met = 0;
    for test in &TESTS {
        let counts = test.run(&map, &cpus, iterations)?;
        met += counts.met;
        write!(figures, " {}={}", test.name, counts.weak)?;
        if test.verdict == Allowed {
            figures.push_str("(may)");
        }
        ensure!(
            counts.weak == 0 || test.verdict == Allowed,
            "{}: a forbidden outcome {} times in {iterations} runs, at first run {:?}",
            test.name,
            counts.weak,
            counts.first
        );
        ensure!(
            counts.strange == 0,
            "{}: {} outcomes with values that nobody wrote",
            test.name,
            counts.strange
        );
    }
    write!(figures, " met={}%", 100 * met / (iterations * TESTS.len()))?;
    Ok(figures)
}

#[derive(Debug, Default)]
struct Counts {
    weak: usize,
    strange: usize,
    met: usize,
    first: Option<(usize, Outcome)>,
}

/// How many times a thread looks whether the others have come: some milliseconds under emulation.
const PATIENCE: u32 = 5_000;

/// Threads wait for each other here, on their processors. When one does not come, because the processor under it was taken
/// away, they do without for the rest of the batch: what they would wait for is long past.
struct Meeting {
    arrived: AtomicU32,
    threads: u32,
    broken: AtomicBool,
}

impl Meeting {
    /// Waits until all threads have come `round` times, counted from 1; whether they have. Nobody is missed at the first.
    fn wait(&self, round: u32) -> bool {
        if self.broken.load(Ordering::Relaxed) {
            return false;
        }
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut waited = 0;
        while self.arrived.load(Ordering::Acquire) < round.saturating_mul(self.threads) {
            if self.broken.load(Ordering::Relaxed) {
                return false;
            }
            if round == 1 {
                cpu::relax(&mut waited);
                continue;
            }
            waited += 1;
            self.broken.fetch_or(waited > PATIENCE, Ordering::Relaxed);
            core::hint::spin_loop();
        }
        true
    }
}

impl Litmus {
    fn run(&self, map: &Map, cpus: &[usize], iterations: usize) -> Result<Counts> {
        let mut counts = Counts::default();
        for (batch, first) in (0..iterations).step_by(BATCH).enumerate() {
            let runs = BATCH.min(iterations - first);
            let placement = Placement::of_batch(batch);
            for word in map.words() {
                word.store(0, Ordering::Relaxed);
            }
            let (read, met) = self.batch(map, placement, batch, runs, cpus)?;
            counts.met += met;
            for run in 0..runs {
                let variables = placement.variables(map, run);
                let mut outcome = Outcome {
                    x: variables.x.load(Ordering::Relaxed),
                    y: variables.y.load(Ordering::Relaxed),
                    ..Outcome::default()
                };
                for (into, from) in outcome.read.iter_mut().zip(&read) {
                    *into = from[run];
                }
                let values = outcome.read.iter().flatten().chain([&outcome.x, &outcome.y]);
                counts.strange += usize::from(values.into_iter().any(|&value| value > 2));
                if (self.weak)(&outcome) {
                    counts.weak += 1;
                    counts.first.get_or_insert((first + run, outcome));
                }
            }
        }
        Ok(counts)
    }

    /// What each thread read in each run of a batch, and in how many of them they met.
    fn batch(
        &self,
        map: &Map,
        placement: Placement,
        batch: usize,
        runs: usize,
        cpus: &[usize],
    ) -> Result<(Vec<Vec<[u32; 2]>>, usize)> {
        let count = self.threads.len();
        let start = Barrier::new(count);
        let meeting = Meeting {
            arrived: AtomicU32::new(0),
            threads: u32::try_from(count)?,
            broken: AtomicBool::new(cpus.len() < count),
        };
        let meetings = AtomicUsize::new(0);
        let work = |number: usize| -> Result<Vec<[u32; 2]>> {
            let program = self.threads[number];
            let mut read = vec![[0; 2]; runs];
            // Another pair of processors in each batch.
            let pinned = cpu::pin(cpus[(number + batch) % cpus.len()]);
            meeting.broken.fetch_or(pinned.is_err(), Ordering::Relaxed);
            start.wait();
            pinned?;
            for (run, read) in read.iter_mut().enumerate() {
                let variables = placement.variables(map, run);
                let met = meeting.wait(u32::try_from(run + 1)?);
                *read = program(variables);
                meetings.fetch_add(usize::from(met && number == 0), Ordering::Relaxed);
            }
            Ok(read)
        };
        let work = &work;
        let read = thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
            let joined = threads.into_iter();
            joined
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
                .collect::<Result<_>>()
        })?;
        Ok((read, meetings.load(Ordering::Relaxed)))
    }
}
