//! Reports the node's state and carries its log out: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod kernel;
mod state;

use health::observer::{Desk, Observer};
use health::pump::{Pump, TimeLeft, Turn};
use ipc::interfaces::health::{INTERFACE, dispatch};
use ipc::interfaces::supervisor;
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::{Endpoint, Ports};
use rt::inspector::Kernel;
use rt::membership::{Membership, description};
use rt::serve::{Service, serve};
use rt::start::Start;
use uart::{DIVISOR_115200, Uart};

use crate::kernel::{Cursors, LogRings};
use crate::state::Teller;

/// How often the log is looked at when all of it was passed on, in milliseconds.
const IDLE_MS: u64 = 10;
/// How soon it is when there is more: about the time that 16 bytes take at 115,200 baud.
const BUSY_MS: u64 = 1;
/// How long one turn of the pump may take, in milliseconds: short against the time budget.
const TURN_MS: u64 = 4;
/// How often cores and services are looked at, in milliseconds: the period that loads are of.
const LOOK_MS: u64 = 1_000;
/// Looks between two summaries in the log.
const LOOKS_PER_SUMMARY: u32 = 10;
/// Looks at the port's status for one byte; `write_now` never waits, so this only bounds the driver's other
/// calls.
const PATIENCE: u32 = 10_000;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let endpoint = |name| match start.endpoint(name) {
        Ok(endpoint) => endpoint,
        Err(missing) => panic!("{missing}"),
    };
    let description = description(start.name(), env!("CARGO_PKG_VERSION"), Some(INTERFACE));
    let patience = start.clock().milliseconds_to_ticks(LOOK_MS);
    let mut line =
        start.ports("log-port").ok().and_then(|ports| Uart::open(ports, DIVISOR_115200, PATIENCE).ok());
    if let Some(line) = &mut line {
        // Ends whatever firmware wrote to the port, so that the first record is not taken for a part of it.
        line.write_now(&[0]);
    }
    let cores = usize::try_from(start.cores()).unwrap_or(0);
    serve(&mut Health {
        observer: Observer::new(Kernel, start.clock()),
        pump: Pump::new(Cursors::of(start), cores),
        line,
        membership: Membership::new(endpoint("supervisor"), description, start.clock()),
        supervisor: supervisor::Client::new(endpoint("supervisor")).within(patience),
        teller: Teller::of(start),
        start: *start,
        next_pump: 0,
        next_look: 0,
        looks: 0,
    })
}

struct Health {
    observer: Observer<Kernel>,
    pump: Pump<Cursors>,
    line: Option<Uart<Ports>>,
    membership: Membership<Endpoint>,
    supervisor: supervisor::Client<Endpoint>,
    teller: Teller,
    start: Start<'static>,
    next_pump: u64,
    next_look: u64,
    looks: u32,
}

impl Health {
    fn after(&self, now: u64, milliseconds: u64) -> u64 {
        now.saturating_add(self.start.clock().milliseconds_to_ticks(milliseconds))
    }

    fn summarise(&mut self) {
        let summary = self.observer.summary();
        let (records, lost) = self.pump.counts();
        // Without the supervisor's answer the rest is still worth the line.
        let (up, total) = self.supervisor.node_state().map_or((0, 0), |state| (state.up, state.total));
        defmt::info!(
            "node {=u64}: {=u8} of {=u8} services up, {=u32} cores {=u32} permille busy (most {=u32}), {=u64} of {=u64} KiB free, {=u64} log records, {=u64} lost",
            self.start.node(),
            up,
            total,
            summary.cores,
            summary.mean_permille,
            summary.most_permille,
            summary.free_kib,
            summary.total_kib,
            records,
            lost
        );
        if let Some(guest) = self.observer.guest_summary() {
            defmt::info!(
                "guest: {=u32} vCPUs {=u32} permille busy and {=u32} stolen; {=u32} exits, {=u32} faults, {=u32} halts a second",
                guest.vcpus,
                guest.mean_permille,
                guest.steal_permille,
                guest.exits,
                guest.faults,
                guest.halts
            );
        }
    }
}

impl Service for Health {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        let mut desk = Desk { observer: &self.observer, now: rt::now(), log: self.pump.counts() };
        dispatch(&mut desk, caller, message, page)
    }

    fn deadline(&self) -> u64 {
        self.next_pump.min(self.next_look).min(self.membership.due())
    }

    fn deadline_passed(&mut self, now: u64) {
        rt::membership::keep(&mut self.membership, now);
        if now >= self.next_pump {
            let end = self.after(rt::now(), TURN_MS);
            let time = || if rt::now() < end { TimeLeft::Some } else { TimeLeft::None };
            let turn = self.pump.turn(&mut LogRings, &mut self.line, time);
            self.next_pump = self.after(rt::now(), if turn == Turn::Drained { IDLE_MS } else { BUSY_MS });
        }
        if now >= self.next_look {
            self.observer.look(now);
            self.next_look = self.after(now, LOOK_MS);
            self.teller.tell(&self.observer, self.pump.counts());
            self.looks += 1;
            if self.looks == LOOKS_PER_SUMMARY {
                self.looks = 0;
                self.summarise();
            }
        }
    }
}
