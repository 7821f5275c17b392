//! What is done at a guest's console in a system test: texts that are waited for, and commands with what they must say.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::guest::initrd::PROMPT;

/// One step at the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Waits until the console shows this text.
    See(&'static str),
    /// Types this text.
    Type(&'static str),
    /// Waits for the shell's prompt, runs a command, and waits for its end.
    Run {
        /// The command.
        command: &'static str,
        /// Lines that it must print, in this order, each as it stands.
        prints: &'static [&'static str],
        /// Its exit status.
        status: u8,
    },
}

/// What a script wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wish {
    /// Type this.
    Type(String),
    /// Something was wrong.
    Fail(String),
    /// The time of a step is over.
    Late(String),
}

/// A script that is followed.
#[derive(Debug)]
pub struct Script {
    steps: &'static [Step],
    /// The longest that one step may take.
    patience: Duration,
    /// The step that is waited for; past the last one it is done.
    at: usize,
    /// Whether that step was typed.
    typed: bool,
    since: Instant,
    /// What the console showed that no step has seen.
    shown: String,
}

impl Script {
    /// At its first step.
    pub fn new(steps: &'static [Step], patience: Duration) -> Self {
        Self { steps, patience, at: 0, typed: false, since: Instant::now(), shown: String::new() }
    }

    /// Whether every step was done.
    pub const fn is_done(&self) -> bool {
        self.at >= self.steps.len()
    }

    /// What it waits for, in words.
    pub fn waits_for(&self) -> Option<String> {
        Some(match self.steps.get(self.at)? {
            Step::See(text) => format!("'{text}' on the console"),
            Step::Type(text) => format!("typing {text:?}"),
            Step::Run { command, .. } if !self.typed => format!("the prompt before '{command}'"),
            Step::Run { command, .. } => format!("the end of '{command}'"),
        })
    }

    /// The console shows these bytes.
    pub fn show(&mut self, bytes: &[u8]) {
        // A character that is cut in two is not in a text that is waited for.
        let _ = write!(self.shown, "{}", String::from_utf8_lossy(bytes));
    }

    /// What is to be done now, to be asked until it is nothing.
    pub fn next(&mut self, now: Instant) -> Option<Wish> {
        while let Some(step) = self.steps.get(self.at) {
            let seen = match step {
                Step::See(text) => self.shown.find(text).map(|at| at + text.len()),
                Step::Type(text) => {
                    self.done(0, now);
                    return Some(Wish::Type((*text).to_owned()));
                }
                Step::Run { .. } if !self.typed && !self.shown.contains(PROMPT) => None,
                Step::Run { command, .. } if !self.typed => {
                    self.typed = true;
                    self.shown.clear();
                    // What the console echoes of this has no digit after the sign.
                    return Some(Wish::Type(format!("{command}; echo status=$?\n")));
                }
                Step::Run { command, prints, status } => match ended(&self.shown) {
                    Some((printed, found, end)) => {
                        if let Some(wrong) = judge(command, prints, *status, printed, found) {
                            self.at = self.steps.len();
                            return Some(Wish::Fail(wrong));
                        }
                        Some(end)
                    }
                    None => None,
                },
            };
            match seen {
                Some(end) => self.done(end, now),
                None if now.duration_since(self.since) >= self.patience => {
                    let waited = self.waits_for().unwrap_or_default();
                    return Some(Wish::Late(format!(
                        "{waited} did not come within {} s",
                        self.patience.as_secs()
                    )));
                }
                None => return None,
            }
        }
        None
    }

    /// The step is done by what the console showed up to `end`.
    fn done(&mut self, end: usize, now: Instant) {
        self.shown.drain(..end);
        (self.at, self.typed, self.since) = (self.at + 1, false, now);
    }
}

