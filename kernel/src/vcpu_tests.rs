//! Tests of vCPUs: what their exits become, kicks, halts, stops, moves, and faults in guest memory.

extern crate std;

use std::vec::Vec;

use ipc::abi::{
    Error, FaultCause, Inspect, Label, NEVER, Outcome, RECEIVE_MESSAGES, ServiceOperation, ServiceState,
    Syscall, Token, VcpuActivity,
};
use ipc::vcpu::{
    ACCESS_EXECUTE, ACCESS_WRITE, BLOCKED_BY_NMI, DIRTY_SYSTEM, EntryControl, Event, ExitReason,
    FAULT_OF_WINDOW, FLUSH_TRANSLATIONS, GUEST_FAULT, HALT, INTERCEPT_WALKS, PortAccess, WINDOW_BASE,
    WINDOW_NMI, exit_label,
};

use crate::address::{GuestPhysAddr, PhysAddr};
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::svm::vmcb::code;
use crate::testing::guest::{MEMORY, Node, PAGES, PLACEMENT, PLATFORM, first};
use crate::testing::{DATA, SUPERVISOR, handle};
use crate::thread::{Queued, ThreadState};
use crate::vcpu::Pending;

mod random;

const CORE: CoreId = CoreId(0);
const OTHER: CoreId = CoreId(1);
const V0: VcpuId = VcpuId(0);
const V1: VcpuId = VcpuId(1);
/// An address that no range of the guest's memory has.
const HOLE: u64 = PAGES * 4096 + 0x30;

impl Node {
    /// The message that the service's thread that is current on a core has.
    fn message(&self, core: CoreId) -> (Label, [u64; 4]) {
        let r = self.registers(self.current(core).unwrap());
        assert_eq!(r.rax, Outcome::Message as u64);
        (Label(r.rsi), [r.rdx, r.r8, r.r9, r.r10])
    }

    #[track_caller]
    fn expect_exit(&self, core: CoreId, vcpu: VcpuId, reason: ExitReason, words: [u64; 3]) {
        assert_eq!(self.serves(core), Some(vcpu));
        let [first, second, third] = words;
        let words = [u64::from(vcpu.0), first, second, third];
        assert_eq!(self.message(core), (exit_label(reason), words));
        assert_eq!(self.registers(self.current(core).unwrap()).rdi, self.thread(vcpu).token.0);
    }

    #[track_caller]
    fn expect_fault(&self, core: CoreId, address: u64, access: u64, who: u64) {
        let id = self.current(core).unwrap();
        assert_eq!(self.state.thread(id).service, MEMORY);
        assert_eq!(self.message(core), (Label::new(GUEST_FAULT, 0), [address, access, who, 0]));
    }

    /// Replies to the call whose time the current thread of a core has.
    fn answer(&mut self, core: CoreId, label: Label) {
        let token = self.registers(self.current(core).unwrap()).rdi;
        self.syscall(core, Syscall::Receive, |r| (r.rdi, r.rsi) = (token, label.0));
    }

    /// The platform lets a vCPU halt.
    fn halt(&mut self, core: CoreId, vcpu: VcpuId, deadline: u64) {
        self.exit(core, code::HLT, [0; 2]);
        self.write(vcpu, |page| (page.control.activity, page.control.deadline) = (HALT, deadline));
        self.reply(core, vcpu);
    }

    /// A second thread of the service whose first is current on one core, current on the other.
    fn second_thread(&mut self) -> ThreadId {
        assert_eq!(self.syscall(CORE, Syscall::SpawnThread, |r| (r.rdi, r.rdx) = (DATA, 1)), 0);
        let slot = self.registers(self.current(CORE).unwrap()).rdi;
        self.wake();
        let id = self.current(OTHER).unwrap();
        assert_eq!(u64::from(self.state.thread(id).slot), slot);
        id
    }

    /// Raises a bit of a service that waits for messages and that bit; it runs then, if it is urgent enough.
    fn call_up(&mut self, core: CoreId, service: ServiceId) {
        let id = first(service);
        let ThreadState::Receiving { .. } = self.state.thread(id).state else { panic!("{service:?} is busy") };
        self.state.thread_mut(id).state = ThreadState::Receiving { mask: RECEIVE_MESSAGES | 1 };
        self.interrupted(core, Event::NONE, |state, m, core| {
            state.raise(m, core, service, 1);
            state.reschedule(m, core);
        });
        self.wake();
    }

    fn memory_stops(&mut self, core: CoreId) {
        let stop = ServiceOperation::Stop;
        self.interrupted(core, Event::NONE, |state, m, core| {
            state.control(m, core, SUPERVISOR, MEMORY, stop).unwrap();
            state.reschedule(m, core);
        });
    }

    fn operate(&mut self, service: ServiceId, operation: ServiceOperation) {
        self.interrupted(CORE, Event::NONE, |state, m, core| {
            while state.control(m, core, SUPERVISOR, service, operation) == Err(Error::Again) {}
            state.reschedule(m, core);
        });
    }
}

