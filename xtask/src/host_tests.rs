//! The tests that run on the host: `cargo test`, with its results counted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use anyhow::{Context, Result};

use crate::paths;
use crate::process::{Child, POLL, check_interrupted};

/// How many tests passed, and how many did not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// Passed.
    pub passed: u64,
    /// Failed, or unknown.
    pub failed: u64,
}

/// Runs all host tests; shows the result of each program, and all that a failing one printed.
///
/// # Errors
/// Cargo cannot be started, or was interrupted.
pub fn run() -> Result<Count> {
    let mut command = Command::new(paths::cargo());
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Child::start(&mut command)?;
    let output = child.take_output().context("cargo test has no output")?;
    let (sender, receiver) = channel();
    // Ends with the output, that is with the child.
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut report = Report::default();
    loop {
        check_interrupted()?;
        match receiver.recv_timeout(POLL) {
            Ok(line) => report.take(&line).iter().for_each(|line| println!("{line}")),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let succeeded = child.wait()?.success();
    Ok(report.count(succeeded))
}

/// What `cargo test` has shown.
#[derive(Debug, Default)]
struct Report {
    count: Count,
    /// What the program that runs now has printed.
    lines: Vec<String>,
}

impl Report {
    /// The lines to show, now that there is this one.
    fn take(&mut self, line: &str) -> Vec<String> {
        self.lines.push(line.to_owned());
        let Some(result) = line.strip_prefix("test result: ") else { return Vec::new() };
        let number = |what: &str| -> u64 {
            let mut parts = result.split([';', '.']).map(str::trim);
            parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok()).unwrap_or(0)
        };
        let failed = number("failed");
        self.count.passed += number("passed");
        self.count.failed += failed;
        let shown = std::mem::take(&mut self.lines);
        if failed > 0 { shown } else { vec![line.to_owned()] }
    }

    /// The count; cargo's failure without a failed test (a program that does not build, or dies) is one, too.
    fn count(&self, succeeded: bool) -> Count {
        let mut count = self.count;
        if !succeeded && count.failed == 0 {
            count.failed = 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_and_only_failures_shown_whole() {
        let mut report = Report::default();
        assert!(report.take("running 2 tests").is_empty());
        assert!(report.take("test a ... ok").is_empty());
        let result =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(report.take(result), [result]);
        assert!(report.take("test b ... FAILED").is_empty());
        let result = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(report.take(result), ["test b ... FAILED", result]);
        assert_eq!(report.count(false), Count { passed: 15, failed: 2 });
    }

    #[test]
    fn a_failure_without_a_failed_test_counts() {
        assert_eq!(Report::default().count(false), Count { passed: 0, failed: 1 });
        assert_eq!(Report::default().count(true), Count::default());
    }
}
