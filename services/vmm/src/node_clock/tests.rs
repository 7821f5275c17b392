//! Clocks of every mode, at every moment, absent, broken, and in the middle of an update.

use std::cell::Cell;
use std::num::NonZeroU64;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::clock::Timebase;
use crate::rtc::Rtc;

/// 2024-02-29 23:59:58.
const LEAP_DAY: u64 = 1_709_251_198;

fn bcd(number: u8) -> u8 {
    ((number / 10) << 4) | (number % 10)
}

/// A clock that stands still: year, month, day, hour, minute, second as numbers, in 24 hours.
fn still(register_b: u8, date: [u8; 4], time: [u8; 3]) -> impl FnMut(u8) -> u8 {
    let [century, year, month, day] = date;
    let [hour, minute, second] = time;
    let coded = move |number| if register_b & BINARY != 0 { number } else { bcd(number) };
    let hour = match (register_b & HOURS_24 != 0, hour) {
        (true, hour) => coded(hour),
        (false, 0) => coded(12),
        (false, 12) => coded(12) | AFTERNOON,
        (false, hour @ 13..) => coded(hour - 12) | AFTERNOON,
        (false, hour) => coded(hour),
    };
    move |register| match register {
        SECONDS => coded(second),
        MINUTES => coded(minute),
        HOURS => hour,
        DAY => coded(day),
        MONTH => coded(month),
        YEAR => coded(year),
        REGISTER_A => 0x26,
        REGISTER_B => register_b,
        CENTURY => coded(century),
        _ => panic!("register {register:#x} is not its business"),
    }
}

const MODES: [u8; 4] = [0, BINARY, HOURS_24, BINARY | HOURS_24];

#[test]
fn every_mode_is_understood() {
    for mode in MODES {
        assert_eq!(unix_seconds(still(mode, [20, 24, 2, 29], [23, 59, 58])), Some(LEAP_DAY));
        assert_eq!(unix_seconds(still(mode, [19, 70, 1, 1], [0, 0, 0])), Some(0));
        assert_eq!(unix_seconds(still(mode, [20, 0, 3, 1], [12, 30, 0])), Some(951_913_800));
        assert_eq!(unix_seconds(still(mode, [21, 0, 3, 1], [0, 0, 1])), Some(4_107_542_401));
        for hour in 0..24 {
            let shown = unix_seconds(still(mode, [20, 26, 7, 4], [hour, 1, 2]));
            assert_eq!(shown, Some(1_783_123_200 + u64::from(hour) * 3_600 + 62), "{hour} in {mode:#x}");
        }
    }
}

#[test]
fn a_century_counts_when_it_can_be_one() {
    for (century, year, full) in [
        (20, 26, 2026),
        (19, 99, 1999),
        (21, 5, 2105),
        // No century is kept: what is there is anything.
        (0, 26, 2026),
        (0, 70, 1970),
        (99, 69, 2069),
        (18, 99, 1999),
        (22, 0, 2000),
        // 1926 was before the clock was made.
        (19, 26, 2026),
    ] {
        assert_eq!(full_year(year, Some(century)), full);
        assert!(unix_seconds(still(HOURS_24, [century, year, 1, 1], [0, 0, 0])).is_some());
    }
    assert_eq!(full_year(26, None), 2026);
}

#[test]
fn what_is_no_time_is_none() {
    let (day, noon) = ([20, 26, 7, 4], [12, 0, 0]);
    for mode in MODES {
        assert!(unix_seconds(still(mode, day, noon)).is_some());
        for date in [
            [20, 26, 0, 4],
            [20, 26, 13, 4],
            [20, 26, 7, 0],
            [20, 26, 7, 32],
            [20, 26, 6, 31],
            [20, 26, 2, 29],
            [21, 0, 2, 29],
        ] {
            assert_eq!(unix_seconds(still(mode, date, noon)), None, "{date:?}");
        }
        for time in [[12, 60, 0], [12, 0, 60]] {
            assert_eq!(unix_seconds(still(mode, day, time)), None, "{time:?}");
        }
        assert_eq!(unix_seconds(still(mode | SETTING, day, noon)), None);
    }
    for mode in [HOURS_24, HOURS_24 | BINARY] {
        assert_eq!(unix_seconds(still(mode, day, [24, 0, 0])), None);
    }
    for mode in [0, BINARY] {
        // Hours 0 and 13 of 12.
        for hour in [0, AFTERNOON, 0x13, 0x13 | AFTERNOON] {
            let mut clock = still(mode, day, noon);
            assert_eq!(unix_seconds(|register| if register == HOURS { hour } else { clock(register) }), None);
        }
    }
    // No BCD.
    let mut clock = still(HOURS_24, day, noon);
    assert_eq!(unix_seconds(|register| if register == MINUTES { 0x1a } else { clock(register) }), None);
    let mut clock = still(HOURS_24 | BINARY, [20, 100, 7, 4], noon);
    assert_eq!(unix_seconds(&mut clock), None);
}

