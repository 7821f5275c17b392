//! From a command, a timer or a device to the vCPU that takes the interrupt.

use ipc::abi::NEVER;
use ipc::vcpu::{
    ACCESS_DELIVERY, ACCESS_WRITE, BLOCKED_BY_NMI, BLOCKED_BY_SHADOW, Event, HALT, WINDOW_INTERRUPT,
    WINDOW_NMI,
};

use super::{Disposition, EOI, ExitReason, FIXED, Guest, NMI, RFLAGS_IF, START, TSC_HZ, Walks};

const HLT: &[u8] = &[0xf4];

#[test]
fn an_interrupt_wakes_a_halted_vcpu() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, RFLAGS_IF);
    assert_eq!(guest.execute(1, ExitReason::Halt, HLT), 1);
    let entered = guest.node.entered[1];
    assert_eq!((entered.activity, entered.deadline, entered.event), (HALT, NEVER, Event::NONE));
    let entered = guest.kicked(1);
    assert_eq!(entered.activity, HALT, "nothing came");

    guest.send(0, 1, FIXED | 0x40);
    assert_eq!(guest.node.kicks, [1]);
    let entered = guest.kicked(1);
    assert_eq!((entered.activity, entered.event, entered.window), (0, Event::interrupt(0x40), 0));
    assert_eq!(guest.kicked(1).event, Event::NONE, "once");
}

#[test]
fn the_end_of_an_interrupt_lets_the_next_in() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, RFLAGS_IF);
    guest.send(0, 1, FIXED | 0x42);
    guest.send(0, 1, FIXED | 0x41);
    guest.send(0, 1, FIXED | 0x41);
    assert_eq!(guest.node.kicks, [1, 1], "one that is pending already tells nobody");
    assert_eq!(guest.kicked(1).event, Event::interrupt(0x42));
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.window), (Event::NONE, 0), "of the same class");
    guest.write_msr(1, EOI, 0);
    assert_eq!(guest.node.entered[1].event, Event::interrupt(0x41));
    guest.write_msr(1, EOI, 0);
    assert_eq!(guest.node.entered[1].event, Event::NONE);
}

#[test]
fn a_window_is_asked_for_while_the_vcpu_takes_none() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, 0);
    guest.send(0, 1, FIXED | 0x40);
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.window), (Event::NONE, WINDOW_INTERRUPT));
    guest.set_rflags(1, RFLAGS_IF);
    guest.node.pages[1].control.blocked = BLOCKED_BY_SHADOW;
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.window), (Event::NONE, WINDOW_INTERRUPT));
    guest.node.pages[1].control.blocked = 0;
    guest.exit(1, ExitReason::InterruptWindow, [0; 3]);
    let entered = guest.node.entered[1];
    assert_eq!((entered.event, entered.window), (Event::interrupt(0x40), 0));
}

#[test]
fn an_interrupted_delivery_comes_first() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, RFLAGS_IF);
    guest.send(0, 1, FIXED | 0x40);
    guest.send(0, 1, NMI);
    let event = Event::exception(14, Some(2));
    guest.node.pages[1].control.event = event;
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.window), (event, WINDOW_INTERRUPT | WINDOW_NMI));
    assert_eq!(entered.deadline, START + TSC_HZ / 20_000, "50 microseconds");
    assert_eq!(guest.kicked(1).event, Event::nmi(), "then the NMI");
    assert_eq!(guest.kicked(1).event, Event::interrupt(0x40));
}

/// The first vCPU has interrupts off, and its exit tells of an interrupt that waits, as in the handler of the exception
/// before it.
fn with_one_that_waits() -> Guest {
    let mut guest = Guest::running(1, Walks::Nested);
    guest.set_rflags(0, 0);
    guest.node.pages[0].control.event = Event::interrupt(0x40);
    guest
}

#[test]
fn an_exception_goes_before_an_interrupt_that_waits() {
    let mut guest = with_one_that_waits();
    guest.node.pages[0].registers.rcx = 0xdead_beef;
    assert_eq!(guest.execute(0, ExitReason::ReadMsr, &[0x0f, 0x32]), 0);
    assert_eq!(guest.node.entered[0].event, Event::exception(13, Some(0)));
}

#[test]
fn an_nmi_goes_before_an_interrupt_that_waits() {
    let mut guest = with_one_that_waits();
    guest.send(0, 0, NMI);
    let entered = guest.node.entered[0];
    assert_eq!((entered.event, entered.window), (Event::nmi(), 0));
}

#[test]
fn a_halt_with_interrupts_off_ends_with_an_nmi_alone() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(0, 0);
    guest.node.pages[0].control.event = Event::interrupt(0x40);
    guest.execute(0, ExitReason::Halt, HLT);
    let entered = guest.node.entered[0];
    assert_eq!((entered.activity, entered.event), (HALT, Event::interrupt(0x40)));
    guest.send(1, 0, NMI);
    guest.node.pages[0].control.event = Event::interrupt(0x40);
    let entered = guest.kicked(0);
    assert_eq!((entered.activity, entered.event), (0, Event::nmi()));
}

#[test]
fn a_device_is_reached_while_an_interrupt_waits_and_not_from_its_delivery() {
    let mut guest = with_one_that_waits();
    guest.load(0, &[0x8b, 0x03]);
    guest.node.pages[0].registers.rbx = 0xfec0_0000;
    assert_eq!(guest.exit(0, ExitReason::Memory, [0xfec0_0000, 0, 0]), Disposition::Resume);
    assert_eq!(guest.node.entered[0].event, Event::interrupt(0x40));
    // It was on its way, and its delivery missed the stack.
    let access = ACCESS_WRITE | ACCESS_DELIVERY;
    assert_eq!(guest.exit(0, ExitReason::Memory, [0xfec0_0000, access, 0]), Disposition::Ended);
}

