//! The nodes of a run, their switch, and all that they say: one stream of events, and one merged log file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::build::Built;
use crate::console::Keyboard;
use crate::logs::{self, Collector, Colour, Line, Program, Source, Tables};
use crate::manifest::Service;
use crate::process::Child;
use crate::qemu::{Boot, Clock, Ending, Threads};
use crate::setup::Tool;
use crate::switch::{Impairment, PortId, Switch, SwitchConfig};
use crate::{bochs, image, qemu};

/// The merged log, in the directory of a run.
pub const LOG_FILE: &str = "log.txt";
/// The programs' defmt tables, in the directory of a run: `cargo xtask logs` reads the log with them.
pub const TABLES_FILE: &str = "tables.bin";
/// The frames that the switch delivered, in the directory of a run.
pub const FRAMES_FILE: &str = "network.pcap";
/// How long a node's end is held back while others run, so that its last lines come before it.
const SETTLING: Duration = Duration::from_secs(1);
/// What the supervisor logs once every service of the image has registered.
pub const ALL_UP: &str = "all services up";
/// What the switch's choices follow from: every run sees the same ones.
const NETWORK_SEED: u64 = 1;

/// How a node boots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BootMethod {
    /// QEMU loads kernel and boot module.
    Direct,
    /// From the ISO, in QEMU with SeaBIOS.
    Bios,
    /// From the ISO, in QEMU with OVMF.
    Uefi,
    /// From the ISO, in Bochs.
    Bochs,
}

impl BootMethod {
    /// What it needs.
    pub fn tools(self) -> &'static [Tool] {
        match self {
            Self::Direct => &[Tool::Qemu],
            Self::Bios => &[Tool::Qemu, Tool::Grub],
            Self::Uefi => &[Tool::Qemu, Tool::Grub, Tool::Ovmf],
            Self::Bochs => &[Tool::Bochs, Tool::Grub],
        }
    }
}

/// What to run.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What the nodes boot.
    pub built: &'a Built,
    /// The boot module, when it is not the one that was built.
    pub module: Option<&'a Path>,
    /// How they boot.
    pub boot: BootMethod,
    /// The ISO, when it is not to be made of what was built.
    pub iso: Option<&'a Path>,
    /// How many nodes.
    pub nodes: u8,
    /// Processors of each.
    pub cpus: u32,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// Their time.
    pub clock: Clock,
    /// The port at which the first node waits for a debugger; the next node has the next port.
    pub gdb: Option<u16>,
    /// What the network does to frames.
    pub network: Impairment,
    /// The longest Ethernet payload of its links in bytes.
    pub mtu: u16,
    /// Whether to record the network's frames.
    pub recording: Recording,
    /// Where files go. Its path must be short: sockets are made in it.
    pub directory: &'a Path,
}

/// Whether the network's frames are recorded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recording {
    /// No.
    Off,
    /// As [`FRAMES_FILE`] in the directory of the run.
    On,
}

/// Something that happened on a node, counted from 0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A line of the log.
    Log(usize, Line),
    /// Bytes on COM1; the lines that they end follow.
    Output(usize, Vec<u8>),
    /// A line on COM1.
    Console(usize, String),
    /// The node ended; nothing more comes from it.
    Ended(usize, Ending),
}

impl Event {
    /// The node, counted from 0.
    pub fn node(&self) -> usize {
        match self {
            Self::Log(node, _) | Self::Output(node, _) | Self::Console(node, _) | Self::Ended(node, _) => {
                *node
            }
        }
    }
}

/// Jumbo frames: a page goes in one.
pub const JUMBO_MTU: u16 = 9000;

/// Nodes that run until they end or this is dropped.
pub struct Cluster {
    // The nodes are dropped, and so killed, before their switch.
    nodes: Vec<Node>,
    collector: Collector,
    log: File,
    switch: Option<Switch>,
}

struct Node {
    child: Child,
    /// Bochs stops at the end of its input.
    _input: Option<ChildStdin>,
    boot: BootMethod,
    directory: PathBuf,
    console: Tail,
    /// Bochs has none.
    keyboard: Option<Keyboard>,
    partial: String,
    started: Instant,
    state: State,
}

enum State {
    Running,
    /// It ended, then, so, and this was not told yet.
    Ended(Instant, ExitStatus),
    Told,
}

