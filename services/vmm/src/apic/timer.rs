//! The APIC's timer: a count that goes down, or a deadline (Intel SDM 3A, 11.5.4).
//!
//! The count's clock is a bus of 1 GHz, divided as the divide configuration register says. Bus ticks are counted from TSC 0
//! on, so that a period is a whole number of them and periods never drift; only at the edges are they made TSC ticks.
//! Times beyond 2^64 are never.

use core::num::NonZeroU64;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::lvt::Entry;
use crate::clock::Timebase;

/// The frequency of the bus. KVM's is the same; the guest measures it.
const BUS_HZ: u32 = 1_000_000_000;
/// A time that does not come.
const NEVER: u64 = u64::MAX;
/// A periodic timer gives no more than one interrupt in so many bus ticks: a guest with a shorter period would have its
/// vCPU do nothing but leave guest mode. Linux has periods of 1 ms and more.
const MIN_PERIOD: u64 = 100_000;

/// What the timer's entry in the local vector table makes it do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TimerMode {
    /// Counts to zero.
    OneShot,
    /// And again from the initial count.
    Periodic,
    /// Waits for a TSC value.
    TscDeadline,
    /// Nothing: a reserved value.
    Reserved,
}

impl TimerMode {
    pub(super) const fn of(entry: Entry) -> Self {
        match entry.timer_mode() {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The timer. Its mode is in the local vector table and comes with each call that needs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct Timer {
    tsc_hz: u64,
    /// When the count is zero, in bus ticks; [`NEVER`] when it does not run.
    zero_at: u64,
    /// In TSC ticks; 0 when there is none.
    deadline: u64,
    /// When [`Timer::pass`] has something to do, in TSC ticks: what the two above say.
    due: u64,
    initial_count: u32,
    /// Divide configuration register.
    divide: u32,
}

impl Timer {
    pub(super) const fn new(timebase: Timebase) -> Self {
        let tsc_hz = timebase.tsc_hz();
        Self { tsc_hz, zero_at: NEVER, deadline: 0, due: NEVER, initial_count: 0, divide: 0 }
    }

    pub(super) const fn timebase(&self) -> Timebase {
        // It is never 0, unless this came as bytes.
        Timebase::new(match NonZeroU64::new(self.tsc_hz) {
            Some(tsc_hz) => tsc_hz,
            None => NonZeroU64::MIN,
        })
    }

    pub(super) const fn due(&self) -> Option<u64> {
        if self.due == NEVER { None } else { Some(self.due) }
    }

    /// It is `now`. Whether it expired since it was last asked.
    pub(super) fn pass(&mut self, mode: TimerMode, now: u64) -> bool {
        if now < self.due || self.due == NEVER {
            return false;
        }
        match mode {
            TimerMode::OneShot => self.run_until(NEVER),
            TimerMode::Periodic => {
                let period = self.period();
                let late = self.bus(now).saturating_sub(self.zero_at);
                let last = self.zero_at.saturating_add(late - late % period);
                self.run_until(last.saturating_add(MIN_PERIOD.next_multiple_of(period)));
            }
            TimerMode::TscDeadline | TimerMode::Reserved => self.set_deadline(mode, 0),
        }
        true
    }

    /// The mode changed. Between counting and not counting, that disarms it; otherwise the count goes on.
    pub(super) fn change_mode(&mut self, from: TimerMode, to: TimerMode, now: u64) {
        if from == to {
            return;
        }
        if !from.counts() || !to.counts() {
            *self = Self { divide: self.divide, ..Self::new(self.timebase()) };
        } else if self.zero_at != NEVER {
            self.run_until(self.bus(now).saturating_add(self.left(from, now)));
        }
    }

    pub(super) const fn initial_count(&self) -> u32 {
        self.initial_count
    }

    /// Starts to count, or stops for 0. Without effect in a mode that does not count.
    pub(super) fn set_initial_count(&mut self, mode: TimerMode, count: u32, now: u64) {
        if !mode.counts() {
            return;
        }
        self.initial_count = count;
        let zero_at = if count == 0 { NEVER } else { self.bus(now).saturating_add(self.period()) };
        self.run_until(zero_at);
    }

    pub(super) fn current_count(&self, mode: TimerMode, now: u64) -> u32 {
        u32::try_from(self.left(mode, now).div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// The count goes on from where it is, at the new pace.
    pub(super) fn set_divide(&mut self, mode: TimerMode, divide: u32, now: u64) {
        let count = self.current_count(mode, now);
        self.divide = divide;
        if self.zero_at != NEVER {
            let left = u64::from(count) * self.divisor();
            self.run_until(self.bus(now).saturating_add(left));
        }
    }

    /// The deadline; 0 once it has passed.
    pub(super) const fn deadline(&self, now: u64) -> u64 {
        if now < self.deadline { self.deadline } else { 0 }
    }

    /// Sets the deadline, or none for 0. Without effect in a mode that has none.
    pub(super) fn set_deadline(&mut self, mode: TimerMode, deadline: u64) {
        if mode == TimerMode::TscDeadline {
            self.deadline = deadline;
        }
        if !mode.counts() {
            self.due = if self.deadline == 0 { NEVER } else { self.deadline };
        }
    }

    pub(super) fn tsc_changed(&mut self, from: u64, to: u64) {
        if self.zero_at != NEVER {
            let left = self.zero_at.saturating_sub(self.bus(from));
            self.run_until(self.bus(to).saturating_add(left));
        }
    }

    /// Bus ticks until the count is zero next; 0 when it does not run. A periodic count of zero is the initial count.
    fn left(&self, mode: TimerMode, now: u64) -> u64 {
        let now = self.bus(now);
        match (self.zero_at, mode) {
            (NEVER, _) => 0,
            // The zero that gives an interrupt may be some periods away, or may be over.
            (zero_at, TimerMode::Periodic) => match zero_at.checked_sub(now) {
                Some(left) if left % self.period() != 0 => left % self.period(),
                Some(_) => self.period(),
                None => self.period() - (now - zero_at) % self.period(),
            },
            (zero_at, _) => zero_at.saturating_sub(now),
        }
    }

    fn run_until(&mut self, zero_at: u64) {
        self.zero_at = zero_at;
        self.due = if zero_at == NEVER { NEVER } else { self.tsc(zero_at) };
    }

    /// Bus ticks from the initial count to zero; at least 1.
    fn period(&self) -> u64 {
        u64::from(self.initial_count).max(1) * self.divisor()
    }

    /// 1 to 128; the register's bits 0, 1 and 3 say 2, 4, .., 128, 1 (figure 11-10).
    const fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// The bus ticks that are over at this TSC.
    fn bus(&self, tsc: u64) -> u64 {
        self.timebase().count(tsc, BUS_HZ)
    }

    /// The first TSC at which so many bus ticks are over.
    fn tsc(&self, bus: u64) -> u64 {
        self.timebase().ticks_at(bus, BUS_HZ)
    }
}
