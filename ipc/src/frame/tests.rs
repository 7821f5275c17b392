use std::collections::HashMap;
use std::vec::Vec;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{FrameDescriptor, FrameError, FrameHandle, FramePool, FrameRecord};

#[test]
fn a_handle_keeps_its_parts() {
    let handle = FrameHandle::new(0xab, 0xdead_beef, 0x12_3456);
    assert_eq!((handle.pool(), handle.index(), handle.generation()), (0xab, 0xdead_beef, 0x12_3456));
    assert_eq!(handle.0, 0x1234_56de_adbe_efab);
    assert_eq!(handle.offset(), 0xdead_beef_u64 * 4096);
    assert_eq!(FrameHandle::new(1, 2, u32::MAX).generation(), 0xff_ffff);
}

#[test]
fn a_descriptor_stays_within_its_frame() {
    let range = |offset, length| FrameDescriptor { offset, length, ..FrameDescriptor::default() }.range();
    assert_eq!(range(0, 4096), Some(0..4096));
    assert_eq!(range(4095, 1), Some(4095..4096));
    assert_eq!(range(4096, 0), Some(4096..4096));
    assert_eq!(range(1, 4096), None);
    assert_eq!(range(u16::MAX, u32::MAX), None);
}

#[test]
fn each_wrong_claim_is_named() {
    let mut records = [FrameRecord::NEW; 2];
    let mut pool = FramePool::new(7, &mut records);
    let handle = pool.allocate().unwrap();
    let (index, generation) = (handle.index(), handle.generation());
    assert_eq!(pool.take_back(handle, 3), Err(FrameError::NotLentTo { holder: 3 }));
    pool.lend(handle, 3).unwrap();
    assert_eq!(pool.take_back(handle, 4), Err(FrameError::NotLentTo { holder: 4 }));
    assert_eq!(pool.lend(handle, 4), Err(FrameError::NotOwned));
    assert_eq!(pool.free(handle), Err(FrameError::NotOwned));
    let other = FrameHandle::new(8, index, generation);
    assert_eq!(pool.take_back(other, 3), Err(FrameError::ForeignPool { pool: 8 }));
    let outside = FrameHandle::new(7, u32::MAX, generation);
    assert_eq!(pool.take_back(outside, 3), Err(FrameError::NoSuchFrame { index: u32::MAX }));
    let back = pool.take_back(handle, 3).unwrap();
    let stale = FrameError::Stale { generation, present: back.generation() };
    assert_eq!(pool.take_back(handle, 3), Err(stale));
    assert_eq!(pool.free(handle), Err(stale));
    // Lent to the same service again, the old handle stays stale.
    pool.lend(back, 3).unwrap();
    assert_eq!(pool.take_back(handle, 3), Err(stale));
    assert_eq!(pool.revoke(4), 0);
    assert_eq!(pool.revoke(3), 1);
    assert!(matches!(pool.take_back(back, 3), Err(FrameError::Stale { .. })));
    pool.allocate().unwrap();
    pool.allocate().unwrap();
    assert_eq!(pool.allocate(), Err(FrameError::Exhausted));
}

#[test]
fn handles_from_before_the_owners_restart_are_stale() {
    let mut records = [FrameRecord::NEW; 4];
    let mut pool = FramePool::new(1, &mut records);
    let handle = pool.allocate().unwrap();
    pool.lend(handle, 3).unwrap();
    let mut pool = FramePool::new(1, &mut records);
    assert_eq!(pool.free_count(), 4);
    assert!(matches!(pool.take_back(handle, 3), Err(FrameError::Stale { .. })));
}

/// Random operations against a map from handle to hands (`None`: the owner's).
#[test]
fn no_frame_is_ever_in_two_hands() {
    const FRAMES: usize = 16;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut records = [FrameRecord::NEW; FRAMES];
    let mut pool = FramePool::new(2, &mut records);
    let mut model: HashMap<FrameHandle, Option<u8>> = HashMap::new();
    let mut ever = Vec::from([FrameHandle(0)]);
    let (mut done, mut refused) = (0, 0);
    for _ in 0..200_000 {
        // A handle that is or was good, or a forged one.
        let mut handle = *ever.choose(&mut random).unwrap();
        if random.random_bool(0.5) && !model.is_empty() {
            let nth = random.random_range(0..model.len());
            handle = *model.keys().nth(nth).unwrap();
        } else if random.random_bool(0.2) {
            handle = FrameHandle(handle.0 ^ 1 << random.random_range(0..64));
        }
        let holder = random.random_range(0..3);
        let there = model.get(&handle).copied();
        let ok = match random.random_range(0..100) {
            0..30 => match pool.allocate() {
                Ok(handle) => {
                    assert!(model.keys().all(|other| other.index() != handle.index()), "already in hands");
                    assert!(!ever.contains(&handle), "a handle stands for one allocation");
                    model.insert(handle, None);
                    ever.push(handle);
                    true
                }
                Err(error) => {
                    assert_eq!((error, model.len()), (FrameError::Exhausted, FRAMES));
                    false
                }
            },
            30..45 => {
                let ok = pool.free(handle).is_ok();
                assert_eq!(ok, there == Some(None));
                if ok {
                    model.remove(&handle);
                }
                ok
            }
            45..75 => {
                let ok = pool.lend(handle, holder).is_ok();
                assert_eq!(ok, there == Some(None));
                if ok {
                    model.insert(handle, Some(holder));
                }
                ok
            }
            75..99 => {
                let result = pool.take_back(handle, holder);
                assert_eq!(result.is_ok(), there == Some(Some(holder)));
                if let Ok(back) = result {
                    model.remove(&handle);
                    model.insert(back, None);
                    ever.push(back);
                }
                result.is_ok()
            }
            _ => {
                let before = model.len();
                model.retain(|_, hands| *hands != Some(holder));
                assert_eq!(pool.revoke(holder), before - model.len());
                true
            }
        };
        *(if ok { &mut done } else { &mut refused }) += 1;
        assert_eq!(pool.free_count(), FRAMES - model.len());
        // Old handles matter, but not all of them.
        if ever.len() > 400 {
            ever.drain(..200);
        }
    }
    assert!(done > 20_000 && refused > 20_000, "{done} {refused}");
}
