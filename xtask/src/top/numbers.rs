//! Numbers as short as a column needs them.

/// What stands for an unknown number.
pub const UNKNOWN: &str = "-";

/// A count in 5 letters at most, as far as that is possible.
pub fn count(number: u64) -> String {
    scaled(number, 1_000, &["", "k", "M", "G", "T"])
}

/// An amount of memory that is given in KiB.
pub fn kib(number: u64) -> String {
    scaled(number, 1_024, &["K", "M", "G", "T", "P"])
}

/// A time that is given in nanoseconds.
pub fn time(nanos: u64) -> String {
    scaled(nanos, 1_000, &["ns", "us", "ms", "s"])
}

/// Permille as percent.
pub fn percent(permille: u64) -> String {
    format!("{}.{}%", permille / 10, permille % 10)
}

/// In the first unit in which it has 4 digits at most, rounded down.
fn scaled(number: u64, step: u64, units: &[&str]) -> String {
    let mut number = number;
    let mut units = units.iter().peekable();
    loop {
        let unit = units.next().unwrap_or(&"");
        if number < 10_000 || units.peek().is_none() {
            return format!("{number}{unit}");
        }
        number /= step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0, 9_999, 10_000, 9_999_999, 10_000_000].map(count),
            ["0", "9999", "10k", "9999k", "10M"]
        );
        assert_eq!([0, 9_999, 10_240, 524_288].map(kib), ["0K", "9999K", "10M", "512M"]);
        assert_eq!([999, 12_345, 45_000_000].map(time), ["999ns", "12us", "45ms"]);
        assert_eq!([0, 5, 999, 1_000].map(percent), ["0.0%", "0.5%", "99.9%", "100.0%"]);
        assert_eq!(count(u64::MAX), "18446744T");
    }
}
