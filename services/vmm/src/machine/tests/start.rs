//! How vCPUs begin: at the kernel's entry, and by INIT and start-up interrupts.

use ipc::vcpu::{Event, INTERCEPT_WALKS, PRIVATE_START};

use super::{ExitReason, Guest, INIT, MIB, START_UP, Walks};
use crate::boot::layout;
use crate::machine::Disposition;

#[test]
fn the_first_vcpu_enters_the_kernel_and_the_others_wait() {
    let mut guest = Guest::made(4, Walks::Nested);
    assert_eq!(guest.exit(0, ExitReason::Started, [0; 3]), Disposition::Resume);
    let registers = guest.node.pages[0].registers;
    assert_eq!(registers.rip, 16 * MIB as u64 + 0x200, "the 64-bit entry");
    assert_eq!((registers.rsi, registers.rflags), (layout::BOOT_PARAMS.0, 2));
    let system = guest.node.hardware[0];
    assert_eq!((system.cr3, system.efer), (layout::PAGE_TABLES.0, 0x500));
    assert_eq!(system.tsc_offset, super::START.wrapping_neg(), "its TSC begins with it");
    for vcpu in 1..4 {
        assert_eq!(guest.exit(vcpu, ExitReason::Started, [0; 3]), Disposition::Park);
    }
    assert!(guest.node.unparked.is_empty() && guest.machine.end().is_none());
}

#[test]
fn init_and_start_up_unpark_a_vcpu_in_real_mode() {
    let mut guest = Guest::started(3, Walks::Nested);
    guest.send(0, 1, INIT);
    assert!(guest.node.unparked.is_empty(), "INIT alone starts nothing");
    guest.send(0, 1, START_UP | 0x9a);
    assert_eq!(guest.node.unparked, [1]);
    let system = guest.node.hardware[1];
    assert_eq!((system.cs.base, system.cs.selector), (0x9_a000, 0x9a00));
    assert_eq!((system.cr0 & 1, system.efer), (0, 0), "real mode");
    assert_eq!(guest.node.pages[1].registers.rip, 0);
    assert_eq!(guest.node.pages[1].registers.rdx, 0x0080_0f12, "the signature");

    guest.node.pages[1].registers.rip = 0x123;
    guest.send(0, 1, START_UP | 0x55);
    assert_eq!(guest.node.unparked, [1], "a second one is ignored");
    assert!(guest.kicked(1).dirty == 0 && guest.node.pages[1].registers.rip == 0x123);
    assert_eq!(guest.node.hardware[1].cs.base, 0x9_a000);
}

#[test]
fn init_parks_a_running_vcpu_at_its_next_exit() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.send(0, 1, INIT);
    assert_eq!(guest.node.kicks, [1]);
    assert_eq!(guest.exit(1, ExitReason::Kicked, [0; 3]), Disposition::Park);
    guest.send(0, 1, super::FIXED | 0x40);
    assert_eq!(guest.node.kicks, [1], "its APIC is off again");
    guest.send(0, 1, START_UP | 0x20);
    assert_eq!(guest.node.unparked, [1]);
    assert_eq!(guest.node.hardware[1].cs.base, 0x2_0000);
}

#[test]
fn a_start_up_that_comes_before_init_was_seen_is_kept() {
    let mut guest = Guest::running(2, Walks::Nested);
    guest.send(0, 1, INIT);
    guest.send(0, 1, START_UP | 0x30);
    assert!(guest.node.unparked.is_empty());
    assert_eq!(guest.exit(1, ExitReason::Kicked, [0; 3]), Disposition::Resume);
    assert_eq!(guest.node.hardware[1].cs.base, 0x3_0000);
    assert_eq!(guest.node.pages[1].registers.rip, 0);
}

#[test]
fn the_walk_cache_fills_on_page_faults_and_reflects_the_guests_own() {
    let mut guest = Guest::started(1, Walks::Cached);
    assert_eq!(guest.node.entered[0].intercepts, INTERCEPT_WALKS);
    assert_eq!(
        guest.node.hardware[0].cr3,
        layout::PAGE_TABLES.0,
        "without write protection there is no cache"
    );
    guest.set_write_protection();
    assert!(guest.node.hardware[0].cr3 >= PRIVATE_START, "the processor walks the cache's tables");
    // The guest's tables map the first 4 GiB.
    let present = guest.node.hardware[0].cr2;
    guest.exit(0, ExitReason::Exception, [14, 2, super::CODE]);
    assert_eq!((guest.node.entered[0].event, guest.node.hardware[0].cr2), (Event::NONE, present));
    guest.exit(0, ExitReason::Exception, [14, 2, 1 << 32]);
    assert_eq!(guest.node.entered[0].event, Event::exception(14, Some(2)));
    assert_eq!(guest.node.hardware[0].cr2, 1 << 32);
    // MOV RAX, CR3 gives what the guest wrote.
    assert_eq!(guest.execute(0, ExitReason::ReadControl, &[0x0f, 0x20, 0xd8]), 3);
    assert_eq!(guest.node.pages[0].registers.rax, layout::PAGE_TABLES.0);
}
