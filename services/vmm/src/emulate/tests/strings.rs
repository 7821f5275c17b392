//! String instructions, whole and in parts.

use super::super::{ITERATIONS, emulate_string_io};
use super::{
    Asked, Bench, CODE, DEVICE, FAULT_WRITE, LONG, Mode, PAGE, PROTECTED, PROTECTED_16, Progress, REAL,
    SegmentRegister, Stop, fault, page_fault,
};
use ipc::vcpu::PortAccess;
use std::vec::Vec;

const DF: u64 = 1 << 10;
const TF: u64 = 1 << 8;
const ZF: u64 = 1 << 6;
const PORT: u16 = 0x1f0;

/// Runs to the end; how many calls it took, each of which kept to its bound.
fn run_all(bench: &mut Bench, mut step: impl FnMut(&mut Bench) -> Result<Progress, Stop>) -> usize {
    for calls in 1.. {
        let before = bench.machine.asked.len();
        let progress = step(bench).unwrap();
        assert!(bench.machine.asked.len() - before <= 2 * ITERATIONS);
        if progress == Progress::Done {
            return calls;
        }
        assert_eq!(bench.registers.rip, CODE);
    }
    unreachable!()
}

fn io(bytes: u8, flags: u64) -> impl FnMut(&mut Bench) -> Result<Progress, Stop> {
    let access = PortAccess::new(PORT, bytes, flags | PortAccess::STRING);
    move |bench| bench.with(|vcpu, machine| emulate_string_io(vcpu, machine, access))
}

fn bench(mode: Mode, code: &[u8], count: u64) -> Bench {
    let mut bench = Bench::new(mode, code);
    let registers = &mut bench.registers;
    (registers.rcx, registers.rsi, registers.rdi) = (count, 0x2_0000, 0x3_0000);
    (registers.rax, registers.rdx) = (0x1122_3344_5566_7788, 0xffff_0000 | u64::from(PORT));
    bench
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
}

#[test]
fn moves() {
    for (code, width) in [
        (&[0xf3, 0xa4][..], 1),
        (&[0xf2, 0xa4], 1),
        (&[0xf3, 0x66, 0xa5], 2),
        (&[0xf3, 0xa5], 4),
        (&[0xf3, 0x48, 0xa5], 8),
    ] {
        for count in [0, 1, 5, 256, 257, 1000] {
            let mut up = bench(LONG, code, count);
            let bytes = count * width;
            up.machine.put(0x2_0000, &pattern(bytes));
            let calls = run_all(&mut up, Bench::run);
            assert_eq!(calls, usize::try_from(count).unwrap().div_ceil(ITERATIONS).max(1));
            assert_eq!(up.machine.get(0x3_0000, bytes), pattern(bytes));
            let registers = &up.registers;
            assert_eq!((registers.rcx, registers.rsi), (0, 0x2_0000 + bytes));
            assert_eq!((registers.rdi, registers.rip), (0x3_0000 + bytes, CODE + code.len() as u64));

            let mut down = bench(LONG, code, count);
            down.registers.rflags |= DF;
            down.registers.rsi += bytes;
            down.registers.rdi += bytes;
            down.machine.put(0x2_0000 + width, &pattern(bytes));
            run_all(&mut down, Bench::run);
            assert_eq!(down.machine.get(0x3_0000 + width, bytes), pattern(bytes));
            assert_eq!((down.registers.rsi, down.registers.rdi), (0x2_0000, 0x3_0000));
        }
    }
}

