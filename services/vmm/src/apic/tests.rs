mod priority;
mod registers;
mod timer;

use core::num::NonZeroU64;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// As after a reset.
fn with_tsc(id: u32, role: Role, tsc_hz: u64) -> LocalApic {
    let timebase = Timebase::new(NonZeroU64::new(tsc_hz).unwrap());
    LocalApic::new(Config { id, role, timebase, physical_address_bits: 40 })
}

/// As after a reset, and the bus as fast as the TSC.
fn reset() -> LocalApic {
    with_tsc(0x25, Role::Bootstrap, 1_000_000_000)
}

/// Enabled by software.
fn enabled() -> LocalApic {
    let mut apic = reset();
    assert_eq!(apic.write(0x80f, 0x1ff, 0), Ok(Effect::None));
    apic
}

fn write(apic: &mut LocalApic, msr: u32, value: u64) {
    assert_eq!(apic.write(msr, value, 0), Ok(Effect::None), "{msr:#x} {value:#x}");
}

#[test]
fn what_software_disables_refuses_interrupts_and_keeps_those_it_has() {
    let mut apic = reset();
    assert!(!apic.accept(0x40, Trigger::Edge));
    assert_eq!(apic.arbitration_priority(), None);
    write(&mut apic, 0x80f, 0x1ff);
    assert_eq!(apic.arbitration_priority(), Some(0));
    assert!(apic.accept(0x40, Trigger::Edge));
    assert!(!apic.accept(0x40, Trigger::Edge));
    assert_eq!(apic.arbitration_priority(), Some(0x40));
    write(&mut apic, 0x832, 0x50);
    write(&mut apic, 0x80f, 0xff);
    assert!(!apic.accept(0x41, Trigger::Edge));
    assert_eq!(apic.read(0x832, 0), Ok(0x1_0050));
    // Masked it stays.
    write(&mut apic, 0x832, 0x60);
    assert_eq!(apic.read(0x832, 0), Ok(0x1_0060));
    assert_eq!(apic.acknowledge(), Some(0x40));
}

#[test]
fn init_leaves_the_id_and_the_base() {
    let mut apic = enabled();
    write(&mut apic, 0x1b, 0x1234_5d00);
    for (msr, value) in [(0x808, 0x20), (0x832, 0x2_0040), (0x83e, 3), (0x838, 1_000), (0x837, 0x40)] {
        write(&mut apic, msr, value);
    }
    assert!(apic.accept(0x50, Trigger::Level));
    assert_eq!(apic.acknowledge(), Some(0x50));
    assert!(apic.accept(0x61, Trigger::Level));
    assert!(!apic.accept(0x1, Trigger::Edge));
    write(&mut apic, 0x828, 0);
    assert!(matches!(apic.write(0x830, 0x40, 0), Ok(Effect::Send(_))));
    apic.init_reset();
    assert_eq!(apic.read(0x1b, 0), Ok(0x1234_5d00));
    write(&mut apic, 0x1b, 0xfee0_0d00);
    assert_eq!(apic, reset());
}

#[test]
fn the_first_error_interrupts_until_the_status_is_written() {
    let mut apic = enabled();
    write(&mut apic, 0x837, 0xfe);
    // Illegal vectors: received, sent to another, to itself.
    assert!(!apic.accept(0xf, Trigger::Edge));
    assert_eq!(apic.acknowledge(), Some(0xfe));
    write(&mut apic, 0x80b, 0);
    write(&mut apic, 0x830, 1 << 32 | 0xf);
    assert_eq!(apic.deliverable(), None);
    assert_eq!(apic.read(0x828, 0), Ok(0));
    write(&mut apic, 0x828, 0);
    assert_eq!(apic.read(0x828, 0), Ok(0x60));
    write(&mut apic, 0x83f, 0);
    assert_eq!(apic.acknowledge(), Some(0xfe));
    write(&mut apic, 0x828, 0);
    assert_eq!(apic.read(0x828, 0), Ok(0x20));
    write(&mut apic, 0x828, 0);
    assert_eq!(apic.read(0x828, 0), Ok(0));
    // An illegal vector for errors is one more error, and the end of it.
    write(&mut apic, 0x837, 0x5);
    write(&mut apic, 0x83f, 0);
    write(&mut apic, 0x828, 0);
    assert_eq!(apic.read(0x828, 0), Ok(0x60));
}

#[test]
fn interrupts_to_itself_need_no_message() {
    let mut apic = enabled();
    write(&mut apic, 0x83f, 0x41);
    write(&mut apic, 0x830, 0x4_0042);
    assert_eq!(apic.acknowledge(), Some(0x42));
    assert_eq!(apic.read(0x830, 0), Ok(0x4_0042));
    write(&mut apic, 0x80b, 0);
    assert_eq!(apic.acknowledge(), Some(0x41));
    // To all is more than to itself.
    assert!(matches!(apic.write(0x830, 0x8_0042, 0), Ok(Effect::Send(_))));
    assert_eq!(apic.deliverable(), None);
}

