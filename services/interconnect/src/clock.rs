//! One clock for the cluster: every node follows the first member's.
//!
//! A node asks the first member what time it is. No question comes before it was asked, and no answer before it was given:
//! so each exchange says how far ahead the cluster's clock is at least and at most, and several together say it better, for
//! a short way there and a short way back need not be of one exchange (Marzullo's intersection, as in RFC 5905, 11.2.1). A
//! line (least squares) through what every few exchanges say gives the rate, and the line is moved to the middle of
//! what is possible by all of them: no message that went as fast as the fastest of these arrives before it was sent. The
//! node's own reading of the cluster's clock is steered towards
//! the line and never set back: it runs a little faster or slower, but always forward.

use heapless::Vec;

/// Exchanges that are kept as one sample.
const GROUP: u8 = 4;
/// Kept samples that the line goes through.
const SAMPLES: usize = 16;
/// How far two clocks of the same nominal rate are taken to differ until it is measured: parts per million.
const MAX_DRIFT_PPM: u64 = 500;
/// A rate is told from noise when it moves the line by more than half of what is uncertain: parts per million.
const LEAST_DRIFT_PPM: f64 = 50.0;
/// How far the steered clock's rate may be from its own measured rate, in 2^-32: 1/64.
const MAX_SLEW: i64 = 1 << 26;

/// The most by which it is steered from the local clock's rate, in 2^-32: half.
const MAX_RATE: i64 = 1 << 31;

/// What one answered question says, or some together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sample {
    /// The local time half way between the last question and its answer.
    local: u64,
    /// How far the cluster's clock was ahead of the local one then, at least.
    low: i64,
    /// The same, at most.
    high: i64,
}

impl Sample {
    const fn width(&self) -> u64 {
        self.high.abs_diff(self.low)
    }

    const fn middle(&self) -> i64 {
        self.low.wrapping_add_unsigned(self.width() / 2)
    }

    /// What both say, at the time of `later`; that alone when they contradict each other, as they do when a clock was set.
    fn and(self, later: Self) -> Self {
        let passed = later.local.saturating_sub(self.local);
        let drift = i64::try_from(passed / 1_000_000 * MAX_DRIFT_PPM).unwrap_or(i64::MAX).saturating_add(1);
        let low = later.low.max(self.low.saturating_sub(drift));
        let high = later.high.min(self.high.saturating_add(drift));
        if low > high { later } else { Self { low, high, ..later } }
    }
}

/// The cluster's clock as seen from a local one: a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The local time at which it was measured last.
    pub local: u64,
    /// How far the cluster's clock was ahead then, in ticks.
    pub offset: i64,
    /// How much it gains on the local clock: ticks per 2^32.
    pub rate: i64,
    /// How far `offset` may be wrong, in ticks.
    pub error: u64,
    /// The local time over which the line was measured.
    span: u64,
}

impl Estimate {
    /// The cluster's time at a local time.
    #[must_use]
    pub fn at(&self, local: u64) -> u64 {
        let passed = local.wrapping_sub(self.local).cast_signed();
        local.wrapping_add_signed(self.offset).wrapping_add_signed(scaled(passed, self.rate))
    }

    /// How far [`Estimate::at`] may be wrong, in ticks.
    #[must_use]
    pub fn error_at(&self, local: u64) -> u64 {
        let passed = local.abs_diff(self.local);
        // Both ends of the line may be wrong, one each way; further on that grows. Clocks wander, too.
        let grown = match self.span {
            0 => passed.saturating_mul(MAX_DRIFT_PPM) / 1_000_000,
            span => (u128::from(self.error) * 2 * u128::from(passed) / u128::from(span))
                .try_into()
                .unwrap_or(u64::MAX),
        };
        self.error.saturating_add(grown).saturating_add(passed >> 20)
    }
}

/// `ticks * rate / 2^32`.
fn scaled(ticks: i64, rate: i64) -> i64 {
    i64::try_from((i128::from(ticks) * i128::from(rate)) >> 32).unwrap_or(0)
}

/// Measures the cluster's clock.
#[derive(Debug, Default)]
pub struct Estimator {
    group: Option<Sample>,
    in_group: u8,
    samples: Vec<Sample, SAMPLES>,
}

impl Estimator {
    /// One without samples.
    #[must_use]
    pub const fn new() -> Self {
        Self { group: None, in_group: 0, samples: Vec::new() }
    }

