//! Which node is the home of a page.
//!
//! Each node is the home of the pages that it gives to the guest: the first node's pages are the first ones, and so on. A guest
//! that knows which memory is whose (Linux, from the SRAT) takes it near the processor that asks, so that most pages are
//! first touched at home, where that needs no message.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::message::Page;
use super::node::{NodeCount, NodeId};

/// Which pages each node gives.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Homes {
    nodes: NodeCount,
    /// The page after the last of each node.
    ends: Arc<[u32]>,
}

impl Homes {
    /// Nodes that give so many pages each; `None` unless there are 1 to [`super::node::MAX_NODES`] of them, and less than
    /// 2^32 pages.
    #[must_use]
    pub fn new(shares: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut ends = Vec::new();
        let mut end = 0_u32;
        for pages in shares {
            end = end.checked_add(u32::try_from(pages).ok()?)?;
            ends.push(end);
        }
        let nodes = NodeCount::new(u16::try_from(ends.len()).ok()?)?;
        Some(Self { nodes, ends: ends.into() })
    }

    /// How many nodes there are.
    #[must_use]
    pub const fn nodes(&self) -> NodeCount {
        self.nodes
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is such a page.
    #[must_use]
    pub fn has(&self, page: Page) -> bool {
        page.0 < self.pages()
    }

    /// The page's home. There is such a page.
    #[must_use]
    pub fn of(&self, page: Page) -> NodeId {
        #[expect(clippy::cast_possible_truncation, reason = "a node's number")]
        NodeId(self.ends.partition_point(|end| *end <= page.0) as u8)
    }

    /// The first page of a node.
    fn start(&self, node: NodeId) -> u32 {
        node.index().checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// The page's place in its home's directory.
    #[must_use]
    pub fn index(&self, page: Page) -> usize {
        (page.0 - self.start(self.of(page))) as usize
    }

    /// Pages of which `node` is the home.
    #[must_use]
    pub fn len(&self, node: NodeId) -> usize {
        (self.ends[node.index()] - self.start(node)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_page_has_one_place_in_one_directory_without_gaps() {
        let many: Vec<u64> = (0..256).map(|node| node % 5).collect();
        for shares in [&[7][..], &[0, 3], &[3, 0], &[100, 1, 0, 0, 40], &[0, 0], &many] {
            let homes = Homes::new(shares.iter().copied()).unwrap();
            let mut places = BTreeSet::new();
            for page in (0..homes.pages()).map(Page) {
                let home = homes.of(page);
                assert!(homes.nodes().has(home) && homes.index(page) < homes.len(home));
                assert!(places.insert((home, homes.index(page))));
                assert!(homes.has(page));
            }
            assert_eq!(u64::from(homes.pages()), shares.iter().sum::<u64>());
            assert!(!homes.has(Page(homes.pages())) && !homes.has(Page(u32::MAX)));
            for (node, pages) in (0..=u8::MAX).map(NodeId).zip(shares) {
                assert_eq!(homes.len(node) as u64, *pages);
            }
        }
    }

    #[test]
    fn the_pages_of_a_node_follow_those_of_the_one_before() {
        let homes = Homes::new([512, 100, 1_000]).unwrap();
        assert!((0..512).all(|page| homes.of(Page(page)) == NodeId(0)));
        assert!((512..612).all(|page| homes.of(Page(page)) == NodeId(1)));
        assert!((612..1_612).all(|page| homes.of(Page(page)) == NodeId(2)));
        assert_eq!(homes.index(Page(612)), 0);
    }

    #[test]
    fn too_many_pages_or_nodes_are_refused() {
        assert_eq!(Homes::new([]), None);
        assert_eq!(Homes::new([1; 257]), None);
        assert_eq!(Homes::new([u64::from(u32::MAX), 1]), None);
        assert_eq!(Homes::new([u64::MAX]), None);
        assert!(Homes::new([u64::from(u32::MAX)]).is_some());
    }
}
