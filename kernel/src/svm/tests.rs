//! Exits, events, windows and what a service may not change, against the manual.

extern crate std;

use std::vec::Vec;

use ipc::vcpu::DIRTY_SYSTEM;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::*;

const ALL: Features = Features {
    next_rip: true,
    decode_assists: true,
    flush_by_asid: true,
    pause_filter: true,
    xcr0: 1 | 1 << 1 | 1 << 2 | 7 << 5 | 1 << 9,
};
const NONE: Features =
    Features { next_rip: false, decode_assists: false, flush_by_asid: false, pause_filter: false, xcr0: 1 };
const MAPS: [PhysAddr; 3] = [PhysAddr(0x10_0000), PhysAddr(0x10_3000), PhysAddr(0x20_0000)];

fn vcpu(features: Features) -> Svm {
    let mut svm = Svm::new();
    svm.reset(features, MAPS[0], MAPS[1], MAPS[2]);
    svm
}

/// The guest runs and leaves: what was to be delivered is, unless `interrupted` says what was not.
fn run(svm: &mut Svm, exit_code: u64, exit_info: [u64; 2], interrupted: Event) -> Exit {
    svm.enter(false);
    let control = &mut svm.vmcb.control;
    control.event &= !(1 << 31);
    if control.intercepts[0] & intercept::VINTR == 0 {
        control.virtual_interrupt &= !V_IRQ;
    }
    (control.exit_code, control.exit_info, control.exit_interrupt) = (exit_code, exit_info, interrupted.0);
    svm.exit()
}

fn exit(svm: &mut Svm, exit_code: u64, exit_info: [u64; 2]) -> Exit {
    run(svm, exit_code, exit_info, Event::NONE)
}

/// AMD APM 2, appendix C.
fn expected(exit_code: u64, info: [u64; 2]) -> Exit {
    use ExitReason::{
        Caches, Cpuid, Forbidden, Halt, Hypercall, InterruptWindow, InvalidState, InvalidateContext,
        InvalidatePage, Port, ReadControl, SetXcr, Shutdown, TaskSwitch, Unknown, WriteControl, WriteMsr,
    };
    let plain = |reason| Exit::Platform(reason, [0; 3]);
    match exit_code {
        0x03 | 0x04 => plain(ReadControl),
        0x10..0x20 => Exit::Platform(WriteControl, [exit_code & 0xf, 0, 0]),
        0x52 => Exit::MachineCheck,
        0x40..0x60 => Exit::Platform(ExitReason::Exception, [exit_code - 0x40, 5, info[1]]),
        0x60..=0x63 | 0x74 => Exit::Nothing,
        0x64 => plain(InterruptWindow),
        0x72 => plain(Cpuid),
        0x76 | 0x89 => plain(Caches),
        0x77 => Exit::Pause,
        0x78 => plain(Halt),
        0x79 => plain(InvalidatePage),
        // 4 bytes to port 0x1234, with the information below.
        0x7b => Exit::Platform(Port, [0x1234 | 1 << 16 | 1 << 17 | 4 << 24, info[1], 0]),
        0x7c => plain(WriteMsr),
        0x7d => Exit::Platform(TaskSwitch, [info[0], info[1], 0]),
        0x7f => plain(Shutdown),
        0x81 => plain(Hypercall),
        0x8d => plain(SetXcr),
        0xa2 => plain(InvalidateContext),
        0x6f | 0x73 | 0x7a | 0x7e | 0x80..=0x8e | 0xa0..=0xa4 => plain(Forbidden),
        0x400 => Exit::Memory { address: info[1], access: ACCESS_TABLES },
        u64::MAX => Exit::Platform(InvalidState, [u64::MAX, 0, 0]),
        _ => Exit::Platform(Unknown, [exit_code, info[0], info[1]]),
    }
}

#[test]
fn every_exit_code_is_told_as_the_manual_has_it() {
    // For a port: IN, string, 4 bytes, port 0x1234; for a register: a write; for memory: a read of guest tables; for an exception: 5.
    let info = |code| match code {
        0x7b => [1 | 1 << 2 | 1 << 6 | 0x1234 << 16, 0x8000],
        0x7c => [1, 0],
        0x40..0x60 => [0xffff_ffff_0000_0005, 0x1234_5678_9abc],
        _ => [0xf_0000_0004, 0x1234_5678_9abc],
    };
    for code in (0..0x500).chain([0xffff_fffe, 1 << 32, u64::MAX - 1, u64::MAX]) {
        let mut svm = vcpu(ALL);
        assert_eq!(exit(&mut svm, code, info(code)), expected(code, info(code)), "{code:#x}");
    }
    let mut svm = vcpu(ALL);
    assert_eq!(exit(&mut svm, 0x7c, [0, 0]), Exit::Platform(ExitReason::ReadMsr, [0; 3]));
    // QEMU up to 10.1 stores the low half of VMEXIT_INVALID alone.
    assert!(matches!(exit(&mut svm, 0xffff_ffff, [0, 0]), Exit::Platform(ExitReason::InvalidState, _)));
}

