//! The timer against a clock that goes tick by tick.

use super::*;

const VECTOR: u8 = 0xec;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;

/// Enabled by software, with a TSC of this frequency.
fn at(tsc_hz: u64) -> LocalApic {
    let mut apic = with_tsc(0, Role::Application, tsc_hz);
    write(&mut apic, 0x80f, 0x1ff);
    apic
}

/// Takes and ends the timer's interrupt, if it is there.
fn take(apic: &mut LocalApic) -> bool {
    let vector = apic.acknowledge();
    assert!(vector.is_none_or(|vector| vector == VECTOR));
    write(apic, 0x80b, 0);
    vector.is_some()
}

/// A count as hardware has it: one step for each so many bus ticks.
struct Counter {
    initial: u64,
    count: u64,
    divisor: u64,
    part: u64,
    is_periodic: bool,
}

impl Counter {
    /// A bus tick; whether it fires.
    fn tick(&mut self) -> bool {
        if self.count == 0 {
            return false;
        }
        self.part += 1;
        if self.part < self.divisor {
            return false;
        }
        self.part = 0;
        self.count -= 1;
        let fires = self.count == 0;
        if fires && self.is_periodic {
            self.count = self.initial;
        }
        fires
    }
}

/// The bus ticks that are over at a TSC.
fn bus(tsc: u64, tsc_hz: u64) -> u64 {
    u64::try_from(u128::from(tsc) * 1_000_000_000 / u128::from(tsc_hz)).unwrap()
}

#[test]
fn counts_are_those_of_a_counter() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for round in 0..300 {
        // A slow TSC, so that a tick of it is many of the bus, reaches periods above the least in few steps.
        let tsc_hz = [1_000_000, 3_000_017, 999_999_999, 2_400_000_001][round % 4];
        let is_slow = tsc_hz < 10_000_000;
        let is_periodic = is_slow && rng.random();
        let mut apic = at(tsc_hz);
        let mut now = rng.random_range(0..1 << 40);
        let code = rng.random_range(0..8u64);
        let divisor = [2, 4, 8, 16, 32, 64, 128, 1][usize::try_from(code).unwrap()];
        let initial =
            if is_slow { 100_000 / divisor + rng.random_range(1..3_000) } else { rng.random_range(1..9) };
        write(&mut apic, 0x83e, code & 3 | (code & 4) << 1);
        write(&mut apic, 0x832, u64::from(VECTOR) | if is_periodic { PERIODIC } else { 0 });
        assert_eq!(apic.write(0x838, initial, now), Ok(Effect::None));
        let mut counter = Counter { initial, count: initial, divisor, part: 0, is_periodic };
        for _ in 0..1_500 {
            let due = apic.next_due();
            assert!(due.is_none_or(|due| due > now));
            assert_eq!(due.is_none(), counter.count == 0);
            assert_eq!(apic.read(0x839, now), Ok(counter.count), "at {now}");
            now += 1;
            let mut fires = false;
            for _ in bus(now - 1, tsc_hz)..bus(now, tsc_hz) {
                fires |= counter.tick();
            }
            assert_eq!(due == Some(now), fires, "at {now}");
            assert_eq!(apic.expire(now), fires);
            assert_eq!(take(&mut apic), fires);
            assert_eq!(apic.read(0x838, now), Ok(initial));
        }
    }
}

#[test]
fn a_periodic_timer_never_drifts_and_does_not_flood() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for tsc_hz in [1_000_000_000, 2_399_998_123, 10_000_000_000] {
        let mut apic = at(tsc_hz);
        write(&mut apic, 0x83e, 0xb);
        write(&mut apic, 0x832, u64::from(VECTOR) | PERIODIC);
        let start = 987_654_321;
        let period = 1_000_003;
        assert_eq!(apic.write(0x838, period, start), Ok(Effect::None));
        let mut zero = bus(start, tsc_hz) + period;
        for _ in 0..20_000 {
            let due = apic.next_due().unwrap();
            assert!(bus(due, tsc_hz) >= zero && bus(due - 1, tsc_hz) < zero);
            assert!(!apic.expire(due - 1));
            let now = due + if rng.random_ratio(1, 4) { rng.random_range(0..100_000_000) } else { 0 };
            assert!(apic.expire(now));
            assert!(!apic.expire(now));
            assert!(take(&mut apic));
            while zero <= bus(now, tsc_hz) {
                zero += period;
            }
        }
    }
}

