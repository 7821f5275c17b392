//! The numbers of the kernel's objects: places in its tables.

use core::num::NonZeroU8;

use ipc::abi::{MAX_CORES, MAX_SERVICES, MAX_THREADS};
use ipc::vcpu::MAX_VCPUS;

const _: () = assert!(MAX_THREADS.is_power_of_two() && MAX_THREADS <= 128);
const _: () = assert!(MAX_SERVICES.is_power_of_two());
const _: () = assert!(MAX_CORES.is_power_of_two());
const _: () = assert!(MAX_VCPUS.is_power_of_two());

/// A thread's number on this node. Kept plus one, so that an `Option` of it is a byte.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ThreadId(NonZeroU8);

impl ThreadId {
    /// The thread with a number; only the bits below [`MAX_THREADS`] count.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        Self::from_index(number as usize)
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
        Self(NonZeroU8::MIN.saturating_add((index & (MAX_THREADS - 1)) as u8))
    }
}

macro_rules! number {
    ($(#[$what:meta])* $name:ident, $places:ident) => {
        $(#[$what])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub struct $name(pub u8);

        impl $name {
            /// Its place in the table.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize & ($places - 1)
            }

            /// What is at a place in the table; only the low bits of `index` count.
            #[must_use]
            #[expect(clippy::cast_possible_truncation, reason = "masked to the table's size")]
            pub const fn from_index(index: usize) -> Self {
                Self((index & ($places - 1)) as u8)
            }
        }
    };
}

number!(
    /// A service's number: its place in the image.
    ServiceId,
    MAX_SERVICES
);
number!(
    /// A core's number, in the order in which the cores were found; 0 booted the node.
    CoreId,
    MAX_CORES
);
number!(
    /// A virtual processor's number in its guest, as far as it is on this node.
    VcpuId,
    MAX_VCPUS
);
