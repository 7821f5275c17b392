//! Sequence numbers, which wrap (RFC 1982).

/// How far `number` lies at or after `from`; half of all numbers are after a number, and the other half before it.
#[must_use]
pub const fn distance(from: u32, number: u32) -> Option<u32> {
    let distance = number.wrapping_sub(from);
    if distance < 1 << 31 { Some(distance) } else { None }
}

/// Whether `number` lies in `[from, to)`.
#[must_use]
pub const fn is_within(number: u32, from: u32, to: u32) -> bool {
    number.wrapping_sub(from) < to.wrapping_sub(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        assert_eq!(distance(u32::MAX, 1), Some(2));
        assert_eq!(distance(1, u32::MAX), None);
        assert_eq!(distance(7, 7), Some(0));
        assert!(is_within(u32::MAX, u32::MAX - 1, 2) && is_within(1, u32::MAX - 1, 2));
        assert!(!is_within(2, u32::MAX - 1, 2) && !is_within(5, 5, 5));
    }
}
