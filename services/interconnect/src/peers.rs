//! The other nodes, as far as they were heard of lately.

use heapless::Vec;
use ipc::interfaces::interconnect::MAX_PEERS;
use ipc::wire::MacAddress;

/// Another node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its number.
    pub node: u16,
    /// Its card's address.
    pub mac: MacAddress,
    /// Which of its lives.
    pub incarnation: u16,
    /// When it was last heard of, in TSC ticks.
    pub heard: u64,
    /// When this life of it was first heard of.
    since: u64,
    /// Whether another claimant to its number was told of.
    duplicate_told: bool,
}

/// What hearing of a node meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// It is known.
    Known,
    /// It is new.
    New,
    /// It is known, and was started again.
    Restarted,
    /// Its number is another's, heard of lately at this address.
    Duplicate {
        /// The address.
        other: MacAddress,
        /// Whether this is the first time since the other was first heard of.
        first: bool,
    },
    /// It is new, and there is no room for it.
    NoRoom,
}

/// The table of peers. A node that is silent for long is forgotten.
#[derive(Debug)]
pub struct Peers {
    entries: Vec<Peer, MAX_PEERS>,
    lifetime: u64,
    settle: u64,
}

impl Peers {
    /// An empty table of peers that are forgotten after `lifetime` ticks of silence, and cannot credibly start again
    /// within `settle` ticks of their last start.
    #[must_use]
    pub const fn new(lifetime: u64, settle: u64) -> Self {
        Self { entries: Vec::new(), lifetime, settle }
    }

    /// The peers.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.entries.iter()
    }

    /// The peer with this number.
    #[must_use]
    pub fn get(&self, node: u16) -> Option<&Peer> {
        self.entries.iter().find(|peer| peer.node == node)
    }

    /// Notes what a node says of itself at `now`.
    pub fn hear(&mut self, node: u16, mac: MacAddress, incarnation: u16, now: u64) -> Heard {
        let fresh = Peer { node, mac, incarnation, heard: now, since: now, duplicate_told: false };
        let Some(peer) = self.entries.iter_mut().find(|peer| peer.node == node) else {
            return if self.entries.push(fresh).is_ok() { Heard::New } else { Heard::NoRoom };
        };
        if peer.mac == mac && peer.incarnation == incarnation {
            peer.heard = now;
            return Heard::Known;
        }
        // A node that alternates between two lives is two nodes, or lies; believing both would be endless.
        if peer.mac == mac && now.saturating_sub(peer.since) >= self.settle {
            *peer = fresh;
            return Heard::Restarted;
        }
        let first = !peer.duplicate_told;
        peer.duplicate_told = true;
        Heard::Duplicate { other: peer.mac, first }
    }

    /// Forgets one peer that has been silent for too long at `now`, if there is one.
    pub fn forget_one(&mut self, now: u64) -> Option<Peer> {
        let lifetime = self.lifetime;
        let at = self.entries.iter().position(|peer| now.saturating_sub(peer.heard) > lifetime)?;
        Some(self.entries.swap_remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const A: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const B: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_peer_is_new_then_known_then_forgotten() {
        let mut peers = Peers::new(100, 10);
        assert_eq!(peers.hear(1, A, 5, 0), Heard::New);
        assert_eq!(peers.hear(1, A, 5, 90), Heard::Known);
        assert_eq!(peers.forget_one(190), None);
        assert_eq!(peers.forget_one(191).map(|peer| peer.node), Some(1));
        assert_eq!(peers.forget_one(191), None);
        assert_eq!(peers.hear(1, B, 6, 200), Heard::New);
    }

    #[test]
    fn a_restart_is_told_and_a_duplicate_is_too() {
        let mut peers = Peers::new(100, 10);
        peers.hear(1, A, 5, 0);
        assert_eq!(peers.hear(1, A, 6, 20), Heard::Restarted);
        assert_eq!(peers.get(1).unwrap().incarnation, 6);
        // Too soon for a start: somebody else.
        assert_eq!(peers.hear(1, A, 5, 21), Heard::Duplicate { other: A, first: true });
        assert_eq!(peers.hear(1, A, 5, 22), Heard::Duplicate { other: A, first: false });
        let mut peers = Peers::new(100, 10);
        peers.hear(1, A, 5, 0);
        assert_eq!(peers.hear(1, B, 5, 50), Heard::Duplicate { other: A, first: true });
        assert_eq!(peers.hear(1, B, 5, 51), Heard::Duplicate { other: A, first: false });
        // The first keeps its number as long as it is heard of.
        assert_eq!(peers.hear(1, A, 5, 60), Heard::Known);
        assert_eq!(peers.get(1).unwrap().mac, A);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut peers = Peers::new(100, 10);
        for node in 0..64 {
            assert_eq!(peers.hear(node, A, 0, 0), Heard::New);
        }
        assert_eq!(peers.hear(64, A, 0, 0), Heard::NoRoom);
        assert_eq!(peers.hear(63, A, 0, 0), Heard::Known);
        assert!(peers.forget_one(101).is_some());
        assert_eq!(peers.hear(64, A, 0, 101), Heard::New);
    }

    #[test]
    fn whatever_is_heard_numbers_stay_distinct() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let mut peers = Peers::new(1000, 10);
        for now in 0..50_000 {
            let mac = if random.random() { A } else { B };
            peers.hear(random.random_range(0..80), mac, random.random_range(0..3), now);
            if random.random_ratio(1, 10) {
                peers.forget_one(now);
            }
            let mut numbers: std::vec::Vec<_> = peers.iter().map(|peer| peer.node).collect();
            numbers.sort_unstable();
            let count = numbers.len();
            numbers.dedup();
            assert!(count == numbers.len() && count <= MAX_PEERS);
        }
    }
}
