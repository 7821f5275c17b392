//! Calls: a message to a service's endpoint, and the reply.
//!
//! The way that nearly every call takes is [`State::call`]'s first branch and [`State::receive`]'s: a server thread
//! waits, gets the message in its registers and the caller's scheduling context, and gives the context back with its
//! reply. No queue is touched and no timer set. Everything else (a busy server, a pinned one, a deferred or late
//! reply, a notification that waits) goes through queues and [`State::reschedule`].

use ipc::abi::{
    Error, Handle, Label, MAX_MESSAGE_BYTES, NEVER, Outcome, RECEIVE_MESSAGES, ServiceState, Token,
};

use crate::cpu::End;
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::machine::Machine;
use crate::service::{Object, Serving};
use crate::state::State;
use crate::thread::{Queued, ThreadState};

/// What travels in registers.
type Words = [u64; 4];

impl State {
    /// The service that a handle of `service` lets it call.
    fn endpoint(&self, service: ServiceId, handle: Handle) -> Result<ServiceId, Error> {
        match self.services[service.index()].object(handle) {
            Object::Endpoint(target) => {
                let generation = self.services[target.index()].generation;
                if handle.0 >> 16 == u64::from(generation) {
                    Ok(target)
                } else if handle.is_well_formed() {
                    Err(Error::Restarted)
                } else {
                    Err(Error::BadHandle)
                }
            }
            Object::Empty => Err(Error::BadHandle),
            _ => Err(Error::WrongKind),
        }
    }

