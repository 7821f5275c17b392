//! Which port a MAC address was last seen at.
//!
//! The table is bounded per port, so a node that invents addresses forgets its own, never another's.

use super::counters::PortId;
use super::wire::Mac;
use std::collections::{HashMap, VecDeque};

/// The most addresses that are remembered of one port.
const MACS_PER_PORT: usize = 64;
/// An address is forgotten when so many frames have come from others since its last.
const AGE_FRAMES: u64 = 1 << 16;

#[derive(Clone, Copy)]
struct Entry {
    port: PortId,
    /// [`MacTable::frames`] when it was last seen.
    seen: u64,
}

/// The addresses that a switch has learned.
pub struct MacTable {
    entries: HashMap<Mac, Entry>,
    /// By port: the addresses learned there, oldest first. One that has moved to another port since is still here.
    learned: Vec<VecDeque<Mac>>,
    /// Frames seen, the clock by which entries age.
    frames: u64,
}

impl MacTable {
    /// An empty table for so many ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self { entries: HashMap::new(), learned: vec![VecDeque::new(); ports], frames: 0 }
    }

    /// A frame from `mac` came in at `port`.
    pub fn learn(&mut self, mac: Mac, port: PortId) {
        self.frames += 1;
        let entry = Entry { port, seen: self.frames };
        let known = self.entries.insert(mac, entry);
        if known.is_some_and(|known| known.port == port) {
            return;
        }
        let Some(learned) = self.learned.get_mut(port.index()) else { return };
        learned.push_back(mac);
        if learned.len() > MACS_PER_PORT
            && let Some(oldest) = learned.pop_front()
            && oldest != mac
            && self.entries.get(&oldest).is_some_and(|entry| entry.port == port)
        {
            self.entries.remove(&oldest);
        }
    }

    /// The port at which `mac` was last seen.
    #[must_use]
    pub fn find(&self, mac: Mac) -> Option<PortId> {
        let entry = self.entries.get(&mac)?;
        (self.frames - entry.seen <= AGE_FRAMES).then_some(entry.port)
    }

    /// Forgets what was learned at `port`.
    pub fn forget(&mut self, port: PortId) {
        let Some(learned) = self.learned.get_mut(port.index()) else { return };
        for mac in learned.drain(..) {
            if self.entries.get(&mac).is_some_and(|entry| entry.port == port) {
                self.entries.remove(&mac);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AGE_FRAMES, MACS_PER_PORT, Mac, MacTable, PortId};

    fn mac(number: u64) -> Mac {
        let [.., a, b, c, d] = number.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn an_address_is_learned_moves_and_is_forgotten() {
        let mut table = MacTable::new(2);
        assert_eq!(table.find(mac(1)), None);
        table.learn(mac(1), PortId(0));
        assert_eq!(table.find(mac(1)), Some(PortId(0)));
        table.learn(mac(1), PortId(1));
        assert_eq!(table.find(mac(1)), Some(PortId(1)));
        table.forget(PortId(0));
        assert_eq!(table.find(mac(1)), Some(PortId(1)));
        table.forget(PortId(1));
        assert_eq!(table.find(mac(1)), None);
    }

    #[test]
    fn an_address_ages_by_the_frames_of_others() {
        let mut table = MacTable::new(2);
        table.learn(mac(1), PortId(0));
        for _ in 0..AGE_FRAMES {
            table.learn(mac(2), PortId(1));
        }
        assert_eq!(table.find(mac(1)), Some(PortId(0)));
        table.learn(mac(2), PortId(1));
        assert_eq!(table.find(mac(1)), None);
        table.learn(mac(1), PortId(0));
        assert_eq!(table.find(mac(1)), Some(PortId(0)));
    }

    #[test]
    fn a_flood_of_addresses_forgets_only_its_own() {
        let mut table = MacTable::new(2);
        table.learn(mac(1), PortId(0));
        for number in 0..10_000 {
            table.learn(mac(100 + number), PortId(1));
        }
        assert_eq!(table.find(mac(1)), Some(PortId(0)));
        assert_eq!(table.find(mac(100 + 9_999)), Some(PortId(1)));
        assert_eq!(table.find(mac(100)), None);
        assert_eq!(table.entries.len(), 1 + MACS_PER_PORT);
        // An address that two ports claim in turn stays within the bound, too.
        for _ in 0..5000 {
            table.learn(mac(7), PortId(0));
            table.learn(mac(7), PortId(1));
        }
        assert!(table.entries.len() <= 2 * MACS_PER_PORT);
        assert!(table.learned.iter().all(|learned| learned.len() <= MACS_PER_PORT));
    }
}