#[test]
fn what_is_always_intercepted_is_known() {
    let svm = vcpu(ALL);
    let intercepts = svm.vmcb.control.intercepts;
    for (word, bits) in (0u64..).zip(intercepts) {
        for bit in (0..32).filter(|bit| bits >> bit & 1 != 0) {
            let code = 0x60 + 32 * word + bit;
            let told = exit(&mut vcpu(ALL), code, [0; 2]);
            assert!(!matches!(told, Exit::Platform(ExitReason::Unknown, _)), "{code:#x}");
        }
    }
    // All of 15.9 that a guest must not do by itself: VMRUN must be intercepted, or no VMRUN is legal (15.5.1).
    assert_eq!(intercepts[1] & 1, 1);
    let pause = |features| vcpu(features).vmcb.control.intercepts[0] >> 23 & 1;
    assert_eq!((pause(ALL), pause(NONE)), (1, 0));
}

#[test]
fn a_miss_in_memory_tells_its_access() {
    let access = |info1| match exit(&mut vcpu(ALL), 0x400, [info1, 0xfee0_0030]) {
        Exit::Memory { address: 0xfee0_0030, access } => access,
        other => panic!("{other:?}"),
    };
    // Bits: present, write, user, reserved, fetch; 32 and 33: final address, guest tables (15.25.6).
    assert_eq!(access(0x1_0000_0004), 0);
    assert_eq!(access(0x1_0000_0006), ACCESS_WRITE);
    assert_eq!(access(0x1_0000_0014), ACCESS_EXECUTE);
    assert_eq!(access(0x2_0000_0007), ACCESS_WRITE | ACCESS_TABLES);
    assert_eq!(access(0x1_0000_000d), 0);
    // That of an event's delivery is told apart, also where nothing is left to deliver.
    for (event, left) in [
        (Event::exception(14, Some(0)), Event::exception(14, Some(0))),
        (Event::interrupt(0x40), Event::interrupt(0x40)),
        (Event::exception(3, None), Event::NONE),
        (Event(1 << 31 | 4 << 8 | 0x80), Event::NONE),
    ] {
        let mut vcpu = vcpu(ALL);
        let exit = run(&mut vcpu, 0x400, [0x1_0000_0006, 0xfee0_0030], event);
        let expected = Exit::Memory { address: 0xfee0_0030, access: ACCESS_WRITE | ACCESS_DELIVERY };
        assert_eq!((exit, vcpu.event()), (expected, left));
    }
}

#[test]
fn ports_are_told_with_size_and_kind() {
    let told = |info| port_access(info);
    for (bit, bytes) in [(4, 1), (5, 2), (6, 4)] {
        let access = told(0x3f8 << 16 | 1 << bit | 1);
        assert_eq!((access.port(), access.bytes()), (0x3f8, bytes));
        assert!(access.has(PortAccess::IN) && !access.has(PortAccess::STRING));
    }
    let access = told(0xffff << 16 | 1 << 4 | 1 << 2 | 1 << 3);
    assert!(access.has(PortAccess::STRING | PortAccess::REPEATED) && !access.has(PortAccess::IN));
    assert_eq!(access.port(), 0xffff);
}

