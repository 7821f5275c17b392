use core::num::NonZeroU64;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const HZ: u64 = 2_500_000_000;

fn devices() -> Devices {
    Devices::new(Timebase::new(NonZeroU64::new(HZ).unwrap()), 1_700_000_000)
}

/// Ports that a read of one byte gets an answer from.
fn answers(port: u16) -> bool {
    matches!(port,
        0x20..=0x21 | 0xa0..=0xa1 | 0x40..=0x42 | 0x61 | 0x71 | 0x3f8..=0x3ff | 0x600..=0x605 | 0x608..=0x60b | 0xcf9)
}

const fn ones(bytes: u8) -> u32 {
    u32::MAX >> (32 - 8 * bytes as u32)
}

#[test]
fn whatever_is_absent_is_all_ones() {
    let mut devices = devices();
    let before = std::format!("{devices:?}");
    for bytes in [1, 2, 4] {
        for port in 0..=u16::MAX {
            let there =
                |at| port.checked_add(at).is_some_and(|port| answers(port) && (port != 0xcf9 || bytes == 1));
            if !(0..u16::from(bytes)).any(there) {
                assert_eq!(devices.read(port, bytes, 12_345), ones(bytes), "{port:#x}");
            }
        }
    }
    assert_eq!(std::format!("{devices:?}"), before);
}

/// Bytes of an access that no device answers are ones, whatever the others are.
#[test]
fn answers_do_not_leak_into_other_bytes() {
    for bytes in [2, 4] {
        for port in 0..0x1000 {
            let value = devices().read(port, bytes, 12_345);
            for (at, byte) in value.to_le_bytes().into_iter().enumerate() {
                let absent = !answers(port + u16::try_from(at).unwrap());
                assert!(at < bytes.into() || byte == 0);
                assert!(at >= bytes.into() || !absent || byte == 0xff, "{port:#x}");
            }
        }
    }
}

#[test]
fn written_to_absent_ports_is_lost() {
    let writable = |port: u16| answers(port) || matches!(port, 0x43 | 0x64 | 0x70);
    let mut devices = devices();
    let before = std::format!("{devices:?}");
    for port in (0..=u16::MAX).filter(|&port| !writable(port)) {
        for value in [0, 0xff, 0xfe, 0x06] {
            assert_eq!(devices.write(port, 1, value, 0), PortEffect::None);
        }
    }
    assert_eq!(std::format!("{devices:?}"), before);
}

#[test]
fn wide_access_is_split_at_one_moment() {
    let mut devices = devices();
    assert_eq!(devices.read(power::TIMER_PORT, 4, HZ), power::TIMER_HZ);
    // Two bytes of the registers and two of nothing.
    assert_eq!(devices.read(power::CONTROL_PORT, 4, 0), 0xffff_0001);
    // The last of the serial port's, then nothing.
    devices.write(COM1_PORT + 7, 1, 0x5a, 0);
    assert_eq!(devices.read(COM1_PORT + 7, 4, 0), 0xffff_ff5a);
    // Index and data of the clock in one access.
    devices.write(rtc::INDEX_PORT, 2, 0xab_40, 0);
    assert_eq!(devices.read(rtc::INDEX_PORT, 2, 0), 0xab_ff);
    // Beyond the last port.
    assert_eq!(devices.read(u16::MAX, 4, 0), u32::MAX);
    assert_eq!(devices.write(u16::MAX, 4, 0, 0), PortEffect::None);
    // Widths that no processor has.
    assert_eq!(devices.read(COM1_PORT, 0, 0), 0);
    devices.read(COM1_PORT, 255, 0);
}

#[test]
fn output_is_announced_once() {
    let mut devices = devices();
    assert_eq!(devices.write(COM1_PORT, 1, b'a'.into(), 0), PortEffect::Output);
    assert_eq!(devices.write(COM1_PORT, 1, b'b'.into(), 0), PortEffect::None);
    assert_eq!(devices.uart.take_output(&mut [0; 8]), 2);
    assert_eq!(devices.write(COM1_PORT, 1, b'c'.into(), 0), PortEffect::Output);
}

