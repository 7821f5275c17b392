//! What single inputs do.

use super::*;

const READ: bool = false;
const WRITE: bool = true;

fn sent(world: &World) -> u64 {
    world.total(|sharing| sharing.sent.control + sharing.sent.request + sharing.sent.page)
}

#[test]
fn a_page_is_first_touched_at_home_without_a_message() {
    let mut world = World::new(1, &[(1, 600), (1, 600)], 0);
    world.access(0, 0, 5, WRITE);
    world.access(1, 0, 605, READ);
    world.access(1, 0, 605, WRITE);
    assert_eq!(sent(&world), 0);
    // Elsewhere it needs the home: a request, zeros, the end.
    world.access(1, 0, 7, WRITE);
    assert_eq!((sent(&world), world.sharing(1).remote), (3, 1));
    // Contents go in the one message that has a page; it is the home that asks.
    world.access(0, 0, 7, READ);
    assert_eq!((sent(&world), world.total(|sharing| sharing.sent.page)), (5, 1));
    assert_eq!(world.sharing(1).given, 1);
    world.check_quiet();
}

#[test]
fn a_first_write_at_home_brings_neighbours() {
    let mut world = World::new(2, &[(1, 600), (1, 600)], 0);
    for page in 0..500 {
        world.access(0, 0, page, WRITE);
        world.check();
    }
    let sharing = world.sharing(0);
    assert!(sharing.writes < 60, "{sharing:?}");
    assert!(sharing.materialised >= 500 && sharing.write == sharing.materialised && sharing.remote == 0);
    // Neighbours that another node has touched, or is the home of, are left out.
    let mut world = World::new(3, &[(1, 64), (1, 64)], 0);
    world.access(1, 0, 20, READ);
    world.access(1, 0, 41, WRITE);
    for page in (0..64).filter(|page| ![20, 41].contains(page)) {
        world.access(0, 0, page, WRITE);
        world.check();
    }
    assert_eq!((world.sharing(0).write, world.sharing(1).write, world.sharing(1).zero), (62, 1, 1));
    world.access(0, 0, 20, WRITE);
    world.access(0, 0, 41, READ);
    world.check_quiet();
}

#[test]
fn half_as_much_again_as_one_node_has_fits() {
    // The second node writes all of it, and has frames for a third.
    let mut world = World::new(4, &[(1, 100), (1, 50)], 4);
    for round in 0..3 {
        for page in 0..150 {
            world.access(1, 0, page, WRITE);
            assert_eq!(world.refused, 0, "round {round}, page {page}");
        }
        world.check_quiet();
    }
    assert!(world.sharing(0).taken > 50);
    for page in 0..150 {
        world.access(0, 0, page, READ);
    }
    world.check_quiet();
}

#[test]
fn when_all_nodes_are_full_a_fault_is_refused_in_the_end() {
    // What each node has more than its share goes to what waits for room: two pages have nowhere to be.
    let mut world = World::new(17, &[(1, 20), (1, 20)], 0);
    for page in 0..40 {
        world.access(usize::from(page >= 20), 0, page, WRITE);
    }
    assert_eq!(world.total(|sharing| sharing.free), 0);
    let mut answer = None;
    let page = world.page(30);
    while answer != Some(Refusal::OutOfMemory as u16) {
        assert!(world.sharing(0).starved < 2 * u64::from(MOST_TRIES));
        answer = world.fault(0, 0, page, READ);
        world.actors[0][0].waits = answer.is_none();
        settle_messages(&mut world);
        if world.refused > 0 {
            break;
        }
    }
    assert_eq!(world.sharing(0).refused, 1);
    // Nothing is lost by that.
    world.access(1, 0, 30, READ);
    world.access(0, 0, 3, READ);
    world.check();
}

