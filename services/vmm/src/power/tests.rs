use core::num::NonZeroU64;

use super::*;

const HZ: u64 = 2_000_000_000;

fn power() -> Power {
    Power::new(Timebase::new(NonZeroU64::new(HZ).unwrap()))
}

fn read16(power: &mut Power, port: u16) -> u16 {
    u16::from_le_bytes([power.read(port, 0).unwrap(), power.read(port + 1, 0).unwrap()])
}

fn write16(power: &mut Power, port: u16, value: u16) -> Option<PowerEvent> {
    let [low, high] = value.to_le_bytes();
    let first = power.write(port, low, 0);
    first.or(power.write(port + 1, high, 0))
}

#[test]
fn constants_agree_with_the_decoder() {
    assert_eq!((EVENT_PORT, CONTROL_PORT, TIMER_PORT), (0x600, 0x604, 0x608));
    let mut power = power();
    let present: std::vec::Vec<u16> = (0x5f0..0x620).filter(|&port| power.read(port, 0).is_some()).collect();
    let block = |port: u16, bytes: u8| port..port + u16::from(bytes);
    let expected = block(EVENT_PORT, EVENT_BYTES)
        .chain(block(CONTROL_PORT, CONTROL_BYTES))
        .chain(block(TIMER_PORT, TIMER_BYTES));
    assert!(present.into_iter().eq(expected));
}

/// Linux writes the type first, then the type with SLP_EN.
#[test]
fn switches_off() {
    let mut power = power();
    assert_eq!(read16(&mut power, CONTROL_PORT), SCI_ENABLED);
    assert_eq!(write16(&mut power, CONTROL_PORT, 5 << 10 | 1), None);
    assert_eq!(read16(&mut power, CONTROL_PORT), 5 << 10 | 1);
    assert_eq!(write16(&mut power, CONTROL_PORT, 5 << 10 | 1 << 13 | 1), Some(PowerEvent::Off));
    for other in (0..8).filter(|&other| other != 5) {
        assert_eq!(write16(&mut power, CONTROL_PORT, other << 10 | 1 << 13), None);
    }
    // SLP_EN is never read, SCI_EN never cleared.
    write16(&mut power, CONTROL_PORT, !(7 << 10));
    assert_eq!(read16(&mut power, CONTROL_PORT), 3);
}

#[test]
fn resets() {
    let mut power = power();
    assert_eq!(power.write_reset_control(RESET_SYSTEM), None);
    assert_eq!(power.write_reset_control(RESET_VALUE), Some(PowerEvent::Reset));
    assert_eq!(power.reset_control(), RESET_VALUE);
    assert_eq!(power.write_reset_control(RESET_VALUE), None, "only the rising bit");
    assert_eq!(power.write_reset_control(!RESET_CPU), None);
    assert_eq!(power.reset_control(), 0x0a);
    assert_eq!(power.write_reset_control(0x0e), Some(PowerEvent::Reset));
}

#[test]
fn power_button() {
    let mut power = power();
    power.press_button();
    assert!(!power.interrupt(0));
    write16(&mut power, EVENT_PORT + 2, POWER_BUTTON);
    assert!(power.interrupt(0));
    assert_eq!(read16(&mut power, EVENT_PORT), POWER_BUTTON);
    write16(&mut power, EVENT_PORT, !POWER_BUTTON);
    assert!(power.interrupt(0), "other ones do not clear it");
    write16(&mut power, EVENT_PORT, POWER_BUTTON);
    assert!(!power.interrupt(0));
    write16(&mut power, EVENT_PORT + 2, 0xffff);
    assert_eq!(read16(&mut power, EVENT_PORT + 2), EVENTS);
}

#[test]
fn timer_counts_wraps_and_interrupts() {
    let mut power = power();
    let value = |power: &mut Power, now| {
        u32::from_le_bytes([0, 1, 2, 3].map(|at| power.read(TIMER_PORT + at, now).unwrap()))
    };
    assert_eq!(value(&mut power, 0), 0);
    assert_eq!(value(&mut power, HZ), TIMER_HZ);
    assert_eq!(value(&mut power, HZ * 2000), u32::try_from(u64::from(TIMER_HZ) * 2000 % (1 << 32)).unwrap());
    // 2,000 s are three half turns.
    assert_eq!(read16(&mut power, EVENT_PORT), TIMER);
    write16(&mut power, EVENT_PORT, TIMER);
    assert_eq!(power.next_event(HZ * 2000), None);
    write16(&mut power, EVENT_PORT + 2, TIMER);
    let next = power.next_event(HZ * 2000).unwrap();
    assert!(!power.interrupt(next - 1));
    assert!(power.interrupt(next));
    assert_eq!(value(&mut power, next) << 1, 0);
    assert_eq!(power.next_event(next), None);
    assert!(power.next_event(u64::MAX).is_none());
}
