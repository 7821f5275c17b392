//! The whole user space of a machine: an initrd needs this program as `/init` and nothing else.
#![expect(unsafe_code, reason = "system calls")]

use core::ptr;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sys::check;

const MOUNTS: [(&CStr, &CStr); 3] = [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")];

/// Makes ready what tests want, runs this program again with `arguments`, and powers off.
pub fn run(arguments: &[String]) -> ! {
    for (kind, place) in MOUNTS {
        if let Err(error) = mount(kind, place) {
            println!("kit init: {error:#}");
        }
    }
    for module in modules() {
        if let Err(error) = load(&module) {
            println!("kit init: {module}: {error:#}");
        }
    }
    let default = [String::from("all")];
    let arguments = if arguments.is_empty() { &default } else { arguments };
    match Command::new("/proc/self/exe").args(arguments).status() {
        Ok(status) => println!("kit init: {}, {status}", arguments.join(" ")),
        Err(error) => println!("kit init: {error}"),
    }
    // SAFETY: has no arguments.
    unsafe { libc::sync() };
    // SAFETY: ends the machine, which is what it is for.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    // Process 1 must not end: that would be a panic of the kernel, not an end.
    loop {
        std::thread::park();
    }
}

fn mount(kind: &CStr, place: &CStr) -> Result<()> {
    let name = place.to_str()?;
    fs::create_dir_all(name).with_context(|| format!("{name} cannot be made"))?;
    // SAFETY: the strings end in zero; there are no options.
    let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
    match check(result, "mount") {
        // The kernel mounts /dev itself when it is built to.
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other.map(drop).with_context(|| format!("{name} cannot be mounted")),
    }
}

fn modules() -> Vec<String> {
    let entries = fs::read_dir("/modules").into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path().to_string_lossy().into_owned()).collect();
    paths.retain(|path| path.ends_with(".ko"));
    paths.sort();
    paths
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::default();
    // SAFETY: the descriptor is open, and the parameters end in zero.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    check(result, "finit_module").map(drop)
}
