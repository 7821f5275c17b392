//! Who belongs to the cluster: start, join, leave, death, restart, partition.

use std::boxed::Box;
use std::vec::Vec;

use ipc::wire::{Class, Kind};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::channels::{BAD, GOOD, chat, formed};
use super::seeds;
use super::world::{Faults, LIMITS, PROFILE, World};
use crate::membership::{Event, Profile, Refusal};

/// Long enough for anything to be noticed and agreed on.
const LONG: u64 = 3_000_000;

fn nodes(count: u16) -> Vec<u16> {
    (1..=count).collect()
}

fn unknown(seed: u64, count: usize, faults: Faults) -> World {
    World::new(seed, count, PROFILE, LIMITS, faults)
}

fn has(world: &World, at: usize, wanted: impl Fn(&Event) -> bool) -> bool {
    world.hosts[at].around.events.iter().any(wanted)
}

/// Cuts the nodes from `first` on, by index, off from those before.
fn split(world: &mut World, first: usize) {
    world.cut = Box::new(move |from, to, _| (from < first) != (to < first));
}

fn heal(world: &mut World) {
    world.cut = Box::new(|_, _, _| false);
}

#[test]
fn nodes_that_start_agree() {
    for count in 1..=16 {
        for expected in [None, Some(count)] {
            for faults in [GOOD, BAD] {
                let seed = u64::from(count);
                let profile = Profile { expected, ..PROFILE };
                let mut world = World::new(seed, count.into(), profile, LIMITS, faults);
                world.run_until(LONG, "agreement", |world| world.agree_on(&nodes(count)));
                // And it stays so.
                let epoch = world.hosts[0].node.view().epoch;
                world.faults = GOOD;
                world.run(1_000_000);
                assert!(world.agree_on(&nodes(count)) && world.hosts[0].node.view().epoch == epoch);
            }
        }
    }
}

#[test]
fn a_node_that_comes_later_is_taken_in_and_one_that_leaves_is_let_go() {
    for expected in [None, Some(4)] {
        let mut world = World::new(3, 4, Profile { expected, ..PROFILE }, LIMITS, BAD);
        world.stop(0);
        world.run_until(LONG, "three", |world| world.agree_on(&[2, 3, 4]));
        world.restart(0);
        world.run_until(LONG, "four", |world| world.agree_on(&nodes(4)));
        chat(&mut world, 50);
        // Even the lowest, who proposes.
        let now = world.now + world.hosts[0].clock_ahead;
        let host = &mut world.hosts[0];
        host.node.leave(now, &mut host.around);
        world.run_until(LONG, "the three others", |world| world.agree_on(&[2, 3, 4]));
        world.run_until(LONG, "its leave", |world| has(world, 0, |e| *e == Event::Left));
        assert!(!has(&world, 1, |e| matches!(e, Event::Suspected(_))));
        assert!(has(&world, 1, |e| *e == Event::Removed(1)));
    }
}

#[test]
fn the_last_node_may_leave() {
    let mut world = unknown(1, 1, GOOD);
    world.run_until(LONG, "one", |world| world.agree_on(&[1]));
    let now = world.now + world.hosts[0].clock_ahead;
    let host = &mut world.hosts[0];
    host.node.leave(now, &mut host.around);
    assert!(has(&world, 0, |e| *e == Event::Left));
}

#[test]
fn a_dead_node_is_told_of_and_what_was_for_it_is_given_up() {
    for dead in [0, 2] {
        let mut world = formed(4, 4, LIMITS, GOOD);
        world.stop(dead);
        let to = u16::try_from(dead).unwrap() + 1;
        for _ in 0..5 {
            assert!(world.send(1, to, Class::Page, 4096));
        }
        world.attend(1);
        let rest: Vec<u16> = nodes(4).into_iter().filter(|&node| node != to).collect();
        world.run_until(LONG, "the rest", |world| world.agree_on(&rest));
        assert!(
            has(&world, 1, |e| *e == Event::Suspected(to)) && has(&world, 1, |e| *e == Event::Removed(to))
        );
        assert_eq!(world.hosts[1].around.abandoned, 5);
    }
}

#[test]
fn a_node_that_restarts_at_once_begins_from_zero() {
    for at in [0, 3] {
        let mut world = formed(5, 4, LIMITS, BAD);
        chat(&mut world, 100);
        world.restart(at);
        chat(&mut world, 300);
        world.run_until(LONG, "all", |world| world.agree_on(&nodes(4)));
        chat(&mut world, 100);
        world.run_until(LONG, "all messages", World::all_came);
        let other = 3 - at;
        assert!(has(&world, other, |e| matches!(e, Event::Restarted(..))));
    }
}

