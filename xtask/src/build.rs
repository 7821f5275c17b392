//! Builds the kernel and a manifest's services for bare metal, and the boot module from them.
//!
//! Kernel and services are two invocations of cargo: each has its own set of features. Always the release profile:
//! that is what runs, and what is measured.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::bundle;
use crate::manifest::{Manifest, Service};
use crate::paths::{self, TARGET};
use crate::process;

/// What a node boots.
#[derive(Debug)]
pub struct Built {
    /// The manifest that it was built from.
    pub manifest: Manifest,
    /// The kernel's ELF file with its symbols.
    pub kernel: PathBuf,
    /// The same without symbols: what is booted.
    pub boot_kernel: PathBuf,
    /// The boot module.
    pub module: PathBuf,
    /// Where the services' ELF files are.
    programs: PathBuf,
    /// Where what is made of this manifest goes.
    pub output: PathBuf,
}

impl Built {
    /// The ELF file of a service, with its symbols.
    pub fn elf_of(&self, service: &Service) -> PathBuf {
        self.programs.join(&service.binary)
    }
}

/// Builds what `manifest` names.
///
/// # Errors
/// As [`build_all`].
pub fn build(manifest: &Path) -> Result<Built> {
    build_all(&[manifest])?.pop().context("nothing was built")
}

/// Builds what each of several manifests names, in their order; the programs of all of them are built together.
///
/// # Errors
/// A manifest is refused, a program does not build, or a service is over its budget.
pub fn build_all(paths: &[&Path]) -> Result<Vec<Built>> {
    let manifests = paths.iter().map(|path| Manifest::load(path)).collect::<Result<Vec<_>>>()?;
    let target = paths::target_directory()?;
    process::run(&mut cargo_build(&["kernel"], &["kernel/metal".into()], &[]))
        .context("the kernel does not build")?;
    let services = ServiceBuild::of(manifests.iter().flat_map(|m| &m.services));
    process::run(&mut services.command()).context("the services do not build")?;

    let programs = target.join(TARGET).join("release");
    paths.iter().zip(manifests).map(|(path, manifest)| bundle(path, manifest, &target, &programs)).collect()
}

fn bundle(path: &Path, manifest: Manifest, target: &Path, programs: &Path) -> Result<Built> {
    let output = target.join("unum").join(path.file_stem().unwrap_or_default());
    fs::create_dir_all(&output).with_context(|| format!("{} cannot be made", output.display()))?;
    let built = Built {
        manifest,
        kernel: programs.join("kernel"),
        boot_kernel: output.join("kernel"),
        module: output.join("unum.img"),
        programs: programs.to_owned(),
        output,
    };
    strip(&built.kernel, &built.boot_kernel)?;
    bundle::write(&built.manifest, |service| built.elf_of(service), &built.module)?;
    Ok(built)
}

/// The packages, features and programs of a set of services.
#[derive(Debug, Default)]
struct ServiceBuild {
    packages: BTreeSet<String>,
    programs: BTreeSet<String>,
}

impl ServiceBuild {
    fn of<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        let mut build = Self::default();
        for service in services {
            build.packages.insert(service.package.clone());
            build.programs.insert(service.binary.clone());
        }
        build
    }

    fn command(&self) -> Command {
        let packages: Vec<_> = self.packages.iter().map(String::as_str).collect();
        let features: Vec<_> = self.packages.iter().map(|p| format!("{p}/metal")).collect();
        let programs: Vec<_> = self.programs.iter().map(String::as_str).collect();
        cargo_build(&packages, &features, &programs)
    }
}

fn cargo_build(packages: &[&str], features: &[String], programs: &[&str]) -> Command {
    let mut command = Command::new(paths::cargo());
    command.args(["build", "--release", "--target", TARGET]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.arg("--features").arg(features.join(","));
    for program in programs {
        command.args(["--bin", program]);
    }
    if std::env::var_os("DEFMT_LOG").is_none() {
        command.env("DEFMT_LOG", "info");
    }
    command
}

/// Boot loaders copy every section into memory, so what is booted goes without its debug information.
fn strip(from: &Path, to: &Path) -> Result<()> {
    process::run_quietly(Command::new("strip").arg("-o").args([to, from]))
        .context("the kernel's symbols cannot be taken off; 'strip' is part of the package binutils")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::At;

    fn service(name: &str, package: &str, binary: &str) -> Service {
        Service {
            name: name.into(),
            package: package.into(),
            binary: binary.into(),
            image_bytes: At { value: 1 << 20, line: 1 },
        }
    }

    #[test]
    fn services_of_one_package_are_built_once_and_with_their_features() {
        let services = [
            service("health", "health", "health"),
            service("one", "test-services", "hostile"),
            service("two", "test-services", "hostile"),
        ];
        let line = process::line(&ServiceBuild::of(&services).command());
        let expected = "build --release --target x86_64-unknown-linux-gnu --package health \
                        --package test-services --features health/metal,test-services/metal --bin health --bin hostile";
        assert!(line.ends_with(expected), "{line}");
    }
}
