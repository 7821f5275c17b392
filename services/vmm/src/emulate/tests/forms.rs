//! Each form of each instruction against what the manual says it does to a device's 8 bytes and to the registers.

use super::{Asked, Bench, DEVICE, LONG, PROTECTED, PROTECTED_16, Progress, Stop};
use ipc::abi::UserRegisters;

const BEFORE: u64 = 0x8877_6655_4433_2211;
const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 16;
const ZF: u64 = 64;
const SF: u64 = 128;
const OF: u64 = 2048;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

fn start() -> UserRegisters {
    UserRegisters {
        rax: 0x1122_3344_5566_7788,
        rbx: DEVICE,
        rcx: 0x0102_0304_0506_0708,
        rdx: 0xa1a2_a3a4_a5a6_a7a8,
        rsi: 0x9192_9394_9596_9798,
        rsp: 0x8000,
        r9: u64::MAX,
        // All flags of arithmetic but ZF, and bit 1 that is always set.
        rflags: 2 | ALL & !ZF,
        ..UserRegisters::ZERO
    }
}

/// Code, what the device has afterwards, and how the registers differ, but for RIP.
type Form = (&'static str, &'static [u8], u64, fn(&mut UserRegisters));

fn same(_: &mut UserRegisters) {}

fn flags(registers: &mut UserRegisters, set: u64) {
    registers.rflags = 2 | set;
}

