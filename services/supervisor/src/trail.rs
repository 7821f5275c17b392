//! Where the last log records of each service are.
//!
//! The supervisor cannot show another service's records: they are defmt frames, which only a reader with that
//! service's ELF file can decode. So a fault report names them by time, and whoever shows the log (xtask)
//! puts them beneath it. The supervisor reads the log only when a service faults, and each record once.

use heapless::Vec;
use ipc::abi::{LogRecord, MAX_SERVICES};
use zerocopy::FromBytes;

/// How many records of a service a fault report names at most.
pub const LAST_RECORDS: usize = 8;

/// When the last records of one service were written, oldest first.
type Times = Vec<u64, LAST_RECORDS>;

/// The records of one service that a report names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LastRecords {
    /// How many.
    pub count: u32,
    /// The time of the first, in ticks.
    pub first: u64,
    /// The time of the last.
    pub last: u64,
}

/// The last records of every service.
#[derive(Debug, Default)]
pub struct Trails {
    services: [Times; MAX_SERVICES],
}

impl Trails {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what one read of the log brought.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while let Ok((record, rest)) = LogRecord::read_from_prefix(bytes) {
            self.note(&record);
            let length = usize::from(record.bytes).next_multiple_of(8);
            bytes = rest.get(length..).unwrap_or_default();
        }
    }

    /// The cores are read one after another, so a record may be older than some that are known.
    fn note(&mut self, record: &LogRecord) {
        let Some(times) = self.services.get_mut(usize::from(record.service)) else { return };
        let mut place = times.partition_point(|&time| time <= record.tsc);
        if times.is_full() {
            if place == 0 {
                return;
            }
            times.remove(0);
            place -= 1;
        }
        // There is room.
        let _ = times.insert(place, record.tsc);
    }

    /// The last records of a service; `None` when it has written none.
    #[must_use]
    pub fn last(&self, service: usize) -> Option<LastRecords> {
        let times = self.services.get(service)?;
        let (first, last) = (times.first()?, times.last()?);
        Some(LastRecords {
            count: u32::try_from(times.len()).unwrap_or(u32::MAX),
            first: *first,
            last: *last,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use zerocopy::IntoBytes;

    fn record(service: u16, tsc: u64, bytes: u16) -> std::vec::Vec<u8> {
        let header = LogRecord { tsc, service, core: 0, bytes, flags: 0 };
        let mut record = header.as_bytes().to_vec();
        record.resize(record.len() + usize::from(bytes).next_multiple_of(8), 0xff);
        record
    }

    #[test]
    fn the_last_records_are_named_whatever_core_they_come_from() {
        let mut trails = Trails::new();
        assert_eq!(trails.last(1), None);
        trails.read(&[record(1, 100, 3), record(0, 150, 0), record(1, 200, 17)].concat());
        trails.read(&record(1, 50, 8));
        assert_eq!(trails.last(1), Some(LastRecords { count: 3, first: 50, last: 200 }));
        let more: std::vec::Vec<u8> = (0..20).rev().flat_map(|n| record(1, 300 + n, 5)).collect();
        trails.read(&more);
        assert_eq!(trails.last(1), Some(LastRecords { count: 8, first: 312, last: 319 }));
        assert_eq!(trails.last(0), Some(LastRecords { count: 1, first: 150, last: 150 }));
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let mut trails = Trails::new();
        trails.read(&record(32, 1, 4));
        trails.read(&record(0, 1, 40)[..20]);
        trails.read(&[0xff; 15]);
        trails.read(&record(0, 9, u16::MAX)[..16]);
        assert_eq!(trails.last(0), Some(LastRecords { count: 2, first: 1, last: 9 }));
        assert_eq!(trails.last(32), None);
    }
}
