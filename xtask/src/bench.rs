//! `cargo xtask bench`: what things cost.
//!
//! Services of a benchmark's manifest log each figure as `bench NAME VALUE UNIT`, and `bench done` at the end. One node
//! runs by QEMU's instruction counter: an instruction is a nanosecond is a TSC tick, and every run gives the same
//! figures. Several nodes run by the wall clock, and their figures are this machine's. What a guest costs is told by
//! programs within it ([`guest`], [`span`]) and by its console ([`boot`]). A target that is missed is shown, and is no error.

mod boot;
mod guest;
mod span;
mod table;

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Built};
use crate::cluster::{BootMethod, Cluster, Event, JUMBO_MTU, Plan, Recording};
use crate::paths::RunDirectory;
use crate::process::{POLL, check_interrupted};
use crate::qemu::{Clock, Ending};
use crate::scenario::KERNEL_PANIC;
use crate::setup;
use crate::switch::Impairment;
use table::{Figure, Table};

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

/// Bare exchanges between nodes.
const TWO_NODES: Benchmark = Benchmark {
    name: "two nodes",
    manifest: "images/bench-net.toml",
    nodes: 2,
    cpus: 2,
    clock: Clock::Wall,
    timeout: Duration::from_secs(120),
};
const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "one node",
        manifest: "images/bench.toml",
        nodes: 1,
        cpus: 2,
        clock: Clock::Instructions,
        timeout: Duration::from_secs(120),
    },
    TWO_NODES,
];
/// What follows them: a guest's exits and pages, its way to its first process, and what it costs it to span nodes.
const OF_GUEST: [&str; 3] = ["guest", "boot", "spanning guest"];

/// Measures and prints tables.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Measure so many times and show how the figures differ
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Only what has this in its name: "one node", "two nodes", "guest", "boot", "spanning guest"
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
}

/// Runs the command.
///
/// # Errors
/// A benchmark does not come to its end.
pub fn run(arguments: &Arguments) -> Result<()> {
    let is_wanted = |name: &str| name.contains(&arguments.only);
    let benchmarks: Vec<_> = BENCHMARKS.iter().filter(|benchmark| is_wanted(benchmark.name)).collect();
    let of_guest = OF_GUEST.map(is_wanted);
    ensure!(
        !benchmarks.is_empty() || of_guest.contains(&true),
        "nothing that is measured has '{}' in its name",
        arguments.only
    );
    setup::ensure(BootMethod::Direct.tools())?;
    let directory = RunDirectory::claim("bench")?;
    if !benchmarks.is_empty() {
        let manifests: Vec<_> = benchmarks.iter().map(|b| Path::new(b.manifest)).collect();
        let built = build::build_all(&manifests)?;
        for (index, (benchmark, built)) in benchmarks.into_iter().zip(&built).enumerate() {
            services(benchmark, built, &directory.make(&index.to_string())?, arguments.repeat)?;
        }
    }
    let [guest, boot, span] = of_guest;
    if guest {
        guest::run(&directory.make("guest")?, arguments.repeat)?;
    }
    if boot {
        boot::run(&directory.make("boot")?, arguments.repeat)?;
    }
    if span {
        span::run(&TWO_NODES, &directory.make("span")?, arguments.repeat)?;
    }
    Ok(())
}

fn services(benchmark: &Benchmark, built: &Built, directory: &Path, repeat: u32) -> Result<()> {
    let mut table = Table::default();
    for repetition in 0..repeat {
        let directory = directory.join(repetition.to_string());
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
    Ok(())
}

fn measure(benchmark: &Benchmark, built: &Built, directory: &Path) -> Result<Vec<Figure>> {
    std::fs::create_dir_all(directory)?;
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
        mtu: JUMBO_MTU,
        recording: Recording::Off,
        directory,
    })?;
    let mut figures = Vec::new();
    follow(&mut cluster, benchmark.timeout, |event| {
        match event {
            Event::Log(_, line) => match parse(&line.text)? {
                Some(Said::Figure(figure)) => figures.push(figure),
                // Of several nodes each says it, by a clock that counts nothing.
                Some(Said::Up(figure)) if benchmark.nodes == 1 => figures.push(figure),
                Some(Said::Done) => return Ok(Next::Done(())),
                Some(Said::Up(_)) | None => {}
            },
            Event::Console(..) | Event::Output(..) => {}
            Event::Ended(_, Ending::Passed) => return Ok(Next::Done(())),
            Event::Ended(node, ending) => bail!("node {} ended before its time: {ending:?}", node + 1),
        }
        Ok(Next::GoOn)
    })?;
    Ok(figures)
}

/// What comes after an event.
enum Next<T> {
    /// The next one.
    GoOn,
    /// It is over, with this.
    Done(T),
}

/// Follows nodes until `take` has it that they are done.
///
/// # Errors
/// As `take`; a kernel panics; or the time passes.
fn follow<T>(
    cluster: &mut Cluster,
    timeout: Duration,
    take: impl FnMut(Event) -> Result<Next<T>>,
) -> Result<T> {
    follow_and_look(cluster, timeout, take, || Ok(()))
}

/// The same, and calls `look` again and again between events.
fn follow_and_look<T>(
    cluster: &mut Cluster,
    timeout: Duration,
    mut take: impl FnMut(Event) -> Result<Next<T>>,
    mut look: impl FnMut() -> Result<()>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        for event in cluster.poll()? {
            if let Event::Console(node, line) = &event
                && line.contains(KERNEL_PANIC)
            {
                bail!("node {}: {line}", node + 1);
            }
            if let Next::Done(result) = take(event)? {
                return Ok(result);
            }
        }
        look()?;
        check_interrupted()?;
        if Instant::now() >= deadline {
            bail!("not done within {} s; {}", timeout.as_secs(), cluster.whereabouts().join("; "));
        }
        sleep(POLL);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_give_figures() {
        let line = "bench call-same-core 312.5 instructions";
        let figure = Figure::new("call-same-core", 312.5, "instructions");
        assert_eq!(parse(line).unwrap(), Some(Said::Figure(figure)));
        assert_eq!(parse("bench done").unwrap(), Some(Said::Done));
        let up = parse("all services up: 8123 us after the kernel's entry").unwrap();
        assert_eq!(up, Some(Said::Up(Figure::new("entry-to-all-services-up", 8123.0, "us"))));
        assert_eq!(parse("all services up, no bench here").unwrap(), None);
        assert_eq!(parse("bench").unwrap(), None);
        assert!(parse("bench call NaN ns").is_err());
    }
}