#[test]
fn an_nmi_waits_for_the_handler_of_another() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.send(0, 1, NMI);
    assert_eq!(guest.node.kicks, [1]);
    guest.node.pages[1].control.blocked = BLOCKED_BY_NMI;
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.window), (Event::NONE, WINDOW_NMI));
    assert_eq!(entered.deadline, START + TSC_HZ / 20_000, "50 microseconds");
    guest.node.pages[1].control.blocked = 0;
    guest.exit(1, ExitReason::NmiWindow, [0; 3]);
    assert_eq!(guest.node.entered[1].event, Event::nmi(), "whatever IF is");
    assert_eq!(guest.kicked(1).event, Event::NONE);
    // It wakes one that is halted for ever.
    guest.execute(1, ExitReason::Halt, HLT);
    assert_eq!(guest.node.entered[1].activity, HALT);
    guest.send(0, 1, NMI);
    let entered = guest.kicked(1);
    assert_eq!((entered.event, entered.activity), (Event::nmi(), 0));
}

#[test]
fn the_timer_expires_in_the_time_of_the_vcpu() {
    let mut guest = Guest::running(1, Walks::Nested);
    guest.set_rflags(0, RFLAGS_IF);
    guest.write_msr(0, 0x832, 2 << 17 | 0x30);
    assert_eq!(guest.node.entered[0].deadline, NEVER);
    guest.write_msr(0, 0x6e0, 70_000);
    assert_eq!(guest.node.entered[0].deadline, START + 70_000, "the node's ticks");
    assert_eq!(guest.execute(0, ExitReason::Cpuid, &[0x0f, 0xa2]), 2);
    assert_eq!(guest.node.entered[0].deadline, START + 70_000, "as before");
    // Its own TSC is set ahead: the deadline is nearer.
    guest.write_msr(0, 0x10, 20_000);
    assert_eq!(guest.node.entered[0].deadline, START + 50_000);
    guest.execute(0, ExitReason::Halt, HLT);
    let entered = guest.node.entered[0];
    assert_eq!((entered.activity, entered.deadline), (HALT, START + 50_000));
    guest.node.now = START + 49_999;
    assert_eq!(guest.kicked(0).activity, HALT);
    guest.node.now += 1;
    let entered = guest.kicked(0);
    assert_eq!((entered.event, entered.activity, entered.deadline), (Event::interrupt(0x30), 0, NEVER));
    // One that has passed already.
    guest.write_msr(0, EOI, 0);
    guest.write_msr(0, 0x6e0, 1);
    assert_eq!(guest.node.entered[0].event, Event::interrupt(0x30));
}

/// Writes a register of the I/O APIC by `MOV [RBX], EAX`.
fn write_io_apic(guest: &mut Guest, register: u64, value: u64) {
    for (at, value) in [(0xfec0_0000, register), (0xfec0_0010, value)] {
        let rip = guest.load(0, &[0x89, 0x03]);
        let registers = &mut guest.node.pages[0].registers;
        (registers.rbx, registers.rax) = (at, value);
        assert_eq!(guest.exit(0, ExitReason::Memory, [at, ACCESS_WRITE, 0]), Disposition::Resume);
        assert_eq!(guest.node.pages[0].registers.rip, rip + 2);
    }
}

#[test]
fn the_uart_interrupts_through_the_io_apic() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.set_rflags(1, RFLAGS_IF);
    write_io_apic(&mut guest, 0x19, 1 << 24);
    write_io_apic(&mut guest, 0x18, 0x34);
    // MOV EAX, [RBX] reads back what is selected last.
    guest.load(0, &[0x8b, 0x03]);
    (guest.node.pages[0].registers.rbx, guest.node.pages[0].registers.rax) = (0xfec0_0010, !0);
    guest.exit(0, ExitReason::Memory, [0xfec0_0010, 0, 0]);
    assert_eq!(guest.node.pages[0].registers.rax, 0x34);

    guest.out(0, 0x3fc, 1, 0x08);
    assert!(guest.node.kicks.is_empty());
    guest.out(0, 0x3f9, 1, 0x02);
    assert_eq!(guest.node.kicks, [1], "the transmitter is empty");
    assert_eq!(guest.kicked(1).event, Event::interrupt(0x34));
    assert_eq!(guest.input(0, 0x3fa, 1) & 0xf, 2, "which the identification says, and ends");
    guest.write_msr(1, EOI, 0);
    assert_eq!(guest.node.entered[1].event, Event::NONE, "an edge");
    guest.out(0, 0x3f8, 1, b'a'.into());
    assert_eq!(guest.node.kicks, [1, 1], "and empty again");
    assert_eq!(guest.kicked(1).event, Event::interrupt(0x34));
}

#[test]
fn a_device_that_another_vcpu_sets_brings_the_first_one() {
    let mut guest = Guest::running(2, Walks::Nested);
    assert_eq!(guest.kicked(0).deadline, NEVER);
    guest.out(1, 0x70, 1, 0x0b);
    assert!(guest.node.kicks.is_empty(), "nothing comes of it");
    // The real-time clock's periodic interrupt, 1,024 a second.
    guest.out(1, 0x71, 1, 0x42);
    assert_eq!(guest.node.kicks, [0]);
    let due = guest.kicked(0).deadline;
    assert!(due > START && due <= START + TSC_HZ / 1_024 + 1, "{due}");
    guest.out(0, 0x70, 1, 0x0b);
    assert_eq!(guest.node.kicks, [0], "it is there itself");
}
