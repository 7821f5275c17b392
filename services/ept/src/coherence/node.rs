//! Nodes and sets of nodes.

/// The most nodes of a cluster: a directory word has eight bits for the owner.
pub const MAX_NODES: u16 = 256;
const WORDS: usize = MAX_NODES as usize / u64::BITS as usize;

/// A node, by its number in the cluster, from 0.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct NodeId(pub u8);

impl NodeId {
    /// Its place in a table with an entry for each node.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct NodeCount(u16);

impl NodeCount {
    /// `count` nodes; `None` unless there are 1 to [`MAX_NODES`].
    #[must_use]
    pub const fn new(count: u16) -> Option<Self> {
        if count >= 1 && count <= MAX_NODES { Some(Self(count)) } else { None }
    }

    /// The number, 1 to [`MAX_NODES`].
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Whether there is such a node.
    #[must_use]
    pub const fn has(self, node: NodeId) -> bool {
        (node.0 as u16) < self.0
    }

    /// The node whose number is `number` modulo the number of nodes.
    #[must_use]
    pub const fn wrap(self, number: u32) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        NodeId((number % self.0 as u32) as u8)
    }
}

/// A set of nodes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct NodeSet([u64; WORDS]);

impl NodeSet {
    /// No node.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every number that a node can have.
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    const fn place(node: NodeId) -> (usize, u64) {
        (node.0 as usize / 64, 1 << (node.0 % 64))
    }

    /// Whether the node is in it.
    #[must_use]
    pub const fn contains(&self, node: NodeId) -> bool {
        let (word, bit) = Self::place(node);
        self.0[word] & bit != 0
    }

    /// Adds a node.
    pub const fn insert(&mut self, node: NodeId) {
        let (word, bit) = Self::place(node);
        self.0[word] |= bit;
    }

    /// Takes a node out.
    pub const fn remove(&mut self, node: NodeId) {
        let (word, bit) = Self::place(node);
        self.0[word] &= !bit;
    }

    /// Those that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// The nodes, by ascending number.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..=u8::MAX).map(NodeId).filter(move |node| self.contains(*node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = NodeSet::EMPTY;
        for number in [0, 63, 64, 255] {
            assert!(!set.contains(NodeId(number)));
            set.insert(NodeId(number));
            assert!(set.contains(NodeId(number)));
        }
        assert_eq!(set.iter().map(|node| node.0).collect::<Vec<_>>(), [0, 63, 64, 255]);
        set.remove(NodeId(64));
        set.remove(NodeId(65));
        assert_eq!((set.len(), set.contains(NodeId(64))), (3, false));
        assert_eq!(set.intersection(&NodeSet::ALL), set);
        assert!(set.intersection(&NodeSet::EMPTY).is_empty());
    }

    #[test]
    fn a_cluster_has_1_to_256_nodes() {
        assert_eq!(NodeCount::new(0), None);
        assert_eq!(NodeCount::new(257), None);
        let nodes = NodeCount::new(3).unwrap();
        assert_eq!((nodes.has(NodeId(2)), nodes.has(NodeId(3)), nodes.wrap(7)), (true, false, NodeId(1)));
        assert!(NodeCount::new(256).unwrap().has(NodeId(255)));
    }
}