#[test]
fn what_the_guest_does_not_see_stays_here() {
    let mut world = World::new(5, &[(1, 10), (1, 10)], 0);
    for node in 0..2 {
        for page in PRIVATE..PRIVATE + PRIVATE_PAGES {
            assert_eq!(world.fault(node, 0, page, READ), Some(0));
            assert_eq!(world.fault(node, 0, page, WRITE), Some(0));
            assert!(world.nodes[node].space.write(page, 9));
        }
        assert_eq!(world.fault(node, 0, PRIVATE + PRIVATE_PAGES, WRITE), Some(Refusal::Outside as u16));
        assert_eq!(world.fault(node, 0, 20, WRITE), Some(Refusal::Outside as u16));
    }
    world.check_quiet();
    assert_eq!(world.total(|sharing| sharing.reads + sharing.writes), 0);
}

/// Has a node receive a message, with a page or without.
fn deliver(world: &mut World, node: usize, from: u16, message: [u8; 24], page: bool) {
    let links = &mut world.nodes[node].links;
    let frame = if page { links.carried.pop().unwrap() } else { NO_FRAME };
    let (class, kind) = (Class::Control, IncomingKind::Message);
    links.incoming.push_back(Incoming { message, frame, node: from, class, kind });
    world.nodes[node].arrived();
    world.check();
}

#[test]
fn messages_of_others_and_without_sense_are_dropped() {
    let mut world = World::new(6, &[(1, 10), (1, 10)], 0);
    let free = world.sharing(0).free;
    let request = Message { access: Access::Write, ..Message::new(Kind::Write, Page(1), 0, 5) };
    let contents = Message::new(Kind::Data, Page(1), 0, 5);
    let good = hands::bytes(&request, RUN);
    deliver(&mut world, 0, number(1), hands::bytes(&contents, RUN + 1), true);
    deliver(&mut world, 0, number(1), hands::bytes(&request, RUN + 1), false);
    for page in [false, true] {
        deliver(&mut world, 0, number(1), [0xff; 24], page);
        deliver(&mut world, 0, number(7), good, page);
    }
    // A page where none belongs, none where one does.
    deliver(&mut world, 0, number(1), good, true);
    deliver(&mut world, 0, number(1), hands::bytes(&contents, RUN), false);
    // Contents that nobody asked for.
    deliver(&mut world, 0, number(1), hands::bytes(&contents, RUN), true);
    let sharing = world.sharing(0);
    assert_eq!(sharing.dropped, Dropped { run: 2, stranger: 2, malformed: 4, unexpected: 1 });
    assert_eq!((sharing.received, sharing.free), (9, free));
    assert_eq!(world.nodes[0].links.outgoing.len(), 0);
    // Bytes of any kind, but for requests, which begin something.
    let mut random = Random(7);
    for _ in 0..5_000 {
        let mut message = good;
        message[0] = random.below(18_u8);
        for _ in 0..random.below(3) {
            message[1 + random.below(19_usize)] = random.below(20_u8);
        }
        if [Kind::Write, Kind::Read, Kind::Evict].iter().all(|kind| message[0] != *kind as u8) {
            let page = random.one_in(2);
            deliver(&mut world, 0, number(1), message, page);
            world.nodes[0].links.outgoing.clear();
        }
    }
    world.check();
}

#[test]
fn a_guest_ends_and_another_begins() {
    let mut world = World::new(8, &[(1, 600), (2, 600)], 0);
    for run in 0..4 {
        for page in 0..40 {
            world.access(usize::try_from(page % 2).unwrap(), 0, page * 29, WRITE);
            world.access(1, 1, page * 17, READ);
        }
        // One waits, and messages are under way.
        let page = world.page(3);
        world.access(0, 0, 3, WRITE);
        world.actors[1][1].instruction = Some((std::vec![page], true));
        world.execute(1, 1);
        assert!(world.actors[1][1].waits);
        while world.transmit(1) {}
        world.take_arrived(0);
        for node in 0..2 {
            assert_eq!(world.nodes[node].release(stranger()), Err(ipc::message::Refused));
            let mut steps = 0;
            while !world.nodes[node].release(platform()).unwrap() {
                steps += 1;
                assert_eq!(world.fault(node, 0, 0, READ), Some(Refusal::Stopping as u16));
                assert!(steps < 100);
            }
            assert_eq!(world.nodes[node].space.mapped.len(), 0);
            world.take_replies(node);
        }
        assert_eq!(world.refused, 1 + run);
        assert!(!world.actors[1][1].waits);
        world.actors[1][1].instruction = None;
        // What comes meanwhile is dropped, and faults are refused.
        while world.transmit(0) {}
        for node in 0..2 {
            world.take_arrived(node);
            while world.work(node) {}
            assert_eq!(world.nodes[node].links.incoming.len(), 0);
            assert_eq!(world.fault(node, 0, 0, READ), Some(Refusal::Stopping as u16));
            assert_eq!(world.nodes[node].deadline(), NEVER);
            assert_eq!(world.nodes[node].sharing(stranger()), Ok(None));
        }
        world.begin(RUN + 1 + u32::try_from(run).unwrap());
        world.settle();
        world.check_quiet();
    }
}

