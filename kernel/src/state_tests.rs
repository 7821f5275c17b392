//! Tests of the kernel's state: calls, donation, time-outs, restarts, hostile arguments, and long random runs.

extern crate std;

use std::boxed::Box;
use std::vec::Vec;

use ipc::abi::{
    Error, FAULT_BIT, FaultCause, FaultReport, Handle, Label, NEVER, Outcome, RECEIVE_MESSAGES,
    ServiceOperation, ServiceState, Syscall, Token, UserRegisters, message_page,
};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use zerocopy::FromBytes;

use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::interrupts::{FIRST_VECTOR, InterruptLine};
use crate::service::Serving;
use crate::state::State;
use crate::testing::{
    DATA, DMA_SLOT, FakeMachine, NOTIFY_SLOT, PCI_SLOT, PORT_SLOT, SUPERVISOR, THREADS, check, handle, system,
};
use crate::thread::ThreadState;

const CORE: CoreId = CoreId(0);

/// The first thread of a service.
fn first(service: u8) -> ThreadId {
    ThreadId::new(service * THREADS)
}

/// Puts a thread on a core by force: everything more urgent is made to wait first.
struct Driver {
    state: Box<State>,
    m: FakeMachine,
}

impl Driver {
    fn new(services: u8, cores: u8) -> Self {
        let (state, m) = system(services, cores);
        Self { state, m }
    }

    fn current(&self, core: CoreId) -> Option<ThreadId> {
        self.state.cores[core.index()].current
    }

    /// The current thread of a core makes a system call; returns its status as far as it is known.
    fn syscall(&mut self, core: CoreId, call: Syscall, set: impl FnOnce(&mut UserRegisters)) -> u64 {
        let id = self.current(core).expect("the core idles");
        let registers = &mut self.state.thread_mut(id).context.registers;
        registers.r12 = NEVER;
        registers.r13 = RECEIVE_MESSAGES;
        registers.rdi = 0;
        registers.rsi = 0;
        set(registers);
        registers.rax = call as u64;
        self.m.now += 100;
        self.state.syscall(&mut self.m, core);
        check(&self.state);
        self.state.thread(id).context.registers.rax
    }

    /// The current thread waits for messages and fault notifications.
    fn receive(&mut self, core: CoreId) {
        self.syscall(core, Syscall::Receive, |r| r.r13 = RECEIVE_MESSAGES | FAULT_BIT);
    }

    fn call(&mut self, core: CoreId, callee: u8, words: [u64; 4]) -> u64 {
        let id = self.current(core).expect("the core idles");
        let holder = self.state.thread(id).service;
        let handle = handle(&self.state, holder, u16::from(callee));
        self.syscall(core, Syscall::Call, |r| {
            r.rdi = handle;
            [r.rdx, r.r8, r.r9, r.r10] = words;
        })
    }

    fn registers(&self, id: ThreadId) -> &UserRegisters {
        &self.state.thread(id).context.registers
    }

    /// All services but the last wait for messages; the last is current on core 0.
    fn idle_servers(services: u8) -> Self {
        let mut d = Self::new(services, 1);
        for number in 0..services - 1 {
            assert_eq!(d.current(CORE), Some(first(number)));
            d.receive(CORE);
        }
        assert_eq!(d.current(CORE), Some(first(services - 1)));
        d
    }

    fn restart(&mut self, core: CoreId, target: u8) {
        while self.syscall(core, Syscall::Control, |r| {
            (r.rdi, r.rsi) = (u64::from(target), ServiceOperation::Reload as u64);
        }) != 0
        {}
        let status = self.syscall(core, Syscall::Control, |r| {
            (r.rdi, r.rsi) = (u64::from(target), ServiceOperation::Start as u64);
        });
        assert_eq!(status, 0);
    }
}

