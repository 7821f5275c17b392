//! Which core each vCPU has: the policy, without hardware and without time of its own.
//!
//! The kernel shares one core fairly, by turns, among the vCPUs whose home it is. Which home each has is decided here,
//! from counters, at a *look* every [`BUSY_MS`] while any vCPU wants a core. At most [`MOST_MOVES`] vCPUs move at a look.
//!
//! **Estimates.** A vCPU's *demand* is the part of the time that it would run on a core of its own: how long it ran, out of
//! the time in which it did not have to wait for its core. A core's load is the demand of the vCPUs that it is the home
//! of, and what services used of it beside them. So load follows a vCPU when that moves, as in Linux's per-entity load
//! tracking, and does not have to settle before the next decision.
//!
//! **Balance.** If the move of one vCPU to the least loaded core takes [`MARGIN`] or more off the larger of the two cores'
//! loads, it is made; the largest gain first. The margin is what `imbalance_pct` is in Linux. As each move makes the sum
//! of the squared loads smaller by at least twice the demand times the margin, there is no endless row of them while
//! demands stay as they are; in particular none goes back and forth.
//!
//! **Rotation.** Three vCPUs that never wait are as balanced on two cores as they can be, and two of them have half a core.
//! So the whole capacity is shared max-min fairly: nobody gets more than it wants, and all who want more than their part get
//! the same. These have a *lag*: the time that each should have had less the time that it had. When those on a more
//! loaded core lag behind those on a less loaded one by [`ROTATE_AT`], the imbalance is handed on: one vCPU moves
//! over, or two trade places. Lags then run the other way, so the rate of moves is in proportion to the unfairness,
//! and as lags fade ([`LAG_FADES`]), an unfairness of less than a twentieth of a core never causes any. Moving threads
//! about so that all make the same progress is the idea of "Load balancing on speed" (Hofmeyr, Iancu, Blagojevic, `PPoPP`
//! 2010) and Juggle (Hofmeyr and others, HPDC 2011); the lag is that of proportional-share scheduling (Stoica and
//! others, RTSS 1996).
//!
//! A vCPU that moved rests for [`REST`]. One that wants next to nothing ([`ACTIVE`]) is never moved and counts for nothing.
//! Cores count as alike: which of them share caches or an execution unit is not known here.

mod choice;
mod estimate;

use heapless::Vec;
use ipc::abi::MAX_CORES;
use ipc::vcpu::MAX_VCPUS;
use rt::time::Clock;

use choice::{Candidate, View};
use estimate::{CoreEstimate, Elapsed, VcpuEstimate, fair_level};

/// Milliseconds between two looks while any vCPU wants a core.
pub const BUSY_MS: u64 = 100;
/// Milliseconds between two looks when none has for a while: each look that finds none doubles the time, up to this.
pub const QUIET_MS: u64 = 1_000;
/// The most moves of one look.
pub const MOST_MOVES: usize = 2;

/// A share of a core's time, in thousandths.
type Permille = i64;
/// A time.
type Microseconds = i64;

/// A vCPU that wants less than this is idle.
const ACTIVE: Permille = 50;
/// What a move must gain.
const MARGIN: Permille = 150;
/// By how much a rotation may load a core more than the most loaded of the two was.
const SLACK: Permille = 100;
/// How far vCPUs lag behind others before places are changed.
const ROTATE_AT: Microseconds = 300_000;
/// How long a vCPU stays where it was moved to.
const REST: Microseconds = 1_000_000;
/// How long a change of demand takes to count.
const DEMAND_SETTLES: Microseconds = 1_000_000;
/// How long a lag takes to fade.
const LAG_FADES: Microseconds = 6_400_000;

const _: () = assert!(SLACK < MARGIN, "balance must not undo a rotation");

/// The counters of one vCPU. Times are in ticks since the kernel's start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VcpuCounters {
    /// How long it ran.
    pub run: u64,
    /// How long it was ready and another ran; counted when that is over.
    pub steal: u64,
    /// Halts, modulo 2^32.
    pub halts: u32,
    /// Which core it has.
    pub home: usize,
    /// What it does.
    pub activity: Activity,
}

