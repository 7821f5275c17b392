//! The directory's entry for a page: 64 bits.
//!
//! ```text
//! bit 63     62 61     60-58    57 56    55-48    47-0
//!     busy   streak    class    state    owner    readers
//!     1      0                                    number of the record of the transaction under way (31-0)
//! ```
//!
//! While a transaction is under way its record keeps the word ([`super::home`]), so that the word itself can name the record
//! and needs no room of its own for it.
//!
//! Readers are those that have a copy besides the owner. Up to 48 nodes there is a bit for each. Above, up to five are named
//! by number and a sixth makes the word *coarse*: a bit for each group of six nodes (Gupta, Weber, Mowry, ICPP 1990: limited
//! pointers, then a coarse vector). Of a coarse word one only knows who surely has no copy, so nobody is taken out
//! of it, and who writes to such a page gets its contents again.

use super::node::{MAX_NODES, NodeCount, NodeId, NodeSet};

/// The most nodes for which there is a bit for each.
const BITMAP_NODES: u16 = 48;
const READER_BITS: u32 = 48;
/// Nodes that are named by number.
const POINTERS: u64 = 5;
/// Where the number of pointers is, three bits.
const COUNT_SHIFT: u32 = 45;
/// The number of pointers that stands for a coarse vector.
const COARSE: u64 = 7;
/// Nodes of a group of the coarse vector.
const GROUP: u16 = 6;

// Pointers lie below the count, and so do the groups of the largest cluster.
const _: () = assert!(POINTERS * 8 <= COUNT_SHIFT as u64 && MAX_NODES.div_ceil(GROUP) as u32 <= COUNT_SHIFT);

/// Which nodes have a copy besides the owner: 48 bits, whose meaning depends on the number of nodes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(transparent)]
pub struct Readers(u64);

impl Readers {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// Of 48 bits as they came from another node; the others are dropped.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << READER_BITS) - 1))
    }

    /// The 48 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    const fn count(self) -> u64 {
        self.0 >> COUNT_SHIFT
    }

    const fn pointer(self, place: u64) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "eight bits are meant")]
        NodeId((self.0 >> (8 * place)) as u8)
    }

    fn pointers(self) -> impl Iterator<Item = NodeId> {
        (0..self.count()).map(move |place| self.pointer(place))
    }

    /// Whether exactly the members have copies.
    #[must_use]
    pub const fn is_exact(self, nodes: NodeCount) -> bool {
        nodes.get() <= BITMAP_NODES || self.count() <= POINTERS
    }

    /// All that may have a copy.
    #[must_use]
    pub fn expand(self, nodes: NodeCount) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        let add = |node| {
            if nodes.has(node) {
                set.insert(node);
            }
        };
        if nodes.get() > BITMAP_NODES && self.is_exact(nodes) {
            self.pointers().for_each(add);
        } else {
            let group = if nodes.get() <= BITMAP_NODES { 1 } else { GROUP };
            let named = (0..nodes.get()).filter(|node| self.0 >> (node / group) & 1 != 0);
            named.map(|node| nodes.wrap(node.into())).for_each(add);
        }
        set
    }

    /// Whether it is sure that `node` has a copy.
    #[must_use]
    pub fn surely_has(self, node: NodeId, nodes: NodeCount) -> bool {
        if nodes.get() <= BITMAP_NODES {
            self.0 >> node.0 & 1 != 0
        } else {
            self.is_exact(nodes) && self.pointers().any(|pointer| pointer == node)
        }
    }

    /// With `node`, which must be one of the nodes.
    #[must_use]
    pub fn with(self, node: NodeId, nodes: NodeCount) -> Self {
        if nodes.get() <= BITMAP_NODES {
            Self(self.0 | 1 << node.0)
        } else if !self.is_exact(nodes) {
            self.with_group(node)
        } else if self.surely_has(node, nodes) {
            self
        } else if self.count() < POINTERS {
            let place = self.count();
            Self((self.0 | u64::from(node.0) << (8 * place)) + (1 << COUNT_SHIFT))
        } else {
            let coarse = Self(COARSE << COUNT_SHIFT);
            self.pointers().fold(coarse, Self::with_group).with_group(node)
        }
    }

    const fn with_group(self, node: NodeId) -> Self {
        Self(self.0 | 1 << (node.0 as u16 / GROUP))
    }

    /// Without `node`, where it is sure that exactly the members have copies.
    #[must_use]
    pub fn without(self, node: NodeId, nodes: NodeCount) -> Self {
        if nodes.get() <= BITMAP_NODES {
            Self(self.0 & !(1 << node.0))
        } else if self.is_exact(nodes) {
            self.pointers()
                .filter(|other| *other != node)
                .fold(Self::EMPTY, |readers, n| readers.with(n, nodes))
        } else {
            self
        }
    }

    /// One that surely has a copy.
    #[must_use]
    pub fn any(self, nodes: NodeCount) -> Option<NodeId> {
        if self.is_exact(nodes) { self.expand(nodes).iter().next() } else { None }
    }
}

