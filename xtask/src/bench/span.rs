//! What it costs a guest to span two nodes, by the wall clock: the kit's `bench remote` and `bench random` on the nodes of the
//! usual image, and the way to its init.
//!
//! Everything is compared with what was measured in the same run: a page or an interrupt of the other node's with the bare
//! exchange of a page or of a short frame on such nodes, and the boot with that of one node. What goes over the wire is what the
//! nodes tell of themselves each second ([`State`]): from the start of the init to the last second of the guest, in which
//! nearly all of it is the benchmark's.

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::guest::{self, Report};
use super::table::{Figure, Table, Target};
use super::{Benchmark, Next, follow_and_look, measure};
use crate::build::{self, Programs};
use crate::cluster::{BootMethod, Cluster, Event, JUMBO_MTU, Plan, Recording};
use crate::logs::State;
use crate::manifest::{InitrdSource, Manifest, Overrides};
use crate::qemu::Clock;
use crate::switch::Impairment;

const MANIFEST: &str = "images/unum.toml";
const TIMEOUT: Duration = Duration::from_secs(900);
/// How often the nodes' state is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What the kernel says first. The early console has it say so at once.
const FIRST_LINE: &str = "Linux version ";
/// What it says last, before its init runs.
const INIT_LINE: &str = " as init process";
/// What each node tells of the clock that figures of the kit are counted with.
const CLOCK_PREFIX: &str = "tsc_hz=";

const REMOTE: &str = "bench remote --pages 256";
/// Two threads with data of their own.
const STEADY: &str = "bench steady";
/// What the kit tells when that begins, and when it is over.
const STEADY_BEGINS: &str = "steady-begins";
const STEADY_OVER: &str = "steady-touches";
/// What nodes tell is older than what the kit tells, by so much at most.
const STALE: Duration = Duration::from_secs(3);
/// More than one node has.
const RANDOM: &str = "bench random --mib 384 --iterations 5000";
/// The least that the kit does.
const NOTHING: &str = "bench cpuid --iterations 1";

/// Of the word in `services/ept/src/coherence/word.rs`: the home has one for each page, other nodes have nothing.
const DIRECTORY_BYTES: f64 = size_of::<u64>() as f64;

const READ_P50: &str = "read-to-bare-fetch-p50";
const READ_P99: &str = "read-to-bare-fetch-p99";
const BYTES: &str = "wire-bytes-of-a-page";
const COPIES: &str = "copies-by-a-processor";
const DIRECTORY: &str = "directory-bytes-of-a-page";
const BOOT: &str = "boot-two-to-one";
const MOVED: &str = "steady-faults-of-programs";
const TARGETS: &[Target] = &[
    Target { figure: READ_P50, most: 1.5, reference: "the same run" },
    Target { figure: READ_P99, most: 1.5, reference: "the same run" },
    Target { figure: BYTES, most: 4300.0, reference: "a page has 4096" },
    Target { figure: COPIES, most: 0.0, reference: "jumbo frames" },
    Target { figure: DIRECTORY, most: 8.0, reference: "by the type, not measured" },
    Target { figure: BOOT, most: 2.0, reference: "the same run" },
    Target { figure: MOVED, most: 0.0, reference: "each thread's data is its own" },
];

