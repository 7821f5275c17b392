//! Effective addresses, segments, canonical addresses, and operands across pages.

use super::super::SegmentRegister;
use super::{
    Asked, Bench, CODE, DEVICE, FAULT_WRITE, LONG, Mode, PAGE, PROTECTED, PROTECTED_16, Progress, REAL,
    Segment, Stop, fault, page_fault,
};

const GP: u8 = 13;
const SS: u8 = 12;

/// Where `mov eax/ax, [...]` reads.
fn read_at(mode: Mode, code: &[u8], prepare: impl FnOnce(&mut Bench)) -> Result<u64, Stop> {
    let mut bench = Bench::new(mode, code);
    prepare(&mut bench);
    bench.run()?;
    match bench.machine.asked.first() {
        Some(Asked::Read(at, _)) => Ok(*at),
        other => panic!("{other:?}"),
    }
}

#[test]
fn addresses_of_64_bit_code() {
    let prepare = |bench: &mut Bench| {
        let registers = &mut bench.registers;
        registers.rax = 0x1_0000;
        registers.rbx = 0x7_0002_0000;
        registers.rcx = 0x30;
        registers.rsp = 0x4_0000;
        registers.rbp = 0x5_0000;
        registers.r12 = 0x6_0000;
        registers.r13 = 0x7_0000;
        bench.machine.segment_mut(SegmentRegister::Fs).base = 0x100_0000;
        bench.machine.segment_mut(SegmentRegister::Gs).base = 0xffff_8000_0000_0000;
        bench.machine.segment_mut(SegmentRegister::Ds).base = 0xdead_0000;
        bench.machine.segment_mut(SegmentRegister::Ss).base = 0xdead_0000;
    };
    let high = 0x7_0000_0000;
    for (code, at) in [
        (&[0x8b, 0x03][..], high + 0x2_0000),                           // [rbx]
        (&[0x8b, 0x43, 0xf0], high + 0x1_fff0),                         // [rbx-16]
        (&[0x8b, 0x83, 0, 0, 0, 0x80], high + 0x2_0000 - (1 << 31)),    // [rbx-2^31]
        (&[0x8b, 0x44, 0xcb, 0xf0], high + 0x2_0170),                   // [rbx+rcx*8-16]
        (&[0x67, 0x8b, 0x04, 0x8b], 0x2_00c0),                          // [ebx+ecx*4]
        (&[0x67, 0x8b, 0x43, 0xff], 0x1_ffff),                          // [ebx-1]
        (&[0x8b, 0x04, 0x24], 0x4_0000),                                // [rsp]
        (&[0x8b, 0x45, 4], 0x5_0004),                                   // [rbp+4]
        (&[0x41, 0x8b, 0x04, 0x24], 0x6_0000),                          // [r12]
        (&[0x41, 0x8b, 0x45, 0], 0x7_0000),                             // [r13]
        (&[0x8b, 0x04, 0x25, 0x10, 0, 0, 0], 0x10),                     // [0x10]
        (&[0x8b, 0x04, 0x4d, 0x10, 0, 0, 0], 0x70),                     // [rcx*2+0x10]
        (&[0x8b, 0x05, 0x10, 0, 0, 0], CODE + 6 + 0x10),                // [rip+0x10]
        (&[0x67, 0x8b, 0x05, 0x10, 0, 0, 0], CODE + 7 + 0x10),          // [eip+0x10]
        (&[0x8b, 0x05, 0xf0, 0xff, 0xff, 0xff], CODE + 6 - 0x10),       // [rip-0x10]
        (&[0x64, 0x8b, 0x00], 0x101_0000),                              // fs:[rax]
        (&[0x65, 0x8b, 0x04, 0x25, 8, 0, 0, 0], 0xffff_8000_0000_0008), // gs:[8]
        (&[0x67, 0x64, 0x8b, 0x03], 0x102_0000),                        // fs:[ebx]
        (&[0x36, 0x8b, 0x00], 0x1_0000),                                // ss:[rax], no override
        (&[0x2e, 0x8b, 0x00], 0x1_0000),                                // cs:[rax]
    ] {
        assert_eq!(read_at(LONG, code, prepare), Ok(at), "{code:x?}");
    }
}

