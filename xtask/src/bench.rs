//! `cargo xtask bench`: what things cost.
//!
//! Services of a benchmark's manifest log each figure as `bench NAME VALUE UNIT`, and `bench done` at the end. One node
//! runs by QEMU's instruction counter: an instruction is a nanosecond is a TSC tick, and every run gives the same
//! figures. Several nodes run by the wall clock, and their figures are this machine's.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Built};
use crate::cluster::{BootMethod, Cluster, Event, Plan, Recording};
use crate::paths::RunDirectory;
use crate::process::{POLL, check_interrupted};
use crate::qemu::{Clock, Ending};
use crate::scenario::KERNEL_PANIC;
use crate::setup;
use crate::switch::Impairment;

/// One system that measures itself.
#[derive(Clone, Copy, Debug)]
struct Benchmark {
    name: &'static str,
    manifest: &'static str,
    nodes: u8,
    cpus: u32,
    clock: Clock,
    timeout: Duration,
}

const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "one node",
        manifest: "images/bench.toml",
        nodes: 1,
        cpus: 2,
        clock: Clock::Instructions,
        timeout: Duration::from_secs(120),
    },
    Benchmark {
        name: "two nodes",
        manifest: "images/bench-net.toml",
        nodes: 2,
        cpus: 2,
        clock: Clock::Wall,
        timeout: Duration::from_secs(120),
    },
];

/// Measures and prints a table.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Measure so many times and show how the figures differ
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
}

/// Runs the command.
///
/// # Errors
/// A benchmark does not come to its end.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(BootMethod::Direct.tools())?;
    let directory = RunDirectory::claim("bench")?;
    let manifests: Vec<_> = BENCHMARKS.iter().map(|b| Path::new(b.manifest)).collect();
    let built = build::build_all(&manifests)?;
    for (index, (benchmark, built)) in BENCHMARKS.iter().zip(&built).enumerate() {
        let mut table = Table::default();
        for repetition in 0..arguments.repeat {
            let directory = directory.make(&format!("{index}-{repetition}"))?;
            let figures = measure(benchmark, built, &directory).with_context(|| {
                format!("the benchmark of {} failed; see {}", benchmark.name, directory.display())
            })?;
            table.add(figures)?;
        }
        let clock = match benchmark.clock {
            Clock::Instructions => "counted in instructions, the same in every run",
            Clock::Wall => "by the wall clock of this machine",
        };
        println!("{}, {clock}:", benchmark.name);
        table.lines().iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}

fn measure(benchmark: &Benchmark, built: &Built, directory: &Path) -> Result<Vec<Figure>> {
    let mut cluster = Cluster::start(&Plan {
        built,
        module: None,
        iso: None,
        boot: BootMethod::Direct,
        nodes: benchmark.nodes,
        cpus: benchmark.cpus,
        memory_mib: 512,
        clock: benchmark.clock,
        gdb: None,
        network: Impairment::default(),
        recording: Recording::Off,
        directory,
    })?;
    let deadline = Instant::now() + benchmark.timeout;
    let mut figures = Vec::new();
    loop {
        for event in cluster.poll()? {
            match event {
                Event::Log(_, line) => match parse(&line.text)? {
                    Some(Said::Figure(figure)) => figures.push(figure),
                    // Of several nodes each says it, by a clock that counts nothing.
                    Some(Said::Up(figure)) if benchmark.nodes == 1 => figures.push(figure),
                    Some(Said::Done) => return Ok(figures),
                    Some(Said::Up(_)) | None => {}
                },
                Event::Console(node, line) if line.contains(KERNEL_PANIC) => {
                    bail!("node {}: {line}", node + 1)
                }
                Event::Console(..) | Event::Output(..) => {}
                Event::Ended(_, Ending::Passed) => return Ok(figures),
                Event::Ended(node, ending) => bail!("node {} ended before its time: {ending:?}", node + 1),
            }
        }
        check_interrupted()?;
        if Instant::now() >= deadline {
            bail!(
                "no 'bench done' within {} s; {}",
                benchmark.timeout.as_secs(),
                cluster.whereabouts().join("; ")
            );
        }
        sleep(POLL);
    }
}

/// A measured figure.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
}

/// What a line says of benchmarks.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Figure(Figure),
    Done,
    /// All services of a node are up: how long that took.
    Up(Figure),
}

