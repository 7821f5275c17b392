//! The kernel's counters, for the services that may read them.

use ipc::abi::{Error, Inspect, MAX_NAME_BYTES};

use crate::ids::{CoreId, ThreadId, VcpuId};
use crate::state::State;
use crate::thread::ThreadState;

impl State {
    /// [`ipc::abi::Syscall::Inspect`].
    pub(crate) fn inspect(
        &mut self,
        now: u64,
        core: CoreId,
        item: Inspect,
        index: u64,
    ) -> Result<[u64; 4], Error> {
        let index = usize::try_from(index).map_err(|_| Error::NoSuchItem)?;
        let limit = match item {
            Inspect::Core | Inspect::Log => self.cores.len(),
            Inspect::Service | Inspect::ServiceName => self.services.len(),
            Inspect::Vcpu | Inspect::VcpuTime => self.vcpus.len(),
            Inspect::Node | Inspect::Calls | Inspect::Boot => 1,
        };
        if index >= limit {
            return Err(Error::NoSuchItem);
        }
        self.charge(now, core);
        Ok(match item {
            Inspect::Core => {
                let c = &self.cores[index];
                // What runs or idles since the last charge counts too.
                let open = now.saturating_sub(c.since);
                let (busy, idle) = if c.current.is_some() { (open, 0) } else { (0, open) };
                [c.busy + busy, c.idle + idle, c.switches, c.interrupts]
            }
            Inspect::Service => {
                let service = &self.services[index];
                let in_use = |t: &ThreadId| self.threads[t.index()].state != ThreadState::Unused;
                let threads = service.thread_ids().filter(in_use).count() as u64;
                let run_time = service.thread_ids().map(|t| self.threads[t.index()].run_time).sum::<u64>();
                let state = u64::from(service.state as u8) | threads << 8;
                [run_time, state, u64::from(service.generation), service.served]
            }
            Inspect::ServiceName => {
                let service = &self.services[index];
                let mut halves = [[0; MAX_NAME_BYTES / 2]; 2];
                for (half, bytes) in halves.iter_mut().zip(service.name.0.chunks_exact(MAX_NAME_BYTES / 2)) {
                    half.copy_from_slice(bytes);
                }
                let limit = u64::from(service.restart_limit) | u64::from(service.restart_period_ms) << 32;
                let [first, second] = halves.map(u64::from_le_bytes);
                [first, second, limit, u64::from(service.beat_ms)]
            }
            Inspect::Vcpu => {
                let vcpu = &self.vcpus[index];
                let (id, counters) = (vcpu.thread, &vcpu.counters);
                let activity = self.activity(VcpuId::from_index(index)) as u64;
                let thread = &self.threads[id.index()];
                let state = u64::from(thread.core.0) | activity << 16 | counters.halts << 32;
                [thread.run_time, counters.exits, counters.faults, state]
            }
            Inspect::VcpuTime => {
                let counters = &self.vcpus[index].counters;
                [counters.steal, counters.kicks, counters.entries, 0]
            }
            Inspect::Node => {
                [self.node.frames, self.node.frames_free, self.cores.len() as u64, self.node.tsc_hz]
            }
            Inspect::Log => {
                let [records, bytes, refused] = self.logs[index].counts();
                [records, bytes, refused, 0]
            }
            Inspect::Boot => [self.node.entered, self.node.left, 0, 0],
            Inspect::Calls => {
                let taken = self.services.iter().map(|service| service.served).sum();
                [taken, self.calls.stale, self.calls.restarted, 0]
            }
        })
    }
}
