//! Instructions on control registers and translations.

use super::super::{Control, decode_control};
use super::{
    Bench, DEVICE, FAULT_WRITE, LONG, Mode, PAGE, PROTECTED, REAL, SegmentRegister, Stop, page_fault,
};
use crate::memory::GuestVirtAddr;

fn decode(mode: Mode, code: &[u8]) -> (Bench, Result<Control, Stop>) {
    let mut bench = Bench::new(mode, code);
    let registers = &mut bench.registers;
    registers.rax = 0x1122_3344_5566_7788;
    registers.rbx = DEVICE;
    registers.r9 = 0x99;
    bench.machine.segment_mut(SegmentRegister::Gs).base = 0x1_0000_0000;
    bench.machine.put(DEVICE, &[1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x55, 0x44, 0x33, 0x22, 0x11, 0x80]);
    let decoded = bench.with(decode_control);
    if let Ok(decoded) = decoded {
        assert_eq!(usize::from(decoded.length), code.len());
    }
    assert_eq!(bench.registers.rip, super::CODE);
    (bench, decoded.map(|decoded| decoded.control))
}

#[test]
fn writes() {
    let rax = 0x1122_3344_5566_7788;
    let expected = |register, value| Ok(Control::Write { register, value });
    assert_eq!(decode(LONG, &[0x0f, 0x22, 0xd8]).1, expected(3, rax));
    assert_eq!(decode(LONG, &[0x66, 0x0f, 0x22, 0xd8]).1, expected(3, rax));
    assert_eq!(decode(LONG, &[0x41, 0x0f, 0x22, 0xc1]).1, expected(0, 0x99));
    assert_eq!(decode(LONG, &[0x44, 0x0f, 0x22, 0xc0]).1, expected(8, rax));
    assert_eq!(decode(LONG, &[0xf0, 0x0f, 0x22, 0xc0]).1, expected(8, rax));
    // The mode bits of the operand's encoding count for nothing.
    assert_eq!(decode(LONG, &[0x0f, 0x22, 0x20]).1, expected(4, rax));
    assert_eq!(decode(PROTECTED, &[0x0f, 0x22, 0xe0]).1, expected(4, 0x5566_7788));
    assert_eq!(decode(REAL, &[0x0f, 0x22, 0xc0]).1, expected(0, 0x5566_7788));
    assert_eq!(decode(REAL, &[0x0f, 0x06]).1, Ok(Control::ClearTaskSwitched));
    assert_eq!(decode(LONG, &[0x0f, 0x01, 0xf0]).1, Ok(Control::LoadMachineStatus(0x7788)));
    assert_eq!(decode(LONG, &[0x0f, 0x01, 0x33]).1, Ok(Control::LoadMachineStatus(0x1001)));
}

#[test]
fn reads() {
    let value = 0xcccc_0000_8005_003b;
    for (mode, code, number, rcx) in [
        (LONG, &[0x0f, 0x20, 0xd9][..], 3, value),
        (LONG, &[0x44, 0x0f, 0x20, 0xc1], 8, value),
        (PROTECTED, &[0x0f, 0x20, 0xd1], 2, value & 0xffff_ffff),
    ] {
        let (mut bench, control) = decode(mode, code);
        bench.registers.rcx = u64::MAX;
        let Ok(Control::Read { register, destination }) = control else { panic!("{control:?}") };
        assert_eq!(register, number);
        bench.with(|vcpu, machine| destination.store(vcpu, machine, value));
        assert_eq!(bench.registers.rcx, rcx);
    }
    for (code, rax, memory) in [
        (&[0x0f, 0x01, 0xe0][..], 0x8005_003b, 0x1001),
        (&[0x48, 0x0f, 0x01, 0xe0], value, 0x1001),
        (&[0x66, 0x0f, 0x01, 0xe0], 0x1122_3344_5566_003b, 0x1001),
        (&[0x0f, 0x01, 0x23], 0x1122_3344_5566_7788, 0x003b),
    ] {
        let (mut bench, control) = decode(LONG, code);
        let Ok(Control::StoreMachineStatus(destination)) = control else { panic!("{control:?}") };
        bench.with(|vcpu, machine| destination.store(vcpu, machine, value));
        assert_eq!(bench.registers.rax, rax);
        assert_eq!(bench.machine.get_u64(DEVICE), memory);
    }
    // A destination that cannot be written is the instruction's fault.
    let mut bench = Bench::new(LONG, &[0x0f, 0x01, 0x23]);
    bench.registers.rbx = DEVICE;
    bench.machine.read_only.insert(DEVICE / PAGE);
    assert_eq!(bench.with(decode_control).map(|_| ()), Err(page_fault(DEVICE, FAULT_WRITE | 1)));
}

#[test]
fn invalidations() {
    let page = |at| Ok(Control::InvalidatePage(GuestVirtAddr(at)));
    assert_eq!(decode(LONG, &[0x0f, 0x01, 0x3b]).1, page(DEVICE));
    assert_eq!(decode(LONG, &[0x65, 0x0f, 0x01, 0x7b, 8]).1, page(DEVICE + 8 + (1 << 32)));
    assert_eq!(decode(LONG, &[0x36, 0x0f, 0x01, 0x3b]).1, page(DEVICE));
    // No check, no fault: the address need not be one.
    assert_eq!(decode(LONG, &[0x0f, 0x01, 0x38]).1, page(0x1122_3344_5566_7788));
    let (bench, control) = decode(PROTECTED, &[0x64, 0x0f, 0x01, 0x3b]);
    assert_eq!(control, page(DEVICE));
    assert_eq!(bench.machine.asked, []);
    let mut bench = Bench::new(PROTECTED, &[0x64, 0x0f, 0x01, 0x3b]);
    bench.registers.rbx = 0xffff_f000;
    bench.machine.segment_mut(SegmentRegister::Fs).base = 0x2000;
    assert_eq!(bench.with(decode_control).map(|decoded| decoded.control), page(0x1000));

    let context = |kind| Ok(Control::InvalidateContext { kind, descriptor: [0x1001, 0x8011_2233_4455_5000] });
    assert_eq!(decode(LONG, &[0x66, 0x0f, 0x38, 0x82, 0x03]).1, context(0x1122_3344_5566_7788));
    assert_eq!(decode(PROTECTED, &[0x66, 0x0f, 0x38, 0x82, 0x03]).1, context(0x5566_7788));
    let mut bench = Bench::new(LONG, &[0x66, 0x0f, 0x38, 0x82, 0x03]);
    bench.registers.rbx = DEVICE - 8;
    bench.machine.absent.insert(DEVICE / PAGE);
    assert_eq!(bench.with(decode_control).map(|_| ()), Err(page_fault(DEVICE, 0)));
}

#[test]
fn anything_else_is_changed_code() {
    for code in [&[0x89, 0x03][..], &[0x89, 0xd8], &[0x0f, 0x23, 0xf8], &[0xf4], &[0x8c, 0xd8]] {
        assert_eq!(decode(LONG, code).1, Err(Stop::Changed), "{code:x?}");
    }
}
