//! Builds the kernel and a manifest's services for bare metal, and the boot module from them.
//!
//! Kernel and services are two invocations of cargo: each has its own set of features. Always the release profile:
//! that is what runs, and what is measured.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::manifest::{Manifest, Overrides, Service};
use crate::paths::{self, TARGET};
use crate::{bundle, guest, process};

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

/// Builds what `manifest` names, its guest as a command line wants it.
///
/// # Errors
/// The manifest is refused, the guest's parts are not there or not sound, a program does not build, or a service is over
/// its budget.
pub fn build(manifest: &Path, guest: &Overrides) -> Result<Built> {
    let manifest_of = Manifest::load(manifest, guest)?;
    // What is wrong with the guest is told before minutes of building.
    let blobs = blobs(&manifest_of)?;
    let programs = Programs::build([&manifest_of])?;
    programs.bundle_with(manifest, manifest_of, &blobs)
}

/// Builds what each of several manifests names, in their order; the programs of all of them are built together.
///
/// # Errors
/// As [`build`].
pub fn build_all(paths: &[&Path]) -> Result<Vec<Built>> {
    let load = |path: &&Path| Manifest::load(path, &Overrides::default());
    let manifests = paths.iter().map(load).collect::<Result<Vec<_>>>()?;
    let programs = Programs::build(&manifests)?;
    paths.iter().zip(manifests).map(|(path, manifest)| programs.bundle(path, manifest)).collect()
}

fn blobs(manifest: &Manifest) -> Result<Vec<bundle::Blob>> {
    manifest.guest.as_ref().map_or_else(|| Ok(Vec::new()), guest::blobs)
}

/// The kernel and the services of some manifests.
#[derive(Debug)]
pub struct Programs {
    target: PathBuf,
    directory: PathBuf,
}

impl Programs {
    /// Builds them.
    ///
    /// # Errors
    /// One of them does not build.
    pub fn build<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Result<Self> {
        let target = paths::target_directory()?;
        process::run(&mut cargo_build(&["kernel"], &["kernel/metal".into()], &[]))
            .context("the kernel does not build")?;
        let services = ServiceBuild::of(manifests.into_iter().flat_map(|m| &m.services));
        process::run(&mut services.command()).context("the services do not build")?;
        Ok(Self { directory: target.join(TARGET).join("release"), target })
    }

    /// Makes what a node boots, of one of the manifests. That of an earlier call for a manifest of the same name is
    /// overwritten.
    ///
    /// # Errors
    /// A service is over its budget, or the guest's parts are not there or not sound.
    pub fn bundle(&self, path: &Path, manifest: Manifest) -> Result<Built> {
        let blobs = blobs(&manifest)?;
        self.bundle_with(path, manifest, &blobs)
    }

    fn bundle_with(&self, path: &Path, manifest: Manifest, blobs: &[bundle::Blob]) -> Result<Built> {
        let output = self.target.join("unum").join(path.file_stem().unwrap_or_default());
        fs::create_dir_all(&output).with_context(|| format!("{} cannot be made", output.display()))?;
        let built = Built {
            manifest,
            kernel: self.directory.join("kernel"),
            boot_kernel: output.join("kernel"),
            module: output.join("unum.img"),
            programs: self.directory.clone(),
            output,
        };
        strip(&built.kernel, &built.boot_kernel)?;
        bundle::write(&built.manifest, |service| built.elf_of(service), blobs, &built.module)?;
        Ok(built)
    }
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
