//! Instructions that exit.

use ipc::vcpu::{ACCESS_WRITE, BLOCKED_BY_SHADOW, Event, SystemState};

use super::{Disposition, ExitReason, Guest, RFLAGS_TF, START, Walks};

const CPUID: &[u8] = &[0x0f, 0xa2];
const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];
const GENERAL_PROTECTION: Event = Event::exception(13, Some(0));

#[test]
fn cpuid_gives_the_table_and_goes_on() {
    let mut guest = Guest::running(2, Walks::Nested);
    for vcpu in [0, 1] {
        // The first is in long mode with paging, the second in real mode with a code segment. Twice: by the cache, too.
        for _ in 0..2 {
            let registers = &mut guest.node.pages[vcpu].registers;
            (registers.rax, registers.rcx, registers.rbx) = (1, 0, !0);
            guest.node.pages[vcpu].control.blocked = BLOCKED_BY_SHADOW;
            assert_eq!(guest.execute(vcpu, ExitReason::Cpuid, CPUID), 2);
            let registers = &guest.node.pages[vcpu].registers;
            assert_eq!(registers.rax, 0x0080_0f12);
            assert_eq!(registers.rbx >> 24, vcpu as u64, "the APIC's number");
            assert_eq!(guest.node.entered[vcpu].blocked, 0, "the shadow of STI has ended");
        }
    }
    // With a prefix it is longer.
    assert_eq!(guest.execute(0, ExitReason::Cpuid, &[0x48, 0x0f, 0xa2]), 3);
    // Another processor put something else there: it is executed instead.
    guest.node.pages[0].registers.rax = 0;
    assert_eq!(guest.execute(0, ExitReason::Cpuid, &[0x90; 15]), 0);
    assert_eq!(guest.node.pages[0].registers.rax, 0);
    assert!(!guest.node.entered[0].event.is_some());
    // The processor's word is taken where it gives one.
    guest.node.pages[0].instruction_length = 7;
    assert_eq!(guest.execute(0, ExitReason::Cpuid, &[0x90; 15]), 7);
}

#[test]
fn msrs_are_read_and_written_or_fault() {
    let mut guest = Guest::started(1, Walks::Nested);
    guest.node.pages[0].registers.rcx = 0x1b;
    assert_eq!(guest.execute(0, ExitReason::ReadMsr, RDMSR), 2);
    assert_eq!(guest.node.pages[0].registers.rax, 0xfee0_0d00, "the boot processor, in x2APIC mode");
    // EFER is in the system state.
    guest.write_msr(0, 0xc000_0080, 0xd01);
    assert_eq!(guest.node.hardware[0].efer, 0xd01);
    assert_eq!(guest.node.hardware[0].cr3, 0x5000, "nothing else has changed");
    guest.node.pages[0].registers.rcx = 0xc000_0080;
    guest.execute(0, ExitReason::ReadMsr, RDMSR);
    assert_eq!(guest.node.pages[0].registers.rax, 0xd01);
    // The TSC.
    guest.write_msr(0, 0x10, 5_000);
    assert_eq!(guest.node.hardware[0].tsc_offset, 5_000u64.wrapping_sub(START));

    for (reason, code) in [(ExitReason::ReadMsr, RDMSR), (ExitReason::WriteMsr, WRMSR)] {
        for register in [0xdead_beef, 0x840, 0x1234] {
            let before = guest.node.hardware[0];
            guest.node.pages[0].registers.rcx = register;
            guest.node.pages[0].registers.rax = 0x77;
            assert_eq!(guest.execute(0, reason, code), 0, "{register:#x}");
            assert_eq!(guest.node.entered[0].event, GENERAL_PROTECTION, "{register:#x}");
            assert_eq!(guest.node.pages[0].registers.rax, 0x77);
            assert_eq!(guest.node.hardware[0], before);
        }
    }
}

#[test]
fn xsetbv_takes_what_cpuid_offers() {
    let mut guest = Guest::started(1, Walks::Nested);
    let mut set = |value: u64| {
        let registers = &mut guest.node.pages[0].registers;
        (registers.rcx, registers.rax, registers.rdx) = (0, value, 0);
        let went = guest.execute(0, ExitReason::SetXcr, &[0x0f, 0x01, 0xd1]);
        (went, guest.node.entered[0].event, guest.node.hardware[0].xcr0)
    };
    assert_eq!(set(7), (3, Event::NONE, 7));
    assert_eq!(set(5), (0, GENERAL_PROTECTION, 7), "AVX without SSE");
    assert_eq!(set(0), (0, GENERAL_PROTECTION, 7));
}

