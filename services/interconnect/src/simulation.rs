//! A simulated card and wire, for tests.

use core::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use ipc::wire::{HEADER_BYTES, MacAddress, crc32c};
use virtio_net::{MAX_CHAINS, NetError, Slot};

use crate::card::{Card, Part, Received, word};

/// Chains in each of the card's queues.
pub const QUEUE: usize = MAX_CHAINS;

/// A frame that the card sent: its bytes, and the page frame they came from.
pub struct Sent {
    pub bytes: Vec<u8>,
    pub page: Option<u32>,
}

pub struct FakeCard {
    pub clock: Rc<Cell<u64>>,
    pub mac: MacAddress,
    pub mtu: Option<u16>,
    pub memory: Vec<[u8; 4096]>,
    pub inbox: VecDeque<Vec<u8>>,
    pub outbox: Vec<Sent>,
    pub posted: VecDeque<u32>,
    /// The slots of what is on its way out.
    pub leaving: VecDeque<Slot>,
    free: Vec<Slot>,
    /// Whether what was sent has left.
    pub stuck: bool,
    /// Page frames posted since the card was last told.
    pub untold: usize,
    /// Pages whose contents the processor wrote.
    pub filled: usize,
    /// Bytes that the processor copied from page to page.
    pub copied: usize,
}

impl FakeCard {
    /// A card that reaches so many page frames.
    pub fn new(number: u8, clock: &Rc<Cell<u64>>, frames: u32) -> Self {
        Self {
            clock: Rc::clone(clock),
            mac: MacAddress([2, 0, 0, 0, 0, number]),
            mtu: Some(9000),
            memory: vec![[0; 4096]; frames as usize],
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            posted: VecDeque::new(),
            leaving: VecDeque::new(),
            free: (0..Slot::try_from(QUEUE).unwrap()).collect(),
            stuck: false,
            untold: 0,
            filled: 0,
            copied: 0,
        }
    }

    /// What a part of a page frame holds.
    pub fn bytes(&self, Part { frame, offset, bytes }: Part) -> &[u8] {
        &self.memory[frame as usize][usize::from(offset)..][..usize::from(bytes)]
    }
}

impl Card for FakeCard {
    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn mac(&self) -> MacAddress {
        self.mac
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn link_is_up(&self) -> bool {
        true
    }

    fn poll_receive(&mut self) -> Result<Option<Received>, NetError> {
        if self.inbox.is_empty() {
            return Ok(None);
        }
        let Some(frame) = self.posted.pop_front() else { return Ok(None) };
        let bytes = self.inbox.pop_front().unwrap();
        let mut header = [0; HEADER_BYTES];
        let split = bytes.len().min(HEADER_BYTES);
        header[..split].copy_from_slice(&bytes[..split]);
        self.memory[frame as usize][..bytes.len() - split].copy_from_slice(&bytes[split..]);
        Ok(Some(Received { header, bytes: bytes.len(), frame }))
    }

    fn post_receive(&mut self, frame: u32) -> Result<(), NetError> {
        if self.posted.len() == QUEUE {
            return Err(NetError::QueueFull);
        }
        assert!(!self.posted.contains(&frame), "frame {frame} is posted twice");
        self.posted.push_back(frame);
        self.untold += 1;
        Ok(())
    }

    fn notify_receive(&mut self) {
        self.untold = 0;
    }

    fn send(&mut self, header: &[u8; HEADER_BYTES], part: Option<Part>) -> Result<Slot, NetError> {
        let slot = self.free.pop().ok_or(NetError::QueueFull)?;
        let mut bytes = header.to_vec();
        if let Some(part) = part {
            bytes.extend(self.bytes(part));
        }
        self.outbox.push(Sent { bytes, page: part.map(|part| part.frame) });
        self.leaving.push_back(slot);
        Ok(slot)
    }

    fn reclaim_sent(&mut self) -> Result<Option<Slot>, NetError> {
        let slot = if self.stuck { None } else { self.leaving.pop_front() };
        self.free.extend(slot);
        Ok(slot)
    }

    fn send_room(&self) -> usize {
        self.free.len()
    }

    fn read(&self, frame: u32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.memory[frame as usize][..bytes.len()]);
    }

    fn write(&mut self, frame: u32, bytes: &[u8]) {
        self.memory[frame as usize][..bytes.len()].copy_from_slice(bytes);
    }

    fn append(&mut self, from: u32, to: u32, offset: u16, bytes: u16) {
        let source = self.memory[from as usize];
        let bytes = usize::from(bytes);
        self.memory[to as usize][usize::from(offset)..][..bytes].copy_from_slice(&source[..bytes]);
        self.copied += bytes;
    }

    fn checksum(&self, part: Part) -> u32 {
        crc32c(0, self.bytes(part))
    }

    fn fill(&mut self, frame: u32, seed: u64) {
        self.filled += 1;
        for (place, bytes) in (0..).zip(self.memory[frame as usize].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word(seed, place).to_le_bytes());
        }
    }

    fn holds(&self, frame: u32, seed: u64) -> bool {
        let words = self.memory[frame as usize].chunks_exact(8);
        (0..).zip(words).all(|(place, bytes)| bytes == word(seed, place).to_le_bytes())
    }
}
