//! What the guest's vCPUs did: totals as the kernel counts them, and rates.

use core::ops::AddAssign;

use heapless::Vec;
use ipc::abi::{Inspect, VcpuActivity};
use ipc::interfaces::health::{Count, VcpuHealth};
use ipc::vcpu::MAX_VCPUS;
use rt::inspector::Inspector;
use rt::time::Clock;

#[cfg(test)]
mod tests;

/// All vCPUs of the node.
#[derive(Debug)]
pub struct Vcpus {
    clock: Clock,
    meters: Vec<Meter, MAX_VCPUS>,
    last_look: u64,
    /// All of them, since the last summary.
    sum: Counters,
    last_summary: u64,
    guest: Guest,
}

/// Whether a guest was there since the last summary.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Guest {
    Absent,
    Present,
}

/// All vCPUs in a few numbers, for one line of the log: means and sums since the last of these.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GuestSummary {
    /// vCPUs.
    pub vcpus: u32,
    /// How long they ran, in permille of a core for each.
    pub mean_permille: u32,
    /// How long they were ready and others ran, as well.
    pub steal_permille: u32,
    /// Exits in a second.
    pub exits: u32,
    /// Misses in guest memory in a second.
    pub faults: u32,
    /// Halts in a second.
    pub halts: u32,
}

/// Counters of the kernel, or differences of them. Times are in ticks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counters {
    run: u64,
    steal: u64,
    exits: u64,
    faults: u64,
    halts: u64,
}

impl Counters {
    fn since(self, last: Self) -> Self {
        // The kernel's counter of halts has 32 bits.
        let halts = self.halts.wrapping_sub(last.halts) & u64::from(u32::MAX);
        Self {
            run: self.run.saturating_sub(last.run),
            steal: self.steal.saturating_sub(last.steal),
            exits: self.exits.saturating_sub(last.exits),
            faults: self.faults.saturating_sub(last.faults),
            halts,
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.run = self.run.saturating_add(other.run);
        self.steal = self.steal.saturating_add(other.steal);
        self.exits = self.exits.saturating_add(other.exits);
        self.faults = self.faults.saturating_add(other.faults);
        self.halts = self.halts.saturating_add(other.halts);
    }
}

/// One vCPU: its counters at the last look, and its rates then.
#[derive(Debug, Default)]
struct Meter {
    last: Counters,
    load_permille: u16,
    steal_permille: u16,
    exits: u32,
    faults: u32,
    halts: u32,
}

impl Meter {
    fn look(&mut self, now: Counters, elapsed: u64, clock: Clock) -> Counters {
        let since = now.since(self.last);
        self.last = now;
        let permille = |ticks| u16::try_from(permille(ticks, elapsed)).unwrap_or(u16::MAX);
        self.load_permille = permille(since.run);
        self.steal_permille = permille(since.steal);
        [self.exits, self.faults, self.halts] =
            [since.exits, since.faults, since.halts].map(|count| per_second(count, elapsed, clock));
        since
    }
}

/// A part of a time, in permille, 1,000 at most: what is counted late is cut.
fn permille(part: u64, time: u64) -> u32 {
    let permille = u128::from(part) * 1_000 / u128::from(time.max(1));
    u32::try_from(permille.min(1_000)).unwrap_or(1_000)
}

fn per_second(count: u64, ticks: u64, clock: Clock) -> u32 {
    let per_second = u128::from(count) * u128::from(clock.hz()) / u128::from(ticks.max(1));
    u32::try_from(per_second).unwrap_or(u32::MAX)
}

/// What the kernel tells of a vCPU.
struct Report {
    counters: Counters,
    activity: VcpuActivity,
    core: u16,
}

fn report(inspector: &impl Inspector, index: usize) -> Option<Report> {
    let [run, exits, faults, state] = inspector.inspect(Inspect::Vcpu, index as u64).ok()?;
    let [steal, ..] = inspector.inspect(Inspect::VcpuTime, index as u64).ok()?;
    let [low, high, activity, ..] = state.to_le_bytes();
    let all = [VcpuActivity::Stopped, VcpuActivity::Running, VcpuActivity::Halted, VcpuActivity::AtExit];
    Some(Report {
        counters: Counters { run, steal, exits, faults, halts: state >> 32 },
        activity: all.into_iter().find(|&known| known as u8 == activity)?,
        core: u16::from_le_bytes([low, high]),
    })
}

impl Vcpus {
    /// None has been looked at yet.
    #[must_use]
    pub const fn new(clock: Clock) -> Self {
        let sum = Counters { run: 0, steal: 0, exits: 0, faults: 0, halts: 0 };
        Self { clock, meters: Vec::new(), last_look: 0, sum, last_summary: 0, guest: Guest::Absent }
    }

    /// Takes a look at all of them at `now`; rates are those between the last two looks.
    pub fn look(&mut self, inspector: &impl Inspector, now: u64) {
        let elapsed = now.saturating_sub(self.last_look);
        self.last_look = now;
        for index in 0..MAX_VCPUS {
            let Some(Report { counters, activity, .. }) = report(inspector, index) else { return };
            if activity != VcpuActivity::Stopped {
                self.guest = Guest::Present;
            }
            match self.meters.get_mut(index) {
                Some(meter) => self.sum += meter.look(counters, elapsed, self.clock),
                None => {
                    // There is room for MAX_VCPUS.
                    let _ = self.meters.push(Meter { last: counters, ..Meter::default() });
                    self.last_summary = now;
                }
            }
        }
    }

    /// All of them since the last summary; `None` when there was no guest.
    pub fn summary(&mut self) -> Option<GuestSummary> {
        let elapsed = self.last_look.saturating_sub(self.last_summary);
        self.last_summary = self.last_look;
        let sum = core::mem::take(&mut self.sum);
        if core::mem::replace(&mut self.guest, Guest::Absent) == Guest::Absent {
            return None;
        }
        let vcpus = u32::try_from(self.meters.len()).unwrap_or(u32::MAX);
        let time = elapsed.saturating_mul(u64::from(vcpus));
        Some(GuestSummary {
            vcpus,
            mean_permille: permille(sum.run, time),
            steal_permille: permille(sum.steal, time),
            exits: per_second(sum.exits, elapsed, self.clock),
            faults: per_second(sum.faults, elapsed, self.clock),
            halts: per_second(sum.halts, elapsed, self.clock),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.meters.len()
    }

    /// One of them: totals of now, rates of the last look; `None` when there is none of this number.
    pub fn vcpu(&self, inspector: &impl Inspector, index: usize) -> Option<VcpuHealth> {
        let Report { counters, activity, core } = report(inspector, index)?;
        let meter = self.meters.get(index)?;
        Some(VcpuHealth {
            activity,
            core,
            load_permille: meter.load_permille,
            steal_permille: meter.steal_permille,
            exits: Count { total: counters.exits, per_second: meter.exits },
            faults: Count { total: counters.faults, per_second: meter.faults },
            halts: Count { total: counters.halts, per_second: meter.halts },
            steal_ms: self.clock.microseconds(counters.steal) / 1_000,
        })
    }
}
