//! Pages that several processes share: what one writes, the others read.

use core::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use guest_kit::random::{Random, mix};

use crate::sys::map::{Map, Sharing};
use crate::sys::process::{self, Status};
use crate::sys::{PAGE, cpu};

const PAGES: usize = 16;
const WORDS: usize = PAGES * PAGE / 8;

/// A ring of processes, one on each processor and two at least, hands pages on: each checks what the one before wrote
/// and writes its own. How many times a page was handed on.
pub fn run(cpus: &[usize], rounds: u64, random: &mut Random) -> Result<u64> {
    let map = Map::anonymous((PAGES + 1) * PAGE, Sharing::Shared)?;
    let seed = random.number();
    let members = cpus.len().clamp(2, 8) as u64;
    let turn = &map.words()[WORDS];
    let rounds = rounds / members;
    let children: Vec<_> = (1..members)
        .map(|member| {
            process::fork(|| match take_turns(&map, turn, member, members, rounds, cpus, seed) {
                Ok(()) => 0,
                Err(error) => {
                    println!("kit memory: process {member}: {error:#}");
                    // The others would wait for ever.
                    turn.store(u64::MAX, Ordering::Release);
                    1
                }
            })
        })
        .collect::<Result<_>>()?;
    let result = take_turns(&map, turn, 0, members, rounds, cpus, seed);
    if result.is_err() {
        turn.store(u64::MAX, Ordering::Release);
    }
    for child in children {
        let status = child.wait()?;
        ensure!(status == Status::Exited(0), "a process that shares memory: {status:?}");
    }
    result.map(|()| rounds * members)
}

/// What word `index` is after turn `turn`.
fn expected(seed: u64, turn: u64, index: usize) -> u64 {
    mix(seed ^ turn << 20 ^ index as u64)
}

fn take_turns(
    map: &Map,
    turn: &AtomicU64,
    member: u64,
    members: u64,
    rounds: u64,
    cpus: &[usize],
    seed: u64,
) -> Result<()> {
    cpu::pin(cpus[usize::try_from(member)? % cpus.len()])?;
    let words = &map.words()[..WORDS];
    for round in 0..rounds {
        let mine = round * members + member;
        let mut waited = 0;
        loop {
            match turn.load(Ordering::Acquire) {
                now if now == mine => break,
                now => ensure!(now < mine, "turn {now} came before {mine}"),
            }
            cpu::relax(&mut waited);
        }
        // A few words of each page, other ones in each turn but the same for the writer and the next reader.
        for page in 0..PAGES {
            let place = |turn: u64| page * PAGE / 8 + Random::new(seed ^ turn ^ page as u64).index(PAGE / 8);
            if let Some(before) = mine.checked_sub(1) {
                let index = place(before);
                let (found, wanted) = (words[index].load(Ordering::Relaxed), expected(seed, before, index));
                ensure!(found == wanted, "turn {mine}: word {index} is {found:#x}, not {wanted:#x}");
            }
            let index = place(mine);
            words[index].store(expected(seed, mine, index), Ordering::Relaxed);
        }
        turn.store(mine + 1, Ordering::Release);
    }
    Ok(())
}
