//! Health: the state of this node, for its operator and for other nodes.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::abi::{MAX_CORES, MAX_SERVICES, ServiceState, VcpuActivity};
use crate::image::NameString;

crate::interface! {
    /// Tells how this node is.
    pub interface Health = 2 {
        /// The node in sum.
        control node() -> NodeReport = 1;
        /// Every service, in the order of their numbers.
        control services() -> Services = 2;
        /// The vCPU with this number; `None` past the last, and when the node has no guest.
        control vcpu(u8) -> Option<VcpuHealth> = 3;
    }
}

/// The node in sum.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeReport {
    /// Milliseconds since the kernel's start.
    pub uptime_ms: u64,
    /// The load of each core, in permille.
    pub loads_permille: Vec<u16, MAX_CORES>,
    /// Frames of 4 KiB in all.
    pub frames_total: u64,
    /// Frames of 4 KiB that nobody has.
    pub frames_free: u64,
    /// Log records passed on.
    pub log_records: u64,
    /// Log records lost before they could be.
    pub log_lost: u64,
}

/// Every service.
pub type Services = Vec<ServiceHealth, MAX_SERVICES>;

/// One service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceHealth {
    /// Its name.
    pub name: NameString,
    /// Where it stands with the kernel.
    #[serde(with = "State")]
    pub state: ServiceState,
    /// Threads that it has now.
    pub threads: u8,
    /// Restarts since boot.
    pub restarts: u32,
    /// Its load, in permille of one core.
    pub load_permille: u16,
    /// Calls that it served since boot.
    pub calls_served: u64,
}

/// [`ServiceState`] as serde sees it.
#[derive(Deserialize, Serialize)]
#[serde(remote = "ServiceState")]
enum State {
    Running,
    Stopped,
    Reloading,
    Ready,
    Down,
}

/// One vCPU. Totals are since the kernel's start and over all guests; rates are per second over the server's last
/// period of observation.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VcpuHealth {
    /// What it does now.
    #[serde(with = "Activity")]
    pub activity: VcpuActivity,
    /// The core that it has.
    pub core: u16,
    /// How long it ran, with the services that worked for it, in permille of one core.
    pub load_permille: u16,
    /// How long it was ready and another ran, in permille of the time.
    pub steal_permille: u16,
    /// Exits that its platform was asked about.
    pub exits: Count,
    /// Misses in guest memory that its owner was asked about.
    pub faults: Count,
    /// Halts; the total is modulo 2^32.
    pub halts: Count,
    /// How long it was ready and another ran, in milliseconds.
    pub steal_ms: u64,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Count {
    /// In all.
    pub total: u64,
    /// In a second.
    pub per_second: u32,
}

/// [`VcpuActivity`] as serde sees it.
#[derive(Deserialize, Serialize)]
#[serde(remote = "VcpuActivity")]
enum Activity {
    Stopped,
    Running,
    Halted,
    AtExit,
}