#[test]
fn a_call_runs_the_server_on_the_callers_context_and_the_reply_returns_it() {
    let mut d = Driver::idle_servers(3);
    let page = d.state.thread(first(2)).message_page;
    d.m.at(page)[..5].copy_from_slice(b"hello");
    let to = handle(&d.state, ServiceId(2), 1);
    let switches = d.m.spaces.len();
    d.syscall(CORE, Syscall::Call, |r| {
        (r.rdi, r.rsi) = (to, Label::new(7, 5).0);
        [r.rdx, r.r8, r.r9, r.r10] = [1, 2, 3, 4];
    });
    let server = first(1);
    assert_eq!(d.current(CORE), Some(server));
    assert_eq!(d.m.spaces.len(), switches + 1);
    assert_eq!(d.state.thread(server).on, first(2), "the server runs on the caller's context");
    let r = *d.registers(server);
    assert_eq!((r.rax, r.rsi, [r.rdx, r.r8, r.r9, r.r10]), (0, Label::new(7, 5).0, [1, 2, 3, 4]));
    assert_eq!(Token(r.rdi).service(), 2);
    let server_page = d.state.thread(server).message_page;
    assert_eq!(&d.m.at(server_page)[..5], b"hello");
    d.m.at(server_page)[..3].copy_from_slice(b"bye");
    d.syscall(CORE, Syscall::Receive, |q| {
        (q.rdi, q.rsi) = (r.rdi, Label::new(8, 3).0);
        [q.rdx, q.r8, q.r9, q.r10] = [5, 6, 7, 8];
    });
    assert_eq!(d.current(CORE), Some(first(2)));
    let r = *d.registers(first(2));
    assert_eq!((r.rax, r.rsi, [r.rdx, r.r8, r.r9, r.r10]), (0, Label::new(8, 3).0, [5, 6, 7, 8]));
    assert_eq!(&d.m.at(page)[..5], b"byelo");
    assert_eq!(d.state.thread(server).on, server);
}

#[test]
fn a_chain_of_calls_lends_one_context_all_the_way_and_a_time_out_takes_it_back() {
    let mut d = Driver::idle_servers(4);
    let to = handle(&d.state, ServiceId(3), 2);
    let deadline = d.m.now + 5000;
    d.syscall(CORE, Syscall::Call, |r| (r.rdi, r.r12) = (to, deadline));
    let mut tokens = [d.registers(first(2)).rdi; 3];
    d.call(CORE, 1, [0; 4]);
    tokens[1] = d.registers(first(1)).rdi;
    d.call(CORE, 0, [0; 4]);
    tokens[0] = d.registers(first(0)).rdi;
    assert_eq!(d.current(CORE), Some(first(0)));
    assert_eq!(d.state.thread(first(0)).on, first(3));
    assert!(d.m.timer <= deadline);
    d.m.now = deadline;
    d.state.timer(&mut d.m, CORE);
    check(&d.state);
    // The supervisor goes on, now on the time of service 2, which was called directly.
    assert_eq!(d.state.thread(first(0)).on, first(2));
    assert_eq!(d.current(CORE), Some(first(0)));
    assert_eq!(d.registers(first(3)).rax, Error::TimedOut.status());
    // The chain unwinds; the last reply finds nobody.
    for token in tokens {
        d.syscall(CORE, Syscall::Receive, |r| r.rdi = token);
    }
    assert_eq!(d.state.calls.stale, 1);
    assert_eq!(d.current(CORE), Some(first(3)));
}

