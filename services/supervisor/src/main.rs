//! Watches the node's services and restarts those that fail: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod kernel;
mod report;

use ipc::abi::FAULT_BIT;
use ipc::interfaces::supervisor::dispatch;
use ipc::message::{Caller, Message, MessagePage};
use rt::serve::{Service, serve};
use rt::start::Start;
use supervisor::desk::Desk;
use supervisor::memory::{recall, remember};
use supervisor::policy::{Action, Done, Policy};

use crate::kernel::Kept;
use crate::report::Reporter;

/// How often the kernel is asked how the services are, in milliseconds.
const LOOK_MS: u64 = 1_000;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let now = rt::now();
    let own = usize::try_from(start.service()).unwrap_or(0);
    // Filled where it lies: it is too large to be moved about on the stack.
    let mut supervisor = Supervisor {
        policy: Policy::new(own, start.clock(), now),
        reporter: Reporter::new(start.cores()),
        memory: Kept(start.region("state").ok()),
        next_look: now,
    };
    for (terms, state, generation) in kernel::services() {
        supervisor.policy.add(terms, state, generation, now);
    }
    recall(&mut supervisor.policy, &supervisor.memory);
    if start.generation() > 0 {
        defmt::warn!("the supervisor was restarted (generation {=u64})", start.generation());
    }
    supervisor.take_faults();
    supervisor.look(now);
    serve(&mut supervisor)
}

struct Supervisor {
    policy: Policy,
    reporter: Reporter,
    memory: Kept,
    next_look: u64,
}

impl Supervisor {
    /// Takes the kernel's reports.
    fn take_faults(&mut self) {
        while let Some(fault) = kernel::next_fault() {
            self.reporter.fault(&self.policy, &fault);
            self.policy.faulted(&fault, rt::now());
        }
        remember(&self.policy, &mut self.memory);
    }

    /// Compares with what the kernel says, so that nothing that went wrong on the way is forgotten.
    fn look(&mut self, now: u64) {
        for (index, (_, state, generation)) in kernel::services().enumerate() {
            self.policy.reconcile(index, state, generation, now);
        }
        self.next_look = now.saturating_add(self.policy.clock().milliseconds_to_ticks(LOOK_MS));
        self.announce(now);
    }

    fn announce(&mut self, now: u64) {
        if self.policy.announce_all_up() {
            let entered = kernel::entered();
            let microseconds = self.policy.clock().microseconds(now.saturating_sub(entered));
            defmt::info!("all services up: {=u64} us after the kernel's entry", microseconds);
            remember(&self.policy, &mut self.memory);
        }
    }

    fn act(&mut self, action: Action) {
        let (done, error) = kernel::perform(action);
        // A reload is many steps; only its failure is worth a line.
        if !matches!(action, Action::Reload(_)) || done == Done::Failed {
            report::action(&self.policy, action, error);
        }
        self.policy.done(action, done, rt::now());
        if done != Done::More {
            remember(&self.policy, &mut self.memory);
        }
    }
}

impl Service for Supervisor {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        let now = rt::now();
        let mut desk = Desk { policy: &mut self.policy, now, registered: None };
        let reply = dispatch(&mut desk, caller, message, page);
        if let Some(description) = desk.registered {
            report::registered(&self.policy, caller.service, &description);
            self.announce(now);
        }
        reply
    }

    fn bits(&self) -> u64 {
        FAULT_BIT
    }

    fn notified(&mut self, _bits: u64) {
        self.take_faults();
    }

    fn deadline(&self) -> u64 {
        self.policy.deadline().min(self.next_look)
    }

    fn deadline_passed(&mut self, now: u64) {
        if let Some(action) = self.policy.due(now) {
            self.act(action);
        }
        if now >= self.next_look {
            self.look(now);
        }
        self.announce(now);
    }
}