#[test]
fn an_interconnect_that_was_restarted_ends_the_guest() {
    for by_send in [false, true] {
        let mut world = World::new(9, &[(1, 600), (1, 600)], 0);
        world.access(0, 0, 3, WRITE);
        world.access(1, 0, 700, WRITE);
        world.nodes[0].links.was_restarted = true;
        if by_send {
            assert_eq!(world.fault(0, 0, 700, READ), Some(Refusal::Stopping as u16));
        } else {
            world.nodes[0].arrived();
        }
        let lost = Lost::Call(CallError::Restarted);
        assert_eq!(std::mem::take(&mut world.nodes[0].links.lost), [lost]);
        // Nothing stays mapped, before the platform has heard of it.
        assert_eq!(world.fault(0, 0, 4, READ), Some(Refusal::Stopping as u16));
        while world.work(0) {}
        assert_eq!(world.nodes[0].space.mapped.len(), 0);
        world.take_replies(0);
        for node in 0..2 {
            while !world.nodes[node].release(platform()).unwrap() {}
        }
        world.begin(RUN + 1);
        world.access(1, 0, 3, WRITE);
        world.check_quiet();
    }
}

#[test]
fn a_service_that_was_restarted_waits_for_the_next_guest() {
    let mut world = World::new(18, &[(1, 600), (1, 600)], 0);
    world.access(0, 0, 3, WRITE);
    world.access(1, 0, 3, READ);
    world.access(0, 0, 3, WRITE);
    // The first node's service is another one; the interconnect is the same, and is owed a frame.
    let frames = u32::try_from(world.nodes[0].space.contents.len()).unwrap();
    let again = node(&world.shares, 0, frames);
    let old = std::mem::replace(&mut world.nodes[0], again);
    world.nodes[0].links = old.links;
    world.nodes[0].links.is_owed = true;
    world.arrived[0] = true;
    world.take_arrived(0);
    assert_eq!(world.fault(0, 0, 3, READ), Some(Refusal::Stopping as u16));
    assert_eq!(world.nodes[0].release(platform()), Ok(true));
    while !world.nodes[1].release(platform()).unwrap() {}
    world.begin(RUN + 1);
    world.access(1, 0, 3, WRITE);
    world.check_quiet();
}

#[test]
fn a_node_that_is_gone_ends_the_guest() {
    let mut world = World::new(10, &[(1, 600), (1, 600)], 0);
    world.nodes[0].links.members.remove(&number(1));
    assert_eq!(world.fault(0, 0, 700, READ), Some(Refusal::Stopping as u16));
    assert_eq!(world.nodes[0].links.lost, [Lost::NotSent(number(1), SendAnswer::NoSuchMember)]);
}

