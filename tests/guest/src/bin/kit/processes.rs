//! Processes: fork, exec, pipes, copies on write, and what `wait` says.

use core::sync::atomic::{AtomicU32, Ordering};
use std::ffi::CString;
use std::io::{Read, Write, pipe};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use guest_kit::random::{Random, mix};

use crate::options::Options;
use crate::sys::map::{Access, Map, Sharing};
use crate::sys::process::{self, Child, Status};
use crate::sys::{PAGE, signal};

/// The first argument of this program when it is a child of the test: then a seed, of which [`child_code`] makes its exit
/// code.
const CHILD: &str = "--child";
/// Pages that the parent shares with each child until one of them writes.
const COPIED_PAGES: usize = 32;
/// Children at a time.
const AT_ONCE: usize = 8;
/// Bytes through each pipe, more than it holds (64 KiB).
const PIPED: usize = 150_000;

/// The exit code when this program was started as a child of the test.
pub fn as_child(arguments: &[String]) -> Option<u8> {
    let [first, seed] = arguments else { return None };
    (first == CHILD).then(|| seed.parse().map_or(255, |seed| work(seed).unwrap_or(254)))
}

/// What a child exits with: from 0 to 199, since greater ones mean that it failed.
fn child_code(seed: u64) -> u8 {
    u8::try_from(mix(seed) % 200).unwrap_or(u8::MAX)
}

/// A new program's memory: its own data are what they must be, its heap and stack work.
fn work(seed: u64) -> Result<u8> {
    static DATA: [u64; 4] = [mix(1), mix(2), mix(3), mix(4)];
    static ZERO: [AtomicU32; 2048] = [const { AtomicU32::new(0) }; 2048];
    ensure!(DATA.iter().zip(1..).all(|(&word, number)| word == mix(number)), "data");
    ensure!(ZERO.iter().all(|word| word.load(Ordering::Relaxed) == 0), "zeroed data");
    let mut random = Random::new(seed);
    let mut numbers: Vec<_> = (0..2_000).map(|_| random.number()).collect();
    numbers.sort_unstable();
    ensure!(numbers.is_sorted(), "sorted");
    // From the pipe that is standard input, if it is one: what the parent sends is a pattern of the seed.
    let mut piped = Vec::new();
    std::io::stdin().read_to_end(&mut piped)?;
    ensure!(piped.is_empty() || piped == pattern(seed), "standard input");
    Ok(child_code(seed))
}

fn pattern(seed: u64) -> Vec<u8> {
    (0..PIPED as u64 / 8).flat_map(|word| mix(seed ^ word).to_le_bytes()).collect()
}

pub fn run(options: &Options) -> Result<String> {
    let children = options.iterations(500);
    forks(options.seed, children)?;
    let piped = options.scaled(20);
    (0..piped).try_for_each(|number| spawn(options.seed ^ number))?;
    (0..options.scaled(50)).try_for_each(|_| vfork())?;
    statuses()?;
    Ok(format!("children={children} spawned={piped} piped={}", piped * PIPED as u64))
}

/// Children that see what the parent wrote before the fork, write their own, and become this program anew.
fn forks(seed: u64, children: u64) -> Result<()> {
    let map = Map::anonymous(COPIED_PAGES * PAGE, Sharing::Private)?;
    let expected = |child: u64, index: usize| mix(seed ^ child << 32 ^ index as u64);
    let fill = |child| {
        for (index, word) in map.words().iter().enumerate() {
            word.store(expected(child, index), Ordering::Relaxed);
        }
    };
    let check = |child| {
        map.words()
            .iter()
            .enumerate()
            .position(|(index, word)| word.load(Ordering::Relaxed) != expected(child, index))
    };
    let mut running: Vec<(Child, u64)> = Vec::new();
    let end = |(child, seed): (Child, u64)| -> Result<()> {
        let status = child.wait()?;
        let wanted = Status::Exited(i32::from(child_code(seed)));
        ensure!(status == wanted, "the child with seed {seed}: {status:?}, not {wanted:?}");
        Ok(())
    };
    for number in 0..children {
        fill(number);
        let child_seed = mix(seed ^ number);
        let program = CString::new("/proc/self/exe")?;
        let (flag, argument) = (CString::new(CHILD)?, CString::new(child_seed.to_string())?);
        let child = process::fork(|| {
            if check(number).is_some() {
                return 253;
            }
            fill(!number);
            if check(!number).is_some() {
                return 252;
            }
            // Its standard input is empty.
            if process::close_input().is_err() {
                return 250;
            }
            match process::exec(&program, &[&program, &flag, &argument]) {
                Ok(never) => match never {},
                Err(_) => 251,
            }
        })?;
        running.push((child, child_seed));
        if let Some(index) = check(number) {
            return Err(anyhow!("word {index} of the parent was changed by child {number}"));
        }
        if running.len() >= AT_ONCE {
            end(running.remove(0))?;
        }
    }
    running.into_iter().try_for_each(end)
}

