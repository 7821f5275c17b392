use std::collections::VecDeque;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

/// Interrupts gated through, FIFO on with the given trigger bits.
fn ready(trigger: u8, enabled: u8) -> Uart {
    let mut uart = Uart::new();
    uart.write(MCR, mcr::OUT2 | mcr::DTR | mcr::RTS);
    uart.write(FCR, fcr::ENABLE | trigger << 6);
    uart.write(IER, enabled);
    uart
}

fn output(uart: &mut Uart) -> Vec<u8> {
    let mut bytes = vec![0; OUTPUT_BYTES + 1];
    let count = uart.take_output(&mut bytes);
    bytes.truncate(count);
    bytes
}

#[test]
fn reset_values() {
    let mut uart = Uart::new();
    assert_eq!([IER, IIR, LCR, MCR, LSR].map(|register| uart.read(register)), [0, 1, 0, 0, 0x60]);
    assert_eq!(uart.read(MSR), 0xb0);
    assert!(!uart.interrupt());
    assert_eq!(uart.read(8), 0xff);
}

/// The steps of Linux's autoconfig and autoconfig_16550a.
#[test]
fn is_found_as_a_16550a() {
    let mut uart = Uart::new();
    uart.write(IER, 0);
    assert_eq!(uart.read(IER), 0);
    uart.write(IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f);
    uart.write(IER, 0);
    uart.write(MCR, mcr::LOOPBACK | mcr::OUT2 | mcr::RTS);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90);
    uart.write(MCR, 0);
    // No extended registers behind 0xbf: register 2 is the identification there.
    uart.write(LCR, 0xbf);
    assert_ne!(uart.read(IIR), 0);
    uart.write(LCR, 0);
    uart.write(FCR, fcr::ENABLE);
    assert_eq!(uart.read(IIR) >> 6, 3);
    // Not a 16750: no FIFO of 64 bytes, whatever DLAB is.
    for divisor in [0, lcr::DIVISOR] {
        uart.write(LCR, divisor);
        uart.write(FCR, fcr::ENABLE | 0x20);
        assert_eq!(uart.read(IIR) & 0xe0, 0xc0);
    }
    uart.write(LCR, 0);
    uart.write(SCR, 0x5a);
    assert_eq!(uart.read(SCR), 0x5a);
    uart.write(FCR, 0);
    assert_eq!(uart.read(IIR) >> 6, 0);
}

/// Linux's tests for UART_BUG_THRE and UART_BUG_TXEN at opening.
#[test]
fn empty_transmitter_asserts_its_interrupt_again() {
    let mut uart = ready(0, 0);
    for _ in 0..2 {
        uart.write(IER, ier::HOLDING_EMPTY);
        assert!(uart.interrupt());
        assert_eq!(uart.read(IIR) & 0x0f, iir::HOLDING_EMPTY);
        // Reading it as the source takes it back.
        assert!(!uart.interrupt());
        assert_eq!(uart.read(IIR) & 0x0f, iir::NONE);
        uart.write(IER, 0);
    }
    // Enabled and enabled again is no new request.
    uart.write(IER, ier::HOLDING_EMPTY);
    uart.read(IIR);
    uart.write(IER, ier::HOLDING_EMPTY);
    assert!(!uart.interrupt());
    // A byte sent is.
    uart.write(DATA, b'x');
    assert!(uart.interrupt());
    assert_eq!(output(&mut uart), b"x");
}

#[test]
fn identification_of_another_source_keeps_the_transmitters_request() {
    let mut uart = ready(0, ier::RECEIVED | ier::HOLDING_EMPTY);
    uart.receive(b"a");
    assert_eq!(uart.read(IIR) & 0x0f, iir::RECEIVED);
    assert_eq!(uart.read(DATA), b'a');
    assert_eq!(uart.read(IIR) & 0x0f, iir::HOLDING_EMPTY);
    assert_eq!(uart.read(IIR) & 0x0f, iir::NONE);
}

#[test]
fn priorities() {
    let mut uart = ready(0, ier::ALL);
    uart.receive(&[7; INPUT_BYTES + FIFO_BYTES + 1]);
    // The modem lines change by going through loopback.
    uart.write(MCR, mcr::LOOPBACK);
    uart.write(MCR, mcr::OUT2);
    assert_eq!(uart.read(IIR) & 0x0f, iir::LINE_STATUS);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(IIR) & 0x0f, iir::RECEIVED);
    while uart.read(LSR) & lsr::DATA_READY != 0 {
        uart.read(DATA);
    }
    assert_eq!(uart.read(IIR) & 0x0f, iir::HOLDING_EMPTY);
    assert_eq!(uart.read(IIR) & 0x0f, iir::MODEM_STATUS);
    assert_eq!(uart.read(MSR), 0xbb);
    assert_eq!(uart.read(IIR) & 0x0f, iir::NONE);
    assert!(!uart.interrupt());
}

#[test]
fn trigger_levels_and_timeout() {
    for (trigger, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        let mut uart = ready(trigger, ier::RECEIVED);
        for count in 1..=16 {
            uart.receive(&[count]);
            let expected = if count >= level { iir::RECEIVED } else { iir::TIMEOUT };
            assert_eq!(uart.read(IIR) & 0x0f, expected, "{count} of {level}");
        }
        for count in 1..=16 {
            assert!(uart.interrupt());
            assert_eq!(uart.read(DATA), count);
        }
        assert!(!uart.interrupt());
    }
}

/// Linux's console masks the interrupts while it prints; what came meanwhile must be announced afterwards.
#[test]
fn input_while_masked_is_announced_later() {
    let mut uart = ready(0, 0);
    uart.receive(b"k");
    assert!(!uart.interrupt());
    uart.write(IER, ier::RECEIVED);
    assert!(uart.interrupt());
}

