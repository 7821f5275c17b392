//! Which node is the home of a page.
//!
//! Pages are dealt out to the nodes in stripes of a power of two, so that load spreads and neighbours share a home.

use super::message::Page;
use super::node::{NodeCount, NodeId};

/// The largest stripe: 2^15 pages.
pub const MAX_STRIPE_SHIFT: u8 = 15;

/// How pages are dealt out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Homes {
    nodes: NodeCount,
    pages: u32,
    shift: u8,
}

impl Homes {
    /// `pages` pages in stripes of 2^`shift`, which is at most [`MAX_STRIPE_SHIFT`].
    #[must_use]
    pub const fn new(nodes: NodeCount, pages: u32, shift: u8) -> Option<Self> {
        if shift <= MAX_STRIPE_SHIFT { Some(Self { nodes, pages, shift }) } else { None }
    }

    /// How many nodes there are.
    #[must_use]
    pub const fn nodes(self) -> NodeCount {
        self.nodes
    }

    /// Whether there is such a page.
    #[must_use]
    pub const fn has(self, page: Page) -> bool {
        page.0 < self.pages
    }

    /// The page's home.
    #[must_use]
    pub const fn of(self, page: Page) -> NodeId {
        self.nodes.wrap(page.0 >> self.shift)
    }

    /// The page's place in its home's directory.
    #[must_use]
    pub const fn index(self, page: Page) -> usize {
        let stripe = (page.0 >> self.shift) / self.nodes.get() as u32;
        (stripe << self.shift | page.0 & ((1 << self.shift) - 1)) as usize
    }

    /// Pages of which `node` is the home.
    #[must_use]
    pub const fn len(self, node: NodeId) -> usize {
        let (nodes, whole) = (self.nodes.get() as u32, self.pages >> self.shift);
        let mine = whole / nodes + (whole % nodes > node.0 as u32) as u32;
        let rest = if whole % nodes == node.0 as u32 { self.pages & ((1 << self.shift) - 1) } else { 0 };
        (mine as usize) << self.shift | rest as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_page_has_one_place_in_one_directory_without_gaps() {
        for nodes in [1, 2, 3, 7, 256].map(|nodes| NodeCount::new(nodes).unwrap()) {
            for (pages, shift) in [(0, 0), (1, 3), (1_000, 0), (1_000, 2), (1_024, 4), (1_025, 5), (9, 15)] {
                let homes = Homes::new(nodes, pages, shift).unwrap();
                let mut places = BTreeSet::new();
                for page in (0..pages).map(Page) {
                    let home = homes.of(page);
                    assert!(nodes.has(home) && homes.index(page) < homes.len(home));
                    assert!(places.insert((home, homes.index(page))));
                }
                let all: usize = (0..nodes.get()).map(|node| homes.len(nodes.wrap(node.into()))).sum();
                assert_eq!(all, pages as usize);
                assert!(homes.has(Page(pages.wrapping_sub(1))) == (pages > 0) && !homes.has(Page(pages)));
            }
        }
        assert_eq!(Homes::new(NodeCount::new(1).unwrap(), 1, 16), None);
    }

    #[test]
    fn a_stripe_has_one_home() {
        let homes = Homes::new(NodeCount::new(4).unwrap(), 4_096, 9).unwrap();
        assert!((0..512).all(|page| homes.of(Page(page)) == NodeId(0)));
        assert!((512..1_024).all(|page| homes.of(Page(page)) == NodeId(1)));
        assert_eq!(homes.of(Page(2_048)), NodeId(0));
    }
}
