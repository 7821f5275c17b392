//! The driver against a simulated device.

extern crate std;

use std::vec::Vec;

use embedded_io::{Read, ReadReady, Write, WriteReady};

use crate::simulated::{Model, Simulated};
use crate::{DIVISOR_115200, FIFO_BYTES, Uart, UartError};

fn open(device: &mut Simulated) -> Uart<&mut Simulated> {
    Uart::open(device, DIVISOR_115200, 1_000).unwrap()
}

#[test]
fn an_absent_or_foreign_device_is_found_out() {
    for model in [Model::Absent, Model::Memory] {
        let mut device = Simulated::new(model);
        assert_eq!(Uart::open(&mut device, 1, 10).err(), Some(UartError::Absent));
    }
}

#[test]
fn the_line_is_set_up() {
    let mut device = Simulated::new(Model::Working);
    Uart::open(&mut device, 0x0301, 10).unwrap();
    assert_eq!(device.divisor, 0x0301);
    // 8N1 with the latch closed; DTR and RTS without loopback; no interrupts.
    assert_eq!((device.registers[3], device.registers[4], device.registers[1]), (3, 3, 0));
    let mut device = Simulated::new(Model::Working);
    Uart::open(&mut device, 0, 10).unwrap();
    assert_eq!(device.divisor, 1);
}

#[test]
fn every_byte_leaves_in_order_at_any_speed() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    for (model, speed) in [(Model::Working, 1), (Model::Working, 7), (Model::NoFifo, 3)] {
        let mut device = Simulated::new(model);
        device.looks_per_byte = speed;
        let mut uart = open(&mut device);
        uart.write_all(&bytes).unwrap();
        uart.flush().unwrap();
        assert_eq!(device.sent, bytes, "{model:?} at {speed}");
        assert_eq!(device.overrun, 0);
    }
}

#[test]
fn a_stuck_transmitter_is_an_error_and_not_a_hang() {
    let mut device = Simulated::new(Model::Stuck);
    let mut uart = open(&mut device);
    assert_eq!(uart.write(&[1; 20]), Ok(FIFO_BYTES));
    assert_eq!(uart.write(&[2]), Err(UartError::Stuck));
    assert_eq!(uart.flush(), Err(UartError::Stuck));
    assert_eq!(uart.write_ready(), Ok(false));
    assert_eq!(uart.write_now(&[3]), 0);
    assert_eq!(uart.write(&[]), Ok(0));
}

#[test]
fn writing_now_never_waits() {
    let mut device = Simulated::new(Model::Working);
    device.looks_per_byte = 5;
    let mut uart = open(&mut device);
    assert_eq!(uart.write_now(&[7; 40]), FIFO_BYTES);
    assert_eq!(uart.write_now(&[8; 40]), 0);
    let mut tries = 0;
    while uart.write_now(&[9]) == 0 {
        tries += 1;
        assert!(tries < 100);
    }
    uart.flush().unwrap();
    let mut expected = [7; 17];
    expected[16] = 9;
    assert_eq!(device.sent, expected);
}

#[test]
fn reading_gives_what_is_there_and_tells_of_damage_once() {
    let mut device = Simulated::new(Model::Working);
    device.arriving.extend([(1, 0), (2, 0), (3, 0x08), (4, 0), (5, 0x02), (6, 0)]);
    let mut uart = open(&mut device);
    let mut into = [0; 8];
    assert_eq!(uart.read_ready(), Ok(true));
    assert_eq!(uart.read(&mut into[..1]), Ok(1));
    assert_eq!(uart.read(&mut into[1..]), Ok(1));
    assert_eq!(into[..2], [1, 2]);
    // 3 came with a framing error: told, and the byte dropped.
    assert_eq!(uart.read(&mut into), Err(UartError::Line));
    assert_eq!(uart.read(&mut into), Ok(1));
    assert_eq!(into[0], 4);
    // Bytes were lost before 5: told, and 5 itself is good.
    assert_eq!(uart.read(&mut into), Err(UartError::Line));
    assert_eq!(uart.read(&mut into), Ok(2));
    assert_eq!(into[..2], [5, 6]);
    assert_eq!(uart.read_ready(), Ok(false));
    assert_eq!(uart.read(&mut into), Err(UartError::Stuck));
    assert_eq!(uart.read(&mut []), Ok(0));
}
