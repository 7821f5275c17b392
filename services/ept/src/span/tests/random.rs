//! Any accesses in any order, on several nodes.

use super::*;

/// What a run is like.
struct Setting {
    shares: &'static [(u8, u64)],
    /// Frames besides those for each node's own pages.
    more: u32,
    /// Messages of one class to one node that the interconnect takes.
    room: usize,
    steps: u32,
}

impl World {
    /// An instruction: one page or two, most of them of a few.
    fn choose(&mut self, node: usize, actor: usize) -> (Vec<u64>, bool) {
        let pages = total_pages(&self.shares);
        let write = self.random.one_in(2);
        let page = match self.random.below(4) {
            0 => self.random.below(pages.min(6)),
            _ => self.random.below(pages),
        };
        let is_window = actor + 1 == self.actors[node].len();
        match self.random.below(12) {
            0 if !is_window => (std::vec![self.page((page + 1) % pages), self.page(page)], write),
            _ => (std::vec![self.page(page)], write),
        }
    }

    fn step(&mut self) {
        let node = self.random.below(self.nodes.len());
        match self.random.below(6) {
            0 | 1 => {
                self.transmit(node);
            }
            2 => {
                self.take_arrived(node);
            }
            3 => {
                self.nodes[node].links.now += self.random.below(60_000_u64);
                self.work(node);
            }
            _ => {
                let actor = self.random.below(self.actors[node].len());
                if self.actors[node][actor].instruction.is_none() {
                    let instruction = self.choose(node, actor);
                    self.actors[node][actor].instruction = Some(instruction);
                }
                self.execute(node, actor);
            }
        }
    }
}

fn run(seed: u64, setting: &Setting) -> World {
    let mut world = World::new(seed, setting.shares, setting.more);
    for node in &mut world.nodes {
        node.links.room = setting.room;
    }
    for step in 0..setting.steps {
        world.step();
        if step % 64 == 0 {
            world.check();
        }
    }
    for node in 0..world.nodes.len() {
        // Sometimes a vCPU runs on and nothing is known of it.
        if world.random.one_in(2) {
            world.nodes[node].links.progress.fill(None);
        }
    }
    world.settle();
    world.check_quiet();
    world
}

#[test]
fn every_read_sees_the_latest_write() {
    for seed in 0..30 {
        let setting = Setting { shares: &[(2, 40), (2, 30)], more: 70, room: 100, steps: 6_000 };
        let world = run(seed, &setting);
        assert_eq!(world.refused, 0);
        assert!(world.total(|sharing| sharing.fetched) > 100);
        assert_eq!(world.total(|sharing| sharing.dropped.unexpected + sharing.dropped.malformed), 0);
    }
    for seed in 0..20 {
        let setting = Setting { shares: &[(1, 20), (3, 50), (2, 10)], more: 100, room: 100, steps: 8_000 };
        let world = run(seed, &setting);
        assert_eq!(world.refused, 0);
    }
}

#[test]
fn an_interconnect_without_room_only_delays() {
    for seed in 0..30 {
        let setting = Setting { shares: &[(2, 20), (2, 20), (1, 10)], more: 40, room: 1, steps: 8_000 };
        let world = run(seed, &setting);
        assert!(world.total(|sharing| sharing.full) > 10);
        assert_eq!(world.refused, 0);
    }
}

#[test]
fn pages_are_pushed_where_there_is_room() {
    let mut taken = 0;
    for seed in 0..30 {
        let setting = Setting { shares: &[(2, 20), (1, 60)], more: 4, room: 3, steps: 8_000 };
        let world = run(seed, &setting);
        taken += world.total(|sharing| sharing.taken);
    }
    assert!(taken > 100, "{taken}");
}
