//! The kernel's counters of vCPUs and cores, read.

use ipc::abi::{Inspect, MAX_CORES, VcpuActivity};
use ipc::vcpu::MAX_VCPUS;
use rt::inspector::Inspector;

use crate::placement::{Activity, VcpuCounters};

/// The counters of a vCPU; `None` past the last.
pub fn vcpu(inspector: &impl Inspector, index: usize) -> Option<VcpuCounters> {
    let [run, _, _, state] = inspector.inspect(Inspect::Vcpu, index as u64).ok()?;
    let [steal, ..] = inspector.inspect(Inspect::VcpuTime, index as u64).ok()?;
    let [low, high, activity, ..] = state.to_le_bytes();
    let activity = match activity {
        activity if activity == VcpuActivity::Stopped as u8 => Activity::Stopped,
        activity if activity == VcpuActivity::Running as u8 => Activity::Ready,
        _ => Activity::Waits,
    };
    // The high half.
    let halts = u32::try_from(state >> 32).unwrap_or(0);
    Some(VcpuCounters { run, steal, halts, home: usize::from(u16::from_le_bytes([low, high])), activity })
}

/// Those of every vCPU, in order.
pub fn vcpus<I: Inspector>(inspector: &I) -> impl Iterator<Item = VcpuCounters> {
    (0..MAX_VCPUS).map_while(|index| vcpu(inspector, index))
}

/// How long each core was busy, in ticks.
pub fn busy<I: Inspector>(inspector: &I) -> impl Iterator<Item = u64> {
    let core = |index| inspector.inspect(Inspect::Core, index).ok().map(|[busy, ..]| busy);
    (0..MAX_CORES as u64).map_while(core)
}