#[test]
fn an_event_that_an_exit_interrupts_is_delivered_again_unless_its_instruction_raises_it() {
    let again = |event| {
        let mut svm = vcpu(ALL);
        run(&mut svm, code::NESTED_PAGE_FAULT, [0; 2], event);
        svm.event() == event && svm.control(0).event == event
    };
    let of_kind = |kind: u64, vector: u64| Event(1 << 31 | kind << 8 | vector);
    for vector in [0u8, 32, 0xec, 255] {
        assert!(again(Event::interrupt(vector)));
    }
    assert!(again(Event::nmi()));
    for vector in 0..32 {
        let event = Event::exception(vector, (vector & 1 == 0).then_some(0xffff_0001));
        // INT3 and INTO are executed again: RIP is still theirs.
        assert_eq!(again(event), !matches!(vector, 3 | 4), "{vector}");
    }
    let mut svm = vcpu(ALL);
    run(&mut svm, code::NESTED_PAGE_FAULT, [0; 2], of_kind(3, 0xec));
    assert_eq!((svm.event(), svm.vmcb.control.event), (Event::interrupt(0xec), 0), "QEMU's name for it");
    assert!(!again(of_kind(4, 0x80)));
    for kind in [1, 5, 6, 7] {
        assert!(!again(of_kind(kind, 0x20)));
    }
    assert!(!again(Event(Event::nmi().0 & !(1 << 31))));
}

#[test]
fn an_event_is_taken_over_once_whoever_looks_first() {
    let mut svm = vcpu(ALL);
    run(&mut svm, code::CPUID, [0; 2], Event::interrupt(0x30));
    // What the service says now counts, not what the exit left.
    svm.load_control(&EntryControl { event: Event::interrupt(0x40), ..EntryControl::default() });
    svm.enter(false);
    assert_eq!(svm.event(), Event::interrupt(0x40));
    // An interrupt of the node's that the kernel took without a look at the exit: the next entry looks.
    svm.vmcb.control.virtual_interrupt &= !V_IRQ;
    svm.vmcb.control.exit_interrupt = Event::interrupt(0x40).0;
    svm.enter(false);
    assert_eq!(svm.event(), Event::interrupt(0x40));
    svm.vmcb.control.virtual_interrupt &= !V_IRQ;
    svm.vmcb.control.exit_interrupt = 0;
    svm.enter(false);
    assert_eq!(svm.event(), Event::NONE);
}

fn with_event(event: Event) -> EntryControl {
    EntryControl { event, ..EntryControl::default() }
}

#[test]
fn an_interrupt_waits_in_the_guest_until_it_can_be_taken_and_is_never_injected() {
    let mut svm = vcpu(ALL);
    svm.load_control(&with_event(Event::interrupt(0xec)));
    for _ in 0..3 {
        // The node's interrupts come first, and the guest has IF clear.
        svm.enter(false);
        let control = &mut svm.vmcb.control;
        assert_eq!((control.event, control.intercepts[0] & intercept::VINTR), (0, 0));
        // V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR (appendix B, 0x60).
        assert_eq!(control.virtual_interrupt, 0xec_011f_0100);
        (control.exit_code, control.exit_interrupt) = (code::INTR, 0);
        assert_eq!(svm.exit(), Exit::Nothing);
        assert_eq!(svm.control(0).event, Event::interrupt(0xec));
    }
    // A window needs the same bits: it is not to be had, nor does it take the interrupt's place.
    let window = EntryControl { window: WINDOW_INTERRUPT, ..with_event(Event::interrupt(0xec)) };
    svm.load_control(&window);
    assert_eq!((svm.event(), svm.has_window()), (Event::interrupt(0xec), false));
    exit(&mut svm, code::CPUID, [0; 2]);
    assert_eq!(svm.event(), Event::NONE, "it was taken");
}

#[test]
fn an_exception_goes_before_an_interrupt_that_waits_and_the_service_can_take_back_what_it_is_told() {
    let (interrupt, page_fault) = (Event::interrupt(0x31), Event::exception(14, Some(2)));
    for first in [page_fault, Event::nmi()] {
        let mut svm = vcpu(ALL);
        svm.load_control(&with_event(interrupt));
        // Its delivery ends in a fault that the service reflects.
        svm.enter(false);
        svm.vmcb.control.exit_code = code::EXCEPTION + 14;
        svm.vmcb.control.exit_interrupt = interrupt.0;
        svm.exit();
        assert_eq!(svm.control(0).event, interrupt);
        svm.load_control(&with_event(first));
        assert_eq!((svm.event(), svm.vmcb.control.event), (first, first.0));
        svm.enter(false);
        svm.vmcb.control.event = 0;
        (svm.vmcb.control.exit_code, svm.vmcb.control.exit_interrupt) = (code::CPUID, 0);
        svm.exit();
        assert_eq!(svm.control(0).event, interrupt, "its turn");
        svm.load_control(&with_event(Event::interrupt(0x99)));
        assert_eq!(svm.event(), Event::interrupt(0x99));
        svm.load_control(&EntryControl::default());
        assert_eq!((svm.event(), svm.vmcb.control.virtual_interrupt), (Event::NONE, V_INTR_MASKING));
    }
}

