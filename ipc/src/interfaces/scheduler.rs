//! Scheduler: what this node's cores do.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::abi::MAX_CORES;

crate::interface! {
    /// Tells what the cores do.
    pub interface Scheduler = 5 {
        /// Every core of this node, in order.
        control cores() -> Cores = 1;
    }
}

/// Every core of a node.
pub type Cores = Vec<CoreLoad, MAX_CORES>;

/// One core.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CoreLoad {
    /// Its load, in permille.
    pub load_permille: u16,
    /// Changes from one thread to another, since the kernel's start.
    pub switches: u64,
    /// Interrupts taken, since the kernel's start.
    pub interrupts: u64,
}