#[test]
fn calls_to_a_busy_server_are_taken_by_priority_then_age() {
    let mut d = Driver::idle_servers(5);
    // Service 4 calls 3, which calls 1; then 2 gets its turn by a notification and finds 1 busy.
    d.call(CORE, 3, [0; 4]);
    d.call(CORE, 1, [40, 0, 0, 0]);
    assert_eq!(d.current(CORE), Some(first(1)));
    let token = d.registers(first(1)).rdi;
    let notify = handle(&d.state, ServiceId(1), NOTIFY_SLOT);
    d.state.thread_mut(first(2)).state = ThreadState::Receiving { mask: RECEIVE_MESSAGES | 2 };
    d.syscall(CORE, Syscall::Notify, |r| r.rdi = notify);
    assert_eq!(d.current(CORE), Some(first(2)), "2 is more urgent than 4, on whose time 1 runs");
    assert_eq!(d.registers(first(2)).rax, Outcome::Notified as u64);
    d.call(CORE, 1, [20, 0, 0, 0]);
    assert_eq!(d.current(CORE), Some(first(1)));
    d.syscall(CORE, Syscall::Receive, |r| r.rdi = token);
    assert_eq!(d.current(CORE), Some(first(1)), "the queued call is taken at once, on its caller's time");
    assert_eq!(d.registers(first(1)).rdx, 20);
    assert_eq!(d.state.thread(first(1)).on, first(2));
}

#[test]
fn a_pinned_server_serves_on_its_own_core_and_time() {
    let mut d = Driver::new(2, 2);
    d.state.service_mut(ServiceId(0)).serving = Serving::Pinned;
    d.state.thread_mut(first(0)).core = CoreId(0);
    d.receive(CORE);
    let other = CoreId(1);
    d.call(other, 0, [9, 0, 0, 0]);
    assert_eq!(d.current(other), None);
    assert_eq!(d.m.woken.last(), Some(&0));
    d.state.wake_up(&mut d.m, CORE);
    check(&d.state);
    assert_eq!(d.current(CORE), Some(first(0)));
    assert_eq!(d.state.thread(first(0)).on, first(0));
    let token = d.registers(first(0)).rdi;
    d.syscall(CORE, Syscall::Receive, |r| (r.rdi, r.rdx) = (token, 10));
    assert_eq!(d.m.woken.last(), Some(&1));
    d.state.wake_up(&mut d.m, other);
    check(&d.state);
    assert_eq!(d.registers(first(1)).rdx, 10);
}

#[test]
fn a_fault_restarts_the_service_and_its_callers_learn_it() {
    let mut d = Driver::idle_servers(3);
    let old = handle(&d.state, ServiceId(2), 1);
    let data = d.state.service(ServiceId(1)).mappings[0].physical;
    d.m.at(data)[..4].copy_from_slice(b"junk");
    d.call(CORE, 1, [0; 4]);
    d.state.exception(&mut d.m, CORE, 14, 6, message_page(0) + 0x2000);
    check(&d.state);
    assert_eq!(d.registers(first(2)).rax, Error::Restarted.status());
    assert_eq!(d.current(CORE), Some(SUPERVISOR_THREAD));
    assert_eq!(d.registers(SUPERVISOR_THREAD).rdx, FAULT_BIT);
    assert_eq!(d.syscall(CORE, Syscall::NextFault, |_| {}), 0);
    let page = d.state.thread(SUPERVISOR_THREAD).message_page;
    let (report, _) = FaultReport::read_from_prefix(d.m.at(page)).unwrap();
    assert_eq!(FaultCause::from_number(report.cause), Some(FaultCause::StackOverflow));
    assert_eq!((report.service, report.vector, report.error_code), (1, 14, 6));
    assert_eq!(d.syscall(CORE, Syscall::NextFault, |_| {}), Error::Again.status());
    d.restart(CORE, 1);
    assert_eq!(&d.m.at(data)[..4], b"data");
    d.receive(CORE);
    assert_eq!(d.current(CORE), Some(first(1)));
    assert_eq!(d.registers(first(1)).rip, DATA);
    d.receive(CORE);
    // The caller's old handle is stale, once; the fresh one works.
    assert_eq!(d.syscall(CORE, Syscall::Call, |r| r.rdi = old), Error::Restarted.status());
    assert_eq!(d.syscall(CORE, Syscall::Refresh, |r| r.rdi = old), 0);
    let fresh = d.registers(first(2)).rdi;
    assert_ne!(fresh, old);
    d.syscall(CORE, Syscall::Call, |r| r.rdi = fresh);
    assert_eq!(d.current(CORE), Some(first(1)));
}