#[test]
fn a_start_is_an_exit_and_its_reply_is_what_the_guest_begins_with() {
    let mut n = Node::new(1, 2);
    assert_eq!(n.state.activity(V0), VcpuActivity::Stopped);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V0), 0);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V0), Error::Again.status());
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, VcpuId(2)), Error::NoSuchItem.status());
    assert_eq!(n.current(CORE), Some(first(PLATFORM)), "the platform is more urgent");
    n.write(V0, |page| page.system.cr0 = 7);
    n.receive(CORE);
    n.expect_exit(CORE, V0, ExitReason::Started, [0; 3]);
    let page = n.page(V0);
    assert_eq!((page.system.cr0, page.system.xcr0, page.mode.efer), (0, 1, 0));
    assert_eq!(n.state.activity(V0), VcpuActivity::AtExit);
    n.write(V0, |page| {
        page.registers.rip = 0x10_0000;
        (page.registers.rsi, page.registers.rax, page.registers.rflags) = (0x9_0000, 5, 2);
        (page.system.cr0, page.system.efer, page.system.xcr0) = (0x8000_0011, 0x500, 7);
        page.control.dirty = DIRTY_SYSTEM;
    });
    n.reply(CORE, V0);
    assert_eq!((n.guest(CORE), n.m.guest_entries), (Some(V0), 1));
    assert_eq!(n.state.activity(V0), VcpuActivity::Running);
    let save = &n.state.vcpus[0].hardware.vmcb.save;
    assert_eq!((save.rip, save.rax, save.rflags), (0x10_0000, 5, 2));
    assert_eq!((save.cr0, save.efer), (0x8000_0011, 0x1500));
    assert_eq!(n.thread(V0).context.registers.rsi, 0x9_0000);
    assert_eq!(n.state.vcpus[0].extended.xcr0, 7);
    assert_eq!((n.what(V1), n.state.vcpus[0].counters.exits), (ThreadState::Unused, 1));
}

#[test]
fn every_exit_is_a_call_with_its_words_and_the_reply_goes_on() {
    use ExitReason::{Caches, Cpuid, Halt, Hypercall, Port, Shutdown, Unknown, WriteControl};
    let mut n = Node::running(1, 1);
    let out = PortAccess::new(0x3f8, 1, 0).0;
    for (exit_code, info, reason, words) in [
        (code::CPUID, [0; 2], Cpuid, [0; 3]),
        (code::HLT, [0; 2], Halt, [0; 3]),
        (code::IOIO, [0x3f8 << 16 | 1 << 4, 0x1002], Port, [out, 0x1002, 0]),
        (code::MSR, [0; 2], ExitReason::ReadMsr, [0; 3]),
        (code::MSR, [1, 0], ExitReason::WriteMsr, [0; 3]),
        (code::NESTED_PAGE_FAULT, [6, HOLE], ExitReason::Memory, [HOLE, ACCESS_WRITE, 0]),
        (code::EXCEPTION + 14, [7, 0xdead], ExitReason::Exception, [14, 7, 0xdead]),
        (code::SHUTDOWN, [0; 2], Shutdown, [0; 3]),
        (code::INVALID, [0; 2], ExitReason::InvalidState, [u64::MAX, 0, 0]),
        (code::XSETBV, [0; 2], ExitReason::SetXcr, [0; 3]),
        (code::VMMCALL, [0; 2], Hypercall, [0; 3]),
        (code::VMRUN, [0; 2], ExitReason::Forbidden, [0; 3]),
        (code::WBINVD, [0; 2], Caches, [0; 3]),
        (code::TASK_SWITCH, [0x28, 9], ExitReason::TaskSwitch, [0x28, 9, 0]),
        (code::CR0_WRITE + 3, [0; 2], WriteControl, [3, 0, 0]),
        (code::CR3_READ, [0; 2], ExitReason::ReadControl, [0; 3]),
        (code::INVLPG, [0; 2], ExitReason::InvalidatePage, [0; 3]),
        (code::INVPCID, [0; 2], ExitReason::InvalidateContext, [0; 3]),
        (0x3ff, [1, 2], Unknown, [0x3ff, 1, 2]),
    ] {
        let switches = n.m.spaces.len();
        n.exit(CORE, exit_code, info);
        n.expect_exit(CORE, V0, reason, words);
        assert_eq!(n.m.spaces.len(), switches, "the platform's address space stays");
        assert_eq!(n.state.thread(first(PLATFORM)).on, n.id(V0), "on the vCPU's time");
        n.write(V0, |page| page.registers.rip += 2);
        n.reply(CORE, V0);
        assert_eq!(n.guest(CORE), Some(V0));
    }
    let counters = n.state.vcpus[0].counters;
    assert_eq!((counters.exits, counters.faults, counters.entries), (20, 0, 20));
}

#[test]
fn the_page_tells_the_mode_the_instruction_and_what_is_blocked() {
    let mut n = Node::running(1, 1);
    n.run(CORE, code::NESTED_PAGE_FAULT, [6, HOLE], Event::nmi());
    {
        let vmcb = &mut n.state.vcpus[0].hardware.vmcb;
        (vmcb.save.cr3, vmcb.save.cs.base, vmcb.save.cpl) = (0x5000, 0xf_0000, 3);
        vmcb.control.next_rip = vmcb.save.rip.wrapping_add(3);
        (vmcb.control.fetched, vmcb.control.instruction) = (15, [0x88; 15]);
    }
    n.step(CORE, |state, m, core| state.guest_exit(m, core));
    let page = n.page(V0);
    assert_eq!((page.mode.cr3, page.mode.cs_base, page.mode.cpl), (0x5000, 0xf_0000, 3));
    assert_eq!((page.instruction_length, page.instruction_bytes, page.instruction), (3, 15, [0x88; 15]));
    assert_eq!(page.control.event, Event::nmi());
    n.reply(CORE, V0);
    // Given back as it was told, the NMI is delivered again and blocks others.
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.page(V0).control.blocked, BLOCKED_BY_NMI);
    n.write(V0, |page| page.control.intercepts = INTERCEPT_WALKS);
    n.reply(CORE, V0);
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.page(V0).control.intercepts, INTERCEPT_WALKS, "in force until changed");
    assert_eq!(n.state.vcpus[0].intercepts, INTERCEPT_WALKS);
}

