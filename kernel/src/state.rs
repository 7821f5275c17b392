//! The whole of the kernel's state, and how threads come to run.
//!
//! A trap enters with the kernel lock held, changes the state through one of [`State`]'s entry points
//! ([`State::syscall`], [`State::interrupt`], [`State::timer`], [`State::exception`], [`State::wake_up`]), and leaves
//! to whatever [`State::current`] then says. The kernel has one stack per core and no thread ever waits inside it.

use ipc::abi::{
    Error, FaultCause, MAX_CORES, MAX_SERVICES, MAX_THREADS, NEVER, Outcome, RECEIVE_MESSAGES, ServiceState,
};
use ipc::vcpu::MAX_VCPUS;

use crate::address::PhysAddr;
use crate::context::UserContext;
use crate::cpu::{Core, End};
use crate::guest::Guest;
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::interrupts::InterruptTable;
use crate::log_ring::LogRing;
use crate::machine::Machine;
use crate::service::Service;
use crate::table::Table;
use crate::thread::{Maker, Queued, Thread, ThreadState};
use crate::vcpu::Vcpu;

/// Turns between two looks of the timer at a vCPU for whose core nobody waits. Each is an exit of the guest's.
const TURNS_ALONE: u64 = 5;

/// Events that the kernel counts for [`ipc::abi::Inspect::Calls`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CallCounters {
    /// Replies that nobody waited for.
    pub stale: u64,
    /// Calls that ended with [`Error::Restarted`] while under way.
    pub restarted: u64,
}

/// What is known of the node since boot.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// When the kernel was entered, in TSC ticks.
    pub entered: u64,
    /// When it left to the first service.
    pub left: u64,
    /// Page frames in all.
    pub frames: u64,
    /// Page frames that nothing was given.
    pub frames_free: u64,
}

/// The kernel's state. One for the node, under one lock.
///
/// One lock and short, bounded system calls: Peters, Danis, Elphinstone and Heiser, "For a Microkernel, a Big Lock
/// Is Fine" (APSys 2015).
///
/// In this order: the threads first, so that the short ways of a call find one without adding an offset, and last what is
/// aligned to pages, which would come first otherwise.
#[derive(Debug)]
#[repr(C)]
pub struct State {
    /// All threads.
    pub threads: Table<Thread, MAX_THREADS>,
    /// All services.
    pub services: Table<Service, MAX_SERVICES>,
    /// All cores that run.
    pub cores: Table<Core, MAX_CORES>,
    /// The guest, when the node can run one.
    pub guest: Option<Guest>,
    /// Where interrupts go.
    pub interrupts: InterruptTable,
    /// Each core's log.
    pub logs: Table<LogRing, MAX_CORES>,
    /// Facts.
    pub node: Node,
    /// Counters.
    pub calls: CallCounters,
    /// The next [`ThreadState::Sending::arrival`].
    pub next_arrival: u64,
    /// Longest time in ticks that a thread runs before others of its priority get their turn.
    pub turn: u64,
    /// The guest's virtual processors.
    pub vcpus: Table<Vcpu, MAX_VCPUS>,
}

