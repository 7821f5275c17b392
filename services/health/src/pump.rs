//! Takes records from the kernel's log rings and gives them to the serial port as it has room.
//!
//! One slice of one core's ring is under way at a time; its records go out encoded, in their order, and the
//! cursor moves on when all of them have left. So what does not fit on the line stays in the rings, which
//! keep the latest records and count what they lose; and a health that restarts sends no more than one slice
//! twice. Cores take turns. Records of different cores are not sorted here: each carries its time.

use heapless::Vec;
use ipc::abi::{LogRecord, MAX_CORES, MAX_LOG_BYTES, MAX_MESSAGE_BYTES};
use ipc::log::{MAX_ENCODED_BYTES, encode_record};
use zerocopy::FromBytes;

/// What one read of a ring brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slice {
    /// Bytes of whole records.
    pub bytes: usize,
    /// Where to read on.
    pub cursor: u64,
    /// Records lost since the cursor that was given.
    pub lost: u64,
}

/// The kernel's log rings.
pub trait Rings {
    /// Reads whole records of a core from a cursor on; `None` when there is no such core or no right to read.
    fn read(&mut self, core: usize, cursor: u64, into: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<Slice>;
}

/// Where the records go.
pub trait Line {
    /// Takes as many of the bytes as there is room for now; how many. 0 when there is none.
    fn write_now(&mut self, bytes: &[u8]) -> usize;
}

/// Without a line the records are drained all the same, so that losses are counted right.
impl<L: Line> Line for Option<L> {
    fn write_now(&mut self, bytes: &[u8]) -> usize {
        self.as_mut().map_or(bytes.len(), |line| line.write_now(bytes))
    }
}

impl<R: uart::Registers> Line for uart::Uart<R> {
    fn write_now(&mut self, bytes: &[u8]) -> usize {
        uart::Uart::write_now(self, bytes)
    }
}

/// Where each core is to be read on, kept over a restart of the service.
pub trait Cursors {
    /// The cursor of a core.
    fn get(&self, core: usize) -> u64;

    /// Keeps the cursor of a core.
    fn set(&mut self, core: usize, cursor: u64);
}

impl Cursors for [u64; MAX_CORES] {
    fn get(&self, core: usize) -> u64 {
        self.as_slice().get(core).copied().unwrap_or(0)
    }

    fn set(&mut self, core: usize, cursor: u64) {
        if let Some(place) = self.get_mut(core) {
            *place = cursor;
        }
    }
}

/// Whether a turn of the pump may go on. It is time that bounds it and not an amount of work: on an emulated
/// or busy machine the same work takes any time, and a service that runs past its time budget is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimeLeft {
    /// It may.
    Some,
    /// It ends.
    None,
}

/// How a turn of the pump ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// All rings are empty.
    Drained,
    /// The line has no room, or there was no time left: there may be more.
    More,
}

/// Encoded, a slice is longest when its records have no bytes: 16 of 18 are records then. Records with many
/// bytes take one byte in 254 more, which is less.
const MOST_ENCODED: usize = MAX_MESSAGE_BYTES / 16 * 18;
const _: () = assert!(MAX_ENCODED_BYTES <= MOST_ENCODED);

/// The pump.
#[derive(Debug)]
pub struct Pump<C> {
    cursors: C,
    cores: usize,
    core: usize,
    /// The slice under way: its records encoded, how many bytes have left, and where its core goes on after
    /// it.
    encoded: Vec<u8, MOST_ENCODED>,
    sent: usize,
    next: Option<u64>,
    records: u64,
    lost: u64,
}

impl<C: Cursors> Pump<C> {
    /// A pump for so many cores.
    pub fn new(cursors: C, cores: usize) -> Self {
        let mut encoded = Vec::new();
        // An end of record first: what the line carried before cannot become part of the first record.
        let _ = encoded.push(0);
        Self {
            cursors,
            cores: cores.min(MAX_CORES),
            core: 0,
            encoded,
            sent: 0,
            next: None,
            records: 0,
            lost: 0,
        }
    }

    /// Records passed on, and records lost before they could be.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.records, self.lost)
    }

    /// Moves records until the line has no room, the rings are empty, or there is no `time` left.
    pub fn turn(
        &mut self,
        rings: &mut impl Rings,
        line: &mut impl Line,
        mut time: impl FnMut() -> TimeLeft,
    ) -> Turn {
        while time() == TimeLeft::Some {
            if self.sent == self.encoded.len() && !self.next_slice(rings) {
                return Turn::Drained;
            }
            let rest = self.encoded.get(self.sent..).unwrap_or_default();
            let taken = line.write_now(rest);
            if taken == 0 && !rest.is_empty() {
                break;
            }
            self.sent = self.encoded.len().min(self.sent + taken);
            if self.sent == self.encoded.len() {
                self.slice_left();
            }
        }
        Turn::More
    }

    fn slice_left(&mut self) {
        if let Some(cursor) = self.next.take() {
            self.cursors.set(self.core, cursor);
            self.core = (self.core + 1) % self.cores.max(1);
        }
        self.encoded.clear();
        self.sent = 0;
    }

    /// Finds the next core with records and encodes a slice of them. Whether there was one.
    fn next_slice(&mut self, rings: &mut impl Rings) -> bool {
        for _ in 0..self.cores {
            let mut page = [0; MAX_MESSAGE_BYTES];
            let Some(slice) = rings.read(self.core, self.cursors.get(self.core), &mut page) else {
                self.core = (self.core + 1) % self.cores;
                continue;
            };
            self.lost += slice.lost;
            let Some(records) = page.get(..slice.bytes).filter(|records| !records.is_empty()) else {
                self.cursors.set(self.core, slice.cursor);
                self.core = (self.core + 1) % self.cores;
                continue;
            };
            self.encode(records);
            self.next = Some(slice.cursor);
            return true;
        }
        false
    }

    fn encode(&mut self, mut records: &[u8]) {
        while let Ok((record, rest)) = LogRecord::read_from_prefix(records) {
            let bytes = rest.get(..usize::from(record.bytes)).filter(|bytes| bytes.len() <= MAX_LOG_BYTES);
            let mut room = [0; MAX_ENCODED_BYTES];
            let encoded = bytes.and_then(|bytes| encode_record(&record, bytes, &mut room).ok());
            let encoded = encoded.and_then(|length| room.get(..length));
            if encoded.is_some_and(|encoded| self.encoded.extend_from_slice(encoded).is_ok()) {
                self.records += 1;
            } else {
                self.lost += 1;
            }
            records = rest.get(usize::from(record.bytes).next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests;