#[test]
fn the_window_for_interrupts_opens_and_closes() {
    let mut svm = vcpu(ALL);
    let open = |svm: &Svm| {
        let control = &svm.vmcb.control;
        let intercepted = control.intercepts[0] & intercept::VINTR != 0;
        // V_IRQ, bit 8 (15.21.4).
        assert_eq!(intercepted, control.virtual_interrupt & 1 << 8 != 0);
        intercepted
    };
    let window = EntryControl { window: WINDOW_INTERRUPT, ..EntryControl::default() };
    assert!(!open(&svm));
    svm.vmcb.control.virtual_interrupt |= 9;
    svm.load_control(&window);
    assert!(open(&svm));
    // An exit that no service sees leaves it open.
    exit(&mut svm, code::INTR, [0; 2]);
    assert!(open(&svm));
    assert_eq!(exit(&mut svm, code::VINTR, [0; 2]), Exit::Platform(ExitReason::InterruptWindow, [0; 3]));
    assert!(!open(&svm));
    assert_eq!(svm.vmcb.control.virtual_interrupt & 0xf, 9, "the guest's TPR stays");
    svm.load_control(&window);
    svm.load_control(&EntryControl::default());
    assert!(!open(&svm));
    assert_eq!(svm.control(0).window, 0);
}

#[test]
fn nmis_are_blocked_until_the_handlers_iret_has_run() {
    let mut svm = vcpu(ALL);
    let window = EntryControl { window: WINDOW_NMI, ..EntryControl::default() };
    let blocked = |svm: &Svm| svm.control(0).blocked & BLOCKED_BY_NMI != 0;
    let iret = |svm: &Svm| svm.vmcb.control.intercepts[0] & intercept::IRET != 0;
    assert!(svm.nmi_window(&window) && !svm.nmi_window(&EntryControl::default()));
    svm.load_control(&EntryControl { event: Event::nmi(), ..EntryControl::default() });
    assert!(blocked(&svm) && iret(&svm) && !svm.nmi_window(&window));
    // The handler runs, with exits on the way.
    svm.vmcb.save.rip = 0x1000;
    exit(&mut svm, code::CPUID, [0; 2]);
    let told = svm.control(0);
    svm.load_control(&told);
    assert!(blocked(&svm) && iret(&svm));
    // At the IRET: it runs without a service, and until it has, NMIs stay blocked.
    svm.vmcb.save.rip = 0x2000;
    assert_eq!(exit(&mut svm, code::IRET, [0; 2]), Exit::Nothing);
    assert!(blocked(&svm) && !iret(&svm));
    exit(&mut svm, code::NESTED_PAGE_FAULT, [0; 2]);
    assert!(blocked(&svm), "it missed its stack and runs again");
    let told = svm.control(0);
    svm.load_control(&told);
    assert!(blocked(&svm) && !iret(&svm));
    svm.vmcb.save.rip = 0x3000;
    exit(&mut svm, code::INTR, [0; 2]);
    assert!(!blocked(&svm) && svm.nmi_window(&window));
}

#[test]
fn a_service_can_block_and_open_nmis() {
    let mut svm = vcpu(ALL);
    let iret = |svm: &Svm| svm.vmcb.control.intercepts[0] & intercept::IRET != 0;
    // As for a vCPU that moves here while its handler runs.
    svm.load_control(&EntryControl { blocked: BLOCKED_BY_NMI, ..EntryControl::default() });
    assert_eq!(svm.control(0).blocked, BLOCKED_BY_NMI);
    assert!(iret(&svm));
    svm.load_control(&EntryControl::default());
    assert_eq!(svm.control(0).blocked, 0);
    assert!(!iret(&svm));
    svm.load_control(&EntryControl { blocked: BLOCKED_BY_SHADOW, ..EntryControl::default() });
    assert_eq!((svm.vmcb.control.interrupt_shadow, svm.control(0).blocked), (1, BLOCKED_BY_SHADOW));
    // Bit 1 is the guest's interrupt mask, not a shadow (appendix B).
    svm.vmcb.control.interrupt_shadow = 2;
    assert_eq!(svm.control(0).blocked, 0);
}

