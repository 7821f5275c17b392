//! `cargo xtask image`: one hybrid ISO that boots from CD or USB stick, under BIOS and UEFI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::{self, Built};
use crate::manifest::Overrides;
use crate::setup::{self, Tool};
use crate::{paths, process, sizes};

/// The manifest of the whole system.
pub const DEFAULT_MANIFEST: &str = "images/unum.toml";

/// The parts of GRUB that grub.cfg uses, beside those that it needs to find it.
const GRUB_MODULES: &str = "normal multiboot2 serial terminal part_msdos part_gpt iso9660 fat all_video";

/// The line of grub.cfg that a node's number goes behind.
const KERNEL_LINE: &str = "multiboot2 /boot/kernel";

/// Makes the bootable ISO and prints where it is.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The manifest: which services the image holds, and what each may do
    #[arg(long, default_value = DEFAULT_MANIFEST, value_parser = paths::of_user)]
    manifest: PathBuf,
    /// The number of the node that boots it: each node of a guest that spans several needs one of its own, from 1 on
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    node: Option<u8>,
}

/// Runs the command.
///
/// # Errors
/// As [`build`].
pub fn run(arguments: &Arguments) -> Result<()> {
    let iso = build(&arguments.manifest, arguments.node)?;
    let bytes = fs::metadata(&iso)?.len();
    println!("{} ({})", iso.display(), sizes::human(bytes));
    println!("Write it to a USB stick with: cargo xtask flash");
    Ok(())
}

/// Builds a manifest and makes its ISO, for the node with a number if there is one.
///
/// # Errors
/// A tool is missing, the manifest does not build, the guest has no node of this number or spans several and none is given,
/// or the ISO cannot be made.
pub fn build(manifest: &Path, node: Option<u8>) -> Result<PathBuf> {
    setup::ensure(&[Tool::Grub])?;
    let built = build::build(manifest, &Overrides::default())?;
    if let Some(nodes) = built.manifest.guest.as_ref().map(|guest| guest.config.shares.len()) {
        ensure!(
            nodes == 1 || node.is_some(),
            "the guest spans {nodes} nodes, and each boots an image of its own: say which with --node"
        );
        ensure!(
            nodes == 1 || node.is_none_or(|node| usize::from(node) <= nodes),
            "the guest spans nodes 1 to {nodes}"
        );
    }
    make(&built, node)
}

/// Makes the ISO of what was built, for the node with a number if there is one.
///
/// # Errors
/// grub-mkrescue fails: with what it printed.
pub fn make(built: &Built, node: Option<u8>) -> Result<PathBuf> {
    let tree = built.output.join("iso");
    let copy = |from: &Path, to: &str| {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().unwrap_or(&tree))
            .and_then(|()| fs::copy(from, &to))
            .with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))
    };
    copy(&built.boot_kernel, "boot/kernel")?;
    copy(&built.module, "boot/unum.img")?;
    copy(Path::new("images/grub.cfg"), "boot/grub/grub.cfg")?;
    if let Some(node) = node {
        let path = tree.join("boot/grub/grub.cfg");
        let text = fs::read_to_string(&path)?.replace(KERNEL_LINE, &format!("{KERNEL_LINE} node={node}"));
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let name = format!("{}.iso", built.manifest.system.name);
    let iso = built.output.join(name);
    let mut command = Command::new(setup::grub_mkrescue());
    command.args(["--fonts=", "--locales=", "--themes="]).arg(format!("--install-modules={GRUB_MODULES}"));
    process::run_quietly(command.arg("-o").args([&iso, &tree])).context("the ISO cannot be made")?;
    Ok(iso)
}
