//! How often and how soon a service is started again.
//!
//! Restarts are counted over periods. A period begins with the first fault after the one before has ended;
//! within it at most `limit` restarts are made, and the next fault leaves the service down. The pause before
//! a restart doubles with each fault of a service that had not run for a whole period, and is the shortest
//! again after one that had.

use ipc::abi::NEVER;
use rt::time::Clock;

/// The shortest pause before a restart, in milliseconds.
pub const FIRST_PAUSE_MS: u64 = 1;
/// The longest.
pub const LONGEST_PAUSE_MS: u64 = 1_000;

/// One service's restarts. Times are in ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Restarts {
    limit: u32,
    period: u64,
    first_pause: u64,
    longest_pause: u64,
    pub(crate) history: History,
}

/// The part that outlives a restart of the supervisor itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct History {
    /// When the present period began.
    pub period_start: Option<u64>,
    /// Restarts in it.
    pub count: u32,
    /// Faults in a row of a service that had not run for a whole period.
    pub streak: u32,
}

/// What becomes of a service that faulted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is started again at this time.
    RestartAt(u64),
    /// It stays down.
    GiveUp,
}

impl Restarts {
    /// No restarts yet: at most `limit` within `period_ms` milliseconds.
    #[must_use]
    pub fn new(limit: u32, period_ms: u32, clock: Clock) -> Self {
        Self {
            limit,
            period: clock.milliseconds_to_ticks(u64::from(period_ms)),
            first_pause: clock.milliseconds_to_ticks(FIRST_PAUSE_MS),
            longest_pause: clock.milliseconds_to_ticks(LONGEST_PAUSE_MS),
            history: History::default(),
        }
    }

    /// Restarts within the period that holds `now`.
    #[must_use]
    pub fn recent(&self, now: u64) -> u32 {
        if self.in_period(now) { self.history.count } else { 0 }
    }

    fn in_period(&self, now: u64) -> bool {
        self.history.period_start.is_some_and(|start| now.saturating_sub(start) < self.period)
    }

    /// Judges a fault at `now` of a service that was started at `started`.
    pub fn fault(&mut self, now: u64, started: u64) -> Verdict {
        let in_period = self.in_period(now);
        let history = &mut self.history;
        if !in_period {
            history.period_start = Some(now);
            history.count = 0;
        }
        if history.count >= self.limit {
            return Verdict::GiveUp;
        }
        history.count += 1;
        if now.saturating_sub(started) >= self.period {
            history.streak = 0;
        }
        let doubled = self.first_pause.saturating_mul(1 << history.streak.min(32));
        history.streak = history.streak.saturating_add(1);
        Verdict::RestartAt(now.saturating_add(doubled.min(self.longest_pause)).min(NEVER - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock::new(1_000);

    fn pause(restarts: &mut Restarts, now: u64, started: u64) -> Option<u64> {
        match restarts.fault(now, started) {
            Verdict::RestartAt(at) => Some(at - now),
            Verdict::GiveUp => None,
        }
    }

    #[test]
    fn the_pause_doubles_up_to_its_longest() {
        let mut restarts = Restarts::new(100, 10_000, CLOCK);
        let pauses: [u64; 12] = core::array::from_fn(|n| pause(&mut restarts, n as u64, 0).unwrap());
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 1_000]);
    }

    #[test]
    fn a_period_without_fault_makes_it_short_again() {
        let mut restarts = Restarts::new(100, 10_000, CLOCK);
        assert_eq!(pause(&mut restarts, 5, 0), Some(1));
        assert_eq!(pause(&mut restarts, 6, 6), Some(2));
        assert_eq!(pause(&mut restarts, 10_007, 8), Some(4));
        assert_eq!(pause(&mut restarts, 20_011, 10_011), Some(1));
    }

    #[test]
    fn the_limit_is_exact_and_counts_over_the_period() {
        let mut restarts = Restarts::new(3, 10_000, CLOCK);
        for now in [0, 1, 9_999] {
            assert!(pause(&mut restarts, now, now).is_some());
        }
        assert_eq!(restarts.recent(9_999), 3);
        let mut late = restarts;
        assert_eq!(pause(&mut restarts, 9_999, 9_999), None);
        assert_eq!(late.recent(10_000), 0);
        assert!(pause(&mut late, 10_000, 10_000).is_some());
        assert_eq!(pause(&mut Restarts::new(0, 10_000, CLOCK), 0, 0), None);
    }

    #[test]
    fn a_period_shorter_than_the_pause_never_fills() {
        let mut restarts = Restarts::new(1, 1, CLOCK);
        let mut now = 0;
        for _ in 0..1_000 {
            let Verdict::RestartAt(at) = restarts.fault(now, now.saturating_sub(1)) else { panic!() };
            assert_eq!(at, now + 1);
            now = at + 1;
        }
    }
}
