//! Dates and times of day as the clock's registers have them.

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// Days from 1 March of year 0 to 1 January 1970, and in ten thousand years (Gregorian).
const DAYS_TO_1970: i64 = 719_468;
const DAYS_OF_ALL_YEARS: i64 = 3_652_425;

/// A moment, in the units of the registers. `year` is of the century.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Calendar {
    pub second: u8,
    pub minute: u8,
    pub hour: u8,
    /// 1 is Sunday; not looked at by [`Calendar::to_unix`].
    pub weekday: u8,
    pub day: u8,
    pub month: u8,
    pub year: u8,
    pub century: u8,
}

impl Calendar {
    /// The moment so many seconds after 1970, the year modulo 10,000. Years begin in March here, so that the day that is
    /// not in every year is the last.
    pub fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY);
        let of_day = seconds.rem_euclid(DAY);
        let day_number = (days.rem_euclid(DAYS_OF_ALL_YEARS) + DAYS_TO_1970).rem_euclid(DAYS_OF_ALL_YEARS);
        let (era, of_era) = (day_number / 146_097, day_number % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        let year = (era * 400 + year_of_era + i64::from(month <= 2)) % 10_000;
        Self {
            second: narrow(of_day % 60),
            minute: narrow(of_day / 60 % 60),
            hour: narrow(of_day / 3600),
            // 1 January 1970 was a Thursday.
            weekday: narrow((days.rem_euclid(7) + 4) % 7 + 1),
            day: narrow(of_year - (153 * month_from_march + 2) / 5 + 1),
            month: narrow(month),
            year: narrow(year % 100),
            century: narrow(year / 100),
        }
    }

    /// Seconds after 1970 of this moment. What is out of range counts as the nearest that is in it; a day that its month
    /// has not is one of the next month.
    pub fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = (i64::from(self.century) * 100 + i64::from(self.year)) % 10_000 - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day.clamp(1, 31)) - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * 146_097 + of_era - DAYS_TO_1970;
        let minutes = i64::from(self.hour.min(23)) * 60 + i64::from(self.minute.min(59));
        days * DAY + minutes * 60 + i64::from(self.second.min(59))
    }
}

/// A part of a date, which is small by its computation.
fn narrow(part: i64) -> u8 {
    u8::try_from(part).unwrap_or(u8::MAX)
}

/// What a part of an alarm matches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Match {
    Any,
    Only(u8),
}

impl Match {
    /// Whether it matches the value.
    pub fn has(self, value: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Only(only) => only == value,
        }
    }
}

/// Seconds, 1 to a day, from a second of the day to the next that the alarm (hour, minute, second) matches.
pub fn next_match([hour, minute, second]: [Match; 3], of_day: i64) -> Option<u64> {
    let first_in = |part: Match, from: u8, end: u8| (from..end).find(|&value| part.has(value));
    let of_day = of_day.rem_euclid(DAY);
    let start = (of_day + 1) % DAY;
    let [from_hour, from_minute, from_second] = [start / 3600, start / 60 % 60, start % 60].map(narrow);
    // The rest of this hour, then the hours after it, up to the same again.
    (0..=24_u8).find_map(|later| {
        let this_hour = (from_hour + later) % 24;
        if !hour.has(this_hour) {
            return None;
        }
        let found = if later > 0 {
            (first_in(minute, 0, 60)?, first_in(second, 0, 60)?)
        } else {
            let in_minute = minute.has(from_minute).then(|| first_in(second, from_second, 60)).flatten();
            match in_minute {
                Some(second) => (from_minute, second),
                None => (first_in(minute, from_minute + 1, 60)?, first_in(second, 0, 60)?),
            }
        };
        let at = i64::from(this_hour) * 3600 + i64::from(found.0) * 60 + i64::from(found.1);
        // 1 to DAY: the same second again is a day later.
        u64::try_from((at - of_day - 1).rem_euclid(DAY) + 1).ok()
    })
}
