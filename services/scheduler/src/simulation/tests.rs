//! Fairness, numbers of moves and use of cores, over many machines and loads.

use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Placed::{ByScheduler, Never};
use super::{Outcome, Run, Work};

const SIZES: [usize; 9] = [1, 2, 3, 4, 5, 7, 16, 33, 64];
/// Linux that idles: a millisecond now and then.
const IDLE: Work = Work::Phases { run: 1, wait: 250 };

fn always(vcpus: usize) -> impl Iterator<Item = Work> {
    core::iter::repeat_n(Work::Always, vcpus)
}

/// A vCPU that came back to the core it had left less than two seconds before.
fn back_and_forth(outcome: &Outcome) -> bool {
    outcome.moves.iter().any(|moves| {
        moves.windows(3).any(|three| three[0].1 == three[2].1 && three[2].0 - three[0].0 < 2_000_000)
    })
}

#[test]
fn three_on_two_cores_get_two_thirds_each() {
    for seed in 0..20 {
        let outcome = Run { seed, settle: 2, seconds: 5, ..Run::new(always(3), 2) }.outcome(ByScheduler);
        for percent in &outcome.percent {
            assert!((58.0..75.0).contains(percent), "{outcome:?}");
        }
        assert!((0.4..3.0).contains(&outcome.moves_per_second()), "{outcome:?}");
    }
    // Without it, two of them share a core for ever.
    let alone = Run::new(always(3), 2).outcome(Never);
    assert!(alone.fairness() < 0.9, "{alone:?}");
}

#[test]
fn vcpus_that_never_wait_share_all_cores_fairly() {
    for cores in SIZES {
        for vcpus in SIZES {
            let outcome = Run::new(always(vcpus), cores).outcome(ByScheduler);
            let what = std::format!("{vcpus} on {cores}: {outcome:?}");
            assert!(outcome.fairness() > 0.98, "{what}");
            assert!(outcome.work() > 99.0 * vcpus.min(cores) as f64, "{what}");
            let most = if vcpus <= cores || vcpus % cores == 0 { 0.0 } else { 0.3 * vcpus as f64 + 2.0 };
            assert!(outcome.moves_per_second() <= most, "{what}");
        }
    }
}

#[test]
fn an_idle_guest_is_left_alone() {
    for (vcpus, cores) in [(1, 2), (4, 4), (64, 4), (16, 64)] {
        let idle = core::iter::repeat_n(IDLE, vcpus);
        let mut run = Run { seconds: 60, ..Run::new(idle, cores) };
        // Even when all of them are in one place.
        run.homes = [0].repeat(vcpus);
        let outcome = run.outcome(ByScheduler);
        assert_eq!(outcome.moves_per_second(), 0.0, "{vcpus} on {cores}: {outcome:?}");
        // Once a second, and a little more often when one is met at work.
        let most = if vcpus < 10 { 90 } else { 400 };
        assert!(outcome.looks <= most, "{vcpus} on {cores}: {} looks", outcome.looks);
    }
}

#[test]
fn vcpus_in_one_place_spread() {
    for (vcpus, cores) in [(2, 2), (4, 4), (8, 4), (64, 64), (64, 16)] {
        let mut run = Run { settle: 0, seconds: 5, ..Run::new(always(vcpus), cores) };
        run.homes = [0].repeat(vcpus);
        let begin = run.outcome(ByScheduler);
        let ideal = 100.0 * vcpus.min(cores) as f64;
        assert!(begin.work() > 0.5 * ideal, "{vcpus} on {cores}: {begin:?}");
        run.settle = 5;
        let rest = run.outcome(ByScheduler);
        assert!(rest.work() > 0.99 * ideal && rest.fairness() > 0.99, "{vcpus} on {cores}: {rest:?}");
        assert_eq!(rest.moves_per_second(), 0.0, "{vcpus} on {cores}: {rest:?}");
    }
}

