//! Pages that are asked for before they are needed.

use super::*;

/// What a tick writes: pages of both nodes, in this order.
const TICK: [u64; 20] = [3, 140, 7, 9, 101, 40, 41, 2, 130, 131, 12, 77, 103, 5, 150, 151, 60, 18, 119, 30];

impl World {
    /// Lets time pass, in nanoseconds.
    fn pass(&mut self, time: u64) {
        for node in &mut self.nodes {
            node.links.now += time;
        }
        self.settle();
    }

    /// Has a vCPU write pages one after another, with some time for what it does in between; how often it waited.
    fn write_all(&mut self, node: usize, pages: &[u64]) -> u64 {
        let before = self.sharing(node).remote;
        for page in pages {
            self.access(node, 0, *page, true);
            self.pass(1_000);
        }
        self.sharing(node).remote - before
    }
}

#[test]
fn one_page_after_another_comes_ahead() {
    let mut world = World::new(30, &[(1, 1_000), (1, 1_000)], 200);
    let pages: Vec<u64> = (1_000..1_800).collect();
    // Those that nobody has used, those that the other node has written, and by the window.
    for (node, actor) in [(0, 0), (1, 0), (0, 1)] {
        let before = world.sharing(node);
        for page in &pages {
            world.access(node, actor, *page, true);
            world.check();
        }
        let after = world.sharing(node);
        assert!(after.remote - before.remote < 70, "{after:?}");
        assert!(after.ahead.granted - before.ahead.granted >= 730, "{after:?}");
    }
    world.check_quiet();
}

#[test]
fn what_has_no_order_is_not_asked_for_ahead() {
    let mut world = World::new(32, &[(1, 100), (1, 100)], 200);
    for _ in 0..4_000 {
        let (node, page) = (world.random.below(2), world.random.below(200));
        world.access(node, 0, page, true);
        world.pass(10_000);
    }
    let [remote, asked] = [world.total(|sharing| sharing.remote), world.total(|sharing| sharing.ahead.asked)];
    assert!(remote > 1_000 && asked < remote / 20, "{asked} of {remote}");
    world.check_quiet();
}

#[test]
fn pages_come_ahead_only_where_there_is_room() {
    let mut world = World::new(34, &[(1, 100), (1, 100)], 4);
    for _ in 0..20 {
        for node in 0..2 {
            world.write_all(node, &TICK);
            world.pass(8_000_000);
        }
        for page in 0..200 {
            world.access(0, 0, page, true);
        }
        for page in 0..200 {
            world.access(1, 0, page, true);
        }
    }
    assert_eq!(world.refused, 0);
    world.check_quiet();
}
