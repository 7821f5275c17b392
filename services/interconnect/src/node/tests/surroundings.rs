//! A card, its memory, and who has which page frame.

use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use ipc::wire::{HEADER_BYTES, crc32c};
use zerocopy::IntoBytes;

use crate::membership::Event;
use crate::sink::{Delivery, Outcome, Output, Payload, Sink, Token};

/// Page frames of a node.
pub const FRAMES: usize = 1200;
/// Frames that a card can hold to be sent.
pub const QUEUE: usize = 64;
/// Page frames that may wait out of order.
pub const WAITING: usize = 64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Held {
    Free,
    Machine,
    Sending,
    Application,
}

/// A frame that the state machine gave to the card.
pub struct Leaving {
    pub header: [u8; HEADER_BYTES],
    pub bytes: Vec<u8>,
    pub part: Option<(u32, u16, u16, Token)>,
}

/// A card and its memory, and what the state machine tells.
pub struct Surroundings {
    pub memory: Vec<[u8; 4096]>,
    pub held: Vec<Held>,
    /// Those that nobody has.
    free: Vec<u32>,
    counts: [usize; 4],
    pub leaving: VecDeque<Leaving>,
    pub delivered: VecDeque<Delivery<u32>>,
    pub events: Vec<Event>,
    pub writable: usize,
    pub acknowledged: usize,
    pub abandoned: usize,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            memory: vec![[0; 4096]; FRAMES],
            held: vec![Held::Free; FRAMES],
            free: (0..u32::try_from(FRAMES).unwrap()).collect(),
            counts: [FRAMES, 0, 0, 0],
            leaving: VecDeque::new(),
            delivered: VecDeque::new(),
            events: vec![],
            writable: 0,
            acknowledged: 0,
            abandoned: 0,
        }
    }
}

impl Surroundings {
    pub fn hand(&mut self, frame: u32, from: Held, to: Held) {
        let held = &mut self.held[frame as usize];
        assert_eq!(*held, from, "frame {frame}");
        *held = to;
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        if from == Held::Free {
            assert_eq!(self.free.pop(), Some(frame));
        }
        if to == Held::Free {
            self.free.push(frame);
        }
    }

    /// The page frame to take next.
    pub fn free(&self) -> Option<u32> {
        self.free.last().copied()
    }

    pub fn count(&self, what: Held) -> usize {
        self.counts[what as usize]
    }

    /// Forgets what the card and the application have.
    pub fn reset(&mut self) {
        let events = core::mem::take(&mut self.events);
        *self =
            Self { events, acknowledged: self.acknowledged, abandoned: self.abandoned, ..Self::default() };
    }
}

impl Sink<u32> for Surroundings {
    fn checksum(&self, frame: u32, bytes: u16) -> u32 {
        crc32c(0, &self.memory[frame as usize][..usize::from(bytes)])
    }

    fn read(&self, frame: u32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.memory[frame as usize][..bytes.len()]);
    }

    fn append(&mut self, from: u32, to: u32, offset: u16, bytes: u16) {
        assert!(self.held[from as usize] == Held::Machine && self.held[to as usize] == Held::Machine);
        let source = self.memory[from as usize];
        let (offset, bytes) = (usize::from(offset), usize::from(bytes));
        self.memory[to as usize][offset..offset + bytes].copy_from_slice(&source[..bytes]);
    }

    fn put(&mut self, output: Output<'_, u32>) {
        match output {
            Output::Transmit { header, payload } => {
                let (bytes, part, checksum) = match payload {
                    Payload::None => (vec![], None, 0),
                    Payload::Bytes(bytes) => (bytes.to_vec(), None, crc32c(0, bytes)),
                    Payload::Part { frame, offset, bytes, token } => {
                        let at = usize::from(offset)..usize::from(offset + bytes);
                        let checksum = crc32c(0, &self.memory[frame as usize][at]);
                        (vec![], Some((frame, offset, bytes, token)), checksum)
                    }
                };
                let mut sealed = [0; HEADER_BYTES];
                sealed.copy_from_slice(header.seal(checksum).as_bytes());
                self.leaving.push_back(Leaving { header: sealed, bytes, part });
                assert!(self.leaving.len() <= QUEUE);
            }
            Output::Deliver(delivery) => {
                if let Some((frame, _)) = delivery.contents {
                    self.hand(frame, Held::Machine, Held::Application);
                }
                self.delivered.push_back(delivery);
            }
            Output::Bare { frame, .. } | Output::Recycle(frame) => {
                self.hand(frame, Held::Machine, Held::Free)
            }
            Output::Done { frame, outcome, .. } => {
                self.hand(frame, Held::Sending, Held::Free);
                match outcome {
                    Outcome::Acknowledged => self.acknowledged += 1,
                    Outcome::Abandoned => self.abandoned += 1,
                }
            }
            Output::Writable { .. } => self.writable += 1,
            Output::Event(event) => self.events.push(event),
        }
    }
}