const FORMS: &[Form] = &[
    ("mov [rbx], al", &[0x88, 0x03], 0x8877_6655_4433_2288, same),
    ("mov [rbx], ah", &[0x88, 0x23], 0x8877_6655_4433_2277, same),
    ("mov [rbx], sil", &[0x40, 0x88, 0x33], 0x8877_6655_4433_2298, same),
    ("mov [rbx], ax", &[0x66, 0x89, 0x03], 0x8877_6655_4433_7788, same),
    ("mov [rbx], eax", &[0x89, 0x03], 0x8877_6655_5566_7788, same),
    ("mov [rbx], rax", &[0x48, 0x89, 0x03], 0x1122_3344_5566_7788, same),
    ("mov r9b, [rbx]", &[0x44, 0x8a, 0x0b], BEFORE, |r| r.r9 = 0xffff_ffff_ffff_ff11),
    ("mov ch, [rbx]", &[0x8a, 0x2b], BEFORE, |r| r.rcx = 0x0102_0304_0506_1108),
    ("mov r9w, [rbx]", &[0x66, 0x44, 0x8b, 0x0b], BEFORE, |r| r.r9 = 0xffff_ffff_ffff_2211),
    ("mov r9d, [rbx]", &[0x44, 0x8b, 0x0b], BEFORE, |r| r.r9 = 0x4433_2211),
    ("mov r9, [rbx]", &[0x4c, 0x8b, 0x0b], BEFORE, |r| r.r9 = BEFORE),
    ("mov byte [rbx], imm", &[0xc6, 0x03, 0x5a], 0x8877_6655_4433_225a, same),
    ("mov word [rbx], imm", &[0x66, 0xc7, 0x03, 0x5b, 0x5a], 0x8877_6655_4433_5a5b, same),
    ("mov dword [rbx], imm", &[0xc7, 0x03, 0x5d, 0x5c, 0x5b, 0x8a], 0x8877_6655_8a5b_5c5d, same),
    ("mov qword [rbx], -2", &[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff], u64::MAX - 1, same),
    ("mov al, [moffs]", &[0xa0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0], BEFORE, |r| r.rax = 0x1122_3344_5566_7711),
    ("mov [moffs], eax", &[0xa3, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0], 0x8877_6655_5566_7788, same),
    ("mov rax, [moffs]", &[0x48, 0xa1, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0], BEFORE, |r| r.rax = BEFORE),
    ("mov eax, [moffs32]", &[0x67, 0xa1, 0, 0, 0xc0, 0xfe], BEFORE, |r| r.rax = 0x4433_2211),
    ("mov [rbx], ds", &[0x8c, 0x1b], 0x8877_6655_4433_0018, same),
    ("mov [rbx], ds, rex.w", &[0x48, 0x8c, 0x1b], 0x8877_6655_4433_0018, same),
    ("movnti [rbx], eax", &[0x0f, 0xc3, 0x03], 0x8877_6655_5566_7788, same),
    ("movnti [rbx], rax", &[0x48, 0x0f, 0xc3, 0x03], 0x1122_3344_5566_7788, same),
    ("movzx ecx, byte", &[0x0f, 0xb6, 0x0b], BEFORE, |r| r.rcx = 0x11),
    ("movzx cx, byte", &[0x66, 0x0f, 0xb6, 0x0b], BEFORE, |r| r.rcx = 0x0102_0304_0506_0011),
    ("movzx rcx, word", &[0x48, 0x0f, 0xb7, 0x0b], BEFORE, |r| r.rcx = 0x2211),
    ("movsx ecx, byte", &[0x0f, 0xbe, 0x4b, 7], BEFORE, |r| r.rcx = 0xffff_ff88),
    ("movsx cx, byte", &[0x66, 0x0f, 0xbe, 0x4b, 7], BEFORE, |r| r.rcx = 0x0102_0304_0506_ff88),
    ("movsx rcx, word", &[0x48, 0x0f, 0xbf, 0x4b, 6], BEFORE, |r| r.rcx = 0xffff_ffff_ffff_8877),
    ("movsxd rcx, dword", &[0x48, 0x63, 0x4b, 4], BEFORE, |r| r.rcx = 0xffff_ffff_8877_6655),
    ("xchg [rbx], eax", &[0x87, 0x03], 0x8877_6655_5566_7788, |r| r.rax = 0x4433_2211),
    ("xchg [rbx], al", &[0x86, 0x03], 0x8877_6655_4433_2288, |r| r.rax = 0x1122_3344_5566_7711),
    ("lock xchg [rbx], rax", &[0xf0, 0x48, 0x87, 0x03], 0x1122_3344_5566_7788, |r| r.rax = BEFORE),
    // 44332211 + 55667788 = 99999999: overflow.
    ("add [rbx], eax", &[0x01, 0x03], 0x8877_6655_9999_9999, |r| flags(r, SF | OF | PF)),
    ("add rax, [rbx]", &[0x48, 0x03, 0x03], BEFORE, |r| {
        r.rax = 0x9999_9999_9999_9999;
        flags(r, SF | PF);
    }),
    ("add byte [rbx], 0xef", &[0x80, 0x03, 0xef], 0x8877_6655_4433_2200, |r| flags(r, ZF | PF | CF | AF)),
    ("add dword [rbx], -1", &[0x83, 0x03, 0xff], 0x8877_6655_4433_2210, |r| flags(r, CF | AF)),
    // With the carry that is set.
    ("adc word [rbx], 1", &[0x66, 0x83, 0x13, 1], 0x8877_6655_4433_2213, |r| flags(r, 0)),
    ("sub [rbx], rax", &[0x48, 0x29, 0x03], 0x7755_3310_eecc_aa89, |r| flags(r, OF | AF)),
    ("sbb byte [rbx], 0x11", &[0x80, 0x1b, 0x11], 0x8877_6655_4433_22ff, |r| flags(r, CF | AF | SF | PF)),
    ("and dword [rbx], imm", &[0x81, 0x23, 0xf0, 0xf0, 0xf0, 0xf0], 0x8877_6655_4030_2010, |r| flags(r, 0)),
    ("or [rbx], al", &[0x08, 0x03], 0x8877_6655_4433_2299, |r| flags(r, SF | PF)),
    ("lock or dword [rbx], 1", &[0xf0, 0x83, 0x0b, 1], BEFORE, |r| flags(r, PF)),
    ("xor [rbx], rax", &[0x48, 0x31, 0x03], 0x9955_5511_1155_5599, |r| flags(r, SF | PF)),
    ("xor eax, [rbx]", &[0x33, 0x03], BEFORE, |r| {
        r.rax = 0x1155_5599;
        flags(r, PF);
    }),
    ("cmp dword [rbx], same", &[0x81, 0x3b, 0x11, 0x22, 0x33, 0x44], BEFORE, |r| flags(r, ZF | PF)),
    // 88 - 11 = 77, from negative to positive.
    ("cmp al, [rbx]", &[0x3a, 0x03], BEFORE, |r| flags(r, OF | PF)),
    ("test [rbx], al", &[0x84, 0x03], BEFORE, |r| flags(r, ZF | PF)),
    ("test dword [rbx], 0x11", &[0xf7, 0x03, 0x11, 0, 0, 0], BEFORE, |r| flags(r, PF)),
    ("inc byte [rbx]", &[0xfe, 0x03], 0x8877_6655_4433_2212, |r| flags(r, CF | PF)),
    ("dec dword [rbx]", &[0xff, 0x0b], 0x8877_6655_4433_2210, |r| flags(r, CF)),
    ("lock inc qword [rbx]", &[0xf0, 0x48, 0xff, 0x03], BEFORE + 1, |r| flags(r, CF | SF | PF)),
    ("not dword [rbx]", &[0xf7, 0x13], 0x8877_6655_bbcc_ddee, same),
    ("neg qword [rbx]", &[0x48, 0xf7, 0x1b], 0x7788_99aa_bbcc_ddef, |r| flags(r, CF | AF)),
    ("neg byte [rbx]", &[0xf6, 0x1b], 0x8877_6655_4433_22ef, |r| flags(r, CF | AF | SF)),
    ("bt dword [rbx], 4", &[0x0f, 0xba, 0x23, 4], BEFORE, same),
    ("bt dword [rbx], 1", &[0x0f, 0xba, 0x23, 1], BEFORE, |r| r.rflags &= !CF),
    ("bts word [rbx], 1", &[0x66, 0x0f, 0xba, 0x2b, 1], 0x8877_6655_4433_2213, |r| r.rflags &= !CF),
    ("lock btr dword [rbx], 32", &[0xf0, 0x0f, 0xba, 0x33, 32], BEFORE - 1, same),
    ("btc qword [rbx], 63", &[0x48, 0x0f, 0xba, 0x3b, 63], 0x0877_6655_4433_2211, same),
    ("xadd [rbx], eax", &[0x0f, 0xc1, 0x03], 0x8877_6655_9999_9999, |r| {
        r.rax = 0x4433_2211;
        flags(r, SF | OF | PF);
    }),
    ("lock xadd [rbx], al", &[0xf0, 0x0f, 0xc0, 0x03], 0x8877_6655_4433_2299, |r| {
        r.rax = 0x1122_3344_5566_7711;
        flags(r, SF | PF);
    }),
    // Not equal: 55667788 - 44332211 = 11335577.
    ("cmpxchg [rbx], ecx", &[0x0f, 0xb1, 0x0b], BEFORE, |r| {
        r.rax = 0x4433_2211;
        flags(r, PF);
    }),
    ("lock cmpxchg [rbx], cl", &[0xf0, 0x0f, 0xb0, 0x0b], BEFORE, |r| {
        r.rax = 0x1122_3344_5566_7711;
        flags(r, OF | PF);
    }),
    ("cmpxchg8b [rbx]", &[0x0f, 0xc7, 0x0b], BEFORE, |r| {
        (r.rax, r.rdx) = (0x4433_2211, 0x8877_6655);
        r.rflags &= !ZF;
    }),
    // To and from the stack, which is zeros.
    ("push qword [rbx]", &[0xff, 0x33], BEFORE, |r| r.rsp = 0x7ff8),
    ("push word [rbx]", &[0x66, 0xff, 0x33], BEFORE, |r| r.rsp = 0x7ffe),
    ("pop qword [rbx]", &[0x8f, 0x03], 0, |r| r.rsp = 0x8008),
    ("pop word [rbx]", &[0x66, 0x8f, 0x03], 0x8877_6655_4433_0000, |r| r.rsp = 0x8002),
];

