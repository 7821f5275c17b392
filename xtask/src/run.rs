//! `cargo xtask run`: nodes in QEMU, joined by the virtual switch.

use std::io::{self, Write};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::{ALL_UP, BootMethod, Cluster, Event, FRAMES_FILE, LOG_FILE, Plan, Recording};
use crate::logs::Colour;
use crate::paths::{self, RunDirectory};
use crate::process::{POLL, interrupted};
use crate::qemu::{Clock, Ending};
use crate::setup;
use crate::switch::Impairment;
use crate::{build, image, logs};

/// Where the first node waits for a debugger.
const GDB_PORT: u16 = 1234;

/// Builds Unum and runs it on nodes in QEMU, until they end or Ctrl-C.
///
/// The terminal shows the first node's console (COM1); all nodes' logs go, merged, to .unum/run/log.txt.
/// Exit code: 0 when every node powered off or reported success, or when --timeout passed after all services came
/// up; 3 when a node reported failure; 4 when a node crashed; 5 when --timeout passed before; 130 after Ctrl-C;
/// 1 when the run could not be made.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Nodes to run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: u8,
    /// Processors of each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of each node, as 512M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_memory)]
    memory: Mebibytes,
    /// The manifest: which services the nodes run, and what each may do
    #[arg(long, default_value = image::DEFAULT_MANIFEST, value_parser = paths::of_user)]
    manifest: PathBuf,
    /// Let each node wait for a debugger before its first instruction
    #[arg(long)]
    gdb: bool,
    /// Show the merged log on the terminal, too
    #[arg(long)]
    verbose: bool,
    /// What the network does to frames, as "loss=1%,dup=0.1%,reorder=1%,corrupt=10ppm,delay=2ms,jitter=1ms"
    #[arg(long, default_value = "")]
    network: Impairment,
    /// Record the network's frames in .unum/run/network.pcap
    #[arg(long)]
    record: bool,
    /// Stop after so many seconds
    #[arg(long)]
    timeout: Option<u64>,
}

/// Memory in MiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mebibytes(u32);

/// How a run ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// Every node ended as it should, or was stopped in good health.
    Good,
    /// The time was over before all services were up.
    TooSlow,
    /// A node reported a failure.
    Failed,
    /// A node had a triple fault, or its QEMU died.
    Crashed,
    /// Ctrl-C.
    Interrupted,
}

impl Outcome {
    /// The exit code that says so.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failed => 3,
            Self::Crashed => 4,
            Self::TooSlow => 5,
            Self::Interrupted => 130,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The run cannot be made.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    setup::ensure(BootMethod::Direct.tools())?;
    let directory = RunDirectory::claim("run")?;
    let built = build::build(&arguments.manifest)?;
    let plan = Plan {
        built: &built,
        module: None,
        boot: BootMethod::Direct,
        nodes: arguments.nodes,
        cpus: arguments.cpus,
        memory_mib: arguments.memory.0,
        clock: Clock::Wall,
        gdb: arguments.gdb.then_some(GDB_PORT),
        network: arguments.network,
        recording: if arguments.record { Recording::On } else { Recording::Off },
        directory: directory.path(),
    };
    let mut cluster = Cluster::start(&plan)?;
    for (number, port) in (1..=arguments.nodes).zip(GDB_PORT..) {
        eprintln!("node {number}: booting ({} processors, {} MiB)", arguments.cpus, arguments.memory.0);
        if arguments.gdb {
            let kernel = built.kernel.display();
            eprintln!("node {number}: waits for: gdb {kernel} -ex 'target remote :{port}'");
        }
    }
    let deadline = arguments.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let outcome = watch(&mut cluster, arguments, deadline)?;
    eprint!("{}", cluster.network());
    drop(cluster);
    eprintln!("log: {}", directory.path().join(LOG_FILE).display());
    if arguments.record {
        eprintln!("frames: {}", directory.path().join(FRAMES_FILE).display());
    }
    Ok(outcome)
}

fn watch(cluster: &mut Cluster, arguments: &Arguments, deadline: Option<Instant>) -> Result<Outcome> {
    let mut watcher = Watcher::new(usize::from(arguments.nodes));
    let take = |watcher: &mut Watcher, cluster: &Cluster, events: Vec<Event>| -> Result<()> {
        for event in events {
            show(&event, arguments.verbose)?;
            if let Some(text) = watcher.take(&event, cluster.age(event.node())) {
                eprintln!("{text}");
            }
        }
        Ok(())
    };
    while cluster.is_running() {
        let events = cluster.poll()?;
        take(&mut watcher, cluster, events)?;
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || interrupted() {
            let events = cluster.finish()?;
            take(&mut watcher, cluster, events)?;
            if late && !watcher.all_up() {
                cluster.whereabouts().iter().for_each(|place| eprintln!("{place}"));
            }
            return Ok(if late { watcher.stopped() } else { Outcome::Interrupted });
        }
        sleep(POLL);
    }
    Ok(watcher.worst)
}

