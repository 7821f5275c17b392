//! Decodes what the nodes write to COM2 and merges it into one log in the order of time.
//!
//! A node's stream is a series of records as `ipc::log` encodes them. [`stream`] cuts it into records,
//! [`tables`] turns a record into text with the defmt table of the program that wrote it, [`collector`] follows the
//! files of all nodes and merges ([`merge`]), and [`show`] makes a line of it. Whatever a stream holds becomes
//! a visible line: damage, a record that cannot be decoded, a service that is not in the image.
//!
//! Two texts are understood as well as shown: the node's clock rate ([`collector`]) and the supervisor's report of a
//! fault, beneath which the last lines of the service that failed are repeated ([`fault`]). A third is not shown but
//! kept: the node's state ([`state`]).

mod collector;
mod fault;
mod merge;
mod show;
mod state;
mod stream;
mod tables;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use collector::{Collector, Source};
pub use show::{Colour, show};
pub use state::{NodeState, Sample, State, Told, now_ms};
pub use tables::{Program, Tables};

/// How urgent a record is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// The finest.
    Trace,
    /// For who looks for a mistake.
    Debug,
    /// What normally happens.
    Info,
    /// What should not be, and harms nobody yet.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// All levels with their names.
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Trace, "trace"),
        (Self::Debug, "debug"),
        (Self::Info, "info"),
        (Self::Warn, "warn"),
        (Self::Error, "error"),
    ];
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = Self::NAMES.iter().find(|(_, name)| *name == text).map(|(level, _)| *level);
        level.ok_or_else(|| format!("there is no level '{text}': it is trace, debug, info, warn or error"))
    }
}

/// One line of the merged log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// Time since the node's boot, in nanoseconds.
    pub nanos: u64,
    /// The same in ticks of the node's TSC.
    pub tsc: u64,
    /// The node's number.
    pub node: u8,
    /// Who wrote it.
    pub service: String,
    /// How urgent it is; plain text has no level.
    pub level: Option<Level>,
    /// What it says; may be of several lines.
    pub text: String,
    /// The last lines of the service whose fault this line reports, oldest first.
    pub context: Vec<Line>,
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this node's.
    pub node: Option<u8>,
    /// Only this service's ("kernel" for the kernel).
    pub service: Option<String>,
    /// Only this level and the more urgent ones, and text without a level.
    pub level: Option<Level>,
}

impl Filter {
    /// Whether a line is wanted.
    pub fn takes(&self, line: &Line) -> bool {
        self.node.is_none_or(|node| node == line.node)
            && self.service.as_ref().is_none_or(|service| *service == line.service)
            && self.level.is_none_or(|least| line.level.is_none_or(|level| level >= least))
    }
}

/// Writes the lines that a filter takes, in the order of time, until all there is was written, or, with `follow`, until
/// that flag is set.
///
/// # Errors
/// A node's file cannot be read, or `out` cannot be written.
pub fn write(
    collector: &mut Collector,
    filter: &Filter,
    colour: Colour,
    follow: Option<&AtomicBool>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    // Who runs the nodes keeps their state.
    collector.leave_state();
    let mut put = |lines: Vec<Line>| -> std::io::Result<()> {
        for line in lines.iter().filter(|line| filter.takes(line)) {
            out.write_all(show(line, colour).as_bytes())?;
        }
        out.flush()
    };
    if let Some(stop) = follow {
        while !stop.load(Ordering::Relaxed) {
            put(collector.poll()?)?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(put(collector.finish()?)?)
}

#[cfg(test)]
mod tests;