/// Measures so many times, and prints the table. `bare` measures exchanges; its nodes get as many processors as the guest's.
///
/// # Errors
/// A run is broken.
pub fn run(bare: &Benchmark, directory: &Path, repeat: u32) -> Result<()> {
    let bare = Benchmark { cpus: 1, ..*bare };
    let exchanges = build::build_all(&[Path::new(bare.manifest)])?;
    let exchanges = exchanges.first().context("nothing was built")?;
    let programs = Programs::build([&Manifest::load(Path::new(MANIFEST), &Overrides::default())?])?;
    let mut table = Table::with(TARGETS);
    for repetition in 0..repeat {
        let of = |part: &str| directory.join(format!("{part}-{repetition}"));
        let failed = |part: &str| format!("'{part}' failed; see {}", of(part).display());
        let booted = |part: &str, nodes, arguments: &str| {
            boot(&programs, nodes, arguments, &of(part)).with_context(|| failed(part))
        };
        let bare = measure(&bare, exchanges, &of("bare")).with_context(|| failed("bare"))?;
        let remote = booted("remote", 2, REMOTE)?;
        let alone = booted("alone", 1, NOTHING)?;
        let steady = booted("steady", 2, STEADY)?;
        let mut all = figures(&bare, &remote, &alone)?;
        all.extend(steady_figures(&steady)?);
        table.add(all)?;
    }
    println!("spanning guest, two nodes of 1 processor, by the wall clock of this machine:");
    table.lines().iter().for_each(|line| println!("  {line}"));
    // After the others have been shown: it takes the longest by far.
    let mut table = Table::default();
    for repetition in 0..repeat {
        let directory = directory.join(format!("random-{repetition}"));
        let told = boot(&programs, 2, RANDOM, &directory)
            .with_context(|| format!("'random' failed; see {}", directory.display()))?;
        let figure = |name, unit| Ok::<_, anyhow::Error>(Figure::new(name, told.report.figure(name)?, unit));
        table.add(vec![figure("random-fill-ms", "ms")?, figure("random-per-second", "accesses/s")?])?;
    }
    println!("the same, with more memory in use than one node has (kit {RANDOM}):");
    table.lines().iter().for_each(|line| println!("  {line}"));
    Ok(())
}

/// What a run of the kit told, and what was seen of it.
#[derive(Debug)]
struct Told {
    report: Report,
    started: Instant,
    first_line: Option<Duration>,
    init: Option<Duration>,
    /// Of the first node's TSC.
    hz: Option<f64>,
    /// When the init began, and last.
    wire: [Option<Wire>; 2],
    /// Since when the kit's steady run counts.
    steady_since: Option<Instant>,
    /// The same as `wire`, of that run.
    steady: [Option<(Instant, Wire)>; 2],
    looked: Instant,
}

/// What all nodes have told of the wire, together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Wire {
    frames: u64,
    bytes: u64,
    pages: u64,
    copies: u64,
    again: u64,
    /// Faults that needed another node, and those of them that were the guest's programs'.
    remote: u64,
    remote_user: u64,
}

impl Wire {
    /// `None` when a node has not told of all.
    fn of(state: &State) -> Option<Self> {
        let mut all = Self::default();
        for node in state.nodes.values() {
            let value = |subject: &str, key: &str| node.subjects.get(subject)?.last.values.get(key).copied();
            all.frames += value("wire", "sent_frames")?;
            all.bytes += value("wire", "sent_bytes")?;
            all.copies += value("wire", "copies")?;
            all.again += value("wire", "retransmitted")?;
            all.pages += value("faults", "fetched")?;
            all.remote += value("faults", "remote")?;
            all.remote_user += value("faults", "remote_user")?;
        }
        Some(all)
    }

    /// What came since.
    fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            frames: self.frames.checked_sub(before.frames)?,
            bytes: self.bytes.checked_sub(before.bytes)?,
            pages: self.pages.checked_sub(before.pages)?,
            copies: self.copies.checked_sub(before.copies)?,
            again: self.again.checked_sub(before.again)?,
            remote: self.remote.checked_sub(before.remote)?,
            remote_user: self.remote_user.checked_sub(before.remote_user)?,
        })
    }
}

impl Told {
    fn new(started: Instant) -> Self {
        Self {
            report: Report::default(),
            started,
            first_line: None,
            init: None,
            hz: None,
            wire: [None; 2],
            steady_since: None,
            steady: [None; 2],
            looked: started,
        }
    }

    fn take(&mut self, event: &Event, arguments: &str) -> Result<Next<()>> {
        let now = self.started.elapsed();
        match event {
            Event::Console(0, line) => {
                if line.contains(FIRST_LINE) {
                    self.first_line.get_or_insert(now);
                }
                if line.contains(INIT_LINE) {
                    self.init.get_or_insert(now);
                }
            }
            Event::Log(0, line) if self.hz.is_none() => self.hz = hz(&line.text),
            _ => {}
        }
        self.report.take(event, arguments)
    }