const SUPERVISOR_THREAD: ThreadId = ThreadId::new(0);

#[test]
fn a_call_with_a_fresh_handle_waits_for_the_restart_and_ends_when_the_service_is_given_up() {
    let mut d = Driver::idle_servers(3);
    d.call(CORE, 1, [0; 4]);
    d.state.exception(&mut d.m, CORE, 6, 0, 0);
    d.receive(CORE);
    assert_eq!(d.current(CORE), Some(first(2)));
    let stale = Handle::new(1, 0).0;
    d.syscall(CORE, Syscall::Refresh, |r| r.rdi = stale);
    let fresh = d.registers(first(2)).rdi;
    d.syscall(CORE, Syscall::Call, |r| r.rdi = fresh);
    assert_eq!(d.current(CORE), None);
    d.state.raise(&mut d.m, CORE, SUPERVISOR, FAULT_BIT);
    d.state.wake_up(&mut d.m, CORE);
    let give_up = ServiceOperation::GiveUp as u64;
    assert_eq!(d.syscall(CORE, Syscall::Control, |r| (r.rdi, r.rsi) = (1, give_up)), 0);
    d.receive(CORE);
    assert_eq!(d.registers(first(2)).rax, Error::Down.status());
    assert_eq!(d.syscall(CORE, Syscall::Call, |r| r.rdi = fresh), Error::Down.status());
    assert_eq!(d.syscall(CORE, Syscall::Refresh, |r| r.rdi = fresh), Error::Down.status());
}

#[test]
fn a_loop_past_its_budget_is_a_fault_and_a_turn_ends_in_time() {
    let mut d = Driver::idle_servers(2);
    let budget = d.state.service(ServiceId(1)).budget;
    let turn = d.state.turn;
    let mut ticks = 0;
    while d.current(CORE) == Some(first(1)) {
        d.m.now += turn;
        ticks += 1;
        d.state.timer(&mut d.m, CORE);
        check(&d.state);
        assert!(d.m.timer <= d.m.now + turn, "a running thread's timer is armed");
    }
    assert!((budget / turn..=budget / turn + 1).contains(&ticks), "{ticks}");
    assert_eq!(d.state.service(ServiceId(1)).state, ServiceState::Stopped);
    assert_eq!(d.state.service(ServiceId(1)).report.unwrap().cause, FaultCause::Budget as u64);
}

#[test]
fn the_kernel_restarts_the_supervisor_itself_and_gives_up_in_the_end() {
    let mut d = Driver::new(2, 1);
    for generation in 1..=16 {
        d.state.exception(&mut d.m, CORE, 13, 0, 0);
        check(&d.state);
        assert_eq!(d.current(CORE), Some(first(0)));
        assert_eq!(d.state.service(SUPERVISOR).generation, generation);
    }
    d.state.exception(&mut d.m, CORE, 13, 0, 0);
    assert_eq!(d.state.service(SUPERVISOR).state, ServiceState::Down);
    assert_eq!(d.current(CORE), Some(first(1)), "the others go on");
}

#[test]
fn a_thread_that_another_core_stops_is_reloaded_only_when_it_left_its_core() {
    let mut d = Driver::new(2, 2);
    let stop = ServiceOperation::Stop as u64;
    let reload = ServiceOperation::Reload as u64;
    assert_eq!(d.syscall(CORE, Syscall::Control, |r| (r.rdi, r.rsi) = (1, stop)), 0);
    assert_eq!(d.m.woken.last(), Some(&1));
    for _ in 0..10 {
        let status = d.syscall(CORE, Syscall::Control, |r| (r.rdi, r.rsi) = (1, reload));
        assert_eq!(status, Error::Again.status());
    }
    assert_eq!(d.state.service(ServiceId(1)).state, ServiceState::Stopped);
    // It makes a system call before the interrupt comes: nothing is done for it.
    d.state.syscall(&mut d.m, CoreId(1));
    assert_eq!(d.current(CoreId(1)), None);
    d.restart(CORE, 1);
}

