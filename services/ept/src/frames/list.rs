//! Lists of blocks, linked through the blocks themselves: a block is in one list at most.

use super::Block;

/// No block: there are never so many.
const NONE: u32 = u32::MAX;

/// A block's neighbours in its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    previous: u32,
    next: u32,
}

impl Link {
    pub(super) const NONE: Self = Self { previous: NONE, next: NONE };
}

/// A list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) const fn front(&self) -> Option<u32> {
        if self.first == NONE { None } else { Some(self.first) }
    }

    pub(super) fn push_back(&mut self, blocks: &mut [Block], number: u32) {
        blocks[number as usize].link = Link { previous: self.last, next: NONE };
        match self.last {
            NONE => self.first = number,
            last => blocks[last as usize].link.next = number,
        }
        self.last = number;
    }

    pub(super) fn push_front(&mut self, blocks: &mut [Block], number: u32) {
        blocks[number as usize].link = Link { previous: NONE, next: self.first };
        match self.first {
            NONE => self.last = number,
            first => blocks[first as usize].link.previous = number,
        }
        self.first = number;
    }

    pub(super) fn pop_front(&mut self, blocks: &mut [Block]) -> Option<u32> {
        let number = self.front()?;
        self.remove(blocks, number);
        Some(number)
    }

    /// Takes a block out of this list, which it is in.
    pub(super) fn remove(&mut self, blocks: &mut [Block], number: u32) {
        let Link { previous, next } = core::mem::replace(&mut blocks[number as usize].link, Link::NONE);
        match previous {
            NONE => self.first = next,
            previous => blocks[previous as usize].link.next = next,
        }
        match next {
            NONE => self.last = previous,
            next => blocks[next as usize].link.previous = previous,
        }
    }

    /// Makes a block of this list its last.
    #[inline]
    pub(super) fn move_to_back(&mut self, blocks: &mut [Block], number: u32) {
        if self.last != number {
            self.remove(blocks, number);
            self.push_back(blocks, number);
        }
    }

    #[cfg(test)]
    pub(super) fn numbers(&self, blocks: &[Block]) -> std::vec::Vec<u32> {
        let mut numbers = std::vec::Vec::new();
        let (mut at, mut previous) = (self.first, NONE);
        while at != NONE {
            assert_eq!(blocks[at as usize].link.previous, previous);
            numbers.push(at);
            assert!(numbers.len() <= blocks.len(), "the list has a loop");
            (previous, at) = (at, blocks[at as usize].link.next);
        }
        assert_eq!(self.last, previous);
        numbers
    }
}
