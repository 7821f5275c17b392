//! Calls: a message to a service's endpoint, and the reply.
//!
//! The way that nearly every call takes is [`State::fast_call`] and [`State::fast_receive`]: a server thread waits, gets
//! the message in its registers and the caller's scheduling context, and gives the context back with its reply. No
//! queue is touched and no timer set. Everything else (a busy server, a pinned one, a deferred or late
//! reply, a notification that waits) goes through queues and [`State::reschedule`].

use ipc::abi::{
    Error, Handle, Label, MAX_MESSAGE_BYTES, NEVER, Outcome, RECEIVE_MESSAGES, ServiceState, Token,
};

use crate::cpu::End;
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::machine::Machine;
use crate::service::{Object, Serving};
use crate::state::State;
use crate::thread::{Maker, Queued, Thread, ThreadState};

impl State {
    /// The way that nearly every call takes: the handle is current, a server thread waits, and it runs on its caller's
    /// time. The server's thread, which runs now; nothing has changed when `None`.
    #[inline]
    pub(crate) fn fast_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
    ) -> Option<ThreadId> {
        let caller = &self.threads[id.index()];
        let (handle, label) = (Handle(caller.context.registers.rdi), Label(caller.context.registers.rsi));
        let deadline = caller.context.registers.r12;
        let capabilities = &self.services[caller.service.index()].capabilities;
        let Some(&Object::Endpoint(server_id)) = capabilities.get(handle.slot()) else { return None };
        let server = &mut self.services[server_id.index()];
        let ready = server.receivers != 0
            && server.serving == Serving::OnCallersTime
            && handle.0 >> 16 == u64::from(server.generation)
            && label.bytes() <= MAX_MESSAGE_BYTES;
        if !ready {
            return None;
        }
        let thread = server.take_receiver();
        // A service has no endpoint of its own, so the two threads differ.
        let [from, to] = self.threads.pair_mut(id.index(), thread.index())?;
        from.token = from.token.next();
        from.state = ThreadState::AwaitingReply { server: server_id };
        from.activation = 0;
        from.lent_to = Some(thread);
        let context = from.on;
        (to.on, to.lender) = (context, Some(id));
        to.context.registers.rdi = from.token.0;
        transfer(m, from, to, label);
        let root = to.root;
        self.threads[context.index()].runs = thread;
        self.watch(m, core, id, deadline);
        self.hand_over(m, core, thread, root);
        Some(thread)
    }

    /// [`ipc::abi::Syscall::Call`], when it is not [`State::fast_call`]'s.
    ///
    /// # Errors
    /// The status for the caller; it goes on at once.
    pub(crate) fn call<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let caller = &mut self.threads[id.index()];
        let (handle, label) = (Handle(caller.context.registers.rdi), Label(caller.context.registers.rsi));
        let (service, deadline) = (caller.service, caller.context.registers.r12);
        let Object::Endpoint(server_id) = self.resolve(service, handle)? else {
            return Err(Error::WrongKind);
        };
        if label.bytes() > MAX_MESSAGE_BYTES {
            return Err(Error::Malformed);
        }
        if self.services[server_id.index()].state == ServiceState::Down {
            return Err(Error::Down);
        }
        let caller = &mut self.threads[id.index()];
        caller.token = caller.token.next();
        self.watch(m, core, id, deadline);
        self.queue_call(m, core, id, server_id);
        self.reschedule(m, core);
        Ok(())
    }

    /// The current thread's call waits for a thread of the service, or is with one that has its own time.
    pub(crate) fn queue_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        server_id: ServiceId,
    ) {
        self.leave_core(m.now(), core);
        let server = &mut self.services[server_id.index()];
        if server.receivers == 0 {
            server.callers |= 1 << id.index();
            let arrival = self.next_arrival;
            self.next_arrival += 1;
            self.threads[id.index()].state = ThreadState::Sending { server: server_id, arrival };
        } else {
            // Pinned: a free thread takes the message on its own time.
            let thread = server.take_receiver();
            self.threads[id.index()].state = ThreadState::AwaitingReply { server: server_id };
            self.deliver(m, id, thread);
            self.make_ready(m, core, thread, Outcome::Message as u64);
        }
    }

    /// Lends the context that `caller` runs on to `server`.
    pub(crate) fn lend(&mut self, caller: ThreadId, server: ThreadId) {
        let context = self.threads[caller.index()].on;
        self.threads[caller.index()].lent_to = Some(server);
        let thread = &mut self.threads[server.index()];
        thread.on = context;
        thread.lender = Some(caller);
        self.threads[context.index()].runs = server;
    }

    /// Puts a caller's message into the registers and message page of a server thread, which is then ready.
    #[inline(always)]
    pub(crate) fn deliver<M: Machine>(&mut self, m: &mut M, caller: ThreadId, server: ThreadId) {
        if let Some([from, to]) = self.threads.pair_mut(caller.index(), server.index()) {
            to.context.registers.rdi = from.token.0;
            if from.maker != Maker::Thread {
                (to.state, to.deadline) = (ThreadState::Ready, NEVER);
                let ((label, words), registers) = (from.kernel_message, &mut to.context.registers);
                (registers.rax, registers.rsi) = (Outcome::Message as u64, label.0);
                [registers.rdx, registers.r8, registers.r9, registers.r10] = words;
                return;
            }
            transfer(m, from, to, Label(from.context.registers.rsi));
        }
    }

    /// The caller that waits for the reply to a token from this service.
    fn waiting_caller(&self, token: Token, server: ServiceId) -> Option<ThreadId> {
        let index = token.thread().filter(|&index| index < self.threads.len())?;
        let id = ThreadId::from_index(index);
        let caller = &self.threads[index];
        (caller.state == ThreadState::AwaitingReply { server } && caller.token == token).then_some(id)
    }

    /// The way that nearly every receive takes: it replies to the call whose caller lent its context, and nothing waits.
    /// The caller, which runs now; nothing has changed when `None`.
    #[inline]
    pub(crate) fn fast_receive<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
    ) -> Option<ThreadId> {
        let server = &self.threads[id.index()];
        let registers = &server.context.registers;
        let (token, mask, deadline) = (Token(registers.rdi), registers.r13, registers.r12);
        let label = Label(registers.rsi);
        let caller = server.lender?;
        let service = &mut self.services[server.service.index()];
        let ready = service.callers == 0
            && service.pending & mask == 0
            && mask & RECEIVE_MESSAGES != 0
            && deadline != 0
            && label.bytes() <= MAX_MESSAGE_BYTES;
        let [to, from] = self.threads.pair_mut(caller.index(), id.index())?;
        if !ready || to.token != token {
            return None;
        }
        if to.maker != Maker::Thread {
            return self.fast_resume(m, core, id, caller);
        }
        service.receivers |= from.slot_bit;
        from.state = ThreadState::Receiving { mask };
        from.activation = 0;
        from.lender = None;
        let context = core::mem::replace(&mut from.on, id);
        to.lent_to = None;
        transfer(m, from, to, label);
        let root = to.root;
        self.threads[context.index()].runs = caller;
        self.watch(m, core, id, deadline);
        self.hand_over(m, core, caller, root);
        Some(caller)
    }

    /// [`ipc::abi::Syscall::Receive`], when it is not [`State::fast_receive`]'s.
    ///
    /// # Errors
    /// The status for the caller; it goes on at once.
    pub(crate) fn receive<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let thread = &self.threads[id.index()];
        let registers = &thread.context.registers;
        let (token, mask, deadline) = (Token(registers.rdi), registers.r13, registers.r12);
        if token != Token::NOBODY {
            if Label(registers.rsi).bytes() > MAX_MESSAGE_BYTES {
                return Err(Error::Malformed);
            }
            match self.waiting_caller(token, thread.service) {
                Some(caller) => self.finish_call(m, core, id, caller),
                None => self.calls.stale += 1,
            }
        }
        self.wait_for_message(m, core, id, mask, deadline);
        Ok(())
    }

    /// Replies when the server goes on by itself: the caller gets its context back and is queued.
    fn finish_call<M: Machine>(&mut self, m: &mut M, core: CoreId, server: ThreadId, caller: ThreadId) {
        self.take_back_context(m, core, caller);
        if self.threads[caller.index()].maker != Maker::Thread {
            let label = Label(self.threads[server.index()].context.registers.rsi);
            self.end_kernel_call(m, core, caller, label);
        } else if let Some([to, from]) = self.threads.pair_mut(caller.index(), server.index()) {
            transfer(m, from, to, Label(from.context.registers.rsi));
            to.activation = 0;
        }
        if self.threads[caller.index()].state == ThreadState::Ready {
            // A vCPU's turn may be over, because another one was put first.
            let over = self.threads[caller.index()].vcpu.is_some() && self.cores[core.index()].turn_end == 0;
            self.enqueue(m, core, caller, if over { End::Back } else { End::Front });
        }
    }

    /// [`ipc::abi::Syscall::Reply`].
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Stale`].
    pub(crate) fn reply<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) -> Result<(), Error> {
        let thread = &self.threads[id.index()];
        let registers = &thread.context.registers;
        if Label(registers.rsi).bytes() > MAX_MESSAGE_BYTES {
            return Err(Error::Malformed);
        }
        let Some(caller) = self.waiting_caller(Token(registers.rdi), thread.service) else {
            self.calls.stale += 1;
            return Err(Error::Stale);
        };
        self.finish_call(m, core, id, caller);
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
    ) {
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
                service.receivers |= self.threads[id.index()].slot_bit;
            }
            self.threads[id.index()].state = ThreadState::Receiving { mask };
            self.start_wait(m, core, id, deadline);
        }
        self.reschedule(m, core);
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
        self.leave_core(m.now(), core);
        if on_callers_time {
            self.lend(caller, id);
        }
        self.deliver(m, caller, id);
        self.enqueue(m, core, id, End::Front);
    }

    /// Gives a caller, whose call goes on without it, the context back that it lent. What runs on it goes on on the
    /// context of the server that it was lent to.
    pub(crate) fn take_back_context<M: Machine>(&mut self, m: &mut M, core: CoreId, caller: ThreadId) {
        let Some(server) = self.threads[caller.index()].lent_to.take() else { return };
        let context = self.threads[caller.index()].on;
        let home = self.threads[context.index()].core;
        let was_queued = self.threads[context.index()].links.queued;
        self.cores[home.index()].queue.remove(self.threads.places_mut(), context);
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

/// Carries a message, or a reply, from one thread to another, which is then ready: the label, the words, and as many
/// bytes of the message page as the label says (at most [`MAX_MESSAGE_BYTES`]).
#[inline]
fn transfer<M: Machine>(m: &mut M, from: &Thread, to: &mut Thread, label: Label) {
    to.state = ThreadState::Ready;
    to.deadline = NEVER;
    let (source, target) = (&from.context.registers, &mut to.context.registers);
    target.rax = Outcome::Message as u64;
    target.rsi = label.0;
    target.rdx = source.rdx;
    target.r8 = source.r8;
    target.r9 = source.r9;
    target.r10 = source.r10;
    if label.bytes() != 0 {
        m.copy(from.message_page, to.message_page, label.bytes());
    }
}
