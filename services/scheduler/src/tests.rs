//! The service: when it looks, and what it tells.

use core::cell::{Cell, RefCell};
use std::vec::Vec;

use super::*;
use ipc::abi::{Error, Token};

/// Two cores and two vCPUs.
#[derive(Default)]
struct Node {
    cores: Cell<[[u64; 4]; 2]>,
    vcpus: Cell<[[u64; 4]; 2]>,
    steal: Cell<[u64; 2]>,
    moves: RefCell<Vec<Move>>,
}

impl Inspector for &Node {
    fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
        let index = usize::try_from(index).map_err(|_| Error::NoSuchItem)?;
        match item {
            Inspect::Core => self.cores.get().get(index).copied(),
            Inspect::Vcpu => self.vcpus.get().get(index).copied(),
            Inspect::VcpuTime => self.steal.get().get(index).map(|&steal| [steal, 1, 2, 0]),
            _ => panic!("{item:?} is not its business"),
        }
        .ok_or(Error::NoSuchItem)
    }
}

impl Placer for &Node {
    fn place(&mut self, to: Move) {
        self.moves.borrow_mut().push(to);
        let mut vcpus = self.vcpus.get();
        vcpus[to.vcpu][3] = vcpus[to.vcpu][3] & !0xffff | to.core as u64;
        self.vcpus.set(vcpus);
    }
}

const CALLER: Caller = Caller::of(Token::new(0, 1, 1));
const READY: u64 = 1 << 16;
const HALTED: u64 = 2 << 16;

#[test]
fn loads_are_those_of_the_last_period() {
    let node = Node::default();
    let mut scheduler = Scheduler::new(&node, None::<&Node>, Clock::new(1_000));
    assert_eq!(scheduler.cores(CALLER), Ok(Cores::new()));
    assert_eq!(scheduler.vcpus(CALLER), Ok(Vcpus::new()));
    scheduler.look(5);
    assert_eq!(scheduler.next_look(), 1_005);
    node.cores.set([[250, 750, 7, 8], [1_000, 0, 9, 10]]);
    node.vcpus.set([[200, 0, 0, HALTED], [500, 0, 0, READY | 1]]);
    node.steal.set([100, 50]);
    scheduler.look(1_004);
    assert_eq!(scheduler.cores(CALLER).unwrap()[0].load_permille, 0);
    scheduler.look(1_005);
    let cores = scheduler.cores(CALLER).unwrap();
    assert_eq!(cores[0], CoreLoad { load_permille: 250, switches: 7, interrupts: 8 });
    assert_eq!(cores[1], CoreLoad { load_permille: 1_000, switches: 9, interrupts: 10 });
    assert_eq!(cores.len(), 2);
    let vcpus = scheduler.vcpus(CALLER).unwrap();
    assert_eq!(vcpus[0], VcpuLoad { core: 0, load_permille: 200, steal_permille: 100 });
    assert_eq!(vcpus[1], VcpuLoad { core: 1, load_permille: 500, steal_permille: 50 });
    assert_eq!(vcpus.len(), 2);
}

#[test]
fn it_looks_often_only_while_a_vcpu_wants_a_core() {
    let node = Node::default();
    let mut scheduler = Scheduler::new(&node, Some(&node), Clock::new(1_000));
    let state = |states: [u64; 2]| {
        node.vcpus.set([0, 1].map(|vcpu| {
            let [run, exits, faults, old] = node.vcpus.get()[vcpu];
            [run, exits, faults, old & 0xffff | states[vcpu]]
        }))
    };
    // Who is ready runs for half of the time between two looks.
    let run_until = |scheduler: &mut Scheduler<&Node, &Node>, end: u64| {
        let (mut looks, mut last) = (0, scheduler.next_look());
        while scheduler.next_look() <= end {
            let now = scheduler.next_look();
            node.vcpus.set(node.vcpus.get().map(|[run, exits, faults, state]| {
                let ran = if state & READY == READY { (now - last) / 2 } else { 0 };
                [run + ran, exits, faults, state]
            }));
            scheduler.look(now);
            (looks, last) = (looks + 1, now);
        }
        looks
    };
    state([HALTED, HALTED]);
    assert!(run_until(&mut scheduler, 10_000) <= 12);
    // Both begin to want the same core, and never wait again.
    state([READY, READY]);
    assert!(run_until(&mut scheduler, 12_000) >= 10);
    assert_eq!(*node.moves.borrow(), [Move { vcpu: 1, core: 1 }]);
    state([HALTED, HALTED]);
    run_until(&mut scheduler, 20_000);
    assert!(run_until(&mut scheduler, 30_000) <= 12);
    assert_eq!(node.moves.borrow().len(), 1);
}

#[test]
fn where_there_is_no_choice_nothing_is_placed() {
    struct OneCore;
    impl Inspector for OneCore {
        fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
            let present = !matches!(item, Inspect::Core) || index == 0;
            if present { Ok([0, 0, 0, READY]) } else { Err(Error::NoSuchItem) }
        }
    }
    struct Nobody;
    impl Placer for Nobody {
        fn place(&mut self, to: Move) {
            panic!("{to:?}");
        }
    }
    let mut scheduler = Scheduler::new(OneCore, Some(Nobody), Clock::new(1_000));
    for now in 0..10_000 {
        if now >= scheduler.next_look() {
            assert_eq!(now % LOOK_MS, 0);
            scheduler.look(now);
        }
    }
    assert_eq!(scheduler.vcpus(CALLER).unwrap().len(), MAX_VCPUS);
}