#[test]
fn gate_of_the_pc() {
    let mut uart = ready(0, ier::RECEIVED);
    uart.receive(b"k");
    assert!(uart.interrupt());
    for closed in [0, mcr::LOOPBACK | mcr::OUT2] {
        uart.write(MCR, closed);
        assert!(!uart.interrupt());
    }
    uart.write(MCR, mcr::OUT2);
    assert!(uart.interrupt());
}

#[test]
fn without_fifo_one_byte_is_held() {
    let mut uart = Uart::new();
    uart.receive(b"ab");
    assert_eq!(uart.receiver.count, 1);
    assert_eq!([uart.read(DATA), uart.read(DATA)], *b"ab");
    assert_eq!(uart.read(LSR) & lsr::DATA_READY, 0);
    uart.write(MCR, mcr::LOOPBACK);
    uart.write(DATA, 1);
    uart.write(DATA, 2);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(DATA), 1);
}

#[test]
fn clearing_the_receiver() {
    let mut uart = ready(0, 0);
    uart.receive(b"0123");
    uart.write(FCR, fcr::ENABLE | fcr::CLEAR_RECEIVER);
    assert_eq!(uart.read(LSR) & lsr::DATA_READY, 0);
    uart.receive(b"4");
    uart.write(FCR, 0);
    assert_eq!(uart.read(LSR) & lsr::DATA_READY, 0);
}

#[test]
fn loopback_keeps_the_line_apart() {
    let mut uart = ready(0, 0);
    uart.write(MCR, mcr::LOOPBACK);
    uart.receive(b"line");
    uart.write(DATA, b'l');
    assert_eq!(uart.read(DATA), b'l');
    assert_eq!(uart.read(LSR) & lsr::DATA_READY, 0);
    assert!(!uart.has_output());
    uart.write(MCR, 0);
    assert_eq!(uart.read(DATA), b'l');
    assert_eq!(uart.read(DATA), b'i');
}

#[test]
fn full_output_makes_the_transmitter_busy() {
    let mut uart = ready(0, ier::HOLDING_EMPTY);
    let mut sent = 0;
    while uart.read(LSR) & lsr::HOLDING_EMPTY != 0 {
        for _ in 0..FIFO_BYTES {
            uart.write(DATA, b'.');
            sent += 1;
        }
        assert!(sent <= OUTPUT_BYTES);
    }
    assert_eq!(uart.read(LSR) & lsr::EMPTY, 0);
    assert!(!uart.interrupt());
    // No request while it is busy, not even a new one.
    uart.write(IER, 0);
    uart.write(IER, ier::HOLDING_EMPTY);
    assert!(!uart.interrupt());
    let mut some = [0; 4 * FIFO_BYTES];
    assert_eq!(uart.take_output(&mut some), some.len());
    assert!(uart.interrupt());
    assert_eq!(some.len() + output(&mut uart).len(), sent);
}

#[test]
fn divisor_latch() {
    let mut uart = Uart::new();
    uart.write(LCR, lcr::DIVISOR | 3);
    uart.write(DATA, 0x34);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(DATA), uart.read(IER), uart.divisor), (0x34, 0x12, 0x1234));
    uart.write(LCR, 3);
    assert_eq!((uart.read(IER), uart.has_output()), (0, false));
}

/// Against a model of queues: nothing is lost, reordered or invented while there is room.
#[test]
fn bytes_come_and_go_in_order() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut uart = ready(2, ier::ALL);
    let (mut incoming, mut outgoing) = (VecDeque::new(), VecDeque::new());
    for _ in 0..100_000 {
        match random.random_range(0..4) {
            0 => {
                let bytes: Vec<u8> = (0..random.random_range(0..64)).map(|_| random.random()).collect();
                if uart.input_room() >= bytes.len() {
                    uart.receive(&bytes);
                    incoming.extend(bytes);
                }
            }
            1 => {
                for _ in 0..random.random_range(0..40) {
                    if uart.read(LSR) & lsr::DATA_READY != 0 {
                        assert_eq!(Some(uart.read(DATA)), incoming.pop_front());
                    }
                }
            }
            2 => {
                for _ in 0..random.random_range(0..40) {
                    if uart.read(LSR) & lsr::HOLDING_EMPTY != 0 {
                        let byte = random.random();
                        uart.write(DATA, byte);
                        outgoing.push_back(byte);
                    }
                }
            }
            _ => {
                let mut bytes = [0; 50];
                let count = uart.take_output(&mut bytes);
                for &byte in &bytes[..count] {
                    assert_eq!(Some(byte), outgoing.pop_front());
                }
            }
        }
        assert_eq!(uart.read(LSR) & lsr::DATA_READY != 0, !incoming.is_empty());
        assert_eq!(uart.read(LSR) & lsr::OVERRUN, 0);
        assert_eq!(uart.has_output(), !outgoing.is_empty());
    }
}

#[test]
fn random_accesses_keep_the_bounds() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut uart = Uart::new();
    for _ in 0..300_000 {
        match random.random_range(0..10) {
            0 => uart.receive(&[random.random(); 5]),
            1 => _ = uart.take_output(&mut [0; 100]),
            2..=5 => _ = uart.read(random.random_range(0..=8)),
            _ => uart.write(random.random_range(0..=8), random.random()),
        }
        assert!(uart.receiver.count <= uart.receiver_bytes());
        assert_eq!(uart.read(IER) & !ier::ALL & if uart.shows_divisor() { 0 } else { 0xff }, 0);
        let interrupt = uart.interrupt();
        if interrupt {
            assert_eq!(uart.identification() & iir::NONE, 0);
        }
    }
}
