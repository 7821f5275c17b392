//! A guest space and a source of numbers, for tests.

use std::collections::BTreeMap;
use std::vec::Vec;

use ipc::abi::{Error, Token};
use ipc::interfaces::interconnect::{Frames, Incoming, Next, Outgoing, Sent};
use ipc::message::{CallError, Message};
use ipc::vcpu::Progress;

use crate::frames::Frame;
use crate::layout::GuestPage;
use crate::space::{Access, Contents, Space};
use crate::span::links::{BeginError, Links, Lost};

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is above 0.
    pub fn below<T: TryFrom<u64> + TryInto<u64>>(&mut self, bound: T) -> T {
        let Ok(number) = bound.try_into().map(|bound| self.next() % bound) else {
            panic!("a negative bound")
        };
        T::try_from(number).unwrap_or_else(|_| panic!("{number} is below the bound"))
    }

    pub fn one_in(&mut self, number: u64) -> bool {
        self.below::<u64>(number) == 0
    }
}

/// What a frame holds before anybody has cleared it: never what a page of the guest's should read.
const GARBAGE: u64 = 0xdead_dead_dead_dead;

/// A page operation, as it was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    Map(u64, u32, usize, Access, Contents),
    Unmap(u64, usize),
}

/// A guest space that says no to nothing, but asserts that each operation is one that a careful service would ask for.
pub struct FakeSpace {
    /// Guest pages that exist: first and count.
    pub ranges: Vec<(u64, u64)>,
    /// Blocks that are contiguous and aligned.
    pub mappable: fn(u32) -> bool,
    /// Whether other nodes share the guest's memory: then pages come in any frame, and go.
    pub is_shared: bool,
    pub mapped: BTreeMap<u64, (u32, Access)>,
    /// Which guest page each frame but the shared one is mapped at.
    owners: BTreeMap<u32, u64>,
    /// A word of each frame's contents, for all of them.
    pub contents: Vec<u64>,
    pub operations: Vec<Operation>,
    /// The next calls that fail.
    pub failing: usize,
}

impl FakeSpace {
    pub fn new(ranges: &[(u64, u64)], frames: u32, mappable: fn(u32) -> bool) -> Self {
        Self {
            ranges: ranges.to_vec(),
            mappable,
            is_shared: false,
            mapped: BTreeMap::new(),
            owners: BTreeMap::new(),
            contents: std::vec![GARBAGE; frames as usize],
            operations: Vec::new(),
            failing: 0,
        }
    }

    /// What the guest reads, if it can.
    pub fn read(&self, page: u64) -> Option<u64> {
        self.mapped.get(&page).map(|(frame, _)| self.contents[*frame as usize])
    }

    /// Whether the guest could write.
    pub fn write(&mut self, page: u64, value: u64) -> bool {
        let Some((frame, Access::ReadWrite)) = self.mapped.get(&page) else { return false };
        self.contents[*frame as usize] = value;
        true
    }

    fn fails(&mut self) -> bool {
        let fails = self.failing > 0;
        self.failing -= usize::from(fails);
        fails
    }

    fn assert_range(&self, first: u64, count: usize) {
        let end = first + count as u64;
        assert!((1..=512).contains(&count) && first / 512 == (end - 1) / 512, "in one range of 2 MiB");
        assert!(
            self.ranges.iter().any(|(start, pages)| first >= *start && end <= start + pages),
            "pages {first:#x}..{end:#x} are guest memory"
        );
    }

    fn drop_page(&mut self, page: u64) {
        if let Some((frame, _)) = self.mapped.remove(&page) {
            self.owners.remove(&frame);
        }
    }
}

impl Space for FakeSpace {
    fn map(
        &mut self,
        first: GuestPage,
        frame: Frame,
        count: usize,
        access: Access,
        contents: Contents,
    ) -> Result<(), Error> {
        let (first, frame) = (first.0, frame.0);
        self.operations.push(Operation::Map(first, frame, count, access, contents));
        self.assert_range(first, count);
        let pairs = || (first..).zip(frame..).take(count);
        assert!(frame as usize + count <= self.contents.len(), "frames of the pool");
        if count > 1 {
            assert!((self.mappable)(frame / 512), "contiguous frames");
            assert!(frame as usize % 512 + count <= 512, "contiguous frames");
            assert!(self.is_shared || first % 512 == u64::from(frame % 512), "pages at their places");
        }
        if self.is_shared && contents == Contents::AsIs && frame != Frame::ZERO_PAGE.0 {
            assert_eq!(count, 1, "shared pages keep their own frames");
            assert!(
                self.owners.get(&frame).is_none_or(|owner| *owner == first),
                "frame {frame} has two pages"
            );
        } else if access == Access::Read {
            assert_eq!((frame, count), (Frame::ZERO_PAGE.0, 1), "only zeros are shared");
            let before = self.mapped.get(&first).map(|(frame, _)| *frame);
            assert!(before.is_none() || self.is_shared && before == Some(0), "zeros replace nothing");
        } else {
            assert_ne!(frame, Frame::ZERO_PAGE.0, "nobody writes to the page of zeros");
            for (page, frame) in pairs() {
                let before = self.mapped.get(&page).map(|(frame, _)| *frame);
                if contents == Contents::Zero {
                    assert!(!self.owners.contains_key(&frame), "frame {frame} is mapped already");
                    assert!(before.is_none_or(|frame| frame == 0), "page {page:#x} keeps its contents");
                } else {
                    assert_eq!(count, 512, "only a full range is mapped again");
                    assert_eq!(before, Some(frame), "a full range stays where it is");
                }
            }
        }
        if self.fails() {
            return Err(Error::NoRoom);
        }
        for (page, frame) in pairs() {
            self.drop_page(page);
            self.mapped.insert(page, (frame, access));
            if frame != Frame::ZERO_PAGE.0 {
                self.owners.insert(frame, page);
            }
            if contents == Contents::Zero {
                self.contents[frame as usize] = 0;
            }
        }
        Ok(())
    }

    fn unmap(&mut self, first: GuestPage, count: usize) -> Result<(), Error> {
        self.operations.push(Operation::Unmap(first.0, count));
        self.assert_range(first.0, count);
        if self.fails() {
            return Err(Error::NoRoom);
        }
        for page in (first.0..).take(count) {
            self.drop_page(page);
        }
        Ok(())
    }
}

/// A node without an interconnect.
pub struct NoLinks;

impl Links for NoLinks {
    fn send(&mut self, _: &Outgoing) -> Result<Sent, CallError> {
        Err(CallError::Down)
    }

    fn receive(&mut self, _: Next) -> Result<Incoming, CallError> {
        Err(CallError::Down)
    }

    fn frames(&mut self) -> Result<Frames, CallError> {
        Err(CallError::Down)
    }

    fn are_there(&mut self, _: &[u16]) -> Result<bool, CallError> {
        Err(CallError::Down)
    }

    fn reply(&mut self, _: Token, _: Message) {}

    fn progress(&mut self, _: u8) -> Option<Progress> {
        None
    }

    fn lost(&mut self, _: Lost) {}

    fn not_begun(&mut self, _: BeginError) {}

    fn now(&self) -> u64 {
        0
    }
}
