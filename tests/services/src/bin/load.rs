//! Calls one service that is killed again and again, and one that is not, without pause, and counts what becomes of
//! each call.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use ipc::message::{CallError, Caller, Message, MessagePage, Refused};
use rt::capability::Endpoint;
use rt::serve::{Service, serve};
use rt::start::Start;
use test_services::load::{Server, Tally, dispatch};
use test_services::{echo, victim};

rt::entry!(main);

/// Counters of one thread's calls: calls, right, restarted, wrong.
struct Counters([AtomicU64; 4]);

static PREY: Counters = Counters([const { AtomicU64::new(0) }; 4]);
static ECHO: Counters = Counters([const { AtomicU64::new(0) }; 4]);

impl Counters {
    /// Counts a call and what became of it.
    fn count(&self, result: Result<bool, CallError>) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
        let place = match result {
            Ok(true) => 1,
            Err(CallError::Restarted) => 2,
            Ok(false) | Err(_) => 3,
        };
        self.0[place].fetch_add(1, Ordering::Relaxed);
    }

    fn tally(&self) -> Tally {
        // What came of a call is counted after the call: read in the other order, the sum never exceeds the calls.
        let [wrong, restarted, right] = [3, 2, 1].map(|place: usize| self.0[place].load(Ordering::Relaxed));
        Tally { calls: self.0[0].load(Ordering::Relaxed), right, restarted, wrong }
    }
}

fn main(start: &'static Start<'static>) -> ! {
    for (entry, core) in [(call_prey as extern "C" fn(usize, usize) -> !, 1), (call_echo, 1)] {
        if let Err(error) = rt::syscall::spawn_thread(entry, 0, core) {
            panic!("no thread: {error}");
        }
    }
    let _ = start;
    serve(&mut Load)
}

fn endpoint(name: &str) -> Endpoint {
    match rt::start().endpoint(name) {
        Ok(endpoint) => endpoint,
        Err(missing) => panic!("{missing}"),
    }
}

extern "C" fn call_prey(_: usize, _: usize) -> ! {
    let mut prey = victim::Client::new(endpoint("prey"));
    loop {
        PREY.count(prey.counts().map(|[calls, starts]| calls > 0 && starts > 0));
    }
}

extern "C" fn call_echo(_: usize, _: usize) -> ! {
    let mut echo = echo::Client::new(endpoint("echo"));
    let mut number = 0u64;
    loop {
        number = number.wrapping_add(1);
        let sent = [number, number ^ 0x55, !number, number << 7];
        ECHO.count(echo.add(&sent).map(|got| got == sent.map(|word| word.wrapping_add(1))));
    }
}

struct Load;

impl Server for Load {
    fn to_prey(&mut self, _: Caller) -> Result<Tally, Refused> {
        Ok(PREY.tally())
    }

    fn to_echo(&mut self, _: Caller) -> Result<Tally, Refused> {
        Ok(ECHO.tally())
    }
}

impl Service for Load {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(self, caller, message, page)
    }
}
