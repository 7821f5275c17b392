//! The user's terminal as the guest's console: every key goes to the guest, but for those that end the run.
//!
//! The terminal is put into raw mode and back, however xtask ends: by a value that is dropped, also when a signal or a
//! panic ends it (a panic's text is printed after that). What comes from a file or a pipe instead is passed on as it is.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use nix::unistd::{getpgrp, read, tcgetpgrp};

/// What to tell a user whose terminal is the guest's console.
pub const KEYS: &str = "Ctrl-] or Ctrl-A x ends the run, Ctrl-A a types Ctrl-A";
/// Ends the run.
const QUIT: u8 = 0x1d;
/// The first of two keys.
const PREFIX: u8 = 0x01;

/// How the terminal was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Where the guest's input comes from.
#[derive(Debug)]
pub struct Terminal {
    keys: Option<Keys>,
    at_end: bool,
}

/// What came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Typed {
    /// Bytes for the guest, maybe none.
    Bytes(Vec<u8>),
    /// The run is to end.
    Quit,
}

impl Terminal {
    /// Takes the terminal, when there is one at both ends and it is ours to take; until the value is dropped.
    ///
    /// # Errors
    /// The terminal's mode cannot be set.
    pub fn take() -> Result<Self> {
        let is_ours = || tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        if !(stdin().is_terminal() && stdout().is_terminal() && is_ours()) {
            return Ok(Self { keys: None, at_end: false });
        }
        let before = termios::tcgetattr(stdin()).context("the terminal's mode cannot be read")?;
        let mode = raw(before.clone());
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let terminal = Self { keys: Some(Keys::default()), at_end: false };
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            hook(panic);
        }));
        termios::tcsetattr(stdin(), SetArg::TCSANOW, &mode).context("the terminal's mode cannot be set")?;
        Ok(terminal)
    }

    /// Whether keys go to the guest one by one.
    pub const fn is_interactive(&self) -> bool {
        self.keys.is_some()
    }

    /// Waits so long for input, and returns what came. After its end this only waits.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn wait(&mut self, most: Duration) -> Result<Typed> {
        let nothing = Ok(Typed::Bytes(Vec::new()));
        if self.at_end {
            std::thread::sleep(most);
            return nothing;
        }
        let input = stdin();
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => return nothing,
            Ok(_) => {}
            Err(error) => return Err(error).context("the input cannot be waited for"),
        }
        let mut buffer = [0; 1024];
        let bytes = match read(input.as_fd(), &mut buffer) {
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(Errno::EINTR | Errno::EAGAIN) => return nothing,
            // A terminal that was hung up.
            Err(Errno::EIO) => &[],
            Err(error) => return Err(error).context("the input cannot be read"),
        };
        self.at_end = bytes.is_empty();
        Ok(match &mut self.keys {
            Some(keys) => keys.take(bytes),
            None => Typed::Bytes(bytes.to_vec()),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Every key is read as it is; output goes on as before, so that our own lines, too, look as they should.
fn raw(mut mode: Termios) -> Termios {
    mode.input_flags -= InputFlags::BRKINT
        | InputFlags::ICRNL
        | InputFlags::IGNCR
        | InputFlags::INLCR
        | InputFlags::ISTRIP
        | InputFlags::IXON
        | InputFlags::PARMRK;
    mode.local_flags -=
        LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::IEXTEN | LocalFlags::ISIG;
    mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    mode
}

fn give_back() {
    if let Some(mode) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nobody is left who could be told.
        let _ = termios::tcsetattr(stdin(), SetArg::TCSANOW, &mode);
    }
}

/// Tells the keys that end the run from those for the guest.
#[derive(Debug, Default)]
struct Keys {
    after_prefix: bool,
}

impl Keys {
    fn take(&mut self, bytes: &[u8]) -> Typed {
        let mut for_guest = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            match (std::mem::take(&mut self.after_prefix), byte) {
                (_, QUIT) | (true, b'x' | b'X') => return Typed::Quit,
                (true, b'a' | b'A' | PREFIX) => for_guest.push(PREFIX),
                (true, other) => for_guest.extend([PREFIX, other]),
                (false, PREFIX) => self.after_prefix = true,
                (false, other) => for_guest.push(other),
            }
        }
        Typed::Bytes(for_guest)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::pty::openpty;

    use super::*;

    fn bytes(text: &[u8]) -> Typed {
        Typed::Bytes(text.to_vec())
    }

    #[test]
    fn keys_go_to_the_guest_but_for_those_that_end_the_run() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\r\x03\x04\x1a\x1b[A"), bytes(b"ls\r\x03\x04\x1a\x1b[A"));
        assert_eq!(keys.take(b"a\x1d"), Typed::Quit);
        assert_eq!(keys.take(b"\x01x"), Typed::Quit);
        assert_eq!(keys.take(b"\x01"), bytes(b""));
        assert_eq!(keys.take(b"X"), Typed::Quit);
        assert_eq!(keys.take(b"x\x01ax"), bytes(b"x\x01x"));
        assert_eq!(keys.take(b"\x01\x01x"), bytes(b"\x01x"));
        assert_eq!(keys.take(b"\x01e"), bytes(b"\x01e"));
        assert_eq!(keys.take(b"\x01\x1d"), Typed::Quit);
    }

    #[test]
    fn a_raw_terminal_passes_every_key_and_keeps_its_output() {
        let terminal = openpty(None, None).unwrap();
        let (master, slave): (OwnedFd, OwnedFd) = (terminal.master, terminal.slave);
        let before = termios::tcgetattr(&slave).unwrap();
        termios::tcsetattr(&slave, SetArg::TCSANOW, &raw(before.clone())).unwrap();
        let typed = b"\x03\x04\r\x11\x13\x1a\x1c\x7f";
        nix::unistd::write(&master, typed).unwrap();
        let mut buffer = [0; 64];
        let count = read(&slave, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], typed);
        nix::unistd::write(&slave, b"line\n").unwrap();
        let count = read(&master, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"line\r\n", "nothing of the input is echoed");
        assert_eq!(raw(before.clone()).output_flags, before.output_flags);
    }
}
