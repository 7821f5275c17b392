use core::num::NonZeroU64;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const HZ: u64 = 1_000_000_000;
/// 2023-11-14 22:13:20 UTC, a Tuesday.
const UNIX: u64 = 1_700_000_000;

fn rtc(unix: u64) -> Rtc {
    Rtc::new(Timebase::new(NonZeroU64::new(HZ).unwrap()), unix)
}

fn get(rtc: &mut Rtc, index: usize, now: u64) -> u8 {
    rtc.select(u8::try_from(index).unwrap());
    rtc.read(now)
}

fn set(rtc: &mut Rtc, index: usize, value: u8, now: u64) {
    rtc.select(u8::try_from(index).unwrap());
    rtc.write(value, now);
}

const TIME: [usize; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, CENTURY_BYTE];

fn time(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    TIME.map(|index| get(rtc, index, now))
}

#[test]
fn shows_the_time_in_all_formats() {
    let mut rtc = rtc(UNIX);
    assert_eq!(time(&mut rtc, 0), [0x20, 0x13, 0x22, 3, 0x14, 0x11, 0x23, 0x20]);
    assert_eq!(time(&mut rtc, 7 * HZ - 1)[0], 0x26);
    assert_eq!(time(&mut rtc, 7 * HZ)[0], 0x27);
    set(&mut rtc, REGISTER_B, B_BINARY | B_24_HOURS, 0);
    assert_eq!(time(&mut rtc, 0), [20, 13, 22, 3, 14, 11, 23, 20]);
    set(&mut rtc, REGISTER_B, B_BINARY, 0);
    assert_eq!(get(&mut rtc, HOURS, 0), HOUR_PM | 10);
    set(&mut rtc, REGISTER_B, 0, 0);
    assert_eq!(get(&mut rtc, HOURS, 0), HOUR_PM | 0x10);
    for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        let now = (hour + 24 - 22) * 3600 * HZ;
        assert_eq!(get(&mut rtc, HOURS, now), shown);
        assert_eq!(u64::from(rtc.decode_hour(shown)), hour);
    }
    assert_eq!(get(&mut rtc, REGISTER_D, 0), 0x80);
}

/// Linux's mc146818_set_time: SET, divider reset, the bytes, and both back.
#[test]
fn is_set_as_linux_sets_it() {
    let mut rtc = rtc(UNIX);
    let now = 5 * HZ + 123;
    set(&mut rtc, REGISTER_B, B_SET | B_24_HOURS, now);
    set(&mut rtc, REGISTER_A, A_AT_START | 0x70, now);
    for (index, value) in TIME.into_iter().zip([0x58, 0x59, 0x23, 1, 0x31, 0x12, 0x99, 0x19]) {
        set(&mut rtc, index, value, now);
    }
    // It stands still meanwhile.
    assert_eq!(time(&mut rtc, now + 100 * HZ)[..3], [0x58, 0x59, 0x23]);
    let now = now + 100 * HZ;
    set(&mut rtc, REGISTER_B, B_24_HOURS, now);
    set(&mut rtc, REGISTER_A, A_AT_START, now);
    // Half a second to the first update after the divider's reset.
    assert_eq!(time(&mut rtc, now + HZ / 2 - 1), [0x58, 0x59, 0x23, 6, 0x31, 0x12, 0x99, 0x19]);
    assert_eq!(time(&mut rtc, now + HZ / 2)[0], 0x59);
    assert_eq!(time(&mut rtc, now + HZ / 2 + HZ), [0, 0, 0, 7, 1, 1, 0, 0x20]);
}

#[test]
fn byte_written_while_it_runs_counts_at_once() {
    let mut rtc = rtc(UNIX);
    set(&mut rtc, MINUTES, 0x59, HZ / 2);
    assert_eq!(time(&mut rtc, HZ)[..3], [0x21, 0x59, 0x22]);
    set(&mut rtc, MONTH, 0x02, HZ);
    set(&mut rtc, DAY_OF_MONTH, 0x31, HZ);
    // 2023 has no 31 February.
    assert_eq!(time(&mut rtc, HZ)[4..], [0x03, 0x03, 0x23, 0x20]);
}