    fn look_if_due(&mut self, directory: &Path) -> Result<()> {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.look(State::read(directory)?);
        }
        Ok(())
    }

    fn look(&mut self, state: Option<State>) {
        let Some(wire) = state.as_ref().and_then(Wire::of) else { return };
        let [first, last] = &mut self.wire;
        // The last one before the init began is the first of what is its own.
        if self.init.is_none() || first.is_none() {
            *first = Some(wire);
        }
        *last = Some(wire);
        if self.report.figure(STEADY_BEGINS).is_ok() && self.report.figure(STEADY_OVER).is_err() {
            let since = *self.steady_since.get_or_insert(self.looked);
            if since.elapsed() >= STALE {
                let [first, last] = &mut self.steady;
                first.get_or_insert((self.looked, wire));
                *last = Some((self.looked, wire));
            }
        }
    }

    /// From the kernel's first line to its init, and from QEMU's start, in seconds.
    fn boot(&self) -> Result<[f64; 2]> {
        let (Some(first), Some(init)) = (self.first_line, self.init) else {
            bail!("the console does not show a whole boot")
        };
        Ok([init.saturating_sub(first), init].map(|time| time.as_secs_f64()))
    }

    /// A figure in microseconds.
    fn microseconds(&self, name: &str) -> Result<f64> {
        let hz = self.hz.context("the node does not tell its clock's rate")?;
        Ok(self.report.figure(name)? * 1e6 / hz)
    }

    fn wire(&self) -> Result<Wire> {
        let [first, last] = self.wire;
        let wire = first.zip(last).and_then(|(first, last)| last.since(&first));
        let wire = wire.context("the nodes do not tell what went over the wire")?;
        ensure!(wire.pages > 0, "no page went over the wire after the start of the init");
        Ok(wire)
    }
}

fn hz(text: &str) -> Option<f64> {
    let number = text.strip_prefix(CLOCK_PREFIX)?.split_whitespace().next()?;
    number.parse().ok().filter(|hz: &f64| hz.is_finite() && *hz > 0.0)
}

/// Boots the kit on so many nodes.
fn boot(programs: &Programs, nodes: u8, arguments: &str, directory: &Path) -> Result<Told> {
    std::fs::create_dir_all(directory)?;
    let usual = Manifest::load(Path::new(MANIFEST), &Overrides::default())?;
    let usual = usual.guest.context("the usual image has no guest")?.config.command_line;
    let command_line = format!("{usual} earlyprintk=ttyS0 rdinit=/bin/kit -- {arguments}");
    let overrides = Overrides {
        initrd: Some(InitrdSource::Kit),
        command_line: Some(command_line),
        nodes: Some(nodes),
        ..Overrides::default()
    };
    let built = programs.bundle(Path::new(MANIFEST), Manifest::load(Path::new(MANIFEST), &overrides)?)?;
    let mut cluster = Cluster::start(&Plan {
        built: &built,
        module: None,
        iso: None,
        boot: BootMethod::Direct,
        nodes,
        cpus: 1,
        memory_mib: guest::memory_mib(&built)?,
        clock: Clock::Wall,
        gdb: None,
        network: Impairment::default(),
        mtu: JUMBO_MTU,
        recording: Recording::Off,
        directory,
    })?;
    let now = Instant::now();
    // What xtask itself makes ready is not part of it.
    let told = Told::new(now.checked_sub(cluster.age(0)).unwrap_or(now));
    let told = RefCell::new(told);
    follow_and_look(
        &mut cluster,
        TIMEOUT,
        |event| told.borrow_mut().take(&event, arguments),
        || told.borrow_mut().look_if_due(directory),
    )?;
    Ok(told.into_inner())
}

/// What is shown of the steady run.
fn steady_figures(told: &Told) -> Result<Vec<Figure>> {
    let [first, last] = told.steady;
    let between = first.zip(last).and_then(|((begun, first), (over, last))| {
        Some((over.saturating_duration_since(begun), last.since(&first)?))
    });
    let (time, moved) = between
        .filter(|(time, _)| *time >= STALE)
        .context("the nodes did not tell of their faults while the kit's threads ran")?;
    Ok(vec![
        Figure::new("steady-seconds", time.as_secs_f64(), "s"),
        Figure::new("steady-touches", told.report.figure(STEADY_OVER)?, "touches"),
        Figure::new("steady-faults-of-the-kernel", (moved.remote - moved.remote_user) as f64, "faults"),
        Figure::new(MOVED, moved.remote_user as f64, "faults"),
    ])
}

