//! Moves between cores, the state that stays in a core, translations, and turns.

use super::*;

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
    n.expect_exit(OTHER, V0, ExitReason::Kicked, [0; 3]);
    n.reply(OTHER, V0);
    n.halt(OTHER, V0, NEVER);
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
    // Nor can it be placed elsewhere as long.
    n.step(OTHER, |state, m, core| {
        state.raise(m, core, PLACEMENT, 1);
        state.reschedule(m, core);
    });
    assert_eq!(place(&mut n, OTHER, V0, OTHER), Error::Again.status());
    assert_eq!(n.thread(V0).core, CORE);
    n.receive(OTHER);
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
fn a_vcpu_that_nobody_waits_behind_is_looked_at_less_often() {
    let mut n = Node::running(1, 2);
    let turn = n.state.turn;
    // The other one halts: there is nobody to share the core with.
    let (here, other) = if n.guest(CORE) == Some(V0) { (V0, V1) } else { (V1, V0) };
    n.halt(CORE, here, NEVER);
    assert_eq!(n.guest(CORE), Some(other));
    n.m.now += turn;
    n.timer(CORE);
    assert!(n.m.timer > n.m.now + turn && n.m.timer <= n.m.now + 5 * turn, "{} at {}", n.m.timer, n.m.now);
    // It comes back, and turns are what they were.
    n.step(CORE, |state, m, core| state.kick(m, core, here));
    n.step(CORE, |state, m, core| state.reschedule(m, core));
    assert!(n.m.timer <= n.m.now + turn, "{} at {}", n.m.timer, n.m.now);
}
