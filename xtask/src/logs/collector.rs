//! Follows the log files of all nodes and gives their lines in the order of time.
//!
//! A record carries ticks of its node's TSC, which begin at the node's start. A message that begins with `tsc_hz=N`,
//! of the kernel or of the service "health", says how many there are in a second; records before it wait for it. Nodes
//! of one run start together, so the time since each node's start is good enough an order between nodes.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::fault::FaultNote;
use super::merge::Merger;
use super::state::Keeper;
use super::stream::{Item, Stream};
use super::tables::{Decoded, KERNEL, Tables};
use super::{Level, Line};

/// How long a line is held so that older ones of other cores and nodes can overtake it.
const WINDOW: Duration = Duration::from_millis(300);
/// Lines of each service that are kept for the report of its fault.
const KEPT_LINES: usize = 64;
/// Records that wait for their node's clock rate at most.
const MAX_UNTIMED: usize = 512;
/// The clock rate, in ticks per second, of a node that does not tell it.
const ASSUMED_HZ: u64 = 1_000_000_000;
/// How a node tells its clock rate.
const CLOCK_PREFIX: &str = "tsc_hz=";
/// The service that may tell it.
const CLOCK_SERVICE: &str = "health";
/// Who says what is noticed here, not there.
const OWN_NAME: &str = "log";

/// A node's log.
#[derive(Clone, Debug)]
pub struct Source {
    /// The node's number.
    pub node: u8,
    /// The file that takes what it sends to COM2. It need not be there yet.
    pub file: PathBuf,
}

/// The logs of all nodes of a run.
#[derive(Debug)]
pub struct Collector {
    tables: Tables,
    nodes: Vec<Node>,
    merger: Merger<Line>,
    /// The last lines of each service, by node and name.
    recent: HashMap<(u8, String), VecDeque<Line>>,
    keeper: Keeper,
}

#[derive(Debug)]
struct Node {
    source: Source,
    file: Option<File>,
    stream: Stream,
    hz: Option<u64>,
    /// Records whose time is not known yet.
    untimed: Vec<Timeless>,
    /// The latest time so far, for what has none of its own.
    latest_tsc: u64,
}

/// A line but for its time; `tsc` is `None` for what was noticed here.
#[derive(Debug)]
struct Timeless {
    tsc: Option<u64>,
    words: Decoded,
}

impl Collector {
    /// A collector at the start of all logs, which are in directories of their own in that of a run. It keeps the nodes'
    /// state there.
    pub fn new(tables: Tables, sources: impl IntoIterator<Item = Source>) -> Self {
        let nodes: Vec<_> = sources.into_iter().map(Node::new).collect();
        let run = nodes.first().and_then(|node| node.source.file.parent()?.parent());
        let keeper = Keeper::new(run.map(Path::to_owned));
        Self { tables, nodes, merger: Merger::new(WINDOW), recent: HashMap::new(), keeper }
    }

    /// Leaves the state's file alone: the run is another's.
    pub fn leave_state(&mut self) {
        self.keeper = Keeper::new(None);
    }

    /// Reads what is new in all files and gives the lines that have their turn.
    ///
    /// # Errors
    /// A file cannot be read, or the state's not be written.
    pub fn poll(&mut self) -> anyhow::Result<Vec<Line>> {
        self.poll_at(Instant::now())
    }

    fn poll_at(&mut self, now: Instant) -> anyhow::Result<Vec<Line>> {
        for node in &mut self.nodes {
            for line in node.read(&self.tables)? {
                if !self.keeper.take(&line) {
                    self.merger.push(line.nanos, now, line);
                }
            }
        }
        self.keeper.write(now)?;
        let lines = self.merger.due(now);
        Ok(self.with_context(lines))
    }