#[test]
fn addresses_of_16_and_32_bit_code() {
    let prepare = |bench: &mut Bench| {
        let registers = &mut bench.registers;
        (registers.rbx, registers.rbp) = (0xffff_ffff_0001_8000, 0x2_0100);
        (registers.rsi, registers.rdi) = (0x9000, 0x8);
        (registers.rax, registers.rsp) = (0x1_0000, 0x3_0000);
        bench.machine.segment_mut(SegmentRegister::Ds).base = 0x10_0000;
        bench.machine.segment_mut(SegmentRegister::Ss).base = 0x20_0000;
        bench.machine.segment_mut(SegmentRegister::Es).base = 0xffff_f000;
        bench.machine.segment_mut(SegmentRegister::Fs).base = 0xf_0000_0000;
    };
    for (mode, code, at) in [
        (REAL, &[0x8b, 0x07][..], 0x10_8000),                 // [bx]
        (REAL, &[0x8b, 0x00], 0x10_1000),                     // [bx+si], wraps
        (REAL, &[0x8b, 0x41, 0x08], 0x10_8010),               // [bx+di+8]
        (REAL, &[0x8b, 0x02], 0x20_9100),                     // [bp+si]
        (REAL, &[0x8b, 0x46, 0xff], 0x20_00ff),               // [bp-1]
        (REAL, &[0x8b, 0x05], 0x10_0008),                     // [di]
        (REAL, &[0x8b, 0x06, 0x34, 0x12], 0x10_1234),         // [0x1234]
        (REAL, &[0xa1, 0x34, 0x12], 0x10_1234),               // [0x1234], moffs
        (REAL, &[0x3e, 0x8b, 0x46, 0x00], 0x10_0100),         // ds:[bp]
        (REAL, &[0x26, 0x8b, 0x07], 0x7000),                  // es:[bx], wraps at 4 GiB
        (REAL, &[0x64, 0x8b, 0x05], 8),                       // fs:[di], whose base counts to 32 bits
        (PROTECTED_16, &[0x67, 0x8b, 0x03], 0x11_8000),       // [ebx]
        (PROTECTED_16, &[0x67, 0x8b, 0x04, 0x24], 0x23_0000), // [esp]
        (PROTECTED, &[0x8b, 0x03], 0x11_8000),                // [ebx]
        (PROTECTED, &[0x8b, 0x05, 8, 0, 0, 0], 0x10_0008),    // [8]
        (PROTECTED, &[0xa1, 8, 0, 0, 0], 0x10_0008),          // [8], moffs
        (PROTECTED, &[0x67, 0xa1, 8, 0], 0x10_0008),          // [8], moffs of 16 bits
        (PROTECTED, &[0x8b, 0x44, 0x05, 0], 0x23_0100),       // [ebp+eax]
        (PROTECTED, &[0x8b, 0x44, 0x28, 0], 0x13_0100),       // [eax+ebp]
        (PROTECTED, &[0x67, 0x8b, 0x07], 0x10_8000),          // [bx]
    ] {
        assert_eq!(read_at(mode, code, prepare), Ok(at), "{code:x?}");
    }
    // 32-bit code of long mode is as 32-bit code ever is.
    let compatibility = Mode { efer: 0x500, ..PROTECTED };
    assert_eq!(read_at(compatibility, &[0x8b, 0x03], prepare), Ok(0x11_8000));
    // The bit that makes code of 64 bits is nothing outside long mode.
    let long_bit = Mode { cs_attributes: 0x29b, ..PROTECTED };
    assert_eq!(read_at(long_bit, &[0x8b, 0x07], prepare), Ok(0x10_8000));
}

#[test]
fn flat_64_bit_code_asks_for_no_segment() {
    let mut bench = Bench::new(LONG, &[0x89, 0x03]);
    bench.registers.rbx = DEVICE;
    assert_eq!(bench.run(), Ok(Progress::Done));
    assert_eq!(bench.machine.segments_asked, []);
}

