//! Places virtual processors on cores: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ipc::interfaces::scheduler::{INTERFACE, dispatch};
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::Endpoint;
use rt::inspector::Kernel;
use rt::membership::{Membership, description};
use rt::serve::{Service, serve};
use rt::start::Start;
use scheduler::Scheduler;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let supervisor = match start.endpoint("supervisor") {
        Ok(endpoint) => endpoint,
        Err(missing) => panic!("{missing}"),
    };
    let description = description(start.name(), env!("CARGO_PKG_VERSION"), Some(INTERFACE));
    serve(&mut Program {
        scheduler: Scheduler::new(Kernel, start.clock()),
        membership: Membership::new(supervisor, description, start.clock()),
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
        rt::membership::keep(&mut self.membership, now);
    }
}
