//! Child processes that end with xtask, however xtask ends.
//!
//! Each child leads its own process group, so that a Ctrl-C at the terminal reaches xtask alone, which then ends
//! its children in order. A child is killed with its group when its [`Child`] is dropped; an emulator moreover asks
//! Linux to be killed when the thread that started it dies, for the case that xtask itself is killed.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a waiting loop looks again.
pub const POLL: Duration = Duration::from_millis(10);

/// The error of a command that Ctrl-C, SIGTERM or SIGHUP ended.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Turns Ctrl-C, SIGTERM and SIGHUP into [`interrupted`], so that what runs can end in order.
///
/// # Errors
/// The handler cannot be set.
pub fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("no handler for Ctrl-C")
}

/// Whether xtask was told to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Set when xtask was told to end.
pub fn interrupt_flag() -> &'static AtomicBool {
    &INTERRUPTED
}

/// Fails with [`Interrupted`] when xtask was told to end.
///
/// # Errors
/// [`Interrupted`].
pub fn check_interrupted() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// A child process with all that it starts.
#[derive(Debug)]
pub struct Child {
    inner: process::Child,
    ended: bool,
}

impl Child {
    /// Starts `command` in a process group of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let inner = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        Ok(Self { inner, ended: false })
    }

    /// The child's standard input, once.
    pub fn take_input(&mut self) -> Option<process::ChildStdin> {
        self.inner.stdin.take()
    }

    /// The child's standard output, once.
    pub fn take_output(&mut self) -> Option<process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Linux does not say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.inner.try_wait().context("a child process cannot be waited for")?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// Waits until it ends; kills it when xtask is told to end.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            check_interrupted()?;
            sleep(POLL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The group lives as long as its leader is not waited for: the number cannot have been given to others.
        if let Ok(id) = i32::try_from(self.inner.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.inner.wait();
    }
}

/// A command whose process is killed when the calling thread dies.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs a command to its end; its output goes where ours goes.
///
/// # Errors
/// It cannot be started, it fails, or [`Interrupted`].
pub fn run(command: &mut Command) -> Result<()> {
    let status = Child::start(command.stdin(Stdio::null()))?.wait()?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))
}

/// Runs a command to its end and shows what it printed only when it failed.
///
/// # Errors
/// It cannot be started, or it fails: then with its output.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = output(command)?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{} failed ({}):\n{}", line(command), output.status, String::from_utf8_lossy(&text).trim_end());
    }
    Ok(())
}

/// Whether `name` is a program that can be started.
pub fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the directories of the administration programs.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn is_alive(pid: u32) -> bool {
        // A zombie of another parent counts as gone.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }

    #[test]
    fn a_dropped_child_ends_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let child = Child::start(Command::new("sh").args(["-c", &script])).unwrap();
        let start = Instant::now();
        while !file.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "the shell does not start");
            sleep(POLL);
        }
        let grandchild: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert!(is_alive(grandchild));
        drop(child);
        let start = Instant::now();
        while is_alive(grandchild) {
            assert!(start.elapsed() < Duration::from_secs(20), "the grandchild goes on");
            sleep(POLL);
        }
    }

    #[test]
    fn a_tied_process_dies_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            let child = tied("sleep").arg("600").spawn().unwrap();
            // From here on setpriv has become what it starts, and the tie holds.
            let path = format!("/proc/{}/cmdline", child.id());
            while !std::fs::read(&path).unwrap().starts_with(b"sleep") {
                sleep(POLL);
            }
            child
        })
        .join()
        .unwrap();
        // Without the tie this waits for ten minutes.
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn failures_say_what_was_run() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c exit 3") && error.contains('3'), "{error}");
        let error =
            run_quietly(Command::new("sh").args(["-c", "echo out; echo err >&2; false"])).unwrap_err();
        assert!(error.to_string().contains("out\nerr"), "{error}");
        let error = run(&mut Command::new("no-such-program-of-ours")).unwrap_err().to_string();
        assert!(error.contains("no-such-program-of-ours"), "{error}");
        assert!(is_program("sh") && !is_program("no-such-program-of-ours"));
    }
}