#[test]
fn a_fetch_writes_the_whole_state_of_a_vcpu_at_an_exit() {
    let mut n = Node::running(1, 2);
    let at = n.serves(CORE).or_else(|| n.guest(CORE)).unwrap();
    n.exit(CORE, code::CPUID, [0; 2]);
    n.state.vcpus[at.index()].hardware.vmcb.save.lstar = 0xffff_ffff_8100_0000;
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuFetch, at), 0);
    assert_eq!(n.page(at).system.lstar, 0xffff_ffff_8100_0000);
    let other = VcpuId(1 - at.0);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuFetch, other), Error::Again.status());
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuFetch, VcpuId(64)), Error::NoSuchItem.status());
}

#[test]
fn a_halted_vcpu_comes_by_a_kick_or_its_deadline() {
    let mut n = Node::running(1, 1);
    let deadline = n.m.now + 500_000;
    n.halt(CORE, V0, deadline);
    assert_eq!((n.current(CORE), n.state.activity(V0)), (None, VcpuActivity::Halted));
    assert!(n.m.timer <= deadline);
    n.m.now = deadline - 200;
    n.timer(CORE);
    assert_eq!(n.current(CORE), None);
    n.m.now = deadline;
    n.timer(CORE);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, V0);
    n.halt(CORE, V0, NEVER);
    assert_eq!(n.current(CORE), None);
    n.call_up(CORE, PLATFORM);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, V0), 0);
    assert_eq!(n.current(CORE), Some(first(PLATFORM)));
    n.receive(CORE);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    assert_eq!((n.state.vcpus[0].counters.halts, n.state.vcpus[0].counters.kicks), (2, 2));
}

#[test]
fn a_deadline_comes_to_a_vcpu_that_runs_and_one_that_is_past_at_once() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let deadline = n.m.now + 5000;
    n.write(V0, |page| page.control.deadline = deadline);
    n.reply(CORE, V0);
    assert!(n.m.timer <= deadline);
    n.m.now = deadline;
    n.timer(CORE);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    n.write(V0, |page| page.control.deadline = 0);
    n.reply(CORE, V0);
    assert_eq!(n.m.timer, 0);
    n.timer(CORE);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, V0);
    n.timer(CORE);
    assert_eq!(n.guest(CORE), Some(V0));
}

#[test]
fn a_deadline_that_passes_at_an_exit_is_the_platforms_to_see() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let deadline = n.m.now + 5000;
    n.write(V0, |page| page.control.deadline = deadline);
    n.reply(CORE, V0);
    n.exit(CORE, code::CPUID, [0; 2]);
    // The exit has set it to never.
    n.m.now = deadline;
    n.timer(CORE);
    n.reply(CORE, V0);
    assert_eq!(n.guest(CORE), Some(V0));
}

#[test]
fn a_kick_meets_a_vcpu_wherever_it_is() {
    let mut n = Node::running(2, 2);
    assert_eq!((n.guest(CORE), n.guest(OTHER)), (Some(V0), Some(V1)));
    // At its exit: after the reply.
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, V0), 0);
    // Running on another core.
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, V1), 0);
    assert_eq!(n.m.woken, [1]);
    n.reply(CORE, V0);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    // The platform's thread is busy, so the other waits for it.
    n.wake();
    assert!(matches!(n.what(V1), ThreadState::Sending { server: PLATFORM, .. }));
    n.reply(CORE, V0);
    assert_eq!(n.guest(CORE), Some(V0));
    n.wake();
    // Taken up on the time of the caller, whose home is the other core.
    n.expect_exit(OTHER, V1, ExitReason::Kicked, [0; 3]);
    // Several kicks are one exit.
    for _ in 0..3 {
        assert_eq!(n.vcpu_call(OTHER, Syscall::VcpuKick, V0), 0);
    }
    n.reply(OTHER, V1);
    n.wake();
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, V0);
    assert_eq!((n.guest(CORE), n.guest(OTHER)), (Some(V0), Some(V1)));
}

#[test]
fn a_kick_of_one_that_is_queued_or_faulting_is_told_when_it_goes_on() {
    let mut n = Node::running(1, 2);
    let running = n.guest(CORE).unwrap();
    let queued = VcpuId(1 - running.0);
    assert_eq!(n.thread(queued).links.queued, Queued::Yes);
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, queued), 0);
    n.reply(CORE, running);
    assert_eq!(n.guest(CORE), Some(running));
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    n.expect_fault(CORE, 0x5000, ACCESS_WRITE, u64::from(running.0));
    n.interrupted(CORE, Event::NONE, |state, m, core| state.kick(m, core, running));
    n.answer(CORE, Label(0));
    n.expect_exit(CORE, running, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, running);
    n.m.now += 20_000;
    n.timer(CORE);
    n.expect_exit(CORE, queued, ExitReason::Kicked, [0; 3]);
}

#[test]
fn an_event_outlives_an_interrupt_of_the_nodes_and_a_kick() {
    let mut n = Node::running(1, 1);
    // The delivery of an interrupt is interrupted by the node's timer, which also kicks the vCPU: the exit that
    // follows tells that event, and what the platform puts in its place is what is delivered.
    n.interrupted(CORE, Event::interrupt(0x31), |state, m, core| {
        state.kick(m, core, V0);
        state.timer(m, core);
    });
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    assert_eq!(n.page(V0).control.event, Event::interrupt(0x31));
    n.reply(CORE, V0);
    n.interrupted(CORE, Event::NONE, |state, m, core| {
        state.kick(m, core, V0);
        state.timer(m, core);
    });
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
    n.write(V0, |page| {
        (page.control.event, page.control.flush) = (Event::interrupt(0xec), FLUSH_TRANSLATIONS);
    });
    n.reply(CORE, V0);
    assert_eq!(n.state.vcpus[0].hardware.vmcb.control.event, Event::interrupt(0xec).0);
}

