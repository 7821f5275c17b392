//! The lives of guests on nodes of the tests: what is done, whenever nodes come late, fail and are cut off.

use std::vec::Vec;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::machine::End;
use sim::{CLOCK, DEATH, GO, PATIENCE_S, SUSPICION, Sim, number, shares};

mod sim;

fn crash(place: usize) -> Ending {
    Ending::Guest { end: End::TripleFault, vcpu: u8::try_from(place * 2 + 1).unwrap() }
}

#[test]
fn a_guest_lives_on_all_nodes_and_dies_on_all() {
    for (seed, last) in [(1, false), (2, true)] {
        let mut sim = Sim::new(seed, 3);
        sim.start(9, last);
        assert!(!sim.nodes[0].cluster.start(0, 10, last), "one at a time");
        assert!(!sim.nodes[1].cluster.start(0, 10, last), "on the first node");
        sim.until(1000);
        assert!(sim.all_run());
        assert!(sim.nodes.iter().all(|node| node.cluster.running() == Some(9)));
        let ending = Ending::Guest { end: End::PoweredOff, vcpu: 0 };
        sim.end(0, ending);
        sim.until(2000);
        sim.assert_idle();
        for node in &sim.nodes {
            assert_eq!(node.overs, [(ending, last)]);
        }
        if !last {
            // Again, with what must be another number.
            sim.start(9, false);
            sim.until(3000);
            assert!(sim.all_run());
            assert_eq!(sim.nodes[2].cluster.running(), Some(10));
        }
    }
}

#[test]
fn who_ends_first_says_how() {
    let mut sim = Sim::new(3, 3);
    sim.start(1, true);
    sim.until(1000);
    sim.end(2, crash(2));
    sim.end(1, crash(1));
    sim.until(2000);
    sim.assert_idle();
    let first = sim.nodes[0].overs[0];
    assert!(first == (crash(2), true) || first == (crash(1), true));
    assert!(sim.nodes.iter().all(|node| node.overs == [first]));
    // What is stopped by a call powers nothing off.
    let mut sim = Sim::new(4, 2);
    sim.start(1, true);
    sim.until(1000);
    sim.end(1, Ending::Stopped);
    sim.until(2000);
    sim.assert_idle();
    assert!(sim.nodes.iter().all(|node| node.overs == [(Ending::Stopped, false)]));
}

#[test]
fn the_first_node_waits_for_the_others_with_patience() {
    let mut sim = Sim::new(5, 3);
    sim.nodes[2].up.start = 15_000;
    sim.start(1, false);
    assert_eq!(sim.waited_for.map(|places| places.iter().collect::<Vec<_>>()), Some(vec![2]));
    sim.until(14_990);
    assert!(sim.nodes.iter().all(|node| node.memory.is_none()));
    sim.until(16_000);
    assert!(sim.all_run());

    let mut sim = Sim::new(6, 3);
    sim.nodes[1].up.start = 20_500;
    sim.start(1, false);
    sim.until(21_000);
    sim.assert_idle();
    assert_eq!(sim.nodes[0].overs, [(Ending::DidNotCome(4), false)]);
    assert!(sim.nodes[2].overs.is_empty());
    // Stopped while it waits.
    let mut sim = Sim::new(6, 2);
    sim.nodes[1].up.start = 10_000;
    sim.start(1, true);
    sim.end(0, Ending::Stopped);
    sim.until(11_000);
    sim.assert_idle();
    assert_eq!(sim.nodes[0].overs, [(Ending::Stopped, false)]);
}

#[test]
fn a_node_that_cannot_take_part_says_so() {
    for place in 0..3 {
        let mut sim = Sim::new(7, 3);
        sim.nodes[place].refuses_begin = true;
        sim.start(1, false);
        sim.until(8000);
        sim.assert_idle();
        let refused = Ending::Refused { node: number(place), why: Refusal::Memory };
        assert_eq!(sim.nodes[0].overs, [(refused, false)]);
        assert!(sim.nodes.iter().all(|node| node.runs == 0));
        sim.nodes[place].refuses_begin = false;
        sim.nodes[place].refuses_run = true;
        sim.start(1, false);
        sim.until(16_000);
        sim.assert_idle();
        let refused = Ending::Refused { node: number(place), why: Refusal::Vcpus };
        assert_eq!(sim.nodes[0].overs[1], (refused, false));
        sim.nodes[place].refuses_run = false;
        sim.start(1, false);
        sim.until(20_000);
        assert!(sim.all_run(), "another time it can");
    }
}

