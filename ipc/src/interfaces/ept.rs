//! Ept: the memory that this node can give.

use serde::{Deserialize, Serialize};

crate::interface! {
    /// Tells what memory this node has.
    pub interface Ept = 3 {
        /// The node's frames.
        control memory() -> Memory = 1;
    }
}

/// The node's memory, in frames of 4 KiB.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Memory {
    /// Frames in all.
    pub frames_total: u64,
    /// Frames that nobody has.
    pub frames_free: u64,
}
