//! The node's own real-time clock, read: a Motorola MC146818 or what a chip set has in its place (data sheet of 1984; Intel's
//! chip-set data sheets, "Real Time Clock"). What a guest starts from: its own clock ([`crate::rtc`]) goes on by itself.
//!
//! The clock is taken to show UTC. Nothing is written to it but register numbers.

#[cfg(test)]
mod tests;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 10;
const REGISTER_B: u8 = 11;
/// Where firmware keeps the century, unless its FADT says otherwise; plain memory on a machine that keeps none.
const CENTURY: u8 = 0x32;

/// Register A: an update of the time is under way, or due within 244 us.
const UPDATING: u8 = 1 << 7;
/// Register B: somebody sets the time; it stands still.
const SETTING: u8 = 1 << 7;
/// Register B: the time is in binary, and not in BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23, and not 1 to 12.
const HOURS_24: u8 = 1 << 1;
/// In the hours: the second half of the day, when there are 12.
const AFTERNOON: u8 = 1 << 7;

/// Looks at register A for the end of an update. An update takes 2,228 us with its announcement (table 6), a look, which
/// is two accesses to an ISA bus, 1 us or more.
const MOST_LOOKS: u32 = 10_000;
/// Readings until two agree. Where no update comes in between, the first two do.
const MOST_READINGS: u32 = 8;

/// The registers of one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Reading {
    /// Seconds, minutes, hours, day, month, year, century.
    time: [u8; 7],
    register_b: u8,
}

/// Seconds since 1970 that the clock shows; `None` when it shows no time from 1970 to 2199 at all, as where there is no clock.
///
/// `read` reads the register of this number. It is called a bounded number of times.
pub fn unix_seconds(mut read: impl FnMut(u8) -> u8) -> Option<u64> {
    let mut last = reading(&mut read)?;
    for _ in 1..MOST_READINGS {
        // An update may begin while this thread is held up between two registers; two readings are not torn alike.
        let next = reading(&mut read)?;
        if next == last {
            return decode(next);
        }
        last = next;
    }
    None
}

/// Reads all registers when no update is under way; `None` when that is always.
fn reading(read: &mut impl FnMut(u8) -> u8) -> Option<Reading> {
    (0..MOST_LOOKS).find(|_| read(REGISTER_A) & UPDATING == 0)?;
    let time = [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY].map(&mut *read);
    Some(Reading { time, register_b: read(REGISTER_B) })
}

fn decode(Reading { time, register_b }: Reading) -> Option<u64> {
    if register_b & SETTING != 0 {
        return None;
    }
    let number = |byte: u8| if register_b & BINARY != 0 { Some(byte) } else { from_bcd(byte) };
    let [second, minute, hour, day, month, year, century] = time;
    let hour = if register_b & HOURS_24 != 0 {
        number(hour).filter(|hour| *hour < 24)?
    } else {
        let twelfth = number(hour & !AFTERNOON).filter(|hour| (1..=12).contains(hour))? % 12;
        if hour & AFTERNOON != 0 { twelfth + 12 } else { twelfth }
    };
    let [second, minute] = [number(second)?, number(minute)?];
    let year = full_year(number(year).filter(|year| *year < 100)?, number(century));
    if second > 59 || minute > 59 {
        return None;
    }
    let days = days_since_1970(year, number(month)?, number(day)?)?;
    Some(((days * 24 + u64::from(hour)) * 60 + u64::from(minute)) * 60 + u64::from(second))
}

fn from_bcd(byte: u8) -> Option<u8> {
    let (tens, ones) = (byte >> 4, byte & 0xf);
    (tens < 10 && ones < 10).then_some(tens * 10 + ones)
}

/// The year, of a century that is one of those that the clock can be of; of 1970 to 2069 where there is no such century.
fn full_year(year: u8, century: Option<u8>) -> u64 {
    let of_century = |century: u8| u64::from(century) * 100 + u64::from(year);
    let guessed = of_century(if year < 70 { 20 } else { 19 });
    match century {
        Some(19..=21) => century.map(of_century).filter(|year| *year >= 1970).unwrap_or(guessed),
        _ => guessed,
    }
}

/// Days from 1 January 1970 to a day; `None` when there is no such day.
fn days_since_1970(year: u64, month: u8, day: u8) -> Option<u64> {
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::from(month).checked_sub(1)?;
    let of_month =
        u64::from(day).checked_sub(1).filter(|day| months.get(month).is_some_and(|days| day < days))?;
    let before: u64 = months.iter().take(month).sum();
    let years: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    Some(years + before + of_month)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}
