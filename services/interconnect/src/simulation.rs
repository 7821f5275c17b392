//! A simulated card and wire, for tests.

use core::cell::Cell;
use std::boxed::Box;
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

use ipc::wire::{HEADER_BYTES, MacAddress, crc32c};
use virtio_net::NetError;

use crate::card::{Card, Received, Rejected, word};

/// Chains in each of the card's queues.
pub const QUEUE: usize = 128;

/// A page frame.
#[derive(Debug)]
pub struct Page {
    pub number: usize,
    pub bytes: Box<[u8; 4096]>,
}

pub fn pages(count: usize) -> Vec<Page> {
    (0..count).map(|number| Page { number, bytes: Box::new([0; 4096]) }).collect()
}

/// A frame that the card sent: its bytes, and the page frame they came from.
pub struct Sent {
    pub bytes: Vec<u8>,
    pub page: Option<usize>,
}

pub struct FakeCard {
    pub clock: Rc<Cell<u64>>,
    pub mac: MacAddress,
    pub mtu: Option<u16>,
    pub inbox: VecDeque<Vec<u8>>,
    pub outbox: Vec<Sent>,
    pub posted: VecDeque<Page>,
    pub leaving: VecDeque<Option<Page>>,
    /// Whether what was sent has left.
    pub stuck: bool,
    /// Page frames posted since the card was last told.
    pub untold: usize,
    /// Pages whose contents the processor wrote.
    pub filled: usize,
}

impl FakeCard {
    pub fn new(number: u8, clock: &Rc<Cell<u64>>) -> Self {
        Self {
            clock: Rc::clone(clock),
            mac: MacAddress([2, 0, 0, 0, 0, number]),
            mtu: Some(9000),
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            posted: VecDeque::new(),
            leaving: VecDeque::new(),
            stuck: false,
            untold: 0,
            filled: 0,
        }
    }
}

impl Card for FakeCard {
    type Frame = Page;

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

    fn poll_receive(&mut self) -> Result<Option<Received<Page>>, NetError> {
        if self.inbox.is_empty() {
            return Ok(None);
        }
        let Some(mut frame) = self.posted.pop_front() else { return Ok(None) };
        let bytes = self.inbox.pop_front().unwrap();
        let mut header = [0; HEADER_BYTES];
        let split = bytes.len().min(HEADER_BYTES);
        header[..split].copy_from_slice(&bytes[..split]);
        frame.bytes[..bytes.len() - split].copy_from_slice(&bytes[split..]);
        Ok(Some(Received { header, bytes: bytes.len(), frame }))
    }

    fn post_receive(&mut self, frame: Page) -> Result<(), Rejected<Page>> {
        if self.posted.len() == QUEUE {
            return Err(Rejected { error: NetError::QueueFull, frame: Some(frame) });
        }
        self.posted.push_back(frame);
        self.untold += 1;
        Ok(())
    }

    fn notify_receive(&mut self) {
        self.untold = 0;
    }

    fn send(
        &mut self,
        header: &[u8; HEADER_BYTES],
        payload: Option<(Page, u16)>,
    ) -> Result<(), Rejected<Page>> {
        if self.leaving.len() == QUEUE {
            return Err(Rejected { error: NetError::QueueFull, frame: payload.map(|(page, _)| page) });
        }
        let mut bytes = header.to_vec();
        let mut number = None;
        if let Some((page, length)) = &payload {
            bytes.extend(&page.bytes[..usize::from(*length)]);
            number = Some(page.number);
        }
        self.outbox.push(Sent { bytes, page: number });
        self.leaving.push_back(payload.map(|(page, _)| page));
        Ok(())
    }

    fn reclaim_sent(&mut self) -> Result<Option<Option<Page>>, NetError> {
        Ok(if self.stuck { None } else { self.leaving.pop_front() })
    }

    fn send_room(&self) -> usize {
        QUEUE - self.leaving.len()
    }

    fn number(frame: &Page) -> u32 {
        u32::try_from(frame.number).unwrap()
    }

    fn read(&self, frame: &Page, bytes: &mut [u8]) {
        bytes.copy_from_slice(&frame.bytes[..bytes.len()]);
    }

    fn write(&mut self, frame: &mut Page, bytes: &[u8]) {
        frame.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    fn append(&mut self, from: &Page, to: &mut Page, offset: u16, bytes: u16) {
        let at = usize::from(offset)..usize::from(offset + bytes);
        to.bytes[at].copy_from_slice(&from.bytes[..usize::from(bytes)]);
    }

    fn checksum(&self, frame: &Page, bytes: u16) -> u32 {
        crc32c(0, &frame.bytes[..usize::from(bytes)])
    }

    fn fill(&mut self, frame: &mut Page, seed: u64) {
        self.filled += 1;
        for (place, bytes) in (0..).zip(frame.bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word(seed, place).to_le_bytes());
        }
    }

    fn holds(&self, frame: &Page, seed: u64) -> bool {
        (0..).zip(frame.bytes.chunks_exact(8)).all(|(place, bytes)| bytes == word(seed, place).to_le_bytes())
    }
}
