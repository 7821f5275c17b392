//! What the guest's exits and its new pages cost, in instructions: the kit's `bench cpuid` and `bench touch` (see
//! tests/guest), on one node by the instruction counter.
//!
//! A first touch above the guest's own fault is given in three ways, since a miss may bring more pages than its own:
//! * the mean over all pages that were touched: what new memory costs the guest;
//! * a miss: the median of the touches that cost more than what the guest does alone;
//! * a miss that brings one page, as every miss of KVM does: the same without the clearing of the other pages. This is what is
//!   compared with the target.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipc::abi::PAGE_SIZE;

use super::table::{Figure, Table, Target};
use super::{Next, follow};
use crate::build::{Built, Programs};
use crate::cluster::{BootMethod, Cluster, Event, JUMBO_MTU, Plan, Recording};
use crate::manifest::{InitrdSource, Manifest, Overrides};
use crate::qemu::{Clock, Ending};
use crate::run::node_memory;
use crate::switch::Impairment;

/// The system that the guest runs on.
const MANIFEST: &str = "images/unum.toml";
/// The guest's memory in MiB.
pub const GUEST_MIB: u64 = 256;
/// Instructions that clear a page: a string instruction counts once for each of its stores.
const CLEARING: f64 = (PAGE_SIZE / 8) as f64;
/// The most by which medians of chunks may differ, as a part of the largest.
const AGREEMENT: f64 = 0.02;
const TIMEOUT: Duration = Duration::from_secs(600);

const CPUID: &str = "cpuid-exit";
const MISS: &str = "touch-miss-of-one-page";
const TARGETS: &[Target] = &[
    Target { figure: CPUID, most: 1000.0, reference: "KVM: 3115" },
    Target { figure: MISS, most: 3000.0, reference: "KVM: 6221" },
];

/// Whether page tables of ours stand in for the guest's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WalkCache {
    /// The processor walks the guest's.
    Off,
    /// It walks ours.
    On,
}

