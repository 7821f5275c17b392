//! The list of capabilities.

use crate::config::{Address, ConfigAccess, read_u8, read_u16};

/// [`Capability::id`]: vendor-specific, as virtio's are.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// [`Capability::id`]: MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;

const STATUS: u16 = 6;
const STATUS_LIST: u16 = 1 << 4;
const FIRST: u16 = 0x34;

/// A capability.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Where its registers begin, 64 to 252; what lies past 255 of it is not there.
    pub offset: u16,
}

/// A walk over a function's capabilities. It ends at the list's end, at a pointer into the header, and where the
/// list comes back to a capability that it had: after at most 48.
#[derive(Clone, Debug)]
pub struct Capabilities {
    function: Address,
    /// Where the pointer to the next one is.
    pointer: Option<u16>,
    /// The registers that were visited: a bit for each four bytes.
    visited: u64,
}

impl Capabilities {
    /// A walk that begins.
    pub fn new(config: &mut impl ConfigAccess, function: Address) -> Self {
        let listed = read_u16(config, function, STATUS) & STATUS_LIST != 0;
        Self { function, pointer: listed.then_some(FIRST), visited: 0 }
    }

    /// The next capability. Configuration space is borrowed for this step alone.
    pub fn next(&mut self, config: &mut impl ConfigAccess) -> Option<Capability> {
        // The lowest two bits are reserved.
        let offset = u16::from(read_u8(config, self.function, self.pointer.take()?) & !3);
        let bit = 1 << (offset / 4);
        if offset < 0x40 || self.visited & bit != 0 {
            return None;
        }
        self.visited |= bit;
        self.pointer = Some(offset + 1);
        Some(Capability { id: read_u8(config, self.function, offset), offset })
    }
}

/// Where the registers of a function's first capability of this kind begin.
pub fn find_capability(config: &mut impl ConfigAccess, function: Address, id: u8) -> Option<u16> {
    let mut walk = Capabilities::new(config, function);
    core::iter::from_fn(|| walk.next(config)).find(|capability| capability.id == id).map(|c| c.offset)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::simulated::{AllOnes, Noise, Simulated};

    fn walk(config: &mut impl ConfigAccess) -> Vec<(u8, u16)> {
        let mut walk = Capabilities::new(config, Address::default());
        core::iter::from_fn(|| walk.next(config)).map(|c| (c.id, c.offset)).collect()
    }

    fn with(list: &[(u16, u8, u8)]) -> Simulated {
        let mut config = Simulated::default();
        config.add(0, 0, 0);
        config.set(0, 0, 0, STATUS, &[0x10, 0]);
        config.set(0, 0, 0, FIRST, &[0x43]);
        for (offset, id, next) in list {
            config.set(0, 0, 0, *offset, &[*id, *next]);
        }
        config
    }

    #[test]
    fn the_list_is_followed_to_its_end() {
        let mut config = with(&[(0x40, 9, 0xfc), (0xfc, 0x11, 0x80), (0x80, 9, 0)]);
        assert_eq!(walk(&mut config), [(9, 0x40), (0x11, 0xfc), (9, 0x80)]);
        assert_eq!(find_capability(&mut config, Address::default(), CAPABILITY_MSIX), Some(0xfc));
        assert_eq!(find_capability(&mut config, Address::default(), CAPABILITY_VENDOR), Some(0x40));
        assert_eq!(find_capability(&mut config, Address::default(), 5), None);
        config.set(0, 0, 0, STATUS, &[0, 0]);
        assert_eq!(walk(&mut config), []);
    }

    #[test]
    fn loops_and_nonsense_end() {
        assert_eq!(walk(&mut with(&[(0x40, 9, 0x40)])), [(9, 0x40)]);
        assert_eq!(walk(&mut with(&[(0x40, 9, 0x50), (0x50, 1, 0x41)])), [(9, 0x40), (1, 0x50)]);
        assert_eq!(walk(&mut with(&[(0x40, 9, 0x3c)])), [(9, 0x40)]);
        assert_eq!(walk(&mut AllOnes), [(0xff, 0xfc)]);
        let mut chain: Vec<_> =
            (0x40..=0xfc_u8).step_by(4).map(|at| (at.into(), 1, at.wrapping_add(4))).collect();
        assert_eq!(walk(&mut with(&chain)).len(), 48);
        chain.reverse();
        assert_eq!(walk(&mut with(&chain)).len(), 48);
        for seed in 0..1000 {
            assert!(walk(&mut Noise::new(seed)).len() <= 48);
        }
    }
}
