use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Dropped, EncodeError, MAX_ENCODED_BYTES, RecordDecoder, encode_record};
use crate::abi::{LOG_TEXT, LogRecord, MAX_LOG_BYTES};

fn record(bytes: usize) -> LogRecord {
    LogRecord { tsc: 0x0102_0304, service: 3, core: 1, bytes: bytes.try_into().unwrap(), flags: LOG_TEXT }
}

fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut out = [0xaa; MAX_ENCODED_BYTES];
    let length = encode_record(&record(bytes.len()), bytes, &mut out).unwrap();
    out[..length].to_vec()
}

fn decode(decoder: &mut RecordDecoder, piece: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    decoder.feed(piece, |record, bytes| {
        assert_eq!((record.tsc, record.service, record.core, record.flags), (0x0102_0304, 3, 1, LOG_TEXT));
        records.push(bytes.to_vec());
    });
    records
}

fn random_bytes(random: &mut ChaCha8Rng) -> Vec<u8> {
    let length = random.random_range(0..=MAX_LOG_BYTES);
    let zeros = random.random_bool(0.3);
    (0..length).map(|_| if zeros { 0 } else { random.random() }).collect()
}

#[test]
fn every_length_fits_and_comes_back() {
    for length in 0..=MAX_LOG_BYTES {
        for fill in [0, 1, 0xff] {
            let bytes = std::vec![fill; length];
            let encoded = encode(&bytes);
            assert_eq!(encoded.iter().position(|&byte| byte == 0), Some(encoded.len() - 1));
            assert_eq!(decode(&mut RecordDecoder::new(), &encoded), [bytes]);
        }
    }
}

#[test]
fn a_wrong_length_or_too_little_room_is_refused() {
    let mut out = [0; MAX_ENCODED_BYTES];
    assert_eq!(encode_record(&record(4), &[0; 5], &mut out), Err(EncodeError::BadLength));
    let long = [0; MAX_LOG_BYTES + 1];
    assert_eq!(encode_record(&record(long.len()), &long, &mut out), Err(EncodeError::BadLength));
    let whole = encode(&[7; 100]).len();
    for room in 0..whole {
        assert_eq!(encode_record(&record(100), &[7; 100], &mut out[..room]), Err(EncodeError::NoRoom));
    }
    assert_eq!(encode_record(&record(100), &[7; 100], &mut out[..whole]), Ok(whole));
}

#[test]
fn pieces_of_any_size_give_the_same_records() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let records: Vec<Vec<u8>> = (0..200).map(|_| random_bytes(&mut random)).collect();
    let stream: Vec<u8> = records.iter().flat_map(|bytes| encode(bytes)).collect();
    let mut decoder = RecordDecoder::new();
    let mut found = Vec::new();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.random_range(1..=rest.len().min(40)));
        found.extend(decode(&mut decoder, piece));
        rest = after;
    }
    assert_eq!(found, records);
    assert_eq!(decoder.dropped(), Dropped::default());
}

#[test]
fn garbage_is_counted_and_the_next_record_found() {
    let mut decoder = RecordDecoder::new();
    // The end of a record whose start was missed.
    let tail = &encode(b"missed the start")[9..];
    assert!(decode(&mut decoder, tail).is_empty());
    assert_eq!(decoder.dropped(), Dropped { stretches: 1, bytes: tail.len() as u64 - 1 });
    assert_eq!(decode(&mut decoder, &encode(b"one")), [b"one"]);
    // More than any record has, in one stretch.
    assert!(decode(&mut decoder, &[1; 5000]).is_empty());
    assert!(decode(&mut decoder, &[0]).is_empty());
    assert_eq!(decoder.dropped(), Dropped { stretches: 2, bytes: tail.len() as u64 - 1 + 5000 });
    // Zero bytes in a row are nothing.
    assert_eq!(decode(&mut decoder, &[&[0, 0, 0][..], &encode(b"two")].concat()), [b"two"]);
    // A record cut off by another's start loses both, since nothing tells where the second begins.
    let cut = encode(b"cut off");
    let joined = [&cut[..8], &encode(b"swallowed"), &encode(b"three")].concat();
    assert_eq!(decode(&mut decoder, &joined), [b"three"]);
    assert_eq!(decoder.dropped().stretches, 3);
}

#[test]
fn damage_costs_only_the_records_it_touches() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    for _ in 0..500 {
        let records: Vec<Vec<u8>> = (0..5).map(|_| random_bytes(&mut random)).collect();
        let encoded: Vec<Vec<u8>> = records.iter().map(|bytes| encode(bytes)).collect();
        let mut stream = encoded.concat();
        let hit = encoded[0].len() + random.random_range(0..encoded[1].len());
        let mut noise = random.random();
        if noise == stream[hit] {
            noise ^= 1;
        }
        stream[hit] = noise;
        let mut found = Vec::new();
        RecordDecoder::new().feed(&stream, |_, bytes| found.push(bytes.to_vec()));
        assert_eq!(found.first(), Some(&records[0]));
        assert!(
            found.ends_with(&records[3..]),
            "the records after the damage and the one it may have joined"
        );
    }
}

#[test]
fn any_bytes_at_all_are_taken() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut decoder = RecordDecoder::new();
    let mut bytes = 0;
    for _ in 0..5_000 {
        let piece: Vec<u8> = (0..random.random_range(0..100))
            .map(|_| if random.random_bool(0.02) { 0 } else { random.random() })
            .collect();
        bytes += piece.iter().filter(|&&byte| byte != 0).count() as u64;
        decoder.feed(&piece, |record, bytes| {
            assert_eq!(usize::from(record.bytes), bytes.len());
        });
    }
    assert!(decoder.dropped().bytes > bytes / 2);
    assert_eq!(decode(&mut decoder, &[&[0][..], &encode(b"still there")].concat()), [b"still there"]);
}
