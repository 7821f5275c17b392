//! What is counted for each peer and class, and a histogram of round trips.

/// Sub-buckets of an octave of [`Histogram`]: two bits of a value below its highest are kept.
const SUB_BITS: u32 = 2;
const SUBS: usize = 1 << SUB_BITS;
/// Octaves of [`Histogram`].
const OCTAVES: usize = 40;
const BUCKETS: usize = OCTAVES * SUBS;

/// A histogram of times with buckets an eighth to a quarter of their value wide, as HdrHistogram's with two bits.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }

    /// Counts a time in ticks.
    pub fn record(&mut self, ticks: u64) {
        if let Some(count) = self.counts.get_mut(bucket(ticks)) {
            *count = count.saturating_add(1);
            self.total += 1;
        }
    }

    /// Counts what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total = self.total.saturating_add(other.total);
    }

    /// How many times were counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The least bucket's bound, in ticks, that so many of a hundred do not exceed; 0 when nothing was counted.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (number, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return upper_bound(number);
            }
        }
        0
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(ticks: u64) -> usize {
    let small = u64::from(1u32 << SUB_BITS);
    if ticks < small {
        return usize::try_from(ticks).unwrap_or(0);
    }
    let octave = ticks.ilog2() - SUB_BITS;
    let sub = (ticks >> octave) - small;
    let number = u64::from(octave + 1) << SUB_BITS | sub;
    usize::try_from(number).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_bound(number: usize) -> u64 {
    let (octave, sub) = (number >> SUB_BITS, (number % SUBS) as u64);
    match octave.checked_sub(1) {
        None => sub,
        Some(octave) => ((SUBS as u64 + sub + 1) << octave) - 1,
    }
}

/// What passed in all classes between this node and all members that there were.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Frames that were sent again.
    pub retransmissions: u64,
    /// Round trips.
    pub round_trips: Histogram,
}

/// What passed in one class between this node and a peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClassCounters {
    /// Frames transmitted, repetitions included.
    pub sent_frames: u64,
    /// Their bytes of payload.
    pub sent_bytes: u64,
    /// Frames received for the first time.
    pub received_frames: u64,
    /// Their bytes of payload.
    pub received_bytes: u64,
    /// Frames that were sent again because later ones had come.
    pub fast_retransmissions: u64,
    /// Frames that were sent again because a time-out had passed.
    pub timeout_retransmissions: u64,
    /// Acknowledgements sent as frames of their own.
    pub acknowledgements: u64,
    /// Probes sent for credit.
    pub probes: u64,
    /// Received again: dropped.
    pub repeated: u64,
    /// Received beyond the credit that was given: dropped.
    pub beyond_credit: u64,
    /// Received out of order when no page frames could be spared to keep it: dropped.
    pub no_room: u64,
    /// Acknowledges what was never sent, or is a fragment that belongs to none: dropped.
    pub unexpected: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_value_lies_in_a_bucket_that_is_at_most_a_quarter_wide() {
        let values: Vec<u64> =
            (0..5000).chain((12..41).flat_map(|b| [(1 << b) - 1, 1 << b, (1 << b) + 1])).collect();
        for value in values {
            let number = bucket(value);
            let bound = upper_bound(number);
            assert!(bound >= value && bound - value <= value / 4, "{value} in {number} up to {bound}");
            assert!(number == 0 || upper_bound(number - 1) < value, "{value}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile(50), 0);
        for value in 1..=1000 {
            histogram.record(value);
        }
        assert!((500..=625).contains(&histogram.percentile(50)), "{}", histogram.percentile(50));
        assert!((990..=1238).contains(&histogram.percentile(99)), "{}", histogram.percentile(99));
        assert_eq!(histogram.total(), 1000);
    }

    #[test]
    fn histograms_are_added() {
        let (mut all, mut one, mut other) = (Histogram::new(), Histogram::new(), Histogram::new());
        for value in 0..2000 {
            all.record(value);
            if value % 3 == 0 { one.record(value) } else { other.record(value) }
        }
        one.add(&other);
        assert_eq!((one.counts, one.total), (all.counts, all.total));
        let mut full = Histogram { counts: [u32::MAX; BUCKETS], total: u64::MAX };
        full.add(&one);
        assert_eq!((full.counts, full.total), ([u32::MAX; BUCKETS], u64::MAX));
    }
}
