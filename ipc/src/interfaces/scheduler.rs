//! Scheduler: what this node's cores do, and which of them each vCPU of the guest has.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::abi::MAX_CORES;
use crate::vcpu::MAX_VCPUS;

crate::interface! {
    /// Tells what the cores and vCPUs do.
    pub interface Scheduler = 5 {
        /// Every core of this node, in order.
        control cores() -> Cores = 1;
        /// Every vCPU of this node, in order; none when it has no guest.
        control vcpus() -> Vcpus = 2;
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

/// Every vCPU of a node.
pub type Vcpus = Vec<VcpuLoad, MAX_VCPUS>;

/// One vCPU. Load and steal are in permille of one core.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct VcpuLoad {
    /// The core that it has.
    pub core: u16,
    /// How long it ran, with the services that worked for it.
    pub load_permille: u16,
    /// How long it was ready and another ran.
    pub steal_permille: u16,
}