/// Reads `bench NAME VALUE UNIT` or `bench done`; other lines say nothing.
fn parse(line: &str) -> Result<Option<Said>> {
    if let Some(value) =
        line.strip_prefix("all services up: ").and_then(|rest| rest.split_whitespace().next())
    {
        let value = value.parse().with_context(|| format!("a figure is not a number: {line}"))?;
        let (name, unit) = ("entry-to-all-services-up".to_owned(), "us".to_owned());
        return Ok(Some(Said::Up(Figure { name, value, unit })));
    }
    let mut words = line.split_whitespace();
    if words.next() != Some("bench") {
        return Ok(None);
    }
    Ok(match (words.next(), words.next(), words.next()) {
        (Some("done"), None, None) => Some(Said::Done),
        (Some(name), Some(value), Some(unit)) => {
            let value = value.parse().ok().filter(|value: &f64| value.is_finite());
            let value = value.with_context(|| format!("a figure is not a number: {line}"))?;
            Some(Said::Figure(Figure { name: name.to_owned(), value, unit: unit.to_owned() }))
        }
        _ => None,
    })
}

/// The figures of all repetitions, in the order in which they were first logged.
#[derive(Debug, Default)]
struct Table {
    order: Vec<String>,
    rows: BTreeMap<String, (String, Vec<f64>)>,
    runs: usize,
}

impl Table {
    /// Adds a repetition's figures.
    fn add(&mut self, figures: Vec<Figure>) -> Result<()> {
        ensure!(!figures.is_empty(), "nothing was measured");
        for Figure { name, value, unit } in figures {
            let (known_unit, values) = self.rows.entry(name.clone()).or_insert_with(|| {
                self.order.push(name.clone());
                (unit.clone(), Vec::new())
            });
            ensure!(*known_unit == unit, "{name} is measured in {known_unit} and in {unit}");
            ensure!(values.len() == self.runs, "{name} is not measured once in every run");
            values.push(value);
        }
        self.runs += 1;
        let lacking = self.rows.iter().find(|(_, (_, values))| values.len() != self.runs);
        ensure!(lacking.is_none(), "{} is not measured in every run", lacking.map_or("", |(name, _)| name));
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let rows = self.order.iter().filter_map(|name| Some((name, self.rows.get(name)?)));
        rows.map(|(name, (unit, values))| {
            let shown: String = values.iter().map(|value| format!(" {value:>12}")).collect();
            let spread = if values.len() > 1 { format!("  {}", spread(values)) } else { String::new() };
            format!("{name:<28}{shown} {unit:<14}{spread}").trim_end().to_owned()
        })
        .collect()
    }
}

/// How figures of several runs differ.
fn spread(values: &[f64]) -> String {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    if low == high { "same".into() } else { format!("differ by {:.1} %", (high - low) / high * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64, unit: &str) -> Figure {
        Figure { name: name.into(), value, unit: unit.into() }
    }

    #[test]
    fn lines_of_the_log_give_figures() {
        let line = "bench call-same-core 312.5 instructions";
        assert_eq!(parse(line).unwrap(), Some(Said::Figure(figure("call-same-core", 312.5, "instructions"))));
        assert_eq!(parse("bench done").unwrap(), Some(Said::Done));
        let up = parse("all services up: 8123 us after the kernel's entry").unwrap();
        assert_eq!(up, Some(Said::Up(figure("entry-to-all-services-up", 8123.0, "us"))));
        assert_eq!(parse("all services up, no bench here").unwrap(), None);
        assert_eq!(parse("bench").unwrap(), None);
        assert!(parse("bench call NaN ns").is_err());
    }

    #[test]
    fn a_table_shows_how_runs_differ() {
        let mut table = Table::default();
        table.add(vec![figure("b", 300.0, "ns"), figure("a", 1.0, "us")]).unwrap();
        table.add(vec![figure("b", 300.0, "ns"), figure("a", 0.5, "us")]).unwrap();
        let lines = table.lines();
        assert!(lines[0].starts_with("b ") && lines[0].ends_with("same"), "{lines:?}");
        assert!(lines[1].ends_with("differ by 50.0 %"), "{lines:?}");
    }

    #[test]
    fn figures_that_come_and_go_are_errors() {
        let mut table = Table::default();
        assert!(table.add(Vec::new()).is_err());
        table.add(vec![figure("a", 1.0, "ns")]).unwrap();
        assert!(table.add(vec![figure("a", 1.0, "us")]).is_err());
        let mut table = Table::default();
        assert!(table.add(vec![figure("a", 1.0, "ns"), figure("a", 2.0, "ns")]).is_err());
        let mut table = Table::default();
        table.add(vec![figure("a", 1.0, "ns"), figure("b", 2.0, "ns")]).unwrap();
        assert!(
            table.add(vec![figure("a", 1.0, "ns")]).unwrap_err().to_string().contains("b is not measured")
        );
    }
}