fn run(code: &[u8], prepare: impl FnOnce(&mut Bench)) -> (Result<Progress, Stop>, Bench) {
    let mut bench = Bench::new(LONG, code);
    bench.registers = UserRegisters { rip: bench.registers.rip, ..start() };
    bench.machine.put(DEVICE, &BEFORE.to_le_bytes());
    prepare(&mut bench);
    (bench.run(), bench)
}

fn words(registers: &UserRegisters) -> [u64; 18] {
    zerocopy::transmute!(*registers)
}

#[test]
fn every_form_does_what_the_manual_says() {
    for (text, code, device, change) in FORMS {
        let (result, bench) = run(code, |_| {});
        assert_eq!(result, Ok(Progress::Done), "{text}");
        let mut expected = start();
        change(&mut expected);
        expected.rip = super::CODE + code.len() as u64;
        assert_eq!(words(&bench.registers), words(&expected), "{text}: {:x?}", bench.registers);
        assert_eq!(bench.machine.get_u64(DEVICE), *device, "{text}");
    }
}

#[test]
fn a_form_whose_page_is_missing_changes_nothing() {
    for (text, code, ..) in FORMS {
        let (result, bench) = run(code, |bench| {
            bench.machine.absent.insert(DEVICE / super::PAGE);
        });
        assert!(matches!(result, Err(Stop::Fault(_))), "{text}");
        let expected = UserRegisters { rip: super::CODE, ..start() };
        assert_eq!(words(&bench.registers), words(&expected), "{text}");
        assert_eq!(bench.machine.asked, [], "{text}");
    }
}

