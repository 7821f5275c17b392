//! System calls: from the registers of the current thread to the function that does it.

use ipc::abi::{
    Error, FaultCause, Handle, Inspect, LogRecord, MAX_LOG_BYTES, MAX_PANIC_BYTES, Outcome, PAGE_SIZE,
    ServiceOperation, Syscall, UserRegisters,
};
use ipc::image::{RIGHT_INSPECT, RIGHT_READ_LOGS, RIGHT_STOP_NODE, RIGHT_SUPERVISE};
use zerocopy::IntoBytes;

use crate::address::VirtAddr;
use crate::context::UserContext;
use crate::cpu::End;
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::machine::{Machine, StopKind};
use crate::service::Object;
use crate::state::State;
use crate::thread::{Thread, ThreadState};

/// A system call: who makes it, on which core, and with what.
pub(crate) struct Request {
    pub(crate) core: CoreId,
    pub(crate) thread: ThreadId,
    pub(crate) service: ServiceId,
    pub(crate) registers: UserRegisters,
}

impl State {
    /// The current thread of this core made a system call. What the core goes on with, as [`State::current`] says.
    #[inline]
    pub fn syscall<M: Machine>(&mut self, m: &mut M, core: CoreId) -> Option<&mut UserContext> {
        let id = self.cores[core.index()].current?;
        let thread = &self.threads[id.index()];
        let number = thread.context.registers.rax;
        // Another core may have stopped the thread after it left ring 3.
        let runs = thread.state == ThreadState::Ready;
        let next = if runs && number == Syscall::Call as u64 {
            self.fast_call(m, core, id)
        } else if runs && number == Syscall::Receive as u64 {
            self.fast_receive(m, core, id)
        } else {
            None
        };
        match next {
            Some(next) => Some(&mut self.threads[next.index()].context),
            None => self.slow_syscall(m, core, id),
        }
    }

