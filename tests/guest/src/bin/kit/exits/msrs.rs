//! RDMSR and WRMSR with any number, which the kernel executes for `/dev/cpu/N/msr`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use guest_kit::random::Random;

use super::excluded::{self, LIKELY_MSRS};

pub fn run(random: &mut Random, cpu: usize, iterations: u64) -> Result<String> {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(format!("/dev/cpu/{cpu}/msr")) else {
        return Ok("skipped(no-device)".into());
    };
    let (mut there, mut written) = (0, 0);
    for _ in 0..iterations {
        let number = any_msr(random);
        let before = read(&file, number)?;
        there += u64::from(before.is_some());
        // Writing is rarer: Linux says something about each in its log, which is a slow console at worst.
        if excluded::msr(number) || random.below(16) != 0 {
            continue;
        }
        let value = match random.below(3) {
            0 => before.unwrap_or(0),
            1 => 1 << random.below(64),
            _ => random.number(),
        };
        if write(&file, number, value)? {
            written += 1;
            // A write that is taken is to a register that can be read, or to one of commands.
            let after = read(&file, number)?;
            ensure!(
                after.is_some() || before.is_none(),
                "MSR {number:#x} is gone after {value:#x} was written"
            );
            if let Some(before) = before {
                write(&file, number, before)?;
            }
        }
    }
    Ok(format!("{iterations}/{there}-there/{written}-written"))
}

fn any_msr(random: &mut Random) -> u32 {
    let number = random.number();
    let low = (number & 0xffff_ffff) as u32;
    if number >> 62 == 0 { low } else { LIKELY_MSRS[random.index(LIKELY_MSRS.len())] + (low & 0x3f) }
}

/// Its value; nothing when the instruction faults.
fn read(file: &File, number: u32) -> Result<Option<u64>> {
    let mut value = [0; 8];
    match file.read_exact_at(&mut value, number.into()) {
        Ok(()) => Ok(Some(u64::from_le_bytes(value))),
        Err(error) if faulted(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading MSR {number:#x}")),
    }
}

/// Whether it was taken; not when the instruction faults.
fn write(file: &File, number: u32, value: u64) -> Result<bool> {
    match file.write_at(&value.to_le_bytes(), number.into()) {
        Ok(8) => Ok(true),
        Ok(bytes) => bail!("writing MSR {number:#x}: {bytes} bytes"),
        // Not permitted: the kernel is locked down, or was told to refuse.
        Err(error) if faulted(&error) || error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).with_context(|| format!("writing MSR {number:#x}")),
    }
}

fn faulted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
