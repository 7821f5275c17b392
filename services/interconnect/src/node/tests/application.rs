//! What a test node sends and expects: numbered messages for each life of a peer and class, whose contents follow
//! from their numbers.

use std::collections::BTreeMap;
use std::vec::Vec;

use ipc::wire::{Class, MESSAGE_BYTES};

/// Two lives and a class: the receiver's peer, its incarnation, this node's incarnation.
pub type Stream = (u16, u16, u16, u8);

/// What a message says: its class, how long its contents are, and its number, all of it in each of its words.
pub fn message(class: Class, bytes: u16, number: u32) -> [u8; MESSAGE_BYTES] {
    let word = (class as u64) << 48 | u64::from(bytes) << 32 | u64::from(number);
    let mut message = [0; MESSAGE_BYTES];
    for (place, out) in (0..).zip(message.chunks_exact_mut(8)) {
        out.copy_from_slice(&(word ^ place << 56).to_le_bytes());
    }
    message
}

/// What a message's contents are.
pub fn contents(source: u16, message: &[u8; MESSAGE_BYTES], bytes: u16) -> Vec<u8> {
    let (word, _) = message.split_first_chunk().unwrap();
    let seed = (u64::from_le_bytes(*word) ^ u64::from(source) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..u64::from(bytes / 8)).flat_map(|place| seed.wrapping_add(place * place).to_le_bytes()).collect()
}

/// What was sent and what came.
#[derive(Debug, Default)]
pub struct Application {
    pub sent: BTreeMap<Stream, u32>,
    pub came: BTreeMap<Stream, u32>,
}

impl Application {
    /// The number of the next message of a stream.
    pub fn next(&mut self, stream: Stream) -> &mut u32 {
        self.sent.entry(stream).or_default()
    }

    /// Takes a message of a stream: it must be the next one, with the right contents.
    pub fn take(&mut self, stream: Stream, said: [u8; MESSAGE_BYTES], bytes: &[u8]) {
        let next = self.came.entry(stream).or_default();
        let length = u16::try_from(bytes.len()).unwrap();
        let expected = message(Class::from_bits(stream.3), length, *next);
        assert_eq!(said, expected, "{stream:?}: {said:x?} came instead of {expected:x?}");
        assert_eq!(bytes, contents(stream.0, &said, length), "{stream:?}: contents of {said:x?}");
        *next += 1;
    }
}