#[test]
fn a_minority_stops_and_a_majority_goes_on() {
    for expected in [None, Some(5)] {
        // The lowest is in the minority, and in the majority.
        for first in [2, 3] {
            let mut world = World::new(6, 5, Profile { expected, ..PROFILE }, LIMITS, GOOD);
            world.run_until(LONG, "all", |world| world.agree_on(&nodes(5)));
            let epoch = world.hosts[0].node.view().epoch;
            split(&mut world, first);
            let (low, high) = (nodes(5)[..first].to_vec(), nodes(5)[first..].to_vec());
            let (major, minor) = if low.len() > high.len() { (low, high) } else { (high, low) };
            world.run_until(LONG, "the majority", |world| world.agree_on(&major));
            world.run(LONG);
            for &node in &minor {
                let node = &world.hosts[usize::from(node) - 1].node;
                assert!(!node.membership().is_quorate() && node.view().epoch == epoch);
            }
            heal(&mut world);
            world.run_until(LONG, "all again", |world| world.agree_on(&nodes(5)));
            for &node in &minor {
                assert!(has(&world, usize::from(node) - 1, |e| matches!(e, Event::Expelled(_))));
            }
            chat(&mut world, 50);
            world.run_until(LONG, "all messages", World::all_came);
        }
    }
}

#[test]
fn of_two_halves_none_goes_on_when_the_number_is_known() {
    let mut world = formed(7, 4, LIMITS, GOOD);
    let epoch = world.hosts[0].node.view().epoch;
    world.send(0, 4, Class::Page, 4096);
    split(&mut world, 2);
    world.attend(0);
    world.run(LONG);
    assert!(world.hosts.iter().all(|host| !host.node.membership().is_quorate()));
    heal(&mut world);
    world.run_until(LONG, "all again", |world| world.agree_on(&nodes(4)));
    // In the same view, with the same channels: nobody has gone on without the others.
    assert!(world.hosts.iter().all(|host| host.node.view().epoch == epoch && host.around.abandoned == 0));
    world.run_until(LONG, "the page", World::all_came);
}

#[test]
fn of_two_halves_the_lowest_members_goes_on_when_the_number_is_not_known() {
    let mut world = unknown(8, 4, GOOD);
    world.run_until(LONG, "all", |world| world.agree_on(&nodes(4)));
    split(&mut world, 2);
    world.run_until(LONG, "the lower half", |world| world.agree_on(&[1, 2]));
    world.run(LONG);
    assert!(!world.hosts[2].node.membership().is_quorate());
    heal(&mut world);
    world.run_until(LONG, "all again", |world| world.agree_on(&nodes(4)));
}

#[test]
fn too_many_that_restart_form_the_cluster_anew() {
    let mut world = formed(9, 3, LIMITS, GOOD);
    let origin = world.hosts[2].node.view().origin;
    world.restart(0);
    world.restart(1);
    world.run_until(LONG, "all again", |world| world.agree_on(&nodes(3)));
    assert_ne!(world.hosts[2].node.view().origin, origin);
    assert!(has(&world, 2, |e| matches!(e, Event::Expelled(_))));
}

#[test]
fn half_that_restarts_without_the_other_half_being_able_to_go_on_starts_anew() {
    for count in [2, 4] {
        let mut world = formed(10, count, LIMITS, GOOD);
        (0..count / 2).for_each(|at| world.restart(at));
        let number = u16::try_from(count).unwrap();
        world.run_until(LONG, "all again", |world| world.agree_on(&nodes(number)));
        assert!(has(&world, count - 1, |e| matches!(e, Event::Expelled(_))));
    }
}

#[test]
fn clusters_that_formed_apart_stay_apart() {
    let mut world = unknown(10, 4, GOOD);
    split(&mut world, 2);
    world.run_until(LONG, "both", |world| {
        world.hosts.iter().all(|host| host.node.view().members().len() == 2)
    });
    heal(&mut world);
    world.run(LONG);
    assert!(world.hosts.iter().all(|host| host.node.view().members().len() == 2));
    assert!(
        world.hosts.iter().all(|host| host.node.membership().refusals()[Refusal::OtherOrigin as usize] > 1)
    );
    assert!(has(&world, 0, |e| matches!(e, Event::Refused(_, _, Refusal::OtherOrigin))));
}

#[test]
fn a_node_that_hears_and_is_not_heard_is_left_out() {
    for (from, rest) in [(2, [1, 2]), (0, [2, 3])] {
        let mut world = formed(11, 3, LIMITS, GOOD);
        world.cut = Box::new(move |sender, _, _| sender == from);
        world.run_until(LONG, "the others", |world| world.agree_on(&rest));
        heal(&mut world);
        world.run_until(LONG, "all again", |world| world.agree_on(&nodes(3)));
    }
}

#[test]
fn a_member_that_is_heard_but_takes_no_data_is_complained_of() {
    let mut world = formed(12, 3, LIMITS, GOOD);
    // Such as a link that loses all long frames.
    world.cut = Box::new(|from, to, frame| from == 1 && to == 2 && frame[16] & 0xf == Kind::Data as u8);
    assert!(world.send(1, 3, Class::Page, 4096));
    world.attend(1);
    world.run_until(20 * LONG, "a removal", |world| has(world, 1, |e| *e == Event::Removed(3)));
    assert_eq!(world.hosts[1].around.abandoned, 1);
}

