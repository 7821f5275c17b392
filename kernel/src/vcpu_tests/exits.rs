//! What an exit tells, what a reply loads, kicks, halts and deadlines.

use super::*;

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
    assert_eq!(n.page(V0).registers.rsi, 0x9_0000);
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
    // XCR0 is the core's, which the guest may have set without an exit.
    for xcr0 in [7, 3] {
        n.m.breakpoints[0].1 = xcr0;
        assert_eq!(n.vcpu_call(CORE, Syscall::VcpuFetch, at), 0);
        assert_eq!(n.page(at).system.xcr0, xcr0);
    }
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
    // It comes first: the other one's turn is over.
    n.expect_exit(CORE, queued, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, queued);
    let (running, queued) = (queued, running);
    assert_eq!((n.guest(CORE), n.thread(queued).links.queued), (Some(running), Queued::Yes));
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 0x5000]);
    n.expect_fault(CORE, 0x5000, ACCESS_WRITE, u64::from(running.0));
    n.interrupted(CORE, Event::NONE, |state, m, core| state.kick(m, core, running));
    n.answer(CORE, Label(0));
    n.expect_exit(CORE, running, ExitReason::Kicked, [0; 3]);
    n.reply(CORE, running);
    assert_eq!(n.guest(CORE), Some(running));
    n.m.now += 20_000;
    n.timer(CORE);
    assert_eq!(n.guest(CORE), Some(queued));
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
    assert_eq!(n.state.vcpus[0].hardware.event(), Event::interrupt(0xec));
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
    for (event, blocked) in [(Event::exception(14, Some(2)), 0), (Event::NONE, BLOCKED_BY_SHADOW)] {
        n.exit(CORE, code::CPUID, [0; 2]);
        n.write(V0, |page| {
            (page.control.window, page.control.event, page.control.blocked) = (WINDOW_NMI, event, blocked);
        });
        n.reply(CORE, V0);
        assert_eq!(n.guest(CORE), Some(V0), "what goes before an NMI is to be delivered, not told again");
    }
}

#[test]
fn a_page_that_changes_while_it_is_read_halts_nothing_that_runs() {
    let mut n = Node::running(1, 1);
    n.exit(CORE, code::CPUID, [0; 2]);
    n.write(V0, |page| page.control.activity = HALT);
    let activity =
        core::mem::offset_of!(ipc::vcpu::VcpuPage, control) + core::mem::offset_of!(EntryControl, activity);
    let at = PhysAddr(n.state.vcpus[0].page.0 + activity as u64);
    // Another thread of the platform's sets the bit between the kernel's two looks.
    n.m.before_change = Some((at, 0));
    n.reply(CORE, V0);
    n.m.before_change = None;
    assert_eq!((n.what(V0), n.current(CORE)), (ThreadState::Halted, None));
    n.step(CORE, |state, m, core| {
        state.kick(m, core, V0);
        state.reschedule(m, core);
    });
    n.expect_exit(CORE, V0, ExitReason::Kicked, [0; 3]);
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
    assert_eq!(n.state.vcpus[1].pending, Pending::Nothing);
}

#[test]
fn what_an_instruction_did_to_registers_alone_is_taken_over_alone() {
    let mut n = Node::running(1, 1);
    // The entry before: a deadline, and an interrupt that waits in the shadow of an STI.
    n.exit(CORE, code::CPUID, [0; 2]);
    let due = n.m.now + 1_000;
    n.write(V0, |page| (page.control.event, page.control.deadline) = (Event::interrupt(0x40), due));
    n.reply(CORE, V0);
    n.state.vcpus[0].hardware.vmcb.control.interrupt_shadow = 1;
    n.exit(CORE, code::CPUID, [0; 2]);
    let told = n.page(V0).control;
    n.write(V0, |page| {
        page.registers.rip += 2;
        (page.registers.rax, page.registers.rbx) = (7, 8);
        // None of this counts.
        page.control =
            EntryControl { activity: HALT, dirty: DIRTY_SYSTEM, deadline: 0, ..EntryControl::default() };
    });
    let token = n.thread(V0).token.0;
    let page = n.page(V0);
    n.syscall(CORE, Syscall::Receive, |r| (r.rdi, r.rsi) = (token, Label::new(RESUME_AS_BEFORE, 0).0));
    assert_eq!(n.guest(CORE), Some(V0));
    let hardware = &n.state.vcpus[0].hardware;
    assert_eq!((hardware.vmcb.save.rip, hardware.vmcb.save.rax), (page.registers.rip, 7));
    assert_eq!((hardware.event(), hardware.vmcb.control.interrupt_shadow), (told.event, 0));
    assert_eq!(n.thread(V0).deadline, due);
}
