use core::num::NonZeroU64;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// One tick of the TSC is one of the timer.
fn legacy() -> Legacy {
    Legacy::new(Timebase::new(NonZeroU64::new(pit::HZ.into()).unwrap()))
}

fn count(legacy: &mut Legacy, channel: u8, now: u64) -> u16 {
    legacy.write(0x43, channel << 6, now);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([legacy.read(port, now + 5).unwrap(), legacy.read(port, now + 9).unwrap()])
}

fn start(legacy: &mut Legacy, channel: u8, mode: u8, count: u16, now: u64) {
    legacy.write(0x43, channel << 6 | 0x30 | mode << 1, now);
    for byte in count.to_le_bytes() {
        legacy.write(0x40 + u16::from(channel), byte, now);
    }
}

/// Linux's probe_8259A, then init_8259A.
#[test]
fn interrupt_controllers_are_found_and_masked() {
    let mut legacy = legacy();
    assert_eq!([0x21, 0xa1].map(|port| legacy.read(port, 0)), [Some(0xff); 2]);
    legacy.write(0xa1, 0xff, 0);
    legacy.write(0x21, 0xfb, 0);
    assert_eq!(legacy.read(0x21, 0), Some(0xfb));
    for (base, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
        legacy.write(base, words[0], 0);
        for word in &words[1..] {
            legacy.write(base + 1, *word, 0);
            assert_eq!(legacy.read(base + 1, 0), Some(0), "initialisation words are no masks");
        }
        legacy.write(base + 1, 0xa5, 0);
        assert_eq!(legacy.read(base + 1, 0), Some(0xa5));
        // Request, service and poll: nothing.
        for command in [0x0a, 0x0b, 0x0c, 0x20, 0x60] {
            legacy.write(base, command, 0);
            assert_eq!(legacy.read(base, 0), Some(0));
        }
    }
    // Single, without a fourth word.
    legacy.write(0x20, 0x12, 0);
    legacy.write(0x21, 0x30, 0);
    legacy.write(0x21, 0x42, 0);
    assert_eq!(legacy.read(0x21, 0), Some(0x42));
}

#[test]
fn rate_generator() {
    let mut legacy = legacy();
    start(&mut legacy, 0, 2, 1000, 100);
    assert_eq!(count(&mut legacy, 0, 100), 1000);
    assert_eq!(count(&mut legacy, 0, 101), 999);
    assert_eq!(count(&mut legacy, 0, 1099), 1);
    assert_eq!(count(&mut legacy, 0, 1100), 1000);
    assert!(legacy.pit.output(0, 1098) && !legacy.pit.output(0, 1099) && legacy.pit.output(0, 1100));
    start(&mut legacy, 0, 2, 0, 0);
    assert_eq!(count(&mut legacy, 0, 0), 0, "65,536");
    assert_eq!(count(&mut legacy, 0, 1), 0xffff);
}

#[test]
fn square_wave() {
    let mut legacy = legacy();
    start(&mut legacy, 0, 3, 6, 0);
    let six = [6, 4, 2, 6, 4, 2, 6];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|now| count(&mut legacy, 0, now)), six);
    assert_eq!([0, 2, 3, 5, 6].map(|now| legacy.pit.output(0, now)), [true, true, false, false, true]);
    start(&mut legacy, 0, 7, 5, 0);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|now| count(&mut legacy, 0, now)), [4, 2, 0, 4, 2, 4]);
    assert_eq!([2, 3, 4, 5].map(|now| legacy.pit.output(0, now)), [true, false, false, true]);
}