/// The terminal is the first node's console, and with `--verbose` the log's, too.
fn show(event: &Event, verbose: bool) -> Result<()> {
    let text = match event {
        Event::Console(0, line) => format!("{line}\n"),
        Event::Log(_, line) if verbose => logs::show(line, Colour::of_stdout()),
        Event::Console(..) | Event::Log(..) | Event::Ended(..) => return Ok(()),
    };
    io::stdout().write_all(text.as_bytes()).context("nobody reads the output any more")
}

/// Follows the nodes' health.
struct Watcher {
    up: Vec<bool>,
    worst: Outcome,
}

impl Watcher {
    fn new(nodes: usize) -> Self {
        Self { up: vec![false; nodes], worst: Outcome::Good }
    }

    /// What to tell of an event; `age` is how long its node has been running.
    fn take(&mut self, event: &Event, age: Duration) -> Option<String> {
        match event {
            Event::Log(node, line) if line.text.contains(ALL_UP) => {
                let up = self.up.get_mut(*node).filter(|up| !**up)?;
                *up = true;
                Some(format!("node {}: {ALL_UP} after {} ms", node + 1, age.as_millis()))
            }
            Event::Log(..) | Event::Console(..) => None,
            Event::Ended(node, ending) => {
                let (outcome, text) = match ending {
                    Ending::Passed => (Outcome::Good, "ended with success"),
                    Ending::PoweredOff => (Outcome::Good, "powered off"),
                    Ending::Failed => (Outcome::Failed, "reported a failure"),
                    Ending::TripleFault => (Outcome::Crashed, "had a triple fault"),
                    Ending::Died(how) => (Outcome::Crashed, how.as_str()),
                };
                self.worst = self.worst.max(outcome);
                Some(format!("node {}: {text}", node + 1))
            }
        }
    }

    fn all_up(&self) -> bool {
        self.up.iter().all(|up| *up)
    }

    /// The outcome when the run is stopped because its time is over.
    fn stopped(&self) -> Outcome {
        if self.all_up() { self.worst } else { self.worst.max(Outcome::TooSlow) }
    }
}

fn parse_memory(text: &str) -> Result<Mebibytes, String> {
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let value = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(factor));
    match value {
        Some(mebibytes) if mebibytes >= 64 => Ok(Mebibytes(mebibytes)),
        Some(_) => Err("a node needs at least 64M".into()),
        None => Err("give a whole number with M or G, as 512M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Line;

    #[test]
    fn memory_has_units() {
        assert_eq!(parse_memory("512M"), Ok(Mebibytes(512)));
        assert_eq!(parse_memory("2G"), Ok(Mebibytes(2048)));
        assert_eq!(parse_memory("300"), Ok(Mebibytes(300)));
        for bad in ["", "M", "-1M", "1.5G", "63M", "4194304G", "1T", "99999999999"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    fn log(node: usize, text: &str) -> Event {
        let service = "supervisor".to_owned();
        Event::Log(
            node,
            Line { nanos: 0, tsc: 0, node: 1, service, level: None, text: text.into(), context: Vec::new() },
        )
    }

    #[test]
    fn the_outcome_is_that_of_the_worst_node() {
        let mut watcher = Watcher::new(2);
        let age = Duration::from_millis(812);
        let up = log(1, &format!("{ALL_UP} after 5 ms"));
        assert_eq!(watcher.take(&up, age).unwrap(), "node 2: all services up after 812 ms");
        assert_eq!(watcher.take(&up, age), None);
        assert_eq!(watcher.stopped(), Outcome::TooSlow);
        watcher.take(&log(0, ALL_UP), age).unwrap();
        assert_eq!(watcher.stopped(), Outcome::Good);
        watcher.take(&Event::Ended(0, Ending::Failed), age).unwrap();
        assert_eq!(watcher.stopped(), Outcome::Failed);
        let text =
            watcher.take(&Event::Ended(1, Ending::Died("QEMU ended with signal 9".into())), age).unwrap();
        assert_eq!(text, "node 2: QEMU ended with signal 9");
        watcher.take(&Event::Ended(1, Ending::Passed), age).unwrap();
        assert_eq!(watcher.worst, Outcome::Crashed);
        assert_eq!(watcher.take(&Event::Console(0, ALL_UP.into()), age), None);
    }
}
