//! What is typed at a node's console: bytes for COM1, which QEMU takes at a socket.
//!
//! What the node says there is read from the file that QEMU keeps of it; the same comes through the socket and is dropped.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The way to one node's console.
#[derive(Debug)]
pub struct Keyboard {
    socket: PathBuf,
    stream: Option<UnixStream>,
    /// Typed, and not yet taken by the node.
    pending: VecDeque<u8>,
}

impl Keyboard {
    /// The console at this socket, which need not be there yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, stream: None, pending: VecDeque::new() }
    }

    /// Types bytes; the node gets them as fast as it takes them, as [`Self::poll`] is called.
    pub fn send(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// Hands over what the node takes now. A node that is not there yet or not any more takes nothing.
    ///
    /// # Errors
    /// The socket fails in another way.
    pub fn poll(&mut self) -> Result<()> {
        let failed = || format!("the console at {} fails", self.socket.display());
        if self.stream.is_none() && !self.pending.is_empty() {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => {
                    stream.set_nonblocking(true).with_context(failed)?;
                    self.stream = Some(stream);
                }
                Err(error) if is_absence(error.kind()) => {}
                Err(error) => return Err(error).with_context(failed),
            }
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock || is_absence(error.kind()) => break,
                Err(error) => return Err(error).with_context(failed),
            }
        }
        while !self.pending.is_empty() {
            match stream.write(self.pending.make_contiguous()) {
                Ok(taken) => drop(self.pending.drain(..taken)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if is_absence(error.kind()) => self.pending.clear(),
                Err(error) => return Err(error).with_context(failed),
            }
        }
        Ok(())
    }
}

const fn is_absence(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(kind, BrokenPipe | ConnectionRefused | ConnectionReset | NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_typed_waits_for_the_node_and_arrives_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("com1.sock");
        let mut keyboard = Keyboard::new(path.clone());
        keyboard.send(b"one ");
        keyboard.poll().unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        keyboard.send(b"two");
        keyboard.poll().unwrap();
        let (mut node, _) = listener.accept().unwrap();
        let mut taken = [0; 7];
        node.read_exact(&mut taken).unwrap();
        assert_eq!(&taken, b"one two");
    }

    #[test]
    fn more_than_the_node_takes_at_once_is_kept_and_what_it_says_never_stops_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("com1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut keyboard = Keyboard::new(path);
        let typed: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        keyboard.send(&typed);
        keyboard.poll().unwrap();
        let (mut node, _) = listener.accept().unwrap();
        node.set_nonblocking(true).unwrap();
        let (mut taken, mut said, mut buffer) = (Vec::<u8>::new(), 0, vec![0; 65_536]);
        while taken.len() < typed.len() || said < 2_000_000 {
            if let Ok(n) = node.read(&mut buffer) {
                taken.extend(&buffer[..n]);
            }
            said += node.write(&buffer).unwrap_or(0);
            keyboard.poll().unwrap();
        }
        assert_eq!(taken, typed);
    }

    #[test]
    fn a_node_that_ended_takes_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("com1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut keyboard = Keyboard::new(path);
        keyboard.send(b"one");
        keyboard.poll().unwrap();
        drop(listener);
        keyboard.send(b"two");
        keyboard.poll().unwrap();
        assert!(keyboard.pending.is_empty());
    }
}