#[test]
fn a_call_can_be_parked_and_answered_later() {
    let mut n = Node::running(1, 2);
    let parked = n.guest(CORE).unwrap();
    let other = VcpuId(1 - parked.0);
    n.exit(CORE, code::HLT, [0; 2]);
    n.receive(CORE);
    assert_eq!(n.what(parked), ThreadState::AwaitingReply { server: PLATFORM });
    assert_eq!(n.guest(CORE), Some(other), "the parked one's time is not the platform's");
    n.exit(CORE, code::CPUID, [0; 2]);
    n.write(parked, |page| page.registers.rip = 0x7777);
    let token = n.thread(parked).token.0;
    assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token), 0);
    assert_eq!(n.what(parked), ThreadState::Ready);
    assert_eq!(n.serves(CORE), Some(other));
    let stale = n.state.calls.stale;
    assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token), Error::Stale.status());
    n.syscall(CORE, Syscall::Receive, |r| r.rdi = token);
    assert_eq!(n.state.calls.stale, stale + 2);
    assert_eq!(n.guest(CORE), Some(parked));
    assert_eq!(n.what(other), ThreadState::AwaitingReply { server: PLATFORM }, "that parked the other");
}

#[test]
fn tokens_of_another_life_or_service_reply_to_nobody() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let old = n.thread(V0).token;
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V0), 0);
    n.syscall(CORE, Syscall::Receive, |r| r.rdi = old.0);
    n.expect_exit(CORE, V0, ExitReason::Started, [0; 3]);
    assert_eq!(n.state.calls.stale, 1);
    for token in [old, old.next().next(), Token(n.thread(V0).token.0 ^ 1 << 16), Token(u64::MAX)] {
        assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token.0), Error::Stale.status());
    }
    n.reply(CORE, V0);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [4, 0]);
    // The platform cannot answer what the memory's owner is asked.
    n.call_up(CORE, PLATFORM);
    if n.current(CORE) == Some(first(PLATFORM)) {
        let token = n.thread(V0).token.0;
        assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token), Error::Stale.status());
    }
}

#[test]
fn a_vcpu_is_stopped_in_every_state() {
    let start_again = |n: &mut Node| {
        assert_eq!((n.what(V0), n.state.activity(V0)), (ThreadState::Unused, VcpuActivity::Stopped));
        assert_eq!(n.thread(V0).deadline, NEVER);
        assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0, "twice is once");
        assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, V0), 0);
        assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V0), 0);
        n.receive(CORE);
        n.expect_exit(CORE, V0, ExitReason::Started, [0; 3]);
        n.reply(CORE, V0);
        assert_eq!(n.guest(CORE), Some(V0));
    };
    let mut n = Node::running(1, 1);
    // While the thread that stops it runs on its time.
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.state.thread(first(PLATFORM)).on, n.id(V0));
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    assert_eq!(n.state.thread(first(PLATFORM)).on, first(PLATFORM));
    assert_eq!(n.current(CORE), Some(first(PLATFORM)));
    start_again(&mut n);
    // Halted, with a deadline.
    n.halt(CORE, V0, 1 << 40);
    n.call_up(CORE, PLATFORM);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    start_again(&mut n);
    // Queued behind the platform, with a kick to tell.
    n.call_up(CORE, PLATFORM);
    assert_eq!(n.thread(V0).links.queued, Queued::Yes);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuKick, V0), 0);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    assert_eq!(n.thread(V0).links.queued, Queued::No);
    start_again(&mut n);
    // Parked.
    n.exit(CORE, code::CPUID, [0; 2]);
    n.receive(CORE);
    n.call_up(CORE, PLATFORM);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    start_again(&mut n);
    // Its fault taken by the memory's owner, who waits with the answer; then its answer is stale.
    n.exit(CORE, code::NESTED_PAGE_FAULT, [4, 0]);
    let token = n.thread(V0).token.0;
    n.receive(CORE);
    n.call_up(CORE, PLATFORM);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    n.call_up(CORE, MEMORY);
    assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token), Error::Stale.status());
    n.receive(CORE);
    start_again(&mut n);
    // Its exit not taken yet.
    n.call_up(CORE, PLATFORM);
    n.syscall(CORE, Syscall::Receive, |r| r.r13 = 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    assert!(matches!(n.what(V0), ThreadState::Sending { server: PLATFORM, .. }));
    n.step(CORE, |state, m, core| {
        state.raise(m, core, PLATFORM, 1);
        state.reschedule(m, core);
    });
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    assert_eq!(n.state.service(PLATFORM).callers, 0);
    start_again(&mut n);
}

#[test]
fn one_that_runs_on_another_core_stops_there_and_starts_only_when_it_has_left() {
    let mut n = Node::running(2, 2);
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.guest(OTHER), Some(V1));
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V1), 0);
    assert_eq!((n.m.woken.as_slice(), n.state.cores[1].extended), ([1].as_slice(), None));
    for _ in 0..3 {
        assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V1), Error::Again.status());
    }
    // It exits before the interrupt comes: nobody is told.
    let exits = n.state.vcpus[1].counters.exits;
    n.exit(OTHER, code::CPUID, [0; 2]);
    assert_eq!((n.current(OTHER), n.state.vcpus[1].counters.exits), (None, exits));
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V1), 0);
}

