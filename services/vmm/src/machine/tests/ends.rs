//! How a guest ends.

use ipc::vcpu::{ACCESS_DELIVERY, ACCESS_EXECUTE, ACCESS_TABLES, ACCESS_WRITE};

use super::{Disposition, End, ExitReason, Guest, RFLAGS_IF, Walks};

const HLT: &[u8] = &[0xf4];

#[test]
fn the_guest_switches_itself_off_or_resets() {
    let mut guest = Guest::started(1, Walks::Nested);
    guest.out(0, 0x604, 2, 1 << 13 | 4 << 10);
    assert!(guest.machine.end().is_none(), "another sleeping state");
    assert_eq!(guest.out(0, 0x604, 2, 1 << 13 | 5 << 10), Disposition::Ended);
    assert_eq!(guest.end(), End::PoweredOff);
    assert_eq!(guest.out(0, 0xcf9, 1, 6), Disposition::Ended);
    assert_eq!(guest.end(), End::PoweredOff, "the first reason counts");

    let mut guest = Guest::started(2, Walks::Nested);
    assert_eq!(guest.out(0, 0xcf9, 4, 6), Disposition::Resume, "PCI's");
    assert_eq!(guest.out(0, 0xcf9, 1, 6), Disposition::Ended);
    assert_eq!(guest.end(), End::Reset);
}

#[test]
fn a_crash_is_reported() {
    let crashes = [
        (ExitReason::Shutdown, [0; 3], End::TripleFault),
        (ExitReason::InvalidState, [!0, 0, 0], End::InvalidState),
        (ExitReason::TaskSwitch, [8, 0, 0], End::TaskSwitch),
        (ExitReason::Unknown, [0x99, 1, 2], End::UnknownExit([0x99, 1, 2])),
        (ExitReason::MemoryLost, [0x7000, 0, 0], End::MemoryLost(0x7000)),
    ];
    for (reason, words, end) in crashes {
        let mut guest = Guest::running(2, Walks::Nested);
        let rip = guest.load(1, &[0xde, 0xad, 0xbe, 0xef]);
        guest.node.pages[1].registers.rdi = 0x1d1;
        guest.node.hardware[1].star = 0x57a2;
        assert_eq!(guest.exit(1, reason, words), Disposition::Ended);
        let report = guest.machine.end().unwrap();
        assert_eq!((report.end, report.vcpu), (end, 1));
        assert_eq!((report.registers.rip, report.registers.rdi), (rip, 0x1d1));
        assert_eq!(report.system.star, 0x57a2, "fetched");
        assert_eq!((&report.code[..4], report.code_bytes), (&[0xde, 0xad, 0xbe, 0xef][..], 15));
        assert_eq!(guest.exit(0, ExitReason::Kicked, [0; 3]), Disposition::Ended, "all of it");
    }
    let mut guest = Guest::started(1, Walks::Nested);
    guest.machine.memory_lost(&mut guest.node);
    assert_eq!(guest.end(), End::MemoryLost(0));
}

#[test]
fn what_a_processor_itself_needs_must_be_memory() {
    let nowhere = 0xfec0_0000;
    // The last is a breakpoint's delivery, of which nothing is left but that it was one.
    for (access, end) in [
        (ACCESS_EXECUTE, End::CodeNotMemory(nowhere)),
        (ACCESS_WRITE | ACCESS_DELIVERY, End::DeliveryNotMemory(nowhere)),
        (ACCESS_WRITE | ACCESS_TABLES, End::TablesNotMemory(nowhere)),
        (ACCESS_WRITE | ACCESS_TABLES | ACCESS_DELIVERY, End::TablesNotMemory(nowhere)),
        (ACCESS_DELIVERY, End::DeliveryNotMemory(nowhere)),
    ] {
        let mut guest = Guest::running(1, Walks::Nested);
        guest.load(0, &[0xcc]);
        assert_eq!(guest.exit(0, ExitReason::Memory, [nowhere, access, 0]), Disposition::Ended);
        assert_eq!(guest.end(), end);
    }
}

#[test]
fn a_guest_that_nothing_can_wake_is_over() {
    let mut guest = Guest::running(3, Walks::Nested);
    guest.set_rflags(0, 0);
    guest.set_rflags(1, 0);
    guest.set_rflags(2, RFLAGS_IF);
    guest.execute(0, ExitReason::Halt, HLT);
    guest.execute(1, ExitReason::Halt, HLT);
    guest.execute(2, ExitReason::Halt, HLT);
    assert!(guest.machine.end().is_none(), "the last takes interrupts");
    guest.send(2, 0, super::FIXED | 0x40);
    assert_eq!(guest.kicked(0).activity, ipc::vcpu::HALT, "and the first does not");
    guest.set_rflags(2, 0);
    guest.load(2, HLT);
    assert_eq!(guest.exit(2, ExitReason::Halt, [0; 3]), Disposition::Ended);
    assert_eq!(guest.end(), End::HaltedForEver);
    assert_eq!(guest.machine.end().unwrap().vcpu, 2);

    // The others wait for their start.
    let mut guest = Guest::started(4, Walks::Nested);
    guest.set_rflags(0, 0);
    guest.load(0, HLT);
    assert_eq!(guest.exit(0, ExitReason::Halt, [0; 3]), Disposition::Ended);
    assert_eq!(guest.end(), End::HaltedForEver);
}

#[test]
fn a_vcpu_that_is_about_to_start_keeps_the_guest_alive() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, 0);
    guest.execute(1, ExitReason::Halt, HLT);
    guest.send(0, 1, super::INIT);
    guest.send(0, 1, super::START_UP | 0x20);
    guest.set_rflags(0, 0);
    guest.load(0, HLT);
    assert_eq!(guest.exit(0, ExitReason::Halt, [0; 3]), Disposition::Resume);
    assert_eq!(guest.exit(1, ExitReason::Kicked, [0; 3]), Disposition::Resume);
    assert_eq!(guest.node.hardware[1].cs.base, 0x2_0000);
}
