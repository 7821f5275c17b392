//! `cargo xtask test`: the tests on the host, then the system tests.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::build::{Built, Programs};
use crate::cluster::{Cluster, Event, Plan, Recording};
use crate::host_tests::{self, Count};
use crate::logs::{self, Colour};
use crate::manifest::{Manifest, Overrides};
use crate::paths::RunDirectory;
use crate::process::{POLL, check_interrupted};
use crate::scenario::{Cut, Judge, Scenario, Verdict};
use crate::scenarios::SCENARIOS;
use crate::script::{Script, Wish};
use crate::{run, setup};

/// How many of the last lines are shown of a scenario that does not pass.
const LAST_LINES: usize = 25;
/// How long a node that failed may go on telling why.
const AFTERMATH: Duration = Duration::from_millis(500);
/// What the moments of cuts are chosen by.
const CUT_SEED: u64 = 4;
/// What the tests on the host are called among the scenarios.
const HOST: &str = "host";

/// Runs the tests on the host, then the system tests in QEMU and Bochs.
///
/// Each system test says pass, fail, or unknown: it is unknown after a triple fault, a hang, or the death of the
/// emulator. What it leaves behind lies in .unum/test/NAME.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Run only the tests whose name contains this; "host" are those on the host
    #[arg(long)]
    only: Option<String>,
    /// List the tests
    #[arg(long)]
    list: bool,
}

/// Runs the command; whether all passed.
///
/// # Errors
/// The tests cannot be run.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let is_named = |scenario: &Scenario| arguments.only.as_deref() == Some(scenario.name);
    let is_wanted =
        |scenario: &Scenario| wanted(scenario.name) && (scenario.held_back.is_none() || is_named(scenario));
    let scenarios: Vec<_> = SCENARIOS.iter().filter(|s| is_wanted(s)).collect();
    if arguments.list {
        let names = wanted(HOST).then_some(HOST).into_iter().chain(scenarios.iter().map(|s| s.name));
        names.for_each(|name| println!("{name}"));
        for scenario in SCENARIOS.iter().filter(|s| wanted(s.name) && !is_wanted(s)) {
            let why = scenario.held_back.unwrap_or_default();
            println!("{} (only by its whole name: {why})", scenario.name);
        }
        return Ok(true);
    }
    ensure!(
        wanted(HOST) || !scenarios.is_empty(),
        "no test's name contains '{}'; cargo xtask test --list names all",
        arguments.only.as_deref().unwrap_or_default()
    );
    let tools: BTreeSet<_> = scenarios.iter().flat_map(|s| s.boot.tools()).copied().collect();
    setup::ensure(&tools.into_iter().collect::<Vec<_>>())?;
    let mut count = if wanted(HOST) { host_tests::run()? } else { Count::default() };
    if !scenarios.is_empty() {
        let systems = run_all(&scenarios)?;
        count.passed += systems.passed;
        count.failed += systems.failed;
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

fn run_all(scenarios: &[&Scenario]) -> Result<Count> {
    let directory = RunDirectory::claim("test")?;
    let paths: BTreeSet<_> = scenarios.iter().map(|s| Path::new(s.manifest)).collect();
    let load = |path| Manifest::load(path, &Overrides::default());
    let manifests = paths.into_iter().map(load).collect::<Result<Vec<_>>>()?;
    let programs = Programs::build(&manifests)?;
    let mut count = Count::default();
    for scenario in scenarios {
        check_interrupted()?;
        let directory = directory.make(scenario.name)?;
        let start = Instant::now();
        // A scenario that cannot be run has not passed; the others can still tell something.
        let report = bundle(scenario, &programs).and_then(|built| run_one(scenario, &built, &directory));
        let report = report.or_else(|error| {
            check_interrupted()?;
            let verdict = Verdict::Unknown(format!("{error:#}"));
            Ok::<_, anyhow::Error>(Report { verdict, lines: VecDeque::new() })
        })?;
        println!("{}: {} ({:.1} s)", scenario.name, report.verdict, start.elapsed().as_secs_f32());
        if report.verdict == Verdict::Pass {
            count.passed += 1;
        } else {
            count.failed += 1;
            report.lines.iter().for_each(|line| println!("    {line}"));
            println!("    all of it: {}", directory.display());
        }
    }
    Ok(count)
}

/// What the nodes of a scenario boot.
fn bundle(scenario: &Scenario, programs: &Programs) -> Result<Built> {
    let path = Path::new(scenario.manifest);
    programs.bundle(path, Manifest::load(path, &scenario.overrides())?)
}

/// What came of a scenario, and the last that was seen of it.
struct Report {
    verdict: Verdict,
    lines: VecDeque<String>,
}

fn run_one(scenario: &Scenario, built: &Built, directory: &Path) -> Result<Report> {
    let module = scenario.damage.map(|damage| damaged(&built.module, damage, directory)).transpose()?;
    let module_bytes = fs::metadata(&built.module)?.len();
    let memory_mib = scenario.memory_mib.max(run::node_memory(built.manifest.guest.as_ref(), module_bytes));
    let mut cluster = Cluster::start(&Plan {
        built,
        module: module.as_deref(),
        boot: scenario.boot,
        iso: None,
        nodes: scenario.nodes,
        cpus: scenario.cpus,
        memory_mib,
        clock: scenario.clock,
        gdb: None,
        network: scenario.network.parse()?,
        mtu: scenario.mtu,
        recording: Recording::On,
        directory,
    })?;
    let deadline = Instant::now() + scenario.timeout;
    let mut judge = Judge::new(scenario);
    let mut script = scenario.guest.map(|guest| Script::new(guest.steps, guest.patience));
    let mut lines = VecDeque::new();
    let mut cutting = scenario.cut.map(Cutting::new);
    let verdict = loop {
        let events = cluster.poll()?;
        // What the console shows before a node's end is seen before that.
        if let Some(verdict) =
            script.as_mut().and_then(|script| type_on(script, &mut cluster, &events, &mut judge))
        {
            take(events, &mut judge, &mut lines);
            break verdict;
        }
        let late = cutting.as_mut().map(|cutting| cutting.follow(&cluster, &events)).transpose()?.flatten();
        if let Some(verdict) = take(events, &mut judge, &mut lines).or(late) {
            break verdict;
        }
        check_interrupted()?;
        if Instant::now() >= deadline {
            // What was still held back may yet decide.
            let held = take(cluster.finish()?, &mut judge, &mut lines);
            let waits_for = script.as_ref().and_then(Script::waits_for);
            lines.extend(waits_for.map(|what| format!("at the guest's console this was waited for: {what}")));
            lines.extend(cluster.whereabouts());
            return Ok(Report { verdict: held.unwrap_or_else(|| judge.timed_out()), lines });
        }
        sleep(POLL);
    };
    if verdict != Verdict::Pass {
        // The reason of a panic follows its first line.
        sleep(AFTERMATH);
        let mut events = cluster.poll()?;
        events.extend(cluster.finish()?);
        take(events, &mut judge, &mut lines);
        lines.extend(cluster.network().lines().map(str::to_owned));
    }
    Ok(Report { verdict, lines })
}

/// Goes on at the guest's console.
fn type_on(
    script: &mut Script,
    cluster: &mut Cluster,
    events: &[Event],
    judge: &mut Judge<'_>,
) -> Option<Verdict> {
    if script.is_done() {
        return None;
    }
    for event in events {
        if let Event::Output(0, bytes) = event {
            script.show(bytes);
        }
    }
    while let Some(wish) = script.next(Instant::now()) {
        match wish {
            Wish::Type(text) => cluster.send(0, text.as_bytes()),
            Wish::Fail(why) => return Some(Verdict::Fail(why)),
            Wish::Late(why) => return Some(Verdict::Unknown(why)),
        }
    }
    if script.is_done() { judge.script_done() } else { None }
}

/// Cuts and heals the network when the logs say so.
struct Cutting {
    cut: Cut,
    state: CutState,
    /// How often it has happened.
    times: u32,
    random: ChaCha8Rng,
}

/// How far a cut has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CutState {
    /// Its text is waited for.
    Before,
    /// It begins then.
    Due(Instant),
    /// It began then.
    Now(Instant),
    /// There is no other one.
    Over,
}