#[test]
fn notifications_are_kept_until_received_and_deadlines_end_waits() {
    let mut d = Driver::idle_servers(2);
    d.state.raise(&mut d.m, CORE, ServiceId(1), 4 | 1);
    assert_eq!(d.syscall(CORE, Syscall::Receive, |r| r.r13 = 6), Outcome::Notified as u64);
    assert_eq!(d.registers(first(1)).rdx, 4);
    assert_eq!(d.state.service(ServiceId(1)).pending, 1);
    assert_eq!(d.syscall(CORE, Syscall::Receive, |r| (r.r13, r.r12) = (6, 0)), Error::TimedOut.status());
    let deadline = d.m.now + 50_000;
    d.syscall(CORE, Syscall::Receive, |r| (r.r13, r.r12) = (6, deadline));
    assert_eq!(d.current(CORE), None);
    assert_eq!(d.m.timer, deadline.min(d.m.timer));
    d.m.now = deadline - 1;
    d.state.timer(&mut d.m, CORE);
    assert_eq!(d.current(CORE), None);
    d.m.now = deadline;
    d.state.timer(&mut d.m, CORE);
    assert_eq!(d.current(CORE), Some(first(1)));
    assert_eq!(d.registers(first(1)).rax, Error::TimedOut.status());
}

#[test]
fn waits_that_are_over_end_in_the_order_of_their_deadlines() {
    let mut d = Driver::idle_servers(2);
    let now = d.m.now;
    for after in [300, 100] {
        assert_eq!(d.syscall(CORE, Syscall::SpawnThread, |r| (r.rdi, r.rsi) = (DATA, after)), 0);
    }
    for after in [200, 300, 100] {
        let deadline = now + 100_000 + after;
        d.syscall(CORE, Syscall::Receive, |r| (r.r13, r.r12) = (1, deadline));
    }
    assert_eq!(d.current(CORE), None);
    d.m.now = now + 200_000;
    d.state.timer(&mut d.m, CORE);
    check(&d.state);
    // The third thread waited for 100, the first for 200, the second for 300.
    for slot in [2, 0, 1] {
        assert_eq!(d.current(CORE), Some(ThreadId::new(first(1).number() + slot)));
        d.syscall(CORE, Syscall::Receive, |r| r.r13 = 1);
    }
}

#[test]
fn a_level_interrupt_is_masked_until_acknowledged() {
    let mut d = Driver::idle_servers(2);
    let line = InterruptLine { masked: Some(11), service: ServiceId(1), bits: 8 };
    let (index, vector) = d.state.interrupts.add(line).unwrap();
    assert_eq!(vector, FIRST_VECTOR);
    d.state.services[1].capabilities[50] = crate::service::Object::Interrupt(index);
    d.state.interrupt(&mut d.m, CORE, vector);
    d.state.interrupt(&mut d.m, CORE, 0xfe);
    assert_eq!(d.m.masked, [11]);
    assert_eq!(d.syscall(CORE, Syscall::Receive, |r| r.r13 = 8), Outcome::Notified as u64);
    assert!(d.m.unmasked.is_empty());
    assert_eq!(d.syscall(CORE, Syscall::AcknowledgeInterrupt, |r| r.rdi = 50), 0);
    assert_eq!(d.m.unmasked, [11]);
    // One that its service did not acknowledge comes again in its next life.
    d.state.interrupt(&mut d.m, CORE, vector);
    d.state.exception(&mut d.m, CORE, 6, 0, 0);
    assert_eq!((d.m.masked.len(), d.m.unmasked.len()), (2, 1));
    while d.state.control(&mut d.m, CORE, SUPERVISOR, ServiceId(1), ServiceOperation::Reload).is_err() {}
    d.state.control(&mut d.m, CORE, SUPERVISOR, ServiceId(1), ServiceOperation::Start).unwrap();
    assert_eq!(d.m.unmasked, [11, 11]);
}