#[test]
fn nodes_that_do_not_know_the_time_or_may_not_act_are_waited_for() {
    let shares = shares(2);
    let mut other = Cluster::new(&shares, 1, PATIENCE_S, CLOCK);
    let life = Some(Life { incarnation: 1, silent_ms: 0 });
    let mut sight = Sight { lives: heapless::Vec::from_iter([life; 2]), may_act: false, knows_time: false };
    other.see(0, sight.clone());
    // It has been cut off for long; for the first node it is a member again, and it does not know that yet.
    let now = CLOCK.milliseconds_to_ticks(10 * GRACE_MS);
    other.see(now, sight.clone());
    assert!(other.receive(now, number(0), &Message { run: 5, say: Say::Prepare }));
    assert_eq!(other.next_action(), Some(Action::Begin(5)));
    other.begun(now, true);
    for (may_act, knows_time) in [(false, false), (false, true), (true, false)] {
        sight = Sight { may_act, knows_time, ..sight };
        other.see(now + 50, sight.clone());
        assert_eq!(other.next_action(), None);
    }
    sight = Sight { may_act: true, knows_time: true, ..sight };
    other.see(now + 100, sight.clone());
    assert_eq!(other.next_action(), Some(Action::Send(number(0), Message { run: 5, say: Say::Ready })));
    other.see(now + 200, sight);
    assert_eq!(other.next_action(), None, "once");
}

#[test]
fn what_is_of_another_run_or_of_nobody_is_not_heard() {
    let mut sim = Sim::new(8, 3);
    sim.start(5, false);
    sim.until(1000);
    let hears = |sim: &mut Sim, place: usize, from: u16, run: u32, say| {
        sim.nodes[place].cluster.receive(1000, from, &Message { run, say })
    };
    let release = Say::Release { ending: Ending::Stopped, power_off: true };
    for say in [Say::Stop, Say::Go(GO), release, Say::Ready, Say::Stopped, Say::Ended(crash(1))] {
        assert!(!hears(&mut sim, 1, number(0), 4, say), "another run");
        assert!(!hears(&mut sim, 1, number(2), 5, say), "not the first node");
        assert!(!hears(&mut sim, 1, 99, 5, say), "not of this guest");
        assert!(!hears(&mut sim, 0, 99, 5, say));
        assert!(!hears(&mut sim, 0, number(0), 5, say), "from itself");
        assert!(!hears(&mut sim, 0, number(1), 4, say));
    }
    for say in [Say::Stop, Say::Go(GO), release, Say::Prepare, Say::Ready, Say::Stopped] {
        assert!(!hears(&mut sim, 0, number(1), 5, say), "not now");
    }
    assert!(sim.all_run());
}

#[test]
fn a_restarted_platform_ends_the_guest_it_forgot() {
    for place in 0..3 {
        let mut sim = Sim::new(9, 3);
        sim.start(5, false);
        sim.until(1000);
        let node = &mut sim.nodes[place];
        node.cluster = Cluster::new(&shares(3), place, PATIENCE_S, CLOCK);
        // Its kernel stopped the vCPUs.
        (node.machine, node.vcpus_run) = (false, false);
        node.cluster.restarted(1000, true);
        sim.act(place);
        sim.until(3000);
        sim.assert_idle();
        for node in &sim.nodes {
            // The first node powers them off if it knows that it is to.
            assert_eq!(node.overs, [(Ending::Failed(number(place)), place == 0)]);
        }
    }
}

#[test]
fn the_loss_of_a_node_ends_the_guest() {
    for place in 0..3 {
        let mut sim = Sim::new(10, 3);
        sim.start(5, true);
        sim.until(1000);
        sim.nodes[place].up.end = 1000;
        sim.until(1000 + DEATH + CALM_MS + ALONE_MS + 200);
        sim.assert_idle();
        for other in (0..3).filter(|&other| other != place) {
            let power_off = place != 0;
            assert_eq!(sim.nodes[other].overs, [(Ending::Lost(number(place)), power_off)]);
        }
    }
    // Of two, none has a majority.
    for place in 0..2 {
        let mut sim = Sim::new(11, 2);
        sim.start(5, true);
        sim.until(1000);
        sim.nodes[1 - place].up.end = 1000;
        sim.until(1000 + SUSPICION + GRACE_MS + 2 * CALM_MS + ALONE_MS + 200);
        sim.assert_idle();
        assert_eq!(sim.nodes[place].overs, [(Ending::Lost(number(1 - place)), place == 0)]);
    }
}

#[test]
fn a_node_that_comes_back_as_another_life_is_lost() {
    let mut sim = Sim::new(12, 3);
    sim.start(5, false);
    sim.until(1000);
    let node = &mut sim.nodes[1];
    node.cluster = Cluster::new(&shares(3), 1, PATIENCE_S, CLOCK);
    (node.machine, node.vcpus_run, node.memory) = (false, false, None);
    node.incarnation += 1;
    sim.until(9000);
    sim.assert_idle();
    assert_eq!(sim.nodes[0].overs, [(Ending::Lost(number(1)), false)]);
    sim.start(6, false);
    sim.until(10_000);
    assert!(sim.all_run());
}