impl Cutting {
    fn new(cut: Cut) -> Self {
        Self { cut, state: CutState::Before, times: 0, random: ChaCha8Rng::seed_from_u64(CUT_SEED) }
    }

    fn follow(&mut self, cluster: &Cluster, events: &[Event]) -> Result<Option<Verdict>> {
        for event in events {
            let Event::Log(_, line) = event else { continue };
            match self.state {
                CutState::Before if line.text.contains(self.cut.from) => {
                    let part = f64::from(self.random.next_u32()) / f64::from(u32::MAX);
                    self.state = CutState::Due(Instant::now() + self.cut.within.mul_f64(part));
                }
                CutState::Now(since) if line.text.contains(self.cut.until) => {
                    cluster.heal();
                    self.times += 1;
                    let again = self.times < self.cut.times;
                    self.state = if again { CutState::Before } else { CutState::Over };
                    if since.elapsed() > self.cut.most {
                        let (took, most) = (since.elapsed().as_secs_f32(), self.cut.most.as_secs_f32());
                        let text = format!(
                            "cut {} ended with '{}' after {took:.1} s, and not within {most:.1} s",
                            self.times, self.cut.until
                        );
                        return Ok(Some(Verdict::Fail(text)));
                    }
                }
                _ => {}
            }
        }
        if let CutState::Due(when) = self.state
            && Instant::now() >= when
        {
            cluster.cut()?;
            self.state = CutState::Now(Instant::now());
        }
        Ok(None)
    }
}

/// Keeps the last lines, and lets the judge see all events; the first verdict counts.
fn take(events: Vec<Event>, judge: &mut Judge, lines: &mut VecDeque<String>) -> Option<Verdict> {
    let mut verdict = None;
    for event in events {
        let (shown, said) = match &event {
            Event::Log(node, line) => {
                (Some(logs::show(line, Colour::Plain).trim_end().to_owned()), judge.line(*node, &line.text))
            }
            Event::Output(..) => (None, None),
            Event::Console(node, line) => {
                (Some(format!("node {}: {line}", node + 1)), judge.line(*node, line))
            }
            Event::Ended(node, ending) => (None, judge.ended(*node, ending)),
        };
        lines.extend(shown);
        if lines.len() > LAST_LINES {
            lines.pop_front();
        }
        verdict = verdict.or(said);
    }
    verdict
}

/// A boot module with a change to it.
fn damaged(module: &Path, damage: fn(&mut Vec<u8>), directory: &Path) -> Result<PathBuf> {
    let mut bytes = fs::read(module).with_context(|| format!("{} cannot be read", module.display()))?;
    damage(&mut bytes);
    let path = directory.join("damaged.img");
    fs::write(&path, bytes).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(path)
}
