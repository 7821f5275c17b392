//! Whatever is at RIP and in the registers: nothing panics, nothing is touched without translation, and what fails has
//! not happened. The platform of these tests checks each access.

use super::super::{Control, Platform, decode_control, emulate_memory, emulate_string_io, length_of};
use super::{Bench, CODE, LONG, Machine, Mode, PAGE, PROTECTED, PROTECTED_16, Progress, REAL, Stop};
use ipc::vcpu::{ExitReason, PortAccess, Segment};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MODES: [Mode; 5] =
    [LONG, PROTECTED, PROTECTED_16, REAL, Mode { efer: 0x500, cs_attributes: 0xc9b, ..LONG }];
/// First bytes that make random code one that is emulated more often.
const OPCODES: &[&[u8]] = &[
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xa0],
    &[0xa3],
    &[0xc6],
    &[0xc7],
    &[0x01],
    &[0x33],
    &[0x80],
    &[0x83],
    &[0xf6],
    &[0xf7],
    &[0xfe],
    &[0xff],
    &[0x86],
    &[0x87],
    &[0x8f],
    &[0x0f, 0xb1],
    &[0x0f, 0xc1],
    &[0x0f, 0xc7],
    &[0x0f, 0xba],
    &[0x0f, 0xab],
    &[0x0f, 0xa3],
    &[0x0f, 0xb6],
    &[0x0f, 0xbf],
    &[0x0f, 0x01],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0xa4],
    &[0xa5],
    &[0xa6],
    &[0xaf],
    &[0xab],
    &[0xad],
    &[0x6c],
    &[0x6d],
    &[0x6e],
    &[0x6f],
    &[0x50],
    &[0x58],
    &[0x66, 0x0f, 0x38, 0x82],
];
const PREFIXES: &[u8] = &[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x41, 0x44];

fn words(bench: &Bench) -> [u64; 18] {
    zerocopy::transmute!(bench.registers)
}

fn random_value(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_range(0..5) {
        0 => rng.random(),
        1 => u64::from(rng.random::<u16>()),
        2 => rng.random_range(1..8) * PAGE - rng.random_range(0..9),
        3 => u64::MAX << rng.random_range(0..64),
        _ => u64::from(rng.random::<u32>()),
    }
    .wrapping_add(u64::from(rng.random::<u8>() & 3))
}

fn random_bench(rng: &mut ChaCha8Rng) -> Bench {
    let mut code: std::vec::Vec<u8> = std::vec::Vec::new();
    if rng.random_bool(0.8) {
        for _ in 0..rng.random_range(0..3) {
            code.push(PREFIXES[rng.random_range(0..PREFIXES.len())]);
        }
        code.extend(OPCODES[rng.random_range(0..OPCODES.len())]);
    }
    code.resize_with(15, || rng.random());
    let mut bench = Bench::new(MODES[rng.random_range(0..MODES.len())], &[]);
    let mut registers: [u64; 18] = [0; 18];
    for register in &mut registers {
        *register = random_value(rng);
    }
    bench.registers = zerocopy::transmute!(registers);
    // Mostly where code is, and often at the end of its page.
    if rng.random_bool(0.95) {
        bench.registers.rip = if rng.random() { CODE } else { CODE + PAGE - rng.random_range(1..16) };
    }
    if rng.random() {
        bench.registers.rflags &= !(1 << 17);
    }
    bench.mode.cs_base = if rng.random_bool(0.9) { 0 } else { random_value(rng) };
    bench.mode.cr4 ^= u64::from(rng.random::<bool>()) << 12;
    if rng.random_bool(0.3) {
        bench.machine.segments = [(); 6].map(|()| Segment {
            selector: rng.random(),
            attributes: rng.random::<u16>() & 0xfff | 0x80,
            limit: if rng.random() { rng.random() } else { u32::MAX },
            base: random_value(rng),
        });
    }
    let at = bench.registers.rip;
    bench.machine.put(at, &code);
    for _ in 0..rng.random_range(0..4) {
        let page = random_value(rng) / PAGE;
        match rng.random_range(0..4) {
            0 => _ = bench.machine.absent.insert(page),
            1 => _ = bench.machine.read_only.insert(page),
            2 => _ = bench.machine.lost.insert(page),
            _ => _ = bench.machine.moved.insert(page, rng.random_range(0..1 << 30)),
        }
    }
    if rng.random_bool(0.2) {
        bench.prefetched = (0..rng.random_range(0..=15)).map(|_| rng.random()).collect();
    }
    bench
}

/// Whether one of the iterations before the failure may have left something.
fn is_string(bench: &Bench) -> bool {
    let mut bytes = bench.machine.get(bench.registers.rip, 15);
    bytes.extend(&bench.prefetched);
    bytes.iter().any(|byte| matches!(byte, 0xa4..=0xa7 | 0xaa..=0xaf | 0x6c..=0x6f))
}

