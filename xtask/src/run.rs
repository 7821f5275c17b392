//! `cargo xtask run`: nodes in QEMU, joined by the virtual switch, and the guest's console.

mod arguments;
mod outcome;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use arguments::Arguments;
pub use outcome::Outcome;

use crate::build::{self, Built};
use crate::cluster::{BootMethod, Cluster, Event, FRAMES_FILE, LOG_FILE, Plan, Recording};
use crate::given::{self, Given, GivenGuest};
use crate::guest::initrd::GREETING;
use crate::logs::Colour;
use crate::manifest::{Guest, InitrdSource, Overrides};
use crate::paths::RunDirectory;
use crate::process::{POLL, interrupted};
use crate::qemu::Clock;
use crate::terminal::{self, Terminal, Typed};
use crate::{logs, setup};
use arguments::Mebibytes;
use outcome::Watcher;

/// Where the first node waits for a debugger.
const GDB_PORT: u16 = 1234;
/// The least memory of a node in MiB when none is asked for.
const DEFAULT_MIB: u32 = 512;
/// A guest whose console says nothing for so long is taken to read it.
const QUIET: Duration = Duration::from_secs(10);
/// What a node needs in MiB beside its guest's memory and its image.
const MARGIN_MIB: u64 = 64;

/// What the nodes boot, and what is known of the guest in it.
struct Boot {
    method: BootMethod,
    iso: Option<PathBuf>,
    module: Option<PathBuf>,
    /// The guest; `None`: there is none.
    guest: Option<GivenGuest>,
    /// What input from a file waits for.
    held: Held,
    bytes: u64,
}

impl Boot {
    fn of(given: Option<Given>, built: &Built) -> Result<Self> {
        let size = |path: &PathBuf| {
            let metadata = std::fs::metadata(path);
            metadata.map(|file| file.len()).with_context(|| format!("{} is missing", path.display()))
        };
        let guest = built.manifest.guest.as_ref();
        let boot = Self {
            method: BootMethod::Direct,
            iso: None,
            module: None,
            guest: guest.map(|guest| GivenGuest {
                nodes: u8::try_from(guest.config.shares.len()).unwrap_or(u8::MAX),
                node_bytes: guest.node_bytes,
            }),
            held: match guest.map(|guest| &guest.initrd) {
                Some(InitrdSource::Shell | InitrdSource::Kit) => Held::UntilGreeting,
                Some(InitrdSource::None | InitrdSource::File(_)) | None => Held::UntilQuiet(None),
            },
            bytes: size(&built.module)?,
        };
        Ok(match given {
            None => boot,
            // It may be of any manifest; most likely it is of this one.
            Some(Given::Iso(iso)) => Self {
                method: BootMethod::Bios,
                bytes: size(&iso)?,
                iso: Some(iso),
                held: Held::UntilQuiet(None),
                ..boot
            },
            Some(Given::Module { path, guest }) => {
                Self { bytes: size(&path)?, module: Some(path), guest, held: Held::UntilQuiet(None), ..boot }
            }
        })
    }

    /// The memory of a node in MiB.
    fn memory(&self, asked: Option<Mebibytes>) -> Result<u32> {
        let needed = needed_mib(0, self.bytes);
        let Some(Mebibytes(asked)) = asked else {
            let enough = needed_mib(self.guest.map_or(0, |guest| guest.node_bytes), self.bytes);
            return Ok(u32::try_from(enough).unwrap_or(u32::MAX).max(DEFAULT_MIB));
        };
        ensure!(
            u64::from(asked) >= needed,
            "a node needs at least {needed}M for this image, and has {asked}M"
        );
        Ok(asked)
    }
}

/// The memory in MiB that a node needs for its guest and its image.
fn needed_mib(guest_bytes: u64, image_bytes: u64) -> u64 {
    guest_bytes.saturating_add(image_bytes).div_ceil(1 << 20) + MARGIN_MIB
}

/// The memory in MiB that suffices for a node with this guest and an image of so many bytes.
pub fn node_memory(guest: Option<&Guest>, image_bytes: u64) -> u32 {
    u32::try_from(needed_mib(guest.map_or(0, |guest| guest.node_bytes), image_bytes)).unwrap_or(u32::MAX)
}

/// Runs the command.
///
/// # Errors
/// The run cannot be made.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let given = arguments.image.as_deref().map(given::look_at).transpose()?;
    setup::ensure(BootMethod::Direct.tools())?;
    let directory = RunDirectory::claim("run")?;
    let overrides = Overrides { nodes: arguments.nodes, ..arguments.guest.overrides() };
    let built = build::build(&arguments.manifest, &overrides)?;
    let boot = Boot::of(given, &built)?;
    let nodes = arguments.nodes.or(boot.guest.map(|guest| guest.nodes)).unwrap_or(1);
    let memory_mib = boot.memory(arguments.memory)?;
    let plan = Plan {
        built: &built,
        module: boot.module.as_deref(),
        boot: boot.method,
        iso: boot.iso.as_deref(),
        nodes,
        cpus: arguments.cpus,
        memory_mib,
        clock: Clock::Wall,
        gdb: arguments.gdb.then_some(GDB_PORT),
        network: arguments.network,
        mtu: arguments.mtu,
        recording: if arguments.record { Recording::On } else { Recording::Off },
        directory: directory.path(),
    };
    let mut cluster = Cluster::start(&plan)?;
    for (number, port) in (1..=nodes).zip(GDB_PORT..) {
        eprintln!("node {number}: booting ({} processors, {memory_mib} MiB)", arguments.cpus);
        if arguments.gdb {
            let kernel = built.kernel.display();
            eprintln!("node {number}: waits for: gdb {kernel} -ex 'target remote :{port}'");
        }
    }
    let outcome = watch(&mut cluster, arguments, nodes, &boot)?;
    eprint!("{}", cluster.network());
    drop(cluster);
    eprintln!("log: {}", directory.path().join(LOG_FILE).display());
    if arguments.record {
        eprintln!("frames: {}", directory.path().join(FRAMES_FILE).display());
    }
    Ok(outcome)
}

