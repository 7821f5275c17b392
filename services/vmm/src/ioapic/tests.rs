use core::num::NonZeroU64;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::apic::{Config, Effect, LocalApic, Role};
use crate::clock::Timebase;
use crate::interrupt::{BROADCAST, DeliveryMode, Destination};

const EDGE: u64 = 0x30;
const LEVEL: u64 = 0x8030;

fn write_register(ioapic: &mut IoApic, register: u8, value: u32) -> Vec<Interrupt> {
    assert_eq!(ioapic.write(0, register.into(), 4).count(), 0);
    ioapic.write(0x10, value, 4).collect()
}

fn read_register(ioapic: &mut IoApic, register: u8) -> u32 {
    assert_eq!(ioapic.write(0, register.into(), 4).count(), 0);
    ioapic.read(0x10)
}

fn low(entry: u64) -> u32 {
    u32::try_from(entry & 0xffff_ffff).unwrap()
}

fn write_entry(ioapic: &mut IoApic, pin: u8, entry: u64) -> Vec<Interrupt> {
    let mut sent = write_register(ioapic, TABLE + 2 * pin + 1, low(entry >> 32));
    sent.extend(write_register(ioapic, TABLE + 2 * pin, low(entry)));
    sent
}

fn read_entry(ioapic: &mut IoApic, pin: u8) -> u64 {
    let low = read_register(ioapic, TABLE + 2 * pin);
    u64::from(read_register(ioapic, TABLE + 2 * pin + 1)) << 32 | u64::from(low)
}

fn narrow() -> IoApic {
    IoApic::new(DestinationWidth::Narrow)
}

#[test]
fn registers_as_after_a_reset() {
    let mut ioapic = narrow();
    assert_eq!(read_register(&mut ioapic, 1), 0x0017_0020);
    assert_eq!(read_register(&mut ioapic, 0), 0);
    for pin in 0..24 {
        assert_eq!(read_entry(&mut ioapic, pin), 0x1_0000);
    }
    for register in 3..16 {
        assert_eq!(read_register(&mut ioapic, register), 0);
    }
    for register in 0x40..=255 {
        assert_eq!(read_register(&mut ioapic, register), 0);
        assert!(write_register(&mut ioapic, register, u32::MAX).is_empty());
    }
    assert_eq!(ioapic.read(0), 255);
}

#[test]
fn only_writable_bits_are_written() {
    for (width, expected) in [
        (DestinationWidth::Narrow, 0xff00_0000_0001_afff_u64),
        (DestinationWidth::Extended, 0xfffe_0000_0001_afff),
    ] {
        let mut ioapic = IoApic::new(width);
        write_entry(&mut ioapic, 23, u64::MAX);
        assert_eq!(read_entry(&mut ioapic, 23), expected);
        assert_eq!(read_entry(&mut ioapic, 22), 0x1_0000);
        write_register(&mut ioapic, 0, u32::MAX);
        write_register(&mut ioapic, 1, u32::MAX);
        write_register(&mut ioapic, 2, u32::MAX);
        assert_eq!(read_register(&mut ioapic, 0), 0x0f00_0000);
        assert_eq!(read_register(&mut ioapic, 1), 0x0017_0020);
        assert_eq!(read_register(&mut ioapic, 2), 0x0f00_0000);
    }
}

#[test]
fn accesses_that_are_not_a_whole_register() {
    let mut ioapic = narrow();
    // The index takes its byte from any width.
    let _ = ioapic.write(0, 0x1234_5611, 1);
    assert_eq!(ioapic.read(0), 0x11);
    for bytes in [0, 1, 2, 3, 8, usize::MAX] {
        assert_eq!(ioapic.write(0x10, u32::MAX, bytes).count(), 0);
    }
    assert_eq!(ioapic.read(0x10), 0);
    for offset in (0..0x1000).chain([u64::MAX]).filter(|offset| ![0, 0x10, 0x40].contains(offset)) {
        assert_eq!(ioapic.write(offset, u32::MAX, 4).count(), 0);
        assert_eq!(ioapic.read(offset), 0);
    }
    assert_eq!(ioapic.read(0x40), 0);
    assert_eq!((ioapic.read(0), ioapic.read(0x10)), (0x11, 0));
}

