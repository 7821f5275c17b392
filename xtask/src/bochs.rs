//! A node in Bochs: Intel's virtualisation, at a fraction of QEMU's speed, booted from the ISO.
//!
//! Debian's Bochs 2.7 is built with its debugger, which waits at a prompt until told to continue. Of its displays only
//! the VNC server (`rfb`) runs without a screen; sound goes to the dummy driver, for the others need a sound card.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus, Stdio};

use anyhow::{Context, Result};

use crate::process::{self, Child};
use crate::qemu::{CONSOLE, Ending, LOG, OUTPUT};
use crate::setup::{BOCHS_BIOS, BOCHS_VGA_BIOS};

const CONFIGURATION: &str = "bochsrc.txt";
const NOTES: &str = "bochs.txt";

/// One node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The image that it boots.
    pub iso: PathBuf,
    /// Where its files go.
    pub directory: PathBuf,
}

/// Starts a node; it goes on as long as the returned input is kept.
///
/// # Errors
/// Bochs cannot be started, or a file of the node cannot be written.
pub fn start(node: &Node) -> Result<(Child, ChildStdin)> {
    let path = node.directory.join(CONFIGURATION);
    fs::write(&path, configuration(node)).with_context(|| format!("{} cannot be written", path.display()))?;
    let output = node.directory.join(OUTPUT);
    let output = File::create(&output).with_context(|| format!("{} cannot be made", output.display()))?;
    let mut command = process::tied("bochs");
    command.args(["-q", "-f"]).arg(&path);
    command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
    let mut child = Child::start(&mut command)?;
    let mut input = child.take_input().context("Bochs has no input")?;
    input.write_all(b"c\n").context("Bochs takes no command")?;
    Ok((child, input))
}

fn configuration(node: &Node) -> String {
    let file = |name: &str| node.directory.join(name).display().to_string();
    format!(
        "cpu: model=corei7_skylake_x, count={cpus}, ips=50000000, reset_on_triple_fault=0\n\
         memory: guest={memory}, host={memory}\n\
         romimage: file={BOCHS_BIOS}\n\
         vgaromimage: file={BOCHS_VGA_BIOS}\n\
         pci: enabled=1, chipset=i440fx\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path=\"{iso}\", status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev=\"{console}\"\n\
         com2: enabled=1, mode=file, dev=\"{log}\"\n\
         display_library: rfb, options=\"timeout=0\"\n\
         sound: driver=dummy\n\
         speaker: enabled=1, mode=none\n\
         clock: sync=none\n\
         panic: action=fatal\n\
         log: \"{notes}\"\n",
        cpus = node.cpus,
        memory = node.memory_mib,
        iso = node.iso.display(),
        console = file(CONSOLE),
        log = file(LOG),
        notes = file(NOTES),
    )
}

/// How a node ended whose Bochs ended with `status`.
pub fn ending(directory: &Path, status: ExitStatus) -> Ending {
    let read = |name| fs::read(directory.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned());
    classify(status, &read(NOTES).unwrap_or_default())
}

fn classify(status: ExitStatus, notes: &str) -> Ending {
    // Bochs marks a panic by the letter after the time: "00012345678p[CPU0  ] >>PANIC<< ...".
    let Some(panic) = notes.lines().find_map(|line| line.split_once(">>PANIC<<")) else {
        return Ending::Died(format!("Bochs ended ({status})"));
    };
    let what = panic.1.trim();
    match what {
        _ if what.contains("exception(): 3rd (") => Ending::TripleFault,
        _ if what.contains("soft power off") => Ending::PoweredOff,
        _ => Ending::Died(format!("Bochs ended: {what}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_configuration_names_the_nodes_files() {
        let node = Node { cpus: 2, memory_mib: 256, iso: "a b.iso".into(), directory: "run/node-1".into() };
        let text = configuration(&node);
        assert!(text.contains("count=2") && text.contains("memory: guest=256, host=256"));
        assert!(text.contains("path=\"a b.iso\""));
        assert!(text.contains("com2: enabled=1, mode=file, dev=\"run/node-1/com2.bin\""));
        assert!(text.lines().all(|line| !line.starts_with(' ')), "{text}");
    }

    #[test]
    fn bochs_notes_say_how_it_ended() {
        let status = ExitStatus::from_raw(1 << 8);
        let fault = "00232043300i[CPU0  ] x\n00232043337p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n";
        assert_eq!(classify(status, fault), Ending::TripleFault);
        let off = "00232043337p[ACPI  ] >>PANIC<< ACPI control: soft power off\n";
        assert_eq!(classify(status, off), Ending::PoweredOff);
        let other = "00000000000p[      ] >>PANIC<< ROM: couldn't open ROM image file\n";
        assert_eq!(
            classify(status, other),
            Ending::Died("Bochs ended: ROM: couldn't open ROM image file".into())
        );
        assert!(matches!(classify(status, ""), Ending::Died(text) if text.contains("exit status: 1")));
    }
}
