//! The numbers of the kernel's objects: places in its tables.

use core::num::NonZeroU8;

use ipc::abi::{MAX_CORES, MAX_SERVICES, MAX_THREADS};

const _: () = assert!(MAX_THREADS.is_power_of_two() && MAX_THREADS <= 128);
const _: () = assert!(MAX_SERVICES.is_power_of_two());
const _: () = assert!(MAX_CORES.is_power_of_two());

/// A thread's number on this node. Kept plus one, so that an `Option` of it is a byte.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ThreadId(NonZeroU8);

impl ThreadId {
    /// The thread with a number; only the bits below [`MAX_THREADS`] count.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        // At most 128.
        Self(NonZeroU8::MIN.saturating_add(number & (MAX_THREADS - 1) as u8))
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0.get() - 1
    }

    /// Its place in the thread table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.number() as usize
    }

    /// The thread at a place in the table; only the low bits of `index` count.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the table's size")]
    pub const fn from_index(index: usize) -> Self {
        Self::new((index & (MAX_THREADS - 1)) as u8)
    }
}

/// A service's number: its place in the image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServiceId(pub u8);

impl ServiceId {
    /// Its place in the service table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize & (MAX_SERVICES - 1)
    }
}

impl ServiceId {
    /// The service at a place in the table; only the low bits of `index` count.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the table's size")]
    pub const fn from_index(index: usize) -> Self {
        Self((index & (MAX_SERVICES - 1)) as u8)
    }
}

/// A core's number, in the order in which the cores were found; 0 booted the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CoreId(pub u8);

impl CoreId {
    /// Its place in the core table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize & (MAX_CORES - 1)
    }

    /// The core at a place in the table; only the low bits of `index` count.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the table's size")]
    pub const fn from_index(index: usize) -> Self {
        Self((index & (MAX_CORES - 1)) as u8)
    }
}