#[test]
fn an_edge_sends_once_and_at_a_masked_pin_is_lost() {
    let mut ioapic = narrow();
    write_entry(&mut ioapic, 4, 7 << 56 | EDGE);
    let interrupt = ioapic.set_line(4, Line::Asserted).unwrap();
    assert_eq!((interrupt.vector, interrupt.trigger), (0x30, Trigger::Edge));
    assert_eq!(interrupt.destination, Destination::Physical(7));
    assert_eq!(ioapic.set_line(4, Line::Asserted), None);
    assert_eq!(ioapic.end_of_interrupt(0x30).count(), 0);
    assert_eq!(ioapic.set_line(4, Line::Deasserted), None);
    assert!(ioapic.set_line(4, Line::Asserted).is_some());
    assert_eq!(ioapic.set_line(4, Line::Deasserted), None);
    write_entry(&mut ioapic, 4, EDGE | MASKED);
    assert_eq!(ioapic.set_line(4, Line::Asserted), None);
    assert!(write_entry(&mut ioapic, 4, EDGE).is_empty());
    assert_eq!(ioapic.set_line(24, Line::Asserted), None);
    assert_eq!(ioapic.set_line(usize::MAX, Line::Asserted), None);
}

#[test]
fn a_level_sends_until_its_line_is_quiet() {
    let mut ioapic = narrow();
    write_entry(&mut ioapic, 10, LEVEL);
    assert_eq!(ioapic.set_line(10, Line::Asserted).unwrap().trigger, Trigger::Level);
    assert_eq!(read_entry(&mut ioapic, 10), LEVEL | REMOTE_IRR);
    assert_eq!(ioapic.set_line(10, Line::Asserted), None);
    // Not its vector.
    assert_eq!(ioapic.end_of_interrupt(0x31).count(), 0);
    // Still asserted: again.
    assert_eq!(ioapic.end_of_interrupt(0x30).map(|interrupt| interrupt.vector).collect::<Vec<_>>(), [0x30]);
    assert_eq!(ioapic.set_line(10, Line::Deasserted), None);
    assert_eq!(read_entry(&mut ioapic, 10), LEVEL | REMOTE_IRR);
    assert_eq!(ioapic.set_line(10, Line::Asserted), None);
    assert_eq!(ioapic.set_line(10, Line::Deasserted), None);
    // By the EOI register.
    assert_eq!(ioapic.write(0x40, 0x30, 4).count(), 0);
    assert_eq!(read_entry(&mut ioapic, 10), LEVEL);
    assert!(ioapic.set_line(10, Line::Asserted).is_some());
    // Masked while in service: sent at the unmasking, not before.
    write_entry(&mut ioapic, 10, LEVEL | MASKED);
    assert_eq!(ioapic.end_of_interrupt(0x30).count(), 0);
    assert_eq!(read_entry(&mut ioapic, 10), LEVEL | MASKED);
    assert_eq!(write_entry(&mut ioapic, 10, LEVEL).len(), 1);
    // Linux's way to end an interrupt without an EOI: to edge and back, masked.
    write_entry(&mut ioapic, 10, EDGE | MASKED);
    write_entry(&mut ioapic, 10, LEVEL | MASKED);
    assert_eq!(read_entry(&mut ioapic, 10), LEVEL | MASKED);
    assert_eq!(write_entry(&mut ioapic, 10, LEVEL).len(), 1);
}

#[test]
fn one_end_can_make_every_pin_send() {
    let mut ioapic = narrow();
    for pin in 0..24u8 {
        write_entry(&mut ioapic, pin, u64::from(pin) << 56 | LEVEL);
        assert!(ioapic.set_line(pin.into(), Line::Asserted).is_some());
    }
    let messages: Vec<_> = ioapic.end_of_interrupt(0x30).map(|interrupt| interrupt.destination).collect();
    assert_eq!(messages, (0..24).map(Destination::Physical).collect::<Vec<_>>());
}

#[test]
fn what_has_no_end_does_not_wait_for_it() {
    let mut ioapic = narrow();
    for mode in [2, 4, 5, 7] {
        write_entry(&mut ioapic, 3, 0xff << 56 | LEVEL | mode << 8);
        for _ in 0..2 {
            let interrupt = ioapic.set_line(3, Line::Asserted).unwrap();
            assert_eq!(
                (interrupt.trigger, interrupt.destination),
                (Trigger::Edge, Destination::Physical(BROADCAST))
            );
            assert_eq!(ioapic.set_line(3, Line::Deasserted), None);
        }
        assert_eq!(read_entry(&mut ioapic, 3) & REMOTE_IRR, 0);
    }
    for mode in [3, 6] {
        write_entry(&mut ioapic, 3, LEVEL | mode << 8);
        assert_eq!(ioapic.set_line(3, Line::Asserted), None);
        assert_eq!(ioapic.set_line(3, Line::Deasserted), None);
        assert_eq!(read_entry(&mut ioapic, 3) & REMOTE_IRR, 0);
    }
}

