//! Mappings that come, go and change all the time, in several threads of one process: every change of one thread flushes
//! translations that the others use.
#![expect(unsafe_code, reason = "accesses that may fault")]

use core::sync::atomic::Ordering;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use guest_kit::random::{Random, mix};

use crate::sys::map::{Access, Map, Sharing};
use crate::sys::{PAGE, cpu, fault};

const SLOTS: usize = 24;
const MOST_PAGES: usize = 48;

/// A mapping and what is known of it.
struct Slot {
    map: Map,
    access: Access,
    /// What the first word of each page must be.
    pages: Vec<u64>,
}

/// Makes `changes` random changes in a thread on each processor.
pub fn run(cpus: &[usize], changes: u64, random: &mut Random) -> Result<()> {
    fault::catch()?;
    let seeds: Vec<_> = cpus.iter().map(|&cpu| (cpu, random.number())).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = seeds
            .into_iter()
            .map(|(cpu, seed)| scope.spawn(move || cpu::pin(cpu).and_then(|()| churn(changes, seed))))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn churn(changes: u64, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut slots: Vec<Option<Slot>> = (0..SLOTS).map(|_| None).collect();
    for change in 0..changes {
        let place = random.index(SLOTS);
        let Some(slot) = &mut slots[place] else {
            let map = Map::anonymous((1 + random.index(MOST_PAGES)) * PAGE, Sharing::Private)?;
            let pages = vec![0; map.pages()];
            slots[place] = Some(Slot { map, access: Access::Write, pages });
            continue;
        };
        match random.below(8) {
            0 => slots[place] = None,
            1 => {
                slot.map.discard()?;
                slot.pages.fill(0);
            }
            2 | 3 => {
                slot.access = [Access::None, Access::Read, Access::Write][random.index(3)];
                slot.map.protect(slot.access)?;
            }
            _ => slot
                .touch(&mut random)
                .map_err(|error| error.context(format!("change {change}, seed {seed}")))?,
        }
    }
    Ok(())
}

impl Slot {
    /// Reads and perhaps writes a page; what may not be must fault, what may must not.
    fn touch(&mut self, random: &mut Random) -> Result<()> {
        let page = random.index(self.pages.len());
        let word = &self.map.words()[page * PAGE / 8];
        let at = word.as_ptr();
        let found: u64;
        // SAFETY: an atomic of the mapping; a fault is caught.
        let signal =
            unsafe { fault::attempt!("mov rax, [{at}]"; at = in(reg) at, inout("rax") 0u64 => found) };
        let readable = self.access != Access::None;
        ensure!(
            signal == segv_unless(readable),
            "reading a page with {:?} ended in signal {signal}",
            self.access
        );
        let wanted = self.pages[page];
        ensure!(!readable || found == wanted, "page {page} has {found:#x}, not {wanted:#x}");

        let new = mix(random.number());
        // SAFETY: as above.
        let signal = unsafe { fault::attempt!("mov [{at}], {new}"; at = in(reg) at, new = in(reg) new) };
        let writable = self.access == Access::Write;
        ensure!(
            signal == segv_unless(writable),
            "writing a page with {:?} ended in signal {signal}",
            self.access
        );
        if writable {
            self.pages[page] = new;
            ensure!(word.load(Ordering::Relaxed) == new, "page {page} did not take {new:#x}");
        }
        Ok(())
    }
}

fn segv_unless(allowed: bool) -> u64 {
    if allowed { 0 } else { libc::SIGSEGV as u64 }
}
