//! Vmm: the guest, as a whole.

use heapless::String;
use serde::{Deserialize, Serialize};

crate::interface! {
    /// Starts and stops the guest, and tells what it does.
    pub interface Vmm = 6 {
        /// Starts the guest. Refused while one runs, and when this node cannot run any.
        control start() -> GuestStatus = 1;
        /// Stops the guest where it is, as if its power were cut. Nothing happens when none runs.
        control stop() -> GuestStatus = 2;
        /// What the guest does.
        control status() -> GuestStatus = 3;
    }
}

/// What the guest does.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestStatus {
    /// Whether one runs.
    pub running: bool,
    /// Starts so far.
    pub starts: u64,
    /// How the last one ended, as in the log.
    pub last_end: String<128>,
}