    /// Takes an answer: asked and answered at these local times; the question came at this cluster time, and was
    /// `held` for so many ticks.
    pub fn sample(&mut self, asked: u64, cluster: u64, held: u64, answered: u64) {
        let Some(passed) = answered.checked_sub(asked) else { return };
        if passed < held {
            return;
        }
        let sample = Sample {
            local: asked + passed / 2,
            low: cluster.wrapping_add(held).wrapping_sub(answered).cast_signed(),
            high: cluster.wrapping_sub(asked).cast_signed(),
        };
        if sample.low > sample.high {
            return;
        }
        self.group = Some(self.group.map_or(sample, |group| group.and(sample)));
        self.in_group += 1;
        // The first is used at once: a coarse answer is better than none.
        if self.in_group >= GROUP || self.samples.is_empty() {
            self.in_group = 0;
            if self.samples.is_full() {
                self.samples.remove(0);
            }
            if let Some(group) = self.group.take() {
                let _ = self.samples.push(group);
            }
        }
    }

    /// Whether there are as many samples as are kept.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.samples.is_full()
    }

    /// The line through the good samples, once there is one.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "differences of times, far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates")]
    pub fn estimate(&self) -> Option<Estimate> {
        let shortest = self.samples.iter().map(Sample::width).min()?;
        let is_good = |sample: &&Sample| sample.width() <= shortest.saturating_mul(2).saturating_add(1);
        let good = || self.samples.iter().filter(is_good);
        let last = good().next_back()?;
        let span = last.local.wrapping_sub(good().next()?.local);
        let x = |sample: &Sample| -(last.local.wrapping_sub(sample.local) as f64);
        let relative = |offset: i64| offset.wrapping_sub(last.middle()) as f64;
        let y = |sample: &Sample| relative(sample.middle());
        let count = good().count() as f64;
        let mean = |value: &dyn Fn(&Sample) -> f64| good().map(value).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(&x), mean(&y));
        let variance: f64 = good().map(|sample| (x(sample) - mean_x) * (x(sample) - mean_x)).sum();
        let covariance: f64 = good().map(|sample| (x(sample) - mean_x) * (y(sample) - mean_y)).sum();
        let is_long = span as f64 * LEAST_DRIFT_PPM / 1e6 > shortest as f64 / 2.0;
        let slope = if is_long && variance > 0.0 { covariance / variance } else { 0.0 };
        // What each sample says of the last one's time, if the rate is right.
        let low = good().map(|sample| relative(sample.low) - slope * x(sample)).fold(f64::MIN, f64::max);
        let high = good().map(|sample| relative(sample.high) - slope * x(sample)).fold(f64::MAX, f64::min);
        let at_last = f64::midpoint(low, high);
        // Whatever the rate is, the last one is right.
        let error = (at_last - relative(last.low)).max(relative(last.high) - at_last);
        Some(Estimate {
            local: last.local,
            offset: last.middle().wrapping_add(at_last as i64),
            rate: (slope * 4_294_967_296.0) as i64,
            error: (error.max(0.0) as u64).saturating_add(1),
            span: if is_long { span } else { 0 },
        })
    }
}

/// This node's reading of the cluster's clock.
#[derive(Clone, Copy, Debug)]
pub struct ClusterClock {
    local: u64,
    cluster: u64,
    /// How much it gains on the local clock: ticks per 2^32.
    rate: i64,
    set: bool,
}

impl ClusterClock {
    /// The local clock itself.
    #[must_use]
    pub const fn new() -> Self {
        Self { local: 0, cluster: 0, rate: 0, set: false }
    }

    /// The cluster's time at a local time. Later local times never give earlier ones.
    #[must_use]
    pub fn read(&self, local: u64) -> u64 {
        let passed = local.saturating_sub(self.local);
        let gained = scaled(passed.cast_signed(), self.rate);
        self.cluster.wrapping_add(passed).wrapping_add_signed(gained)
    }

    /// Whether it was ever set by an estimate, or is the first member's.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.set
    }

    /// Makes it the clock that others follow: it goes on as it goes.
    pub fn lead(&mut self) {
        self.set = true;
    }

    /// Lets it meet the estimate within `horizon` ticks from the local time `now`. The first time it is set.
    pub fn steer(&mut self, now: u64, estimate: &Estimate, horizon: u64) {
        let ahead = now.saturating_add(horizon.max(1));
        let target = estimate.at(ahead);
        if !self.set {
            let rate = estimate.rate.clamp(-MAX_RATE, MAX_RATE);
            *self = Self { local: now, cluster: estimate.at(now), rate, set: true };
            return;
        }
        let cluster = self.read(now);
        // What is to be gained on the local clock until then.
        let gain = target.wrapping_sub(cluster).cast_signed().saturating_sub(horizon.max(1).cast_signed());
        let wanted = i64::try_from((i128::from(gain) << 32) / i128::from(horizon.max(1))).unwrap_or(0);
        let rate =
            wanted.clamp(estimate.rate.saturating_sub(MAX_SLEW), estimate.rate.saturating_add(MAX_SLEW));
        // Never back, whatever is measured.
        *self = Self { local: now, cluster, rate: rate.clamp(-MAX_RATE, MAX_RATE), set: true };
    }
}

impl Default for ClusterClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
