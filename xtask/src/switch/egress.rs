//! The way out of a port: straight into the node's socket when it takes the frame at once, else through a queue.
//!
//! No call here waits. Each other port has a queue of its own, and the queues are emptied in turn, a frame at a time:
//! a node that floods this port fills its own queue alone and leaves the others their share.

use super::counters::{Counters, DropReason, PortId};
use super::pcap::Recorder;
use super::wire::Wire;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The most frames that wait, at any port, from any one other port.
pub const QUEUE_FRAMES: usize = 256;

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offered {
    /// The socket has it.
    Sent,
    /// It waits for [`Egress::flush`].
    Queued,
    /// It is dropped and counted.
    Dropped,
}

/// A recording of what goes out of all ports, or comes in, with the clock for its times.
pub struct Tap {
    recorder: Mutex<Recorder>,
    start: (Instant, Duration),
}

impl Tap {
    /// Records to `recorder` from now on.
    #[must_use]
    pub fn new(recorder: Recorder) -> Self {
        // A clock before 1970 is shown as 1970.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { recorder: Mutex::new(recorder), start: (Instant::now(), wall) }
    }

    /// Keeps others from recording while a frame is sent, so that an answer never stands before its question.
    pub fn lock(&self) -> TapGuard<'_> {
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        TapGuard { recorder, time: self.start.1 + self.start.0.elapsed() }
    }
}

/// The right to record one frame.
pub struct TapGuard<'a> {
    recorder: MutexGuard<'a, Recorder>,
    time: Duration,
}

impl TapGuard<'_> {
    /// Records a frame with the time at which the tap was locked.
    pub fn record(mut self, frame: &[u8]) {
        self.recorder.record(self.time, frame);
    }

    /// Why the recording ended early, if it did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.recorder.error()
    }
}

/// A frame of which the socket took a part.
struct Partial {
    bytes: Box<[u8]>,
    sent: usize,
}

/// The outgoing side of a port.
pub struct Egress {
    stream: Option<Arc<UnixStream>>,
    /// By sending port.
    queues: Vec<VecDeque<Box<[u8]>>>,
    /// The queue whose turn it is.
    turn: usize,
    partial: Option<Partial>,
    counters: Counters,
}

impl Egress {
    /// The outgoing side of a port with no node, on a switch with so many ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self {
            stream: None,
            queues: vec![VecDeque::new(); ports],
            turn: 0,
            partial: None,
            counters: Counters::default(),
        }
    }

    /// A node has come.
    pub fn connect(&mut self, stream: Arc<UnixStream>) {
        self.disconnect();
        self.stream = Some(stream);
    }

    /// The node has gone, or must go: its socket is shut down, which wakes its reader. What waited for it is
    /// dropped.
    pub fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            // It fails when the node has shut down its side, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let waiting =
            self.queues.iter().map(VecDeque::len).sum::<usize>() + usize::from(self.partial.is_some());
        self.counters.dropped.add(DropReason::NoLink, u64::try_from(waiting).unwrap_or(u64::MAX));
        self.partial = None;
        for queue in &mut self.queues {
            queue.clear();
        }
    }

    /// What went out, and what was dropped here.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.partial.is_some() || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Sends a frame from the port `from`, or lets it wait, or drops it.
    pub fn offer(&mut self, from: PortId, wire: Wire<'_>, tap: Option<&Tap>) -> Offered {
        if !self.is_waiting() {
            match self.send(wire.bytes(), tap) {
                Ok(sent) if sent == wire.bytes().len() => return Offered::Sent,
                Ok(0) => {}
                Ok(sent) => {
                    self.partial = Some(Partial { bytes: wire.bytes().into(), sent });
                    return Offered::Queued;
                }
                Err(Disconnected) => {
                    self.counters.dropped.count(DropReason::NoLink);
                    return Offered::Dropped;
                }
            }
        }
        match self.queues.get_mut(from.index()) {
            Some(queue) if queue.len() < QUEUE_FRAMES => {
                queue.push_back(wire.bytes().into());
                Offered::Queued
            }
            _ => {
                self.counters.dropped.count(DropReason::QueueFull);
                Offered::Dropped
            }
        }
    }

    /// Sends what waits, as far as the socket takes it. Returns the socket when more waits for it to have room.
    pub fn flush(&mut self, tap: Option<&Tap>) -> Option<Arc<UnixStream>> {
        loop {
            if let Some(mut partial) = self.partial.take() {
                match self.resume(partial.bytes.get(partial.sent..).unwrap_or_default()) {
                    Ok(sent) => partial.sent += sent,
                    Err(Disconnected) => {
                        self.counters.dropped.count(DropReason::NoLink);
                        return None;
                    }
                }
                if partial.sent < partial.bytes.len() {
                    self.partial = Some(partial);
                    return self.stream.clone();
                }
                self.count_out(partial.bytes.len());
            }
            let (turn, bytes) = self.take_next()?;
            match self.send(&bytes, tap) {
                Ok(sent) if sent == bytes.len() => {}
                Ok(0) => {
                    self.queues.get_mut(turn)?.push_front(bytes);
                    self.turn = turn;
                    return self.stream.clone();
                }
                Ok(sent) => self.partial = Some(Partial { bytes, sent }),
                Err(Disconnected) => {
                    self.counters.dropped.count(DropReason::NoLink);
                    return None;
                }
            }
        }
    }

    /// The frame whose turn it is, and the queue that it was in.
    fn take_next(&mut self) -> Option<(usize, Box<[u8]>)> {
        let count = self.queues.len();
        let mut turns = (0..count).map(|step| (self.turn + step) % count);
        let turn = turns.find(|turn| self.queues.get(*turn).is_some_and(|queue| !queue.is_empty()))?;
        self.turn = (turn + 1) % count;
        Some((turn, self.queues.get_mut(turn)?.pop_front()?))
    }

    /// Sends the start of a frame, and records the frame if the socket took any of it. How many bytes it took.
    fn send(&mut self, bytes: &[u8], tap: Option<&Tap>) -> Result<usize, Disconnected> {
        let tap = tap.map(Tap::lock);
        let sent = self.resume(bytes)?;
        if sent > 0
            && let (Some(tap), Some(wire)) = (tap, Wire::new(bytes))
        {
            tap.record(wire.frame());
        }
        if sent == bytes.len() {
            self.count_out(sent);
        }
        Ok(sent)
    }

    /// Sends the start or the rest of a frame.
    fn resume(&mut self, bytes: &[u8]) -> Result<usize, Disconnected> {
        let Some(stream) = &self.stream else { return Err(Disconnected) };
        loop {
            match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => return Ok(sent),
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.disconnect();
                    return Err(Disconnected);
                }
            }
        }
    }

    fn count_out(&mut self, wire_bytes: usize) {
        self.counters.out_frames += 1;
        let frame_bytes = wire_bytes.saturating_sub(super::wire::PREFIX_BYTES);
        self.counters.out_bytes += u64::try_from(frame_bytes).unwrap_or(u64::MAX);
    }
}

/// The node is not there any more.
struct Disconnected;
