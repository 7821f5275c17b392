//! What a command needs beside Rust, and how it gets there.
//!
//! On Debian and its relatives xtask installs what is missing by itself, as root or through a `sudo` that asks no
//! password. Elsewhere it says what is missing. With everything there this takes a few look-ups of files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Something that a command works with.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tool {
    /// Runs nodes.
    Qemu,
    /// UEFI firmware for QEMU.
    Ovmf,
    /// Makes bootable images.
    Grub,
    /// Runs a node with Intel's virtualisation.
    Bochs,
}

/// One thing that may be missing.
struct Requirement {
    tool: Tool,
    /// What it is, and what for.
    what: &'static str,
    /// Any of these suffices.
    candidates: &'static [Candidate],
    /// Debian's package.
    package: &'static str,
}

enum Candidate {
    /// A program in the PATH.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

use Candidate::{File, Program};

/// Where distributions keep OVMF: code and the variable store that goes with it.
const OVMF: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];
/// Where apt keeps what it knows of packages.
const PACKAGE_LISTS: &str = "/var/lib/apt/lists";
/// Bochs' BIOS.
pub const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// Bochs' VGA BIOS.
pub const BOCHS_VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

const REQUIREMENTS: [Requirement; 12] = [
    Requirement {
        tool: Tool::Qemu,
        what: "QEMU, which runs the nodes",
        candidates: &[Program("qemu-system-x86_64")],
        package: "qemu-system-x86",
    },
    Requirement {
        tool: Tool::Qemu,
        what: "setpriv, which ends the nodes with xtask",
        candidates: &[Program("setpriv")],
        package: "util-linux",
    },
    Requirement {
        tool: Tool::Ovmf,
        what: "OVMF, the UEFI firmware for QEMU",
        candidates: &[File(OVMF[0].0), File(OVMF[1].0), File(OVMF[2].0), File(OVMF[3].0)],
        package: "ovmf",
    },
    Requirement {
        tool: Tool::Grub,
        what: "grub-mkrescue, which makes the ISO",
        candidates: &[Program("grub-mkrescue"), Program("grub2-mkrescue")],
        package: "grub-common",
    },
    Requirement {
        tool: Tool::Grub,
        what: "GRUB for BIOS",
        candidates: &[File("/usr/lib/grub/i386-pc/multiboot2.mod")],
        package: "grub-pc-bin",
    },
    Requirement {
        tool: Tool::Grub,
        what: "GRUB for UEFI",
        candidates: &[File("/usr/lib/grub/x86_64-efi/multiboot2.mod")],
        package: "grub-efi-amd64-bin",
    },
    Requirement {
        tool: Tool::Grub,
        what: "xorriso, with which grub-mkrescue writes the ISO",
        candidates: &[Program("xorriso")],
        package: "xorriso",
    },
    Requirement {
        tool: Tool::Grub,
        what: "mtools, with which grub-mkrescue makes the UEFI partition",
        candidates: &[Program("mformat")],
        package: "mtools",
    },
    Requirement {
        tool: Tool::Bochs,
        what: "Bochs, which emulates Intel's virtualisation",
        candidates: &[Program("bochs")],
        package: "bochs",
    },
    Requirement {
        tool: Tool::Bochs,
        what: "setpriv, which ends Bochs with xtask",
        candidates: &[Program("setpriv")],
        package: "util-linux",
    },
    Requirement {
        tool: Tool::Bochs,
        what: "the BIOS for Bochs",
        candidates: &[File(BOCHS_BIOS)],
        package: "bochsbios",
    },
    Requirement {
        tool: Tool::Bochs,
        what: "the VGA BIOS for Bochs",
        candidates: &[File(BOCHS_VGA_BIOS)],
        package: "vgabios",
    },
];

/// Makes sure that `tools` are there.
///
/// # Errors
/// Something is missing and cannot be installed: what it is, and how to get it.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools, is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let list: String = missing.iter().map(|r| format!("\n  {} (package {})", r.what, r.package)).collect();
    let packages: BTreeSet<_> = missing.iter().map(|r| r.package).collect();
    let by_hand = format!("apt-get install {}", packages.iter().copied().collect::<Vec<_>>().join(" "));
    if !process::is_program("apt-get") {
        bail!("this is missing:{list}\nInstall it; the names are those of Debian's packages.");
    }
    let Some(prefix) = privilege() else {
        bail!("this is missing, and only root may install it:{list}\nType: sudo {by_hand}");
    };
    eprintln!("Installing what is missing:{list}");
    install(prefix, &packages)?;
    let missing = self::missing(tools, is_there);
    if let Some(first) = missing.first() {
        bail!("{by_hand} succeeded, yet this is still missing: {}", first.what);
    }
    Ok(())
}