#[test]
fn update_in_progress_is_short_and_regular() {
    let mut rtc = rtc(UNIX);
    let mut up = 0;
    for millisecond in 0..10_000 {
        let now = millisecond * (HZ / 1000);
        if get(&mut rtc, REGISTER_A, now) & A_UPDATING != 0 {
            up += 1;
            assert!(millisecond % 1000 >= 998);
        }
    }
    assert_eq!(up, 20);
    set(&mut rtc, REGISTER_B, B_SET, HZ - 1);
    assert_eq!(get(&mut rtc, REGISTER_A, HZ - 1), A_AT_START);
    // It cannot be written.
    set(&mut rtc, REGISTER_A, 0xff, 0);
    assert_eq!(get(&mut rtc, REGISTER_A, 0), 0x7f);
}

#[test]
fn update_interrupt() {
    let mut rtc = rtc(UNIX);
    assert_eq!(rtc.next_event(0), None);
    set(&mut rtc, REGISTER_B, B_24_HOURS | UPDATE, HZ / 4);
    assert_eq!(rtc.next_event(HZ / 4), Some(HZ));
    assert!(!rtc.interrupt(HZ - 1));
    assert!(rtc.interrupt(HZ));
    assert_eq!(rtc.next_event(HZ), None, "the flag is up already");
    assert_eq!(get(&mut rtc, REGISTER_C, HZ) & !PERIODIC, C_INTERRUPT | UPDATE);
    assert!(!rtc.interrupt(HZ));
    assert_eq!(get(&mut rtc, REGISTER_C, HZ), 0);
    // Setting the clock takes it back.
    set(&mut rtc, REGISTER_B, B_SET | UPDATE, HZ);
    assert_eq!(get(&mut rtc, REGISTER_B, HZ), B_SET);
}

#[test]
fn flags_come_without_interrupts() {
    let mut rtc = rtc(UNIX);
    assert_eq!(get(&mut rtc, REGISTER_C, HZ), UPDATE | PERIODIC);
    set(&mut rtc, REGISTER_A, 0x20, HZ);
    assert_eq!(get(&mut rtc, REGISTER_C, 2 * HZ), UPDATE);
}

#[test]
fn periodic_interrupt() {
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rtc = rtc(UNIX);
        set(&mut rtc, REGISTER_A, 0x20 | rate, 0);
        set(&mut rtc, REGISTER_B, PERIODIC, 0);
        let (mut now, mut count) = (0, 0);
        while let Some(next) = rtc.next_event(now).filter(|&next| next <= HZ) {
            assert!(!rtc.interrupt(next - 1));
            assert!(rtc.interrupt(next));
            get(&mut rtc, REGISTER_C, next);
            now = next;
            count += 1;
        }
        assert_eq!(count, hz);
    }
}

#[test]
fn alarm() {
    let mut rtc = rtc(UNIX);
    for (index, value) in [(HOURS_ALARM, 0x23), (MINUTES_ALARM, 0x00), (SECONDS_ALARM, 0x05)] {
        set(&mut rtc, index, value, 0);
    }
    set(&mut rtc, REGISTER_B, B_24_HOURS | ALARM, 0);
    // From 22:13:20.
    let at = (46 * 60 + 45) * HZ;
    assert_eq!(rtc.next_event(0), Some(at));
    assert!(!rtc.interrupt(at - 1));
    assert!(rtc.interrupt(at));
    assert_eq!(get(&mut rtc, REGISTER_C, at) & ALARM, ALARM);
    assert_eq!(rtc.next_event(at), Some(at + 86_400 * HZ));
    // Every minute at second 5.
    set(&mut rtc, HOURS_ALARM, 0xff, at);
    set(&mut rtc, MINUTES_ALARM, 0xc0, at);
    assert_eq!(rtc.next_event(at), Some(at + 60 * HZ));
    // Never.
    set(&mut rtc, SECONDS_ALARM, 0x75, at);
    assert_eq!(rtc.next_event(at), None);
}

