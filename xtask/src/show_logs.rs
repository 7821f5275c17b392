//! `cargo xtask logs`: the merged log of the last run.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};

use crate::cluster::{TABLES_FILE, node_directory, sources};
use crate::logs::{self, Collector, Colour, Filter, Level, Tables};
use crate::{paths, process};

/// Shows the log of the last run, or of the one under way.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Go on as the log grows, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Only this node's lines
    #[arg(long)]
    node: Option<u8>,
    /// Only this service's lines; "kernel" for the kernel's
    #[arg(long)]
    service: Option<String>,
    /// Only lines of this level (trace, debug, info, warn, error) or a more urgent one
    #[arg(long)]
    level: Option<Level>,
    /// The run, when it is not that of `cargo xtask run`: a directory as .unum/test/boot-direct
    #[arg(long, default_value = ".unum/run", value_parser = paths::of_user)]
    run: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// There was no run, or its files cannot be read.
pub fn run(arguments: &Arguments) -> Result<()> {
    let directory = arguments.run.as_path();
    let nodes = count_nodes(directory);
    ensure!(nodes > 0, "no run left a log in {}; cargo xtask run makes one", directory.display());
    let tables = Tables::open(&directory.join(TABLES_FILE))
        .context("the log's tables are missing; was the run interrupted before it began?")?;
    let mut collector = Collector::new(tables, sources(directory, nodes));
    let filter = Filter { node: arguments.node, service: arguments.service.clone(), level: arguments.level };
    let follow: Option<&AtomicBool> = arguments.follow.then(process::interrupt_flag);
    logs::write(&mut collector, &filter, Colour::of_stdout(), follow, &mut io::stdout().lock())
}

/// How many nodes a run had.
fn count_nodes(directory: &Path) -> u8 {
    let is_there = |number: &u8| node_directory(directory, *number).is_dir();
    (1..=u8::MAX).take_while(is_there).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_nodes_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(count_nodes(directory.path()), 0);
        for name in ["node-1", "node-2", "node-4", "switch"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        assert_eq!(count_nodes(directory.path()), 2);
    }
}
