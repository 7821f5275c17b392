//! Misses in guest memory, by vCPUs and in the window.

use super::*;

#[test]
fn a_miss_asks_the_memorys_owner_and_is_tried_again() {
    let mut n = Node::running(1, 1);
    let (exits, entries) = (n.state.vcpus[0].counters.exits, n.m.guest_entries);
    n.run(CORE, code::NESTED_PAGE_FAULT, [0x14, 0x12_3456], Event::exception(14, Some(2)));
    let registers = n.page(V0).registers;
    n.step(CORE, |state, m, core| state.guest_exit(m, core));
    n.expect_fault(CORE, 0x12_3456, ACCESS_EXECUTE | ACCESS_DELIVERY, 0);
    assert_eq!(n.state.thread(first(MEMORY)).on, n.id(V0));
    assert_eq!(n.state.activity(V0), VcpuActivity::AtExit);
    n.answer(CORE, Label(0));
    assert_eq!((n.guest(CORE), n.m.guest_entries), (Some(V0), entries + 1));
    assert_eq!(n.page(V0).registers.rbx, registers.rbx);
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
    assert_eq!(
        (n.registers(first(PLATFORM)).rax, n.registers(first(PLATFORM)).rsi),
        (registers.rax, registers.rsi)
    );
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

#[test]
fn a_fingerprint_tells_whether_an_instruction_is_retired() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    let (_, [_, access, _, rip]) = n.message(CORE);
    // Nobody else has part in the guest.
    assert_eq!((access, rip), (ACCESS_WRITE, n.state.vcpus[0].hardware.vmcb.save.rip));
    n.answer(CORE, Label(0));
    n.state.guest.as_mut().unwrap().spans = true;
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    let (_, [_, access, ..]) = n.message(CORE);
    assert_eq!(access & 0xffff_ffff, ACCESS_WRITE);
    let progress = |n: &mut Node, vcpu| {
        let status = n.vcpu_call(CORE, Syscall::GuestProgress, vcpu);
        (status, n.registers(n.current(CORE).unwrap()).rdi)
    };
    // The memory's owner runs on its time: it is not in guest mode.
    let first = (0, access >> 32);
    assert_eq!(progress(&mut n, V0), first);
    assert_eq!(progress(&mut n, VcpuId(64)).0, Error::NoSuchItem.status());
    let save = n.state.vcpus[0].hardware.vmcb.save;
    n.state.vcpus[0].hardware.vmcb.save.rip += 3;
    assert_ne!(progress(&mut n, V0), first);
    n.state.vcpus[0].hardware.vmcb.save = save;
    n.write(V0, |page| page.registers.r15 ^= 1 << 63);
    assert_ne!(progress(&mut n, V0), first);
    n.write(V0, |page| page.registers.r15 ^= 1 << 63);
    assert_eq!(progress(&mut n, V0), first);
}