fn watch(cluster: &mut Cluster, arguments: &Arguments, nodes: u8, boot: &Boot) -> Result<Outcome> {
    let deadline = arguments.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut watcher = Watcher::new(usize::from(nodes), boot.guest.is_some());
    let mut console = boot.guest.map(|_| Console::open(boot.held)).transpose()?;
    while cluster.is_running() {
        let events = cluster.poll()?;
        take(&mut watcher, cluster, events, &mut console, arguments.verbose)?;
        let quit = match &mut console {
            Some(console) => console.pass_on(cluster)?,
            None => {
                std::thread::sleep(POLL);
                false
            }
        };
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || quit || interrupted() {
            let events = cluster.finish()?;
            take(&mut watcher, cluster, events, &mut console, arguments.verbose)?;
            drop(console);
            if late && watcher.stopped() == Outcome::TooSlow {
                cluster.whereabouts().iter().for_each(|place| eprintln!("{place}"));
            }
            return Ok(if late { watcher.stopped() } else { Outcome::Interrupted });
        }
    }
    Ok(watcher.ended())
}

fn take(
    watcher: &mut Watcher,
    cluster: &Cluster,
    events: Vec<Event>,
    console: &mut Option<Console>,
    verbose: bool,
) -> Result<()> {
    for event in events {
        show(&event, verbose)?;
        if let (Some(console), Event::Console(0, line)) = (console.as_mut(), &event) {
            console.held.see(line, Instant::now());
        }
        if let Some(text) = watcher.take(&event, cluster.age(event.node())) {
            eprintln!("{text}");
        }
    }
    Ok(())
}

/// The terminal is the first node's console, and with `--verbose` the log's, too.
fn show(event: &Event, verbose: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let shown = match event {
        Event::Output(0, bytes) => out.write_all(bytes),
        Event::Log(_, line) if verbose => out.write_all(logs::show(line, Colour::of_stdout()).as_bytes()),
        Event::Output(..) | Event::Console(..) | Event::Log(..) | Event::Ended(..) => return Ok(()),
    };
    shown.and_then(|()| out.flush()).context("nobody reads the output any more")
}

/// The guest's console, typed at by the user or from a file.
struct Console {
    terminal: Terminal,
    /// Until when input from a file is held back: earlier, nobody would read it.
    held: Held,
}

/// What input waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    /// Nothing.
    No,
    /// The shell of our own initrd.
    UntilGreeting,
    /// That, or that the console has said nothing more since then for as long as [`QUIET`].
    UntilQuiet(Option<Instant>),
}

impl Held {
    /// The console shows a line.
    fn see(&mut self, line: &str, now: Instant) {
        match self {
            Self::UntilGreeting | Self::UntilQuiet(_) if line.contains(GREETING) => *self = Self::No,
            Self::UntilQuiet(since) => *since = Some(now),
            Self::No | Self::UntilGreeting => {}
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if matches!(self, Self::UntilQuiet(Some(since)) if now.duration_since(*since) >= QUIET) {
            *self = Self::No;
        }
        *self == Self::No
    }
}

impl Console {
    fn open(held: Held) -> Result<Self> {
        let terminal = Terminal::take()?;
        if terminal.is_interactive() {
            eprintln!("this terminal is the guest's console: {}", terminal::KEYS);
        }
        let held = if terminal.is_interactive() { Held::No } else { held };
        Ok(Self { terminal, held })
    }

    /// Passes on what was typed, and waits a moment for it; whether the run is to end.
    fn pass_on(&mut self, cluster: &mut Cluster) -> Result<bool> {
        if !self.held.is_over(Instant::now()) {
            std::thread::sleep(POLL);
            return Ok(false);
        }
        match self.terminal.wait(POLL)? {
            Typed::Bytes(bytes) => {
                cluster.send(0, &bytes);
                Ok(false)
            }
            Typed::Quit => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_from_a_file_waits_for_a_reader() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut held = Held::UntilGreeting;
        held.see("Linux version 6.1", start);
        assert!(!held.is_over(after(100)));
        held.see(&format!("unum: Linux with 2 {GREETING}"), after(100));
        assert!(held.is_over(after(100)));
        let mut held = Held::UntilQuiet(None);
        assert!(!held.is_over(after(100)), "it has not begun");
        held.see("Linux version 6.1", after(100));
        held.see("login:", after(105));
        assert!(!held.is_over(after(114)) && held.is_over(after(115)));
        assert!(Held::No.is_over(start));
    }

    #[test]
    fn a_node_has_the_memory_that_its_guest_needs() {
        let boot = Boot {
            method: BootMethod::Direct,
            iso: None,
            module: None,
            guest: Some(GivenGuest { nodes: 2, node_bytes: 1 << 30 }),
            held: Held::No,
            bytes: (40 << 20) + 1,
        };
        assert_eq!(boot.memory(None).unwrap(), 1024 + 41 + 64);
        assert_eq!(boot.memory(Some(Mebibytes(105))).unwrap(), 105);
        let error = boot.memory(Some(Mebibytes(104))).unwrap_err().to_string();
        assert_eq!(error, "a node needs at least 105M for this image, and has 104M");
        assert_eq!(Boot { guest: None, ..boot }.memory(None).unwrap(), 512);
    }
}