#[test]
fn a_miss_asks_the_memorys_owner_and_is_tried_again() {
    let mut n = Node::running(1, 1);
    let (exits, entries) = (n.state.vcpus[0].counters.exits, n.m.guest_entries);
    n.run(CORE, code::NESTED_PAGE_FAULT, [0x14, 0x12_3456], Event::exception(14, Some(2)));
    let registers = n.thread(V0).context.registers;
    n.step(CORE, |state, m, core| state.guest_exit(m, core));
    n.expect_fault(CORE, 0x12_3456, ACCESS_EXECUTE, 0);
    assert_eq!(n.state.thread(first(MEMORY)).on, n.id(V0));
    assert_eq!(n.state.activity(V0), VcpuActivity::AtExit);
    n.answer(CORE, Label(0));
    assert_eq!((n.guest(CORE), n.m.guest_entries), (Some(V0), entries + 1));
    assert_eq!(n.thread(V0).context.registers.rbx, registers.rbx);
    assert_eq!((n.state.vcpus[0].counters.exits, n.state.vcpus[0].counters.faults), (exits, 1));
}

#[test]
fn a_miss_without_an_answer_is_the_platforms() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5008]);
    n.answer(CORE, Label::new(1, 0));
    n.expect_exit(CORE, V0, ExitReason::MemoryLost, [0x5008, 0, 0]);
    n.reply(CORE, V0);
    // With the owner down, at once; a kick is not lost beside it.
    n.memory_stops(CORE);
    n.operate(MEMORY, ServiceOperation::GiveUp);
    assert_eq!(n.guest(CORE), Some(V0));
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x6008]);
    n.expect_exit(CORE, V0, ExitReason::MemoryLost, [0x6008, 0, 0]);
    n.interrupted(CORE, Event::NONE, |state, m, core| state.kick(m, core, V0));
    n.reply(CORE, V0);
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
}

#[test]
fn a_miss_waits_for_an_owner_that_restarts_or_learns_that_it_will_not() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    n.memory_stops(CORE);
    // The access is tried again, and misses again.
    assert_eq!(n.guest(CORE), Some(V0));
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    assert!(matches!(n.what(V0), ThreadState::Sending { server: MEMORY, .. }));
    n.operate(MEMORY, ServiceOperation::Reload);
    n.operate(MEMORY, ServiceOperation::Start);
    assert_eq!(n.current(CORE), Some(first(MEMORY)));
    n.receive(CORE);
    n.expect_fault(CORE, 0x5000, ACCESS_WRITE, 0);
    n.answer(CORE, Label(0));
    assert_eq!(n.guest(CORE), Some(V0));
    n.memory_stops(CORE);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x7000]);
    assert!(matches!(n.what(V0), ThreadState::Sending { server: MEMORY, .. }));
    n.operate(MEMORY, ServiceOperation::GiveUp);
    assert_eq!(n.guest(CORE), Some(V0));
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x7000]);
    n.expect_exit(CORE, V0, ExitReason::MemoryLost, [0x7000, 0, 0]);
}

#[test]
fn a_platform_that_restarts_finds_its_vcpus_stopped() {
    let mut n = Node::running(2, 4);
    // One is at its exit, one runs on the other core, two are queued or halted.
    n.halt(CORE, n.guest(CORE).unwrap(), NEVER);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.interrupted(CORE, Event::NONE, |state, m, core| state.exception(m, core, 6, 0, 0));
    assert_eq!(n.state.service(PLATFORM).state, ServiceState::Stopped);
    for vcpu in (0..4).map(VcpuId) {
        assert_eq!(n.what(vcpu), ThreadState::Unused);
    }
    assert_eq!(n.m.woken, [1]);
    n.wake();
    assert_eq!((n.current(OTHER), n.state.cores[1].extended), (None, None));
    n.operate(PLATFORM, ServiceOperation::Reload);
    n.operate(PLATFORM, ServiceOperation::Start);
    assert_eq!(n.current(CORE), Some(first(PLATFORM)));
    let vcpu = VcpuId(2);
    let old = n.guest_handle(CORE) & 0xffff;
    let stale = n.syscall(CORE, Syscall::VcpuStart, |r| (r.rdi, r.rsi) = (old, 2));
    assert_eq!(stale, Error::Restarted.status());
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, vcpu), 0);
    n.receive(CORE);
    n.expect_exit(CORE, vcpu, ExitReason::Started, [0; 3]);
}

#[test]
fn a_miss_in_the_window_is_tried_again_and_elsewhere_it_is_a_fault() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let registers = *n.registers(first(PLATFORM));
    let miss = |n: &mut Node, error_code, address| {
        n.step(CORE, |state, m, core| state.exception(m, core, 14, error_code, address));
    };
    miss(&mut n, 6, WINDOW_BASE + 0x8123);
    n.expect_fault(CORE, 0x8123, ACCESS_WRITE, FAULT_OF_WINDOW);
    assert_eq!(n.state.thread(first(MEMORY)).on, n.id(V0), "a chain of two lent contexts");
    n.answer(CORE, Label(0));
    assert_eq!(n.current(CORE), Some(first(PLATFORM)));
    assert_eq!((n.registers(first(PLATFORM)).rax, n.registers(first(PLATFORM)).rsi), (registers.rax, registers.rsi));
    assert_eq!(n.state.vcpus[0].counters.faults, 0);
    // The owner restarts: the same.
    miss(&mut n, 4, WINDOW_BASE);
    n.expect_fault(CORE, 0, 0, FAULT_OF_WINDOW);
    n.memory_stops(CORE);
    assert_eq!((n.current(CORE), n.registers(first(PLATFORM)).rsi), (Some(first(PLATFORM)), registers.rsi));
    n.operate(MEMORY, ServiceOperation::Reload);
    n.operate(MEMORY, ServiceOperation::Start);
    n.receive(CORE);
    n.reply(CORE, V0);
    // Refused: the service faults there.
    n.exit(CORE, code::CPUID, [0; 2]);
    miss(&mut n, 4, WINDOW_BASE + 0x9000);
    n.answer(CORE, Label::new(1, 0));
    let report = n.state.service(PLATFORM).report.unwrap();
    assert_eq!((report.cause, report.address), (FaultCause::PageFault as u64, WINDOW_BASE + 0x9000));
    assert_eq!(n.what(V0), ThreadState::Unused);
}

