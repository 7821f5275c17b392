//! Fetching at RIP, and the lengths of instructions that make exits.

use super::super::{Stop, length_of, plain_length};
use super::{
    Asked, Bench, CODE, DEVICE, Encoding, FAULT_EXECUTE, LONG, Mode, PAGE, PROTECTED, PROTECTED_16, Progress,
    REAL, SegmentRegister, fault, page_fault,
};
use ipc::vcpu::ExitReason;

const STORE: [u8; 7] = [0x48, 0xc7, 0x03, 0x11, 0, 0, 0]; // mov qword [rbx], 0x11

#[test]
fn a_second_page_is_fetched_when_it_is_needed() {
    let edge = 0x5000;
    for in_first in 1..=8 {
        let mut bench = Bench::new(LONG, &[]);
        let first = usize::try_from(in_first).unwrap().min(STORE.len());
        bench.registers.rip = edge - in_first;
        bench.registers.rbx = DEVICE;
        bench.machine.put(edge - in_first, &STORE[..first]);
        bench.machine.moved.insert(edge / PAGE, 0x99);
        bench.machine.put(0x99 * PAGE, &STORE[first..]);
        let mut without = bench.clone();
        assert_eq!(bench.run(), Ok(Progress::Done));
        assert_eq!(bench.registers.rip, edge - in_first + 7);
        assert_eq!(bench.machine.get_u64(DEVICE), 0x11);

        without.machine.absent.insert(edge / PAGE);
        let expected = if in_first < 7 { Err(page_fault(edge, FAULT_EXECUTE)) } else { Ok(Progress::Done) };
        assert_eq!(without.run(), expected);
    }
}

#[test]
fn bytes_that_the_processor_tells_are_taken() {
    let mut bench = Bench::new(LONG, &[0xf4]);
    bench.registers.rbx = DEVICE;
    bench.machine.absent.insert(CODE / PAGE);
    bench.prefetched = STORE.to_vec();
    assert_eq!(bench.run(), Ok(Progress::Done));
    // When they are too few, all are fetched.
    let mut bench = Bench::new(LONG, &STORE);
    bench.registers.rbx = DEVICE;
    bench.prefetched = STORE[..4].to_vec();
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.machine.get_u64(DEVICE), 0x11);
}

#[test]
fn code_that_cannot_be_fetched() {
    let mut bench = Bench::new(LONG, &STORE);
    bench.machine.absent.insert(CODE / PAGE);
    assert_eq!(bench.run(), Err(page_fault(CODE, FAULT_EXECUTE)));
    let nothing = Err(Stop::Unsupported(Encoding::default()));
    bench.machine.absent.clear();
    bench.machine.lost.insert(CODE / PAGE);
    assert_eq!(bench.run(), nothing);
    bench.registers.rip = DEVICE;
    assert_eq!(bench.run(), nothing);
    bench.registers.rip = 1 << 63;
    assert_eq!(bench.run(), Err(fault(13, Some(0))));
    // One that runs into the end of the canonical addresses, and one that ends there.
    let end = 1 << 47;
    for (start, expected) in [(end - 6, Err(fault(13, Some(0)))), (end - 7, Ok(Progress::Done))] {
        bench.registers.rip = start;
        bench.registers.rbx = DEVICE;
        bench.machine.put(start, &STORE);
        assert_eq!(bench.run(), expected);
    }
}

#[test]
fn an_instruction_has_15_bytes_at_most() {
    let mut bench = Bench::new(LONG, &[0x2e; 20]);
    assert_eq!(bench.run(), Err(fault(13, Some(0))));
    let mut longest = vec![0x2e; 13];
    longest.extend([0x89, 0x03]);
    let mut bench = Bench::new(LONG, &longest);
    bench.registers.rbx = DEVICE;
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.registers.rip, CODE + 15);
    longest.insert(0, 0x2e);
    assert_eq!(Bench::new(LONG, &longest).run(), Err(fault(13, Some(0))));
}

