//! How the boot-time parsers see physical memory: as bytes that may turn out not to be there.
//!
//! Firmware tables hold addresses, and an address out of a table is a claim. A [`PhysMemory`] answers `None` for
//! whatever may not be read, so a parser cannot stray, whatever the tables say.

use zerocopy::FromBytes;

use crate::address::PhysAddr;

/// Physical memory that may be read.
pub trait PhysMemory {
    /// `length` bytes from `from` on, or `None` when not all of them may be read.
    fn bytes(&self, from: PhysAddr, length: usize) -> Option<&[u8]>;
}

/// The value at a physical address, which need not be aligned.
pub fn read<T: FromBytes>(memory: &dyn PhysMemory, from: PhysAddr) -> Option<T> {
    field(memory.bytes(from, size_of::<T>())?, 0)
}

/// The value at an offset of a table, which need not be aligned.
#[must_use]
pub fn field<T: FromBytes>(table: &[u8], offset: usize) -> Option<T> {
    T::read_from_prefix(table.get(offset..)?).ok().map(|(value, _)| value)
}

/// Physical memory for tests.
#[cfg(test)]
pub mod fake {
    extern crate std;
    use std::vec::Vec;

    use super::{PhysAddr, PhysMemory};

    /// Pieces of memory at their addresses; an earlier piece hides a later one.
    #[derive(Clone, Default)]
    pub struct Pieces(pub Vec<(u64, Vec<u8>)>);

    impl Pieces {
        /// Adds a piece.
        pub fn with(mut self, at: u64, bytes: impl Into<Vec<u8>>) -> Self {
            self.0.push((at, bytes.into()));
            self
        }
    }

    impl PhysMemory for Pieces {
        fn bytes(&self, from: PhysAddr, length: usize) -> Option<&[u8]> {
            self.0.iter().find_map(|(at, bytes)| {
                let start = usize::try_from(from.0.checked_sub(*at)?).ok()?;
                bytes.get(start..start.checked_add(length)?)
            })
        }
    }
}