#[test]
fn reading_and_writing_forms_ask_for_what_they_do() {
    for (text, code, device, _) in FORMS {
        let (result, bench) = run(code, |bench| {
            bench.machine.read_only.insert(DEVICE / super::PAGE);
        });
        if *device != BEFORE {
            assert_eq!(result, Err(super::page_fault(DEVICE, super::FAULT_WRITE | 1)), "{text}");
            assert_eq!(bench.machine.asked, [], "{text}");
        }
    }
    // Forms that leave the value alone: some of them write it all the same.
    let (result, _) = run(&[0x0f, 0xb1, 0x0b], |bench| {
        bench.machine.read_only.insert(DEVICE / super::PAGE);
    });
    assert_eq!(result, Err(super::page_fault(DEVICE, super::FAULT_WRITE | 1)));
    for code in [&[0x84, 0x03][..], &[0x3a, 0x03], &[0x0f, 0xba, 0x23, 4], &[0xff, 0x33]] {
        let (result, _) = run(code, |bench| {
            bench.machine.read_only.insert(DEVICE / super::PAGE);
        });
        assert_eq!(result, Ok(Progress::Done));
    }
}

#[test]
fn an_operand_is_one_access_of_its_width() {
    let (_, bench) = run(&[0x89, 0x03], |_| {});
    assert_eq!(bench.machine.asked, [Asked::Write(DEVICE, vec![0x88, 0x77, 0x66, 0x55])]);
    let (_, bench) = run(&[0x01, 0x03], |_| {});
    assert_eq!(
        bench.machine.asked,
        [
            Asked::Read(DEVICE, vec![0x11, 0x22, 0x33, 0x44]),
            Asked::Write(DEVICE, vec![0x99, 0x99, 0x99, 0x99])
        ]
    );
}

#[test]
fn compare_and_exchange_writes_in_either_case() {
    // cmpxchg [rbx], ecx / cmpxchg8b [rbx], both of them not equal
    for (code, bytes) in [(&[0x0f, 0xb1, 0x0b][..], 4), (&[0x0f, 0xc7, 0x0b], 8)] {
        let (_, bench) = run(code, |_| {});
        let there = BEFORE.to_le_bytes()[..bytes].to_vec();
        assert_eq!(bench.machine.asked, [Asked::Read(DEVICE, there.clone()), Asked::Write(DEVICE, there)]);
    }
}