/// A child by `posix_spawn(3)`, fed through a pipe.
fn spawn(seed: u64) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    let mut child =
        command.args([CHILD, &seed.to_string()]).stdin(Stdio::piped()).spawn().context("spawn")?;
    child.stdin.take().context("no pipe")?.write_all(&pattern(seed)).context("the child's pipe")?;
    let status = child.wait()?;
    ensure!(
        status.code() == Some(i32::from(child_code(seed))),
        "the spawned child with seed {seed}: {status}"
    );
    Ok(())
}

static SHARED: AtomicU32 = AtomicU32::new(0);

/// A child in the parent's memory, which the parent waits for.
fn vfork() -> Result<()> {
    extern "C" fn child(_: *mut libc::c_void) -> i32 {
        SHARED.store(SHARED.load(Ordering::Relaxed).wrapping_mul(3).wrapping_add(1), Ordering::Relaxed);
        process::exit(77)
    }
    let stack = Map::anonymous(16 * PAGE, Sharing::Private)?;
    let before = SHARED.load(Ordering::Relaxed);
    let child = process::vfork(&stack, child)?;
    let now = SHARED.load(Ordering::Relaxed);
    ensure!(
        now == before.wrapping_mul(3).wrapping_add(1),
        "the parent went on before the child of vfork was done"
    );
    let status = child.wait()?;
    ensure!(status == Status::Exited(77), "the child of vfork: {status:?}");
    Ok(())
}

/// Every way to end, and to stop and go on.
fn statuses() -> Result<()> {
    for code in [0, 1, 127, 128, 255] {
        let status = process::fork(|| code)?.wait()?;
        ensure!(status == Status::Exited(code), "exit code {code}: {status:?}");
    }
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGUSR1, libc::SIGRTMAX()] {
        let child = process::fork(|| {
            loop {
                std::thread::park();
            }
        })?;
        child.kill(signal)?;
        let status = child.wait()?;
        ensure!(status == Status::Killed(signal), "signal {signal}: {status:?}");
    }
    let map = Map::anonymous(PAGE, Sharing::Private)?;
    map.protect(Access::None)?;
    let child = process::fork(|| {
        signal::default_action(libc::SIGSEGV);
        i32::from(map.as_bytes()[0].load(Ordering::Relaxed))
    })?;
    let status = child.wait()?;
    ensure!(status == Status::Killed(libc::SIGSEGV), "reading a page that may not be: {status:?}");

    let child = process::fork(|| {
        loop {
            std::thread::park();
        }
    })?;
    for turn in 0..10 {
        child.kill(libc::SIGSTOP)?;
        let stopped = child.wait_for(libc::WUNTRACED)?;
        child.kill(libc::SIGCONT)?;
        let continued = child.wait_for(libc::WCONTINUED)?;
        ensure!(
            (stopped, continued) == (Status::Stopped(libc::SIGSTOP), Status::Continued),
            "stop {turn}: {stopped:?}, {continued:?}"
        );
    }
    child.kill(libc::SIGKILL)?;
    ensure!(child.wait()? == Status::Killed(libc::SIGKILL), "killed after stops");
    let (mut reader, writer) = pipe()?;
    drop(writer);
    ensure!(reader.read(&mut [0])? == 0, "a pipe without a writer does not end");
    Ok(())
}