#[test]
fn nothing_there_is_found_in_bounded_time() {
    for bus in [0xff, 0x00, 0x7f, UPDATING] {
        let mut reads = 0;
        let shown = unix_seconds(|_| {
            reads += 1;
            bus
        });
        assert_eq!(shown, None, "{bus:#x}");
        assert!(reads <= MOST_LOOKS, "{reads}");
    }
    // A clock that never shows the same twice.
    let mut reads = 0_u32;
    let mut clock = still(HOURS_24 | BINARY, [20, 26, 7, 4], [12, 0, 0]);
    let shown = unix_seconds(|register| {
        reads += 1;
        if register == SECONDS { (reads % 59).to_le_bytes()[0] } else { clock(register) }
    });
    assert_eq!(shown, None);
    assert!(reads < 100, "{reads}");
}

#[test]
fn an_update_under_way_is_waited_for() {
    let mut clock = still(HOURS_24, [20, 24, 2, 29], [23, 59, 58]);
    let mut looks = 0;
    let shown = unix_seconds(|register| match register {
        REGISTER_A => {
            looks += 1;
            if looks < 1_000 { UPDATING } else { 0x26 }
        }
        // While it is under way the time is nonsense.
        _ if looks < 1_000 => 0xff,
        register => clock(register),
    });
    assert_eq!(shown, Some(LEAP_DAY));
    assert_eq!(looks, 1_001);
}

#[test]
fn an_update_in_the_middle_of_a_reading_is_noticed() {
    // The update comes before the read of this number: 23:59:59 becomes 00:00:00 of the next day, year and century.
    for at in 0..40 {
        let mut before = still(HOURS_24, [20, 99, 12, 31], [23, 59, 59]);
        let mut after = still(HOURS_24, [21, 0, 1, 1], [0, 0, 0]);
        let mut reads = 0;
        let shown = unix_seconds(|register| {
            reads += 1;
            if reads <= at { before(register) } else { after(register) }
        });
        let end_of_century = 4_102_444_800;
        assert!(
            matches!(shown, Some(second) if second == end_of_century || second == end_of_century - 1),
            "{at}: {shown:?}"
        );
    }
}

#[test]
fn the_guests_clock_is_understood_too() {
    let hz = 1_000_000;
    let timebase = Timebase::new(NonZeroU64::new(hz).unwrap());
    let mut random = ChaCha8Rng::seed_from_u64(1);
    // 2199-12-31 23:59:59.
    let last = 7_258_118_399;
    for round in 0..20_000 {
        let start = if round == 0 { last - 10 } else { random.random_range(0..last - 10) };
        let mut clock = Rtc::new(timebase, start);
        let mode = MODES[random.random_range(0..4)];
        clock.select(REGISTER_B);
        clock.write(mode, 0);
        // Each access takes some microseconds.
        let now = Cell::new(random.random_range(0..9 * hz));
        let begin = now.get();
        let shown = unix_seconds(|register| {
            now.set(now.get() + random.random_range(1..20));
            clock.select(register);
            clock.read(now.get())
        });
        let range = start + begin / hz..=start + now.get() / hz;
        assert!(
            shown.is_some_and(|shown| range.contains(&shown)),
            "{shown:?} is not in {range:?}, {mode:#x}"
        );
    }
}

#[test]
fn any_bytes_give_a_time_or_none() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut times = 0;
    for round in 0..200_000 {
        // Every other round of bytes that are more often a time.
        let mask = [0xff, 0x17][round % 2];
        let bytes: [u8; 128] = random.random::<[u8; 128]>().map(|byte| byte & mask);
        let shown =
            unix_seconds(|register| if register == REGISTER_A { 0x26 } else { bytes[usize::from(register)] });
        if let Some(shown) = shown {
            assert!(shown < 7_258_118_400);
            times += 1;
        }
    }
    assert!(times > 1_000, "{times}");
}