#[test]
fn services_count() {
    // A vCPU goes where nothing disturbs it, and stays there.
    let mut run = Run { settle: 0, ..Run::new(always(1), 3) };
    run.services = [400, 200, 20].to_vec();
    let outcome = run.outcome(ByScheduler);
    assert_eq!(outcome.moves[0].iter().map(|&(_, core)| core).collect::<Vec<_>>(), [2], "{outcome:?}");
    // Where all are disturbed, they take turns.
    let mut run = Run { seconds: 20, ..Run::new(always(2), 2) };
    run.services = [500, 0].to_vec();
    let outcome = run.outcome(ByScheduler);
    assert!(outcome.fairness() > 0.99 && outcome.work() > 148.0, "{outcome:?}");
    assert!(outcome.moves_per_second() < 3.0, "{outcome:?}");
    assert!(run.outcome(Never).fairness() < 0.91);
    // A little is not worth a move.
    let mut run = Run { seconds: 30, ..Run::new(always(4), 4) };
    run.services = [40, 0, 0, 0].to_vec();
    let outcome = run.outcome(ByScheduler);
    assert_eq!(outcome.moves_per_second(), 0.0, "{outcome:?}");
}

#[test]
fn random_phases_are_balanced_without_much_moving() {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let (mut placed, mut fixed) = (0.0, 0.0);
    for seed in 0..60 {
        let cores = random.random_range(1..=16);
        let vcpus = random.random_range(1..=32);
        let mut work = || match random.random_range(0..6) {
            0 => Work::Always,
            1 => IDLE,
            2 => Work::Phases { run: 500, wait: 500 },
            _ => Work::Phases { run: random.random_range(1..100), wait: random.random_range(1..100) },
        };
        let works: Vec<Work> = (0..vcpus).map(|_| work()).collect();
        let mut run = Run { seed, seconds: 20, ..Run::new(works, cores) };
        run.services = (0..cores).map(|_| random.random_range(0..100)).collect();
        let outcome = run.outcome(ByScheduler);
        let what = std::format!("seed {seed}: {:?} on {:?}: {outcome:?}", run.works, run.services);
        assert!(outcome.moves_per_second() <= 0.3 * vcpus as f64, "{what}");
        assert!(!back_and_forth(&outcome), "{what}");
        for (work, moves) in run.works.iter().zip(&outcome.moves) {
            assert!(moves.is_empty() || !matches!(work, Work::Phases { run: 1, wait: 250 }), "{what}");
        }
        let still = run.outcome(Never);
        assert!(outcome.work() > 0.93 * still.work(), "{what}\n{still:?}");
        placed += outcome.work();
        fixed += still.work();
    }
    assert!(placed > 1.05 * fixed, "{placed} against {fixed}");
}

#[test]
fn steady_loads_find_their_places_and_stay() {
    for seed in 0..20 {
        // There is room for one of each on each core.
        let works = [[Work::Phases { run: 6, wait: 6 }; 4], [Work::Phases { run: 4, wait: 7 }; 4]].concat();
        let mut run = Run { seed, seconds: 30, ..Run::new(works, 4) };
        run.homes = [0].repeat(8);
        let outcome = run.outcome(ByScheduler);
        assert!(outcome.moves_per_second() <= 0.1, "seed {seed}: {outcome:?}");
        assert!(outcome.percent.iter().all(|&percent| percent > 28.0), "seed {seed}: {outcome:?}");
    }
}

#[test]
fn machines_of_all_sizes_are_fair_beside_services() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    for seed in 0..40 {
        let (vcpus, cores) = (random.random_range(1..=64), random.random_range(1..=64));
        let mut run = Run { seed, settle: 10, ..Run::new(always(vcpus), cores) };
        run.services = (0..cores).map(|_| random.random_range(0..200)).collect();
        let outcome = run.outcome(ByScheduler);
        let what = std::format!("{vcpus} on {:?}: {outcome:?}", run.services);
        assert!(outcome.fairness() > 0.96, "{what}");
        assert!(outcome.moves_per_second() <= 0.3 * vcpus as f64 + 2.0, "{what}");
        let left = run.services.iter().map(|&services| 100.0 - services as f64 / 10.0);
        let ideal = if vcpus < cores { 85.0 * vcpus as f64 } else { left.sum() };
        assert!(outcome.work() > 0.97 * ideal, "{what}");
    }
}