impl State {
    /// A state without anything in it.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            threads: Table::new([const { Thread::unused(ThreadId::new(0)) }; MAX_THREADS]),
            services: Table::new([const { Service::absent() }; MAX_SERVICES]),
            cores: Table::new([const { Core::idle() }; MAX_CORES]),
            vcpus: Table::new([const { Vcpu::absent() }; MAX_VCPUS]),
            guest: None,
            interrupts: InterruptTable::new(),
            logs: Table::new([const { LogRing::absent() }; MAX_CORES]),
            node: Node { tsc_hz: 0, entered: 0, left: 0, frames: 0, frames_free: 0 },
            calls: CallCounters { stale: 0, restarted: 0 },
            next_arrival: 0,
            turn: 0,
        }
    }

    /// The registers that this core goes on with, or `None` when it has nothing to do.
    pub fn current(&mut self, core: CoreId) -> Option<&mut UserContext> {
        let id = self.cores[core.index()].current?;
        Some(&mut self.threads[id.index()].context)
    }

    /// Charges the time since the last charge to the scheduling context that ran, and to the thread if it ran all of
    /// it. A call and its reply charge nothing: the context goes on, and looking at the clock would be a tenth of
    /// their cost. So a server's budget counts from the first charge after its call, a turn later at most.
    pub(crate) fn charge(&mut self, now: u64, core: CoreId) {
        let this = &mut self.cores[core.index()];
        // Two cores' TSCs may differ a little: never below zero.
        let ticks = now.saturating_sub(this.since);
        let undivided = this.switches == this.switches_since;
        (this.since, this.switches_since) = (now, this.switches);
        if let Some(id) = this.current {
            this.busy += ticks;
            let thread = &mut self.threads[id.index()];
            if undivided {
                thread.activation += ticks;
            }
            let on = thread.on;
            self.threads[on.index()].run_time += ticks;
        } else {
            this.idle += ticks;
        }
    }

    /// Makes a thread, whose scheduling context is not queued, the one that runs on this core.
    pub(crate) fn switch_to<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) {
        let root = self.threads[id.index()].root;
        let this = &mut self.cores[core.index()];
        this.current = Some(id);
        this.switches += 1;
        this.switches_since = this.switches;
        if this.space != root {
            this.space = root;
            m.switch_address_space(root);
        }
    }

    /// Makes a thread of another service the one that runs on this core and on the context that is current there.
    #[inline]
    pub(crate) fn hand_over<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, root: PhysAddr) {
        let this = &mut self.cores[core.index()];
        this.current = Some(id);
        this.switches += 1;
        this.space = root;
        m.switch_address_space(root);
    }

    /// Queues the scheduling context that a ready thread runs on, and tells its core when that is another one.
    pub(crate) fn enqueue<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, end: End) {
        let on = self.threads[id.index()].on;
        if self.threads[on.index()].links.queued == Queued::Yes {
            return;
        }
        if let Some(vcpu) = self.threads[on.index()].vcpu {
            self.vcpus[vcpu.index()].ready_since = m.now();
            // Where its state is, if that was not saved because the core has not looked yet since it was to go elsewhere.
            let has = |there: &Core| there.extended == Some(vcpu);
            if let Some(there) = self.cores.iter().position(has).filter(|&there| there != core.index()) {
                self.threads[on.index()].core = CoreId::from_index(there);
            }
        }
        let home = self.threads[on.index()].core;
        self.cores[home.index()].queue.insert(self.threads.places_mut(), on, end);
        if home != core {
            let urgent = match self.cores[home.index()].current {
                None => true,
                Some(running) => {
                    let running_on = self.threads[running.index()].on;
                    self.threads[on.index()].priority < self.threads[running_on.index()].priority
                }
            };
            if urgent {
                m.reschedule(usize::from(home.0));
            }
        }
    }

    /// Makes a waiting thread ready, with a status in its `rax`.
    pub(crate) fn make_ready<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, status: u64) {
        let thread = &mut self.threads[id.index()];
        thread.state = ThreadState::Ready;
        thread.deadline = NEVER;
        thread.activation = 0;
        if thread.vcpu.is_none() && thread.maker == Maker::Thread {
            thread.context.registers.rax = status;
        }
        // A call of the kernel's that ended without a reply: what it was for happens again.
        thread.maker = Maker::Thread;
        self.enqueue(m, core, id, End::Back);
    }

    /// Takes the current thread off its core, because it waits or ended; something else runs at the next
    /// [`Self::reschedule`].
    pub(crate) fn leave_core(&mut self, now: u64, core: CoreId) {
        self.charge(now, core);
        if let Some(id) = self.cores[core.index()].current.take() {
            self.threads[id.index()].activation = 0;
        }
    }

    /// Lets the most urgent ready thread run on this core: the current one unless a more urgent one is queued.
    pub(crate) fn reschedule<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        let now = m.now();
        self.charge(now, core);
        if let Some(id) = self.cores[core.index()].current {
            let thread = &self.threads[id.index()];
            // A thread that another core stopped or woke onto another context does not go on here.
            let stays = thread.state == ThreadState::Ready && self.threads[thread.on.index()].core == core;
            if stays {
                let own = self.threads[thread.on.index()].priority;
                let this = &mut self.cores[core.index()];
                let best = this.queue.best_priority();
                // A vCPU's turn ends when another one is put first.
                let over = thread.vcpu.is_some() && this.turn_end == 0;
                if best.is_none_or(|best| best > own || best == own && !over) {
                    if over {
                        this.turn_end = now.saturating_add(self.turn);
                    }
                    self.save_extended(m, core);
                    self.arm_timer(m, core, now);
                    return;
                }
                this.current = None;
                self.enqueue(m, core, id, if over { End::Back } else { End::Front });
            } else {
                self.cores[core.index()].current = None;
                if thread.state == ThreadState::Ready {
                    self.enqueue(m, core, id, End::Back);
                }
            }
        }
        let this = &mut self.cores[core.index()];
        if let Some(on) = this.queue.first() {
            this.queue.remove(self.threads.places_mut(), on);
            this.turn_end = now.saturating_add(self.turn);
            let id = self.threads[on.index()].runs;
            if let Some(vcpu) = self.threads[on.index()].vcpu {
                let vcpu = &mut self.vcpus[vcpu.index()];
                vcpu.counters.steal += now.saturating_sub(vcpu.ready_since);
            }
            self.switch_to(m, core, id);
        }
        self.save_extended(m, core);
        self.arm_timer(m, core, now);
    }

    /// Sets this core's timer to what is due first: a wait's deadline, or, when a thread runs, the end of its turn
    /// or budget. A timer that is already set earlier is left: it costs less to come too early once than to set it
    /// at each switch.
    pub(crate) fn arm_timer<M: Machine>(&mut self, m: &mut M, core: CoreId, now: u64) {
        let this = &self.cores[core.index()];
        let mut due = this.next_deadline;
        if let Some(id) = this.current {
            let thread = &self.threads[id.index()];
            let budget = self.services[thread.service.index()].budget;
            // Nobody waits for the end of its turn: it only has a server that a vCPU calls counted now and then.
            let alone = thread.vcpu.is_some() && this.queue.first().is_none();
            let left = if alone {
                TURNS_ALONE * self.turn
            } else if thread.vcpu.is_some() {
                self.turn
            } else {
                self.turn.min(budget.saturating_sub(thread.activation))
            };
            due = due.min(now.saturating_add(left));
        }
        if due < this.armed {
            self.cores[core.index()].armed = due;
            m.set_timer(due);
        }
    }

    /// This core's timer came: ends the waits that are over, the turn that is over, the service that is over its
    /// budget.
    pub fn timer<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        let now = m.now();
        self.charge(now, core);
        self.cores[core.index()].armed = NEVER;
        self.cores[core.index()].interrupts += 1;
        if self.cores[core.index()].next_deadline <= now {
            self.expire(m, core, now);
        }
        if let Some(id) = self.cores[core.index()].current {
            let thread = &self.threads[id.index()];
            let service = thread.service;
            if thread.state == ThreadState::Ready {
                // A vCPU may run as long as its guest likes.
                let limited = thread.vcpu.is_none();
                if limited && thread.activation >= self.services[service.index()].budget {
                    self.fail(m, core, id, FaultCause::Budget, |_| {});
                } else if now >= self.cores[core.index()].turn_end {
                    self.cores[core.index()].turn_end = now.saturating_add(self.turn);
                    self.cores[core.index()].current = None;
                    self.enqueue(m, core, id, End::Back);
                }
            }
        }
        self.reschedule(m, core);
    }

    /// Another core queued something here or stopped what runs here.
    pub fn wake_up<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        self.cores[core.index()].interrupts += 1;
        self.reschedule(m, core);
    }

    /// Ends the waits of this core that are over, the earliest first, and notes the next that is due.
    fn expire<M: Machine>(&mut self, m: &mut M, core: CoreId, now: u64) {
        loop {
            let waits = self.threads.iter().enumerate();
            let here = waits.filter(|(_, t)| t.deadline != NEVER && t.deadline_core == core);
            let first = here.map(|(index, t)| (t.deadline, index)).min();
            match first {
                Some((deadline, index)) if deadline <= now => {
                    self.time_out(m, core, ThreadId::from_index(index));
                }
                _ => {
                    self.cores[core.index()].next_deadline = first.map_or(NEVER, |(deadline, _)| deadline);
                    return;
                }
            }
        }
    }

    /// Ends one thread's wait as timed out.
    fn time_out<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) {
        if let Some(vcpu) = self.threads[id.index()].vcpu {
            self.threads[id.index()].deadline = NEVER;
            return self.kick(m, core, vcpu);
        }
        match self.threads[id.index()].state {
            ThreadState::Unused | ThreadState::Ready => {
                self.threads[id.index()].deadline = NEVER;
                return;
            }
            ThreadState::Receiving { .. } => self.forget_receiver(id),
            ThreadState::Sending { server, .. } => {
                self.services[server.index()].callers &= !(1 << id.index())
            }
            ThreadState::AwaitingReply { .. } => self.take_back_context(m, core, id),
            ThreadState::Futex { .. } | ThreadState::Halted => {}
        }
        self.make_ready(m, core, id, Error::TimedOut.status());
    }

    /// Starts a thread's wait until `deadline`. The caller has set the state; the thread is the current one here.
    pub(crate) fn start_wait<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, deadline: u64) {
        self.leave_core(m.now(), core);
        self.watch(m, core, id, deadline);
    }

    /// Watches over the deadline of a wait on this core.
    #[inline]
    pub(crate) fn watch<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, deadline: u64) {
        if deadline == NEVER {
            return;
        }
        let thread = &mut self.threads[id.index()];
        thread.deadline = deadline;
        thread.deadline_core = core;
        let this = &mut self.cores[core.index()];
        this.next_deadline = this.next_deadline.min(deadline);
        if deadline < this.armed {
            this.armed = deadline;
            m.set_timer(deadline);
        }
    }

    /// Takes a thread off its service's set of receivers.
    pub(crate) fn forget_receiver(&mut self, id: ThreadId) {
        let thread = &self.threads[id.index()];
        self.services[thread.service.index()].receivers &= !thread.slot_bit;
    }

    /// Raises notification bits of a service, and wakes the threads that wait for them: each gets those of its mask.
    pub fn raise<M: Machine>(&mut self, m: &mut M, core: CoreId, target: ServiceId, bits: u64) {
        let service = &mut self.services[target.index()];
        service.pending |= bits;
        if service.state != ServiceState::Running {
            return;
        }
        for id in service.thread_ids() {
            let ThreadState::Receiving { mask } = self.threads[id.index()].state else { continue };
            let service = &mut self.services[target.index()];
            let given = service.pending & mask & !RECEIVE_MESSAGES;
            if given == 0 {
                continue;
            }
            service.pending &= !given;
            self.forget_receiver(id);
            let registers = &mut self.threads[id.index()].context.registers;
            (registers.rdi, registers.rdx) = (0, given);
            self.make_ready(m, core, id, Outcome::Notified as u64);
        }
    }

    /// A device's interrupt came on this core.
    pub fn interrupt<M: Machine>(&mut self, m: &mut M, core: CoreId, vector: u8) {
        self.cores[core.index()].interrupts += 1;
        if let Some(line) = self.interrupts.by_vector(vector) {
            if let Some(gsi) = line.masked {
                m.mask(gsi);
            }
            self.raise(m, core, line.service, line.bits);
        }
        self.reschedule(m, core);
    }
}
