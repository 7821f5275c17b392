//! Tests of a Linux guest, from user space.
//!
//! Needs `/proc`; what needs more says so and is skipped without it. Each test prints one line, `kit NAME: pass FIGURES` or
//! `kit NAME: FAIL REASON`, and exits with 0 or 1. As process 1 it is the whole user space of a machine ([`init`]).

mod atomics;
mod bench;
mod clocks;
mod exits;
mod init;
mod litmus;
mod memory;
mod options;
mod processes;
mod signals;
mod suite;
mod sys;

use std::process::ExitCode;

use options::Options;

const USAGE: &str = "\
usage: kit all | TEST | bench cpuid | bench touch | bench remote | bench random | bench steady  [FLAG VALUE]...
  tests: clocks atomics litmus signals processes memory exits
  --seed N         what random choices begin with (1)
  --iterations N   of the test's main loop, instead of its own number; bench steady: seconds (12)
  --effort N       percent of every test's own numbers (100)
  --mib N          memory: how much (free memory less a margin, at most 192); 0: all of that
                   bench touch: how much to use up first (what was used since the start and 16)
                   bench random: how much (64)
  --pages N        bench touch: pages in each chunk (2048); bench remote: pages, at most 1024
  --limit N        all: seconds for each test (600)
  --expect-kvmclock yes    clocks: fail with another clock source
  --claimed-ports no       exits: leave ports alone that Linux lists as somebody's
as process 1: mounts /proc, /sys and /dev, loads /modules/*.ko, runs its arguments ('all' without any), powers off";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() == 1 {
        init::run(&arguments);
    }
    if let Some(code) = processes::as_child(&arguments) {
        return ExitCode::from(code);
    }
    let Some((what, rest)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (what, rest) = match (what.as_str(), rest.split_first()) {
        ("bench", Some((which, rest))) => (format!("bench {which}"), rest),
        _ => (what.clone(), rest),
    };
    match Options::parse(rest) {
        Ok(options) => suite::run(&what, &options, rest),
        Err(error) => {
            eprintln!("kit: {error:#}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