/// One pin, said again in the simplest way.
#[derive(Clone, Copy, Default)]
struct Pin {
    vector: u8,
    is_level: bool,
    is_unmasked: bool,
    line: bool,
    waits: bool,
}

impl Pin {
    fn settle(&mut self) -> usize {
        if !self.is_level {
            self.waits = false;
        }
        let sends = self.is_level && self.is_unmasked && self.line && !self.waits;
        self.waits |= sends;
        sends.into()
    }
}

#[test]
fn pins_do_what_a_simple_model_does() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for _ in 0..100 {
        let mut ioapic = narrow();
        let mut pins = [Pin::default(); PINS];
        for _ in 0..1_000 {
            let number = rng.random_range(0..PINS);
            let pin = &mut pins[number];
            let (sent, expected) = match rng.random_range(0..4) {
                0 => {
                    (pin.vector, pin.is_level, pin.is_unmasked) =
                        (rng.random_range(0x30..0x34), rng.random(), rng.random());
                    let entry = u64::from(pin.vector)
                        | u64::from(pin.is_level) << 15
                        | u64::from(!pin.is_unmasked) << 16;
                    let register = TABLE + 2 * u8::try_from(number).unwrap();
                    let sent = write_register(&mut ioapic, register, low(entry)).len();
                    (sent, pin.settle())
                }
                1 => {
                    let vector = rng.random_range(0x30..0x34);
                    let sent = ioapic.end_of_interrupt(vector).count();
                    let ended = pins.iter_mut().filter(|pin| pin.vector == vector);
                    let expected = ended
                        .map(|pin| {
                            pin.waits = false;
                            pin.settle()
                        })
                        .sum();
                    (sent, expected)
                }
                line => {
                    let (line, was) = (line == 2, pin.line);
                    let set = if line { Line::Asserted } else { Line::Deasserted };
                    let sent = ioapic.set_line(number, set).into_iter().count();
                    pin.line = line;
                    let edge = !pin.is_level && pin.is_unmasked && line && !was;
                    (sent, pin.settle() + usize::from(edge))
                }
            };
            assert_eq!(sent, expected);
            for (number, pin) in pins.iter().enumerate() {
                assert_eq!(ioapic.entries[number] & REMOTE_IRR != 0, pin.waits);
            }
        }
    }
}

#[test]
fn random_accesses_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut ioapic = IoApic::new(DestinationWidth::Extended);
    for _ in 0..100_000 {
        let offset = [0, 0x10, 0x40, rng.random()][rng.random_range(0..4)];
        let messages =
            ioapic.write(offset, rng.random(), [4, rng.random_range(0..9)][rng.random_range(0..2)]);
        assert!(messages.count() <= PINS);
        let _ = ioapic.read(offset);
        let line = if rng.random() { Line::Asserted } else { Line::Deasserted };
        let _ = ioapic.set_line(rng.random_range(0..32), line);
    }
}

/// The whole way: device, I/O APIC, local APIC, handler, EOI and back.
#[test]
fn a_line_that_stays_asserted_interrupts_again_after_the_eoi() {
    for suppresses_broadcast in [false, true] {
        let mut ioapic = narrow();
        let mut apic = LocalApic::new(Config {
            id: 0,
            role: Role::Bootstrap,
            timebase: Timebase::new(NonZeroU64::new(1_000_000_000).unwrap()),
            physical_address_bits: 40,
        });
        let spurious = 0x1ff | u64::from(suppresses_broadcast) << 12;
        assert_eq!(apic.write(0x80f, spurious, 0), Ok(Effect::None));
        write_entry(&mut ioapic, 11, 0x8051);
        let interrupt = ioapic.set_line(11, Line::Asserted).unwrap();
        assert_eq!(interrupt.delivery, DeliveryMode::Fixed);
        assert!(apic.accept(interrupt.vector, interrupt.trigger));
        for round in 0..5 {
            assert_eq!(apic.acknowledge(), Some(0x51));
            if round == 4 {
                assert_eq!(ioapic.set_line(11, Line::Deasserted), None);
            }
            let again: Vec<_> = match apic.write(0x80b, 0, 0).unwrap() {
                Effect::EndOfInterrupt(vector) if !suppresses_broadcast => {
                    ioapic.end_of_interrupt(vector).collect()
                }
                Effect::None if suppresses_broadcast => ioapic.write(0x40, 0x51, 4).collect(),
                effect => panic!("{effect:?}"),
            };
            assert_eq!(again.len(), usize::from(round < 4));
            for interrupt in again {
                assert!(apic.accept(interrupt.vector, interrupt.trigger));
            }
        }
        assert_eq!(apic.deliverable(), None);
        assert_eq!(read_entry(&mut ioapic, 11), 0x8051);
    }
}