#[test]
fn translations_are_flushed_once() {
    let flush = |svm: &Svm| svm.vmcb.control.tlb_control;
    for (features, kind) in [(ALL, TLB_FLUSH_ASID), (NONE, TLB_FLUSH_ALL)] {
        let mut svm = vcpu(features);
        svm.enter(true);
        assert_eq!(flush(&svm), kind);
        svm.enter(false);
        assert_eq!(flush(&svm), 0);
        svm.exit();
        svm.load_control(&EntryControl { flush: FLUSH_TRANSLATIONS, ..EntryControl::default() });
        svm.enter(false);
        assert_eq!(flush(&svm), TLB_FLUSH_ALL);
        svm.exit();
        svm.load_system(&SystemState::new_zeroed());
        svm.enter(false);
        assert_eq!(flush(&svm), TLB_FLUSH_ALL);
        svm.exit();
        svm.enter(false);
        assert_eq!(flush(&svm), 0);
    }
}

#[test]
fn the_walk_caches_exits_come_and_go() {
    let mut svm = vcpu(ALL);
    let state = |svm: &Svm| {
        let control = &svm.vmcb.control;
        let first = control.intercepts[0] & intercept::INVLPG != 0;
        let third = control.intercepts[2] & intercept::INVPCID != 0;
        let page_fault = control.intercept_exceptions >> 14 & 1 != 0;
        (first, third, page_fault, control.intercept_cr_reads, control.intercept_cr_writes)
    };
    let off = state(&svm);
    assert_eq!(off, (false, false, false, 0, 0));
    svm.load_control(&EntryControl { intercepts: INTERCEPT_WALKS, ..EntryControl::default() });
    assert_eq!(state(&svm), (true, true, true, 1 << 3 | 1 << 4, 1 | 1 << 3 | 1 << 4));
    svm.load_control(&EntryControl::default());
    assert_eq!(state(&svm), off);
}

#[test]
fn the_instruction_is_told_as_far_as_the_processor_tells_it() {
    let told = |features, next_rip, rip, fetched| {
        let mut svm = vcpu(features);
        svm.vmcb.save.rip = rip;
        (svm.vmcb.control.next_rip, svm.vmcb.control.fetched) = (next_rip, fetched);
        let (length, bytes, _) = svm.instruction();
        (length, bytes)
    };
    assert_eq!(told(ALL, 0x1002, 0x1000, 15), (2, 15));
    assert_eq!(told(ALL, 1, u64::MAX, 0), (2, 0));
    assert_eq!(told(ALL, 0, 0x1000, 255), (0, 15));
    assert_eq!(told(ALL, 0x1010, 0x1000, 3), (0, 3));
    assert_eq!(told(NONE, 0x1002, 0x1000, 15), (0, 0));
}

fn random_control(random: &mut ChaCha8Rng) -> EntryControl {
    let mut bytes = [0; size_of::<EntryControl>()];
    random.fill(&mut bytes[..]);
    EntryControl::read_from_bytes(&bytes).unwrap()
}

fn random_system(random: &mut ChaCha8Rng) -> SystemState {
    let mut bytes = [0; size_of::<SystemState>()];
    random.fill(&mut bytes[..]);
    SystemState::read_from_bytes(&bytes).unwrap()
}

#[test]
fn the_state_is_told_as_it_was_loaded() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..1000 {
        let mut svm = vcpu(ALL);
        let state = random_system(&mut random);
        svm.load_system(&state);
        let kept = SystemState { efer: state.efer & !EFER_SVME, cpl: state.cpl & 3, reset_fpu: 0, ..state };
        assert_eq!(svm.system(state.xcr0), kept);
        let mode = svm.mode();
        assert_eq!((mode.cr0, mode.cr3, mode.cr4), (state.cr0, state.cr3, state.cr4));
        assert_eq!((mode.efer, mode.cs_base), (kept.efer, state.cs.base));
        assert_eq!((mode.cs_attributes, u64::from(mode.cpl)), (u32::from(state.cs.attributes), kept.cpl));
        let mut registers = UserRegisters::ZERO;
        random.fill(registers.as_mut_bytes());
        let value = |place| u64::from_le_bytes(registers.as_bytes()[place..place + 8].try_into().unwrap());
        svm.load_registers(value);
        let r = &registers;
        assert_eq!(svm.registers().map(|(_, value)| value), [r.rax, r.rsp, r.rip, r.rflags]);
        assert!(svm.registers().iter().all(|&(place, told)| told == value(place)));
    }
    assert_eq!(DIRTY_SYSTEM, 1);
}