#[test]
fn a_node_that_hears_nobody_for_a_moment_goes_on() {
    let mut sim = Sim::new(13, 2);
    sim.start(5, false);
    sim.until(1000);
    let mut sight = sim.sight(0);
    sight.may_act = false;
    for now in [1000, 1500, 2400] {
        sim.nodes[0].cluster.see(now, sight.clone());
    }
    sight.may_act = true;
    sim.nodes[0].cluster.see(2450, sight.clone());
    sight.may_act = false;
    sim.nodes[0].cluster.see(2600, sight.clone());
    sim.nodes[0].cluster.see(2600 + GRACE_MS - 1, sight.clone());
    assert!(sim.all_run());
    // Nobody in particular is silent.
    sim.nodes[0].cluster.see(2600 + GRACE_MS, sight);
    sim.act(0);
    sim.until(9000);
    sim.assert_idle();
    assert_eq!(sim.nodes[0].overs, [(Ending::CutOff(number(0)), false)]);
}

/// Whatever happens, whenever: the guest ends everywhere, nobody gives memory back that others still run with, and another guest
/// can start.
#[test]
fn no_moment_is_a_bad_one() {
    let mut seen = [0; 6];
    for seed in 0..1500 {
        let mut choose = ChaCha8Rng::seed_from_u64(1000 + seed);
        let count = choose.random_range(2..=5);
        let mut sim = Sim::new(seed, count);
        sim.max_delay = [5, 40, 300][choose.random_range(0..3)];
        let last = choose.random();
        sim.start(1 + choose.random::<u32>() / 2, last);
        // From the first message to long after the start.
        let mut moment = choose.random_range(0..1500) * choose.random_range(1..3);
        let (place, other) = (choose.random_range(0..count), choose.random_range(0..count));
        for place in [place, other].into_iter().take(choose.random_range(1..=2)) {
            sim.until(moment);
            let kind = choose.random_range(0..6);
            seen[kind] += 1;
            if !sim.is_up(place) {
                continue;
            }
            match kind {
                0 if sim.nodes[place].vcpus_run => sim.end(place, crash(place)),
                1 => sim.end(0, Ending::Stopped),
                2 => sim.nodes[place].up.end = sim.now,
                3 if sim.cut.is_none() => sim.cut = Some((place, sim.now)),
                4 => {
                    let node = &mut sim.nodes[place];
                    node.cluster = Cluster::new(&shares(count), place, PATIENCE_S, CLOCK);
                    (node.machine, node.vcpus_run) = (false, false);
                    node.cluster.restarted(sim.now, last);
                    sim.act(place);
                }
                5 => sim.nodes[place].refuses_run = true,
                _ => {}
            }
            moment += choose.random_range(0..2000);
        }
        // Where nothing came of it the guest still runs, and ends by itself.
        sim.until(moment + 3000);
        if sim.is_up(0) && sim.nodes[0].vcpus_run {
            sim.end(0, crash(0));
        }
        sim.until(moment + 70_000);
        sim.assert_idle();
        for node in &sim.nodes {
            assert!(node.overs.len() <= 3, "{:?}", node.overs);
        }
        let all_up = (0..count).all(|place| sim.is_up(place)) && sim.cut.is_none();
        if all_up {
            sim.nodes.iter_mut().for_each(|node| node.refuses_run = false);
            sim.waited_for = None;
            let now = sim.now;
            sim.start(7, false);
            sim.until(now + 5000);
            assert!(sim.all_run(), "seed {seed}");
        }
    }
    assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
}

#[test]
fn hostile_messages_change_nothing_but_what_they_may() {
    let mut random = ChaCha8Rng::seed_from_u64(14);
    for round in 0..200 {
        let mut sim = Sim::new(round, 3);
        sim.start(5, false);
        sim.until(random.random_range(0..600));
        for _ in 0..300 {
            let mut bytes = [0; 24];
            random.fill_bytes(&mut bytes);
            bytes[0..4].copy_from_slice(&[[5, 0, 0, 0], [0; 4], [6, 0, 0, 0]][random.random_range(0..3)]);
            bytes[4] = random.random_range(1..12);
            if random.random_range(0..4) != 0 {
                bytes[5..].fill(0);
                bytes[5] = random.random_range(0..40);
            }
            let Some(message) = Message::decode(&bytes) else { continue };
            let place = random.random_range(0..3);
            let from = number(random.random_range(0..4));
            let cluster = &mut sim.nodes[place].cluster;
            let before = cluster.state;
            if !cluster.receive(sim.now, from, &message) {
                assert_eq!(cluster.state, before);
                assert!(!cluster.has_actions());
            }
            while cluster.next_action().is_some() {}
            cluster.begun(sim.now, random.random());
            cluster.loaded(GO);
            while cluster.next_action().is_some() {}
        }
    }
}

#[test]
fn vcpus_are_found_by_their_numbers() {
    let of = |node, vcpus| Share { node, vcpus, pages: 1 };
    let shares = [of(1, 2), of(4, 1), of(5, 3)];
    let found: Vec<_> = (0..7).map(|vcpu| vcpu_at(&shares, vcpu)).collect();
    let there = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)].map(Some);
    assert_eq!(found, [&there[..], &[None]].concat());
    for (vcpu, (place, local)) in there.into_iter().flatten().enumerate() {
        assert_eq!(first_vcpu(&shares, place) + local, vcpu);
    }
}
