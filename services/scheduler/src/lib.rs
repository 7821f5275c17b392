//! Places virtual processors on cores.
//!
//! There is no guest yet, so what it answers is what the cores do.
#![no_std]
#![forbid(unsafe_code)]

use heapless::Vec;
use ipc::abi::{Inspect, MAX_CORES, NEVER};
use ipc::interfaces::scheduler::{CoreLoad, Cores, Server};
use ipc::message::{Caller, Refused};
use rt::inspector::{Inspector, LoadMeter};
use rt::time::Clock;

/// How often the cores are looked at, in milliseconds: the period that loads are of.
pub const LOOK_MS: u64 = 1_000;

/// The service's state.
#[derive(Debug)]
pub struct Scheduler<I> {
    inspector: I,
    meters: Vec<LoadMeter, MAX_CORES>,
    period: u64,
    next_look: u64,
}

impl<I: Inspector> Scheduler<I> {
    /// Looks at the cores for the first time when [`Scheduler::look`] is first called.
    pub fn new(inspector: I, clock: Clock) -> Self {
        let period = clock.milliseconds_to_ticks(LOOK_MS);
        Self { inspector, meters: Vec::new(), period, next_look: 0 }
    }

    /// When the next look is due, in ticks.
    #[must_use]
    pub fn next_look(&self) -> u64 {
        self.next_look
    }

    /// Looks at the cores, when that is due.
    pub fn look(&mut self, now: u64) {
        if now < self.next_look {
            return;
        }
        self.next_look = now.saturating_add(self.period).min(NEVER - 1);
        for core in 0..MAX_CORES {
            let Ok([busy, idle, ..]) = self.inspector.inspect(Inspect::Core, core as u64) else { return };
            if core == self.meters.len() {
                // There is room for MAX_CORES.
                let _ = self.meters.push(LoadMeter::default());
            }
            if let Some(meter) = self.meters.get_mut(core) {
                meter.look(busy, busy.saturating_add(idle));
            }
        }
    }
}

impl<I: Inspector> Server for Scheduler<I> {
    fn cores(&mut self, _caller: Caller) -> Result<Cores, Refused> {
        let mut cores = Cores::new();
        for (core, meter) in self.meters.iter().enumerate() {
            let [_, _, switches, interrupts] =
                self.inspector.inspect(Inspect::Core, core as u64).map_err(|_| Refused)?;
            // There is room for MAX_CORES.
            let _ = cores.push(CoreLoad { load_permille: meter.permille(), switches, interrupts });
        }
        Ok(cores)
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;
    use ipc::abi::{Error, Token};

    struct Node {
        cores: Cell<[[u64; 4]; 2]>,
    }

    impl Inspector for &Node {
        fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
            assert_eq!(item, Inspect::Core);
            let index = usize::try_from(index).map_err(|_| Error::NoSuchItem)?;
            self.cores.get().get(index).copied().ok_or(Error::NoSuchItem)
        }
    }

    #[test]
    fn loads_are_those_of_the_last_period() {
        let node = Node { cores: Cell::new([[0, 0, 0, 0]; 2]) };
        let mut scheduler = Scheduler::new(&node, Clock::new(1_000));
        let caller = Caller::of(Token::new(0, 1, 1));
        assert_eq!(scheduler.cores(caller), Ok(Cores::new()));
        scheduler.look(5);
        assert_eq!(scheduler.next_look(), 1_005);
        node.cores.set([[250, 750, 7, 8], [1_000, 0, 9, 10]]);
        scheduler.look(1_004);
        assert_eq!(scheduler.cores(caller).unwrap()[0].load_permille, 0);
        scheduler.look(1_005);
        let cores = scheduler.cores(caller).unwrap();
        assert_eq!(cores[0], CoreLoad { load_permille: 250, switches: 7, interrupts: 8 });
        assert_eq!(cores[1], CoreLoad { load_permille: 1_000, switches: 9, interrupts: 10 });
        assert_eq!(cores.len(), 2);
    }
}
