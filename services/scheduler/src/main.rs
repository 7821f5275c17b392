//! Places virtual processors on cores: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ipc::interfaces::scheduler::{INTERFACE, dispatch};
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::{Endpoint, Guest};
use rt::inspector::Kernel;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use rt::syscall;
use scheduler::placement::Move;
use scheduler::{Placer, Scheduler};

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    // A node that cannot run the guest does not have it.
    let guest = start.guest().ok().map(Vcpus);
    serve(&mut Program {
        scheduler: Scheduler::new(Kernel, guest, start.clock()),
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
    })
}

struct Program {
    scheduler: Scheduler<Kernel, Vcpus>,
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

/// The guest's vCPUs.
struct Vcpus(Guest);

impl Placer for Vcpus {
    fn place(&mut self, Move { vcpu, core }: Move) {
        let [number, home] = [vcpu, core].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        match syscall::vcpu_place(self.0.handle, number, home) {
            Ok(()) => defmt::debug!("vCPU {=u32} moves to core {=u32}", number, home),
            Err(error) => {
                let text = rt::text::Text::<64>::of(format_args!("{error}"));
                defmt::warn!("vCPU {=u32} does not move to core {=u32}: {=str}", number, home, text.as_str());
            }
        }
    }
}
