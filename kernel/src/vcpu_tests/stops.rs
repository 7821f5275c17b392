//! Parked calls, stops, restarts of the platform, and who may do what.

use super::*;

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
fn only_the_one_that_has_the_part_may_act_it() {
    let platform = [Syscall::VcpuStart, Syscall::VcpuStop, Syscall::VcpuKick, Syscall::VcpuFetch];
    let mut n = Node::running(1, 1);
    for service in [MEMORY, PLATFORM, PLACEMENT] {
        n.call_up(CORE, service);
        assert_eq!(n.current(CORE), Some(first(service)));
        for call in
            platform.into_iter().chain([Syscall::VcpuPlace, Syscall::GuestMap, Syscall::GuestProgress])
        {
            let owner = match call {
                Syscall::VcpuPlace => PLACEMENT,
                Syscall::GuestMap | Syscall::GuestProgress => MEMORY,
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
