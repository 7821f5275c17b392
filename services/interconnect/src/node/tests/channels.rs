//! Messages between nodes on a bad network.

use ipc::wire::{CLASSES, Class, Kind};
use rand::Rng;

use super::seeds;
use super::surroundings::{FRAMES, Held};
use super::world::{Faults, LIMITS, PROFILE, World};
use crate::membership::Profile;
use crate::transport::Limits;

pub const GOOD: Faults = Faults { lose: 0, repeat: 0, corrupt: 0, delay: 20, jitter: 0 };
pub const BAD: Faults = Faults { lose: 50_000, repeat: 30_000, corrupt: 20_000, delay: 20, jitter: 400 };
const AWFUL: Faults = Faults { lose: 250_000, repeat: 100_000, corrupt: 50_000, delay: 50, jitter: 3_000 };

pub fn formed(seed: u64, count: usize, limits: Limits, faults: Faults) -> World {
    let profile = Profile { expected: Some(u16::try_from(count).unwrap()), ..PROFILE };
    let mut world = World::new(seed, count, profile, limits, GOOD);
    let all: std::vec::Vec<u16> = (1..=u16::try_from(count).unwrap()).collect();
    world.run_until(2_000_000, "formation", |world| world.agree_on(&all));
    world.faults = faults;
    world
}

/// Random messages between random nodes for a while, then until all came.
pub fn chat(world: &mut World, rounds: usize) {
    let count = world.hosts.len();
    for _ in 0..rounds {
        for _ in 0..world.random.random_range(0..4 * count) {
            let at = world.random.random_range(0..count);
            let to = u16::try_from(world.random.random_range(1..=count)).unwrap();
            let class = Class::from_bits(world.random.random());
            let bytes = match class {
                Class::Control | Class::Request => 0,
                Class::Platform => 8 * world.random.random_range(0..=512),
                Class::Page => 4096,
            };
            if world.hosts[at].on && usize::from(to) != at + 1 {
                world.send(at, to, class, bytes);
                world.attend(at);
            }
        }
        let pause = world.random.random_range(0..400);
        world.run(pause);
    }
}

fn settle(world: &mut World) {
    world.run_until(20_000_000, "all messages", World::all_came);
    world.run(1_000_000);
    for host in &world.hosts {
        assert_eq!(host.around.count(Held::Free), FRAMES, "a page frame was lost");
        assert_eq!(host.around.abandoned, 0);
    }
}

fn total(world: &World, of: fn(&crate::statistics::ClassCounters) -> u64) -> u64 {
    let nodes = 1..=u16::try_from(world.hosts.len()).unwrap();
    let counters =
        world.hosts.iter().flat_map(|host| nodes.clone().filter_map(|node| host.node.counters(node)));
    counters.flatten().map(|counters| of(&counters)).sum()
}

#[test]
fn on_a_good_network_nothing_is_sent_twice() {
    let mut world = formed(1, 3, LIMITS, GOOD);
    chat(&mut world, 400);
    settle(&mut world);
    assert!(total(&world, |c| c.received_frames) > 1_000);
    for count in [
        total(&world, |c| c.fast_retransmissions),
        total(&world, |c| c.timeout_retransmissions),
        total(&world, |c| c.repeated),
        total(&world, |c| c.unexpected),
    ] {
        assert_eq!(count, 0);
    }
    assert_eq!(world.hosts[0].node.drops().total(), world.hosts[0].node.drops().other_epoch);
    let rtts = world.hosts[0].node.round_trips(2).unwrap();
    assert!(rtts.total() > 50 && (40..2_000).contains(&rtts.percentile(50)), "{}", rtts.percentile(50));
}

#[test]
fn every_message_comes_once_and_in_order() {
    for seed in seeds(12) {
        let count = [2, 2, 3, 4, 5, 8][usize::try_from(seed % 6).unwrap()];
        let mut world = formed(seed, count, LIMITS, if seed % 3 == 2 { AWFUL } else { BAD });
        chat(&mut world, 300);
        settle(&mut world);
        assert!(total(&world, |c| c.fast_retransmissions) > 0);
        assert!(total(&world, |c| c.timeout_retransmissions) > 0);
        assert!(total(&world, |c| c.repeated) > 0);
    }
}

#[test]
fn sixteen_nodes_all_with_all() {
    let mut world = formed(16, 16, LIMITS, BAD);
    chat(&mut world, 100);
    settle(&mut world);
    assert!(total(&world, |c| c.received_frames) > 2_000);
}

#[test]
fn pages_go_as_fragments_over_a_short_link() {
    for seed in seeds(4) {
        let limits = Limits { mtu: 1500, ..LIMITS };
        let mut world = formed(seed, 3, limits, if seed == 0 { GOOD } else { BAD });
        chat(&mut world, 200);
        settle(&mut world);
        let [.., page] = world.hosts[0].node.counters(2).unwrap();
        assert!(page.sent_frames >= 3 && page.sent_bytes <= page.sent_frames * 1440);
    }
}

