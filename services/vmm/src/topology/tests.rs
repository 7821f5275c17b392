use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn shares(vcpus: &[u8]) -> Vec<Share> {
    (1..).zip(vcpus).map(|(node, &vcpus)| Share { node, vcpus, pages: 256 }).collect()
}

#[test]
fn one_share_is_numbered_from_0() {
    for vcpus in 1..=64 {
        let Topology { ids, core_bits, cores, cache_bits } = Topology::of(&shares(&[vcpus]));
        assert!(ids.into_iter().eq(0..vcpus.into()));
        assert_eq!((1_u32 << core_bits, cores), (u32::from(vcpus).next_power_of_two(), vec![vcpus]));
        assert_eq!(cache_bits, core_bits);
    }
}

#[test]
fn each_node_is_a_package() {
    let topology = Topology::of(&shares(&[2, 3, 1]));
    assert_eq!(topology.ids, [0, 1, 4, 5, 6, 8]);
    assert_eq!((topology.core_bits, topology.cache_bits), (2, 2));
    assert_eq!(topology.cores, [2, 3, 1]);
    let single = Topology::of(&shares(&[1, 1]));
    assert_eq!((single.ids, single.core_bits), (vec![0, 1], 0));
}

#[test]
fn too_many_numbers_are_one_package() {
    let mut vcpus = [1; 32];
    vcpus[3] = 33;
    let topology = Topology::of(&shares(&vcpus));
    assert!(topology.ids.into_iter().eq(0..64));
    assert_eq!((topology.core_bits, topology.cache_bits), (6, 0));
    assert_eq!(topology.cores, [64; 32]);
}

#[test]
fn ids_are_different_and_below_the_io_apics() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..2000 {
        let nodes = random.random_range(1..=32);
        let mut left = 64 - nodes;
        let vcpus: Vec<u8> = (0..nodes)
            .map(|_| {
                let more = random.random_range(0..=left);
                left -= more;
                1 + more
            })
            .collect();
        let topology = Topology::of(&shares(&vcpus));
        let different: BTreeSet<u32> = topology.ids.iter().copied().collect();
        assert_eq!(different.len(), topology.ids.len());
        assert_eq!(topology.ids.len(), vcpus.iter().map(|&vcpus| usize::from(vcpus)).sum::<usize>());
        assert!(topology.ids.iter().all(|&id| id < IO_APIC_ID.into()));
        let mut ids = topology.ids.iter();
        for (&own, &cores) in vcpus.iter().zip(&topology.cores) {
            assert!(u32::from(cores) <= 1 << topology.core_bits && own <= cores);
            let caches: BTreeSet<u32> =
                ids.by_ref().take(own.into()).map(|id| id >> topology.cache_bits).collect();
            assert!(topology.cache_bits == 0 || caches.len() == 1, "no cache reaches beyond a node");
        }
    }
}