#[test]
fn periods_that_are_too_short_are_thinned_out_but_counted() {
    let mut apic = at(1_000_000_000);
    write(&mut apic, 0x83e, 0xb);
    write(&mut apic, 0x832, u64::from(VECTOR) | PERIODIC);
    write(&mut apic, 0x838, 30_000);
    assert_eq!(apic.next_due(), Some(30_000));
    assert!(apic.expire(30_000));
    assert!(take(&mut apic));
    assert_eq!(apic.next_due(), Some(150_000));
    assert_eq!(apic.read(0x839, 40_000), Ok(20_000));
    // As a one-shot it ends with the period that runs.
    assert_eq!(apic.write(0x832, VECTOR.into(), 40_000), Ok(Effect::None));
    assert_eq!(apic.next_due(), Some(60_000));
    write(&mut apic, 0x832, u64::from(VECTOR) | PERIODIC);
    assert_eq!(apic.write(0x838, 1, 0), Ok(Effect::None));
    assert!(apic.expire(1));
    assert_eq!(apic.next_due(), Some(100_001));
}

#[test]
fn deadlines() {
    let mut apic = at(2_400_000_000);
    // In another mode there is none.
    write(&mut apic, 0x6e0, 5);
    assert_eq!(apic.read(0x6e0, 0), Ok(0));
    write(&mut apic, 0x832, u64::from(VECTOR) | DEADLINE);
    write(&mut apic, 0x6e0, 1_000);
    assert_eq!((apic.read(0x6e0, 999), apic.next_due()), (Ok(1_000), Some(1_000)));
    // The counts do nothing.
    write(&mut apic, 0x838, 50);
    assert_eq!((apic.read(0x838, 0), apic.read(0x839, 0)), (Ok(0), Ok(0)));
    assert_eq!(apic.read(0x6e0, 1_000), Ok(0));
    assert!(!apic.expire(999));
    assert!(apic.expire(1_000));
    assert!(take(&mut apic));
    assert_eq!((apic.read(0x6e0, 1_000), apic.next_due()), (Ok(0), None));
    // One that has passed is due at once.
    assert_eq!(apic.write(0x6e0, 1_500, 2_000), Ok(Effect::None));
    assert!(take(&mut apic));
    assert_eq!(apic.next_due(), None);
    // 0 disarms, and so does a change of mode.
    write(&mut apic, 0x6e0, 3_000);
    write(&mut apic, 0x6e0, 0);
    assert_eq!(apic.next_due(), None);
    write(&mut apic, 0x6e0, 3_000);
    write(&mut apic, 0x832, VECTOR.into());
    assert_eq!(apic.next_due(), None);
    write(&mut apic, 0x832, u64::from(VECTOR) | DEADLINE);
    assert_eq!((apic.read(0x6e0, 0), apic.next_due()), (Ok(0), None));
    // The one that was replaced too late has fired.
    write(&mut apic, 0x6e0, 4_000);
    assert_eq!(apic.write(0x6e0, 9_000, 5_000), Ok(Effect::None));
    assert!(take(&mut apic));
    assert_eq!(apic.next_due(), Some(9_000));
}

#[test]
fn a_masked_timer_goes_on_in_silence() {
    let mut apic = at(1_000_000_000);
    write(&mut apic, 0x83e, 0xb);
    write(&mut apic, 0x832, 0x1_0000 | u64::from(VECTOR) | PERIODIC);
    write(&mut apic, 0x838, 1_000_000);
    assert_eq!(apic.next_due(), None);
    assert!(!apic.expire(1_500_000));
    assert_eq!(apic.read(0x839, 3_600_000), Ok(400_000));
    assert_eq!(apic.write(0x832, u64::from(VECTOR) | PERIODIC, 5_600_000), Ok(Effect::None));
    assert_eq!(apic.deliverable(), None);
    assert_eq!(apic.next_due(), Some(6_000_000));
    // A deadline that passes masked is over.
    write(&mut apic, 0x832, 0x1_0000 | u64::from(VECTOR) | DEADLINE);
    assert_eq!(apic.write(0x6e0, 7_000_000, 6_000_000), Ok(Effect::None));
    assert_eq!(apic.write(0x832, u64::from(VECTOR) | DEADLINE, 8_000_000), Ok(Effect::None));
    assert_eq!((apic.deliverable(), apic.next_due()), (None, None));
    // A deadline before the mask is not.
    assert_eq!(apic.write(0x6e0, 9_000_000, 8_000_000), Ok(Effect::None));
    assert_eq!(apic.write(0x832, 0x1_0000 | u64::from(VECTOR) | DEADLINE, 9_000_001), Ok(Effect::None));
    assert!(take(&mut apic));
}