#[test]
fn a_window_that_waits_for_a_lost_node_gets_any_memory_and_keeps_it() {
    let mut world = World::new(19, &[(1, 600), (1, 600)], 0);
    let window = 1;
    world.access(1, 0, 700, WRITE);
    world.actors[0][window].instruction = Some((std::vec![world.page(700)], true));
    assert!(!world.execute(0, window) && world.actors[0][window].waits);
    let pass = |world: &mut World| {
        world.nodes[0].links.now += times().patience;
        assert!(world.work(0));
    };
    pass(&mut world);
    assert!(world.actors[0][window].waits, "all nodes are there");
    world.nodes[0].links.members.remove(&number(1));
    pass(&mut world);
    assert!(!world.actors[0][window].waits);
    let page = world.page(700);
    assert!(world.nodes[0].space.write(page, 12));
    // Another page of the lost node's needs no wait any more.
    let other = world.page(701);
    assert_eq!(world.fault(0, window, other, WRITE), Some(0));
    // What it sent comes after all.
    while world.transmit(0) || world.take_arrived(1) || world.transmit(1) {}
    world.nodes[0].arrived();
    assert_eq!(world.nodes[0].space.read(page), Some(12));
    world.check();
}

#[test]
fn what_cannot_begin_leaves_all_as_it_is() {
    let mut world = World::new(11, &[(1, 600), (2, 600)], 0);
    let begin = Begin { run: 5, shares: world.shares.clone() };
    // It runs already.
    assert!(world.nodes[0].begin(platform(), begin.clone()).is_err());
    while !world.nodes[0].release(platform()).unwrap() {}
    let node = &mut world.nodes[0];
    let refuse = |node: &mut Node, change: fn(&mut Begin)| {
        let mut begin = begin.clone();
        change(&mut begin);
        assert!(node.begin(platform(), begin).is_err());
        assert!(node.guest.as_ref().unwrap().memory.census()[0].is_empty());
        assert!(!node.guest.as_ref().unwrap().memory.is_being_reset());
    };
    refuse(node, |begin| begin.shares.clear());
    refuse(node, |begin| begin.shares.truncate(1));
    refuse(node, |begin| begin.shares[0].node += 100);
    refuse(node, |begin| begin.shares[0].vcpus += 1);
    refuse(node, |begin| begin.shares[1].vcpus = u8::MAX);
    refuse(node, |begin| begin.shares[1].pages += 1);
    refuse(node, |begin| begin.shares[1].pages = u64::MAX);
    assert_eq!(node.begin(platform(), begin), Ok(true));
}

#[test]
fn page_operations_that_fail_are_tried_again() {
    let mut world = World::new(12, &[(1, 600), (1, 600)], 0);
    world.access(0, 0, 3, WRITE);
    let page = world.page(3);
    // It has to give the page up, and the kernel does not unmap it.
    let want = |world: &mut World| {
        world.actors[1][0].instruction = Some((std::vec![page], true));
        world.execute(1, 0);
        world.transmit(1);
    };
    want(&mut world);
    world.nodes[0].space.failing = 3;
    world.take_arrived(0);
    assert_eq!(world.nodes[0].space.read(page), Some(1));
    world.settle();
    assert_eq!(world.actors[1][0].instruction, None);
    assert_eq!(world.nodes[0].space.failing, 0);
    world.check_quiet();
    // A page that comes and cannot be mapped is refused, and there at the next try.
    world.nodes[0].space.failing = 1;
    world.actors[0][0].instruction = Some((std::vec![page], true));
    world.settle();
    assert_eq!((world.refused, world.sharing(0).refused), (1, 1));
    // For ever is too long.
    want(&mut world);
    world.nodes[0].space.failing = usize::MAX;
    world.take_arrived(0);
    for _ in 0..2 * MOST_FAILURES {
        world.nodes[0].links.now += 1_000_000;
        world.work(0);
    }
    assert!(matches!(world.nodes[0].links.lost[..], [Lost::Operation(_)]));
}

/// Delivers messages until there is none; no time passes, and no vCPU runs.
fn settle_messages(world: &mut World) {
    let mut is_busy = true;
    while is_busy {
        is_busy = false;
        for node in 0..world.nodes.len() {
            is_busy |= world.transmit(node) | world.take_arrived(node);
        }
    }
}

