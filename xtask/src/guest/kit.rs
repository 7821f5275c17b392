//! The programs of `tests/guest`, which run in a guest.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{debian, initrd};
use crate::manifest::KernelSource;
use crate::paths::{self, TARGET};
use crate::process;

/// Debian's kernel has its device for MSRs in a module.
const MSR_MODULE: &str = "msr.ko";
const PACKAGE: &str = "guest-kit";
const PROGRAM: &str = "kit";

/// The initrd with a shell and the kit, for this kernel.
///
/// # Errors
/// The kit does not build, or as [`initrd::build`].
pub fn initrd(kernel: &KernelSource) -> Result<Vec<u8>> {
    let kit = program()?;
    let module = match kernel {
        KernelSource::Debian => Some(debian::kernel_module(MSR_MODULE)?),
        KernelSource::Early(_) | KernelSource::File(_) => None,
    };
    let module = module.as_deref().map(|module| ("modules/msr.ko", module, 0o644));
    let files: Vec<_> = [("bin/kit", kit.as_path(), 0o755)].into_iter().chain(module).collect();
    initrd::build(&files, initrd::SHELL_INIT)
}

/// Builds the kit; where it is. It is linked statically, because the guest has no libraries for it, and for one address: so
/// an emulator keeps its translation from one `exec` to the next.
///
/// # Errors
/// It does not build.
pub fn program() -> Result<PathBuf> {
    // Its flags are other ones than everybody's, so it has a directory of its own to be built in.
    let target = paths::target_directory()?.join("guest").join(PACKAGE);
    let mut build = Command::new(paths::cargo());
    build.args(["build", "--release", "--target", TARGET, "--package", PACKAGE, "--bin", PROGRAM]);
    build
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    process::run(&mut build).context("the guest's test kit does not build")?;
    Ok(target.join(TARGET).join("release").join(PROGRAM))
}