#[test]
fn the_code_segment_has_base_and_limit() {
    let store = [0xc7, 0x07, 0x34, 0x12]; // mov word [bx], 0x1234
    for (limit, expected) in [
        (0xffff, Ok(Progress::Done)),
        (0x103, Ok(Progress::Done)),
        (0x102, Err(fault(13, None))),
        (0x100, Err(fault(13, None))),
        (0xff, Err(fault(13, None))),
    ] {
        let mut bench = Bench::new(Mode { cs_base: 0x9_0000, ..REAL }, &[]);
        bench.registers.rip = 0x100;
        bench.registers.rbx = 0x2000;
        bench.machine.put(0x9_0100, &store);
        bench.machine.segment_mut(SegmentRegister::Cs).limit = limit;
        assert_eq!(bench.run(), expected, "{limit:x}");
    }
    // Linear addresses have 32 bits, and so has EIP.
    let mut bench = Bench::new(Mode { cs_base: 0xffff_f000, ..PROTECTED }, &[]);
    bench.machine.put(0x800, &[0x89, 0x03]);
    bench.registers.rip = 0xdead_0000_1800;
    bench.registers.rbx = 0x4000;
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.registers.rip, 0x1802);
    // An instruction across the end of linear addresses.
    let mut bench = Bench::new(PROTECTED, &[]);
    bench.registers.rip = 0xffff_ffff;
    bench.machine.put(0xffff_ffff, &[0x89]);
    bench.machine.put(0, &[0x03]);
    assert_eq!(bench.run(), Err(fault(13, Some(0))));
    bench.mode.cs_base = 0x10;
    bench.registers.rip = 0xffff_ffef;
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.registers.rip, 0xffff_fff1);
}

const LENGTHS: &[(ExitReason, &[u8])] = &[
    (ExitReason::Cpuid, &[0x0f, 0xa2]),
    (ExitReason::Cpuid, &[0x66, 0x0f, 0xa2]),
    (ExitReason::Cpuid, &[0x2e, 0xf3, 0x0f, 0xa2]),
    (ExitReason::ReadMsr, &[0x0f, 0x32]),
    (ExitReason::WriteMsr, &[0x0f, 0x30]),
    (ExitReason::WriteMsr, &[0x3e, 0x0f, 0x30]),
    (ExitReason::Halt, &[0xf4]),
    (ExitReason::Halt, &[0x66, 0xf4]),
    (ExitReason::Hypercall, &[0x0f, 0x01, 0xd9]),
    (ExitReason::Hypercall, &[0x0f, 0x01, 0xc1]),
    (ExitReason::SetXcr, &[0x0f, 0x01, 0xd1]),
    (ExitReason::Caches, &[0x0f, 0x08]),
    (ExitReason::Caches, &[0x0f, 0x09]),
    (ExitReason::Caches, &[0xf3, 0x0f, 0x09]),
    (ExitReason::Forbidden, &[0x0f, 0x33]),
    (ExitReason::Forbidden, &[0x0f, 0x01, 0xd8]),
    (ExitReason::Forbidden, &[0x0f, 0x01, 0xc8]),
    (ExitReason::Forbidden, &[0x0f, 0x01, 0xc9]),
    (ExitReason::Port, &[0xec]),
    (ExitReason::Port, &[0x66, 0xef]),
    (ExitReason::Port, &[0xe6, 0x80]),
    (ExitReason::Port, &[0xf3, 0x6c]),
    (ExitReason::WriteControl, &[0x0f, 0x22, 0xd8]),
    (ExitReason::WriteControl, &[0x0f, 0x06]),
    (ExitReason::WriteControl, &[0x0f, 0x01, 0xf0]),
    (ExitReason::ReadControl, &[0x0f, 0x20, 0xd9]),
    (ExitReason::InvalidatePage, &[0x0f, 0x01, 0x3d, 1, 2, 3, 4]),
];

