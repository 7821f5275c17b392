//! Cuts a node's log stream into records, and tells of what is none.

use ipc::abi::LogRecord;
use ipc::log::RecordDecoder;

/// What a stretch of a stream turned out to be.
#[derive(Debug)]
pub enum Item {
    /// A record and its bytes.
    Record(LogRecord, Vec<u8>),
    /// So many bytes that are no record.
    Damaged(u64),
}

/// The state of reading one stream.
#[derive(Debug, Default)]
pub struct Stream {
    decoder: RecordDecoder,
}

impl Stream {
    /// Reads on: what each stretch was that ends within `bytes`, in order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Item> {
        bytes.split_inclusive(|byte| *byte == 0).filter_map(|stretch| self.stretch(stretch)).collect()
    }

    /// What is left at the end of a stream: a last record without its end, or a piece of one.
    pub fn finish(&mut self) -> Option<Item> {
        self.stretch(&[0])
    }

    fn stretch(&mut self, bytes: &[u8]) -> Option<Item> {
        let before = self.decoder.dropped().bytes;
        let mut item = None;
        self.decoder.feed(bytes, |record, bytes| item = Some(Item::Record(*record, bytes.to_vec())));
        let damaged = self.decoder.dropped().bytes - before;
        item.or((damaged > 0).then_some(Item::Damaged(damaged)))
    }
}

#[cfg(test)]
pub mod testing {
    use ipc::log::{MAX_ENCODED_BYTES, encode_record};

    use super::LogRecord;

    /// A record as it stands in a stream.
    pub fn frame(tsc: u64, service: u16, flags: u16, bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap();
        let record = LogRecord { tsc, service, core: 0, bytes: length, flags };
        let mut frame = [0; MAX_ENCODED_BYTES];
        let length = encode_record(&record, bytes, &mut frame).unwrap();
        frame[..length].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use ipc::abi::MAX_LOG_BYTES;
    use proptest::prelude::*;

    use super::testing::frame;
    use super::*;

    fn records(items: &[Item]) -> Vec<(u64, u16, Vec<u8>)> {
        let record = |item: &Item| match item {
            Item::Record(record, bytes) => (record.tsc, record.service, bytes.clone()),
            Item::Damaged(bytes) => panic!("{bytes} bytes are no record"),
        };
        items.iter().map(record).collect()
    }

    #[test]
    fn after_damage_reading_goes_on() {
        let mut stream = Stream::default();
        let first = frame(1, 2, 0, b"first");
        // Reading begins in the middle of a record.
        let items = stream.push(&[&first[9..], &frame(2, 3, 0, b"second")].concat());
        assert!(matches!(items[0], Item::Damaged(bytes) if bytes == first.len() as u64 - 10));
        assert_eq!(records(&items[1..]), [(2, 3, b"second".to_vec())]);
        assert!(stream.finish().is_none());
        assert!(stream.push(&first[..5]).is_empty());
        assert!(matches!(stream.finish(), Some(Item::Damaged(5))));
        assert!(stream.push(&first[..first.len() - 1]).is_empty());
        assert!(matches!(stream.finish(), Some(Item::Record(..))));
    }

    proptest! {
        #[test]
        fn records_come_out_however_the_stream_is_cut(
            wanted in proptest::collection::vec(
                (any::<u64>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..=MAX_LOG_BYTES)), 0..8),
            cut in 1_usize..700,
        ) {
            let one = |(tsc, service, bytes): &(u64, u16, Vec<u8>)| frame(*tsc, *service, 0, bytes);
            let bytes: Vec<u8> = wanted.iter().flat_map(one).collect();
            let mut stream = Stream::default();
            let items: Vec<_> = bytes.chunks(cut).flat_map(|bytes| stream.push(bytes)).collect();
            prop_assert_eq!(records(&items), wanted);
            prop_assert!(stream.finish().is_none());
        }

        #[test]
        fn every_byte_of_any_stream_is_accounted_for(
            bytes in proptest::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..3_000),
        ) {
            let mut stream = Stream::default();
            let mut items = stream.push(&bytes);
            items.extend(stream.finish());
            let damaged = |item: &Item| match item {
                Item::Damaged(bytes) => *bytes,
                // Chance does not make one of so few bytes.
                Item::Record(record, _) => panic!("{record:?}"),
            };
            let told: u64 = items.iter().map(damaged).sum();
            prop_assert_eq!(told, bytes.iter().filter(|byte| **byte != 0).count() as u64);
        }
    }
}