impl WalkCache {
    /// Both, the usual one first.
    pub const ALL: [Self; 2] = [Self::Off, Self::On];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// The guest of one processor that boots to the kit instead of an init.
pub fn manifest(command_line: &str, walk_cache: WalkCache) -> Result<Manifest> {
    let overrides = Overrides {
        kernel: None,
        initrd: Some(InitrdSource::Kit),
        command_line: Some(command_line.to_owned()),
        nodes: Some(1),
        cpus: Some(1),
        ram_bytes: Some(GUEST_MIB << 20),
        keep_bytes: None,
        walk_cache: Some(walk_cache == WalkCache::On),
        at_end: None,
    };
    Manifest::load(Path::new(MANIFEST), &overrides)
}

/// Builds what the guest runs on.
pub fn programs() -> Result<Programs> {
    Programs::build([&Manifest::load(Path::new(MANIFEST), &Overrides::default())?])
}

/// What a node boots with this guest. It is overwritten by the next one.
pub fn bundle(programs: &Programs, command_line: &str, walk_cache: WalkCache) -> Result<Built> {
    programs.bundle(Path::new(MANIFEST), manifest(command_line, walk_cache)?)
}

/// The memory of a node in MiB that has what was built.
pub fn memory_mib(built: &Built) -> Result<u32> {
    let image =
        std::fs::metadata(&built.module).with_context(|| format!("{} is missing", built.module.display()))?;
    Ok(node_memory(built.manifest.guest.as_ref(), image.len()))
}

/// What the kit prints when it did well what it was started for.
pub fn done(arguments: &str) -> String {
    format!("kit init: {arguments}, exit status: 0")
}

/// Measures so many times, and prints the tables.
///
/// # Errors
/// A run is broken.
pub fn run(directory: &Path, repeat: u32) -> Result<()> {
    let programs = programs()?;
    for walk_cache in WalkCache::ALL {
        let mut table = Table::with(TARGETS);
        for repetition in 0..repeat {
            let measured = |kind: &str, arguments: &str| {
                let directory = directory.join(format!("{}-{repetition}-{kind}", walk_cache.name()));
                kit(&programs, arguments, walk_cache, &directory)
                    .with_context(|| format!("'kit {arguments}' failed; see {}", directory.display()))
            };
            let cpuid = measured("cpuid", "bench cpuid")?;
            let touch = measured("touch", "bench touch")?;
            table.add(figures(&cpuid, &touch)?)?;
        }
        println!(
            "guest of 1 vCPU, walk cache {}, counted in instructions, the same in every run:",
            walk_cache.name()
        );
        table.lines().iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}

/// What a run of the kit told.
#[derive(Debug, Default)]
pub struct Report {
    /// What it printed, by name.
    figures: BTreeMap<String, f64>,
    /// The kit came to a good end.
    is_done: bool,
}

impl Report {
    /// What it printed under a name.
    pub fn figure(&self, name: &str) -> Result<f64> {
        self.figures.get(name).copied().with_context(|| format!("the guest's kit does not tell {name}"))
    }

    /// Takes what happened while the kit ran with these arguments.
    pub fn take(&mut self, event: &Event, arguments: &str) -> Result<Next<()>> {
        match event {
            Event::Console(_, line) => {
                self.is_done |= *line == done(arguments);
                self.figures.extend(parse(line)?);
            }
            Event::Ended(_, Ending::PoweredOff) if self.is_done => return Ok(Next::Done(())),
            Event::Ended(_, ending) => bail!("the guest did not come to a good end: {ending:?}"),
            Event::Log(..) | Event::Output(..) => {}
        }
        Ok(Next::GoOn)
    }
}

fn kit(programs: &Programs, arguments: &str, walk_cache: WalkCache, directory: &Path) -> Result<Report> {
    std::fs::create_dir_all(directory)?;
    let command_line = format!("console=ttyS0 quiet panic=-1 rdinit=/bin/kit -- {arguments}");
    let built = bundle(programs, &command_line, walk_cache)?;
    let mut cluster = Cluster::start(&Plan {
        built: &built,
        module: None,
        iso: None,
        boot: BootMethod::Direct,
        nodes: 1,
        // All processors count on one clock: another one's work would be part of the figures.
        cpus: 1,
        memory_mib: memory_mib(&built)?,
        clock: Clock::Instructions,
        gdb: None,
        network: Impairment::default(),
        mtu: JUMBO_MTU,
        recording: Recording::Off,
        directory,
    })?;
    let mut report = Report::default();
    follow(&mut cluster, TIMEOUT, |event| report.take(&event, arguments))?;
    Ok(report)
}

/// Reads the kit's `bench NAME NUMBER`.
fn parse(line: &str) -> Result<Option<(String, f64)>> {
    let mut words = line.split_whitespace();
    let (Some("bench"), Some(name), Some(number), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Ok(None);
    };
    let number: u32 = number.parse().with_context(|| format!("a figure is not a number: {line}"))?;
    Ok(Some((name.to_owned(), number.into())))
}

/// What is shown of the two runs.
fn figures(cpuid: &Report, touch: &Report) -> Result<Vec<Figure>> {
    agree(touch)?;
    let group = touch.figure("touch-miss-pages")?;
    let miss = touch.figure("touch-miss-median")?;
    let count = |name, value| Figure::new(name, value, "instructions");
    Ok(vec![
        count(CPUID, cpuid.figure("cpuid-0-median")?),
        count("cpuid-exit-hypervisor-leaf", cpuid.figure("cpuid-40000000-median")?),
        count("touch-own-fault", touch.figure("touch-again-median")?),
        count("touch-above-it-median", touch.figure("touch-difference-median")?),
        count("touch-above-it-mean", touch.figure("touch-difference-mean")?),
        count("touch-miss", miss),
        Figure::new("touch-pages-of-a-miss", group, "pages"),
        count(MISS, miss - (group - 1.0) * CLEARING),
    ])
}

/// Whether all chunks of fresh pages cost the same. If not, the first ones were not fresh.
fn agree(touch: &Report) -> Result<()> {
    let is_chunk = |name: &str| name.starts_with("touch-first-chunk-") && name.ends_with("-median");
    let medians: Vec<f64> =
        touch.figures.iter().filter(|(name, _)| is_chunk(name)).map(|(_, &median)| median).collect();
    ensure!(medians.len() > 1, "the guest's kit tells of no chunks of pages");
    let (low, high) = medians.iter().fold((f64::INFINITY, 0.0), |(low, high), &m| (m.min(low), m.max(high)));
    ensure!(
        high - low <= AGREEMENT * high,
        "the chunks of fresh pages cost {medians:?}, and should cost the same: some were not fresh"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: &[(&str, f64)]) -> Report {
        let figures = figures.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Report { figures, is_done: true }
    }

    fn touch(chunks: [f64; 2], group: f64) -> Report {
        report(&[
            ("touch-first-chunk-0-median", chunks[0]),
            ("touch-first-chunk-1-median", chunks[1]),
            ("touch-again-median", 2000.0),
            ("touch-difference-median", 0.0),
            ("touch-difference-mean", 700.0),
            ("touch-miss-pages", group),
            ("touch-miss-median", 11_000.0),
        ])
    }

    #[test]
    fn lines_of_the_kit_are_read() {
        assert_eq!(parse("bench cpuid-0-min 907").unwrap(), Some(("cpuid-0-min".into(), 907.0)));
        assert_eq!(parse("bench call 1 ns").unwrap(), None);
        assert_eq!(parse("kit init: bench cpuid, exit status: 0").unwrap(), None);
        assert!(parse("bench cpuid-0-min -1").is_err());
    }

    #[test]
    fn a_miss_is_told_from_the_pages_that_it_brings() {
        let cpuid = report(&[("cpuid-0-median", 900.0), ("cpuid-40000000-median", 950.0)]);
        let value = |group, name: &str| {
            let told = figures(&cpuid, &touch([2000.0; 2], group)).unwrap();
            told.iter().find(|figure| figure.name == name).unwrap().value
        };
        assert_eq!((value(16.0, CPUID), value(16.0, "touch-pages-of-a-miss")), (900.0, 16.0));
        assert_eq!(value(16.0, MISS), 11_000.0 - 15.0 * 512.0);
        assert_eq!(value(1.0, MISS), 11_000.0, "every page is missed");
        assert!(figures(&report(&[]), &touch([2000.0; 2], 16.0)).is_err());
    }

    #[test]
    fn a_run_is_good_when_the_kit_says_so() {
        let console = |text: &str| Event::Console(0, text.into());
        let mut told = Report::default();
        assert!(told.take(&Event::Ended(0, Ending::PoweredOff), "bench cpuid").is_err());
        for line in ["bench cpuid-0-median 900", "kit init: bench cpuid, exit status: 1"] {
            assert!(matches!(told.take(&console(line), "bench cpuid"), Ok(Next::GoOn)));
        }
        assert!(told.take(&Event::Ended(0, Ending::PoweredOff), "bench cpuid").is_err());
        told.take(&console("kit init: bench cpuid, exit status: 0"), "bench cpuid").unwrap();
        assert!(told.take(&Event::Ended(0, Ending::TripleFault), "bench cpuid").is_err());
        assert!(matches!(told.take(&Event::Ended(0, Ending::PoweredOff), "bench cpuid"), Ok(Next::Done(()))));
        assert_eq!(told.figure("cpuid-0-median").unwrap(), 900.0);
    }

    #[test]
    fn chunks_that_differ_are_refused() {
        assert!(agree(&touch([2000.0, 2010.0], 16.0)).is_ok());
        assert!(agree(&touch([1900.0, 2000.0], 16.0)).unwrap_err().to_string().contains("not fresh"));
        assert!(agree(&report(&[])).is_err());
    }
}