#[test]
fn bits_raised_at_once_wake_every_thread_that_waits_for_one() {
    let mut d = Driver::idle_servers(2);
    assert_eq!(d.syscall(CORE, Syscall::SpawnThread, |r| r.rdi = DATA), 0);
    for mask in [1, 2] {
        d.syscall(CORE, Syscall::Receive, |r| r.r13 = mask);
    }
    assert_eq!(d.current(CORE), None);
    d.state.raise(&mut d.m, CORE, ServiceId(1), 7);
    d.state.wake_up(&mut d.m, CORE);
    for (slot, bit) in [(0, 1), (1, 2)] {
        let id = ThreadId::new(first(1).number() + slot);
        assert_eq!((d.current(CORE), d.registers(id).rdx), (Some(id), bit));
        d.syscall(CORE, Syscall::Receive, |r| r.r13 = bit);
    }
    assert_eq!(d.state.service(ServiceId(1)).pending, 4);
}

#[test]
fn futexes_compare_wait_and_wake() {
    let mut d = Driver::idle_servers(2);
    let thread = |r: &mut UserRegisters| (r.rdi, r.rsi) = (DATA + 0x20, 5);
    assert_eq!(d.syscall(CORE, Syscall::SpawnThread, thread), 0);
    assert_eq!(d.syscall(CORE, Syscall::FutexWait, |r| (r.rdi, r.rsi) = (DATA, 1)), Error::Again.status());
    assert_eq!(d.syscall(CORE, Syscall::FutexWait, |r| r.rdi = DATA + 2), Error::BadPointer.status());
    assert_eq!(d.syscall(CORE, Syscall::FutexWait, |r| r.rdi = 8), Error::BadPointer.status());
    let word = u64::from(u32::from_le_bytes(*b"data"));
    d.syscall(CORE, Syscall::FutexWait, |r| (r.rdi, r.rsi) = (DATA, word));
    let second = ThreadId::new(first(1).number() + 1);
    assert_eq!(d.current(CORE), Some(second));
    assert_eq!((d.registers(second).rdi, d.registers(second).rsi), (5, 1));
    assert_eq!(d.syscall(CORE, Syscall::FutexWake, |r| (r.rdi, r.rsi) = (DATA, 9)), 0);
    assert_eq!(d.registers(second).rdi, 1);
    d.syscall(CORE, Syscall::ExitThread, |_| {});
    assert_eq!(d.current(CORE), Some(first(1)));
    for _ in 1..THREADS {
        assert_eq!(d.syscall(CORE, Syscall::SpawnThread, thread), 0);
    }
    assert_eq!(d.syscall(CORE, Syscall::SpawnThread, thread), Error::NoRoom.status());
}

