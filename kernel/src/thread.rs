//! Threads, and the time they run on.
//!
//! Every thread owns a *scheduling context* of the same number: a home core, a priority, a place in that core's run
//! queue. A thread runs on its own context or on one lent to it: a call lends the caller's context to the server,
//! however deep the chain, so that the server runs on the caller's core, time and priority (as NOVA's portals do).
//!
//! Invariants, with T a thread and S a scheduling context:
//! * `S.runs` is the one thread that runs when S does, and `S.runs`'s `on` is S.
//! * S is queued or current only while `S.runs` is [`ThreadState::Ready`].
//! * when `T.lender` is L, then L is [`ThreadState::AwaitingReply`] and `L.lent_to` is T.

use ipc::abi::{Label, NEVER, Token};

use crate::address::PhysAddr;
use crate::context::UserContext;
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};

/// What a thread does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThreadState {
    /// Nothing: it was never started, ended, or its service is stopped.
    Unused,
    /// It runs, or waits for a core.
    Ready,
    /// It waits for a message or one of these notification bits.
    Receiving {
        /// As in [`ipc::abi::Syscall::Receive`].
        mask: u64,
    },
    /// Its call waits for a server thread to take it.
    Sending {
        /// The service called.
        server: ServiceId,
        /// The order of arrival, over the whole node.
        arrival: u64,
    },
    /// Its call is with the server.
    AwaitingReply {
        /// The service called.
        server: ServiceId,
    },
    /// It is a vCPU and waits for a kick or its deadline.
    Halted,
    /// It waits on a futex of its service.
    Futex {
        /// The futex's address.
        address: u64,
    },
}

/// Who made the call that a thread waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Maker {
    /// The thread itself.
    Thread,
    /// The kernel, for a vCPU that left guest mode.
    Exit,
    /// The kernel, for a thread that missed a page of guest memory; it tries again after the reply.
    Fault,
}

/// A thread and the scheduling context of the same number.
#[derive(Debug)]
pub struct Thread {
    /// Its registers while it is not on a core.
    pub context: UserContext,
    /// What it does.
    pub state: ThreadState,
    /// Its service.
    pub service: ServiceId,
    /// Its slot in its service.
    pub slot: u8,
    /// The bit of its slot.
    pub slot_bit: u16,
    /// The scheduling context it runs on.
    pub on: ThreadId,
    /// Whose call it serves on a lent context.
    pub lender: Option<ThreadId>,
    /// The server thread that has this thread's context.
    pub lent_to: Option<ThreadId>,
    /// The token of its latest call.
    pub token: Token,
    /// Who made that call.
    pub maker: Maker,
    /// The kernel's message, when that made it.
    pub kernel_message: (Label, [u64; 4]),
    /// Which vCPU it is, when it is one.
    pub vcpu: Option<VcpuId>,
    /// When its wait ends, in TSC ticks; for a vCPU: when it is kicked.
    pub deadline: u64,
    /// The core whose timer watches over `deadline`.
    pub deadline_core: CoreId,
    /// Its message page.
    pub message_page: PhysAddr,
    /// Its service's page-table root.
    pub root: PhysAddr,
    /// Ticks it ran since it last waited.
    pub activation: u64,
    /// Scheduling context: ticks that ran on it.
    pub run_time: u64,
    /// Scheduling context: the thread that runs on it.
    pub runs: ThreadId,
    /// Scheduling context: its home core.
    pub core: CoreId,
    /// Scheduling context: its priority.
    pub priority: u8,
    /// Scheduling context: its neighbours in the run queue.
    pub links: Links,
}

/// A scheduling context's place in its core's run queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Links {
    /// Whether it is queued.
    pub queued: Queued,
    /// The one before it.
    pub previous: Option<ThreadId>,
    /// The one after it.
    pub next: Option<ThreadId>,
}

/// Whether a scheduling context is in its core's run queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Queued {
    /// Not queued.
    #[default]
    No,
    /// Queued.
    Yes,
}

impl Thread {
    /// An unused thread.
    #[must_use]
    pub const fn unused(id: ThreadId) -> Self {
        Self {
            context: UserContext::at_entry(0, 8, [0; 2]),
            state: ThreadState::Unused,
            service: ServiceId(0),
            slot: 0,
            slot_bit: 1,
            on: id,
            lender: None,
            lent_to: None,
            token: Token::NOBODY,
            maker: Maker::Thread,
            kernel_message: (Label(0), [0; 4]),
            vcpu: None,
            deadline: NEVER,
            deadline_core: CoreId(0),
            message_page: PhysAddr(0),
            root: PhysAddr(0),
            activation: 0,
            run_time: 0,
            runs: id,
            core: CoreId(0),
            priority: 0,
            links: Links { queued: Queued::No, previous: None, next: None },
        }
    }

    /// Makes it a thread of a service, in a slot.
    pub fn place(&mut self, id: ThreadId, service: ServiceId, slot: u8) {
        self.service = service;
        self.slot = slot;
        self.slot_bit = 1 << slot;
        self.token = Token::new(u16::from(id.number()), u16::from(service.0), 0);
    }
}