#[test]
fn what_is_no_miss_in_the_window_is_a_fault_of_the_service() {
    let faults = |who: ServiceId, vector, error_code, address| {
        let mut n = Node::running(1, 1);
        n.call_up(CORE, who);
        assert_eq!(n.current(CORE), Some(first(who)));
        n.step(CORE, |state, m, core| state.exception(m, core, vector, error_code, address));
        n.state.service(who).state == ServiceState::Stopped
    };
    let end = WINDOW_BASE + PAGES * 4096;
    assert!(!faults(PLATFORM, 14, 4, end - 1));
    assert!(faults(PLATFORM, 14, 4, end));
    assert!(faults(PLATFORM, 14, 4, WINDOW_BASE - 1));
    assert!(faults(PLATFORM, 14, 4, u64::MAX));
    assert!(faults(PLATFORM, 13, 4, WINDOW_BASE));
    assert!(faults(PLACEMENT, 14, 4, WINDOW_BASE));
    assert!(faults(MEMORY, 14, 4, WINDOW_BASE));
    // A fetch: nothing in the window can be executed, whatever the answer.
    assert!(faults(PLATFORM, 14, 0x15, WINDOW_BASE));
}

#[test]
fn a_window_miss_with_the_owner_down_ends_the_platform() {
    let mut n = Node::running(1, 1);
    n.memory_stops(CORE);
    n.operate(MEMORY, ServiceOperation::GiveUp);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.step(CORE, |state, m, core| state.exception(m, core, 14, 6, WINDOW_BASE + 8));
    let report = n.state.service(PLATFORM).report.unwrap();
    assert_eq!((report.cause, report.address), (FaultCause::PageFault as u64, WINDOW_BASE + 8));
    assert_eq!((n.what(V0), n.current(CORE)), (ThreadState::Unused, None));
}

/// The placement service, current on `by`, moves a vCPU.
fn place(n: &mut Node, by: CoreId, vcpu: VcpuId, home: CoreId) -> u64 {
    if n.current(by) != Some(first(PLACEMENT)) {
        n.call_up(by, PLACEMENT);
    }
    assert_eq!(n.current(by), Some(first(PLACEMENT)));
    let guest = n.guest_handle(by);
    n.syscall(by, Syscall::VcpuPlace, |r| (r.rdi, r.rsi, r.rdx) = (guest, u64::from(vcpu.0), home.0.into()))
}

#[test]
fn a_vcpu_is_placed_whatever_it_does() {
    // The placement service's home is the other core.
    let mut n = Node::running(2, 2);
    assert_eq!((n.guest(CORE), n.guest(OTHER)), (Some(V0), Some(V1)));
    // Queued there: it goes on here at once, if here is free.
    n.halt(CORE, V0, NEVER);
    assert_eq!(place(&mut n, OTHER, V1, CORE), 0);
    n.wake();
    assert_eq!((n.guest(CORE), n.guest(OTHER)), (Some(V1), None));
    // Running here: it leaves when this core looks.
    assert_eq!(place(&mut n, OTHER, V1, OTHER), 0);
    assert_eq!(n.m.woken, [0]);
    assert_eq!(n.guest(CORE), Some(V1));
    n.wake();
    assert_eq!((n.guest(CORE), n.thread(V1).links.queued), (None, Queued::Yes));
    // Halted: it wakes there.
    assert_eq!(place(&mut n, OTHER, V0, OTHER), 0);
    n.step(CORE, |state, m, core| state.kick(m, core, V0));
    assert_eq!(n.thread(V0).links.queued, Queued::Yes);
    n.receive(OTHER);
    assert_eq!(n.guest(OTHER), Some(V1));
    // At its exit, while the platform's thread runs on its time: that moves along.
    n.exit(OTHER, code::CPUID, [0; 2]);
    assert_eq!(n.serves(OTHER), Some(V1));
    assert_eq!(place(&mut n, OTHER, V1, CORE), 0);
    n.wake();
    assert_eq!(n.serves(CORE), Some(V1));
    n.reply(CORE, V1);
    assert_eq!(n.guest(CORE), Some(V1));
    assert_eq!(place(&mut n, OTHER, V1, CORE), 0, "where it is already");
    for (vcpu, home) in [(V0, CoreId(2)), (VcpuId(2), CORE)] {
        assert_eq!(place(&mut n, OTHER, vcpu, home), Error::NoSuchItem.status());
    }
}

#[test]
fn what_stays_in_a_core_is_saved_when_others_run_there_and_follows_a_move() {
    let mut n = Node::running(1, 2);
    let (one, other) = (n.guest(CORE).unwrap(), VcpuId(1 - n.guest(CORE).unwrap().0));
    // Exits and replies alone save nothing: only services run in between.
    n.exit(CORE, code::CPUID, [0; 2]);
    let left = n.m.breakpoints[0].0;
    assert_ne!(n.state.vcpus[one.index()].extended.breakpoints, left);
    assert_eq!(n.state.cores[0].extended, Some(one));
    n.reply(CORE, one);
    // A turn of the other's: the driver checks that each finds its own.
    for _ in 0..4 {
        n.m.now += 20_000;
        let here = n.guest(CORE).unwrap();
        n.timer(CORE);
        assert_ne!(n.guest(CORE), Some(here));
    }
    assert_eq!(n.guest(CORE), Some(one));
    n.exit(CORE, code::CPUID, [0; 2]);
    n.receive(CORE);
    assert_eq!(n.guest(CORE), Some(other));
    n.halt(CORE, other, NEVER);
    assert_eq!((n.current(CORE), n.state.cores[0].extended), (None, None), "saved before the core idles");
}