#[test]
fn the_divisor_changes_the_pace_and_not_the_count() {
    let mut apic = at(1_000_000_000);
    write(&mut apic, 0x832, VECTOR.into());
    write(&mut apic, 0x838, 1_000);
    assert_eq!(apic.next_due(), Some(2_000));
    assert_eq!(apic.write(0x83e, 3, 400), Ok(Effect::None));
    assert_eq!(apic.read(0x839, 400), Ok(800));
    assert_eq!(apic.next_due(), Some(400 + 800 * 16));
}

#[test]
fn from_one_shot_to_periodic_the_count_goes_on() {
    let mut apic = at(1_000_000_000);
    write(&mut apic, 0x83e, 0xb);
    write(&mut apic, 0x832, VECTOR.into());
    write(&mut apic, 0x838, 1_000_000);
    assert_eq!(apic.write(0x832, u64::from(VECTOR) | PERIODIC, 300_000), Ok(Effect::None));
    assert_eq!(apic.next_due(), Some(1_000_000));
    assert!(apic.expire(1_000_000));
    assert_eq!(apic.next_due(), Some(2_000_000));
    // The reserved mode counts nothing.
    write(&mut apic, 0x832, u64::from(VECTOR) | 3 << 17);
    write(&mut apic, 0x838, 1_000);
    write(&mut apic, 0x6e0, 1_000);
    assert_eq!((apic.next_due(), apic.read(0x839, 0), apic.read(0x838, 0)), (None, Ok(0), Ok(0)));
    assert!(!apic.expire(u64::MAX));
}

#[test]
fn a_change_of_the_tsc_moves_a_count_and_not_a_deadline() {
    for (from, to) in [(5_000, 0), (5_000, 1 << 50), (5_000, 5_001)] {
        let mut apic = at(1_000_000_000);
        write(&mut apic, 0x83e, 0xb);
        write(&mut apic, 0x832, VECTOR.into());
        write(&mut apic, 0x838, 12_000);
        apic.tsc_changed(from, to);
        assert_eq!((apic.next_due(), apic.read(0x839, to)), (Some(to + 7_000), Ok(7_000)));
        write(&mut apic, 0x832, u64::from(VECTOR) | DEADLINE);
        write(&mut apic, 0x6e0, 12_000);
        apic.tsc_changed(from, to);
        assert_eq!(apic.next_due(), Some(12_000));
    }
}

#[test]
fn the_longest_count_and_the_farthest_times() {
    for tsc_hz in [1, 1_000_000, 1_000_000_000, 17_000_000_000, u64::MAX] {
        for now in [0, 1 << 62, u64::MAX - 1, u64::MAX] {
            let mut apic = at(tsc_hz);
            write(&mut apic, 0x83e, 0xa);
            write(&mut apic, 0x832, u64::from(VECTOR) | PERIODIC);
            assert_eq!(apic.write(0x838, u32::MAX.into(), now), Ok(Effect::None));
            assert!(apic.next_due().is_none_or(|due| due > now));
            let _ = apic.read(0x839, now);
            apic.expire(u64::MAX);
            let _ = apic.read(0x839, u64::MAX);
            write(&mut apic, 0x832, u64::from(VECTOR) | DEADLINE);
            assert_eq!(apic.write(0x6e0, u64::MAX, now), Ok(Effect::None));
            apic.expire(u64::MAX);
        }
    }
    // 128 * (2^32 - 1) bus ticks at 3 GHz.
    let mut apic = at(3_000_000_000);
    write(&mut apic, 0x83e, 0xa);
    write(&mut apic, 0x832, VECTOR.into());
    write(&mut apic, 0x838, u32::MAX.into());
    assert_eq!(apic.next_due(), Some(3 * 128 * 0xffff_ffff));
}

#[test]
fn an_illegal_vector_is_an_error_and_no_interrupt() {
    let mut apic = at(1_000_000_000);
    write(&mut apic, 0x832, 0xf | DEADLINE);
    write(&mut apic, 0x6e0, 10);
    assert!(!apic.expire(10));
    assert_eq!(apic.deliverable(), None);
    write(&mut apic, 0x828, 0);
    assert_eq!(apic.read(0x828, 0), Ok(0x40));
}