#[test]
fn every_bad_argument_has_its_error() {
    let mut d = Driver::idle_servers(2);
    let own = |slot| Handle::new(slot, 0).0;
    let mut refused = |call, error: Error, set: &dyn Fn(&mut UserRegisters)| {
        assert_eq!(d.syscall(CORE, call, set), error.status(), "{call:?} {error:?}");
    };
    for handle in [own(20), own(63), own(64), own(0xffff), u64::MAX, 1 << 48, own(0) | 1 << 63] {
        refused(Syscall::Call, Error::BadHandle, &|r| r.rdi = handle);
        refused(Syscall::Notify, Error::BadHandle, &|r| r.rdi = handle);
        refused(Syscall::Refresh, Error::BadHandle, &|r| r.rdi = handle);
    }
    refused(Syscall::Call, Error::WrongKind, &|r| r.rdi = own(PORT_SLOT));
    refused(Syscall::Call, Error::Restarted, &|r| r.rdi = Handle::new(0, 1).0);
    refused(Syscall::Call, Error::Malformed, &|r| (r.rdi, r.rsi) = (own(0), Label::new(0, 4097).0));
    refused(Syscall::Receive, Error::Malformed, &|r| (r.rdi, r.rsi) = (1, Label::new(0, 4097).0));
    refused(Syscall::Reply, Error::Stale, &|r| r.rdi = Token::new(0, 0, 0).0);
    refused(Syscall::Reply, Error::Stale, &|r| r.rdi = u64::MAX);
    refused(Syscall::Log, Error::Malformed, &|r| (r.rdi, r.rsi) = (DATA, 513));
    refused(Syscall::Log, Error::BadPointer, &|r| (r.rdi, r.rsi) = (0, 8));
    refused(Syscall::Log, Error::BadPointer, &|r| (r.rdi, r.rsi) = (0xffff_ffff_8010_0000, 8));
    refused(Syscall::Log, Error::BadPointer, &|r| (r.rdi, r.rsi) = (DATA + 0xfff8, 9));
    refused(Syscall::Log, Error::BadPointer, &|r| (r.rdi, r.rsi) = (u64::MAX, 8));
    refused(Syscall::DmaAddress, Error::BadPointer, &|r| (r.rdi, r.rsi) = (own(DMA_SLOT), 0x2000));
    refused(Syscall::DmaAddress, Error::WrongKind, &|r| r.rdi = own(PORT_SLOT));
    refused(Syscall::PortRead, Error::Refused, &|r| (r.rdi, r.rsi, r.rdx) = (own(PORT_SLOT), 0x108, 1));
    refused(Syscall::PortRead, Error::Refused, &|r| (r.rdi, r.rsi, r.rdx) = (own(PORT_SLOT), 0x106, 4));
    refused(Syscall::PortRead, Error::Refused, &|r| (r.rdi, r.rsi, r.rdx) = (own(PORT_SLOT), 0x1_0100, 1));
    refused(Syscall::PortRead, Error::Malformed, &|r| (r.rdi, r.rsi, r.rdx) = (own(PORT_SLOT), 0x100, 3));
    let bytes =
        |r: &mut UserRegisters, length| (r.rdi, r.rsi, r.rdx, r.r8) = (own(PORT_SLOT), 0x100, DATA, length);
    refused(Syscall::PortWriteBytes, Error::Malformed, &|r| bytes(r, 65));
    for (offset, width, error) in [
        (0x10, 4, Error::Refused),
        (0x24, 4, Error::Refused),
        (0x30, 4, Error::Refused),
        (0x52, 2, Error::Refused),
        (0x58, 4, Error::Refused),
        (0x42, 4, Error::Malformed),
        (0x1000, 4, Error::Malformed),
        (0x40, 8, Error::Malformed),
    ] {
        let set = |r: &mut UserRegisters| (r.rdi, r.rsi, r.rdx) = (own(PCI_SLOT), offset, width);
        refused(Syscall::ConfigWrite, error, &set);
    }
    for call in [Syscall::Inspect, Syscall::NextFault, Syscall::Control, Syscall::LogRead, Syscall::StopNode]
    {
        refused(call, Error::Refused, &|_| {});
    }
    refused(Syscall::SpawnThread, Error::BadPointer, &|r| r.rdi = 0xffff_8000_0000_0000);
    assert_eq!(d.current(CORE), Some(first(1)));
    assert!(d.m.ports.is_empty() && d.m.config.is_empty() && d.m.stopped.is_none());
}