/// How many times a bare exchange something took; not a number when it took less than half of one, which is the way to the
/// other node: then nothing went there.
fn ratio_of(of_guest: f64, of_bare: f64) -> f64 {
    if of_guest * 2.0 < of_bare { f64::NAN } else { of_guest / of_bare }
}

/// What is shown of a run of each.
fn figures(bare: &[Figure], remote: &Told, alone: &Told) -> Result<Vec<Figure>> {
    let bare = |name: &str| {
        let figure = bare.iter().find(|figure| figure.name == name && figure.unit == "us");
        figure.map(|figure| figure.value).with_context(|| format!("the bare nodes do not tell {name}"))
    };
    let mut all = Vec::new();
    let mut pairs = |kind: &str, exchange: &str, ratios: [&str; 2]| -> Result<()> {
        for (part, ratio) in ["p50", "p99"].into_iter().zip(ratios) {
            let (of_guest, of_bare) =
                (remote.microseconds(&format!("{kind}-{part}"))?, bare(&format!("{exchange}-{part}"))?);
            all.push(Figure::new(&format!("{kind}-{part}"), of_guest, "us"));
            all.push(Figure::new(&format!("bare-{exchange}-{part}"), of_bare, "us"));
            all.push(Figure::new(ratio, ratio_of(of_guest, of_bare), "times"));
        }
        Ok(())
    };
    pairs("remote-read", "fetch-page", [READ_P50, READ_P99])?;
    pairs("remote-interrupt", "exchange-64", ["interrupt-to-bare-p50", "interrupt-to-bare-p99"])?;
    for name in ["remote-write-p50", "remote-write-p99", "remote-upgrade-p50", "remote-upgrade-p99"] {
        all.push(Figure::new(name, remote.microseconds(name)?, "us"));
    }
    let wire = remote.wire()?;
    let of_a_page = |count: u64| count as f64 / wire.pages as f64;
    let ([two, two_whole], [one, one_whole]) = (remote.boot()?, alone.boot()?);
    all.extend([
        Figure::new("wire-pages", wire.pages as f64, "pages"),
        Figure::new("wire-frames-of-a-page", of_a_page(wire.frames), "frames"),
        Figure::new(BYTES, of_a_page(wire.bytes), "bytes"),
        Figure::new("wire-sent-again", wire.again as f64, "frames"),
        Figure::new(COPIES, wire.copies as f64, "copies"),
        Figure::new(DIRECTORY, DIRECTORY_BYTES, "bytes"),
        Figure::new("boot-two-nodes", two, "s"),
        Figure::new("boot-one-node", one, "s"),
        Figure::new(BOOT, two / one, "times"),
        Figure::new("boot-two-to-one-from-start", two_whole / one_whole, "times"),
    ]);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::logs::{NodeState, Sample, Told as Subject};
    use crate::qemu::Ending;

    fn state(nodes: &[[u64; 5]]) -> State {
        let subject = |values: &[(&str, u64)]| {
            let values = values.iter().map(|&(key, value)| (key.to_owned(), value)).collect();
            Subject { last: Sample { nanos: 1, values }, before: None }
        };
        let of = |&[frames, bytes, copies, again, pages]: &[u64; 5]| NodeState {
            came_ms: 1,
            subjects: BTreeMap::from([
                (
                    "wire".to_owned(),
                    subject(&[
                        ("sent_frames", frames),
                        ("sent_bytes", bytes),
                        ("copies", copies),
                        ("retransmitted", again),
                    ]),
                ),
                (
                    "faults".to_owned(),
                    subject(&[("fetched", pages), ("remote", 2 * pages), ("remote_user", pages)]),
                ),
            ]),
        };
        State { nodes: (1..).zip(nodes.iter().map(of)).collect() }
    }

    fn remote() -> Told {
        let mut told = Told::new(Instant::now());
        let take = |told: &mut Told, event| told.take(&event, REMOTE).map(drop);
        let console = |line: &str| Event::Console(0, line.to_owned());
        told.hz = hz("tsc_hz=2000000000 cores=1");
        take(&mut told, console("[    0.000000] Linux version 6.12")).unwrap();
        told.look(Some(state(&[[100, 1_000, 0, 0, 50], [10, 100, 0, 0, 5]])));
        take(&mut told, console("[    1.0] Run /bin/kit as init process")).unwrap();
        told.look(None);
        told.look(Some(state(&[[200, 400_000, 0, 1, 60], [110, 30_100, 0, 0, 95]])));
        for kind in ["read", "write", "upgrade", "interrupt"] {
            for (part, ticks) in [("min", 1_000), ("p50", 2_000_000), ("p99", 3_000_000)] {
                take(&mut told, console(&format!("bench remote-{kind}-{part} {ticks}"))).unwrap();
            }
        }
        take(&mut told, console(&guest::done(REMOTE))).unwrap();
        assert!(take(&mut told, Event::Ended(1, Ending::PoweredOff)).is_ok());
        told
    }

    #[test]
    fn a_guest_is_compared_with_bare_exchanges() {
        let bare: Vec<_> = ["fetch-page-p50", "fetch-page-p99", "exchange-64-p50", "exchange-64-p99"]
            .map(|name| Figure::new(name, 500.0, "us"))
            .into();
        let (mut remote, mut alone) = (remote(), remote());
        let seconds = Duration::from_secs;
        (remote.first_line, remote.init) = (Some(seconds(5)), Some(seconds(14)));
        (alone.first_line, alone.init) = (Some(seconds(2)), Some(seconds(8)));
        let told = figures(&bare, &remote, &alone).unwrap();
        let value = |name: &str| told.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!((value("remote-read-p50"), value(READ_P50), value(READ_P99)), (1000.0, 2.0, 3.0));
        assert_eq!((value("wire-pages"), value("wire-frames-of-a-page")), (100.0, 2.0));
        assert_eq!((value(BYTES), value("wire-sent-again"), value(COPIES)), (4290.0, 1.0, 0.0));
        assert_eq!((value(BOOT), value("boot-two-to-one-from-start")), (1.5, 1.75));
        let is_told = |target: &Target| told.iter().any(|figure| figure.name == target.figure);
        assert!(TARGETS.iter().all(|target| is_told(target) || target.figure == MOVED));
        assert!(figures(&bare[1..], &remote, &alone).is_err());
        assert!(ratio_of(1.0, 500.0).is_nan(), "it did not go over the wire");
        remote.init = None;
        assert!(figures(&bare, &remote, &alone).is_err());
    }

    #[test]
    fn a_steady_run_counts_while_both_threads_run() {
        let mut told = Told::new(Instant::now());
        let say = |told: &mut Told, line: &str| {
            told.take(&Event::Console(0, line.to_owned()), STEADY).map(drop).unwrap();
        };
        let faults = |pages| Some(state(&[[1, 1, 0, 0, pages], [1; 5]]));
        told.look(faults(10));
        say(&mut told, "bench steady-begins 12");
        let before = |time| Instant::now().checked_sub(time).unwrap();
        told.looked = before(STALE * 3);
        told.look(faults(20));
        assert!(steady_figures(&told).is_err(), "no time has passed");
        told.looked = before(STALE);
        told.look(faults(23));
        say(&mut told, "bench steady-touches 1000");
        told.look(faults(90));
        let figures = steady_figures(&told).unwrap();
        let value = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().value;
        assert_eq!((value(MOVED), value("steady-touches")), (3.0, 1000.0));
        assert_eq!((value("steady-faults-of-the-kernel"), value("steady-seconds").round()), (3.0, 6.0));
        assert!(steady_figures(&Told::new(Instant::now())).is_err());
    }

    #[test]
    fn what_nodes_do_not_tell_is_not_known() {
        let mut part = state(&[[1; 5], [2; 5]]);
        let all = Wire { frames: 3, bytes: 3, pages: 3, copies: 3, again: 3, remote: 6, remote_user: 3 };
        assert_eq!(Wire::of(&part), Some(all));
        part.nodes.get_mut(&2).unwrap().subjects.remove("faults");
        assert_eq!(Wire::of(&part), None);
        let mut told = Told::new(Instant::now());
        told.look(Some(part));
        assert!(told.wire().is_err());
        told.look(Some(state(&[[1; 5], [2; 5]])));
        assert!(told.wire().is_err(), "no page");
        for text in ["tsc_hz=", "tsc_hz=0", "tsc_hz=x", "hz=1", "tsc_hz=NaN"] {
            assert_eq!(hz(text), None, "{text}");
        }
    }
}
