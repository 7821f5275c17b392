//! One core's log: a ring of records that keeps the latest and never blocks a writer.
//!
//! A record in the ring is a [`LogRecord`] and its bytes, padded to 8. A reader's cursor packs the byte position of
//! its next record (low 40 bits) and that record's number (high 24 bits), so that a reader that was overtaken learns
//! how many records it lost.

use ipc::abi::{LogRecord, MAX_LOG_BYTES};
use zerocopy::{FromZeros, IntoBytes};

use crate::address::PhysAddr;
use crate::machine::Machine;

/// Bytes of each core's ring: a power of two.
pub const RING_BYTES: u64 = 64 * 1024;

const HEADER: u64 = size_of::<LogRecord>() as u64;
const POSITION_BITS: u32 = 40;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;

const _: () = assert!(RING_BYTES.is_power_of_two() && HEADER == 16);
const _: () = assert!((MAX_LOG_BYTES as u64 + HEADER) * 4 < RING_BYTES);

/// One core's log.
#[derive(Clone, Copy, Debug)]
pub struct LogRing {
    memory: Option<PhysAddr>,
    head: u64,
    tail: u64,
    /// Numbers of the record at `head` (the next one) and at `tail` (the oldest).
    head_number: u64,
    tail_number: u64,
    /// Records not taken: there is no ring, or they were too long.
    refused: u64,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogRead {
    /// Bytes copied.
    pub bytes: usize,
    /// The cursor to go on from.
    pub next: u64,
    /// Records lost since the cursor that was given.
    pub lost: u64,
}

impl LogRing {
    /// A ring that refuses everything.
    #[must_use]
    pub const fn absent() -> Self {
        Self { memory: None, head: 0, tail: 0, head_number: 0, tail_number: 0, refused: 0 }
    }

    /// An empty ring over [`RING_BYTES`] of memory.
    #[must_use]
    pub const fn new(memory: PhysAddr) -> Self {
        Self { memory: Some(memory), ..Self::absent() }
    }

    /// Records and bytes written, and records refused.
    #[must_use]
    pub const fn counts(&self) -> [u64; 3] {
        [self.head_number, self.head, self.refused]
    }

    /// Appends a record, over the oldest ones when it must.
    pub fn append<M: Machine>(&mut self, m: &mut M, record: &LogRecord, bytes: &[u8]) {
        let Some(memory) = self.memory.filter(|_| bytes.len() <= MAX_LOG_BYTES) else {
            self.refused += 1;
            return;
        };
        let length = padded(bytes.len() as u64);
        while self.head + length - self.tail > RING_BYTES {
            self.tail += padded(u64::from(read_header(m, memory, self.tail).bytes));
            self.tail_number += 1;
        }
        put(m, memory, self.head, record.as_bytes());
        put(m, memory, self.head + HEADER, bytes);
        self.head += length;
        self.head_number += 1;
    }

    /// Copies whole records from a cursor on to physical memory at `to`, at most `room` bytes. A cursor that this
    /// ring never gave reads from the oldest record.
    pub fn read<M: Machine>(&self, m: &mut M, cursor: u64, to: PhysAddr, room: usize) -> LogRead {
        let Some(memory) = self.memory else { return LogRead { bytes: 0, next: cursor, lost: 0 } };
        let behind = self.head.wrapping_sub(cursor) & POSITION_MASK;
        let number_behind =
            self.head_number.wrapping_sub(cursor >> POSITION_BITS) & (u64::MAX >> POSITION_BITS);
        let kept = self.head_number - self.tail_number;
        let known = behind <= self.head - self.tail && number_behind <= kept && behind.is_multiple_of(8);
        let (mut position, mut number) = if known {
            (self.head - behind, self.head_number - number_behind)
        } else {
            (self.tail, self.tail_number)
        };
        let lost = if known { 0 } else { number_behind.saturating_sub(kept) };
        let mut copied = 0;
        while position < self.head {
            let length = padded(u64::from(read_header(m, memory, position).bytes));
            if copied + length > room as u64 {
                break;
            }
            // Lengths are below the ring's size, so a record wraps at most once.
            let offset = position % RING_BYTES;
            let first = length.min(RING_BYTES - offset);
            copy(m, PhysAddr(memory.0 + offset), PhysAddr(to.0 + copied), first);
            copy(m, memory, PhysAddr(to.0 + copied + first), length - first);
            copied += length;
            position += length;
            number += 1;
        }
        let next = position & POSITION_MASK | number << POSITION_BITS;
        LogRead { bytes: usize::try_from(copied).unwrap_or(0), next, lost }
    }
}

const fn padded(bytes: u64) -> u64 {
    HEADER + bytes.next_multiple_of(8)
}

fn read_header<M: Machine>(m: &M, memory: PhysAddr, position: u64) -> LogRecord {
    // Records are multiples of 8 and a header is 16 bytes, so it may wrap in its middle.
    let mut header = LogRecord::new_zeroed();
    let offset = position % RING_BYTES;
    let first = usize::try_from((RING_BYTES - offset).min(HEADER)).unwrap_or(0);
    let (low, high) = header.as_mut_bytes().split_at_mut(first);
    m.read(PhysAddr(memory.0 + offset), low);
    m.read(memory, high);
    header
}

fn put<M: Machine>(m: &mut M, memory: PhysAddr, position: u64, bytes: &[u8]) {
    let offset = position % RING_BYTES;
    let first = usize::try_from(RING_BYTES - offset).unwrap_or(0).min(bytes.len());
    let (low, high) = bytes.split_at(first);
    m.write(PhysAddr(memory.0 + offset), low);
    m.write(memory, high);
}

fn copy<M: Machine>(m: &mut M, from: PhysAddr, to: PhysAddr, bytes: u64) {
    if bytes > 0 {
        m.copy(from, to, usize::try_from(bytes).unwrap_or(0));
    }
}