impl Cluster {
    /// Starts the switch, then the nodes. Must be called on a thread that lives as long as the nodes shall.
    ///
    /// # Errors
    /// An emulator cannot be started, or a file cannot be written.
    pub fn start(plan: &Plan) -> Result<Self> {
        let iso = match plan.boot {
            BootMethod::Direct => None,
            BootMethod::Bios | BootMethod::Uefi | BootMethod::Bochs => Some(match plan.iso {
                Some(iso) => iso.to_owned(),
                None => image::make(plan.built, None)?,
            }),
        };
        let count = usize::from(plan.nodes);
        let switch = match plan.boot {
            BootMethod::Bochs => None,
            BootMethod::Direct | BootMethod::Bios | BootMethod::Uefi => Some(Switch::start(SwitchConfig {
                impairment: plan.network,
                seed: NETWORK_SEED,
                pcap: (plan.recording == Recording::On).then(|| plan.directory.join(FRAMES_FILE)),
                ..SwitchConfig::new(plan.directory.join("switch"), count)
            })?),
        };
        let path = plan.directory.join(LOG_FILE);
        let log = File::create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let collector =
            Collector::new(tables(plan.built, plan.directory)?, sources(plan.directory, plan.nodes));
        let mut nodes = Vec::new();
        for (number, port) in (1..=plan.nodes).zip(PortId::all(count)) {
            let socket = switch.as_ref().map(|switch| switch.socket_path(port)).transpose()?;
            nodes.push(Node::start(plan, number, iso.as_deref(), socket)?);
        }
        Ok(Self { nodes, collector, log, switch })
    }

    /// What happened since the last call. A line of the log is late by a moment, for the sake of their order.
    ///
    /// # Errors
    /// A file of a node cannot be read, or the merged log cannot be written.
    pub fn poll(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.poll(index, &mut events)?;
        }
        if !self.is_running() {
            events.extend(self.finish()?);
            let ends = self.nodes.iter_mut().enumerate().filter_map(|(index, node)| node.told_end(index));
            events.extend(ends);
            return Ok(events);
        }
        let lines = self.collector.poll()?;
        events.extend(self.keep(lines)?);
        let settled =
            |node: &&mut Node| matches!(node.state, State::Ended(when, _) if when.elapsed() > SETTLING);
        for (index, node) in self.nodes.iter_mut().enumerate().filter(|(_, node)| settled(node)) {
            events.extend(node.told_end(index));
        }
        Ok(events)
    }

    /// The lines that are still held back, when nothing more is waited for.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn finish(&mut self) -> Result<Vec<Event>> {
        let lines = self.collector.finish()?;
        self.keep(lines)
    }

    fn keep(&mut self, lines: Vec<Line>) -> Result<Vec<Event>> {
        for line in &lines {
            let text = logs::show(line, Colour::Plain);
            self.log.write_all(text.as_bytes()).context("the merged log cannot be written")?;
        }
        let event = |line: Line| Event::Log(usize::from(line.node).saturating_sub(1), line);
        Ok(lines.into_iter().map(event).collect())
    }

    /// Types at a node's console, which is the guest's.
    pub fn send(&mut self, node: usize, bytes: &[u8]) {
        if let Some(keyboard) = self.nodes.get_mut(node).and_then(|node| node.keyboard.as_mut()) {
            keyboard.send(bytes);
        }
    }

    /// Cuts the first node's link to all others.
    ///
    /// # Errors
    /// The switch refuses.
    pub fn cut(&self) -> Result<()> {
        let Some(switch) = &self.switch else { return Ok(()) };
        let ports: Vec<_> = PortId::all(self.nodes.len()).collect();
        let (first, others) = ports.split_at(1);
        switch.control().cut(first, others)
    }

    /// Undoes the cut.
    pub fn heal(&self) {
        self.switch.iter().for_each(|switch| switch.control().heal());
    }

    /// What the switch counted, a line for each node.
    pub fn network(&self) -> String {
        let Some(switch) = &self.switch else { return String::new() };
        let counters = switch.control().counters();
        let ports =
            counters.ports.iter().map(|port| format!("node {}, switch {port}\n", port.port.index() + 1));
        ports.chain(counters.recording_errors.iter().map(|error| format!("{error}\n"))).collect()
    }

    /// How long a node, counted from 0, has been running.
    pub fn age(&self, node: usize) -> Duration {
        self.nodes.get(node).map_or(Duration::ZERO, |node| node.started.elapsed())
    }

    /// Whether any node has not ended.
    pub fn is_running(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.state, State::Running))
    }

    /// Where each node that still runs is, to tell where it hangs: its processors' registers go to a file beside its
    /// log, and their instruction pointers are returned.
    pub fn whereabouts(&self) -> Vec<String> {
        let mut list = Vec::new();
        let in_qemu = |node: &&Node| matches!(node.state, State::Running) && node.boot != BootMethod::Bochs;
        for node in self.nodes.iter().filter(in_qemu) {
            // A node that does not even answer its monitor has nothing to tell.
            let Ok(text) = qemu::registers(&node.directory) else { continue };
            let path = node.directory.join("registers.txt");
            let pointers: Vec<_> = text
                .split_whitespace()
                .filter(|word| word.starts_with("RIP=") || word.starts_with("EIP="))
                .collect();
            if fs::write(&path, &text).is_ok() {
                list.push(format!("{} (all registers: {})", pointers.join(" "), path.display()));
            }
        }
        list
    }
}

/// The logs of a run's nodes.
pub fn sources(directory: &Path, nodes: u8) -> Vec<Source> {
    let file = |node| node_directory(directory, node).join(qemu::LOG);
    (1..=nodes).map(|node| Source { node, file: file(node) }).collect()
}

