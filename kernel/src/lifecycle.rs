//! A service's life: start, fault, stop, reload, start again.
//!
//! A service that faults is stopped whole. Its generation counts up at that moment, so every handle to it and every
//! handle it held is stale; every call that it had or made ends. The supervisor then restores its memory in steps of
//! [`RELOAD_STEP`] bytes, so that no system call is long, and starts it. Calls that are made with fresh handles in
//! the meantime wait for it.

use ipc::abi::{
    Error, FAULT_BIT, FaultCause, FaultReport, Handle, MAX_CAPABILITIES, NEVER, START_PAGE, ServiceOperation,
    ServiceState, StartEntry, StartPage,
};
use ipc::image::RIGHT_SUPERVISE;
use zerocopy::FromZeros;

use crate::address::{PhysAddr, VirtAddr};
use crate::context::UserContext;
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::machine::Machine;
use crate::service::{OnRestart, ReloadCursor};
use crate::state::State;
use crate::thread::{Links, Maker, ThreadState};

/// Bytes that one [`ServiceOperation::Reload`] restores at most.
pub const RELOAD_STEP: u64 = 64 * 1024;
/// How often the kernel itself restarts a supervisor that faults; after that it stays down and the other services go
/// on without restarts.
pub const SUPERVISOR_RESTARTS: u32 = 16;

/// The vector of a page fault (AMD APM 2, 8.2.15).
const PAGE_FAULT: u8 = 14;

