//! How long Debian's kernel takes to its first process: in a plain QEMU, and as a guest of Unum in the same QEMU, in turns.
//!
//! Kernel, initrd, command line, processors and memory are the same. The first process is the kit, which has run a
//! second one when it says so. Two times are taken: from the kernel's first line to that, and from QEMU's start, which
//! has in it the firmware here, and Unum's own boot there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipc::guest::{INITRD_BLOB, KERNEL_BLOB};

use super::guest::{self, GUEST_MIB, WalkCache};
use super::table::{Figure, Table, Target};
use super::{Next, follow};
use crate::build::{Built, Programs};
use crate::cluster::{BootMethod, Cluster, Event, JUMBO_MTU, Plan, Recording, node_directory};
use crate::process::{self, Child, POLL, check_interrupted};
use crate::qemu::{CONSOLE, Clock, Ending, OUTPUT};
use crate::switch::Impairment;

/// The fewest boots of each system.
const MIN_ROUNDS: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(300);
/// The least that the kit does.
const ARGUMENTS: &str = "bench cpuid --iterations 1";
/// What the kernel says first. The early console has it say so at once.
const FIRST_LINE: &str = "Linux version ";

const RATIO: &str = "guest-to-plain";
const TARGETS: &[Target] = &[Target { figure: RATIO, most: 1.7, reference: "KVM: 2.6" }];

/// Boots each system in turn, and prints the tables.
///
/// # Errors
/// A boot is broken.
pub fn run(directory: &Path, repeat: u32) -> Result<()> {
    let programs = guest::programs()?;
    let plain = Plain::new(directory)?;
    let without = Guest::new(&programs, WalkCache::Off, directory)?;
    let with = Guest::new(&programs, WalkCache::On, directory)?;
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..repeat.max(MIN_ROUNDS) {
        let of = |system: &str| directory.join(format!("{system}-{round}"));
        let failed = |directory: &Path| format!("a boot failed; see {}", directory.display());
        let [plain_times, guest_times, cached_times] = &mut times;
        let at = of("plain");
        plain_times.push(plain.boot(&at).with_context(|| failed(&at))?);
        let at = of("guest");
        guest_times.push(without.boot(&at).with_context(|| failed(&at))?);
        let at = of("walk-cache");
        cached_times.push(with.boot(&at).with_context(|| failed(&at))?);
    }
    println!("kernel to init, 1 processor, by the wall clock of this machine, in turns:");
    for line in lines(&times)? {
        println!("  {line}");
    }
    Ok(())
}

/// How long a boot took to the first process, in seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    from_first_line: f64,
    whole: f64,
}

/// A table of all boots of plain QEMU, the guest, and the guest with its walk cache; and one of the ratios of medians.
fn lines(times: &[Vec<Times>; 3]) -> Result<Vec<String>> {
    let mut all = Table::default();
    let [plain, guest, cached] = times;
    for ((plain, guest), cached) in plain.iter().zip(guest).zip(cached) {
        let seconds = |name, value| Figure::new(name, value, "s");
        all.add(vec![
            seconds("plain", plain.from_first_line),
            seconds("plain-from-start", plain.whole),
            seconds("guest", guest.from_first_line),
            seconds("guest-from-start", guest.whole),
            seconds("walk-cache", cached.from_first_line),
            seconds("walk-cache-from-start", cached.whole),
        ])?;
    }
    let ratio = |name, of: &[Times], part: fn(&Times) -> f64| {
        let median = |times: &[Times]| median(times.iter().map(part).collect());
        Figure::new(name, median(of) / median(plain), "times")
    };
    let mut ratios = Table::with(TARGETS);
    ratios.add(vec![
        ratio(RATIO, guest, |times| times.from_first_line),
        ratio("guest-to-plain-from-start", guest, |times| times.whole),
        ratio("walk-cache-to-plain", cached, |times| times.from_first_line),
        ratio("walk-cache-to-plain-from-start", cached, |times| times.whole),
    ])?;
    Ok([all.lines(), ratios.lines()].concat())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(values.len().saturating_sub(1) / 2), middle(values.len() / 2))
}

fn command_line() -> String {
    format!("console=ttyS0 earlyprintk=ttyS0 panic=-1 rdinit=/bin/kit -- {ARGUMENTS}")
}

/// Takes the times at which a console shows what is waited for.
struct Stopwatch {
    console: PathBuf,
    started: Instant,
    first_line: Option<Duration>,
    done: Option<Duration>,
}

impl Stopwatch {
    fn new(console: PathBuf, started: Instant) -> Self {
        Self { console, started, first_line: None, done: None }
    }

    /// To be called again and again: what is new is taken to be of now.
    fn look(&mut self) {
        // It need not be there yet.
        let text = fs::read(&self.console).unwrap_or_default();
        let (text, now) = (String::from_utf8_lossy(&text), self.started.elapsed());
        let at = |line: &str| text.contains(line).then_some(now);
        self.first_line = self.first_line.or_else(|| at(FIRST_LINE));
        self.done = self.done.or_else(|| at(&guest::done(ARGUMENTS)));
    }

    fn times(&self) -> Result<Times> {
        let (Some(first_line), Some(done)) = (self.first_line, self.done) else {
            bail!("it ended, and {} does not show a whole boot", self.console.display())
        };
        Ok(Times { from_first_line: (done - first_line).as_secs_f64(), whole: done.as_secs_f64() })
    }
}