#[test]
fn compare_and_exchange_succeeds() {
    let (result, bench) = run(&[0x48, 0x0f, 0xb1, 0x0b], |bench| bench.registers.rax = BEFORE);
    assert_eq!(result, Ok(Progress::Done));
    assert_eq!(bench.machine.get_u64(DEVICE), start().rcx);
    assert_eq!(bench.registers.rax, BEFORE);
    assert_eq!(bench.registers.rflags, 2 | ZF | PF);
    // 32 bits: the accumulator's upper half stays, as nothing is written to it.
    let (_, bench) = run(&[0x0f, 0xb1, 0x0b], |bench| bench.registers.rax = 7 << 32 | 0x4433_2211);
    assert_eq!(bench.registers.rax, 7 << 32 | 0x4433_2211);
    assert_eq!(bench.machine.get_u64(DEVICE), 0x8877_6655_0506_0708);
    let (_, bench) = run(&[0xf0, 0x0f, 0xc7, 0x0b], |bench| {
        (bench.registers.rax, bench.registers.rdx) = (0x4433_2211, 0x8877_6655);
        bench.registers.rbx = DEVICE;
    });
    assert_eq!(bench.machine.get_u64(DEVICE), 0x0506_0708 << 32 | DEVICE);
    assert_eq!(bench.registers.rflags, 2 | ALL);
}

#[test]
fn a_bit_number_in_a_register_reaches_elsewhere() {
    // bts [rbx], rcx / bts [rbx], cx / bt [rbx], ecx
    for (code, number, at, bit) in [
        (&[0x48, 0x0f, 0xab, 0x0b][..], 64 * 3 + 5, 24, 5),
        (&[0x48, 0x0f, 0xab, 0x0b], -1i64, -8, 63),
        (&[0x66, 0x0f, 0xab, 0x0b], 0x1234_0000 | 0x21, 4, 1),
        (&[0x66, 0x0f, 0xab, 0x0b], 0xfff0, -2, 0),
        (&[0x0f, 0xab, 0x0b], i64::from(i32::MIN), -0x1000_0000, 0),
        (&[0x0f, 0xab, 0x0b], 0x7_0000_001f, 0, 31),
        // The sum has the address size: with 32 bits it wraps.
        (&[0x67, 0x0f, 0xab, 0x0b], i64::from(i32::MAX), 0xfff_fffc - (1 << 32), 31),
    ] {
        let (result, bench) = run(code, |bench| {
            bench.machine.bytes.retain(|&address, _| address < DEVICE);
            bench.registers.rcx = number.cast_unsigned();
        });
        assert_eq!(result, Ok(Progress::Done));
        assert_eq!(bench.machine.get_u64(DEVICE.wrapping_add_signed(at)), 1 << bit, "{code:x?} {number:x}");
        assert_eq!(bench.registers.rflags & CF, 0);
    }
}

#[test]
fn the_stack_is_pushed_and_popped() {
    let (_, bench) = run(&[0xff, 0x33], |_| {});
    assert_eq!(bench.machine.get_u64(0x7ff8), BEFORE);
    // pop [rsp+8]: the address counts from RSP afterwards.
    let (_, bench) = run(&[0x8f, 0x44, 0x24, 8], |bench| bench.machine.put(0x8000, &7u64.to_le_bytes()));
    assert_eq!(bench.machine.get_u64(0x8010), 7);
    assert_eq!(bench.registers.rsp, 0x8008);
    // push rax / push -2 / push imm32 with the stack in the device; pop rcx; pop rsp.
    for (code, value) in [
        (&[0x50][..], start().rax),
        (&[0x6a, 0xfe], u64::MAX - 1),
        (&[0x68, 0x78, 0x56, 0x34, 0x82], 0xffff_ffff_8234_5678),
    ] {
        let (_, bench) = run(code, |bench| bench.registers.rsp = DEVICE + 8);
        assert_eq!(bench.machine.get_u64(DEVICE), value);
        assert_eq!(bench.registers.rsp, DEVICE);
    }
    let (_, bench) = run(&[0x59], |bench| bench.registers.rsp = DEVICE);
    assert_eq!((bench.registers.rcx, bench.registers.rsp), (BEFORE, DEVICE + 8));
    let (_, bench) = run(&[0x5c], |bench| bench.registers.rsp = DEVICE);
    assert_eq!(bench.registers.rsp, BEFORE);
    // The stack pointer's width is that of the stack segment.
    let mut bench = Bench::new(PROTECTED, &[0xff, 0x33]);
    bench.registers.rbx = DEVICE;
    bench.registers.rsp = 0xffff_0002;
    bench.machine.segment_mut(super::SegmentRegister::Ss).attributes = 0x893;
    bench.machine.put(DEVICE, &BEFORE.to_le_bytes());
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.registers.rsp, 0xffff_fffe);
    assert_eq!(bench.machine.get(0xfffe, 4), [0x11, 0x22, 0x33, 0x44]);
}

