//! The policy's parts, by hand and with nonsense.

use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::choice::Mobility;
use super::*;

fn candidate(number: usize, home: usize, demand: Permille, lag: Microseconds) -> Candidate {
    Candidate { number, home, demand, lag: Some(lag), mobility: Mobility::Free }
}

fn choose(services: &[Permille], vcpus: &[Candidate]) -> Vec<(usize, usize)> {
    let mut view = View::new(services.iter().copied());
    vcpus.iter().for_each(|&vcpu| view.add(vcpu));
    view.choose().iter().map(|chosen| (chosen.vcpu, chosen.core)).collect()
}

#[test]
fn a_level_is_what_each_may_have_at_most() {
    let level = |wanted: &[Permille], capacity| fair_level(wanted.iter().copied(), capacity);
    assert_eq!(level(&[1_000, 1_000, 1_000], 2_000), 666);
    assert_eq!(level(&[1_000, 500, 1_000], 2_000), 750);
    assert_eq!(level(&[100, 1_000, 200, 1_000], 1_000), 350);
    assert_eq!(level(&[600, 600, 600], 2_000), 1_000);
    assert_eq!(level(&[], 0), 1_000);
    assert_eq!(level(&[1_000], 0), 0);
    assert_eq!(level(&[0, 0], 0), 1_000);
}

#[test]
fn a_vcpu_leaves_a_core_that_is_shared_for_one_that_is_free() {
    let pair = [candidate(0, 0, 1_000, 0), candidate(1, 0, 1_000, 0)];
    assert_eq!(choose(&[0, 0], &pair), [(1, 1)]);
    // The least loaded of several, services counted; both when there are two of them to move.
    assert_eq!(choose(&[0, 300, 100, 200], &pair), [(1, 2)]);
    let three = [pair[0], pair[1], candidate(2, 0, 1_000, 0)];
    assert_eq!(choose(&[0, 0, 0], &three), [(2, 1), (1, 2)]);
    // The one that is owed most.
    let owed = [candidate(0, 0, 1_000, 5), candidate(1, 0, 1_000, 4)];
    assert_eq!(choose(&[0, 0], &owed), [(0, 1)]);
    // Away from services.
    assert_eq!(choose(&[MARGIN, 0], &pair[..1]), [(0, 1)]);
}

#[test]
fn a_vcpu_stays_where_a_move_gains_little() {
    let one = [candidate(0, 0, 1_000, 0)];
    assert_eq!(choose(&[MARGIN - 1, 0], &one), []);
    assert_eq!(choose(&[0], &one), []);
    let apart = [candidate(0, 0, 1_000, 0), candidate(1, 1, 1_000, 0), candidate(2, 1, 1_000, 0)];
    assert_eq!(choose(&[0, 0], &apart), []);
    // What rests, and what wants nothing.
    let resting = candidate(0, 0, 1_000, 0);
    let resting = [Candidate { mobility: Mobility::Rests, ..resting }; 2];
    assert_eq!(choose(&[0, 0], &resting), []);
    let idle = [0, 1, 2, 3].map(|number| candidate(number, 0, ACTIVE - 1, 1_000_000));
    assert_eq!(choose(&[0, 0], &idle), []);
    assert_eq!(choose(&[], &one), []);
    assert_eq!(choose(&[0, 0], &[candidate(0, 7, 1_000, 0)]), []);
}

#[test]
fn an_imbalance_is_handed_on_when_it_has_cost_enough() {
    let lags = |first, second, third| {
        [candidate(0, 0, 1_000, first), candidate(1, 0, 1_000, second), candidate(2, 1, 1_000, third)]
    };
    assert_eq!(choose(&[0, 0], &lags(ROTATE_AT / 2, 0, -ROTATE_AT / 2)), [(1, 1)]);
    assert_eq!(choose(&[0, 0], &lags(ROTATE_AT / 2 - 1, 0, -ROTATE_AT / 2)), []);
    assert_eq!(choose(&[0, 0], &lags(-ROTATE_AT, -ROTATE_AT, ROTATE_AT)), []);
    // Equal cores, unequal history: a move would make nothing better.
    let even = [candidate(0, 0, 1_000, ROTATE_AT), candidate(1, 1, 1_000, -ROTATE_AT)];
    assert_eq!(choose(&[0, 0], &even), []);
    // One core has services to serve as well: the vCPUs trade places.
    assert_eq!(choose(&[400, 0], &even), [(0, 1), (1, 0)]);
    // Who has what it wants counts for nothing here, but is what moves when it fits.
    let light = Candidate { lag: None, ..candidate(2, 0, 500, 0) };
    assert_eq!(choose(&[0, 0], &[even[0], even[1], light]), [(2, 1)]);
    let content = even.map(|vcpu| Candidate { lag: None, ..vcpu });
    assert_eq!(choose(&[400, 0], &content), []);
}

