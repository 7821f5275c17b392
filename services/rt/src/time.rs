//! Time: the processor's time stamp counter, and what its ticks are in seconds.

use core::time::Duration;

/// The rate of the time stamp counter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    hz: u64,
}

impl Clock {
    /// A clock of so many ticks per second; 0 counts as 1, so that no conversion divides by zero.
    #[must_use]
    pub const fn new(hz: u64) -> Self {
        Self { hz: if hz == 0 { 1 } else { hz } }
    }

    /// Ticks per second.
    #[must_use]
    pub const fn hz(self) -> u64 {
        self.hz
    }

    /// The ticks of a duration, rounded down, [`u64::MAX`] at most.
    #[must_use]
    pub fn ticks(self, duration: Duration) -> u64 {
        let whole = duration.as_secs().saturating_mul(self.hz);
        let part = u128::from(duration.subsec_nanos()) * u128::from(self.hz) / 1_000_000_000;
        whole.saturating_add(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// The duration of so many ticks, rounded down to a nanosecond.
    #[must_use]
    pub fn duration(self, ticks: u64) -> Duration {
        let nanoseconds = u128::from(ticks % self.hz) * 1_000_000_000 / u128::from(self.hz);
        Duration::from_secs(ticks / self.hz)
            .saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// The whole microseconds in so many ticks, [`u64::MAX`] at most.
    #[must_use]
    pub fn microseconds(self, ticks: u64) -> u64 {
        u64::try_from(self.duration(ticks).as_micros()).unwrap_or(u64::MAX)
    }

    /// The ticks of so many milliseconds, [`u64::MAX`] at most.
    #[must_use]
    pub fn milliseconds_to_ticks(self, milliseconds: u64) -> u64 {
        self.ticks(Duration::from_millis(milliseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ticks_convert_both_ways() {
        let clock = Clock::new(2_500_000_000);
        assert_eq!(clock.ticks(Duration::from_millis(3)), 7_500_000);
        assert_eq!(clock.duration(7_500_000), Duration::from_millis(3));
        assert_eq!(clock.microseconds(2_500), 1);
        assert_eq!(clock.milliseconds_to_ticks(2), 5_000_000);
        for nanoseconds in [0, 1, 999_999_999, 1_000_000_000, 86_400_000_000_000] {
            let there = clock.ticks(Duration::from_nanos(nanoseconds));
            let back = u64::try_from(clock.duration(there).as_nanos()).unwrap();
            assert!(nanoseconds - back <= 1, "{nanoseconds} became {back}");
        }
    }

    #[test]
    fn extremes_saturate() {
        for hz in [0, 1, 1_000, 1_000_000_000, 6_000_000_000, u64::MAX] {
            let clock = Clock::new(hz);
            assert!(clock.ticks(Duration::MAX) > 0);
            let _ = clock.duration(u64::MAX);
            let _ = clock.microseconds(u64::MAX);
        }
        assert_eq!(Clock::new(4).ticks(Duration::MAX), u64::MAX);
    }
}
