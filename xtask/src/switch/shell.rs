//! The threads and sockets around the [`Fabric`].
//!
//! Each port has a reader, which also waits for the node to connect, and a writer, which works only while the node
//! takes frames slower than they come. One more thread delivers what was delayed. A frame that nothing delays goes
//! from the reader's buffer into the other node's socket by one system call.
//!
//! Lock order: fabric, one port's egress, a tap. No thread waits for a node while it holds a lock.

use super::counters::{DropReason, LinkState, PortError, PortId};
use super::egress::{Egress, Offered, Tap};
use super::fabric::Fabric;
use super::wire::{AbsurdLength, Deframer, Item, Wire};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::prctl::set_timerslack;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the threads of a switch share.
pub struct Shared {
    /// Where frames go.
    pub fabric: Mutex<Fabric>,
    /// Told when [`Fabric::next_due`] has changed.
    pub timer: Condvar,
    /// By number.
    pub ports: Vec<Port>,
    /// When time began for the fabric.
    pub start: Instant,
    /// Records what is delivered.
    pub delivered: Option<Tap>,
    /// Records what comes in.
    pub entered: Option<Tap>,
    /// The switch is being dropped. Set before a port's egress and the fabric are locked to wake their threads.
    pub stopped: AtomicBool,
}

/// A port's sockets.
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// Where the node connects.
    pub path: PathBuf,
    /// The socket there.
    pub listener: UnixListener,
    /// The longest frame, in bytes, that is taken.
    pub frame_limit: usize,
    /// The way out.
    pub egress: Mutex<Egress>,
    /// Told when something waits in the egress.
    pub waiting: Condvar,
    /// How its node has behaved.
    pub status: Mutex<Status>,
}

/// How a port's nodes have behaved.
#[derive(Clone, Copy, Default)]
pub struct Status {
    /// How often one has connected.
    pub connections: u64,
    /// How often one had to be given up.
    pub errors: u64,
    /// The last time's reason.
    pub last_error: Option<PortError>,
}

/// Locks `mutex`. A thread that panicked has left nothing half done: every change under a lock is of counters and
/// queues.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Serves the nodes that connect to `port`, one after the other, until the switch stops.
    pub fn read(&self, port: &Port) {
        loop {
            let accepted = port.listener.accept();
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let served = match accepted {
                Ok((stream, _)) => self.serve(port, &Arc::new(stream)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(PortError::Accept(error.kind())),
            };
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = served {
                let mut status = lock(&port.status);
                status.errors += 1;
                status.last_error = Some(error);
                if matches!(error, PortError::Accept(_)) {
                    return;
                }
            }
        }
    }

    /// Sends what waits at `port` as its node takes it, until the switch stops.
    pub fn write(&self, port: &Port) {
        loop {
            let blocked = {
                let mut egress = lock(&port.egress);
                loop {
                    if self.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    if egress.is_waiting() {
                        break egress.flush(self.delivered.as_ref());
                    }
                    egress = port.waiting.wait(egress).unwrap_or_else(PoisonError::into_inner);
                }
            };
            if let Some(stream) = blocked {
                // A node that goes away ends the wait, as does the switch's stop; after a failure, and every second
                // at the latest, the next flush finds out.
                let _ = poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], 1000_u16);
            }
        }
    }

    /// Delivers what was delayed, when it is due, until the switch stops.
    pub fn deliver_delayed(&self) {
        // The kernel may otherwise wake this thread 50 us late. Refused, delays are that much longer.
        let _ = set_timerslack(1);
        let mut fabric = lock(&self.fabric);
        while !self.stopped.load(Ordering::SeqCst) {
            // The lock is kept, so that no reader's later frame comes between.
            let now = self.start.elapsed();
            while let Some(delivery) = fabric.release(now) {
                self.deliver(delivery.from, delivery.to, &delivery.bytes);
            }
            let longest = Duration::from_secs(3600);
            let wait = fabric.next_due().map_or(longest, |due| due.saturating_sub(self.start.elapsed()));
            fabric = self.timer.wait_timeout(fabric, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn serve(&self, port: &Port, stream: &Arc<UnixStream>) -> Result<(), PortError> {
        {
            let mut egress = lock(&port.egress);
            // Looked at under the lock: later than this, the stop finds the stream and shuts it down.
            if self.stopped.load(Ordering::SeqCst) {
                return Ok(());
            }
            egress.connect(Arc::clone(stream));
        }
        lock(&port.status).connections += 1;
        lock(&self.fabric).set_link(port.id, LinkState::Up);
        let result = self.read_frames(port, stream);
        lock(&self.fabric).set_link(port.id, LinkState::Down);
        lock(&port.egress).disconnect();
        result
    }

    fn read_frames(&self, port: &Port, mut stream: &UnixStream) -> Result<(), PortError> {
        let mut deframer = Deframer::new(port.frame_limit);
        loop {
            match stream.read(deframer.space()) {
                Ok(0) => break,
                Ok(count) => deframer.filled(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    // A node that is killed with frames unread resets the connection.
                    io::ErrorKind::ConnectionReset => break,
                    kind => return Err(PortError::Read(kind)),
                },
            }
            while let Some(item) =
                deframer.next_item().map_err(|AbsurdLength(length)| PortError::AbsurdLength(length))?
            {
                match item {
                    Item::Frame(wire) => self.forward(port.id, wire),
                    Item::TooShort => lock(&self.fabric).reject(port.id, DropReason::Malformed),
                    Item::TooLong => lock(&self.fabric).reject(port.id, DropReason::TooLong),
                }
            }
        }
        if deframer.inside_frame() {
            lock(&self.fabric).reject(port.id, DropReason::Unfinished);
            return Err(PortError::UnfinishedFrame);
        }
        Ok(())
    }

    fn forward(&self, from: PortId, wire: Wire<'_>) {
        if let Some(entered) = &self.entered {
            entered.lock().record(wire.frame());
        }
        let (verdict, due_changed) = {
            let mut fabric = lock(&self.fabric);
            let due = fabric.next_due();
            let verdict = fabric.ingress(self.start.elapsed(), from, wire);
            (verdict, fabric.next_due() != due)
        };
        if due_changed {
            self.timer.notify_one();
        }
        for to in verdict.originals.iter() {
            self.deliver(from, to, wire.bytes());
        }
        for copy in verdict.copies {
            self.deliver(copy.from, copy.to, &copy.bytes);
        }
    }

    fn deliver(&self, from: PortId, to: PortId, bytes: &[u8]) {
        let (Some(port), Some(wire)) = (self.ports.get(to.index()), Wire::new(bytes)) else { return };
        let offered = lock(&port.egress).offer(from, wire, self.delivered.as_ref());
        if offered == Offered::Queued {
            port.waiting.notify_one();
        }
    }
}
