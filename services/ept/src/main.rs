//! Decides over every page of guest memory: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ept::Ept;
use ipc::interfaces::ept::{INTERFACE, dispatch};
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::Endpoint;
use rt::inspector::Kernel;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;

rt::entry!(main);

fn main(_: &'static Start<'static>) -> ! {
    serve(&mut Program {
        ept: Ept { inspector: Kernel },
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
    })
}

struct Program {
    ept: Ept<Kernel>,
    membership: Membership<Endpoint>,
}

impl Service for Program {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(&mut self.ept, caller, message, page)
    }

    fn deadline(&self) -> u64 {
        self.membership.due()
    }

    fn deadline_passed(&mut self, now: u64) {
        membership::keep(&mut self.membership, now);
    }
}
