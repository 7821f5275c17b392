//! `cargo xtask check`: what must hold before a change is taken in, beside the tests.

use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{self, TARGET};
use crate::process;

/// Checks format, lints and dependencies.
#[derive(clap::Args, Debug)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// The first check that fails.
pub fn run(_: &Arguments) -> Result<()> {
    step("format", cargo(&["fmt", "--all", "--", "--check"]))?;
    step(
        "lints of everything that runs here",
        cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    )?;
    let services = bare_metal_packages(&paths::metadata()?)?;
    step("lints of the kernel", clippy_metal(&["kernel".to_owned()]))?;
    step("lints of the services", clippy_metal(&services))?;
    if process::is_program("cargo-deny") {
        step("licences and sources of dependencies", cargo(&["deny", "--log-level", "error", "check"]))?;
    } else {
        println!(
            "check: cargo-deny is not installed, so licences and sources of dependencies are not checked"
        );
    }
    println!("check: all is well");
    Ok(())
}

fn step(what: &str, mut command: Command) -> Result<()> {
    println!("check: {what}");
    process::run(&mut command).with_context(|| format!("the check of {what} failed"))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::cargo());
    command.args(arguments);
    command
}

/// Lints programs as they are built for bare metal.
fn clippy_metal(packages: &[String]) -> Command {
    let mut command = cargo(&["clippy", "--quiet", "--target", TARGET]);
    for package in packages {
        command.args(["--package", package]);
    }
    let features: Vec<_> = packages.iter().map(|p| format!("{p}/metal")).collect();
    command.arg("--features").arg(features.join(","));
    command.args(["--", "-D", "warnings"]);
    command
}

/// The packages beside the kernel that hold a program for bare metal.
fn bare_metal_packages(metadata: &serde_json::Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let is_metal = |package: &serde_json::Value| {
        let targets = package["targets"].as_array();
        targets.into_iter().flatten().any(|target| {
            target["kind"][0] == "bin"
                && target["required-features"].as_array().is_some_and(|f| f.iter().any(|f| f == "metal"))
        })
    };
    let names = packages.iter().filter(|p| is_metal(p)).filter_map(|p| p["name"].as_str());
    Ok(names.filter(|&name| name != "kernel").map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_for_bare_metal_are_found_and_linted_with_their_features() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "ipc", "targets": [{ "kind": ["lib"] }] },
            { "name": "kernel", "targets": [{ "kind": ["bin"], "required-features": ["metal"] }] },
            { "name": "ept", "targets": [{ "kind": ["lib"] }, { "kind": ["bin"], "required-features": ["metal"] }] },
            { "name": "health", "targets": [{ "kind": ["bin"], "required-features": ["metal", "x"] }] },
            { "name": "xtask", "targets": [{ "kind": ["bin"] }] },
        ]});
        let packages = bare_metal_packages(&metadata).unwrap();
        assert_eq!(packages, ["ept", "health"]);
        let line = process::line(&clippy_metal(&packages));
        let expected = "clippy --quiet --target x86_64-unknown-linux-gnu --package ept --package health \
                        --features ept/metal,health/metal -- -D warnings";
        assert!(line.ends_with(expected), "{line}");
        assert!(bare_metal_packages(&serde_json::json!({})).is_err());
    }
}
