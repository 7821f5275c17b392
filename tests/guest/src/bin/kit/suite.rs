//! Which tests there are, and running one or all.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::options::Options;
use crate::sys::process;
use crate::{atomics, bench, clocks, exits, litmus, memory, processes, signals};

/// A test: the figures to show when it passes, or what was wrong.
type Run = fn(&Options) -> Result<String>;

const TESTS: [(&str, Run); 7] = [
    ("clocks", clocks::run),
    ("atomics", atomics::run),
    ("litmus", litmus::run),
    ("signals", signals::run),
    ("processes", processes::run),
    ("memory", memory::run),
    ("exits", exits::run),
];

/// A benchmark, which prints its figures itself.
type Bench = fn(&Options) -> Result<()>;

const BENCHES: [(&str, Bench); 5] = [
    ("bench cpuid", bench::cpuid::run),
    ("bench touch", bench::touch::run),
    ("bench remote", bench::remote::run),
    ("bench random", bench::random::run),
    ("bench steady", bench::steady::run),
];

/// Runs what is named; `flags` are what `options` was read from.
pub fn run(what: &str, options: &Options, flags: &[String]) -> ExitCode {
    if what == "all" {
        return all(options, flags);
    }
    if let Some((_, run)) = BENCHES.iter().find(|(name, _)| *name == what) {
        return match run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(what, &error),
        };
    }
    let Some((name, run)) = TESTS.iter().find(|(name, _)| *name == what) else {
        eprintln!("kit: no test is called {what}");
        return ExitCode::from(2);
    };
    let start = Instant::now();
    match run(options) {
        Ok(figures) => {
            println!("kit {name}: pass {figures} in {:.1} s", start.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => fail(name, &error),
    }
}

fn fail(name: &str, error: &anyhow::Error) -> ExitCode {
    println!("kit {name}: FAIL {error:#}");
    ExitCode::FAILURE
}

/// Runs every test in a process of its own, so that one that crashes or hangs is only itself.
fn all(options: &Options, flags: &[String]) -> ExitCode {
    let mut failed = 0;
    for (name, _) in TESTS {
        let mut command = Command::new("/proc/self/exe");
        command.arg(name).args(flags).process_group(0);
        let outcome =
            command.spawn().map_err(anyhow::Error::from).and_then(|child| end(child, options.limit));
        match outcome {
            Ok(Some(status)) if status.code().is_some() => failed += usize::from(!status.success()),
            Ok(Some(status)) => {
                failed += 1;
                println!("kit {name}: FAIL ended by signal {}", status.signal().unwrap_or(0));
            }
            Ok(None) => {
                failed += 1;
                println!("kit {name}: FAIL not done after {} s", options.limit.as_secs());
            }
            Err(error) => {
                failed += 1;
                fail(name, &error);
            }
        }
    }
    println!("kit: {} passed, {failed} failed", TESTS.len() - failed);
    ExitCode::from(u8::from(failed != 0))
}

/// How it ended; nothing when it did not and was killed, with all that it started.
fn end(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            process::kill_group(child.id())?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
