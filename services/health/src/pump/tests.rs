//! The pump between rings and a line in memory.

extern crate std;

use std::collections::VecDeque;
use std::vec::Vec;

use ipc::abi::{LogRecord, MAX_CORES, MAX_MESSAGE_BYTES};
use ipc::log::RecordDecoder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::IntoBytes;

use super::{Cursors, Line, Pump, Rings, Slice, TimeLeft, Turn};

/// One core's ring: a cursor is a record's number.
#[derive(Default)]
struct Ring {
    records: VecDeque<(u64, Vec<u8>)>,
    next: u64,
    capacity: usize,
}

impl Ring {
    fn log(&mut self, core: u16, bytes: &[u8]) {
        let header = LogRecord {
            tsc: self.next,
            service: 1,
            core,
            bytes: u16::try_from(bytes.len()).unwrap(),
            flags: 0,
        };
        let mut record = header.as_bytes().to_vec();
        record.extend(bytes);
        record.resize(record.len().next_multiple_of(8), 0);
        self.records.push_back((self.next, record));
        self.next += 1;
        while self.records.len() > self.capacity {
            self.records.pop_front();
        }
    }
}

struct Node(Vec<Ring>);

impl Node {
    fn new(cores: usize, capacity: usize) -> Self {
        Self((0..cores).map(|_| Ring { capacity, ..Ring::default() }).collect())
    }
}

impl Rings for Node {
    fn read(&mut self, core: usize, cursor: u64, into: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<Slice> {
        let ring = self.0.get(core)?;
        let oldest = ring.records.front().map_or(ring.next, |&(number, _)| number);
        let mut slice = Slice { bytes: 0, cursor: cursor.max(oldest), lost: oldest.saturating_sub(cursor) };
        for (number, record) in &ring.records {
            if *number < slice.cursor {
                continue;
            }
            let Some(room) = into.get_mut(slice.bytes..slice.bytes + record.len()) else { break };
            room.copy_from_slice(record);
            slice.bytes += record.len();
            slice.cursor = number + 1;
        }
        Some(slice)
    }
}

/// A line that takes some bytes now and then.
struct Wire {
    carried: Vec<u8>,
    room: VecDeque<usize>,
}

impl Line for Wire {
    fn write_now(&mut self, bytes: &[u8]) -> usize {
        let room = self.room.pop_front().unwrap_or(16).min(bytes.len());
        self.carried.extend(&bytes[..room]);
        room
    }
}

fn decode(carried: &[u8]) -> Vec<(u16, u64, Vec<u8>)> {
    let mut records = Vec::new();
    let mut decoder = RecordDecoder::new();
    decoder.feed(carried, |record, bytes| records.push((record.core, record.tsc, bytes.to_vec())));
    assert_eq!(decoder.dropped().stretches, 0);
    records
}

/// Time for so many writes to the line.
fn steps(mut left: usize) -> impl FnMut() -> TimeLeft {
    move || match left.checked_sub(1) {
        Some(rest) => {
            left = rest;
            TimeLeft::Some
        }
        None => TimeLeft::None,
    }
}

fn pump(cores: usize) -> Pump<[u64; MAX_CORES]> {
    Pump::new([0; MAX_CORES], cores)
}

#[test]
fn records_leave_whole_and_in_order() {
    let mut node = Node::new(2, 1_000);
    for n in 0..300u16 {
        node.0[usize::from(n % 2)].log(n % 2, &n.to_le_bytes().repeat(usize::from(n % 256)));
    }
    node.0[0].log(0, &[]);
    let mut wire = Wire { carried: Vec::new(), room: VecDeque::from([1, 3, 0, 1, 0, 16]) };
    let mut pump = pump(2);
    assert_eq!(pump.turn(&mut node, &mut wire, steps(100)), Turn::More);
    assert_eq!(wire.carried.len(), 4);
    let mut turns = 0;
    while pump.turn(&mut node, &mut wire, steps(50)) == Turn::More {
        turns += 1;
        assert!(turns < 1_000);
    }
    let records = decode(&wire.carried);
    assert_eq!(records.len(), 301);
    assert_eq!(pump.counts(), (301, 0));
    for core in 0..2u16 {
        let times: Vec<u64> = records.iter().filter(|r| r.0 == core).map(|r| r.1).collect();
        assert!(times.is_sorted());
        for (_, time, bytes) in records.iter().filter(|r| r.0 == core && r.1 < 150) {
            let n = u16::try_from(*time).unwrap() * 2 + core;
            assert_eq!(*bytes, n.to_le_bytes().repeat(usize::from(n % 256)));
        }
    }
}

#[test]
fn what_the_rings_lose_is_counted() {
    let mut node = Node::new(1, 10);
    for _ in 0..25 {
        node.0[0].log(0, b"x");
    }
    let mut pump = pump(1);
    while pump.turn(&mut node, &mut None::<Wire>, steps(8)) == Turn::More {}
    assert_eq!(pump.counts(), (10, 15));
}

#[test]
fn a_line_without_room_keeps_the_records_in_the_rings() {
    let mut node = Node::new(1, 100);
    node.0[0].log(0, b"first");
    let mut wire = Wire { carried: Vec::new(), room: VecDeque::from([1, 0]) };
    let mut pump = pump(1);
    assert_eq!(pump.turn(&mut node, &mut wire, steps(100)), Turn::More);
    // It restarts: the record whose slice had not left is sent by its next life.
    let mut next = Pump::new(pump.cursors, 1);
    while next.turn(&mut node, &mut wire, steps(100)) == Turn::More {}
    assert_eq!(decode(&wire.carried).len(), 1);
    let mut third = Pump::new(next.cursors, 1);
    while third.turn(&mut node, &mut wire, steps(100)) == Turn::More {}
    assert_eq!(decode(&wire.carried).len(), 1);
}

#[test]
fn rings_that_bring_nonsense_do_no_harm() {
    struct Noise(ChaCha8Rng, usize);
    impl Rings for Noise {
        fn read(&mut self, _: usize, cursor: u64, into: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<Slice> {
            self.1 = self.1.checked_sub(1)?;
            self.0.fill(&mut into[..]);
            let bytes = self.0.random_range(0..=2 * MAX_MESSAGE_BYTES);
            Some(Slice { bytes, cursor: cursor + 1, lost: 0 })
        }
    }
    let mut rings = Noise(ChaCha8Rng::seed_from_u64(5), 2_000);
    let mut wire = Wire { carried: Vec::new(), room: VecDeque::new() };
    let mut pump = pump(3);
    let mut turns = 0;
    while pump.turn(&mut rings, &mut wire, steps(10_000)) == Turn::More {
        turns += 1;
        assert!(turns < 10_000);
    }
    let records = decode(&wire.carried);
    assert_eq!(records.len() as u64, pump.counts().0);
}

#[test]
fn a_node_without_cores_is_drained() {
    assert_eq!(pump(0).turn(&mut Node::new(0, 1), &mut None::<Wire>, steps(2)), Turn::Drained);
    let mut cursors = [0; MAX_CORES];
    cursors.set(MAX_CORES, 1);
    assert_eq!(Cursors::get(&cursors, MAX_CORES), 0);
}