/// What a vCPU does, as far as it matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activity {
    /// It runs, or waits for its core.
    Ready,
    /// It waits for something else.
    Waits,
    /// It is stopped.
    Stopped,
}

/// A vCPU's new home.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Move {
    /// Its number.
    pub vcpu: usize,
    /// The core's number.
    pub core: usize,
}

/// The moves of one look.
pub type Moves = Vec<Move, MOST_MOVES>;

/// What is known of the vCPUs and cores.
#[derive(Debug)]
pub struct Placement {
    clock: Clock,
    vcpus: Vec<VcpuEstimate, MAX_VCPUS>,
    cores: Vec<CoreEstimate, MAX_CORES>,
    last: u64,
    period_ms: u64,
}

impl Placement {
    /// Nothing is known yet: the first look finds no moves.
    #[must_use]
    pub const fn new(clock: Clock) -> Self {
        Self { clock, vcpus: Vec::new(), cores: Vec::new(), last: 0, period_ms: QUIET_MS }
    }

    /// In how many milliseconds the next look is due: [`BUSY_MS`] to [`QUIET_MS`].
    #[must_use]
    pub const fn period_ms(&self) -> u64 {
        self.period_ms
    }

    /// Takes a look at every vCPU and at every core's busy time, in ticks, and says which vCPUs are to move.
    pub fn look(
        &mut self,
        now: u64,
        vcpus: impl Iterator<Item = VcpuCounters>,
        busy: impl Iterator<Item = u64>,
    ) -> Moves {
        let elapsed = Elapsed::between(self.last, now, self.clock);
        self.last = now;
        self.observe(elapsed, vcpus, busy);
        let any_wants = self.vcpus.iter().any(|vcpu| vcpu.demand() >= ACTIVE || vcpu.is_ready());
        self.period_ms = if any_wants { BUSY_MS } else { QUIET_MS.min(self.period_ms * 2) };
        let mut view = self.view();
        let moves = view.choose();
        for chosen in &moves {
            if let Some(vcpu) = self.vcpus.get_mut(chosen.vcpu) {
                vcpu.rest();
            }
        }
        moves
    }

    fn observe(
        &mut self,
        elapsed: Elapsed,
        vcpus: impl Iterator<Item = VcpuCounters>,
        busy: impl Iterator<Item = u64>,
    ) {
        for (index, busy) in busy.enumerate().take(MAX_CORES) {
            match self.cores.get_mut(index) {
                Some(core) => core.was_busy(busy, self.clock),
                // There is room for MAX_CORES.
                None => drop(self.cores.push(CoreEstimate::new(busy))),
            }
        }
        for (index, counters) in vcpus.enumerate().take(MAX_VCPUS) {
            let Some(vcpu) = self.vcpus.get_mut(index) else {
                // There is room for MAX_VCPUS.
                let _ = self.vcpus.push(VcpuEstimate::new(counters));
                continue;
            };
            let home = counters.home;
            vcpu.observe(counters, elapsed, self.clock);
            // Only looks change homes, so all of this was at the home that it has.
            if let Some(core) = self.cores.get_mut(home) {
                core.ran_vcpu(vcpu.ran());
            }
        }
        for core in &mut self.cores {
            core.observe(elapsed);
        }
        let capacity = self.cores.iter().map(CoreEstimate::left).sum();
        let level = fair_level(self.vcpus.iter().map(VcpuEstimate::demand), capacity);
        for vcpu in &mut self.vcpus {
            vcpu.charge(level, elapsed);
        }
    }

    fn view(&self) -> View {
        let mut view = View::new(self.cores.iter().map(CoreEstimate::services));
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let (demand, lag, mobility) = (vcpu.demand(), vcpu.lag(), vcpu.mobility());
            view.add(Candidate { number, home: vcpu.home(), demand, lag, mobility });
        }
        view
    }
}

#[cfg(test)]
mod tests;