    /// [`ipc::abi::Syscall::Call`].
    ///
    /// # Errors
    /// The status for the caller; it goes on at once.
    #[inline]
    pub(crate) fn call<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let caller = &self.threads[id.index()];
        let registers = &caller.context.registers;
        let words = [registers.rdx, registers.r8, registers.r9, registers.r10];
        let label = Label(registers.rsi);
        let deadline = registers.r12;
        let server_id = self.endpoint(caller.service, Handle(registers.rdi))?;
        if label.bytes() > MAX_MESSAGE_BYTES {
            return Err(Error::Malformed);
        }
        let server = &mut self.services[server_id.index()];
        let caller = &mut self.threads[id.index()];
        caller.sequence = caller.sequence.wrapping_add(1);
        self.calls.calls += 1;
        if server.receivers != 0 && server.serving == Serving::OnCallersTime {
            let thread = server.take_receiver();
            self.charge(m.now(), core);
            let caller = &mut self.threads[id.index()];
            caller.state = ThreadState::AwaitingReply { server: server_id };
            caller.activation = 0;
            self.lend(id, thread);
            self.deliver(m, id, thread, label, words);
            self.watch(m, core, id, deadline);
            self.switch_to(m, core, thread);
            return Ok(());
        }
        self.call_busy_server(m, core, id, server_id, label, words);
        Ok(())
    }

    /// A call whose server serves on its own time, or has no thread free, or is down.
    #[cold]
    fn call_busy_server<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        server_id: ServiceId,
        label: Label,
        words: Words,
    ) {
        let server = &mut self.services[server_id.index()];
        let deadline = self.threads[id.index()].context.registers.r12;
        if server.state == ServiceState::Down {
            self.threads[id.index()].context.registers.rax = Error::Down.status();
            return;
        }
        self.start_wait(m, core, id, deadline);
        let server = &mut self.services[server_id.index()];
        if server.receivers == 0 {
            let arrival = self.next_arrival;
            self.next_arrival += 1;
            server.callers |= 1 << id.index();
            self.threads[id.index()].state = ThreadState::Sending { server: server_id, arrival };
        } else {
            // Pinned: a free thread takes the message on its own time.
            let thread = server.take_receiver();
            self.threads[id.index()].state = ThreadState::AwaitingReply { server: server_id };
            self.deliver(m, id, thread, label, words);
            self.make_ready(m, core, thread, Outcome::Message as u64);
        }
        self.reschedule(m, core);
    }

    /// Lends the context that `caller` runs on to `server`.
    #[inline]
    fn lend(&mut self, caller: ThreadId, server: ThreadId) {
        let context = self.threads[caller.index()].on;
        self.threads[caller.index()].lent_to = Some(server);
        let thread = &mut self.threads[server.index()];
        thread.on = context;
        thread.lender = Some(caller);
        self.threads[context.index()].runs = server;
    }

    /// Puts a caller's message into the registers and message page of a server thread, which is then ready.
    #[inline]
    fn deliver<M: Machine>(
        &mut self,
        m: &mut M,
        caller: ThreadId,
        server: ThreadId,
        label: Label,
        words: Words,
    ) {
        let token = self.threads[caller.index()].token(caller);
        let from = self.threads[caller.index()].message_page;
        let thread = &mut self.threads[server.index()];
        thread.state = ThreadState::Ready;
        thread.deadline = NEVER;
        let registers = &mut thread.context.registers;
        registers.rax = Outcome::Message as u64;
        registers.rdi = token.0;
        registers.rsi = label.0;
        [registers.rdx, registers.r8, registers.r9, registers.r10] = words;
        if label.bytes() != 0 {
            m.copy(from, thread.message_page, label.bytes());
        }
    }

    /// The caller that waits for the reply to a token from this service.
    #[inline]
    fn waiting_caller(&self, token: Token, server: ServiceId) -> Option<ThreadId> {
        let index = token.thread().filter(|&index| index < self.threads.len())?;
        let id = ThreadId::from_index(index);
        let caller = &self.threads[index];
        (caller.state == ThreadState::AwaitingReply { server } && caller.token(id) == token).then_some(id)
    }

    /// [`ipc::abi::Syscall::Receive`].
    ///
    /// # Errors
    /// The status for the caller; it goes on at once.
    #[inline]
    pub(crate) fn receive<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let thread = &self.threads[id.index()];
        let registers = &thread.context.registers;
        let (token, mask, deadline) = (Token(registers.rdi), registers.r13, registers.r12);
        let label = Label(registers.rsi);
        let words = [registers.rdx, registers.r8, registers.r9, registers.r10];
        let service_id = thread.service;
        if token != Token::NOBODY {
            if label.bytes() > MAX_MESSAGE_BYTES {
                return Err(Error::Malformed);
            }
            let Some(caller) = self.waiting_caller(token, service_id) else {
                self.calls.stale += 1;
                return self.wait_for_message(m, core, id, mask, deadline);
            };
            let service = &mut self.services[service_id.index()];
            let nothing_waits = service.callers == 0 && service.pending & mask == 0;
            let lent = self.threads[id.index()].lender == Some(caller);
            if lent && nothing_waits && deadline != 0 && mask & RECEIVE_MESSAGES != 0 {
                service.receivers |= 1 << self.threads[id.index()].slot;
                self.charge(m.now(), core);
                let server = &mut self.threads[id.index()];
                server.state = ThreadState::Receiving { mask };
                server.activation = 0;
                server.lender = None;
                let context = core::mem::replace(&mut server.on, id);
                self.threads[context.index()].runs = caller;
                self.threads[caller.index()].lent_to = None;
                self.watch(m, core, id, deadline);
                self.answer(m, id, caller, label, words);
                self.switch_to(m, core, caller);
                return Ok(());
            }
            self.finish_call(m, core, id, caller, label, words);
        }
        self.wait_for_message(m, core, id, mask, deadline)
    }

    /// Puts a reply into the registers and message page of its caller, which is then ready.
    #[inline]
    fn answer<M: Machine>(
        &mut self,
        m: &mut M,
        server: ThreadId,
        caller: ThreadId,
        label: Label,
        words: Words,
    ) {
        self.calls.replies += 1;
        let from = self.threads[server.index()].message_page;
        let thread = &mut self.threads[caller.index()];
        thread.state = ThreadState::Ready;
        thread.deadline = NEVER;
        let registers = &mut thread.context.registers;
        registers.rax = Outcome::Message as u64;
        registers.rsi = label.0;
        [registers.rdx, registers.r8, registers.r9, registers.r10] = words;
        if label.bytes() != 0 {
            m.copy(from, thread.message_page, label.bytes());
        }
    }

    /// Replies when the server goes on by itself: the caller gets its context back and is queued.
    fn finish_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        server: ThreadId,
        caller: ThreadId,
        label: Label,
        words: Words,
    ) {
        self.take_back_context(m, core, caller);
        self.answer(m, server, caller, label, words);
        self.threads[caller.index()].activation = 0;
        self.enqueue(m, core, caller, End::Front);
    }

    /// [`ipc::abi::Syscall::Reply`].
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Stale`].
    pub(crate) fn reply<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let thread = &self.threads[id.index()];
        let registers = &thread.context.registers;
        let (token, label) = (Token(registers.rdi), Label(registers.rsi));
        let words = [registers.rdx, registers.r8, registers.r9, registers.r10];
        if label.bytes() > MAX_MESSAGE_BYTES {
            return Err(Error::Malformed);
        }
        let Some(caller) = self.waiting_caller(token, thread.service) else {
            self.calls.stale += 1;
            return Err(Error::Stale);
        };
        self.finish_call(m, core, id, caller, label, words);
        self.threads[id.index()].context.registers.rax = Outcome::Message as u64;
        self.reschedule(m, core);
        Ok(())
    }

    /// The second half of a receive: notifications that wait come first, then messages, then the wait.
    fn wait_for_message<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        mask: u64,
        deadline: u64,
    ) -> Result<(), Error> {
        let service_id = self.threads[id.index()].service;
        // A context that is lent for a call that was not answered goes back: the caller waits on without it.
        if let Some(caller) = self.threads[id.index()].lender {
            self.take_back_context(m, core, caller);
        }
        let service = &mut self.services[service_id.index()];
        let bits = service.pending & mask & !RECEIVE_MESSAGES;
        if bits != 0 {
            service.pending &= !bits;
            let registers = &mut self.threads[id.index()].context.registers;
            (registers.rax, registers.rdi, registers.rdx) = (Outcome::Notified as u64, 0, bits);
        } else if mask & RECEIVE_MESSAGES != 0 && service.callers != 0 {
            self.take_queued_call(m, core, id);
        } else if deadline == 0 {
            self.threads[id.index()].context.registers.rax = Error::TimedOut.status();
        } else {
            if mask & RECEIVE_MESSAGES != 0 {
                service.receivers |= 1 << self.threads[id.index()].slot;
            }
            self.threads[id.index()].state = ThreadState::Receiving { mask };
            self.start_wait(m, core, id, deadline);
        }
        self.reschedule(m, core);
        Ok(())
    }

    /// The current thread takes the most urgent queued call, the oldest among equals.
    fn take_queued_call<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) {
        let service_id = self.threads[id.index()].service;
        let mut best: Option<(u8, u64, ThreadId)> = None;
        let mut left = self.services[service_id.index()].callers;
        while left != 0 {
            let caller = ThreadId::from_index(left.trailing_zeros() as usize);
            left &= left - 1;
            let thread = &self.threads[caller.index()];
            if let ThreadState::Sending { arrival, .. } = thread.state {
                let key = (self.threads[thread.on.index()].priority, arrival, caller);
                if best.is_none_or(|(p, a, _)| (key.0, key.1) < (p, a)) {
                    best = Some(key);
                }
            }
        }
        let Some((_, _, caller)) = best else { return };
        let service = &mut self.services[service_id.index()];
        service.callers &= !(1 << caller.index());
        service.served += 1;
        let on_callers_time = service.serving == Serving::OnCallersTime;
        let thread = &mut self.threads[caller.index()];
        thread.state = ThreadState::AwaitingReply { server: service_id };
        let registers = &thread.context.registers;
        let label = Label(registers.rsi);
        let words = [registers.rdx, registers.r8, registers.r9, registers.r10];
        self.leave_core(m.now(), core);
        if on_callers_time {
            self.lend(caller, id);
        }
        self.deliver(m, caller, id, label, words);
        self.enqueue(m, core, id, End::Front);
    }

    /// Gives a caller, whose call goes on without it, the context back that it lent. What runs on it goes on on the
    /// context of the server that it was lent to.
    pub(crate) fn take_back_context<M: Machine>(&mut self, m: &mut M, core: CoreId, caller: ThreadId) {
        let Some(server) = self.threads[caller.index()].lent_to.take() else { return };
        let context = self.threads[caller.index()].on;
        let home = self.threads[context.index()].core;
        let was_queued = self.threads[context.index()].links.queued;
        self.cores[home.index()].queue.remove(&mut self.threads, context);
        self.threads[server.index()].lender = None;
        let mut bottom = server;
        self.threads[server.index()].on = server;
        while let Some(next) = self.threads[bottom.index()].lent_to {
            bottom = next;
            self.threads[bottom.index()].on = server;
        }
        self.threads[server.index()].runs = bottom;
        self.threads[context.index()].runs = caller;
        if self.threads[bottom.index()].state != ThreadState::Ready {
            return;
        }
        match self.core_running(bottom) {
            // It goes on there, or moves when that core looks.
            Some(there) if there != core => m.reschedule(usize::from(there.0)),
            Some(_) => {}
            None => {
                debug_assert_eq!(was_queued, Queued::Yes);
                self.enqueue(m, core, bottom, End::Back);
            }
        }
    }

    /// The core on which a thread is at this moment.
    pub(crate) fn core_running(&self, id: ThreadId) -> Option<CoreId> {
        self.cores.iter().position(|core| core.current == Some(id)).map(CoreId::from_index)
    }
}