#[test]
fn lengths_are_found_in_every_mode() {
    for mode in [LONG, PROTECTED, REAL] {
        for (reason, code) in LENGTHS {
            // In 16-bit code the operand of INVLPG is [di].
            let short = mode == REAL && *reason == ExitReason::InvalidatePage;
            let mut bench = Bench::new(mode, code);
            let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
            assert_eq!(length, Ok(if short { 3 } else { code.len().try_into().unwrap() }), "{code:x?}");
        }
    }
    let only_in_64_bit: &[(ExitReason, &[u8])] = &[
        (ExitReason::Cpuid, &[0x48, 0x0f, 0xa2]),
        (ExitReason::WriteControl, &[0x41, 0x0f, 0x22, 0xc1]),
        (ExitReason::InvalidatePage, &[0x65, 0x41, 0x0f, 0x01, 0x7b, 8]),
        (ExitReason::InvalidateContext, &[0x66, 0x41, 0x0f, 0x38, 0x82, 0x03]),
    ];
    for (reason, code) in only_in_64_bit {
        let mut bench = Bench::new(LONG, code);
        let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
        assert_eq!(length, Ok(code.len().try_into().unwrap()), "{code:x?}");
        let mut bench = Bench::new(PROTECTED_16, code);
        let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
        assert_ne!(length, Ok(code.len().try_into().unwrap()), "{code:x?}");
    }
}

#[test]
fn lengths_at_the_end_of_a_page() {
    let edge = 0x5000;
    for (reason, code) in LENGTHS {
        for in_first in 1..=code.len() {
            let mut bench = Bench::new(LONG, &[]);
            bench.registers.rip = edge - in_first as u64;
            bench.machine.moved.insert(edge / PAGE, 0x99);
            bench.machine.put(bench.registers.rip, &code[..in_first]);
            bench.machine.put(0x99 * PAGE, &code[in_first..]);
            let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
            assert_eq!(length, Ok(code.len().try_into().unwrap()), "{code:x?}");
            bench.machine.absent.insert(edge / PAGE);
            let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
            let needs = in_first < code.len();
            assert_eq!(length.is_err(), needs, "{code:x?}");
            assert!(!needs || length == Err(page_fault(edge, FAULT_EXECUTE)));
        }
    }
}

#[test]
fn another_instruction_has_no_length() {
    for (reason, _) in LENGTHS {
        let others = LENGTHS.iter().filter(|(other, _)| other != reason).map(|(_, code)| *code);
        for code in others.chain([&[0x89, 0x03][..], &[0x0f, 0x22, 0xd8, 0x90], &[0x90]]) {
            if LENGTHS.iter().any(|(known, bytes)| known == reason && code.starts_with(bytes)) {
                continue;
            }
            let mut bench = Bench::new(LONG, code);
            let length = bench.with(|vcpu, machine| length_of(*reason, vcpu, machine));
            assert_eq!(length, Err(Stop::Changed), "{reason:?} {code:x?}");
            assert_eq!(plain_length(*reason, code), None);
        }
    }
    let mut bench = Bench::new(LONG, &[0x0f, 0xa2]);
    for reason in [ExitReason::Kicked, ExitReason::Memory, ExitReason::Unknown] {
        assert_eq!(bench.with(|vcpu, machine| length_of(reason, vcpu, machine)), Err(Stop::Changed));
    }
}

#[test]
fn the_plain_lengths_are_those_of_the_decoder() {
    for (reason, code) in LENGTHS {
        if let Some(length) = plain_length(*reason, code) {
            assert_eq!(usize::from(length), code.len());
        }
        for short in 0..code.len() {
            assert_eq!(plain_length(*reason, &code[..short]), None);
        }
    }
    let plain = LENGTHS.iter().filter(|(reason, code)| plain_length(*reason, code).is_some()).count();
    assert_eq!(plain, 9);
}

#[test]
fn going_past_an_instruction() {
    for (mode, rip, next) in [
        (LONG, u64::MAX - 1, 1),
        (LONG, 0xffff_ffff, 0x1_0000_0002),
        (PROTECTED, 0xffff_ffff, 2),
        (REAL, 0xffff, 0x1_0002),
    ] {
        let mut bench = Bench::new(mode, &[]);
        bench.registers.rip = rip;
        bench.registers.rflags = 0x1_0246;
        bench.with(|vcpu, _| vcpu.advance(3));
        assert_eq!((bench.registers.rip, bench.registers.rflags), (next, 0x246));
    }
}

#[test]
fn code_is_fetched_and_not_read() {
    let mut bench = Bench::new(LONG, &[0x8b, 0x03]);
    bench.registers.rbx = DEVICE;
    bench.run().unwrap();
    assert_eq!(bench.machine.asked, [Asked::Read(DEVICE, vec![0; 4])]);
}