#[test]
fn power_events() {
    let mut devices = devices();
    let reset = PortEffect::Power(PowerEvent::Reset);
    assert_eq!(devices.write(power::RESET_PORT, 1, power::RESET_VALUE.into(), 0), reset);
    assert_eq!(devices.write(0x64, 1, 0xfe, 0), reset);
    let off = u32::from(power::SLEEP_TYPE_OFF) << 10 | 1 << 13;
    assert_eq!(devices.write(power::CONTROL_PORT, 2, off, 0), PortEffect::Power(PowerEvent::Off));
}

/// The configuration address of a bus that is not there: it reads as ones, and its second byte is not the reset register.
#[test]
fn no_pci() {
    let mut devices = devices();
    assert_eq!(devices.write(0xcf8, 4, 0x8000_0600, 0), PortEffect::None);
    assert_eq!(devices.read(0xcf8, 4, 0), u32::MAX);
    assert_eq!(devices.read(0xcfc, 4, 0), u32::MAX);
    assert_eq!(devices.read(power::RESET_PORT, 1, 0), 0);
}

#[test]
fn lines_and_events() {
    let mut devices = devices();
    let mut write = |port: u16, value: u32| devices.write(port, 1, value, 0);
    write(COM1_PORT + 4, 8);
    write(COM1_PORT + 1, 2);
    write(rtc::INDEX_PORT, 0x0b);
    write(rtc::DATA_PORT, 0x12);
    write(power::EVENT_PORT + 3, 1);
    assert_eq!(Source::ALL.map(|source| devices.interrupt(source, 0)), [true, false, false]);
    assert_eq!(devices.next_event(0), Some(HZ));
    devices.power.press_button();
    assert_eq!(Source::ALL.map(|source| devices.interrupt(source, HZ)), [true; 3]);
    assert_eq!(Source::ALL.map(Source::gsi), [4, 8, 9]);
}

/// Any access that changes a line is to a port that says so.
#[test]
fn random_accesses_everywhere() {
    let mut random = ChaCha8Rng::seed_from_u64(10);
    let known: Vec<u16> =
        (0..=u16::MAX).filter(|&port| answers(port) || matches!(port, 0x43 | 0x64 | 0x70)).collect();
    let mut devices = devices();
    let mut now = 0_u64;
    for _ in 0..400_000 {
        now = now.saturating_add(random.random::<u64>() >> random.random_range(30..64));
        let lines = Source::ALL.map(|source| devices.interrupt(source, now));
        let near = known[random.random_range(0..known.len())].saturating_sub(random.random_range(0..4));
        let port = if random.random_ratio(1, 8) { random.random() } else { near };
        let bytes = [1, 2, 4][random.random_range(0..3)];
        if random.random() {
            assert_eq!(devices.read(port, bytes, now) & !ones(bytes), 0);
        } else {
            devices.write(port, bytes, random.random(), now);
        }
        if random.random_ratio(1, 50) {
            devices.uart.take_output(&mut [0; 3000]);
            devices.uart.receive(&[random.random(); 20]);
            continue;
        }
        for (source, before) in Source::ALL.into_iter().zip(lines) {
            if devices.interrupt(source, now) != before {
                assert_eq!(Source::at(port), Some(source), "{port:#x}");
            }
        }
    }
}

#[test]
fn what_no_device_answers_need_not_be_asked() {
    let mut devices = devices();
    let before = format!("{devices:?}");
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut asked = 0;
    for bytes in [1, 2, 4] {
        for port in 0..=u16::MAX {
            if super::answers(port, bytes) {
                asked += 1;
                continue;
            }
            assert_eq!(devices.read(port, bytes, 0), ones(bytes), "{port:#x}");
            let value = if random.random() { u32::MAX } else { random.random() };
            assert_eq!(devices.write(port, bytes, value, 0), PortEffect::None, "{port:#x}");
        }
    }
    assert_eq!(format!("{devices:?}"), before);
    assert!((100..200).contains(&asked), "{asked}: few more than there are registers");
}
