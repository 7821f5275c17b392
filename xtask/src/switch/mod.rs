//! A virtual Ethernet switch that joins QEMU nodes by their `-netdev stream` sockets.
//!
//! It learns which address is where, gives every node a queue of its own, counts, records, and on request delays,
//! drops, duplicates, reorders, corrupts and cuts, the same way for the same seed. A node that misbehaves, floods,
//! never reads, or dies concerns its own port alone; when it comes back, it connects again.
//!
//! A node is joined by
//! `-netdev stream,id=lan,server=off,addr.type=unix,addr.path=PATH -device virtio-net-pci,netdev=lan`
//! with the path of [`Switch::socket_path`].
//!
//! [`fabric`] decides, [`egress`] queues, [`shell`] holds the threads.

mod control;
pub mod counters;
mod egress;
mod fabric;
pub mod impairment;
mod mac;
mod pcap;
mod shell;
mod wire;

#[cfg(test)]
mod fabric_tests;
#[cfg(test)]
mod tests;

pub use control::Control;
pub use counters::{MAX_PORTS, PortId};
pub use impairment::Impairment;
pub use wire::{MAX_FRAME, MIN_FRAME};

use anyhow::{Context as _, Result, bail, ensure};
use egress::{Egress, Tap};
use fabric::Fabric;
use nix::sys::socket;
use pcap::Recorder;
use shell::{Port, Shared, Status, lock};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// What a switch is to be.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Where the sockets are made. Its path, and the names in it, must fit the 108 bytes of a socket's address.
    pub directory: PathBuf,
    /// For each port, the longest frame in bytes that it takes and gives, with the Ethernet header and without a
    /// check sequence: [`MIN_FRAME`] to [`MAX_FRAME`].
    pub frame_limits: Vec<usize>,
    /// What happens to all frames at first.
    pub impairment: Impairment,
    /// What the impairments' choices follow from.
    pub seed: u64,
    /// Where to record what is delivered: a frame to three ports is there three times.
    pub pcap: Option<PathBuf>,
    /// Where to record what comes in.
    pub pcap_entered: Option<PathBuf>,
}

impl SwitchConfig {
    /// A switch with `ports` ports that take all frames, with no impairment and no recording.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, ports: usize) -> Self {
        Self {
            directory: directory.into(),
            frame_limits: vec![MAX_FRAME; ports],
            impairment: Impairment::default(),
            seed: 0,
            pcap: None,
            pcap_entered: None,
        }
    }
}

/// A switch that runs until it is dropped.
pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Switch {
    /// Makes the sockets, and serves them from now on.
    ///
    /// # Errors
    /// When the configuration is out of range, another switch uses the directory, or the system refuses a socket, a
    /// file or a thread.
    pub fn start(config: SwitchConfig) -> Result<Self> {
        let count = config.frame_limits.len();
        ensure!((1..=MAX_PORTS).contains(&count), "a switch has 1 to {MAX_PORTS} ports, not {count}");
        for (port, limit) in PortId::all(count).zip(&config.frame_limits) {
            ensure!(
                (MIN_FRAME..=MAX_FRAME).contains(limit),
                "{port}: the longest frame must be of {MIN_FRAME} to {MAX_FRAME} bytes, not {limit}"
            );
        }
        let tap = |path: &Option<PathBuf>| path.as_deref().map(Recorder::create).transpose();
        let delivered = tap(&config.pcap)?.map(Tap::new);
        let entered = tap(&config.pcap_entered)?.map(Tap::new);
        std::fs::create_dir_all(&config.directory)
            .with_context(|| format!("cannot make the switch's directory {}", config.directory.display()))?;

        let shared = Shared {
            fabric: Mutex::new(Fabric::new(config.seed, &config.frame_limits)),
            timer: Condvar::new(),
            ports: Vec::with_capacity(count),
            start: Instant::now(),
            delivered,
            entered,
            stopped: AtomicBool::new(false),
        };
        // From here on, dropping the switch removes what has been made.
        let mut switch = Self { shared: Arc::new(shared), threads: Vec::new() };
        if let Some(shared) = Arc::get_mut(&mut switch.shared) {
            for (id, frame_limit) in PortId::all(count).zip(config.frame_limits) {
                let path = config.directory.join(format!("port-{}.sock", id.0));
                let listener = listen(&path).with_context(|| format!("{id}"))?;
                shared.ports.push(Port {
                    id,
                    path,
                    listener,
                    frame_limit,
                    egress: Mutex::new(Egress::new(count)),
                    waiting: Condvar::new(),
                    status: Mutex::new(Status::default()),
                });
            }
        }
        switch.control().set_impairment(config.impairment);
        switch.spawn("switch-timer", |shared| shared.deliver_delayed())?;
        for index in 0..count {
            switch.spawn(&format!("switch-read-{index}"), move |shared| shared.read(&shared.ports[index]))?;
            switch
                .spawn(&format!("switch-write-{index}"), move |shared| shared.write(&shared.ports[index]))?;
        }
        Ok(switch)
    }

    /// The socket that the node of `port` connects to.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn socket_path(&self, port: PortId) -> Result<&Path> {
        control::check(&self.shared, port)?;
        Ok(&self.shared.ports[port.index()].path)
    }

    /// A handle by which the switch is changed and watched while it runs. It does not keep the switch alive.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared))
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared))
            .with_context(|| format!("cannot start the thread {name}"))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Switch {
    /// Disconnects all nodes, ends all threads, and removes the sockets.
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for port in &self.shared.ports {
            // Wakes a reader that waits for a connection (on Linux), or for a frame, and the writer.
            let _ = socket::shutdown(port.listener.as_raw_fd(), socket::Shutdown::Both);
            lock(&port.egress).disconnect();
            port.waiting.notify_all();
        }
        drop(lock(&self.shared.fabric));
        self.shared.timer.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed why.
            let _ = thread.join();
        }
        for port in &self.shared.ports {
            // Gone already is as good.
            let _ = std::fs::remove_file(&port.path);
        }
    }
}

/// Makes a listening socket at `path`, in place of one that a switch has left behind there.
fn listen(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => bail!("{shown} is in the way: it is not a socket"),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => bail!("{shown} is in use by another switch"),
            Err(_) => std::fs::remove_file(path).with_context(|| format!("cannot remove the old {shown}"))?,
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
    }
    UnixListener::bind(path).with_context(|| format!("cannot make the socket {shown}"))
}
