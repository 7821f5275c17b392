//! The state of a run's nodes, for `cargo xtask top`.
//!
//! Each node's service "health" logs it every second as `state SUBJECT KEY=NUMBER ...`. Such lines are no part of the merged
//! log: the latest two of each subject, which rates are made of, are kept in a small file beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Line;

/// Its file, in the directory of a run.
const STATE_FILE: &str = "state.json";
/// Who tells it.
const TELLER: &str = "health";
/// What its lines begin with.
const PREFIX: &str = "state ";
/// Subjects that are kept of one node at most.
const MAX_SUBJECTS: usize = 256;
/// Keys of one subject at most.
const MAX_KEYS: usize = 32;
/// The longest subject or key in bytes.
const MAX_WORD: usize = 32;
/// How soon after a file the next one is written.
const PAUSE: Duration = Duration::from_millis(500);

/// What the nodes told last.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// By their numbers.
    pub nodes: BTreeMap<u8, NodeState>,
}

/// What one node told last.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeState {
    /// When the last of it came, in milliseconds since 1970 by this computer's clock.
    pub came_ms: u64,
    /// By subject.
    pub subjects: BTreeMap<String, Told>,
}

/// What was told of one subject.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// Last.
    pub last: Sample,
    /// The time before.
    pub before: Option<Sample>,
}

/// What was told at one time.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sample {
    /// When, in nanoseconds since the node's boot.
    pub nanos: u64,
    /// By key.
    pub values: BTreeMap<String, u64>,
}

impl State {
    /// The state that a run left or leaves in its directory; `None` when there is none.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(STATE_FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let state = serde_json::from_slice(&bytes);
        state.map(Some).with_context(|| format!("{} holds no state of this version", path.display()))
    }

    /// Takes what a line tells; whether it is one that tells of the state.
    fn take(&mut self, line: &Line, now_ms: u64) -> bool {
        if line.service != TELLER {
            return false;
        }
        let Some((subject, values)) = parse(&line.text) else { return false };
        let node = self.nodes.entry(line.node).or_default();
        let sample = Sample { nanos: line.nanos, values };
        if let Some(told) = node.subjects.get_mut(subject) {
            told.before = Some(std::mem::replace(&mut told.last, sample));
        } else if node.subjects.len() < MAX_SUBJECTS {
            node.subjects.insert(subject.to_owned(), Told { last: sample, before: None });
        } else {
            return false;
        }
        node.came_ms = now_ms;
        true
    }
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The subject and the values of a line, when all of it is of that form.
fn parse(text: &str) -> Option<(&str, BTreeMap<String, u64>)> {
    let mut words = text.strip_prefix(PREFIX)?.split(' ');
    let subject = words.next()?;
    let (kind, number) = subject.split_once('/').unwrap_or((subject, "0"));
    if !is_name(kind) || !is_number(number) || subject.len() > MAX_WORD {
        return None;
    }
    let mut values = BTreeMap::new();
    for word in words {
        let (key, value) = word.split_once('=')?;
        if !is_name(key) || !is_number(value) || values.len() == MAX_KEYS {
            return None;
        }
        if values.insert(key.to_owned(), value.parse().ok()?).is_some() {
            return None;
        }
    }
    (!values.is_empty()).then_some((subject, values))
}

fn is_name(word: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=MAX_WORD).contains(&word.len())
        && word.starts_with(|first: char| first.is_ascii_lowercase())
        && word.bytes().all(is_known)
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Keeps the state of a run in its file.
#[derive(Debug)]
pub struct Keeper {
    state: State,
    /// `None`: it is nobody's task here.
    directory: Option<PathBuf>,
    written: Option<Instant>,
    is_new: bool,
}

