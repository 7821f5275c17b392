//! Places virtual processors on cores: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ipc::interfaces::scheduler::{INTERFACE, dispatch};
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::Endpoint;
use rt::inspector::Kernel;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use scheduler::Scheduler;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    serve(&mut Program {
        scheduler: Scheduler::new(Kernel, start.clock()),
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
    })
}

struct Program {
    scheduler: Scheduler<Kernel>,
    membership: Membership<Endpoint>,
}

impl Service for Program {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(&mut self.scheduler, caller, message, page)
    }

    fn deadline(&self) -> u64 {
        self.membership.due().min(self.scheduler.next_look())
    }

    fn deadline_passed(&mut self, now: u64) {
        self.scheduler.look(now);
        membership::keep(&mut self.membership, now);
    }
}