#[test]
fn who_does_not_fit_is_refused_and_the_others_go_on() {
    let fits = Profile { expected: Some(4), ..PROFILE };
    let misfits = [
        (Profile { image: 8, ..fits }, Refusal::Image),
        (Profile { features: 1, ..fits }, Refusal::Features),
        (Profile { expected: Some(3), ..fits }, Refusal::Expected),
    ];
    for (profile, refusal) in misfits {
        let mut world = World::new(13, 4, fits, LIMITS, GOOD);
        world.configs[1].profile = profile;
        world.stop(1);
        world.restart(1);
        world.run_until(LONG, "the others", |world| world.agree_on(&[1, 3, 4]));
        world.run(LONG);
        let told = |e: &&Event| matches!(e, Event::Refused(2, _, why) if *why == refusal);
        assert_eq!(world.hosts[0].around.events.iter().filter(told).count(), 1);
        assert!(world.hosts[0].node.membership().refusals()[refusal as usize] > 10);
        assert!(!world.hosts[1].node.view().is_some());
    }
}

#[test]
fn two_nodes_with_one_number_are_told_of() {
    let mut world = unknown(14, 4, GOOD);
    world.stop(3);
    world.run_until(LONG, "three", |world| world.agree_on(&nodes(3)));
    world.configs[3].life.node = 2;
    world.restart(3);
    world.run(LONG);
    let third = &world.hosts[2];
    assert!(third.node.membership().refusals()[Refusal::Duplicate as usize] > 10);
    assert!(has(&world, 2, |e| matches!(e, Event::Refused(2, _, Refusal::Duplicate))));
    assert!(has(&world, 1, |e| matches!(e, Event::OwnNumberTaken(_))));
    assert!(has(&world, 3, |e| matches!(e, Event::OwnNumberTaken(_))));
    assert!(world.agree_on(&nodes(3)[..1]) || world.hosts[0].node.view().members().len() == 3);
    assert!(third.node.view().get(2).is_some_and(|member| member.mac == world.hosts[1].mac));
}

#[test]
fn another_cluster_on_the_wire_is_not_heeded() {
    let mut world = unknown(15, 4, GOOD);
    for at in [1, 3] {
        world.configs[at].cluster = 2;
        world.restart(at);
    }
    world.run_until(LONG, "both", |world| {
        let of = |at: usize| world.hosts[at].node.view().members().iter().map(|m| m.node).collect::<Vec<_>>();
        of(0) == [1, 3] && of(1) == [2, 4]
    });
    assert!(world.hosts[0].node.drops().other_cluster > 5);
}

/// Restarts, stops, cuts and loss at random; whatever happens, no two clusters act, and in the end all agree.
#[test]
fn nothing_that_happens_leads_to_two_clusters() {
    for seed in seeds(40) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = random.random_range(2..=7);
        let number = u16::try_from(count).unwrap();
        let expected = if seed % 4 == 3 { None } else { Some(number) };
        let mut world = World::new(seed, count, Profile { expected, ..PROFILE }, LIMITS, BAD);
        world.run_until(LONG, "all", |world| world.agree_on(&nodes(number)));
        for _ in 0..30 {
            let at = random.random_range(0..count);
            match random.random_range(0..6) {
                0 => world.stop(at),
                1 | 2 => world.restart(at),
                3 => {
                    let sides: u32 = random.random();
                    world.cut = Box::new(move |from, to, _| (sides >> from ^ sides >> to) & 1 == 1);
                }
                4 => {
                    let cut: u64 = random.random();
                    world.cut = Box::new(move |from, to, _| cut >> (from * 8 + to) & 1 == 1);
                }
                _ => heal(&mut world),
            }
            chat(&mut world, 10);
            let pause = random.random_range(0..400_000);
            world.run(pause);
        }
        heal(&mut world);
        for at in 0..count {
            // Where nobody knows how many there should be, clusters that formed apart stay apart.
            if !world.hosts[at].on || expected.is_none() {
                world.restart(at);
            }
        }
        world.run_until(4 * LONG, "all in the end", |world| world.agree_on(&nodes(number)));
        chat(&mut world, 20);
        world.run_until(4 * LONG, "all messages", World::all_came);
    }
}

/// Every node's reading of the cluster's clock is within the bound it claims, across a change of the first member.
#[test]
fn clocks_agree_within_their_bounds() {
    let mut world = formed(17, 4, LIMITS, Faults { jitter: 300, ..GOOD });
    let check = |world: &World, first: usize| {
        let read = |at: usize| world.hosts[at].node.clock().read(world.now + world.hosts[at].clock_ahead);
        for at in first..4 {
            let host = &world.hosts[at];
            let bound = host.node.clock_error(world.now + host.clock_ahead).unwrap();
            let wrong = read(at).abs_diff(read(first));
            assert!(wrong <= bound && bound < 2_000, "node {at}: {wrong} of {bound}");
        }
    };
    world.run(2_000_000);
    for _ in 0..50 {
        world.run(10_000);
        check(&world, 0);
    }
    world.stop(0);
    world.run_until(LONG, "the rest", |world| world.agree_on(&[2, 3, 4]));
    world.run(2_000_000);
    check(&world, 1);
}
