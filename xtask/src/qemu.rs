//! A node in QEMU: emulated by TCG, as every machine can, and never by KVM.
//!
//! COM1 (the kernel's plain text and the guest's console) and COM2 (the log) go to files in the node's directory; what is
//! typed at COM1 comes from a socket there. QEMU writes there too why a processor was reset: a triple fault ends QEMU with
//! success, and is told from a power-off only so.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Child};
use crate::setup;

/// COM1's text, in a node's directory.
pub const CONSOLE: &str = "com1.txt";
/// The socket that takes what is typed at COM1, in a node's directory.
pub const KEYBOARD: &str = "com1.sock";
/// COM2's bytes, in a node's directory.
pub const LOG: &str = "com2.bin";
/// What the emulator itself printed, in a node's directory.
pub const OUTPUT: &str = "emulator.txt";
/// What QEMU notes when a processor is reset.
const RESETS: &str = "resets.txt";
/// The socket at which QEMU takes commands.
const MONITOR: &str = "monitor.sock";

/// The value that a program on the node writes to port 0xf4 when all it had to show was right.
pub const VERDICT_PASS: i32 = 0x10;
/// The same for a failure.
pub const VERDICT_FAIL: i32 = 0x11;
/// The port, and bytes there.
const VERDICT_PORT: &str = "isa-debug-exit,iobase=0xf4,iosize=4";

/// What a node boots, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Boot {
    /// QEMU loads the kernel (PVH) and the boot module.
    Direct {
        /// The kernel.
        kernel: PathBuf,
        /// The boot module.
        module: PathBuf,
    },
    /// SeaBIOS starts GRUB from this ISO.
    Bios(PathBuf),
    /// OVMF starts GRUB from this ISO.
    Uefi(PathBuf),
}

/// How a node's time passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Clock {
    /// As ours does.
    Wall,
    /// One instruction is one nanosecond and one TSC tick; while all processors sleep, time jumps to the next timer. The
    /// same run gives the same figures again.
    Instructions,
}

/// What emulates a node's processors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Threads {
    /// A thread each: they really run at the same time.
    Each,
    /// One, in turns. What enters guest mode needs it: in QEMU 7.2 any processor's FXRSTOR or XRSTOR changes the first one's
    /// flags without a lock (`cpu_clear_ignne`), and a flag that says 'nested paging' or 'in the guest' gets lost with it.
    One,
}

/// One node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its number, from 1.
    pub number: u8,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What it boots.
    pub boot: Boot,
    /// Its time.
    pub clock: Clock,
    /// How many of QEMU's threads emulate its processors.
    pub threads: Threads,
    /// The socket of its port of the virtual switch.
    pub network: Option<PathBuf>,
    /// The longest Ethernet payload of its link in bytes.
    pub mtu: u16,
    /// The TCP port at which it waits for a debugger.
    pub gdb: Option<u16>,
    /// Where its files go.
    pub directory: PathBuf,
}

/// How a node ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ending {
    /// A program on it reported that all was right.
    Passed,
    /// A program on it reported a failure.
    Failed,
    /// It powered off or asked for a reset.
    PoweredOff,
    /// A processor had three faults at once.
    TripleFault,
    /// The emulator ended for another reason.
    Died(String),
}

/// Starts a node.
///
/// # Errors
/// QEMU cannot be started, or a file of the node cannot be written.
pub fn start(node: &Node) -> Result<Child> {
    let output = node.directory.join(OUTPUT);
    let output = File::create(&output).with_context(|| format!("{} cannot be made", output.display()))?;
    let firmware = match &node.boot {
        Boot::Uefi(_) => Some(copy_firmware(&node.directory)?),
        Boot::Direct { .. } | Boot::Bios(_) => None,
    };
    let mut command = process::tied("qemu-system-x86_64");
    command.args(arguments(node, firmware.as_ref()));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    Child::start(&mut command)
}