#[test]
fn local_sources_do_what_their_entry_says() {
    let mut apic = enabled();
    let sources = [
        (Source::Cmci, 0x82f),
        (Source::Thermal, 0x833),
        (Source::Performance, 0x834),
        (Source::Lint0, 0x835),
        (Source::Lint1, 0x836),
    ];
    for (source, msr) in sources {
        assert_eq!(apic.signal(source), None);
        for (mode, expected) in [
            (0, Some(DeliveryMode::Fixed)),
            (1, None),
            (2, Some(DeliveryMode::Smi)),
            (3, None),
            (4, Some(DeliveryMode::Nmi)),
            (5, Some(DeliveryMode::Init)),
            (6, None),
            (7, Some(DeliveryMode::ExtInt)),
        ] {
            write(&mut apic, msr, mode << 8 | 0x77);
            assert_eq!(apic.takes_external_interrupts(), source == Source::Lint0 && mode == 7);
            assert_eq!(apic.signal(source), expected, "{source:?} {mode}");
            assert_eq!(apic.read(msr, 0).unwrap() & 1 << 16 != 0, source == Source::Performance);
            assert_eq!(apic.acknowledge(), (mode == 0).then_some(0x77));
            write(&mut apic, 0x80b, 0);
        }
        write(&mut apic, msr, 0x1_0077);
    }
    write(&mut apic, 0x832, 0x77);
    write(&mut apic, 0x837, 0x77);
    assert_eq!(apic.signal(Source::Timer), None);
    assert_eq!(apic.signal(Source::Error), None);
    assert_eq!(apic.deliverable(), None);
}

#[test]
fn lint0_can_be_level_triggered() {
    let mut apic = enabled();
    write(&mut apic, 0x835, 0x8055);
    assert_eq!(apic.signal(Source::Lint0), Some(DeliveryMode::Fixed));
    assert_eq!(apic.read(0x835, 0), Ok(0xc055));
    assert_eq!(apic.acknowledge(), Some(0x55));
    assert_eq!(apic.signal(Source::Lint0), None);
    assert_eq!(apic.deliverable(), None);
    assert_eq!(apic.write(0x80b, 0, 0), Ok(Effect::EndOfInterrupt(0x55)));
    assert_eq!(apic.read(0x835, 0), Ok(0x8055));
    assert_eq!(apic.signal(Source::Lint0), Some(DeliveryMode::Fixed));
    // An entry that becomes an edge waits for nothing.
    write(&mut apic, 0x835, 0x55);
    assert_eq!(apic.read(0x835, 0), Ok(0x55));
    // LINT1 is an edge always.
    write(&mut apic, 0x836, 0x8056);
    assert_eq!(apic.signal(Source::Lint1), Some(DeliveryMode::Fixed));
    assert_eq!(apic.read(0x836, 0), Ok(0x8056));
}

#[test]
fn without_an_apic_its_pins_are_the_processors() {
    let mut apic = enabled();
    write(&mut apic, 0x1b, 0xfee0_0100);
    assert_eq!(apic.mode(), Mode::Disabled);
    assert!(apic.takes_external_interrupts());
    assert_eq!(apic.signal(Source::Lint0), Some(DeliveryMode::ExtInt));
    assert_eq!(apic.signal(Source::Lint1), Some(DeliveryMode::Nmi));
    assert_eq!(apic.signal(Source::Performance), None);
    assert!(!apic.accept(0x40, Trigger::Edge));
}

/// Whatever bytes came with a vCPU that moved, they are not this service's end.
#[test]
fn any_bytes_are_an_apic_that_does_not_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for _ in 0..3_000 {
        let bytes: Vec<u8> = (0..size_of::<LocalApic>()).map(|_| rng.random()).collect();
        let mut apic = LocalApic::read_from_bytes(&bytes).unwrap();
        assert_eq!(apic.as_bytes(), bytes);
        for _ in 0..20 {
            let msr = [0x1b, 0x6e0, rng.random_range(0x800..0x900)][rng.random_range(0..3)];
            let (value, now) = (rng.random::<u64>() >> rng.random_range(0..64), rng.random());
            let _ = apic.read(msr, now);
            let _ = apic.write(msr, value, now);
            let _ = apic.next_due();
            apic.expire(rng.random());
            apic.tsc_changed(rng.random(), now);
            let _ = apic.acknowledge();
            let _ = apic.arbitration_priority();
            apic.accept(rng.random(), if rng.random() { Trigger::Edge } else { Trigger::Level });
            for source in [Source::Cmci, Source::Thermal, Source::Performance, Source::Lint0, Source::Lint1] {
                apic.signal(source);
            }
        }
    }
}
