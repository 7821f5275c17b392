use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::memory::testing::Ram;

fn hz(hz: u64) -> NonZeroU64 {
    NonZeroU64::new(hz).unwrap()
}

#[test]
fn known_scales() {
    // 1 GHz: a tick is a nanosecond, 2 * 1/2.
    assert_eq!(Scale::of(hz(1_000_000_000)), Scale { multiplier: 0x8000_0000, shift: 1 });
    assert_eq!(Scale::of(hz(2_000_000_000)), Scale { multiplier: 0x8000_0000, shift: 0 });
    assert_eq!(Scale::of(hz(4_000_000_000)), Scale { multiplier: 0x8000_0000, shift: -1 });
    assert_eq!(Scale::of(hz(1)).shift, 30);
    assert_eq!(Scale::of(hz(u64::MAX)).shift, -34);
}

#[test]
fn scale_is_the_best_there_is() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..20_000 {
        let tsc_hz = random.random_range(1_000_000..=10_000_000_000);
        let scale = Scale::of(hz(tsc_hz));
        assert!(scale.multiplier >= 1 << 31);
        // multiplier * 2^shift * hz <= 10^9 * 2^32 < (multiplier + 1) * 2^shift * hz, in whole numbers.
        let (left, right) =
            (u32::try_from(scale.shift.max(0)).unwrap(), u32::from(scale.shift.min(0).unsigned_abs()));
        let exact = (u128::from(NANOSECONDS) << 32) << right;
        let step = u128::from(tsc_hz) << left;
        assert!(u128::from(scale.multiplier) * step <= exact, "{tsc_hz}");
        assert!(exact < (u128::from(scale.multiplier) + 1) * step, "{tsc_hz}");
        // A day of ticks: behind the truth by less than a part in 2^31, and what the shift to the right drops.
        let ticks = random.random_range(0..tsc_hz * 86_400);
        let truth = u128::from(ticks) * u128::from(NANOSECONDS) / u128::from(tsc_hz);
        let shown = u128::from(scale.nanoseconds(ticks));
        assert!(shown <= truth && truth - shown <= (truth >> 31) + 16, "{tsc_hz}: {shown} for {truth}");
    }
}

#[test]
fn timebase_is_exact_and_inverse() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..20_000 {
        let timebase = Timebase::new(hz(random.random_range(1..=10_000_000_000)));
        let rate = random.random_range(1..=NANOSECONDS);
        let count = random.random::<u64>() >> random.random_range(24..60);
        let ticks = timebase.ticks_at(count, rate);
        if ticks < u64::MAX {
            assert!(timebase.count(ticks, rate) >= count);
            assert!(ticks == 0 || timebase.count(ticks - 1, rate) < count);
        }
    }
    assert_eq!(Timebase::new(hz(1)).count(u64::MAX, 2), u64::MAX);
    assert_eq!(Timebase::new(hz(2)).ticks_at(u64::MAX, 1), u64::MAX);
    assert_eq!(Timebase::new(hz(2)).ticks_at(1, 0), u64::MAX);
}

/// Memory that keeps every write.
struct Recorder {
    ram: Ram,
    writes: Vec<(u64, Vec<u8>)>,
}

impl GuestMemory for Recorder {
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        self.ram.read(at, into)
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        self.writes.push((at.0, bytes.to_vec()));
        self.ram.write(at, bytes)
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        _: u64,
        _: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        Err(NotMemory(at))
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        _: u32,
        _: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        Err(NotMemory(at))
    }
}

#[test]
fn version_is_odd_during_the_change() {
    let clock = Clock::new(Timebase::new(hz(2_400_000_000)), 1);
    for before in [0_u32, 1, 6, 7, u32::MAX - 1, u32::MAX] {
        let mut memory = Recorder { ram: Ram::new(4096), writes: Vec::new() };
        memory.ram.write(GuestPhysAddr(64), &before.to_le_bytes()).unwrap();
        clock.publish(&mut memory, GuestPhysAddr(64), 0).unwrap();
        let [(_, first), (_, body), (_, last)] = &memory.writes[..] else { panic!("three writes") };
        let version = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!((first.len(), body.len(), last.len()), (4, 32, 4));
        assert_eq!(version(first) % 2, 1);
        assert_eq!(version(first), version(body));
        assert_eq!(version(last), version(first).wrapping_add(1));
        assert_ne!(version(last), before);
    }
}

#[test]
fn page_and_wall_clock() {
    let clock = Clock::new(Timebase::new(hz(2_000_000_000)), 1_700_000_000_123_456_789);
    let mut ram = Ram::new(4096);
    clock.publish(&mut ram, GuestPhysAddr(0x100), 5).unwrap();
    let info: TimeInfo = ram.get(GuestPhysAddr(0x100)).unwrap();
    let expected = TimeInfo {
        version: 2,
        tsc_timestamp: 5,
        tsc_to_system_mul: 0x8000_0000,
        flags: TSC_STABLE,
        ..TimeInfo::default()
    };
    assert_eq!(info, expected);
    clock.publish_wall(&mut ram, GuestPhysAddr(0x200)).unwrap();
    let wall: WallClock = ram.get(GuestPhysAddr(0x200)).unwrap();
    assert_eq!(wall, WallClock { version: 2, seconds: 1_700_000_000, nanoseconds: 123_456_789 });
}

#[test]
fn structure_that_leaves_memory_changes_nothing() {
    let clock = Clock::new(Timebase::new(hz(2_000_000_000)), 0);
    let mut ram = Ram::new(4096);
    for at in [4096 - 31, 4092, 4096, u64::MAX, u64::MAX - 31] {
        assert!(clock.publish(&mut ram, GuestPhysAddr(at), 0).is_err());
    }
    assert!(clock.publish_wall(&mut ram, GuestPhysAddr(4096 - 8)).is_err());
    assert!(ram.0.iter().all(|&byte| byte == 0));
}

#[test]
fn vcpus_agree_at_every_tick_and_rate() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut clock = Clock::new(Timebase::new(hz(3_000_000_000)), 0);
    let mut ram = Ram::new(4096);
    let (mut now, mut last) = (0_u64, 0);
    for _ in 0..1_000 {
        now += random.random_range(0..50_000_000_000);
        if random.random_ratio(1, 10) {
            clock.change_rate(Timebase::new(hz(random.random_range(1_000_000..10_000_000_000))), now);
        }
        for vcpu in 0..4_u64 {
            let skew = random.random::<u64>();
            let at = GuestPhysAddr(vcpu * 64);
            clock.publish(&mut ram, at, skew).unwrap();
            let info: TimeInfo = ram.get(at).unwrap();
            // As the guest computes it.
            let delta = now.wrapping_add(skew).wrapping_sub(info.tsc_timestamp);
            let delta = if info.tsc_shift < 0 { delta >> -info.tsc_shift } else { delta << info.tsc_shift };
            let time = (u128::from(delta) * u128::from(info.tsc_to_system_mul)) >> 32;
            assert_eq!(info.system_time + u64::try_from(time).unwrap(), clock.nanoseconds(now));
        }
        assert!(clock.nanoseconds(now) >= last, "time went back");
        last = clock.nanoseconds(now);
    }
}