/// Who has a page.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// Nobody has written to it: it is all zeros. Readers have the shared page of zeros mapped, and there is no owner.
    Dormant,
    /// Owner and readers may read.
    Shared,
    /// The owner may write, nobody else has a copy.
    Exclusive,
}

/// What faults have shown about how a page is used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Class {
    /// Nothing in particular.
    Plain,
    /// Read by several nodes again and again without a write.
    ReadMostly,
    /// Read and then written by one node after the other: a read is granted the right to write.
    Migratory,
    /// Wanted elsewhere as soon as it has come: it stays for a while where it is.
    Bouncing,
    /// Touched by a device model.
    Device,
}

/// A page's entry.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(transparent)]
pub struct Word(u64);

const _: () = assert!(size_of::<Word>() == 8);

/// The highest streak: two bits.
pub const MAX_STREAK: u8 = 3;
const OWNER_SHIFT: u32 = READER_BITS;
const STATE_SHIFT: u32 = 56;
const CLASS_SHIFT: u32 = 58;
const STREAK_SHIFT: u32 = 61;
const BUSY: u64 = 1 << 63;

impl Word {
    /// A page that nobody has ever touched.
    pub const UNTOUCHED: Self = Self(0);

    /// The entry of a page for which a transaction is under way.
    #[must_use]
    pub const fn busy(record: u32) -> Self {
        Self(BUSY | record as u64)
    }