#[test]
fn next_match_is_the_first_of_a_search() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for _ in 0..300 {
        let mut part = |end| match random.random_range(0..3) {
            0 => Match::Any,
            1 => Match::Only(random.random_range(0..end)),
            _ => Match::Only(random.random_range(0..end + 2)),
        };
        let alarm = [part(24), part(60), part(60)];
        let from = random.random_range(0..DAY);
        let searched = (1..=DAY).find(|later| {
            let at = (from + later) % DAY;
            let parts = [at / 3600, at / 60 % 60, at % 60];
            alarm.iter().zip(parts).all(|(part, value)| part.has(u8::try_from(value).unwrap()))
        });
        assert_eq!(
            next_match(alarm, from),
            searched.map(|at| u64::try_from(at).unwrap()),
            "{alarm:?} {from}"
        );
    }
}

#[test]
fn calendar_goes_both_ways() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let known = |unix, century, year, month, day, weekday| {
        let shown = Calendar::from_unix(unix);
        let expected = (century, year, month, day, weekday);
        assert_eq!((shown.century, shown.year, shown.month, shown.day, shown.weekday), expected);
    };
    known(0, 19, 70, 1, 1, 5);
    known(951_782_400, 20, 0, 2, 29, 3);
    known(4_107_542_400, 21, 0, 3, 1, 2);
    known(-1, 19, 69, 12, 31, 4);
    known(253_402_300_799, 99, 99, 12, 31, 6);
    for _ in 0..100_000 {
        let unix = random.random_range(-62_167_219_200..253_402_300_800_i64);
        let calendar = Calendar::from_unix(unix);
        assert_eq!(calendar.to_unix(), unix);
        assert!((1..=12).contains(&calendar.month) && (1..=31).contains(&calendar.day));
    }
    for unix in [i64::MIN, i64::MAX, i64::MIN + 1, -62_167_219_201, 253_402_300_800] {
        let calendar = Calendar::from_unix(unix);
        assert!(calendar.century < 100 && calendar.year < 100 && calendar.hour < 24, "{calendar:?}");
    }
}

#[test]
fn memory_is_kept_and_nmi_masked() {
    let mut rtc = rtc(UNIX);
    for index in (14..128).filter(|&index| index != CENTURY_BYTE) {
        set(&mut rtc, index, u8::try_from(index).unwrap() ^ 0xa5, 0);
    }
    for index in (14..128).filter(|&index| index != CENTURY_BYTE) {
        assert_eq!(get(&mut rtc, index, 9 * HZ), u8::try_from(index).unwrap() ^ 0xa5);
    }
    rtc.select(0x80 | 14);
    assert!(rtc.nmi_masked());
    assert_eq!(rtc.read(0), 14 ^ 0xa5);
}

#[test]
fn random_accesses_never_panic_and_time_never_stops() {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for tsc_hz in [1, 3, HZ, u64::MAX] {
        let mut rtc = Rtc::new(Timebase::new(NonZeroU64::new(tsc_hz).unwrap()), random.random());
        let mut now = 0_u64;
        for _ in 0..50_000 {
            now = now.saturating_add(random.random::<u64>() >> random.random_range(0..64));
            rtc.select(random.random());
            match random.random_range(0..4) {
                0 => rtc.write(random.random(), now),
                1 => _ = rtc.read(now),
                2 => _ = rtc.interrupt(now),
                _ => {
                    let next = rtc.next_event(now);
                    assert!(
                        next.is_none_or(|next| next > now || now == u64::MAX || tsc_hz < 65_536),
                        "{next:?} {now}"
                    );
                }
            }
            if random.random_ratio(1, 1000) {
                now = random.random_range(0..1 << 40);
                rtc = Rtc::new(Timebase::new(NonZeroU64::new(tsc_hz).unwrap()), random.random());
            }
        }
    }
}
