//! The node's log as a stream of bytes, on a serial line say.
//!
//! A record is its [`LogRecord`] header and its bytes, encoded by COBS, so that no byte of it is zero, and then a zero
//! byte. A reader that begins in the middle, or meets damage, goes on at the next zero byte. Damage may look like a
//! record only when the length in the header fits by chance.

use heapless::Vec;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{LogRecord, MAX_LOG_BYTES};

const HEADER_BYTES: usize = size_of::<LogRecord>();
/// The longest record before encoding, in bytes.
const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_LOG_BYTES;
/// The longest encoded record in bytes, with its zero byte: COBS adds one byte, and one for each 254.
pub const MAX_ENCODED_BYTES: usize = cobs::max_encoding_length(MAX_RECORD_BYTES) + 1;

/// Why a record is not encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EncodeError {
    /// Its bytes are more than [`MAX_LOG_BYTES`], or not as many as its header says.
    BadLength,
    /// The encoded record does not fit; [`MAX_ENCODED_BYTES`] always do.
    NoRoom,
}

impl core::fmt::Display for EncodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadLength => "the log record is not as long as it says",
            Self::NoRoom => "no room for the encoded log record",
        })
    }
}

impl core::error::Error for EncodeError {}

/// Encodes a record into `out`; how many bytes of it were written.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_record(record: &LogRecord, bytes: &[u8], out: &mut [u8]) -> Result<usize, EncodeError> {
    if bytes.len() > MAX_LOG_BYTES || bytes.len() != usize::from(record.bytes) {
        return Err(EncodeError::BadLength);
    }
    if out.len() <= cobs::max_encoding_length(HEADER_BYTES + bytes.len()) {
        return Err(EncodeError::NoRoom);
    }
    let mut encoder = cobs::CobsEncoder::new(out);
    let pushed = encoder.push(record.as_bytes()).and_then(|()| encoder.push(bytes));
    pushed.map_err(|_| EncodeError::NoRoom)?;
    let length = encoder.finalize();
    *out.get_mut(length).ok_or(EncodeError::NoRoom)? = 0;
    Ok(length + 1)
}

/// Finds records in a stream of bytes that comes in pieces of any size.
#[derive(Debug, Default)]
pub struct RecordDecoder {
    pending: Vec<u8, MAX_ENCODED_BYTES>,
    /// Bytes since the last zero byte, of which `pending` holds the first.
    length: usize,
    dropped: Dropped,
}

/// What a [`RecordDecoder`] could make nothing of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Dropped {
    /// Stretches between zero bytes.
    pub stretches: u64,
    /// Bytes in these, zero bytes not counted.
    pub bytes: u64,
}

impl RecordDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: Vec::new(), length: 0, dropped: Dropped { stretches: 0, bytes: 0 } }
    }

    /// Takes the next piece of the stream and shows `found` each record that it completes.
    pub fn feed(&mut self, piece: &[u8], mut found: impl FnMut(&LogRecord, &[u8])) {
        for &byte in piece {
            if byte != 0 {
                self.length += 1;
                // What does not fit is no record; its length alone is kept.
                let _ = self.pending.push(byte);
                continue;
            }
            let length = core::mem::take(&mut self.length);
            if length != 0 && !show(&mut self.pending, length, &mut found) {
                self.dropped.stretches += 1;
                self.dropped.bytes += length as u64;
            }
            self.pending.clear();
        }
    }

    /// What could not be decoded so far. A stretch counts when its zero byte has come.
    #[must_use]
    pub const fn dropped(&self) -> Dropped {
        self.dropped
    }
}

/// Decodes one stretch in place and shows the record, if it is one.
fn show(stretch: &mut [u8], length: usize, found: &mut impl FnMut(&LogRecord, &[u8])) -> bool {
    if stretch.len() != length {
        return false;
    }
    let Ok(decoded) = cobs::decode_in_place(stretch) else { return false };
    let Some(decoded) = stretch.get(..decoded) else { return false };
    let Ok((record, bytes)) = LogRecord::read_from_prefix(decoded) else { return false };
    if bytes.len() != usize::from(record.bytes) || bytes.len() > MAX_LOG_BYTES {
        return false;
    }
    found(&record, bytes);
    true
}

#[cfg(test)]
mod tests;
