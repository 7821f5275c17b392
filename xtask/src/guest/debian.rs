//! Files of Debian's packages, downloaded and unpacked beside the build's output, never installed.
//!
//! Each version of a package is fetched once, to `guest/PACKAGE_VERSION` in the build's directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use super::library;
use crate::{paths, process, setup};

/// The package that depends on the current kernel.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// All packages that are ever asked for: apt's lists are read once for all of them.
const PACKAGES: [&str; 5] = [KERNEL_PACKAGE, "busybox-static", "util-linux", "libsmartcols1", "libc6"];
/// What this works with, all of it part of every Debian.
const PROGRAMS: [&str; 3] = ["apt-get", "apt-cache", "dpkg-deb"];

/// A package in a certain version.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    /// Where it is unpacked. A colon, which versions may have, is written as in the names of apt's files.
    fn directory(&self) -> String {
        format!("{}_{}", self.name, self.version.replace(':', "%3a"))
    }
}

/// Debian's current cloud kernel, a bzImage.
///
/// # Errors
/// This system is not Debian's kin, or the package cannot be fetched.
pub fn kernel() -> Result<PathBuf> {
    let (package, tree) = kernel_tree()?;
    let boot = tree.join("boot");
    let files =
        fs::read_dir(&boot).with_context(|| format!("the package {} has no directory boot", package.name))?;
    files
        .flatten()
        .map(|file| file.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("the package {} has no file boot/vmlinuz-*", package.name))
}

/// A module of that kernel, by its file's name.
///
/// # Errors
/// As [`kernel`], or the kernel has no such module.
pub fn kernel_module(name: &str) -> Result<PathBuf> {
    library::find(&[kernel_tree()?.1], name)
}

/// The current kernel's package, and where its files are.
fn kernel_tree() -> Result<(Package, PathBuf)> {
    ensure_programs("kernel", "--guest-kernel FILE")?;
    fetch_newest(|| {
        kernel_package(&describe(KERNEL_PACKAGE)?)
            .with_context(|| format!("the package {KERNEL_PACKAGE} names no kernel that it depends on"))
    })
}

/// The unpacked files of packages, a directory for each, in their order.
///
/// # Errors
/// As [`kernel`].
pub fn packages(names: &[&str]) -> Result<Vec<PathBuf>> {
    ensure_programs("initrd", "--guest-initrd FILE (or --guest-initrd none)")?;
    let newest = |name: &str| {
        let version = field(&describe(name)?, "Version").map(str::to_owned);
        let version = version.with_context(|| format!("the package {name} has no version"))?;
        Ok(Package { name: name.to_owned(), version })
    };
    names.iter().map(|name| Ok(fetch_newest(|| newest(name))?.1)).collect()
}

/// Fetches the package that apt's lists name; the package, and where it is. Lists that are out of date name packages that
/// are gone.
fn fetch_newest(newest: impl Fn() -> Result<Package>) -> Result<(Package, PathBuf)> {
    let package = newest()?;
    if let Ok(tree) = fetch(&package) {
        return Ok((package, tree));
    }
    process::check_interrupted()?;
    setup::fetch_lists("That failed, maybe because apt's package lists are out of date")?;
    *known() = None;
    let package = newest()?;
    let tree = fetch(&package)?;
    Ok((package, tree))
}

fn ensure_programs(what: &str, option: &str) -> Result<()> {
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|program| !process::is_program(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "the guest's {what} is made of Debian's packages, and what fetches them is missing here: {}\n\
         Give another: cargo xtask run {option}",
        missing.join(", ")
    )
}

/// What apt's lists say of the newest version of a package. They are fetched when there are none.
fn describe(name: &str) -> Result<String> {
    let mut known = known();
    let all = match &mut *known {
        Some(all) => all,
        none => none.insert(read_lists()?),
    };
    let stanza = stanza(all, name).map(str::to_owned);
    stanza.with_context(|| {
        format!(
            "apt knows no package {name}, which the guest needs; it is one of Debian's, in the section main"
        )
    })
}

/// The descriptions of [`PACKAGES`], as they were read.
fn known() -> MutexGuard<'static, Option<String>> {
    static KNOWN: Mutex<Option<String>> = Mutex::new(None);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_lists() -> Result<String> {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions"]).args(PACKAGES);
    // A package that is not known makes this fail; the others are told all the same.
    let mut output = process::output(&mut show)?;
    if output.stdout.is_empty() && setup::fetch_missing_lists()? {
        output = process::output(&mut show)?;
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The description of a package among several.
fn stanza<'a>(all: &'a str, name: &str) -> Option<&'a str> {
    all.split("\n\n").find(|stanza| field(stanza, "Package") == Some(name))
}