#[test]
fn hypercalls_are_unknown() {
    for code in [[0x0f, 0x01, 0xd9], [0x0f, 0x01, 0xc1]] {
        let mut guest = Guest::started(1, Walks::Nested);
        assert_eq!(guest.execute(0, ExitReason::Hypercall, &code), 3);
        assert_eq!(guest.node.pages[0].registers.rax.cast_signed(), -1000);
        guest.node.pages[0].mode.cpl = 3;
        guest.load(0, &code);
        // The boot page tables are the supervisor's; the processor tells the length.
        guest.node.pages[0].instruction_length = 3;
        guest.exit(0, ExitReason::Hypercall, [0; 3]);
        assert_eq!(guest.node.pages[0].registers.rax.cast_signed(), -1);
    }
}

#[test]
fn forbidden_instructions_are_not_known() {
    let mut guest = Guest::started(1, Walks::Nested);
    assert_eq!(guest.execute(0, ExitReason::Forbidden, &[0x0f, 0x01, 0xd8]), 0);
    assert_eq!(guest.node.entered[0].event, Event::exception(6, None));
    assert_eq!(guest.execute(0, ExitReason::Caches, &[0x0f, 0x09]), 2, "WBINVD does nothing");
    assert_eq!(guest.node.entered[0].event, Event::NONE);
}

#[test]
fn a_step_ends_with_each_instruction() {
    let mut guest = Guest::running(1, Walks::Nested);
    let step = |guest: &mut Guest, act: &mut dyn FnMut(&mut Guest)| {
        guest.node.hardware[0].dr6 = 0xffff_0ff0;
        guest.set_rflags(0, RFLAGS_TF);
        act(guest);
        assert_eq!(guest.node.entered[0].event, Event::exception(1, None));
        assert_eq!(guest.node.hardware[0].dr6, 0xffff_4ff0, "BS");
    };
    step(&mut guest, &mut |guest| {
        guest.execute(0, ExitReason::Cpuid, CPUID);
    });
    step(&mut guest, &mut |guest| {
        guest.out(0, 0x80, 1, 0);
    });
    step(&mut guest, &mut |guest| {
        guest.load(0, &[0x89, 0x03]);
        guest.node.pages[0].registers.rbx = 0xfec0_0000;
        guest.exit(0, ExitReason::Memory, [0xfec0_0000, ACCESS_WRITE, 0]);
    });
    // A fault is not the end of an instruction.
    guest.node.pages[0].registers.rcx = 0xdead;
    guest.execute(0, ExitReason::ReadMsr, RDMSR);
    assert_eq!(guest.node.entered[0].event, GENERAL_PROTECTION);
}

#[test]
fn exceptions_go_to_the_guest() {
    let mut guest = Guest::started(1, Walks::Nested);
    guest.exit(0, ExitReason::Exception, [17, 0, 0]);
    assert_eq!(guest.node.entered[0].event, Event::exception(17, Some(0)));
    guest.exit(0, ExitReason::Exception, [1, 9, 0]);
    assert_eq!(guest.node.entered[0].event, Event::exception(1, None));
    guest.exit(0, ExitReason::Exception, [14, 2, 0x1234]);
    assert_eq!(guest.node.entered[0].event, Event::exception(14, Some(2)));
    assert_eq!(guest.node.hardware[0].cr2, 0x1234);
}

#[test]
fn ports_reach_devices() {
    let mut guest = Guest::started(1, Walks::Nested);
    for byte in *b"Hi" {
        assert_eq!(guest.out(0, 0x3f8, 1, 0xffff_ff00 | u64::from(byte)), Disposition::Resume);
    }
    assert_eq!(guest.node.output, b"Hi");
    assert_eq!(guest.machine.console().tail().collect::<std::vec::Vec<_>>(), b"Hi");
    guest.node.pages[0].registers.rax = 0x1122_3344_5566_7788;
    assert_eq!(guest.input(0, 0x3fd, 1), 0x1122_3344_5566_7760, "the line's status, and nothing else of RAX");
    guest.node.pages[0].registers.rax = !0;
    assert_eq!(guest.input(0, 0x1234, 2), !0, "nobody");
    assert_eq!(guest.input(0, 0x1234, 4), 0xffff_ffff, "four bytes clear the upper half");

    guest.node.console_is_full = true;
    guest.out(0, 0x3f8, 1, b'!'.into());
    assert_eq!(guest.node.output, b"Hi");
    guest.node.console_is_full = false;
    assert!(!guest.machine.console_ready(&mut guest.node));
    assert_eq!(guest.node.output, b"Hi!");

    assert!(guest.machine.input_room() >= 1);
    guest.machine.input(&mut guest.node, b"x");
    assert_eq!(guest.input(0, 0x3f8, 1) & 0xff, b'x'.into());
}

#[test]
fn the_system_state_is_fetched_before_it_is_changed() {
    let mut guest = Guest::started(1, Walks::Nested);
    guest.node.hardware[0].star = 0x1234;
    guest.exit(0, ExitReason::Exception, [14, 0, 0x5000]);
    let SystemState { star, cr2, .. } = guest.node.hardware[0];
    assert_eq!((star, cr2), (0x1234, 0x5000));
}