/// What a command that ended printed, its status, and where that ends.
fn ended(shown: &str) -> Option<(&str, u8, usize)> {
    const SIGN: &str = "status=";
    for (at, _) in shown.match_indices(SIGN) {
        let rest = &shown[at + SIGN.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        // The whole number is there when something follows it.
        if digits > 0 && rest.len() > digits {
            let end = at + SIGN.len() + digits;
            return Some((&shown[..at], rest[..digits].parse().ok()?, end));
        }
    }
    None
}

/// What is wrong with a command that ended.
fn judge(command: &str, prints: &[&str], status: u8, printed: &str, found: u8) -> Option<String> {
    if found != status {
        return Some(format!("'{command}' ended with status {found}, not {status}"));
    }
    let mut lines = printed.lines().map(str::trim_end);
    let missing = prints.iter().find(|wanted| !lines.any(|line| line == **wanted))?;
    Some(format!("'{command}' did not print the line '{missing}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[Step] = &[
        Step::See("is up"),
        Step::Run { command: "echo cpus=$(nproc)", prints: &["cpus=2"], status: 0 },
        Step::Run { command: "false", prints: &[], status: 1 },
        Step::Type("poweroff\n"),
    ];

    fn script() -> (Script, Instant) {
        let script = Script::new(STEPS, Duration::from_secs(5));
        let start = script.since;
        (script, start)
    }

    fn typed(text: &str) -> Option<Wish> {
        Some(Wish::Type(text.into()))
    }

    #[test]
    fn steps_are_done_one_after_another() {
        let (mut script, now) = script();
        assert_eq!(script.next(now), None);
        assert_eq!(script.waits_for().unwrap(), "'is up' on the console");
        script.show(b"Linux is");
        assert_eq!(script.next(now), None);
        script.show(b" up\r\n");
        assert_eq!(script.next(now), None);
        assert_eq!(script.waits_for().unwrap(), "the prompt before 'echo cpus=$(nproc)'");
        script.show(b"/root # ");
        assert_eq!(script.next(now), typed("echo cpus=$(nproc); echo status=$?\n"));
        assert_eq!(script.next(now), None);
        script.show(b"echo cpus=$(nproc); echo status=$?\r\ncpus=2\r\nstat");
        assert_eq!(script.next(now), None);
        script.show(b"us=0");
        assert_eq!(script.next(now), None, "more digits may follow");
        script.show(b"\r\n/ # ");
        assert_eq!(script.next(now), typed("false; echo status=$?\n"));
        script.show(b"false; echo status=$?\r\nstatus=1\r\n# ");
        assert!(!script.is_done());
        assert_eq!(script.next(now), typed("poweroff\n"));
        assert!(script.is_done() && script.waits_for().is_none());
        assert_eq!(script.next(now + Duration::from_secs(100)), None);
    }

    #[test]
    fn a_wrong_status_or_output_fails() {
        let run = |output: &str| {
            let (mut script, now) = script();
            script.show(b"is up / # ");
            script.next(now);
            script.show(output.as_bytes());
            script.next(now)
        };
        let fails = |text: &str| Some(Wish::Fail(text.into()));
        let wrong = "'echo cpus=$(nproc)' did not print the line 'cpus=2'";
        assert_eq!(run("cpus=24\nstatus=0\n"), fails(wrong));
        assert_eq!(run("x cpus=2\nstatus=0\n"), fails(wrong));
        assert_eq!(run("cpus=2\nstatus=127\n"), fails("'echo cpus=$(nproc)' ended with status 127, not 0"));
        assert_eq!(run("cpus=2\nstatus=300\n"), None, "no exit status is so large");
    }

    #[test]
    fn patience_ends_and_begins_anew_with_each_step() {
        let (mut script, start) = script();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(script.next(after(4)), None);
        script.show(b"is up / # ");
        assert!(matches!(script.next(after(4)), Some(Wish::Type(_))));
        assert_eq!(script.next(after(8)), None);
        let late = Wish::Late("the end of 'echo cpus=$(nproc)' did not come within 5 s".into());
        assert_eq!(script.next(after(9)), Some(late));
    }
}
