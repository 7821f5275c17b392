//! `cargo xtask image`: one hybrid ISO that boots from CD or USB stick, under BIOS and UEFI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Built};
use crate::manifest::Overrides;
use crate::setup::{self, Tool};
use crate::{paths, process, sizes};

/// The manifest of the whole system.
pub const DEFAULT_MANIFEST: &str = "images/unum.toml";

/// The parts of GRUB that grub.cfg uses, beside those that it needs to find it.
const GRUB_MODULES: &str = "normal multiboot2 serial terminal part_msdos part_gpt iso9660 fat all_video";

/// Makes the bootable ISO and prints where it is.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The manifest: which services the image holds, and what each may do
    #[arg(long, default_value = DEFAULT_MANIFEST, value_parser = paths::of_user)]
    manifest: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// As [`build`].
pub fn run(arguments: &Arguments) -> Result<()> {
    let iso = build(&arguments.manifest)?;
    let bytes = fs::metadata(&iso)?.len();
    println!("{} ({})", iso.display(), sizes::human(bytes));
    println!("Write it to a USB stick with: cargo xtask flash");
    Ok(())
}

/// Builds a manifest and makes its ISO.
///
/// # Errors
/// A tool is missing, the manifest does not build, or the ISO cannot be made.
pub fn build(manifest: &Path) -> Result<PathBuf> {
    setup::ensure(&[Tool::Grub])?;
    make(&build::build(manifest, &Overrides::default())?)
}

/// Makes the ISO of what was built.
///
/// # Errors
/// grub-mkrescue fails: with what it printed.
pub fn make(built: &Built) -> Result<PathBuf> {
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
    let name = format!("{}.iso", built.manifest.system.name);
    let iso = built.output.join(name);
    let mut command = Command::new(setup::grub_mkrescue());
    command.args(["--fonts=", "--locales=", "--themes="]).arg(format!("--install-modules={GRUB_MODULES}"));
    process::run_quietly(command.arg("-o").args([&iso, &tree])).context("the ISO cannot be made")?;
    Ok(iso)
}