impl Keeper {
    /// A keeper for the run of this directory, or for none.
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self { state: State::default(), directory, written: None, is_new: false }
    }

    /// Takes what a line tells; whether it is one that tells of the state.
    pub fn take(&mut self, line: &Line) -> bool {
        let is_state = self.state.take(line, now_ms());
        self.is_new |= is_state;
        is_state
    }

    /// Writes the file when there is something new and the last one is not of just now.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, now: Instant) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let is_early = self.written.is_some_and(|written| now.saturating_duration_since(written) < PAUSE);
        if !self.is_new || is_early {
            return Ok(());
        }
        (self.is_new, self.written) = (false, Some(now));
        let path = directory.join(STATE_FILE);
        // A reader finds the old one or the new one, never a part.
        let unfinished = path.with_extension("new");
        let json = serde_json::to_vec(&self.state)?;
        fs::write(&unfinished, json)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Takes the file away: the run is over.
    pub fn end(&mut self) {
        if let Some(directory) = self.directory.take() {
            // One that stays is soon taken for old.
            let _ = fs::remove_file(directory.join(STATE_FILE));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(service: &str, text: &str) -> Line {
        let (service, text) = (service.to_owned(), text.to_owned());
        Line { nanos: 5, tsc: 5, node: 1, service, level: None, text, context: Vec::new() }
    }

    #[test]
    fn lines_of_state_are_understood() {
        let (subject, values) = parse("state vcpu/12 load=750 exits=18446744073709551615").unwrap();
        assert_eq!(subject, "vcpu/12");
        assert_eq!(values, BTreeMap::from([("load".to_owned(), 750), ("exits".to_owned(), u64::MAX)]));
    }

    #[test]
    fn what_is_not_quite_one_is_none() {
        let many: Vec<_> = (0..=MAX_KEYS).map(|number| format!("{}=1", "k".repeat(number.max(1)))).collect();
        for text in [
            "",
            "state",
            "state ",
            "state node",
            "state node ",
            "State node a=1",
            " state node a=1",
            "state  node a=1",
            "state node a=1 ",
            "state node a=1  b=2",
            "state node a=1 a=2",
            "state node a",
            "state node a=",
            "state node =1",
            "state node a=-1",
            "state node a=+1",
            "state node a=0x1",
            "state node a=1.5",
            "state node a=18446744073709551616",
            "state node a=1=2",
            "state Node a=1",
            "state node/ a=1",
            "state node/x a=1",
            "state node/1/2 a=1",
            "state ../x a=1",
            "state node a=1\nb=2",
            "state node a=1\tb=2",
            "state node a=\u{661}",
            &format!("state {} a=1", "n".repeat(MAX_WORD + 1)),
            &format!("state node {}", many.join(" ")),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_latest_two_are_kept_and_only_of_health() {
        let mut state = State::default();
        assert!(!state.take(&line("vmm", "state node a=1"), 1));
        assert!(!state.take(&line("health", "tsc_hz=5"), 1));
        for (now, value) in [(10, 1), (20, 2), (30, 3)] {
            assert!(state.take(&line("health", &format!("state node a={value}")), now));
        }
        let node = &state.nodes[&1];
        assert_eq!(node.came_ms, 30);
        let told = &node.subjects["node"];
        assert_eq!((told.last.values["a"], told.before.as_ref().unwrap().values["a"]), (3, 2));
    }

    #[test]
    fn a_node_that_tells_of_too_much_is_cut() {
        let mut state = State::default();
        let taken = (0..1_000)
            .filter(|number| state.take(&line("health", &format!("state vcpu/{number} load=1")), 1))
            .count();
        assert_eq!(taken, MAX_SUBJECTS);
        assert_eq!(state.nodes[&1].subjects.len(), MAX_SUBJECTS);
    }

    #[test]
    fn the_file_is_whole_and_is_not_written_too_often() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(Some(directory.path().to_owned()));
        let start = Instant::now();
        keeper.write(start).unwrap();
        assert_eq!(State::read(directory.path()).unwrap(), None);
        let told = |state: Option<State>| state.unwrap().nodes[&1].subjects["node"].last.values["a"];
        for (number, after, expected) in [(1, 0, 1), (2, 499, 1), (3, 500, 3)] {
            assert!(keeper.take(&line("health", &format!("state node a={number}"))));
            keeper.write(start + Duration::from_millis(after)).unwrap();
            assert_eq!(told(State::read(directory.path()).unwrap()), expected);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(directory.path().join(STATE_FILE), b"{").unwrap();
        assert!(State::read(directory.path()).is_err());
        keeper.end();
        assert_eq!(State::read(directory.path()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "state [a-z/0-9= \u{0}-\u{ff}]{0,60}") {
            let _ = parse(&text);
        }
    }
}