/// Where a node's files are.
pub fn node_directory(directory: &Path, number: u8) -> PathBuf {
    directory.join(format!("node-{number}"))
}

/// The programs' tables, kept for later.
fn tables(built: &Built, directory: &Path) -> Result<Tables> {
    let program = |service: &Service| Program { name: service.name.clone(), elf: built.elf_of(service) };
    let tables = Tables::of(&built.kernel, built.manifest.services.iter().map(program))?;
    tables.save(&directory.join(TABLES_FILE))?;
    Ok(tables)
}

impl Node {
    fn start(plan: &Plan, number: u8, iso: Option<&Path>, socket: Option<&Path>) -> Result<Self> {
        let directory = node_directory(plan.directory, number);
        fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
        let iso = iso.map(Path::to_owned).unwrap_or_default();
        let (cpus, memory_mib) = (plan.cpus, plan.memory_mib);
        let boot = match plan.boot {
            BootMethod::Direct => Boot::Direct {
                kernel: plan.built.boot_kernel.clone(),
                module: plan.module.unwrap_or(&plan.built.module).to_owned(),
            },
            BootMethod::Uefi => Boot::Uefi(iso.clone()),
            BootMethod::Bios | BootMethod::Bochs => Boot::Bios(iso.clone()),
        };
        let started = Instant::now();
        let (child, input) = if plan.boot == BootMethod::Bochs {
            let node = bochs::Node { cpus, memory_mib, iso, directory: directory.clone() };
            let (child, input) = bochs::start(&node)?;
            (child, Some(input))
        } else {
            let node = qemu::Node {
                number,
                cpus,
                memory_mib,
                boot,
                clock: plan.clock,
                threads: if plan.built.manifest.guest.is_some() { Threads::One } else { Threads::Each },
                network: socket.map(Path::to_owned),
                mtu: plan.mtu,
                gdb: plan.gdb.map(|port| port + u16::from(number) - 1),
                directory: directory.clone(),
            };
            (qemu::start(&node)?, None)
        };
        Ok(Self {
            child,
            _input: input,
            boot: plan.boot,
            console: Tail::new(directory.join(qemu::CONSOLE)),
            keyboard: (plan.boot != BootMethod::Bochs).then(|| Keyboard::new(directory.join(qemu::KEYBOARD))),
            directory,
            partial: String::new(),
            started,
            state: State::Running,
        })
    }

    /// What is new on the console, and whether the node ended.
    fn poll(&mut self, index: usize, events: &mut Vec<Event>) -> Result<()> {
        if !matches!(self.state, State::Running) {
            return Ok(());
        }
        // Asked before reading: what an emulator wrote before it ended is read.
        let status = self.child.try_wait()?;
        if let Some(keyboard) = &mut self.keyboard {
            keyboard.poll()?;
        }
        let output = self.console.read()?;
        let console = String::from_utf8_lossy(&output).into_owned();
        events.extend((!output.is_empty()).then_some(Event::Output(index, output)));
        events.extend(lines(&mut self.partial, &console).into_iter().map(|line| Event::Console(index, line)));
        if let Some(status) = status {
            let rest = std::mem::take(&mut self.partial);
            events.extend((!rest.is_empty()).then_some(Event::Console(index, rest)));
            self.state = State::Ended(Instant::now(), status);
        }
        Ok(())
    }

    /// The node's end, when it was not told yet.
    fn told_end(&mut self, index: usize) -> Option<Event> {
        let State::Ended(_, status) = self.state else { return None };
        self.state = State::Told;
        let ending = match self.boot {
            BootMethod::Bochs => bochs::ending(&self.directory, status),
            BootMethod::Direct | BootMethod::Bios | BootMethod::Uefi => qemu::ending(&self.directory, status),
        };
        Some(Event::Ended(index, ending))
    }
}

/// A file that another process appends to.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// What was added since the last call; nothing when the file does not exist yet.
    fn read(&mut self) -> Result<Vec<u8>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes)
                .with_context(|| format!("{} cannot be read", self.path.display()))?;
        }
        Ok(bytes)
    }
}

/// The whole lines in `partial` and `text`; what follows the last of them stays in `partial`.
fn lines(partial: &mut String, text: &str) -> Vec<String> {
    partial.push_str(text);
    let Some(end) = partial.rfind('\n') else { return Vec::new() };
    let rest = partial.split_off(end + 1);
    let whole = std::mem::replace(partial, rest);
    whole.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole() {
        let mut partial = String::new();
        assert!(lines(&mut partial, "one").is_empty());
        assert_eq!(lines(&mut partial, " more\r\n\ntw"), ["one more", ""]);
        assert_eq!(lines(&mut partial, "o\n"), ["two"]);
        assert_eq!(partial, "");
    }

    #[test]
    fn a_growing_file_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("com2.bin");
        let mut tail = Tail::new(path.clone());
        assert!(tail.read().unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        assert_eq!(tail.read().unwrap(), b"one");
        assert!(tail.read().unwrap().is_empty());
        file.write_all(b"two").unwrap();
        assert_eq!(tail.read().unwrap(), b"two");
    }
}