#[test]
fn a_page_stays_until_its_instruction_is_done() {
    let mut world = World::new(13, &[(2, 600), (1, 600)], 0);
    let page = world.page(700);
    let want = |world: &mut World, node: usize, actor: usize| {
        world.actors[node][actor].instruction = Some((std::vec![page], true));
        world.execute(node, actor);
        settle_messages(world);
    };
    let pass = |world: &mut World, node: usize, ticks: u64| {
        world.nodes[node].links.now += ticks;
        world.work(node);
    };
    let has = |world: &World, node: usize| world.nodes[node].space.mapped.contains_key(&page);
    want(&mut world, 0, 0);
    assert!(!world.actors[0][0].waits);
    // It has the page and does not run. Another node wants it.
    let start = world.nodes[0].links.now;
    let seen = |fingerprint, in_guest_mode| Some(Progress { fingerprint, in_guest_mode });
    world.nodes[0].links.progress[0] = seen(1, false);
    want(&mut world, 1, 0);
    assert!(has(&world, 0));
    assert_eq!(world.nodes[0].deadline(), start + 50_000);
    pass(&mut world, 0, 50_000);
    // It is seen in guest mode once: that may have been before the instruction. Twice is enough.
    world.nodes[0].links.progress[0] = seen(1, true);
    pass(&mut world, 0, 50_000);
    assert!(has(&world, 0));
    pass(&mut world, 0, 50_000);
    assert!(!has(&world, 0));
    settle_messages(&mut world);
    // Registers that are others are enough by themselves.
    world.actors[0][0].instruction = None;
    world.nodes[1].links.progress[0] = seen(1, false);
    want(&mut world, 0, 1);
    assert!(has(&world, 1));
    world.nodes[1].links.progress[0] = seen(2, false);
    // The page bounces by now, and stays a little longer for that.
    for _ in 0..4 {
        pass(&mut world, 1, 50_000);
    }
    assert!(!has(&world, 1));
    // One of which nothing is known keeps it up to the limit.
    settle_messages(&mut world);
    world.nodes[0].links.progress[1] = None;
    world.actors[1][0].instruction = None;
    want(&mut world, 1, 0);
    let mut waited = 0;
    while has(&world, 0) {
        pass(&mut world, 0, 50_000);
        waited += 50_000;
    }
    assert!((9_000_000..=11_000_000).contains(&waited), "{waited}");
}

#[test]
fn the_window_keeps_its_page_for_a_moment() {
    let mut world = World::new(16, &[(1, 600), (1, 600)], 0);
    let page = world.page(700);
    for (node, actor) in [(0, 1), (1, 0)] {
        world.actors[node][actor].instruction = Some((std::vec![page], true));
        world.execute(node, actor);
        settle_messages(&mut world);
    }
    world.nodes[0].links.now += 50_000;
    world.work(0);
    assert!(world.nodes[0].space.mapped.contains_key(&page));
    world.nodes[0].links.now += 50_000;
    world.work(0);
    assert!(!world.nodes[0].space.mapped.contains_key(&page));
}

#[test]
fn a_vcpu_that_is_started_again_while_it_waits_is_answered() {
    let mut world = World::new(14, &[(1, 600), (1, 600)], 0);
    assert_eq!(world.fault(0, 0, 700, READ), None);
    assert_eq!(world.fault(0, 0, 3, READ), None);
    world.actors[0][0].waits = true;
    world.settle();
    assert!(!world.actors[0][0].waits);
    world.access(0, 0, 3, READ);
}

#[test]
fn what_needs_other_nodes_most_is_known() {
    let mut world = World::new(15, &[(1, 600), (1, 600)], 0);
    for round in 0..10 {
        world.access(usize::try_from(round % 2).unwrap(), 0, 20, WRITE);
        world.access(0, 0, 100 + round, WRITE);
    }
    let hottest = world.nodes[1].hottest(stranger()).unwrap();
    assert_eq!(hottest.pages.first(), Some(&Hot { what: 20, count: 5, excess: 0 }));
    assert_eq!(hottest.instructions.first(), Some(&Hot { what: 0x1014, count: 5, excess: 0 }));
    assert_eq!(hottest.pages.len(), 1);
}