    /// Every call that does not take one of the two short ways.
    #[cold]
    #[inline(never)]
    fn slow_syscall<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
    ) -> Option<&mut UserContext> {
        if self.threads[id.index()].state != ThreadState::Ready {
            self.reschedule(m, core);
        } else if let Err(error) = self.any_syscall(m, core, id) {
            self.threads[id.index()].context.registers.rax = error.status();
        }
        self.settle(m, core);
        self.current(core)
    }

    /// Any call. Those after which another thread may run set `rax` themselves.
    fn any_syscall<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let Thread { service, context: UserContext { registers, .. }, .. } = self.threads[id.index()];
        let request = &Request { core, thread: id, service, registers };
        let call = Syscall::from_number(registers.rax).ok_or(Error::BadCall)?;
        // Success, until said otherwise.
        self.threads[id.index()].context.registers.rax = Outcome::Message as u64;
        match call {
            Syscall::Call => self.call(m, core, id),
            Syscall::Receive => self.receive(m, core, id),
            Syscall::Reply => self.reply(m, core, id),
            Syscall::Notify => self.notify(m, request),
            Syscall::AcknowledgeInterrupt => self.acknowledge(m, request),
            Syscall::Yield => {
                self.charge(m.now(), core);
                self.cores[core.index()].current = None;
                self.enqueue(m, core, id, End::Back);
                self.reschedule(m, core);
                Ok(())
            }
            Syscall::FutexWait => self.futex_wait(m, request),
            Syscall::FutexWake => self.futex_wake(m, request),
            Syscall::SpawnThread => self.spawn_thread(m, request),
            Syscall::ExitThread => self.exit_thread(m, request),
            Syscall::Log => self.write_log(m, request),
            Syscall::Panic => self.service_panic(m, request),
            Syscall::DmaAddress => self.dma_address(request).map(|address| self.give(id, address)),
            Syscall::PortRead => self.port_read(m, request).map(|value| self.give(id, value)),
            Syscall::PortWrite => self.port_write(m, request),
            Syscall::PortWriteBytes => self.port_write_bytes(m, request),
            Syscall::ConfigRead => self.config_read(m, request).map(|value| self.give(id, value)),
            Syscall::ConfigWrite => self.config_write(m, request),
            Syscall::Inspect => {
                self.need(service, RIGHT_INSPECT)?;
                let item = Inspect::from_number(registers.rdi).ok_or(Error::NoSuchItem)?;
                let words = self.inspect(m.now(), core, item, registers.rsi)?;
                let registers = &mut self.threads[id.index()].context.registers;
                [registers.rdx, registers.r8, registers.r9, registers.r10] = words;
                Ok(())
            }
            Syscall::NextFault => {
                self.need(service, RIGHT_SUPERVISE)?;
                let report = self.next_fault().ok_or(Error::Again)?;
                m.write(self.threads[id.index()].message_page, report.as_bytes());
                Ok(())
            }
            Syscall::Control => {
                self.need(service, RIGHT_SUPERVISE)?;
                let target = self.known_service(registers.rdi)?;
                let operation = ServiceOperation::from_number(registers.rsi).ok_or(Error::Malformed)?;
                self.control(m, core, service, target, operation)?;
                self.reschedule(m, core);
                Ok(())
            }
            Syscall::LogRead => {
                self.need(service, RIGHT_READ_LOGS)?;
                let index = usize::try_from(registers.rdi).map_err(|_| Error::NoSuchItem)?;
                let page = self.threads[id.index()].message_page;
                let read =
                    self.logs.get(index).ok_or(Error::NoSuchItem)?.read(m, registers.rsi, page, PAGE_SIZE);
                let registers = &mut self.threads[id.index()].context.registers;
                (registers.rdi, registers.rsi, registers.rdx) = (read.bytes as u64, read.next, read.lost);
                Ok(())
            }
            Syscall::Refresh => {
                self.refresh(service, Handle(registers.rdi)).map(|handle| self.give(id, handle))
            }
            Syscall::StopNode => {
                self.need(service, RIGHT_SUPERVISE | RIGHT_STOP_NODE)?;
                let kind = match registers.rdi {
                    0 => StopKind::PowerOff,
                    1 => StopKind::Reset,
                    _ => return Err(Error::Malformed),
                };
                m.stop_node(kind);
                Ok(())
            }
            Syscall::GuestMap => self.guest_map(m, request),
            Syscall::VcpuStart => self.vcpu_start(m, request),
            Syscall::VcpuStop => self.vcpu_stop(m, request),
            Syscall::VcpuKick => self.vcpu_kick(m, request),
            Syscall::VcpuFetch => self.vcpu_fetch(m, request),
            Syscall::VcpuPlace => self.vcpu_place(m, request),
            Syscall::GuestProgress => self.guest_progress(m, request).map(|value| self.give(id, value)),
        }
    }

    /// Puts a value into the thread's `rdi`.
    fn give(&mut self, id: ThreadId, value: u64) {
        self.threads[id.index()].context.registers.rdi = value;
    }

    fn need(&self, service: ServiceId, right: u32) -> Result<(), Error> {
        if self.services[service.index()].rights & right == 0 { Err(Error::Refused) } else { Ok(()) }
    }

    /// A service's number, as a claim, to its id.
    fn known_service(&self, number: u64) -> Result<ServiceId, Error> {
        let index = usize::try_from(number).ok().filter(|&index| index < self.services.len());
        index.map(ServiceId::from_index).ok_or(Error::NoSuchItem)
    }

    /// The generation that a handle to this object must have.
    pub(crate) fn generation_of(&self, holder: ServiceId, object: Object) -> u32 {
        match object {
            Object::Endpoint(target) | Object::Notification(target, _) => {
                self.services[target.index()].generation
            }
            _ => self.services[holder.index()].generation,
        }
    }

    /// What a handle stands for, when it is current.
    pub(crate) fn resolve(&self, holder: ServiceId, handle: Handle) -> Result<Object, Error> {
        let object = self.services[holder.index()].object(handle);
        if object == Object::Empty || !handle.is_well_formed() {
            return Err(Error::BadHandle);
        }
        if handle.generation() != self.generation_of(holder, object) {
            return Err(Error::Restarted);
        }
        Ok(object)
    }

    fn refresh(&self, holder: ServiceId, handle: Handle) -> Result<u64, Error> {
        let object = self.services[holder.index()].object(handle);
        if object == Object::Empty || !handle.is_well_formed() {
            return Err(Error::BadHandle);
        }
        if let Object::Endpoint(target) | Object::Notification(target, _) = object
            && self.services[target.index()].state == ipc::abi::ServiceState::Down
        {
            return Err(Error::Down);
        }
        // A slot is below MAX_CAPABILITIES.
        Ok(handle.0 & 0xffff | u64::from(self.generation_of(holder, object)) << 16)
    }

    /// What the handle in `rdi` stands for, when it is current.
    pub(crate) fn object(&self, request: &Request) -> Result<Object, Error> {
        self.resolve(request.service, Handle(request.registers.rdi))
    }

    fn notify(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Object::Notification(target, bits) = self.object(request)? else { return Err(Error::WrongKind) };
        self.raise(m, request.core, target, bits);
        self.reschedule(m, request.core);
        Ok(())
    }

    fn futex_wait(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, thread: id, service, ref registers } = *request;
        let address = registers.rdi;
        if !address.is_multiple_of(4) {
            return Err(Error::BadPointer);
        }
        let word = self.services[service.index()].translate(VirtAddr(address), 4).ok_or(Error::BadPointer)?;
        if u64::from(m.read_u32(word)) != registers.rsi {
            return Err(Error::Again);
        }
        self.threads[id.index()].state = ThreadState::Futex { address };
        self.start_wait(m, core, id, registers.r12);
        self.reschedule(m, core);
        Ok(())
    }

    fn futex_wake(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, thread: id, service, ref registers } = *request;
        let wanted = ThreadState::Futex { address: registers.rdi };
        let mut woken = 0;
        for other in self.services[service.index()].thread_ids() {
            if woken < registers.rsi && self.threads[other.index()].state == wanted {
                self.make_ready(m, core, other, Outcome::Message as u64);
                woken += 1;
            }
        }
        self.threads[id.index()].context.registers.rdi = woken;
        self.reschedule(m, core);
        Ok(())
    }

    fn spawn_thread(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, thread: id, service, ref registers } = *request;
        self.services[service.index()].translate(VirtAddr(registers.rdi), 1).ok_or(Error::BadPointer)?;
        // A thread that ended on another core may still be leaving it.
        let free = self.services[service.index()]
            .thread_ids()
            .find(|&t| self.threads[t.index()].state == ThreadState::Unused && self.core_running(t).is_none())
            .ok_or(Error::NoRoom)?;
        let slot = self.threads[free.index()].slot;
        let home = usize::try_from(registers.rdx).unwrap_or(0) % self.cores.len();
        let thread = &mut self.threads[free.index()];
        thread.context = UserContext::at_entry(
            registers.rdi,
            ipc::abi::stack_top(usize::from(slot)),
            [registers.rsi, u64::from(slot)],
        );
        thread.core = CoreId::from_index(home);
        self.threads[id.index()].context.registers.rdi = u64::from(slot);
        self.make_ready(m, core, free, 0);
        self.reschedule(m, core);
        Ok(())
    }

    fn exit_thread(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, thread: id, ref registers, .. } = *request;
        if self.threads[id.index()].slot == 0 {
            self.fail(m, core, id, FaultCause::Exit, |report| report.error_code = registers.rdi);
        } else {
            if let Some(caller) = self.threads[id.index()].lender {
                self.take_back_context(m, core, caller);
            }
            self.threads[id.index()].state = ThreadState::Unused;
            self.leave_core(m.now(), core);
        }
        self.reschedule(m, core);
        Ok(())
    }

    fn write_log(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, service, ref registers, .. } = *request;
        let mut buffer = [0; MAX_LOG_BYTES];
        let bytes = usize::try_from(registers.rsi)
            .ok()
            .and_then(|length| buffer.get_mut(..length))
            .ok_or(Error::Malformed)?;
        self.read_user(m, service, registers.rdi, bytes)?;
        // Bit 0 of rdx tells text from defmt.
        let flags = (registers.rdx & 1) as u16;
        self.log(m, core, u16::from(service.0), flags, bytes);
        Ok(())
    }

    /// Appends a record to this core's log.
    pub fn log<M: Machine>(&mut self, m: &mut M, core: CoreId, service: u16, flags: u16, bytes: &[u8]) {
        let record = LogRecord {
            tsc: m.now(),
            service,
            core: u16::from(core.0),
            // At most MAX_LOG_BYTES; the ring refuses what is longer.
            bytes: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
            flags,
        };
        self.logs[core.index()].append(m, &record, bytes);
    }

    fn service_panic(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Request { core, thread: id, service, ref registers } = *request;
        let mut text = [0; MAX_PANIC_BYTES];
        let length = usize::try_from(registers.rsi).unwrap_or(usize::MAX).min(MAX_PANIC_BYTES);
        // A panic with a bad pointer is a panic all the same.
        let (bytes, _) = text.split_at_mut(length);
        let length = self.read_user(m, service, registers.rdi, bytes).map_or(0, |()| length);
        self.fail(m, core, id, FaultCause::Panic, |report| {
            (report.text, report.text_bytes) = (text, length as u64);
        });
        self.reschedule(m, core);
        Ok(())
    }

    /// Copies a service's bytes: pointer and length are claims.
    pub(crate) fn read_user(
        &self,
        m: &impl Machine,
        service: ServiceId,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), Error> {
        if into.is_empty() {
            return Ok(());
        }
        let from = self.services[service.index()]
            .translate(VirtAddr(address), into.len() as u64)
            .ok_or(Error::BadPointer)?;
        m.read(from, into);
        Ok(())
    }
}