    /// Reads the rest of all files and gives all lines that are left.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn finish(&mut self) -> anyhow::Result<Vec<Line>> {
        let now = Instant::now();
        for node in &mut self.nodes {
            let mut lines = node.read(&self.tables)?;
            lines.extend(node.finish(&self.tables));
            for line in lines {
                if !self.keeper.take(&line) {
                    self.merger.push(line.nanos, now, line);
                }
            }
        }
        self.keeper.end();
        let lines = self.merger.rest();
        Ok(self.with_context(lines))
    }

    /// Puts beneath each report of a fault what its service said last.
    ///
    /// Done as the lines go out: what the service said before is older, so it went out before.
    fn with_context(&mut self, lines: Vec<Line>) -> Vec<Line> {
        let mut out = Vec::with_capacity(lines.len());
        for mut line in lines {
            if let Some(note) = FaultNote::of(&line)
                && let Some(service) = self.tables.name(note.service)
                && let Some(kept) = self.recent.get(&(line.node, service.to_owned()))
            {
                let mut last: Vec<_> =
                    kept.iter().rev().filter(|kept| note.covers(kept)).take(note.count).cloned().collect();
                last.reverse();
                line.context = last;
            }
            let recent = self.recent.entry((line.node, line.service.clone())).or_default();
            recent.push_back(line.clone());
            if recent.len() > KEPT_LINES {
                recent.pop_front();
            }
            out.push(line);
        }
        out
    }
}

impl Node {
    fn new(source: Source) -> Self {
        Self { source, file: None, stream: Stream::default(), hz: None, untimed: Vec::new(), latest_tsc: 0 }
    }

    /// The lines of what is new in the file.
    fn read(&mut self, tables: &Tables) -> anyhow::Result<Vec<Line>> {
        let path = &self.source.file;
        if self.file.is_none() {
            if !path.exists() {
                return Ok(Vec::new());
            }
            self.file =
                Some(File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?);
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes).with_context(|| format!("{} cannot be read", path.display()))?;
        }
        let items = self.stream.push(&bytes);
        Ok(items.into_iter().flat_map(|item| self.item(tables, item)).collect())
    }

    fn finish(&mut self, tables: &Tables) -> Vec<Line> {
        let last = self.stream.finish();
        let mut lines = last.map_or_else(Vec::new, |item| self.item(tables, item));
        if !self.untimed.is_empty() {
            lines.extend(self.assume_clock());
        }
        lines
    }

    fn item(&mut self, tables: &Tables, item: Item) -> Vec<Line> {
        let (record, bytes) = match item {
            Item::Damaged(bytes) => {
                return self.timed(None, noticed(format!("{bytes} bytes of the log are not a record")));
            }
            Item::Record(record, bytes) => (record, bytes),
        };
        let words = tables.decode(&record, &bytes);
        let mut lines = Vec::new();
        if let Some(hz) = told_clock(&words) {
            lines.extend(self.set_clock(hz));
        }
        lines.extend(self.timed(Some(record.tsc), words));
        lines
    }

    /// The line of some words, or none while the clock rate is not known.
    fn timed(&mut self, tsc: Option<u64>, words: Decoded) -> Vec<Line> {
        let timeless = Timeless { tsc, words };
        match self.hz {
            Some(hz) => vec![self.line(hz, timeless)],
            None => {
                self.untimed.push(timeless);
                if self.untimed.len() > MAX_UNTIMED { self.assume_clock() } else { Vec::new() }
            }
        }
    }

    fn assume_clock(&mut self) -> Vec<Line> {
        let text =
            format!("the node does not tell its clock rate; {ASSUMED_HZ} ticks per second are assumed");
        self.untimed.insert(0, Timeless { tsc: None, words: noticed(text) });
        self.set_clock(ASSUMED_HZ)
    }

    fn set_clock(&mut self, hz: u64) -> Vec<Line> {
        self.hz = Some(hz);
        let waiting = std::mem::take(&mut self.untimed);
        waiting.into_iter().map(|timeless| self.line(hz, timeless)).collect()
    }

    fn line(&mut self, hz: u64, timeless: Timeless) -> Line {
        let Decoded { service, level, text } = timeless.words;
        let tsc = timeless.tsc.unwrap_or(self.latest_tsc);
        self.latest_tsc = self.latest_tsc.max(tsc);
        let nanos = u128::from(tsc) * 1_000_000_000 / u128::from(hz);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Line { nanos, tsc, node: self.source.node, service, level, text, context: Vec::new() }
    }
}

fn noticed(text: String) -> Decoded {
    Decoded { service: OWN_NAME.to_owned(), level: Some(Level::Warn), text }
}

/// The clock rate, when some words tell it.
fn told_clock(words: &Decoded) -> Option<u64> {
    if !matches!(words.service.as_str(), KERNEL | CLOCK_SERVICE) {
        return None;
    }
    let number = words.text.strip_prefix(CLOCK_PREFIX)?;
    let digits = number.bytes().take_while(u8::is_ascii_digit).count();
    number[..digits].parse().ok().filter(|hz| *hz > 0)
}