/// A field of a package's description.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The package of the kernel that the description of [`KERNEL_PACKAGE`] names, with its version.
fn kernel_package(stanza: &str) -> Option<Package> {
    let mut dependencies = field(stanza, "Depends")?.split(',').map(str::trim);
    let kernel = dependencies.find(|dependency| dependency.starts_with("linux-image-"))?;
    let (name, version) = match kernel.split_once(' ') {
        Some((name, version)) => (name, version.trim().strip_prefix("(=")?.strip_suffix(')')?.trim()),
        None => (kernel, field(stanza, "Version")?),
    };
    Some(Package { name: name.to_owned(), version: version.to_owned() })
}

/// Downloads and unpacks a package, unless that was done before.
fn fetch(package: &Package) -> Result<PathBuf> {
    let base = paths::target_directory()?.join("guest");
    let tree = base.join(package.directory());
    if tree.is_dir() {
        return Ok(tree);
    }
    let Package { name, version } = package;
    eprintln!("Fetching Debian's package {name} {version} for the guest.");
    // What is there is whole: it gets its name at the end.
    let unfinished = base.join(format!("{}.{}", package.directory(), std::process::id()));
    fs::create_dir_all(&unfinished).with_context(|| format!("{} cannot be made", unfinished.display()))?;
    let done = download(package, &unfinished).and_then(|archive| {
        let unpacked = unfinished.join("tree");
        process::run_quietly(Command::new("dpkg-deb").arg("-x").args([&archive, &unpacked]))?;
        match fs::rename(&unpacked, &tree) {
            // Another xtask was faster.
            Err(_) if tree.is_dir() => Ok(()),
            result => result.with_context(|| format!("{} cannot be made", tree.display())),
        }
    });
    let removed = fs::remove_dir_all(&unfinished);
    done.with_context(|| format!("the package {name} {version} cannot be fetched"))?;
    removed.with_context(|| format!("{} cannot be removed", unfinished.display()))?;
    Ok(tree)
}

/// Downloads a package's archive into a directory.
fn download(package: &Package, directory: &Path) -> Result<PathBuf> {
    let wanted = format!("{}={}", package.name, package.version);
    let mut download = Command::new("apt-get");
    // Where it goes is ours, so there is no other user to download as.
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", &wanted]).current_dir(directory);
    process::run_quietly(&mut download)?;
    let mut files = fs::read_dir(directory)?.flatten().map(|file| file.path());
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.172+1)\nVersion: 6.1.172-1\n\
                        Depends: linux-image-6.1.0-48-cloud-amd64 (= 6.1.172-1)\nDescription: Linux\n";

    #[test]
    fn the_kernel_is_the_one_that_the_meta_package_depends_on() {
        let package = |version: &str| {
            Some(Package { name: "linux-image-6.1.0-48-cloud-amd64".into(), version: version.into() })
        };
        assert_eq!(kernel_package(META), package("6.1.172-1"));
        let loose =
            META.replace("Depends: ", "Depends: initramfs-tools, ").replace(" (= 6.1.172-1)\nDes", "\nDes");
        assert_eq!(kernel_package(&loose), package("6.1.172-1"));
        assert_eq!(kernel_package("Package: x\nVersion: 1\n"), None);
        assert_eq!(kernel_package(&META.replace("(= 6.1.172-1)\n", "(>= 6)\n")), None);
        assert_eq!(kernel_package(""), None);
    }

    #[test]
    fn a_packages_fields_are_found() {
        let all = format!("{META}\nPackage: busybox-static\nVersion: 1:1.35.0-4\n\nPackage: libc6\n");
        assert_eq!(stanza(&all, "libc6"), Some("Package: libc6\n"));
        assert_eq!(field(stanza(&all, "busybox-static").unwrap(), "Version"), Some("1:1.35.0-4"));
        assert_eq!(stanza(&all, "busybox"), None);
        assert_eq!(field(META, "Version"), Some("6.1.172-1"));
        assert_eq!(field(META, "Depend"), None);
        let package = Package { name: "busybox-static".into(), version: "1:1.35.0-4+b1".into() };
        assert_eq!(package.directory(), "busybox-static_1%3a1.35.0-4+b1");
    }
}