/// A node has a variable store of its own; the code is shared.
fn copy_firmware(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (code, variables) = setup::ovmf().context("OVMF is missing; install the package ovmf")?;
    let copy = directory.join("variables.fd");
    fs::copy(&variables, &copy).with_context(|| format!("{} cannot be copied", variables.display()))?;
    Ok((code, copy))
}

fn arguments(node: &Node, firmware: Option<&(PathBuf, PathBuf)>) -> Vec<String> {
    let file = |name: &str| escape(&node.directory.join(name));
    let mut list: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(|&word| word.to_owned()));
    let accelerator = match node.threads {
        Threads::Each => "tcg",
        Threads::One => "tcg,thread=single",
    };
    add(&["-machine", "q35", "-accel", accelerator, "-cpu", "max", "-smp", &node.cpus.to_string()]);
    add(&["-m", &format!("{}M", node.memory_mib)]);
    add(&["-name", &format!("node-{}", node.number)]);
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-d", "cpu_reset", "-D", &node.directory.join(RESETS).display().to_string()]);
    let (keyboard, console) = (file(KEYBOARD), file(CONSOLE));
    let com1 = format!("socket,id=com1,path={keyboard},server=on,wait=off,logfile={console}");
    let com2 = format!("file,id=com2,path={}", file(LOG));
    add(&["-chardev", &com1, "-serial", "chardev:com1", "-chardev", &com2, "-serial", "chardev:com2"]);
    add(&["-monitor", &format!("unix:{},server=on,wait=off", file(MONITOR))]);
    add(&["-device", VERDICT_PORT]);
    match &node.boot {
        Boot::Direct { kernel, module } => {
            add(&["-kernel", &kernel.display().to_string(), "-initrd", &escape(module)]);
            add(&["-append", &format!("node={}", node.number)]);
        }
        Boot::Bios(iso) | Boot::Uefi(iso) => {
            add(&["-drive", &format!("media=cdrom,format=raw,readonly=on,file={}", escape(iso))]);
        }
    }
    if let Some((code, variables)) = firmware {
        add(&["-drive", &format!("if=pflash,format=raw,readonly=on,file={}", escape(code))]);
        add(&["-drive", &format!("if=pflash,format=raw,file={}", escape(variables))]);
    }
    if let Some(socket) = &node.network {
        let path = escape(socket);
        add(&["-netdev", &format!("stream,id=net,server=off,addr.type=unix,addr.path={path}")]);
        let mtu = node.mtu;
        let mac = format!("52:54:00:00:00:{:02x}", node.number);
        add(&["-device", &format!("virtio-net-pci,netdev=net,mac={mac},disable-legacy=on,host_mtu={mtu}")]);
    }
    if node.clock == Clock::Instructions {
        // The real-time clock and the random instructions, too, are the same in every run.
        add(&["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]);
    }
    if let Some(port) = node.gdb {
        add(&["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
    }
    list
}

/// A path within one of QEMU's comma-separated options.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// How a node ended whose QEMU ended with `status`.
pub fn ending(directory: &Path, status: ExitStatus) -> Ending {
    let read = |name| fs::read(directory.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned());
    classify(status, &read(RESETS).unwrap_or_default(), &read(OUTPUT).unwrap_or_default())
}

fn classify(status: ExitStatus, resets: &str, output: &str) -> Ending {
    // The device makes of a value the exit code 2 * value + 1, which is never 0.
    match status.code() {
        Some(0) if resets.contains("Triple fault") => Ending::TripleFault,
        Some(0) => Ending::PoweredOff,
        Some(code) if code == 2 * VERDICT_PASS + 1 => Ending::Passed,
        Some(code) if code == 2 * VERDICT_FAIL + 1 => Ending::Failed,
        Some(code) => Ending::Died(died(&format!("exit code {code}"), output)),
        None => Ending::Died(died(&format!("signal {}", status.signal().unwrap_or_default()), output)),
    }
}

fn died(how: &str, output: &str) -> String {
    match output.trim() {
        "" => format!("QEMU ended with {how}"),
        text => format!("QEMU ended with {how}: {text}"),
    }
}

/// The registers of all processors of a running node, as QEMU prints them: for a node that hangs.
///
/// # Errors
/// QEMU does not answer within two seconds.
pub fn registers(directory: &Path) -> Result<String> {
    let path = directory.join(MONITOR);
    let mut monitor =
        UnixStream::connect(&path).with_context(|| format!("{} does not answer", path.display()))?;
    monitor.set_read_timeout(Some(Duration::from_secs(2)))?;
    monitor.write_all(b"info registers -a\n")?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // The first prompt is the greeting's, the second follows the answer.
    while String::from_utf8_lossy(&text).matches("(qemu) ").count() < 2 {
        match monitor.read(&mut buffer)? {
            0 => break,
            n => text.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&text);
    let start = text.find("CPU#").or_else(|| text.find("RAX=")).unwrap_or(0);
    Ok(text.get(start..).unwrap_or_default().trim_end_matches("(qemu) ").trim_end().replace('\r', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(boot: Boot) -> Node {
        Node {
            number: 10,
            cpus: 2,
            memory_mib: 256,
            boot,
            clock: Clock::Wall,
            threads: Threads::Each,
            network: None,
            mtu: 9000,
            gdb: None,
            directory: "run/node-10".into(),
        }
    }

    fn line(node: &Node) -> String {
        arguments(node, None).join(" ")
    }

    #[test]
    fn a_node_boots_in_three_ways() {
        let direct = node(Boot::Direct { kernel: "kernel".into(), module: "a,b.img".into() });
        let text = line(&direct);
        assert!(text.contains("-kernel kernel -initrd a,,b.img"), "{text}");
        assert!(text.contains("-smp 2 -m 256M") && text.contains("-accel tcg -cpu"), "{text}");
        assert!(text.contains("path=run/node-10/com1.sock,server=on,wait=off,logfile=run/node-10/com1.txt"));
        assert!(!text.contains("netdev") && !text.contains("icount") && !text.contains("gdb"), "{text}");
        let iso = node(Boot::Bios("a.iso".into()));
        assert!(line(&iso).contains("file=a.iso"));
        let firmware = ("code.fd".into(), "vars.fd".into());
        let text = arguments(&node(Boot::Uefi("a.iso".into())), Some(&firmware)).join(" ");
        assert!(text.contains("readonly=on,file=code.fd -drive if=pflash,format=raw,file=vars.fd"), "{text}");
    }

    #[test]
    fn options_add_their_devices() {
        let mut node = node(Boot::Bios("a.iso".into()));
        node.network = Some("sw,1.sock".into());
        node.clock = Clock::Instructions;
        node.threads = Threads::One;
        node.gdb = Some(1234);
        let text = line(&node);
        assert!(text.contains("addr.path=sw,,1.sock"), "{text}");
        assert!(text.contains("mac=52:54:00:00:00:0a,disable-legacy=on,host_mtu=9000"), "{text}");
        assert!(text.contains("-icount shift=0,sleep=off"), "{text}");
        assert!(text.contains("-accel tcg,thread=single -cpu"), "{text}");
        assert!(text.contains("tcp:127.0.0.1:1234 -S"), "{text}");
    }

    #[test]
    fn an_ending_says_pass_fail_or_what_else() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(classify(code(33), "", ""), Ending::Passed);
        assert_eq!(classify(code(35), "", ""), Ending::Failed);
        assert_eq!(classify(code(0), "CPU Reset (CPU 0)", ""), Ending::PoweredOff);
        assert_eq!(classify(code(0), "CPU Reset (CPU 0)\nTriple fault\n", ""), Ending::TripleFault);
        let died = |ending| if let Ending::Died(text) = ending { text } else { String::new() };
        assert_eq!(
            died(classify(code(1), "", "no such file\n")),
            "QEMU ended with exit code 1: no such file"
        );
        assert_eq!(died(classify(ExitStatus::from_raw(9), "", "")), "QEMU ended with signal 9");
    }
}
