//! Places virtual processors on cores.
//!
//! * [`placement`]: the policy.
//! * [`counters`]: what it is made from.
//! * [`Scheduler`]: looks at the counters when that is due, has vCPUs moved, and tells of it all.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod counters;
pub mod placement;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use heapless::Vec;
use ipc::abi::{Inspect, MAX_CORES, NEVER};
use ipc::interfaces::scheduler::{CoreLoad, Cores, Server, VcpuLoad, Vcpus};
use ipc::message::{Caller, Refused};
use ipc::vcpu::MAX_VCPUS;
use rt::inspector::{Inspector, LoadMeter};
use rt::time::Clock;

use placement::{Move, Placement};

/// How often cores and vCPUs are looked at for their loads, in milliseconds: the period that loads are of.
pub const LOOK_MS: u64 = 1_000;

/// What makes a core the home of a vCPU.
pub trait Placer {
    /// Has it so. When it cannot be, the vCPU stays where it is, which the next look finds.
    fn place(&mut self, to: Move);
}

/// The service's state.
#[derive(Debug)]
pub struct Scheduler<I, P> {
    inspector: I,
    /// Only when this node has a guest.
    placer: Option<P>,
    clock: Clock,
    cores: Vec<LoadMeter, MAX_CORES>,
    vcpus: Vec<VcpuMeter, MAX_VCPUS>,
    placement: Placement,
    next_look: u64,
    next_placement: u64,
}

#[derive(Debug, Default)]
struct VcpuMeter {
    load: LoadMeter,
    steal: LoadMeter,
}

impl<I: Inspector, P: Placer> Scheduler<I, P> {
    /// Looks at everything for the first time when [`Scheduler::look`] is first called. Without a placer no vCPU moves.
    pub fn new(inspector: I, placer: Option<P>, clock: Clock) -> Self {
        Self {
            inspector,
            placer,
            clock,
            cores: Vec::new(),
            vcpus: Vec::new(),
            placement: Placement::new(clock),
            next_look: 0,
            next_placement: 0,
        }
    }

    /// When the next look is due, in ticks.
    #[must_use]
    pub fn next_look(&self) -> u64 {
        self.next_look.min(self.next_placement)
    }

    /// Looks at loads and places vCPUs, each when it is due.
    pub fn look(&mut self, now: u64) {
        if now >= self.next_look {
            self.next_look = self.after(now, LOOK_MS);
            self.measure(now);
        }
        if now >= self.next_placement {
            self.place(now);
        }
    }

    fn after(&self, now: u64, milliseconds: u64) -> u64 {
        now.saturating_add(self.clock.milliseconds_to_ticks(milliseconds)).min(NEVER - 1)
    }

    fn measure(&mut self, now: u64) {
        for core in 0..MAX_CORES {
            let Ok([busy, idle, ..]) = self.inspector.inspect(Inspect::Core, core as u64) else { break };
            if core == self.cores.len() {
                // There is room for MAX_CORES.
                let _ = self.cores.push(LoadMeter::default());
            }
            if let Some(meter) = self.cores.get_mut(core) {
                meter.look(busy, busy.saturating_add(idle));
            }
        }
        for index in 0..MAX_VCPUS {
            let Some(counters) = counters::vcpu(&self.inspector, index) else { break };
            if index == self.vcpus.len() {
                // There is room for MAX_VCPUS.
                let _ = self.vcpus.push(VcpuMeter::default());
            }
            if let Some(meter) = self.vcpus.get_mut(index) {
                meter.load.look(counters.run, now);
                meter.steal.look(counters.steal, now);
            }
        }
    }

    // Not inlined, so that what it needs of the stack is in use for it alone and not while a call is answered.
    #[inline(never)]
    fn place(&mut self, now: u64) {
        let choice = self.cores.len() > 1 && !self.vcpus.is_empty();
        let Some(placer) = self.placer.as_mut().filter(|_| choice) else {
            // Neither cores nor vCPUs become more.
            self.next_placement = NEVER;
            return;
        };
        let (vcpus, busy) = (counters::vcpus(&self.inspector), counters::busy(&self.inspector));
        for chosen in self.placement.look(now, vcpus, busy) {
            placer.place(chosen);
        }
        let next = self.after(now, self.placement.period_ms());
        // An idle guest is looked at when the cores are, and wakes nobody else.
        self.next_placement = if self.placement.period_ms() < LOOK_MS { next } else { self.next_look };
    }
}

impl<I: Inspector, P> Server for Scheduler<I, P> {
    fn cores(&mut self, _caller: Caller) -> Result<Cores, Refused> {
        let mut cores = Cores::new();
        for (core, meter) in self.cores.iter().enumerate() {
            let [_, _, switches, interrupts] =
                self.inspector.inspect(Inspect::Core, core as u64).map_err(|_| Refused)?;
            // There is room for MAX_CORES.
            let _ = cores.push(CoreLoad { load_permille: meter.permille(), switches, interrupts });
        }
        Ok(cores)
    }

    fn vcpus(&mut self, _caller: Caller) -> Result<Vcpus, Refused> {
        let mut vcpus = Vcpus::new();
        for (index, meter) in self.vcpus.iter().enumerate() {
            let home = counters::vcpu(&self.inspector, index).ok_or(Refused)?.home;
            let (load_permille, steal_permille) = (meter.load.permille(), meter.steal.permille());
            let core = u16::try_from(home).unwrap_or(u16::MAX);
            // There is room for MAX_VCPUS.
            let _ = vcpus.push(VcpuLoad { core, load_permille, steal_permille });
        }
        Ok(vcpus)
    }
}
