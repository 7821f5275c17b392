//! IN and OUT at random ports.
#![expect(unsafe_code, reason = "the instructions themselves")]

use core::arch::asm;

use anyhow::{Result, ensure};
use guest_kit::random::Random;

use super::{excluded, resources};
use crate::options::ClaimedPorts;
use crate::sys::check;

/// How wide an access is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// Bytes.
    pub fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// One of the three.
    pub fn any(random: &mut Random) -> Self {
        [Self::Byte, Self::Word, Self::Dword][random.index(3)]
    }

    /// What becomes of RAX when `value` is read into its low part: 8 and 16 bits leave the rest as it was, 32 bits clear it.
    fn merged(self, before: u64, after: u64) -> u64 {
        match self {
            Self::Byte => before & !0xff | after & 0xff,
            Self::Word => before & !0xffff | after & 0xffff,
            Self::Dword => after & 0xffff_ffff,
        }
    }
}

/// What the program may do with ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rights {
    /// Everything.
    All,
    /// Nothing: it is not root, or the kernel is locked down.
    None,
}

/// Asks Linux for access to all ports, or gives it back (`iopl(2)`).
///
/// # Errors
/// Access cannot be given back.
pub fn set_rights(rights: Rights) -> Result<Rights> {
    let level = match rights {
        Rights::All => 3,
        Rights::None => 0,
    };
    // SAFETY: lets this program use ports; which ones it uses is `excluded`'s matter.
    let result = check(unsafe { libc::iopl(level) }, "iopl");
    match (rights, result) {
        (_, Ok(_)) => Ok(rights),
        (Rights::All, Err(_)) => Ok(Rights::None),
        (Rights::None, Err(error)) => Err(error),
    }
}

/// Ports that are tried: one on average in four is where a PC has devices.
pub fn any_port(random: &mut Random, width: Width, claimed: &[resources::Resource]) -> u16 {
    loop {
        let [low, high, choice, ..] = random.number().to_le_bytes();
        let port = u16::from_le_bytes([low, if choice & 3 == 0 { high & 3 } else { high }]);
        let last = u64::from(port) + u64::from(width.bytes()) - 1;
        let somebodys = claimed
            .iter()
            .any(|r| !r.is_bus() && *r.range.start() <= last && u64::from(port) <= *r.range.end());
        if !somebodys && !excluded::ports(port, width.bytes()) {
            return port;
        }
    }
}

/// Ports that Linux lists as somebody's, when they are to be left alone.
pub fn claimed(ports: ClaimedPorts) -> Result<Vec<resources::Resource>> {
    match ports {
        ClaimedPorts::Use => Ok(Vec::new()),
        ClaimedPorts::Avoid => resources::read("/proc/ioports"),
    }
}

/// Random reads and writes; what is read changes as much of RAX as it must.
pub fn run(random: &mut Random, iterations: u64, ports: ClaimedPorts) -> Result<String> {
    if set_rights(Rights::All)? == Rights::None {
        return Ok("skipped(iopl)".into());
    }
    let claimed = claimed(ports)?;
    for _ in 0..iterations {
        let width = Width::any(random);
        let port = any_port(random, width, &claimed);
        let before = random.number();
        if random.below(2) == 0 {
            write(port, width, before);
        } else {
            let after = read(port, width, before);
            ensure!(
                after == width.merged(before, after),
                "reading {width:?} at port {port:#x} with RAX {before:#x} left {after:#x}"
            );
        }
    }
    set_rights(Rights::None)?;
    Ok(iterations.to_string())
}

macro_rules! instruction {
    ($code:literal, $($operands:tt)+) => {
        // SAFETY: the program has the right; what the device does is not undone, which is why some are excluded.
        unsafe { asm!($code, $($operands)+, options(nostack, preserves_flags)) }
    };
}

fn read(port: u16, width: Width, before: u64) -> u64 {
    let mut rax = before;
    match width {
        Width::Byte => instruction!("in al, dx", in("dx") port, inout("rax") rax),
        Width::Word => instruction!("in ax, dx", in("dx") port, inout("rax") rax),
        Width::Dword => instruction!("in eax, dx", in("dx") port, inout("rax") rax),
    }
    rax
}

fn write(port: u16, width: Width, value: u64) {
    match width {
        Width::Byte => instruction!("out dx, al", in("dx") port, in("rax") value),
        Width::Word => instruction!("out dx, ax", in("dx") port, in("rax") value),
        Width::Dword => instruction!("out dx, eax", in("dx") port, in("rax") value),
    }
}