#[test]
fn without_one_fragment_no_page_comes_and_with_it_the_page() {
    let mut world = formed(5, 2, Limits { mtu: 1500, ..LIMITS }, GOOD);
    assert!(world.send(0, 2, Class::Page, 4096));
    // Two leave the card; the third finds the network cut.
    world.record = true;
    world.attend(0);
    let is_data = |frame: &&std::vec::Vec<u8>| frame[16] & 0xf == Kind::Data as u8;
    while world.recorded.iter().filter(is_data).count() < 2 {
        world.run(1);
    }
    world.cut = std::boxed::Box::new(|from, _, _| from == 0);
    world.run(1_000);
    assert!(world.hosts[1].application.came.is_empty());
    world.cut = std::boxed::Box::new(|_, _, _| false);
    settle(&mut world);
    assert_eq!(world.hosts[1].application.came.values().sum::<u32>(), 1);
    let [.., page] = world.hosts[0].node.counters(2).unwrap();
    assert_eq!((page.sent_frames, page.timeout_retransmissions), (4, 1));
}

/// A first node with as many pages on their way to sixteen others as there are page frames for.
fn with_many_pages(limits: Limits) -> World {
    let mut world = formed(9, 17, Limits { windows: [64; CLASSES], ..limits }, GOOD);
    // So that all the credit is there.
    for to in 2..=17 {
        for _ in 0..8 {
            assert!(world.send(0, to, Class::Page, 8));
        }
    }
    world.attend(0);
    settle(&mut world);
    // Without time passing.
    while (2..=17).any(|to| world.send(0, to, Class::Page, 4096)) {}
    let pages = world.hosts[0].around.count(Held::Sending);
    assert!(pages >= 1000, "{pages}");
    world
}

fn came(world: &World, class: Class) -> u32 {
    let streams = world.hosts.iter().flat_map(|host| &host.application.came);
    streams.filter(|(stream, _)| stream.3 == class as u8).map(|(_, count)| count).sum()
}

/// Whenever the card has room for one frame, and however many pages it would take, the invalidation is it.
#[test]
fn an_invalidation_goes_before_a_thousand_pages() {
    let mut world = with_many_pages(Limits { pages_in_card: usize::MAX, ..LIMITS });
    assert!(world.send(0, 9, Class::Control, 0));
    let host = &mut world.hosts[0];
    let first = loop {
        host.node.poll(world.now + host.clock_ahead, 1, &mut host.around);
        let kind = host.around.leaving.back().unwrap().header[16];
        if kind & 0xf == Kind::Data as u8 {
            break kind >> 4 & 3;
        }
    };
    assert_eq!(first, Class::Control as u8);
}

/// An invalidation waits for no more pages than the card may hold.
#[test]
fn an_invalidation_arrives_before_all_but_a_few_pages() {
    let mut world = with_many_pages(LIMITS);
    let before = came(&world, Class::Page);
    world.attend(0);
    assert!(world.send(0, 9, Class::Control, 0));
    world.attend(0);
    while came(&world, Class::Control) == 0 {
        world.run(1);
        let pages = came(&world, Class::Page) - before;
        assert!(usize::try_from(pages).unwrap() <= LIMITS.pages_in_card, "{pages} pages came first");
    }
    settle(&mut world);
}

/// A question and a page as the answer: the answer acknowledges the question, so three frames go over the wire.
#[test]
fn a_page_that_is_asked_for_costs_little_more_than_its_bytes() {
    let mut world = formed(10, 2, LIMITS, GOOD);
    // Before the first, the whole windows are not known yet.
    for round in 1..=2 {
        world.record = round == 2;
        assert!(world.send(0, 2, Class::Request, 0));
        world.attend(0);
        while world.hosts[1].application.came.values().sum::<u32>() != round {
            world.run(1);
        }
        assert!(world.send(1, 1, Class::Page, 4096));
        world.attend(1);
        world.run(5_000);
    }
    assert!(world.all_came());
    let of_the_exchange = |frame: &&std::vec::Vec<u8>| [6, 7, 8].contains(&(frame[16] & 0xf));
    let frames: std::vec::Vec<_> = world.recorded.iter().filter(of_the_exchange).collect();
    let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
    assert!(frames.len() == 3 && bytes <= 4_300, "{} frames, {bytes} bytes", frames.len());
}

/// Both sides fill all windows and deal with nothing for a while: nothing is stuck afterwards, even when the news of
/// credit is lost.
#[test]
fn credit_that_is_lost_is_asked_for() {
    for seed in seeds(6) {
        let mut world = formed(seed, 2, LIMITS, Faults { lose: 400_000, ..GOOD });
        for _ in 0..100 {
            for class in Class::ALL {
                while world.send(0, 2, class, 64) {}
                while world.send(1, 1, class, 64) {}
            }
            world.attend(0);
            world.attend(1);
            world.run(3_000);
        }
        settle(&mut world);
        assert!(world.hosts[0].around.writable > 0);
    }
}