/// How Linux measures the TSC: channel 2 in mode 0 with the speaker off, until its output rises.
#[test]
fn second_channel_counts_down_once_behind_its_gate() {
    let mut legacy = legacy();
    legacy.write(SYSTEM_PORT, GATE, 0);
    start(&mut legacy, 2, 0, 500, 10);
    assert_eq!(legacy.read(SYSTEM_PORT, 509).unwrap() & (OUTPUT | GATE), GATE);
    assert_eq!(legacy.read(SYSTEM_PORT, 510).unwrap() & OUTPUT, OUTPUT);
    assert_eq!(count(&mut legacy, 2, 511), 0xffff);
    // The gate stops it for a while.
    start(&mut legacy, 2, 0, 500, 1000);
    legacy.write(SYSTEM_PORT, 0, 1100);
    assert_eq!(count(&mut legacy, 2, 5000), 400);
    legacy.write(SYSTEM_PORT, GATE, 5000);
    assert_eq!(legacy.read(SYSTEM_PORT, 5399).unwrap() & OUTPUT, 0);
    assert_eq!(legacy.read(SYSTEM_PORT, 5400).unwrap() & OUTPUT, OUTPUT);
}

#[test]
fn one_shot_is_triggered_by_the_gate() {
    let mut legacy = legacy();
    start(&mut legacy, 2, 1, 100, 0);
    assert!(legacy.pit.output(2, 50));
    legacy.write(SYSTEM_PORT, GATE, 60);
    assert!(!legacy.pit.output(2, 159));
    assert!(legacy.pit.output(2, 160));
    legacy.write(SYSTEM_PORT, 0, 170);
    legacy.write(SYSTEM_PORT, GATE, 200);
    assert!(!legacy.pit.output(2, 299));
    assert!(legacy.pit.output(2, 300));
}

#[test]
fn read_back_and_access_modes() {
    let mut legacy = legacy();
    // BCD, high byte only: 1,200.
    legacy.write(0x43, 0x25, 0);
    assert_eq!(legacy.read(0x40, 0), Some(0));
    legacy.write(0x43, 0xe2, 0);
    assert_eq!(legacy.read(0x40, 0), Some(0xe5), "no count yet; high");
    legacy.write(0x40, 0x12, 0);
    // Status and count together: the status comes first; what is latched stays until it is read.
    legacy.write(0x43, 0xc2, 1);
    legacy.write(0x43, 0xc2, 700);
    assert_eq!(legacy.read(0x40, 800), Some(0xa5));
    assert_eq!(legacy.read(0x40, 800), Some(0x11), "1,199");
    assert_eq!(legacy.read(0x40, 800), Some(0x04), "400");
    // Low byte only.
    legacy.write(0x43, 0x14, 0);
    legacy.write(0x40, 50, 0);
    assert_eq!([legacy.read(0x40, 10), legacy.read(0x40, 20)], [Some(40), Some(30)]);
    // The control port cannot be read.
    assert_eq!(legacy.read(0x43, 0), None);
}

#[test]
fn refresh_toggles() {
    let mut legacy = legacy();
    let changes = (0..u64::from(pit::HZ) / 100)
        .map(|now| legacy.read(SYSTEM_PORT, now).unwrap() & REFRESH)
        .collect::<std::vec::Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count();
    assert!((660..=664).contains(&changes), "{changes}");
}

#[test]
fn keyboard_controller_resets_and_is_else_absent() {
    let mut legacy = legacy();
    assert_eq!(legacy.write(KEYBOARD_COMMAND_PORT, 0xfe, 0), Some(PowerEvent::Reset));
    for command in [0x20, 0x60, 0xaa, 0xd1, 0xff, 0x00] {
        assert_eq!(legacy.write(KEYBOARD_COMMAND_PORT, command, 0), None);
    }
    assert_eq!([0x60, 0x64].map(|port| legacy.read(port, 0)), [None; 2]);
}

#[test]
fn random_accesses_never_panic() {
    const PORTS: [u16; 9] = [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, SYSTEM_PORT];
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut legacy = legacy();
    let mut now = 0_u64;
    for step in 0..300_000 {
        now = if step % 1000 == 0 {
            random.random()
        } else {
            now.saturating_add(random.random_range(0..100_000))
        };
        let port = PORTS[random.random_range(0..PORTS.len())];
        if random.random() {
            legacy.read(port, now);
        } else {
            legacy.write(port, random.random(), now);
        }
    }
}