/// The kernel in QEMU without Unum.
struct Plain {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Plain {
    /// Takes the very parts that the guest has.
    fn new(directory: &Path) -> Result<Self> {
        let manifest = guest::manifest(&command_line(), WalkCache::Off)?;
        let guest = manifest.guest.as_ref().context("the manifest has no guest")?;
        let blobs = crate::guest::blobs(guest)?;
        let keep = |name: &str| {
            let blob = blobs.iter().find(|blob| blob.name == name);
            let blob = blob.with_context(|| format!("the guest has no {name}"))?;
            let path = directory.join(name);
            fs::write(&path, &blob.file).with_context(|| format!("{} cannot be written", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        Ok(Self { kernel: keep(KERNEL_BLOB)?, initrd: keep(INITRD_BLOB)? })
    }

    fn boot(&self, directory: &Path) -> Result<Times> {
        fs::create_dir_all(directory)?;
        let (console, output) = (directory.join(CONSOLE), File::create(directory.join(OUTPUT))?);
        let mut qemu = process::tied("qemu-system-x86_64");
        qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", &format!("{GUEST_MIB}M")]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        qemu.args(["-append", &command_line()]);
        qemu.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut watch = Stopwatch::new(console, Instant::now());
        let mut qemu = Child::start(&mut qemu)?;
        loop {
            let ended = qemu.try_wait()?;
            watch.look();
            if let Some(status) = ended {
                ensure!(status.success(), "QEMU ended with {status}");
                return watch.times();
            }
            check_interrupted()?;
            ensure!(watch.started.elapsed() < TIMEOUT, "no power-off within {} s", TIMEOUT.as_secs());
            sleep(POLL);
        }
    }
}

/// The kernel as a guest.
struct Guest {
    built: Built,
    /// Its boot module: the next one that is built takes the place of the first.
    module: PathBuf,
    memory_mib: u32,
}

impl Guest {
    fn new(programs: &Programs, walk_cache: WalkCache, directory: &Path) -> Result<Self> {
        let built = guest::bundle(programs, &command_line(), walk_cache)?;
        let module = directory.join(format!("{walk_cache:?}.img"));
        fs::copy(&built.module, &module)
            .with_context(|| format!("{} cannot be copied", built.module.display()))?;
        let memory_mib = guest::memory_mib(&built)?;
        Ok(Self { built, module, memory_mib })
    }

    fn boot(&self, directory: &Path) -> Result<Times> {
        fs::create_dir_all(directory)?;
        let mut cluster = Cluster::start(&Plan {
            built: &self.built,
            module: Some(&self.module),
            iso: None,
            boot: BootMethod::Direct,
            nodes: 1,
            // As many as the plain system has.
            cpus: 1,
            memory_mib: self.memory_mib,
            clock: Clock::Wall,
            gdb: None,
            network: Impairment::default(),
            mtu: JUMBO_MTU,
            recording: Recording::Off,
            directory,
        })?;
        // What xtask itself makes ready is not part of it.
        let now = Instant::now();
        let started = now.checked_sub(cluster.age(0)).unwrap_or(now);
        let mut watch = Stopwatch::new(node_directory(directory, 1).join(CONSOLE), started);
        follow(&mut cluster, TIMEOUT, |event| {
            // Every output is an event, so this looks as often as there is something to see.
            watch.look();
            match event {
                Event::Ended(_, Ending::PoweredOff) => Ok(Next::Done(())),
                Event::Ended(_, ending) => bail!("the guest did not come to a good end: {ending:?}"),
                Event::Log(..) | Event::Output(..) | Event::Console(..) => Ok(Next::GoOn),
            }
        })?;
        watch.times()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopwatch_wants_both_lines() {
        let directory = tempfile::tempdir().unwrap();
        let console = directory.path().join(CONSOLE);
        let mut watch = Stopwatch::new(console.clone(), Instant::now());
        watch.look();
        assert!(watch.times().is_err(), "there is no console");
        fs::write(&console, "[    0.000000] Linux version 6.1\r\n").unwrap();
        watch.look();
        let first = watch.first_line.unwrap();
        assert!(watch.times().is_err(), "there is no init");
        fs::write(&console, format!("Linux version 6.1\r\n{}\r\n", guest::done(ARGUMENTS))).unwrap();
        watch.look();
        assert_eq!(watch.first_line, Some(first), "it counts when it was first seen");
        let times = watch.times().unwrap();
        assert!(times.from_first_line > 0.0 && times.from_first_line < times.whole);
    }

    #[test]
    fn ratios_are_of_medians() {
        let times = |list: [f64; 3]| {
            list.map(|seconds| Times { from_first_line: seconds, whole: seconds + 1.0 }).to_vec()
        };
        let lines = lines(&[times([2.0, 9.0, 1.0]), times([3.0, 1.0, 30.0]), times([4.0; 3])]).unwrap();
        assert!(lines[0].starts_with("plain ") && lines[0].contains("differ by"), "{lines:?}");
        let ratio = lines.iter().find(|line| line.starts_with(RATIO)).unwrap();
        assert!(ratio.contains(" 1.5 times") && ratio.ends_with("target 1.7: met (KVM: 2.6)"), "{ratio}");
        assert!(
            lines.iter().any(|line| line.starts_with("walk-cache-to-plain") && line.contains(" 2 times"))
        );
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
