//! An initrd of Debian's busybox, `lscpu`, and whatever else it is to hold.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::debian;
use super::library::{self, Needs};
use crate::process;

/// What the first process of [`shell`] prints before it starts the shell: the console's input is read from then on.
pub const GREETING: &str = "processors is up; 'poweroff' ends it";
/// The end of the shell's prompt: what is typed from then on is read as one line. What comes earlier may get lost between
/// the shell and the program that runs.
pub const PROMPT: &str = " # ";
/// The first process of an initrd with a shell.
pub const SHELL_INIT: &str = include_str!("init.sh");

/// The program that is most of the others.
const BUSYBOX: &str = "busybox-static";
/// What `lscpu` is in, and what it needs to run.
const LSCPU: [&str; 3] = ["util-linux", "libsmartcols1", "libc6"];
/// Where Debian's loader looks for libraries first.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// Directories that the first process mounts on or works in.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "tmp", "run", "root", "etc"];

/// The initrd with a shell on the console.
///
/// # Errors
/// As [`build`].
pub fn shell() -> Result<Vec<u8>> {
    build(&[], SHELL_INIT)
}

/// An initrd with busybox's programs, `lscpu` and these files: each with its path in the guest (`bin/tool`), where it is
/// here, and its permissions. A file takes the place of busybox's program of the same path, though busybox's shell prefers
/// its own. `init` is the script that is the guest's first process.
///
/// # Errors
/// A package cannot be fetched, a file cannot be read, or two have the same path.
pub fn build(files: &[(&str, &Path, u32)], init: &str) -> Result<Vec<u8>> {
    let busybox = debian::packages(&[BUSYBOX])?;
    let busybox = library::find(&busybox, "bin/busybox")?;
    let mut archive = Archive::default();
    archive.file("init", 0o755, init.as_bytes())?;
    DIRECTORIES.iter().try_for_each(|name| archive.directory(name))?;
    archive.device("dev/console", 0o600, 5, 1)?;
    for (path, host, mode) in files {
        archive.file(path, *mode, &read(host)?)?;
    }
    add_lscpu(&mut archive)?;
    archive.file("bin/busybox", 0o755, &read(&busybox)?)?;
    for applet in applets(&busybox)? {
        if !archive.has(&applet) {
            archive.link(&applet, "/bin/busybox")?;
        }
    }
    Ok(archive.finish())
}

/// The paths of busybox's programs, as it tells them.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = process::output(Command::new(busybox).arg("--list-full"))?;
    ensure!(output.status.success(), "{} does not list its programs", busybox.display());
    let list = String::from_utf8(output.stdout).context("busybox lists programs that are not text")?;
    // Its place as the first process is taken.
    Ok(list.lines().filter(|path| !["linuxrc", "init", ""].contains(path)).map(str::to_owned).collect())
}

/// Busybox has no lscpu: Debian's, with the libraries and the loader that it names.
fn add_lscpu(archive: &mut Archive) -> Result<()> {
    let trees = debian::packages(&LSCPU)?;
    let program = library::find(&trees, "bin/lscpu")?;
    let mut wanted = add_dynamic(archive, "usr/bin/lscpu", &program)?;
    while let Some(name) = wanted.pop() {
        let path = format!("{LIBRARIES}/{name}");
        if !archive.has(&path) {
            wanted.extend(add_dynamic(archive, &path, &library::find(&trees, &name)?)?);
        }
    }
    let interpreter = library::needs(&read(&program)?).interpreter.context("lscpu names no loader")?;
    let path = interpreter.trim_start_matches('/');
    let name = path.rsplit('/').next().unwrap_or(path);
    archive.file(path, 0o755, &read(&library::find(&trees, name)?)?)
}

/// Adds a program or library; the names of the libraries that it needs.
fn add_dynamic(archive: &mut Archive, path: &str, host: &Path) -> Result<Vec<String>> {
    let contents = read(host)?;
    archive.file(path, 0o755, &contents)?;
    let Needs { libraries, .. } = library::needs(&contents);
    Ok(libraries)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shells_script_says_the_greeting() {
        assert!(SHELL_INIT.starts_with("#!/bin/sh\n"));
        assert!(SHELL_INIT.contains(GREETING) && SHELL_INIT.contains(&format!("{PROMPT}'")));
        let status = Command::new("sh").args(["-n", "-c", SHELL_INIT]).status().unwrap();
        assert!(status.success(), "it is a script");
    }
}
