//! The programs of `tests/guest`, which run in a guest.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{self, TARGET};
use crate::process;

const PACKAGE: &str = "guest-kit";
const PROGRAM: &str = "kit";

/// Builds the kit; where it is. It is linked statically: the guest has no libraries for it.
///
/// # Errors
/// It does not build.
pub fn program() -> Result<PathBuf> {
    // Its flags are other ones than everybody's, so it has a directory of its own to be built in.
    let target = paths::target_directory()?.join("guest").join(PACKAGE);
    let mut build = Command::new(paths::cargo());
    build.args(["build", "--release", "--target", TARGET, "--package", PACKAGE, "--bin", PROGRAM]);
    build.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    process::run(&mut build).context("the guest's test kit does not build")?;
    Ok(target.join(TARGET).join("release").join(PROGRAM))
}