#[test]
fn the_same_bytes_are_other_instructions_elsewhere() {
    // mov [bx], ax / mov [ebx], eax / with either prefix.
    for (mode, code, written) in [
        (PROTECTED_16, &[0x89, 0x07][..], 2),
        (PROTECTED_16, &[0x66, 0x89, 0x07], 4),
        (PROTECTED_16, &[0x67, 0x66, 0x89, 0x03], 4),
        (PROTECTED, &[0x89, 0x03], 4),
        (PROTECTED, &[0x66, 0x89, 0x03], 2),
        (PROTECTED, &[0x67, 0x89, 0x07], 4),
    ] {
        let mut bench = Bench::new(mode, code);
        bench.registers.rbx = 0x4000;
        bench.registers.rax = 0x1122_3344;
        assert_eq!(bench.run(), Ok(Progress::Done));
        let expected = [0x44, 0x33, 0x22, 0x11][..written].to_vec();
        assert_eq!(bench.machine.asked, [Asked::Write(0x4000, expected)], "{code:x?}");
        assert_eq!(bench.registers.rip, super::CODE + code.len() as u64);
    }
}

#[test]
fn what_is_not_emulated_is_reported_with_its_bytes() {
    for code in [
        &[0x0f, 0x11, 0x03][..],         // movups [rbx], xmm0
        &[0x66, 0x0f, 0xd6, 0x03],       // movq [rbx], xmm0
        &[0xf2, 0x0f, 0x10, 0x03],       // movsd xmm0, [rbx]
        &[0xf2, 0x0f, 0xc2, 0x03, 0x00], // cmpeqsd xmm0, [rbx]
        &[0xd1, 0x23],                   // shl dword [rbx], 1
        &[0x48, 0x0f, 0xc7, 0x0b],       // cmpxchg16b [rbx]
        &[0xd9, 0x03],                   // fld dword [rbx]
        &[0xff, 0x13],                   // call [rbx]
        &[0x8e, 0x1b],                   // mov ds, [rbx]
        &[0x0f, 0xa8],                   // push gs
        &[0x0f, 0xa9],                   // pop gs
        &[0x0f, 0x22, 0xd8],             // mov cr3, rax
        &[0xc3],                         // ret
    ] {
        let (result, bench) = run(code, |_| {});
        let Err(Stop::Unsupported(encoding)) = result else { panic!("{code:x?}: {result:?}") };
        assert_eq!(&encoding.bytes[..encoding.length.into()], code);
        assert_eq!(words(&bench.registers), words(&UserRegisters { rip: super::CODE, ..start() }));
        assert_eq!(bench.machine.asked, []);
    }
    // Another exit's business, and a breakpoint that came in between.
    for code in [&[0x6d][..], &[0x6e], &[0xcc]] {
        assert_eq!(run(code, |_| {}).0, Err(Stop::Changed));
    }
    // LOCK where there may be none, and no instruction at all.
    for code in [&[0xf0, 0x89, 0x03][..], &[0x0f, 0x04], &[0x06]] {
        assert_eq!(run(code, |_| {}).0, Err(super::fault(6, None)));
    }
}

#[test]
fn completion_ends_the_resume_flag() {
    let (_, bench) = run(&[0x89, 0x03], |bench| bench.registers.rflags |= 1 << 16);
    assert_eq!(bench.registers.rflags, start().rflags);
}
