//! How soon a vCPU of a guest that spans nodes gets the next interrupt of its timer.
//!
//! Linux's tick reads and writes what all processors share: the time of day, jiffies, run queues. Between nodes each of
//! these pages has to be fetched, so that a tick can take longer than the time to the next; then a vCPU would do nothing
//! but ticks, and keep the others from their pages meanwhile. So what follows a tick that took long is given a multiple of
//! that time. A tick that comes late does no harm: Linux counts the periods that have passed.
//!
//! When a tick is over is not seen. It ends with setting the timer anew, or soon after.

/// What follows a tick has so many times as long.
const SHARE: u64 = 8;
/// The least that a vCPU gets of ticks, when it wants them. A tick of Linux that finds that other processors have ticked
/// meanwhile needs some forty pages of another node; where a page takes a millisecond, as between emulated nodes, twenty ticks
/// a second would leave the guest a fifth of its time.
const LEAST_PER_SECOND: u64 = 1;

/// The pace of a vCPU's timer. Times are in the guest's TSC.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When the interrupt came that is being served.
    came: Option<u64>,
    /// The next one comes no sooner.
    not_before: u64,
}

impl Pace {
    /// When an interrupt comes that is due then.
    pub const fn defer(&self, due: u64) -> u64 {
        if due > self.not_before { due } else { self.not_before }
    }

    /// The interrupt comes.
    pub const fn comes(&mut self, now: u64) {
        self.came = Some(now);
    }

    /// The timer is set anew, `tsc_hz` ticks being a second.
    pub fn is_set(&mut self, now: u64, tsc_hz: u64) {
        let Some(came) = self.came.take() else { return };
        let took = now.saturating_sub(came);
        let rest = took.saturating_mul(SHARE).min(tsc_hz / LEAST_PER_SECOND);
        self.not_before = now.saturating_add(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000_000;

    #[test]
    fn what_follows_a_tick_has_a_multiple_of_its_time() {
        let mut pace = Pace::default();
        assert_eq!(pace.defer(5), 5);
        pace.comes(1_000);
        assert_eq!(pace.defer(1_001), 1_001, "it is served");
        pace.is_set(1_500, HZ);
        assert_eq!((pace.defer(1_600), pace.defer(5_500), pace.defer(5_501)), (5_500, 5_500, 5_501));
        // Set again without an interrupt in between: nothing was served.
        pace.is_set(9_000, HZ);
        assert_eq!(pace.defer(9_001), 9_001);
    }

    #[test]
    fn a_tick_comes_in_any_case() {
        let mut pace = Pace::default();
        pace.comes(0);
        pace.is_set(HZ, HZ);
        assert_eq!(pace.defer(0), HZ + HZ / LEAST_PER_SECOND);
        pace.comes(u64::MAX);
        pace.is_set(3, u64::MAX);
        assert_eq!(pace.defer(0), 3);
    }
}