/// The firmware for UEFI: code, and the variable store to copy for a node.
pub fn ovmf() -> Option<(PathBuf, PathBuf)> {
    OVMF.iter()
        .map(|(code, vars)| (PathBuf::from(code), PathBuf::from(vars)))
        .find(|(code, _)| code.is_file())
}

/// The name of grub-mkrescue here.
pub fn grub_mkrescue() -> &'static str {
    if process::is_program("grub-mkrescue") { "grub-mkrescue" } else { "grub2-mkrescue" }
}

fn is_there(candidate: &Candidate) -> bool {
    match candidate {
        Program(name) => process::is_program(name),
        File(path) => Path::new(path).is_file(),
    }
}

fn missing(tools: &[Tool], is_there: impl Fn(&Candidate) -> bool) -> Vec<&'static Requirement> {
    REQUIREMENTS.iter().filter(|r| tools.contains(&r.tool) && !r.candidates.iter().any(&is_there)).collect()
}

/// What to put before a command that only root may run; `None` when there is no way.
fn privilege() -> Option<&'static [&'static str]> {
    if nix::unistd::geteuid().is_root() {
        return Some(&[]);
    }
    let sudo = process::output(Command::new("sudo").args(["-n", "true"]));
    sudo.is_ok_and(|o| o.status.success()).then_some(&["sudo", "-n"])
}

fn install(prefix: &[&str], packages: &BTreeSet<&str>) -> Result<()> {
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    let mut updated = false;
    if !has_package_lists(Path::new(PACKAGE_LISTS)) {
        eprintln!("Fetching the package lists first.");
        process::run_quietly(&mut apt(prefix, &["update"]))?;
        updated = true;
    }
    match process::run_quietly(&mut apt(prefix, &arguments)) {
        // Lists that are out of date name packages that are gone.
        Err(_) if !updated => {
            eprintln!("That failed; fetching the package lists anew.");
            process::run_quietly(&mut apt(prefix, &["update"]))?;
            process::run_quietly(&mut apt(prefix, &arguments))
        }
        result => result,
    }
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Command {
    let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"], arguments].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Fetches apt's package lists when there are none; whether there were none.
///
/// # Errors
/// Only root may do that, or it fails.
pub fn fetch_missing_lists() -> Result<bool> {
    if has_package_lists(Path::new(PACKAGE_LISTS)) {
        return Ok(false);
    }
    fetch_lists("There are no package lists")?;
    Ok(true)
}

/// Fetches apt's package lists; `why` is told.
///
/// # Errors
/// Only root may do that, or it fails.
pub fn fetch_lists(why: &str) -> Result<()> {
    let Some(prefix) = privilege() else {
        bail!("{why}, and only root may fetch them.\nType: sudo apt-get update");
    };
    eprintln!("{why}; fetching them.");
    process::run_quietly(&mut apt(prefix, &["update"]))
}

fn has_package_lists(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(list: &[&Requirement]) -> Vec<&'static str> {
        list.iter().map(|r| r.package).collect()
    }

    #[test]
    fn a_command_asks_only_for_what_it_needs() {
        assert!(missing(&[], |_| false).is_empty());
        assert_eq!(packages(&missing(&[Tool::Ovmf], |_| false)), ["ovmf"]);
        let boot = missing(&[Tool::Qemu, Tool::Grub], |_| false);
        assert_eq!(
            packages(&boot),
            [
                "qemu-system-x86",
                "util-linux",
                "grub-common",
                "grub-pc-bin",
                "grub-efi-amd64-bin",
                "xorriso",
                "mtools"
            ]
        );
        assert!(missing(&[Tool::Qemu, Tool::Ovmf, Tool::Grub, Tool::Bochs], |_| true).is_empty());
    }

    #[test]
    fn one_of_several_places_suffices() {
        let only = |path: &'static str| {
            missing(&[Tool::Ovmf], move |c| matches!(c, File(p) if *p == path)).is_empty()
        };
        assert!(only(OVMF[0].0) && only(OVMF[3].0));
        assert!(!only("/usr/share/OVMF/OTHER.fd"));
    }

    #[test]
    fn package_lists_are_recognised() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_package_lists(directory.path()));
        std::fs::write(directory.path().join("lock"), "").unwrap();
        assert!(!has_package_lists(directory.path()));
        std::fs::write(directory.path().join("deb.debian.org_dists_x_main_binary-amd64_Packages.lz4"), "")
            .unwrap();
        assert!(has_package_lists(directory.path()));
        assert!(!has_package_lists(&directory.path().join("none")));
    }
}