#[test]
fn stores_and_loads() {
    let mut stored = bench(LONG, &[0xf3, 0xab], 300);
    assert_eq!(run_all(&mut stored, Bench::run), 2);
    assert_eq!(stored.machine.get(0x3_0000 + 299 * 4, 8), [0x88, 0x77, 0x66, 0x55, 0, 0, 0, 0]);
    assert_eq!((stored.registers.rdi, stored.registers.rsi), (0x3_0000 + 1200, 0x2_0000));
    assert!(
        stored.machine.asked.iter().all(|asked| matches!(asked, Asked::Write(_, bytes) if bytes.len() == 4))
    );

    for (code, rax) in [
        (&[0xac][..], 0x1122_3344_5566_7701),
        (&[0x66, 0xad], 0x1122_3344_5566_0201),
        (&[0xad], 0x0403_0201),
        (&[0x48, 0xad], 0x0807_0605_0403_0201),
    ] {
        let mut loaded = bench(LONG, code, 9);
        loaded.machine.put(0x2_0000, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(loaded.run(), Ok(Progress::Done));
        assert_eq!(loaded.registers.rax, rax);
        assert_eq!(loaded.registers.rcx, 9);
    }
}

#[test]
fn comparisons_end_where_they_should() {
    let find = |code: &[u8], count, prepare: fn(&mut Bench)| {
        let mut found = bench(LONG, code, count);
        found.machine.put(0x2_0000, &[1; 600]);
        found.machine.put(0x3_0000, &[1; 600]);
        found.registers.rax = 0x80;
        prepare(&mut found);
        run_all(&mut found, Bench::run);
        (found.registers.rcx, found.registers.rdi - 0x3_0000, found.registers.rflags)
    };
    // repe cmpsb: to the first difference, 1 - 2.
    let differ = |bench: &mut Bench| bench.machine.put(0x3_0000 + 299, &[2]);
    assert_eq!(find(&[0xf3, 0xa6], 600, differ), (300, 300, 2 | 1 | 4 | 16 | 128));
    assert_eq!(find(&[0xf3, 0xa6], 299, differ), (0, 299, 2 | ZF | 4));
    // repne cmpsb: to the first match.
    assert_eq!(find(&[0xf2, 0xa6], 600, |_| {}), (599, 1, 2 | ZF | 4));
    // repne scasb: to the byte, 80 - 80; repe scasb: not even once, 80 - 1.
    let there = |bench: &mut Bench| bench.machine.put(0x3_0000 + 299, &[0x80]);
    assert_eq!(find(&[0xf2, 0xae], 600, there), (300, 300, 2 | ZF | 4));
    assert_eq!(find(&[0xf3, 0xae], 600, there), (599, 1, 2 | 16 | 2048));
    // No iteration leaves the flags.
    assert_eq!(find(&[0xf2, 0xae], 0, |bench| bench.registers.rflags = 0x8d7), (0, 0, 0x8d7));
    // cmpsd, not the SSE instruction.
    let mut compared = bench(LONG, &[0xa7], 0);
    compared.machine.put(0x2_0003, &[1]);
    assert_eq!(compared.run(), Ok(Progress::Done));
    assert_eq!(compared.registers.rdi, 0x3_0004);
    assert_eq!(compared.registers.rflags, 2 | 4);
}

#[test]
fn a_repetition_in_parts_is_that_in_one() {
    for (code, flags) in [(&[0xf3, 0xa5][..], 0), (&[0xf3, 0xa5], DF), (&[0xf3, 0xab], 0), (&[0xf2, 0xaf], 0)]
    {
        let start = |extra| {
            let mut bench = bench(LONG, code, 700);
            bench.machine.put(0x2_0000 - 2800, &pattern(5600));
            bench.machine.put(0x3_0000 - 2800, &pattern(5600));
            bench.machine.put(0x3_0000 + 4 * 600, &[0x88, 0x77, 0x66, 0x55]);
            bench.registers.rflags |= flags | extra;
            bench
        };
        // Single steps are the smallest parts.
        let (mut whole, mut parts) = (start(0), start(TF));
        let calls = run_all(&mut whole, Bench::run);
        let steps = run_all(&mut parts, Bench::run);
        assert!(calls <= 3 && steps > 600, "{calls} {steps}");
        assert_eq!(whole.machine.bytes, parts.machine.bytes);
        assert_eq!(whole.machine.asked, parts.machine.asked);
        parts.registers.rflags &= !TF;
        let words = |bench: &Bench| -> [u64; 18] { zerocopy::transmute!(bench.registers) };
        assert_eq!(words(&whole), words(&parts));
    }
}

#[test]
fn a_fault_in_the_middle_leaves_what_was_done() {
    let mut moved = bench(LONG, &[0xf3, 0xa5], 100);
    moved.machine.put(0x2_0000, &pattern(400));
    moved.registers.rdi = 0x4000 - 42;
    moved.machine.absent.insert(4);
    assert_eq!(moved.run(), Err(page_fault(0x4000, FAULT_WRITE)));
    // Ten elements fit; the eleventh reaches over the edge and is not begun.
    assert_eq!((moved.registers.rcx, moved.registers.rsi), (90, 0x2_0028));
    assert_eq!((moved.registers.rdi, moved.registers.rip), (0x4000 - 2, CODE));
    assert_eq!(moved.machine.asked.len(), 20);
    // The guest brings the page and goes on.
    moved.machine.absent.clear();
    run_all(&mut moved, Bench::run);
    assert_eq!(moved.machine.get(0x4000 - 42, 400), pattern(400));

    // A port's element is not taken before there is room for it.
    let mut read = bench(LONG, &[0xf3, 0x6d], 4);
    read.registers.rdi = 0x4000 - 8;
    read.machine.absent.insert(4);
    let mut step = io(4, PortAccess::IN | PortAccess::REPEATED);
    assert_eq!(step(&mut read), Err(page_fault(0x4000, FAULT_WRITE)));
    assert_eq!((read.registers.rcx, read.registers.rdi, read.machine.input), (2, 0x4000, 8));
    read.machine.absent.clear();
    assert_eq!(step(&mut read), Ok(Progress::Done));
    assert_eq!(read.machine.get(0x4000 - 8, 16), (1..=16).collect::<Vec<u8>>());

    // And none is given that could not be read.
    let mut written = bench(LONG, &[0xf3, 0x6f], 4);
    written.registers.rsi = 0x4000 - 6;
    written.machine.absent.insert(4);
    assert_eq!(io(4, PortAccess::REPEATED)(&mut written), Err(page_fault(0x4000, 0)));
    assert_eq!((written.registers.rcx, written.registers.rsi), (3, 0x4000 - 2));
    assert_eq!(written.machine.asked.len(), 2);
}

#[test]
fn input_and_output() {
    for (code, width, count) in [
        (&[0x6c][..], 1, None),
        (&[0xf3, 0x6c], 1, Some(300)),
        (&[0xf3, 0x66, 0x6d], 2, Some(3)),
        (&[0x6d], 4, None),
    ] {
        let mut read = bench(LONG, code, count.unwrap_or(99));
        let calls = run_all(&mut read, io(width, PortAccess::IN));
        let bytes = u64::from(width) * count.unwrap_or(1);
        assert_eq!(calls, if bytes > 256 { 2 } else { 1 });
        let expected: Vec<u8> = (1..=bytes).map(|index| u8::try_from(index % 256).unwrap()).collect();
        assert_eq!(read.machine.get(0x3_0000, bytes), expected);
        assert_eq!((read.registers.rdi, read.registers.rsi), (0x3_0000 + bytes, 0x2_0000));
        assert_eq!(read.registers.rcx, if count.is_some() { 0 } else { 99 });
        assert_eq!(read.registers.rip, CODE + code.len() as u64);
        assert!(read.machine.asked.iter().all(|asked| match asked {
            Asked::In(port, bytes) => *port == PORT && bytes.len() == usize::from(width),
            Asked::Write(..) => true,
            _ => false,
        }));
    }
    // fs outsb, downwards.
    let mut written = bench(LONG, &[0x64, 0xf3, 0x6e], 3);
    written.registers.rflags |= DF;
    written.machine.segment_mut(SegmentRegister::Fs).base = 0x100;
    written.machine.put(0x2_00fe, &[1, 2, 3]);
    assert_eq!(run_all(&mut written, io(1, 0)), 1);
    let out: Vec<_> = written.machine.asked.iter().filter(|asked| matches!(asked, Asked::Out(..))).collect();
    assert_eq!(out, [&Asked::Out(PORT, vec![3]), &Asked::Out(PORT, vec![2]), &Asked::Out(PORT, vec![1])]);
    assert_eq!(written.registers.rsi, 0x1_fffd);
}

#[test]
fn io_is_done_only_as_the_exit_says() {
    let code = &[0x6d][..];
    for access in [
        PortAccess::new(PORT, 4, PortAccess::STRING),
        PortAccess::new(PORT, 4, PortAccess::IN),
        PortAccess::new(PORT, 2, PortAccess::IN | PortAccess::STRING),
        PortAccess::new(PORT + 1, 4, PortAccess::IN | PortAccess::STRING),
    ] {
        let mut other = bench(LONG, code, 1);
        let result = other.with(|vcpu, machine| emulate_string_io(vcpu, machine, access));
        assert_eq!(result, Err(Stop::Changed));
        assert_eq!(other.machine.asked, []);
    }
    for code in [&[0xed][..], &[0xa5], &[0x89, 0x03]] {
        assert_eq!(io(4, PortAccess::IN)(&mut bench(LONG, code, 1)), Err(Stop::Changed));
    }
}

#[test]
fn pointers_have_the_address_size() {
    let high = 0xabcd_ef01_0000_0000;
    // 64-bit code with 32-bit addresses: ECX counts, and pointers lose their upper halves.
    let mut stored = bench(LONG, &[0x67, 0xf3, 0xab], high | 2);
    stored.registers.rdi = high | 0xffff_fffc;
    assert_eq!(stored.run(), Ok(Progress::Done));
    assert_eq!((stored.registers.rcx, stored.registers.rdi), (0, 4));
    let element = vec![0x88, 0x77, 0x66, 0x55];
    assert_eq!(stored.machine.asked, [Asked::Write(0xffff_fffc, element.clone()), Asked::Write(0, element)]);
    // 16 bits: the rest of each register stays.
    let mut moved = bench(REAL, &[0xf3, 0xa4], 0x7_0003);
    (moved.registers.rsi, moved.registers.rdi) = (0x5_fffe, 0x6_0100);
    moved.machine.put(0xfffe, &[8, 9]);
    moved.machine.put(0, &[10]);
    assert_eq!(moved.run(), Ok(Progress::Done));
    assert_eq!(moved.machine.get(0x100, 3), [8, 9, 10]);
    let registers = &moved.registers;
    assert_eq!((registers.rcx, registers.rsi, registers.rdi), (0x7_0000, 0x5_0001, 0x6_0103));
    // Segments: the source's can be overridden, the destination's is ES; INS in 16-bit code of protected mode.
    let mut moved = bench(PROTECTED, &[0x2e, 0xa5], 0);
    moved.mode.cs_base = 0;
    moved.machine.segment_mut(SegmentRegister::Es).base = 0x10_0000;
    moved.machine.segment_mut(SegmentRegister::Ds).limit = 0;
    moved.machine.put(0x2_0000, &[1, 2, 3, 4]);
    assert_eq!(moved.run(), Ok(Progress::Done));
    assert_eq!(moved.machine.get(0x13_0000, 4), [1, 2, 3, 4]);
    let mut read = bench(PROTECTED_16, &[0x6d], 0);
    read.machine.segment_mut(SegmentRegister::Es).attributes = 0xc91;
    assert_eq!(io(2, PortAccess::IN)(&mut read), Err(fault(13, Some(0))));
    assert_eq!(read.machine.asked, []);
}

#[test]
fn between_a_device_and_memory() {
    let mut moved = bench(LONG, &[0xf3, 0x48, 0xa5], 512);
    moved.registers.rsi = DEVICE;
    moved.machine.put(DEVICE, &pattern(PAGE));
    assert_eq!(run_all(&mut moved, Bench::run), 2);
    assert_eq!(moved.machine.get(0x3_0000, PAGE), pattern(PAGE));
}