    /// The record of the transaction under way.
    #[must_use]
    pub const fn record(self) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
        if self.0 & BUSY != 0 { Some(self.0 as u32) } else { None }
    }

    const fn field(self, shift: u32, bits: u32) -> u64 {
        self.0 >> shift & ((1 << bits) - 1)
    }

    #[must_use]
    const fn with_field(self, shift: u32, bits: u32, value: u64) -> Self {
        let mask = ((1 << bits) - 1) << shift;
        Self(self.0 & !mask | value << shift & mask)
    }

    /// Who has it.
    #[must_use]
    pub const fn state(self) -> State {
        match self.field(STATE_SHIFT, 2) {
            0 => State::Dormant,
            1 => State::Shared,
            _ => State::Exclusive,
        }
    }

    /// The owner, which answers for the contents; meaningless while the page is dormant.
    #[must_use]
    pub const fn owner(self) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "eight bits")]
        NodeId(self.field(OWNER_SHIFT, 8) as u8)
    }

    /// Who has a copy besides the owner.
    #[must_use]
    pub const fn readers(self) -> Readers {
        Readers::from_bits(self.0)
    }

    /// How it is used. A dormant page is dormant and has no other class.
    #[must_use]
    pub const fn class(self) -> Class {
        match self.field(CLASS_SHIFT, 3) {
            1 => Class::ReadMostly,
            2 => Class::Migratory,
            3 => Class::Bouncing,
            4 => Class::Device,
            _ => Class::Plain,
        }
    }

    /// How often in a row something was seen that makes the class, 0 to [`MAX_STREAK`].
    #[must_use]
    pub const fn streak(self) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "two bits")]
        let streak = self.field(STREAK_SHIFT, 2) as u8;
        streak
    }

    /// The same page with other holders.
    #[must_use]
    pub const fn held(self, state: State, owner: NodeId, readers: Readers) -> Self {
        let state = match state {
            State::Dormant => 0,
            State::Shared => 1,
            State::Exclusive => 2,
        };
        self.with_field(0, READER_BITS, readers.bits()).with_field(OWNER_SHIFT, 8, owner.0 as u64).with_field(
            STATE_SHIFT,
            2,
            state,
        )
    }

    /// The same page with other readers.
    #[must_use]
    pub const fn with_readers(self, readers: Readers) -> Self {
        self.with_field(0, READER_BITS, readers.bits())
    }

    /// The same page with another class; `streak` is at most [`MAX_STREAK`].
    #[must_use]
    pub const fn used(self, class: Class, streak: u8) -> Self {
        let class = match class {
            Class::Plain => 0,
            Class::ReadMostly => 1,
            Class::Migratory => 2,
            Class::Bouncing => 3,
            Class::Device => 4,
        };
        self.with_field(CLASS_SHIFT, 3, class).with_field(STREAK_SHIFT, 2, streak as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::collections::BTreeSet;

    fn members(readers: Readers, nodes: NodeCount) -> BTreeSet<u8> {
        readers.expand(nodes).iter().map(|node| node.0).collect()
    }

    #[test]
    fn readers_are_a_set_up_to_48_nodes_and_up_to_5_readers() {
        for (count, most) in [(2, 2), (48, 48), (49, 5), (256, 5)] {
            let nodes = NodeCount::new(count).unwrap();
            let mut random = Random(u64::from(count));
            let (mut readers, mut model) = (Readers::EMPTY, BTreeSet::new());
            for _ in 0..2_000 {
                let node = nodes.wrap(random.below(u32::from(count)));
                if model.len() < most && random.one_in(2) {
                    readers = readers.with(node, nodes);
                    model.insert(node.0);
                } else {
                    readers = readers.without(node, nodes);
                    model.remove(&node.0);
                }
                assert!(readers.is_exact(nodes));
                assert_eq!(members(readers, nodes), model);
                assert_eq!(readers.surely_has(node, nodes), model.contains(&node.0));
                assert_eq!(readers.any(nodes).map(|node| node.0), model.first().copied());
                assert_eq!(Readers::from_bits(readers.bits()), readers);
            }
        }
    }

    #[test]
    fn more_readers_become_groups_that_lose_nobody() {
        for count in [49, 100, 256] {
            let nodes = NodeCount::new(count).unwrap();
            let mut random = Random(u64::from(count));
            let (mut readers, mut model) = (Readers::EMPTY, BTreeSet::new());
            while model.len() < usize::from(count) {
                let node = nodes.wrap(random.below(u32::from(count)));
                readers = readers.with(node, nodes);
                model.insert(node.0);
                assert!(members(readers, nodes).is_superset(&model));
                assert!(members(readers, nodes).iter().all(|node| u16::from(*node) < count));
                if model.len() > 5 {
                    assert!(!readers.is_exact(nodes) && !readers.surely_has(node, nodes));
                    assert_eq!((readers.any(nodes), readers.without(node, nodes)), (None, readers));
                }
            }
        }
    }

    #[test]
    fn six_readers_of_one_group_cost_no_other_group() {
        let nodes = NodeCount::new(256).unwrap();
        let readers = (12..18).fold(Readers::EMPTY, |readers, node| readers.with(NodeId(node), nodes));
        assert_eq!(members(readers, nodes), (12..18).collect());
    }

    #[test]
    fn fields_do_not_touch_one_another() {
        let readers = Readers::from_bits(u64::MAX);
        assert_eq!(readers.bits(), (1 << 48) - 1);
        for state in [State::Dormant, State::Shared, State::Exclusive] {
            for class in [Class::Plain, Class::ReadMostly, Class::Migratory, Class::Bouncing, Class::Device] {
                for streak in 0..=MAX_STREAK {
                    let word = Word::UNTOUCHED.used(class, streak).held(state, NodeId(0xa5), readers);
                    assert_eq!((word.state(), word.owner(), word.readers()), (state, NodeId(0xa5), readers));
                    assert_eq!((word.class(), word.streak(), word.record()), (class, streak, None));
                    let word = word.with_readers(Readers::EMPTY).used(Class::Plain, 0);
                    assert_eq!(word, Word::UNTOUCHED.held(state, NodeId(0xa5), Readers::EMPTY));
                }
            }
        }
        assert_eq!(Word::busy(u32::MAX).record(), Some(u32::MAX));
    }
}
