//! How long to wait for an acknowledgement.
//!
//! Jacobson's and Karels's estimator as RFC 6298 states it, in integers scaled as in "Congestion Avoidance and
//! Control" (SIGCOMM 1988), appendix A. Karn's rule, that what was transmitted twice gives no sample, is the caller's.

/// An estimator of the round-trip time; all times in ticks.
#[derive(Clone, Copy, Debug)]
pub struct RttEstimator {
    /// Eight times the smoothed round-trip time; 0 before the first sample.
    srtt_8: u64,
    /// Four times its variation.
    rttvar_4: u64,
    limits: RtoLimits,
}

/// The range of a retransmission time-out, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct RtoLimits {
    /// Before the first sample.
    pub initial: u64,
    /// The least. It must exceed the longest delay of an acknowledgement.
    pub min: u64,
    /// The most, back-off included.
    pub max: u64,
}

impl RttEstimator {
    /// One without samples.
    #[must_use]
    pub const fn new(limits: RtoLimits) -> Self {
        Self { srtt_8: 0, rttvar_4: 0, limits }
    }

    /// Takes a measured round trip.
    pub fn sample(&mut self, rtt: u64) {
        // A sample beyond the longest time-out says no more than that; and the sums below stay in range.
        let rtt = rtt.clamp(1, self.limits.max);
        if self.srtt_8 == 0 {
            // RFC 6298, 2.2: SRTT = R, RTTVAR = R/2.
            self.srtt_8 = rtt * 8;
            self.rttvar_4 = rtt * 2;
        } else {
            // 2.3: RTTVAR = 3/4 RTTVAR + 1/4 |SRTT - R|, then SRTT = 7/8 SRTT + 1/8 R.
            self.rttvar_4 = self.rttvar_4 - self.rttvar_4 / 4 + (self.srtt_8 / 8).abs_diff(rtt);
            self.srtt_8 = self.srtt_8 - self.srtt_8 / 8 + rtt;
        }
    }

    /// The smoothed round-trip time, once there is a sample.
    #[must_use]
    pub const fn srtt(&self) -> Option<u64> {
        if self.srtt_8 == 0 { None } else { Some(self.srtt_8 / 8) }
    }

    /// The retransmission time-out after so many time-outs in a row (RFC 6298, 2.3 and 5.5).
    #[must_use]
    pub fn rto(&self, timeouts: u32) -> u64 {
        let base = match self.srtt() {
            None => self.limits.initial,
            Some(srtt) => srtt.saturating_add(self.rttvar_4),
        };
        let base = base.max(self.limits.min);
        base.saturating_mul(1 << timeouts.min(16)).min(self.limits.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RtoLimits = RtoLimits { initial: 1000, min: 50, max: 100_000 };

    #[test]
    fn the_first_sample_is_taken_whole_and_later_ones_by_an_eighth() {
        let mut rtt = RttEstimator::new(LIMITS);
        assert_eq!((rtt.srtt(), rtt.rto(0)), (None, 1000));
        rtt.sample(800);
        // RFC 6298: RTO = SRTT + 4 RTTVAR = R + 4 R/2.
        assert_eq!((rtt.srtt(), rtt.rto(0)), (Some(800), 800 + 1600));
        rtt.sample(1600);
        // RTTVAR = 3/4 400 + 1/4 800 = 500; SRTT = 7/8 800 + 1/8 1600 = 900.
        assert_eq!((rtt.srtt(), rtt.rto(0)), (Some(900), 900 + 2000));
    }

    #[test]
    fn it_follows_a_steady_link_and_backs_off_within_its_range() {
        let mut rtt = RttEstimator::new(LIMITS);
        for _ in 0..200 {
            rtt.sample(400);
        }
        assert_eq!(rtt.srtt(), Some(400));
        assert!((400..420).contains(&rtt.rto(0)), "{}", rtt.rto(0));
        assert_eq!(rtt.rto(3), rtt.rto(0) * 8);
        assert_eq!(rtt.rto(u32::MAX), LIMITS.max);
        for _ in 0..200 {
            rtt.sample(1);
        }
        assert_eq!(rtt.rto(0), LIMITS.min);
        rtt.sample(u64::MAX);
        assert!(rtt.rto(u32::MAX) <= LIMITS.max);
    }
}