#[test]
fn addresses_that_are_not_canonical() {
    let low_end = 0x0000_8000_0000_0000;
    let high_start = 0xffff_8000_0000_0000;
    for (code, at, vector) in [
        (&[0x8b, 0x03][..], low_end, GP),         // [rbx]
        (&[0x8b, 0x03], low_end - 3, GP),         // its last byte
        (&[0x8b, 0x03], high_start - 1, GP),      // its first byte
        (&[0x8b, 0x45, 0x00], low_end, SS),       // [rbp]
        (&[0x8b, 0x04, 0x24], low_end, SS),       // [rsp]
        (&[0x36, 0x8b, 0x03], low_end, GP),       // ss:[rbx], no override
        (&[0x3e, 0x8b, 0x45, 0x00], low_end, SS), // ds:[rbp], no override
        (&[0x64, 0x8b, 0x45, 0x00], low_end, GP), // fs:[rbp]
        (&[0xff, 0x33], low_end + 1, GP),         // push [rbx]
        (&[0x50], low_end + 16, SS),              // push rax
        (&[0x58], low_end, SS),                   // pop rax
    ] {
        let mut bench = Bench::new(LONG, code);
        (bench.registers.rbx, bench.registers.rbp, bench.registers.rsp) = (at, at, at);
        assert_eq!(bench.run(), Err(fault(vector, Some(0))), "{code:x?} {at:x}");
        assert_eq!(bench.machine.asked, []);
    }
    for at in [0, low_end - 4, high_start, u64::MAX - 3] {
        assert_eq!(read_at(LONG, &[0x8b, 0x03], |bench| bench.registers.rbx = at), Ok(at));
    }
    // With five levels of page tables there are 57 bits.
    let five_levels = Mode { cr4: 0x1020, ..LONG };
    assert_eq!(read_at(five_levels, &[0x8b, 0x03], |bench| bench.registers.rbx = low_end), Ok(low_end));
    let past = |bench: &mut Bench| bench.registers.rbx = 1 << 56;
    assert_eq!(read_at(five_levels, &[0x8b, 0x03], past), Err(fault(GP, Some(0))));
}

#[test]
fn operands_across_two_pages() {
    let edge = DEVICE + PAGE;
    for in_first in 1..8 {
        let mut bench = Bench::new(LONG, &[0x48, 0x01, 0x03]); // add [rbx], rax
        bench.registers.rbx = edge - in_first;
        bench.registers.rax = 0x0101_0101_0101_0101;
        let elsewhere = 0x77;
        bench.machine.moved.insert(edge / PAGE, elsewhere);
        bench.machine.put(edge - 8, &[0x10; 8]);
        bench.machine.put(elsewhere * PAGE, &[0x20; 8]);
        bench.machine.put(edge, &[0xee; 8]);
        assert_eq!(bench.run(), Ok(Progress::Done));
        let machine = &bench.machine;
        let first = usize::try_from(in_first).unwrap();
        assert_eq!(machine.get(edge - in_first, in_first), vec![0x11; first]);
        assert_eq!(machine.get(edge - 8, 8 - in_first), vec![0x10; 8 - first]);
        assert_eq!(machine.get(elsewhere * PAGE, 8 - in_first), vec![0x21; 8 - first]);
        assert_eq!(machine.get(elsewhere * PAGE + 8 - in_first, in_first), vec![0x20; first]);
        assert_eq!(machine.get(edge, 8), [0xee; 8]);
        assert_eq!(machine.asked.len(), 4);

        let mut bench = Bench::new(LONG, &[0x48, 0x01, 0x03]);
        bench.registers.rbx = edge - in_first;
        bench.machine.absent.insert(edge / PAGE);
        assert_eq!(bench.run(), Err(page_fault(edge, FAULT_WRITE)));
        assert_eq!(bench.machine.asked, []);
        bench.machine.absent.clear();
        bench.machine.read_only.insert(edge / PAGE - 1);
        assert_eq!(bench.run(), Err(page_fault(edge - in_first, FAULT_WRITE | 1)));
    }
    // An operand that ends with its page needs no other.
    let mut bench = Bench::new(LONG, &[0x48, 0x01, 0x03]);
    bench.registers.rbx = edge - 8;
    bench.machine.absent.insert(edge / PAGE);
    assert_eq!(bench.run(), Ok(Progress::Done));
}

#[test]
fn page_tables_that_are_nowhere_are_reported() {
    let mut bench = Bench::new(LONG, &[0x89, 0x03]);
    bench.registers.rbx = DEVICE;
    bench.machine.lost.insert(DEVICE / PAGE);
    assert!(matches!(bench.run(), Err(Stop::Unsupported(encoding)) if encoding.length == 2));
    bench.machine.lost.clear();
    bench.machine.contended.insert(DEVICE / PAGE);
    assert_eq!(bench.run(), Err(Stop::Changed));
    assert_eq!((bench.registers.rip, &bench.machine.asked[..]), (CODE, &[][..]));
}