/// Runs random traps on several cores and checks every invariant after each; services fault, are restarted and given
/// up, calls time out, and in the end every thread that the rules say can go on does go on.
fn random_run(seed: u64, cores: u8, steps: u32) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut d = Driver::new(6, cores);
    d.state.services[2].serving = Serving::Pinned;
    for _ in 0..steps {
        let mut core = CoreId(random.random_range(0..cores));
        if let Some(busy) = d.state.cores.iter().position(|c| c.current.is_some())
            && d.current(core).is_none()
            && random.random_bool(0.8)
        {
            core = CoreId::from_index(busy);
        }
        d.m.now += random.random_range(0..3000);
        if random.random_bool(0.2) {
            let target = ServiceId(random.random_range(0..6));
            let bits = 1 << random.random_range(0..62) | 1 << random.random_range(0..62);
            d.state.raise(&mut d.m, core, target, bits);
            check(&d.state);
        }
        let deliver: Vec<usize> = core::mem::take(&mut d.m.woken);
        for woken in deliver {
            if random.random_bool(0.7) {
                d.state.wake_up(&mut d.m, CoreId::from_index(woken));
                check(&d.state);
            } else {
                d.m.woken.push(woken);
            }
        }
        let Some(id) = d.current(core) else {
            d.state.timer(&mut d.m, core);
            check(&d.state);
            continue;
        };
        match random.random_range(0..40) {
            0 => d.state.timer(&mut d.m, core),
            1 if random.random_bool(0.2) => {
                d.state.exception(&mut d.m, core, random.random_range(0..20), 0, 0)
            }
            2 => d.state.wake_up(&mut d.m, core),
            _ => {
                let holder = d.state.thread(id).service;
                let slot = random.random_range(0..6u16);
                let deadline = match random.random_range(0..4) {
                    // The urgent ones mostly sleep, or nothing else would run.
                    _ if holder.0 < 2 && random.random_bool(0.8) => NEVER,
                    0 => d.m.now + random.random_range(0..20_000),
                    1 => 0,
                    _ if holder.0 > 3 => d.m.now + 5000,
                    _ => NEVER,
                };
                let awaits =
                    |&t: &ThreadId| d.state.thread(t).state == ThreadState::AwaitingReply { server: holder };
                let caller = (0..6 * THREADS).map(ThreadId::new).find(awaits);
                let token = match caller {
                    Some(caller) if random.random_bool(0.9) => d.state.thread(caller).token.0,
                    _ => d.registers(id).rdi,
                };
                let call = match random.random_range(0..20) {
                    // And mostly serve.
                    0..14 if holder.0 < 2 => Syscall::Receive as u64,
                    0..8 => Syscall::Call as u64,
                    8..15 => Syscall::Receive as u64,
                    15 => Syscall::Control as u64,
                    16 => Syscall::SpawnThread as u64,
                    17 => Syscall::FutexWait as u64,
                    _ => random.random_range(0..30),
                };
                let bytes = random.random_range(0..64);
                let h = match call {
                    0 | 22 if random.random_bool(0.9) => handle(&d.state, holder, slot),
                    1 | 2 => token,
                    7 | 8 => DATA,
                    20 => random.random_range(0..8),
                    _ => random.random(),
                };
                let operation = random.random_range(0..5);
                let r = &mut d.state.thread_mut(id).context.registers;
                r.rax = call;
                r.rdi = h;
                r.rsi = if call == 20 || call == 7 { operation } else { Label::new(3, bytes).0 };
                r.r12 = deadline;
                r.r13 = RECEIVE_MESSAGES | random.random::<u64>() & random.random::<u64>();
                d.state.syscall(&mut d.m, core);
            }
        }
        check(&d.state);
        // The supervisor's duty, now and then: restart what is stopped.
        if random.random_bool(0.05) {
            for target in 1..6u8 {
                let by = SUPERVISOR;
                for operation in [ServiceOperation::Reload, ServiceOperation::Start] {
                    let _ = d.state.control(&mut d.m, core, by, ServiceId(target), operation);
                    check(&d.state);
                }
                if d.state.services[usize::from(target)].state == ServiceState::Down {
                    d.state.services[usize::from(target)].state = ServiceState::Stopped;
                }
            }
            d.state.services[0].generation = 0;
        }
    }
    let taken: u64 = d.state.services.iter().map(|service| service.served).sum();
    assert!(taken > u64::from(steps) / 400, "the run made calls: {taken}");
    assert!(d.state.calls.restarted > 0 && d.state.calls.stale > 0);
}

#[test]
fn random_runs_keep_every_invariant() {
    for (seed, cores) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 8)] {
        random_run(seed, cores, 100_000);
    }
}