#[test]
fn balance_ends_and_leaves_nothing_to_gain() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..2_000 {
        let cores = random.random_range(1..=MAX_CORES);
        let services: Vec<Permille> = (0..cores).map(|_| random.random_range(0..=1_000)).collect();
        let mut vcpus: Vec<Candidate> = (0..random.random_range(0..=MAX_VCPUS))
            .map(|number| candidate(number, random.random_range(0..cores), random.random_range(0..=1_000), 0))
            .collect();
        let squares = |vcpus: &[Candidate]| {
            let mut loads = services.clone();
            vcpus
                .iter()
                .filter(|vcpu| vcpu.demand >= ACTIVE)
                .for_each(|vcpu| loads[vcpu.home] += vcpu.demand);
            loads.iter().map(|load| load * load).sum::<i64>()
        };
        let mut looks = 0;
        loop {
            let before = squares(&vcpus);
            let moves = choose(&services, &vcpus);
            if moves.is_empty() {
                break;
            }
            for &(vcpu, core) in &moves {
                assert!(vcpus[vcpu].demand >= ACTIVE && vcpus[vcpu].home != core && core < cores);
                vcpus[vcpu].home = core;
            }
            assert!(squares(&vcpus) <= before - 2 * ACTIVE * MARGIN);
            looks += 1;
            assert!(looks <= 2 * MAX_VCPUS, "{vcpus:?}");
        }
    }
}

#[test]
fn counters_that_make_no_sense_do_no_harm() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for hz in [1, 1_000, 3_000_000_000, u64::MAX] {
        let mut placement = Placement::new(Clock::new(hz));
        for _ in 0..2_000 {
            let number = |random: &mut ChaCha8Rng| random.random::<u64>() >> random.random_range(0..64);
            let busy: Vec<u64> = (0..random.random_range(0..70)).map(|_| number(&mut random)).collect();
            let vcpus: Vec<VcpuCounters> = (0..random.random_range(0..70))
                .map(|_| VcpuCounters {
                    run: number(&mut random),
                    steal: number(&mut random),
                    halts: random.random(),
                    home: random.random_range(0..70),
                    activity: [Activity::Ready, Activity::Waits, Activity::Stopped]
                        [random.random_range(0..3)],
                })
                .collect();
            for Move { vcpu, core } in
                placement.look(number(&mut random), vcpus.into_iter(), busy.into_iter())
            {
                assert!(vcpu < MAX_VCPUS && core < MAX_CORES);
            }
            assert!((BUSY_MS..=QUIET_MS).contains(&placement.period_ms()));
        }
    }
}

#[test]
fn a_stopped_vcpu_wants_nothing_at_once() {
    let ready = |run, activity| VcpuCounters { run, steal: 0, halts: 0, home: 0, activity };
    let mut placement = Placement::new(Clock::new(1_000));
    for step in 0..20 {
        let now = step * 100;
        let vcpus = [ready(now, Activity::Ready), ready(0, Activity::Stopped)];
        let moves = placement.look(now, vcpus.into_iter(), [now, 0].into_iter());
        assert!(moves.is_empty(), "{moves:?} at {now}");
        assert_eq!(placement.period_ms(), BUSY_MS);
    }
    let stopped = [ready(2_000, Activity::Stopped), ready(0, Activity::Stopped)];
    placement.look(2_000, stopped.into_iter(), [2_000, 0].into_iter());
    assert_eq!(placement.period_ms(), 2 * BUSY_MS);
}
