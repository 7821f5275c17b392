//! What vCPUs and cores did, made of counters.

use heapless::Vec;
use ipc::vcpu::MAX_VCPUS;
use rt::time::Clock;

use super::choice::Mobility;
use super::{Activity, DEMAND_SETTLES, LAG_FADES, Microseconds, Permille, REST, VcpuCounters};

/// The whole of a core.
const WHOLE: Permille = 1_000;
/// The longest time that counts between two looks.
const LONGEST: Microseconds = 10_000_000;
/// Steal is counted when it is over, for a wait that was longer than the time between two looks too: up to so much of it.
const LATE_STEAL: Permille = 64 * WHOLE;

/// The time between two looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elapsed(Microseconds);

impl Elapsed {
    pub(super) fn between(last: u64, now: u64, clock: Clock) -> Self {
        Self(since(last, now, clock).max(1))
    }

    fn permille(self, time: Microseconds) -> Permille {
        time * WHOLE / self.0
    }

    /// The exponentially weighted mean, when `new` was so for this time.
    fn blend(self, old: i64, new: i64, settles: Microseconds) -> i64 {
        old + (new - old) * self.0.min(settles) / settles
    }
}

/// What a counter of ticks grew by; bounded, and 0 when it did not grow.
fn since(last: u64, now: u64, clock: Clock) -> Microseconds {
    i64::try_from(clock.microseconds(now.saturating_sub(last))).unwrap_or(LONGEST).min(LONGEST)
}

/// What is known of a vCPU.
#[derive(Debug)]
pub(super) struct VcpuEstimate {
    last: VcpuCounters,
    /// How long it ran between the last two looks, and in what part of that time it ran or was ready.
    ran: Microseconds,
    wanted: Permille,
    /// In what part of the time it runs, and is ready and does not.
    runs: Permille,
    waits: Permille,
    lag: Option<Microseconds>,
    rests: Microseconds,
}

impl VcpuEstimate {
    pub(super) const fn new(counters: VcpuCounters) -> Self {
        Self { last: counters, ran: 0, wanted: 0, runs: 0, waits: 0, lag: None, rests: 0 }
    }

    pub(super) fn observe(&mut self, counters: VcpuCounters, elapsed: Elapsed, clock: Clock) {
        self.ran = since(self.last.run, counters.run, clock);
        let stolen = since(self.last.steal, counters.steal, clock);
        let always_ready = self.last.activity == Activity::Ready
            && counters.activity == Activity::Ready
            && self.last.halts == counters.halts;
        self.last = counters;
        self.rests = (self.rests - elapsed.0).max(0);
        if counters.activity == Activity::Stopped {
            (self.wanted, self.runs, self.waits) = (0, 0, 0);
            return;
        }
        let runs = elapsed.permille(self.ran).min(WHOLE);
        let waits = if always_ready {
            // The counter is behind when the wait is not over.
            WHOLE - runs
        } else {
            elapsed.permille(stolen).min(LATE_STEAL)
        };
        self.wanted = (runs + waits).min(WHOLE);
        self.runs = elapsed.blend(self.runs, runs, DEMAND_SETTLES);
        self.waits = elapsed.blend(self.waits, waits, DEMAND_SETTLES);
    }

    /// Charges the difference between what it should have had, all getting `level` or what they want, and what it had. Who
    /// wants no more than that is owed nothing, and has nothing to give back.
    pub(super) fn charge(&mut self, level: Permille, elapsed: Elapsed) {
        self.lag = (self.demand() > level).then(|| {
            let due = self.wanted.min(level) * elapsed.0 / WHOLE;
            let lag = elapsed.blend(self.lag.unwrap_or(0), 0, LAG_FADES) + due - self.ran;
            lag.clamp(-LONGEST, LONGEST)
        });
    }

    pub(super) fn rest(&mut self) {
        self.rests = REST;
    }

    /// Whether it ran or waited for its core at the last look.
    pub(super) fn is_ready(&self) -> bool {
        self.last.activity == Activity::Ready
    }

    pub(super) const fn home(&self) -> usize {
        self.last.home
    }

    /// How long it ran between the last two looks.
    pub(super) const fn ran(&self) -> Microseconds {
        self.ran
    }

    /// What part of the time it would run on a core of its own: that of the time in which it did not have to wait.
    pub(super) fn demand(&self) -> Permille {
        self.runs * WHOLE / (WHOLE - self.waits).max(self.runs).max(1)
    }

    /// How far it is behind what it should have had; `None` when it has what it wants.
    pub(super) const fn lag(&self) -> Option<Microseconds> {
        self.lag
    }

    pub(super) const fn mobility(&self) -> Mobility {
        if self.rests > 0 { Mobility::Rests } else { Mobility::Free }
    }
}

/// What is known of a core.
#[derive(Debug)]
pub(super) struct CoreEstimate {
    busy: u64,
    /// How long it was busy since the last look, without its vCPUs.
    beside: Microseconds,
    /// May be below 0: run time that was charged late.
    services: Permille,
}

impl CoreEstimate {
    pub(super) const fn new(busy: u64) -> Self {
        Self { busy, beside: 0, services: 0 }
    }

    /// Takes in its busy time.
    pub(super) fn was_busy(&mut self, busy: u64, clock: Clock) {
        self.beside = since(self.busy, busy, clock);
        self.busy = busy;
    }

    /// Takes in what part of it was a vCPU's.
    pub(super) fn ran_vcpu(&mut self, ran: Microseconds) {
        self.beside -= ran;
    }

    /// Ends the look.
    pub(super) fn observe(&mut self, elapsed: Elapsed) {
        let beside = core::mem::take(&mut self.beside);
        self.services = elapsed.blend(self.services, elapsed.permille(beside), DEMAND_SETTLES);
    }

    /// What services use of it.
    pub(super) fn services(&self) -> Permille {
        self.services.clamp(0, WHOLE)
    }

    /// What they leave of it.
    pub(super) fn left(&self) -> Permille {
        WHOLE - self.services()
    }
}

/// How much each may have at most, so that together they have the capacity or all that they want.
pub(super) fn fair_level(wanted: impl Iterator<Item = Permille>, capacity: Permille) -> Permille {
    let mut wanted: Vec<Permille, MAX_VCPUS> = wanted.take(MAX_VCPUS).collect();
    wanted.sort_unstable();
    let (mut left, mut sharers) = (capacity, i64::try_from(wanted.len()).unwrap_or(i64::MAX));
    for wanted in wanted {
        if wanted * sharers > left {
            return left / sharers.max(1);
        }
        left -= wanted;
        sharers -= 1;
    }
    WHOLE
}