#[test]
fn random_code_in_every_mode() {
    let mut rng = ChaCha8Rng::seed_from_u64(0xe301);
    let (mut done, mut again, mut faults, mut changed, mut unsupported) = (0, 0, 0, 0, 0);
    for _ in 0..100_000 {
        let before = random_bench(&mut rng);
        let mut bench = before.clone();
        match bench.run() {
            Ok(Progress::Done) => {
                done += 1;
                let moved = bench.registers.rip.wrapping_sub(before.registers.rip) & 0xffff_ffff;
                assert!((1..=15).contains(&moved), "{before:x?}");
            }
            Ok(Progress::Again) => {
                again += 1;
                assert_eq!(bench.registers.rip, before.registers.rip);
            }
            Err(stop) => {
                match stop {
                    Stop::Fault(fault) => {
                        faults += 1;
                        assert!(matches!(fault.event.vector(), 6 | 12 | 13 | 14));
                        assert_eq!(fault.address.is_some(), fault.event.vector() == 14);
                    }
                    Stop::Changed => changed += 1,
                    Stop::Unsupported(encoding) => {
                        unsupported += 1;
                        assert!(encoding.length <= 15);
                    }
                }
                assert_eq!(bench.registers.rip, before.registers.rip);
                if !is_string(&before) {
                    assert_eq!(words(&bench), words(&before), "{before:x?}");
                    assert_eq!(bench.machine.asked, [], "{before:x?}");
                }
            }
        }
    }
    // The random code is worth something: all kinds of results come, and often.
    assert!(
        done > 10_000 && again > 500 && faults > 10_000 && changed > 1_000 && unsupported > 1_000,
        "{done} {again} {faults} {changed} {unsupported}"
    );
}

#[test]
fn random_code_to_every_entry() {
    const REASONS: [ExitReason; 6] = [
        ExitReason::Cpuid,
        ExitReason::WriteControl,
        ExitReason::ReadControl,
        ExitReason::InvalidatePage,
        ExitReason::Port,
        ExitReason::Forbidden,
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(0xe302);
    let (mut lengths, mut controls, mut accesses) = (0, 0, 0);
    for _ in 0..60_000 {
        let before = random_bench(&mut rng);
        let mut bench = before.clone();
        let reason = REASONS[rng.random_range(0..REASONS.len())];
        if let Ok(length) = bench.with(|vcpu, machine| length_of(reason, vcpu, machine)) {
            lengths += 1;
            assert!((1..=15).contains(&length));
        }
        assert_eq!(words(&bench), words(&before));
        if let Ok(decoded) = bench.with(decode_control) {
            controls += 1;
            if let Control::Read { destination, .. } | Control::StoreMachineStatus(destination) =
                decoded.control
            {
                bench.with(|vcpu, machine| destination.store(vcpu, machine, rng.random()));
            } else {
                assert_eq!(words(&bench), words(&before));
            }
        }
        let mut bench = before.clone();
        let flags = rng.random_range(0..8) << 16;
        let port = u16::try_from(before.registers.rdx & 0xffff).unwrap();
        let access = PortAccess::new(port, 1 << rng.random_range(0..3), flags);
        if bench.with(|vcpu, machine| emulate_string_io(vcpu, machine, access)).is_ok() {
            accesses += 1;
        }
    }
    assert!(lengths > 500 && controls > 500 && accesses > 200, "{lengths} {controls} {accesses}");
}

/// Memory that changes under the fetch: each answer is another.
struct Restless {
    machine: Machine,
    rng: ChaCha8Rng,
}

impl super::CodeMemory for Restless {
    fn translate(
        &mut self,
        at: super::GuestVirtAddr,
        access: super::Access,
    ) -> Result<super::GuestPhysAddr, super::TranslationError> {
        self.machine.translate(at, access)
    }

    fn fetch(&mut self, _: super::GuestPhysAddr, into: &mut [u8]) -> Result<(), super::NotMemory> {
        self.rng.fill(into);
        Ok(())
    }
}

impl Platform for Restless {
    fn segment(&mut self, _: super::SegmentRegister) -> Segment {
        Segment {
            selector: 0,
            attributes: self.rng.random::<u16>() | 0x80,
            limit: self.rng.random(),
            base: self.rng.random(),
        }
    }

    fn read(&mut self, at: super::GuestPhysAddr, into: &mut [u8]) {
        self.machine.read(at, into);
        self.rng.fill(into);
    }

    fn write(&mut self, at: super::GuestPhysAddr, bytes: &[u8]) {
        self.machine.write(at, bytes);
    }

    fn port_in(&mut self, _: u16, into: &mut [u8]) {
        self.rng.fill(into);
    }

    fn port_out(&mut self, _: u16, _: &[u8]) {}
}

#[test]
fn code_and_segments_that_change_at_every_look() {
    let mut rng = ChaCha8Rng::seed_from_u64(0xe303);
    for seed in 0..20_000 {
        let mut bench = random_bench(&mut rng);
        let mut restless = Restless { machine: Machine::default(), rng: ChaCha8Rng::seed_from_u64(seed) };
        _ = bench.with(|vcpu, _| emulate_memory(vcpu, &mut restless));
        _ = bench.with(|vcpu, _| decode_control(vcpu, &mut restless).map(|_| ()));
    }
}
