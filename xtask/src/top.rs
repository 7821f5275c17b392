//! `cargo xtask top`: what the nodes of the run under way do, live in the terminal, or once as JSON.

mod numbers;
mod overview;
mod screen;
mod symbols;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::logs::{State, now_ms};
use crate::{paths, process};
use overview::Overview;
use screen::View;
use symbols::Symbols;

/// Where `cargo xtask run` keeps its files.
const RUN: &str = ".unum/run";
/// How often the screen is made anew.
const PERIOD: Duration = Duration::from_millis(500);
/// What there is to say when no run is on.
const NO_RUN: &str = "no state of a run: start one with cargo xtask run";

/// Shows what the nodes, vCPUs, memory and network of the run under way do.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Print the same once, as JSON
    #[arg(long)]
    json: bool,
    /// The System.map of the guest's kernel, for the names of pages and instructions. It must run without KASLR
    #[arg(long, value_name = "FILE", value_parser = paths::of_user)]
    system_map: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// There is no run (with `--json`), a file cannot be read, or there is no terminal.
pub fn run(arguments: &Arguments) -> Result<()> {
    let symbols = arguments.system_map.as_deref().map(Symbols::open).transpose()?.unwrap_or_default();
    let directory = Path::new(RUN);
    if arguments.json {
        return print(directory, &symbols, &mut io::stdout().lock());
    }
    ensure!(io::stdout().is_terminal(), "cargo xtask top needs a terminal; --json prints the same once");
    let mut terminal = ratatui::try_init().context("the terminal cannot be taken")?;
    let shown = show(directory, &symbols, &mut terminal);
    ratatui::try_restore().context("the terminal cannot be given back")?;
    shown
}

/// Prints what there is now.
fn print(directory: &Path, symbols: &Symbols, out: &mut dyn Write) -> Result<()> {
    let Some(overview) = look(directory, symbols)? else { bail!(NO_RUN) };
    if overview.is_old() {
        bail!(
            "the state of the run is {} s old: it has ended, or its nodes say nothing",
            overview.age_ms / 1_000
        );
    }
    serde_json::to_writer_pretty(&mut *out, &overview)?;
    writeln!(out)?;
    Ok(())
}

fn look(directory: &Path, symbols: &Symbols) -> Result<Option<Overview>> {
    let state = State::read(directory)?;
    Ok(state.and_then(|state| Overview::of(&state, now_ms(), symbols)))
}

/// Shows what there is, until a key or a signal ends it.
fn show(directory: &Path, symbols: &Symbols, terminal: &mut ratatui::DefaultTerminal) -> Result<()> {
    while !process::interrupted() {
        let view = match look(directory, symbols) {
            Ok(Some(overview)) => View::Run(overview),
            Ok(None) => View::Nothing(NO_RUN.to_owned()),
            Err(error) => View::Nothing(format!("{error:#}")),
        };
        terminal.draw(|frame| screen::draw(frame, &view)).context("the terminal cannot be written")?;
        if event::poll(PERIOD).context("the terminal cannot be read")?
            && is_end(&event::read().context("the terminal cannot be read")?)
        {
            break;
        }
    }
    Ok(())
}

/// Whether something typed ends it.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_end_it() {
        let key = |code, modifiers| is_end(&Event::Key(KeyEvent::new(code, modifiers)));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!is_end(&Event::Resize(1, 1)));
    }

    #[test]
    fn without_a_run_there_is_a_clear_error() {
        let directory = tempfile::tempdir().unwrap();
        let print = || {
            let mut out = Vec::new();
            let result = print(directory.path(), &Symbols::default(), &mut out);
            result.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(print().unwrap_err(), NO_RUN);
        let put = |came_ms: u64| {
            let json = format!(
                r#"{{"nodes":{{"1":{{"came_ms":{came_ms},"subjects":{{"node":{{"last":{{"nanos":1,"values":{{"cores":2}}}},"before":null}}}}}}}}}}"#
            );
            std::fs::write(directory.path().join("state.json"), json).unwrap();
        };
        put(now_ms() - 60_000);
        assert_eq!(
            print().unwrap_err(),
            "the state of the run is 60 s old: it has ended, or its nodes say nothing"
        );
        put(now_ms());
        let printed: serde_json::Value = serde_json::from_str(&print().unwrap()).unwrap();
        assert_eq!((&printed["nodes"][0]["node"], &printed["nodes"][0]["cores"]), (&1.into(), &2.into()));
        std::fs::write(directory.path().join("state.json"), "{}").unwrap();
        assert!(print().unwrap_err().contains("holds no state of this version"));
        std::fs::write(directory.path().join("state.json"), r#"{"nodes":{}}"#).unwrap();
        assert_eq!(print().unwrap_err(), NO_RUN);
    }
}