#[test]
fn a_service_that_goes_on_by_itself_leaves_no_vcpus_state_in_the_core() {
    let mut n = Node::running(2, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let left = n.m.breakpoints[0].0;
    // The platform's thread replies and goes on here. The vCPU, queued here, is placed elsewhere and runs there: with
    // what it left here.
    let token = n.thread(V0).token.0;
    assert_eq!(n.syscall(CORE, Syscall::Reply, |r| r.rdi = token), 0);
    assert_eq!(n.current(CORE), Some(first(PLATFORM)));
    assert_eq!((n.state.cores[0].extended, n.state.vcpus[0].extended.breakpoints), (None, left));
    assert_eq!(place(&mut n, OTHER, V0, OTHER), 0);
    n.receive(OTHER);
    assert_eq!(n.guest(OTHER), Some(V0));
}

#[test]
fn a_vcpu_that_another_core_makes_ready_waits_for_the_core_that_has_its_state() {
    let mut n = Node::running(2, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    let second = n.second_thread();
    let token = n.thread(V0).token.0;
    // It is placed on the other core while the first thread serves it on its time here. Before this core looks, the
    // second thread, on the other core, replies.
    let id = n.id(V0);
    n.state.thread_mut(id).core = OTHER;
    assert_eq!(n.current(OTHER), Some(second));
    assert_eq!(n.syscall(OTHER, Syscall::Reply, |r| r.rdi = token), 0);
    n.receive(OTHER);
    assert_eq!(n.current(OTHER), None, "it does not run without what it left");
    n.wake();
    n.receive(CORE);
    assert_eq!(n.guest(CORE), Some(V0));
}

#[test]
fn a_new_xcr0_and_a_reset_are_loaded_at_the_next_entry() {
    let mut n = Node::running(1, 1);
    for (xcr0, reset_fpu) in [(7, 0), (0xe7, 1), (0xe7, 0), (6, 0), (3, 1)] {
        n.exit(CORE, code::XSETBV, [0; 2]);
        let id = n.id(V0);
        n.state.thread_mut(id).context.fpu.0[0] = 0x55;
        n.write(V0, |page| {
            (page.system.xcr0, page.system.reset_fpu) = (xcr0, reset_fpu);
            page.control.dirty = DIRTY_SYSTEM;
        });
        n.reply(CORE, V0);
        let loaded = if xcr0 == 6 { 1 } else { xcr0 };
        assert_eq!(n.m.breakpoints[0].1, loaded);
        let fpu = n.thread(V0).context.fpu.0[0];
        assert_eq!(fpu, if reset_fpu == 1 { 0x7f } else { 0x55 });
        assert_eq!(n.state.vcpus[0].extended.xcr0, loaded);
    }
}

#[test]
fn a_reset_by_a_reply_from_another_core_is_not_undone() {
    let mut n = Node::running(2, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.second_thread();
    n.write(V0, |page| {
        (page.system.xcr0, page.system.reset_fpu, page.control.dirty) = (7, 1, DIRTY_SYSTEM);
    });
    let token = n.thread(V0).token.0;
    assert_eq!(n.syscall(OTHER, Syscall::Reply, |r| r.rdi = token), 0);
    n.receive(CORE);
    assert_eq!((n.guest(CORE), n.m.breakpoints[0]), (Some(V0), ([0; 4], 7)));
    // Only XCR0 changes.
    n.exit(CORE, code::CPUID, [0; 2]);
    let left = n.m.breakpoints[0].0;
    n.write(V0, |page| {
        (page.system.xcr0, page.system.reset_fpu, page.control.dirty) = (3, 0, DIRTY_SYSTEM);
    });
    let token = n.thread(V0).token.0;
    assert_eq!(n.syscall(OTHER, Syscall::Reply, |r| r.rdi = token), 0);
    n.wake();
    n.receive(CORE);
    assert_eq!((n.guest(CORE), n.m.breakpoints[0]), (Some(V0), (left, 3)));
}

#[test]
fn translations_do_not_outlive_a_run_elsewhere_or_a_former_life() {
    let mut n = Node::running(2, 1);
    // There and back: the driver checks that each entry flushes what a run on the other core made wrong.
    for _ in 0..3 {
        assert_eq!(place(&mut n, OTHER, V0, OTHER), 0);
        n.receive(OTHER);
        n.wake();
        assert_eq!(n.guest(OTHER), Some(V0));
        assert_eq!(place(&mut n, OTHER, V0, CORE), 0);
        n.receive(OTHER);
        n.wake();
        assert_eq!(n.guest(CORE), Some(V0));
    }
    n.exit(CORE, code::CPUID, [0; 2]);
    n.reply(CORE, V0);
    assert_eq!(n.state.vcpus[0].hardware.vmcb.control.tlb_control, 0, "an exit alone flushes nothing");
    n.exit(CORE, code::CPUID, [0; 2]);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStop, V0), 0);
    assert_eq!(n.vcpu_call(CORE, Syscall::VcpuStart, V0), 0);
    n.receive(CORE);
    n.reply(CORE, V0);
    assert_eq!(n.guest(CORE), Some(V0));
}

#[test]
fn two_vcpus_share_a_core_fairly_and_no_budget_ends_one() {
    let mut n = Node::running(1, 2);
    let budget = n.state.service(PLATFORM).budget;
    let turn = n.state.turn;
    for _ in 0..4 * budget / turn {
        assert!(n.m.timer <= n.m.now + turn, "a turn ends");
        n.m.now += turn;
        n.timer(CORE);
        assert!(n.guest(CORE).is_some());
    }
    let [one, other] = [V0, V1].map(|vcpu| n.thread(vcpu).run_time);
    assert!(one.abs_diff(other) <= 2 * (turn + 200), "{one} and {other}");
    let steal = n.state.vcpus[0].counters.steal;
    assert!(steal.abs_diff(other) <= 2 * (turn + 200), "{steal} and {other}");
    assert_eq!(n.state.service(PLATFORM).state, ServiceState::Running);
    // A loop of pauses gives the other its turn.
    let here = n.guest(CORE);
    n.exit(CORE, code::PAUSE, [0; 2]);
    assert_ne!(n.guest(CORE), here);
}

#[test]
fn what_the_kernel_finishes_itself_is_told_to_nobody() {
    let mut n = Node::running(1, 1);
    let exits = n.state.vcpus[0].counters.exits;
    for exit_code in [code::INTR, code::NMI, code::SMI, code::INIT, code::IRET, code::PAUSE] {
        n.exit(CORE, exit_code, [0; 2]);
        assert_eq!(n.guest(CORE), Some(V0));
    }
    assert_eq!(n.m.machine_checks, 0);
    n.exit(CORE, code::EXCEPTION + 18, [0; 2]);
    assert_eq!(n.m.machine_checks, 1);
    assert_eq!(n.state.vcpus[0].counters.exits, exits);
}

#[test]
fn an_nmi_window_that_is_open_is_told_at_once() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.write(V0, |page| (page.control.window, page.control.activity) = (WINDOW_NMI, HALT));
    n.reply(CORE, V0);
    n.expect_exit(CORE, V0, ExitReason::NmiWindow, [0; 3]);
    n.write(V0, |page| (page.control.window, page.control.blocked) = (WINDOW_NMI, BLOCKED_BY_NMI));
    n.reply(CORE, V0);
    assert_eq!(n.guest(CORE), Some(V0), "not while a handler runs");
}

