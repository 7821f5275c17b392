//! Two clocks and a network whose ways differ.

use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The cluster's clock: so much ahead, and so many parts per million faster.
struct Truth {
    ahead: i64,
    ppm: i64,
}

impl Truth {
    fn at(&self, local: u64) -> u64 {
        let drift = i64::try_from(local).unwrap() * self.ppm / 1_000_000;
        local.wrapping_add_signed(self.ahead + drift)
    }
}

/// The true time lies within the bound, always; and the bound is a few microseconds of 1,000 ticks each.
#[test]
fn the_error_is_within_its_bound() {
    for seed in 0..40 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let truth =
            Truth { ahead: random.random_range(-1 << 40..1 << 40), ppm: random.random_range(-200..200) };
        let mut estimator = Estimator::new();
        let mut now = 1 << 41;
        for round in 0..200 {
            let queueing = |random: &mut ChaCha8Rng| {
                if random.random_ratio(1, 3) {
                    random.random_range(0..300_000)
                } else {
                    random.random_range(0..500)
                }
            };
            // One way takes longer than the other.
            let (there, back) = (9_000 + queueing(&mut random), 5_000 + queueing(&mut random));
            let held = random.random_range(0..50_000);
            estimator.sample(now, truth.at(now + there), held, now + there + held + back);
            now += 20_000_000;
            let estimate = estimator.estimate().unwrap();
            let (said, is) = (estimate.at(now), truth.at(now));
            let bound = estimate.error_at(now);
            assert!(
                said.abs_diff(is) <= bound,
                "seed {seed}, round {round}: {} > {bound}",
                said.abs_diff(is)
            );
            if round > 100 {
                assert!(bound < 250_000, "seed {seed}: {bound}");
                assert!(said.abs_diff(is) < 20_000, "seed {seed}: {}", said.abs_diff(is));
            }
        }
        let ppm = estimator.estimate().unwrap().rate * 1_000_000 / (1 << 32);
        assert!((ppm - truth.ppm).abs() <= 10, "seed {seed}: {ppm} is {}", truth.ppm);
    }
}

/// Each exchange is held up one way or the other; none has a short round trip.
#[test]
fn exchanges_that_are_slow_one_way_say_it_together() {
    for seed in 0..40 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let truth =
            Truth { ahead: random.random_range(-1 << 40..1 << 40), ppm: random.random_range(-20..20) };
        let mut estimator = Estimator::new();
        let mut now = 1 << 41;
        while !estimator.is_settled() {
            let (slow, fast) =
                (random.random_range(500_000..1_500_000), random.random_range(100_000..110_000));
            let (there, back) = if random.random() { (slow, fast) } else { (fast, slow) };
            estimator.sample(now, truth.at(now + there), 0, now + there + back);
            now += 12_500_000;
        }
        let wrong = estimator.estimate().unwrap().at(now).abs_diff(truth.at(now));
        assert!(wrong < 50_000, "seed {seed}: {wrong}");
    }
}

#[test]
fn the_steered_clock_goes_forward_and_arrives() {
    for seed in 0..40 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut truth = Truth { ahead: 1_000_000_000, ppm: random.random_range(-300..300) };
        let mut estimator = Estimator::new();
        let mut clock = ClusterClock::new();
        let (mut now, mut last) = (1 << 30, 0);
        for round in 0..2000 {
            if round == 1000 {
                // The first member is another one now, whose clock is behind.
                truth.ahead -= 3_000_000;
                estimator = Estimator::new();
            }
            let (there, back) = (random.random_range(5_000..9_000), random.random_range(5_000..9_000));
            estimator.sample(now, truth.at(now + there), 0, now + there + back);
            now += there + back;
            clock.steer(now, &estimator.estimate().unwrap(), 40_000_000);
            for _ in 0..5 {
                now += random.random_range(0..5_000_000);
                let read = clock.read(now);
                assert!(read >= last, "seed {seed}, round {round}: back by {}", last - read);
                last = read;
            }
            if round % 1000 > 500 {
                let wrong = clock.read(now).abs_diff(truth.at(now));
                assert!(wrong < 20_000, "seed {seed}, round {round}: {wrong}");
            }
        }
    }
}

#[test]
fn whatever_is_measured_time_does_not_go_back() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut clock = ClusterClock::new();
    let mut estimator = Estimator::new();
    let (mut now, mut last) = (0u64, None);
    for _ in 0..20_000 {
        estimator.sample(
            random.random::<u64>() >> 20,
            random.random(),
            random.random::<u64>() >> 30,
            random.random::<u64>() >> 20,
        );
        if random.random_ratio(1, 100) {
            estimator = Estimator::new();
        }
        if let Some(estimate) = estimator.estimate() {
            let first = !clock.is_set();
            clock.steer(now, &estimate, random.random_range(0..1 << 30));
            if first {
                last = None;
            }
        }
        now += random.random_range(0..1 << 20);
        let read = clock.read(now);
        if let Some(last) = last {
            assert!(read.wrapping_sub(last) < 1 << 40, "from {last} to {read}");
        }
        last = Some(read);
    }
}