#[test]
fn what_is_told_at_an_exit_changes_nothing_when_it_is_given_back() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..5000 {
        let mut svm = vcpu(ALL);
        let asked = EntryControl { window: 0, flush: 0, ..random_control(&mut random) };
        svm.load_control(&asked);
        // What can be: NMIs are injected or not at all, and an IRET is no event's delivery.
        let vector = random.random();
        let interrupted = match random.random_range(0..4) {
            0 => Event::NONE,
            1 => Event::interrupt(vector),
            2 => Event::exception(vector & 31, Some(random.random())),
            _ => asked.event,
        };
        run(&mut svm, random.random_range(0x75..0x80), [0; 2], interrupted);
        let told = svm.control(asked.intercepts);
        let state = |svm: &Svm| {
            let control = &svm.vmcb.control;
            (control.event, control.virtual_interrupt & V_IRQ, svm.event(), control.intercepts, svm.nmi)
        };
        let before = state(&svm);
        svm.load_control(&told);
        assert_eq!(state(&svm), before);
        assert_eq!(svm.control(asked.intercepts).as_bytes(), told.as_bytes());
        assert_eq!((told.window, told.activity, told.dirty, told.flush), (0, 0, 0, 0));
        assert_eq!(told.deadline, ipc::abi::NEVER);
    }
}

#[test]
fn nothing_that_a_service_or_guest_does_changes_what_keeps_the_node_safe() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let fresh = vcpu(ALL).vmcb.control;
    let mut svm = vcpu(ALL);
    let mut kinds = Vec::new();
    for _ in 0..50_000 {
        svm.load_control(&random_control(&mut random));
        if random.random_bool(0.3) {
            svm.load_system(&random_system(&mut random));
        }
        svm.enter(random.random());
        let control = &svm.vmcb.control;
        for (word, always) in control.intercepts.iter().zip(fresh.intercepts) {
            assert_eq!(word & always, always);
        }
        assert_eq!(control.intercept_exceptions & EXCEPTIONS, EXCEPTIONS);
        assert_eq!(control.virtual_interrupt & V_INTR_MASKING, V_INTR_MASKING);
        assert_eq!((control.asid, control.iopm, control.msrpm), (ASID, fresh.iopm, fresh.msrpm));
        assert_eq!((control.nested_paging, control.nested_cr3), (1, fresh.nested_cr3));
        assert!(svm.vmcb.save.efer & EFER_SVME != 0 && svm.vmcb.save.cpl <= 3);
        let event = Event(control.event);
        assert!(!event.is_some() || event.kind().is_some_and(|kind| kind != EventKind::Interrupt));
        // The guest leaves with anything that a processor could store, and more.
        let control = &mut svm.vmcb.control;
        control.exit_code = if random.random() { random.random_range(0..0x500) } else { random.random() };
        (control.exit_info, control.exit_interrupt) = (random.random(), random.random());
        (control.next_rip, control.fetched, control.interrupt_shadow) =
            (random.random(), random.random(), random.random());
        control.virtual_interrupt = control.virtual_interrupt & !V_TPR | random.random_range(0..16);
        (svm.vmcb.save.rip, svm.vmcb.save.cpl) = (random.random(), random.random_range(0..4));
        kinds.push(core::mem::discriminant(&svm.exit()));
        let (length, fetched, _) = svm.instruction();
        assert!(length <= 15 && fetched <= 15);
    }
    let first = kinds[0];
    assert!(kinds.iter().any(|kind| *kind != first));
}

#[test]
fn only_a_legal_xcr0_is_loaded() {
    let svm = vcpu(ALL);
    let bit = |value: u64, bit: u32| value >> bit & 1 != 0;
    // Every combination of the low ten bits and one of bit 18 (AMX), which cannot be kept.
    for wanted in (0..1 << 10).chain([1 | 1 << 18, u64::MAX, 1 << 63 | 1]) {
        let offered = wanted & !ALL.xcr0 == 0 && bit(wanted, 0);
        let avx = !bit(wanted, 2) || bit(wanted, 1);
        let wide = [5, 6, 7].map(|b| bit(wanted, b));
        let avx512 = wide == [false; 3] || wide == [true; 3] && bit(wanted, 2);
        let legal = if offered && avx && avx512 { wanted } else { 1 };
        assert_eq!(svm.legal_xcr0(wanted), legal, "{wanted:#x}");
    }
    assert_eq!((svm.legal_xcr0(0xe7), svm.legal_xcr0(7), svm.legal_xcr0(0x207)), (0xe7, 7, 0x207));
    assert_eq!(vcpu(NONE).legal_xcr0(3), 1);
}
