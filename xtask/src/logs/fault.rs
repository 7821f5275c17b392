//! Understands the supervisor's report of a fault.
//!
//! The supervisor cannot read another service's defmt records, so the end of its report names them by their times:
//! `its last COUNT log records: service NUMBER, ticks FIRST to LAST`.

use super::Line;

/// Who reports faults.
const REPORTER: &str = "supervisor";
/// What stands before each of the four numbers.
const BEFORE: [&str; 4] = ["its last ", " log records: service ", ", ticks ", " to "];

/// Which records a report names.
#[derive(Debug, Eq, PartialEq)]
pub struct FaultNote {
    /// How many.
    pub count: usize,
    /// The number of the service that failed.
    pub service: usize,
    first_tsc: u64,
    last_tsc: u64,
}

impl FaultNote {
    /// The records that a line names, when it is the end of a report.
    pub fn of(line: &Line) -> Option<Self> {
        let mut rest = line.text.trim_start();
        if line.service != REPORTER || !rest.starts_with(BEFORE[0]) {
            return None;
        }
        let mut numbers = [0; 4];
        for (before, number) in BEFORE.iter().zip(&mut numbers) {
            rest = rest.strip_prefix(before)?;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            *number = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
        }
        let [count, service, first_tsc, last_tsc] = numbers;
        Some(Self { count: count.try_into().ok()?, service: service.try_into().ok()?, first_tsc, last_tsc })
    }

    /// Whether a line of that service is one of them.
    pub fn covers(&self, line: &Line) -> bool {
        (self.first_tsc..=self.last_tsc).contains(&line.tsc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(service: &str, text: &str) -> Option<FaultNote> {
        let (service, text) = (service.to_owned(), text.to_owned());
        FaultNote::of(&Line { nanos: 0, tsc: 0, node: 1, service, level: None, text, context: Vec::new() })
    }

    #[test]
    fn only_the_supervisors_report_is_understood() {
        let text = "  its last 2 log records: service 7, ticks 100 to 18446744073709551615";
        let wanted = FaultNote { count: 2, service: 7, first_tsc: 100, last_tsc: u64::MAX };
        assert_eq!(note("supervisor", text), Some(wanted));
        assert_eq!(note("health", text), None);
        assert_eq!(note("supervisor", "its last 2 log records: service 7, ticks 100 to"), None);
        assert_eq!(note("supervisor", "its last 99999999999999999999 log records: service 7"), None);
        assert_eq!(note("supervisor", "service 7 stopped"), None);
    }
}