impl State {
    /// A processor exception in ring 3, on this core; `address` is CR2.
    pub fn exception<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        vector: u8,
        error_code: u64,
        address: u64,
    ) {
        let Some(id) = self.cores[core.index()].current else { return };
        let thread = &self.threads[id.index()];
        let ready = thread.state == ThreadState::Ready && thread.vcpu.is_none();
        if ready && (vector != PAGE_FAULT || !self.window_fault(m, core, id, error_code, address)) {
            let thread = &self.threads[id.index()];
            let service = &self.services[thread.service.index()];
            let cause = if vector != PAGE_FAULT {
                FaultCause::Exception
            } else if service.stack_guard_slot(VirtAddr(address)).is_some() {
                FaultCause::StackOverflow
            } else {
                FaultCause::PageFault
            };
            self.fail(m, core, id, cause, |report| {
                report.vector = u64::from(vector);
                report.error_code = error_code;
                report.address = if vector == PAGE_FAULT { address } else { 0 };
            });
        }
        self.reschedule(m, core);
    }

    /// Stops the service of a thread that did what services must not, or gave itself up.
    pub(crate) fn fail<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        cause: FaultCause,
        tell: impl FnOnce(&mut FaultReport),
    ) {
        let mut report = self.report(m, id, cause);
        tell(&mut report);
        self.stop(m, core, self.threads[id.index()].service, report);
    }

    fn report<M: Machine>(&self, m: &M, id: ThreadId, cause: FaultCause) -> FaultReport {
        let thread = &self.threads[id.index()];
        FaultReport {
            service: u32::from(thread.service.0),
            thread: u32::from(thread.slot),
            cause: cause as u64,
            generation: u64::from(self.services[thread.service.index()].generation),
            tsc: m.now(),
            registers: thread.context.registers,
            ..FaultReport::new_zeroed()
        }
    }

    /// Stops a running service where it is and tells the supervisor.
    fn stop<M: Machine>(&mut self, m: &mut M, core: CoreId, target: ServiceId, report: FaultReport) {
        let service = &mut self.services[target.index()];
        service.state = ServiceState::Stopped;
        service.generation = service.generation.wrapping_add(1);
        service.report = Some(report);
        service.reload = ReloadCursor::default();
        service.receivers = 0;
        self.end_calls_to(m, core, target, Error::Restarted);
        for id in self.services[target.index()].thread_ids() {
            self.stop_thread(m, core, id);
        }
        if self.guest.as_ref().is_some_and(|guest| guest.platform == target) {
            (0..self.vcpus.len()).for_each(|index| self.stop_vcpu(m, core, VcpuId::from_index(index)));
        }
        let supervises = |s: &crate::service::Service| s.rights & RIGHT_SUPERVISE != 0;
        if supervises(&self.services[target.index()]) {
            self.restart_supervisor(m, core, target);
        }
        let supervisor = self.services.iter().position(supervises);
        if let Some(supervisor) = supervisor {
            self.raise(m, core, ServiceId::from_index(supervisor), FAULT_BIT);
        }
    }

    /// Ends every call that waits for a service, taken or not.
    fn end_calls_to<M: Machine>(&mut self, m: &mut M, core: CoreId, target: ServiceId, error: Error) {
        self.services[target.index()].callers = 0;
        for index in 0..self.threads.len() {
            let id = ThreadId::from_index(index);
            match self.threads[index].state {
                ThreadState::AwaitingReply { server } if server == target => {
                    self.take_back_context(m, core, id);
                }
                ThreadState::Sending { server, .. } if server == target => {}
                _ => continue,
            }
            self.calls.restarted += 1;
            self.make_ready(m, core, id, error.status());
        }
    }

    /// Ends a thread of a service that stops. It serves nobody any more.
    pub(crate) fn stop_thread<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) {
        match self.threads[id.index()].state {
            ThreadState::Sending { server, .. } => {
                self.services[server.index()].callers &= !(1 << id.index())
            }
            ThreadState::AwaitingReply { .. } => self.take_back_context(m, core, id),
            ThreadState::Unused
            | ThreadState::Ready
            | ThreadState::Receiving { .. }
            | ThreadState::Halted
            | ThreadState::Futex { .. } => {}
        }
        // Its callers took their contexts back, so it is on its own.
        let home = self.threads[id.index()].core;
        self.cores[home.index()].queue.remove(self.threads.places_mut(), id);
        let thread = &mut self.threads[id.index()];
        thread.state = ThreadState::Unused;
        thread.deadline = NEVER;
        thread.maker = Maker::Thread;
        thread.links = Links::default();
        match self.core_running(id) {
            Some(here) if here == core => self.leave_core(m.now(), core),
            // It runs on in ring 3 until that core takes the interrupt; its memory is not touched before.
            Some(there) => m.reschedule(usize::from(there.0)),
            None => {}
        }
    }

    /// The oldest fault that the supervisor was not told.
    pub(crate) fn next_fault(&mut self) -> Option<FaultReport> {
        let services = self.services.iter_mut();
        let oldest =
            services.filter(|s| s.report.is_some()).min_by_key(|s| s.report.map_or(NEVER, |r| r.tsc))?;
        oldest.report.take()
    }

    /// [`ipc::abi::Syscall::Control`].
    pub(crate) fn control<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        by: ServiceId,
        target: ServiceId,
        operation: ServiceOperation,
    ) -> Result<(), Error> {
        if by == target {
            return Err(Error::Refused);
        }
        let state = self.services[target.index()].state;
        match operation {
            ServiceOperation::Stop => {
                if state != ServiceState::Running {
                    return Err(Error::Again);
                }
                let report = self.report(m, self.services[target.index()].first_thread, FaultCause::Stopped);
                self.stop(m, core, target, report);
                Ok(())
            }
            ServiceOperation::Reload => self.reload_step(m, target),
            ServiceOperation::Start => {
                if state != ServiceState::Ready {
                    return Err(Error::Again);
                }
                self.start(m, core, target);
                Ok(())
            }
            ServiceOperation::GiveUp => {
                if state == ServiceState::Running {
                    return Err(Error::Again);
                }
                self.services[target.index()].state = ServiceState::Down;
                self.end_calls_to(m, core, target, Error::Down);
                Ok(())
            }
        }
    }

    /// Restores the next piece of a stopped service's memory.
    fn reload_step<M: Machine>(&mut self, m: &mut M, target: ServiceId) -> Result<(), Error> {
        let on_a_core = self.services[target.index()].thread_ids().any(|id| self.core_running(id).is_some());
        let service = &mut self.services[target.index()];
        match service.state {
            ServiceState::Running | ServiceState::Down => return Err(Error::Refused),
            ServiceState::Ready => return Ok(()),
            ServiceState::Stopped | ServiceState::Reloading => {}
        }
        if on_a_core {
            return Err(Error::Again);
        }
        service.state = ServiceState::Reloading;
        let mut left = RELOAD_STEP;
        while left > 0 {
            let Some(mapping) = service.mappings.get(service.reload.mapping) else {
                service.state = ServiceState::Ready;
                return Ok(());
            };
            let offset = service.reload.offset;
            let OnRestart::Restore { source, source_bytes } = mapping.on_restart else {
                service.reload = ReloadCursor { mapping: service.reload.mapping + 1, offset: 0 };
                continue;
            };
            let step = left.min(mapping.bytes - offset);
            let copied = source_bytes.saturating_sub(offset).min(step);
            let to = PhysAddr(mapping.physical.0 + offset);
            restore(m, PhysAddr(source.0 + offset), copied, to, step);
            left -= step;
            service.reload.offset += step;
            if service.reload.offset == mapping.bytes {
                service.reload = ReloadCursor { mapping: service.reload.mapping + 1, offset: 0 };
            }
        }
        Err(Error::Again)
    }

    /// Starts the first thread of a service whose memory is as its ELF file says.
    pub fn start<M: Machine>(&mut self, m: &mut M, core: CoreId, target: ServiceId) {
        self.refresh_start_page(m, target);
        let service = &mut self.services[target.index()];
        service.state = ServiceState::Running;
        service.pending = 0;
        let first = service.first_thread;
        let entry = service.entry.0;
        let context = UserContext::at_entry(entry, ipc::abi::stack_top(0), [START_PAGE, 0]);
        self.threads[first.index()].context = context;
        if service.generation > 0 {
            // What its former life was told of and did not acknowledge.
            self.interrupts.masked_of(target).for_each(|gsi| m.unmask(gsi));
        }
        self.make_ready(m, core, first, 0);
    }

    /// Writes the generation and the current handles into a service's start page.
    fn refresh_start_page<M: Machine>(&self, m: &mut M, target: ServiceId) {
        let service = &self.services[target.index()];
        let at = |offset: usize| PhysAddr(service.start_page.0 + offset as u64);
        let generation = u64::from(service.generation);
        m.write(at(core::mem::offset_of!(StartPage, generation)), &generation.to_le_bytes());
        for slot in 0..MAX_CAPABILITIES {
            let object = service.capabilities[slot];
            if object == crate::service::Object::Empty {
                continue;
            }
            let handle = Handle::new(slot_number(slot), self.generation_of(target, object));
            let offset = core::mem::offset_of!(StartPage, entries)
                + slot * size_of::<StartEntry>()
                + core::mem::offset_of!(StartEntry, handle);
            m.write(at(offset), &handle.0.to_le_bytes());
        }
    }

    /// The supervisor has no one above it but the kernel: restores and starts it at once.
    fn restart_supervisor<M: Machine>(&mut self, m: &mut M, core: CoreId, target: ServiceId) {
        if self.services[target.index()].generation > SUPERVISOR_RESTARTS {
            self.services[target.index()].state = ServiceState::Down;
            self.end_calls_to(m, core, target, Error::Down);
            return;
        }
        // Its only thread just faulted on this core, so no core runs it.
        while self.reload_step(m, target) == Err(Error::Again) {
            if self.services[target.index()].state != ServiceState::Reloading {
                return;
            }
        }
        self.start(m, core, target);
    }
}

/// A slot of a capability table as handles have it.
#[expect(clippy::cast_possible_truncation, reason = "a table has 64 slots")]
pub(crate) const fn slot_number(slot: usize) -> u16 {
    slot as u16
}

/// Fills `bytes` bytes at `to`: `copied` of them from `source`, zeros beyond.
pub(crate) fn restore<M: Machine>(m: &mut M, source: PhysAddr, copied: u64, to: PhysAddr, bytes: u64) {
    let length = |n: u64| usize::try_from(n).unwrap_or(0);
    if copied > 0 {
        m.copy(source, to, length(copied));
    }
    if bytes > copied {
        m.zero(PhysAddr(to.0 + copied), length(bytes - copied));
    }
}