#[test]
fn a_page_that_changes_while_it_is_read_halts_nothing_that_runs() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.write(V0, |page| page.control.activity = HALT);
    let activity = core::mem::offset_of!(ipc::vcpu::VcpuPage, control)
        + core::mem::offset_of!(EntryControl, activity);
    let at = PhysAddr(n.state.vcpus[0].page.0 + activity as u64);
    // Another thread of the platform's sets the bit between the kernel's two looks.
    n.m.before_change = Some((at, 0));
    n.reply(CORE, V0);
    n.m.before_change = None;
    assert_eq!((n.what(V0), n.current(CORE)), (ThreadState::Halted, None));
    n.step(CORE, |state, m, core| state.kick(m, core, V0));
    n.step(CORE, |state, m, core| state.wake_up(m, core));
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
}

#[test]
fn only_the_one_that_has_the_part_may_act_it() {
    let platform = [Syscall::VcpuStart, Syscall::VcpuStop, Syscall::VcpuKick, Syscall::VcpuFetch];
    let mut n = Node::running(1, 1);
    for service in [MEMORY, PLATFORM, PLACEMENT] {
        n.call_up(CORE, service);
        assert_eq!(n.current(CORE), Some(first(service)));
        for call in platform.into_iter().chain([Syscall::VcpuPlace, Syscall::GuestMap]) {
            let owner = match call {
                Syscall::VcpuPlace => PLACEMENT,
                Syscall::GuestMap => MEMORY,
                _ => PLATFORM,
            };
            let status = n.vcpu_call(CORE, call, VcpuId(9));
            let expected = match (service == owner, call) {
                (true, Syscall::GuestMap) => Error::Malformed,
                (true, _) => Error::NoSuchItem,
                (false, _) => Error::Refused,
            };
            assert_eq!(status, expected.status(), "{call:?} by {service:?}");
        }
        let wrong = handle(&n.state, service, crate::testing::PORT_SLOT);
        let status = n.syscall(CORE, Syscall::VcpuKick, |r| r.rdi = wrong);
        assert_eq!(status, Error::WrongKind.status());
        n.receive(CORE);
    }
    assert_eq!(n.guest(CORE), Some(V0));
}

#[test]
fn the_counters_tell_what_a_vcpu_does() {
    let mut n = Node::running(2, 2);
    n.halt(OTHER, V1, NEVER);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [4, 0]);
    let now = n.m.now;
    let mut inspect = |item, index| n.state.inspect(now, CORE, item, index);
    let [time, exits, faults, state] = inspect(Inspect::Vcpu, 0).unwrap();
    assert!(time > 0);
    assert_eq!((exits, faults, state), (1, 1, (VcpuActivity::AtExit as u64) << 16));
    let [_, exits, _, state] = inspect(Inspect::Vcpu, 1).unwrap();
    assert_eq!((exits, state), (2, 1 | (VcpuActivity::Halted as u64) << 16 | 1 << 32));
    assert_eq!(inspect(Inspect::VcpuTime, 1).unwrap()[1..], [0, 1, 0]);
    assert_eq!(inspect(Inspect::Vcpu, 2), Err(Error::NoSuchItem));
    let _: Vec<GuestPhysAddr> = Vec::new();
    assert_eq!(n.state.vcpus[1].pending, Pending::Nothing);
}
