//! Rates and totals of vCPUs, out of counters that grow, stand still, wrap or lie.

use core::cell::RefCell;

use super::*;
use ipc::abi::Error;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The words of [`Inspect::Vcpu`] and [`Inspect::VcpuTime`] of each vCPU.
#[derive(Default)]
struct Node(RefCell<Vec<([u64; 4], [u64; 4]), 100>>);

impl Node {
    fn set(&self, index: usize, vcpu: [u64; 4], time: [u64; 4]) {
        let mut vcpus = self.0.borrow_mut();
        while vcpus.len() <= index {
            vcpus.push(([0; 4], [0; 4])).unwrap();
        }
        vcpus[index] = (vcpu, time);
    }
}

impl Inspector for Node {
    fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
        let vcpus = self.0.borrow();
        let (vcpu, time) =
            usize::try_from(index).ok().and_then(|index| vcpus.get(index)).ok_or(Error::NoSuchItem)?;
        match item {
            Inspect::Vcpu => Ok(*vcpu),
            Inspect::VcpuTime => Ok(*time),
            _ => Err(Error::Refused),
        }
    }
}

fn state(core: u64, activity: VcpuActivity, halts: u64) -> u64 {
    core | (activity as u64) << 16 | halts << 32
}

#[test]
fn rates_are_those_between_two_looks() {
    let (node, mut vcpus) = (Node::default(), Vcpus::new(Clock::new(1_000)));
    node.set(0, [10_000, 100, 200, state(3, VcpuActivity::Running, 300)], [500, 0, 0, 0]);
    node.set(1, [0, 0, 0, state(1, VcpuActivity::Halted, 0)], [0; 4]);
    vcpus.look(&node, 20_000);
    // What was before the first look is in no rate.
    let first = vcpus.vcpu(&node, 0).unwrap();
    assert_eq!((first.exits, first.load_permille), (Count { total: 100, per_second: 0 }, 0));
    node.set(0, [11_500, 1_100, 250, state(2, VcpuActivity::AtExit, 310)], [900, 0, 0, 0]);
    vcpus.look(&node, 22_000);
    let expected = VcpuHealth {
        activity: VcpuActivity::AtExit,
        core: 2,
        load_permille: 750,
        steal_permille: 200,
        exits: Count { total: 1_100, per_second: 500 },
        faults: Count { total: 250, per_second: 25 },
        halts: Count { total: 310, per_second: 5 },
        steal_ms: 900,
    };
    assert_eq!(vcpus.vcpu(&node, 0), Some(expected));
    let idle = vcpus.vcpu(&node, 1).unwrap();
    assert_eq!((idle.activity, idle.core, idle.load_permille), (VcpuActivity::Halted, 1, 0));
    assert_eq!(vcpus.vcpu(&node, 2), None);
    let summary =
        GuestSummary { vcpus: 2, mean_permille: 375, steal_permille: 100, exits: 500, faults: 25, halts: 5 };
    assert_eq!(vcpus.summary(), Some(summary));
}

#[test]
fn a_summary_is_of_the_time_since_the_last() {
    let (node, mut vcpus) = (Node::default(), Vcpus::new(Clock::new(1_000)));
    assert_eq!(vcpus.summary(), None);
    for second in 0..30 {
        // It runs for ten seconds, and then no more.
        let run = (second * 100).min(1_000);
        let activity = if second < 10 { VcpuActivity::Running } else { VcpuActivity::Stopped };
        node.set(0, [run, run * 2, 0, state(0, activity, 0)], [0; 4]);
        vcpus.look(&node, second * 1_000);
        if second % 10 == 5 {
            let summary = vcpus.summary().map(|summary| (summary.mean_permille, summary.exits));
            let expected = match second {
                5 => Some((100, 200)),
                15 => Some((50, 100)),
                _ => None,
            };
            assert_eq!(summary, expected);
        }
    }
}

#[test]
fn the_count_of_halts_wraps() {
    let (node, mut vcpus) = (Node::default(), Vcpus::new(Clock::new(1_000)));
    for (now, halts) in [(1_000, u64::from(u32::MAX) - 3), (2_000, 6)] {
        node.set(0, [0, 0, 0, state(0, VcpuActivity::Halted, halts)], [0; 4]);
        vcpus.look(&node, now);
    }
    assert_eq!(vcpus.vcpu(&node, 0).unwrap().halts, Count { total: 6, per_second: 10 });
    assert_eq!(vcpus.summary().unwrap().halts, 10);
    // A guest that does nothing is one.
    vcpus.look(&node, 3_000);
    assert_eq!(vcpus.summary(), Some(GuestSummary { vcpus: 1, ..GuestSummary::default() }));
}

#[test]
fn counters_that_make_no_sense_are_bounded() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for hz in [0, 1, 1_000_000_000, u64::MAX] {
        let (node, mut vcpus) = (Node::default(), Vcpus::new(Clock::new(hz)));
        for _ in 0..500 {
            for index in 0..100 {
                node.set(index, random.random(), random.random());
            }
            vcpus.look(&node, random.random());
            for index in 0..=usize::from(u8::MAX) {
                let Some(vcpu) = vcpus.vcpu(&node, index) else { continue };
                assert!(index < MAX_VCPUS && vcpu.load_permille <= 1_000 && vcpu.steal_permille <= 1_000);
            }
            let _ = vcpus.summary();
        }
    }
}
