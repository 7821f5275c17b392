//! INS and OUTS, alone and repeated, forwards and backwards, up to a page that is not there.
#![expect(unsafe_code, reason = "the instructions themselves")]

use core::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use guest_kit::random::Random;

use super::ports::{self, Rights, Width};
use super::resources::Resource;
use crate::options::ClaimedPorts;
use crate::sys::map::{Access, Map, Sharing};
use crate::sys::{PAGE, fault};

/// A port without effect: the power-on self test's. Half of the transfers go there, the others anywhere.
const PORT: u16 = 0x80;
const FILL: u8 = 0x5a;

/// Registers before or after: the address register, the count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Registers {
    address: u64,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Forwards,
    Backwards,
}

/// What kind of access; the second letter of its instruction.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ins,
    Outs,
}

macro_rules! string {
    ($code:literal, $address:tt, $port:expr, $registers:expr, $direction:expr) => {{
        let Registers { mut address, mut count } = $registers;
        let signal = match $direction {
            // SAFETY: a fault is caught; the page is the test's, and so are its neighbours. The direction flag is clear
            // again at the end: the handler of a fault clears it, too.
            Direction::Forwards => unsafe {
                fault::attempt!($code; in("dx") $port, inout($address) address, inout("rcx") count)
            },
            // SAFETY: as above.
            Direction::Backwards => unsafe {
                fault::attempt!("std", $code, "cld"; in("dx") $port, inout($address) address, inout("rcx") count)
            },
        };
        (signal, Registers { address, count })
    }};
}

fn run_one(
    kind: Kind,
    width: Width,
    direction: Direction,
    port: u16,
    registers: Registers,
) -> (u64, Registers) {
    match (kind, width) {
        (Kind::Ins, Width::Byte) => string!("rep insb", "rdi", port, registers, direction),
        (Kind::Ins, Width::Word) => string!("rep insw", "rdi", port, registers, direction),
        (Kind::Ins, Width::Dword) => string!("rep insd", "rdi", port, registers, direction),
        (Kind::Outs, Width::Byte) => string!("rep outsb", "rsi", port, registers, direction),
        (Kind::Outs, Width::Word) => string!("rep outsw", "rsi", port, registers, direction),
        (Kind::Outs, Width::Dword) => string!("rep outsd", "rsi", port, registers, direction),
    }
}

pub fn run(random: &mut Random, iterations: u64, ports: ClaimedPorts) -> Result<String> {
    if ports::set_rights(Rights::All)? == Rights::None {
        return Ok("skipped(iopl)".into());
    }
    // Two pages between two that may not be touched.
    let map = Map::anonymous(4 * PAGE, Sharing::Private)?;
    for byte in &map.as_bytes()[PAGE..3 * PAGE] {
        byte.store(FILL, Ordering::Relaxed);
    }
    map.protect_page_range(0, 1, Access::None)?;
    map.protect_page_range(3, 1, Access::None)?;
    let claimed = ports::claimed(ports)?;
    let mut faults = 0;
    for _ in 0..iterations {
        faults += u64::from(transfer(random, &map, &claimed)?);
    }
    read_only(&map)?;
    ports::set_rights(Rights::None)?;
    Ok(format!("{iterations}/{faults}-faults"))
}

/// One repeated instruction at a random place; whether it ran into the end. It must stop exactly at the element that does
/// not fit, with the registers saying so.
fn transfer(random: &mut Random, map: &Map, claimed: &[Resource]) -> Result<bool> {
    let kind = if random.below(2) == 0 { Kind::Ins } else { Kind::Outs };
    let direction = if random.below(2) == 0 { Direction::Forwards } else { Direction::Backwards };
    let width = Width::any(random);
    let port = if random.below(2) == 0 { PORT } else { ports::any_port(random, width, claimed) };
    let size = usize::from(width.bytes());
    let offset = PAGE + random.index(2 * PAGE - size);
    let count = random.index(700);
    let fits = match direction {
        Direction::Forwards => (3 * PAGE - offset) / size,
        // The element at the offset itself, and those below it.
        Direction::Backwards => (offset - PAGE) / size + 1,
    };
    let done = count.min(fits);
    let start = map.start() as u64;
    let before = Registers { address: start + offset as u64, count: count as u64 };
    let (signal, after) = run_one(kind, width, direction, port, before);
    let moved = (done * size) as u64;
    let wanted = Registers {
        address: match direction {
            Direction::Forwards => before.address.wrapping_add(moved),
            Direction::Backwards => before.address.wrapping_sub(moved),
        },
        count: (count - done) as u64,
    };
    let wanted_signal = if done == count { 0 } else { libc::SIGSEGV as u64 };
    let what = format!(
        "{kind:?} {width:?} {direction:?} {count} times, port {port:#x}, at byte {offset:#x} of a 4-page mapping"
    );
    ensure!(signal == wanted_signal, "{what}: signal {signal}, not {wanted_signal}");
    ensure!(after == wanted, "{what}: {after:x?}, not {wanted:x?}, from {before:x?}");
    // What was read in is written over, and nothing else may have changed.
    let (low, high) = match direction {
        Direction::Forwards => (offset, offset + done * size),
        Direction::Backwards => ((offset + size).saturating_sub(done * size), offset + size),
    };
    for (at, byte) in map.as_bytes().iter().enumerate().take(3 * PAGE).skip(PAGE) {
        let value = byte.swap(FILL, Ordering::Relaxed);
        let touched = matches!(kind, Kind::Ins) && done > 0 && (low..high).contains(&at);
        ensure!(touched || value == FILL, "{what}: byte {at:#x} became {value:#x}");
    }
    Ok(signal != 0)
}

/// INS into a page that may only be read.
fn read_only(map: &Map) -> Result<()> {
    map.protect_page_range(1, 1, Access::Read)?;
    let before = Registers { address: map.start() as u64 + PAGE as u64 + 8, count: 3 };
    let (signal, after) = run_one(Kind::Ins, Width::Dword, Direction::Forwards, PORT, before);
    ensure!(signal == libc::SIGSEGV as u64, "INS into a page that may only be read: signal {signal}");
    ensure!(after == before, "INS into a page that may only be read: {after:x?}, not {before:x?}");
    let (signal, _) = run_one(Kind::Outs, Width::Dword, Direction::Forwards, PORT, before);
    ensure!(signal == 0, "OUTS from a page that may only be read: signal {signal}");
    map.protect_page_range(1, 1, Access::Write)
}