#[test]
fn segments_limit_and_permit() {
    let data = Segment { selector: 8, attributes: 0xc93, limit: 0xfff, base: 0x10_0000 };
    let read = &[0x8b, 0x03][..]; // mov eax, [ebx]
    let write = &[0x89, 0x03][..];
    let through_code = &[0x2e, 0x8b, 0x03][..]; // mov eax, cs:[ebx]
    let write_code = &[0x2e, 0x89, 0x03][..];
    let on_stack = &[0x36, 0x8b, 0x03][..]; // mov eax, ss:[ebx]
    let gp = Err(fault(GP, Some(0)));
    let ss = Err(fault(SS, Some(0)));
    let fine = Ok(Progress::Done);
    for (code, attributes, limit, offset, expected) in [
        (read, 0xc93, 0xfff, 0xffc, fine),
        (read, 0xc93, 0xfff, 0xffd, gp),
        (read, 0xc93, 0xfff, 0x1000, gp),
        (read, 0xc93, u32::MAX, 0xffff_fffc, fine),
        (read, 0xc93, u32::MAX, 0xffff_fffd, gp),
        (on_stack, 0xc93, 0xfff, 0xffd, ss),
        (read, 0xc91, 0xfff, 0, fine), // read-only data
        (write, 0xc91, 0xfff, 0, gp),
        (write, 0xc93, 0xfff, 0, fine),
        (read, 0xc13, 0xfff, 0, gp), // not present
        (on_stack, 0xc13, 0xfff, 0, ss),
        (read, 0, 0xfff, 0, gp), // null
        (through_code, 0xc9b, u32::MAX, 0, fine),
        (write_code, 0xc9b, u32::MAX, 0, gp),
        (through_code, 0xc99, u32::MAX, 0, gp), // execute-only
        (read, 0xc97, 0xfff, 0xfff, gp),        // expand-down: above the limit
        (read, 0xc97, 0xfff, 0x1000, fine),
        (read, 0xc97, 0xfff, 0xffff_fffc, fine),
        (read, 0x897, 0xfff, 0xfffc, fine), // of 16 bits
        (read, 0x897, 0xfff, 0xfffd, gp),
        (on_stack, 0x897, 0xfff, 0xfff, ss),
    ] {
        let mut bench = Bench::new(PROTECTED, code);
        bench.registers.rbx = offset;
        let register = match code[0] {
            0x2e => SegmentRegister::Cs,
            0x36 => SegmentRegister::Ss,
            _ => SegmentRegister::Ds,
        };
        let base = if register == SegmentRegister::Cs { 0 } else { data.base };
        *bench.machine.segment_mut(register) = Segment { attributes, limit, base, ..data };
        assert_eq!(bench.run(), expected, "{code:x?} {attributes:x} {limit:x} {offset:x}");
    }
}

#[test]
fn faults_of_real_mode_have_no_error_code() {
    for (offset, expected) in [(0xfffe, Ok(Progress::Done)), (0xffff, Err(fault(GP, None)))] {
        let mut bench = Bench::new(REAL, &[0x89, 0x07]); // mov [bx], ax
        bench.registers.rbx = offset;
        assert_eq!(bench.run(), expected);
    }
    let mut bench = Bench::new(REAL, &[0x8b, 0x46, 0x00]); // mov ax, [bp]
    bench.registers.rbp = 0xffff;
    assert_eq!(bench.run(), Err(fault(SS, None)));
    // A write through CS is allowed there, and in virtual-8086 mode, whose faults have one.
    for (mode, flags) in [(REAL, 2), (PROTECTED_16, 1 << 17 | 2)] {
        let mut bench = Bench::new(mode, &[0x2e, 0x89, 0x07]);
        bench.registers.rflags = flags;
        bench.registers.rbx = 0x2000;
        bench.machine.segment_mut(SegmentRegister::Cs).limit = 0xffff;
        assert_eq!(bench.run(), Ok(Progress::Done));
        bench.registers.rip = CODE;
        bench.registers.rbx = 0xffff;
        let code = (flags != 2).then_some(0);
        assert_eq!(bench.run(), Err(fault(GP, code)));
    }
}
