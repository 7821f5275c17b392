//! A writer of cpio archives in the format "newc", which Linux unpacks as its initrd.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Everything belongs to root and has the time 0,
//! so that the same files give the same archive.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Linux' PATH_MAX, the final zero included.
const MAX_NAME_BYTES: usize = 4096;

/// An archive that is being written.
///
/// Names are relative to the guest's root (`bin/sh`). The directories on the way to an entry are made by themselves.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; nothing, when it is there already.
    ///
    /// # Errors
    /// The name is not one, or not a directory's.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        // A directory's name is kept with the slash, so that a file of the same name is seen as another.
        let mut end = 0;
        for part in name.split('/') {
            end += part.len();
            let path = name.get(..end).unwrap_or_default();
            end += 1;
            if !self.names.contains(&format!("{path}/")) {
                self.entry(path, DIRECTORY | 0o755, (0, 0), &[])?;
                self.names.insert(format!("{path}/"));
            }
        }
        Ok(())
    }

    /// Adds a file with the permissions `mode`.
    ///
    /// # Errors
    /// The name is not one, or taken, or the file is 4 GiB or larger.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.entry(name, REGULAR | mode & 0o7777, (0, 0), contents)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The name is not one, or taken.
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(name)?;
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// The name is not one, or taken.
    pub fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.parents(name)?;
        self.entry(name, CHARACTER_DEVICE | mode & 0o7777, (major, minor), &[])
    }

    /// Whether there is an entry of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.append(TRAILER, 0, (0, 0), &[], 0);
        self.bytes
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        name.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        let is_part = |part: &str| !["", ".", ".."].contains(&part) && !part.contains('\0');
        let is_name = name.split('/').all(is_part) && name.len() < MAX_NAME_BYTES && name != TRAILER;
        ensure!(is_name, "'{name}' is no name of a file in an initrd");
        ensure!(self.names.insert(name.to_owned()), "there are two files '{name}' in the initrd");
        let bytes = u32::try_from(contents.len());
        ensure!(bytes.is_ok(), "the file '{name}' is too large for an initrd");
        self.entries += 1;
        self.append(name, mode, device, contents, self.entries);
        Ok(())
    }

    fn append(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8], inode: u32) {
        let (links, name_bytes) = (if mode & DIRECTORY == DIRECTORY { 2 } else { 1 }, name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{owner:08x}{owner:08x}{links:08x}{time:08x}{size:08x}{owner:08x}{owner:08x}\
             {major:08x}{minor:08x}{name_bytes:08x}{check:08x}",
            owner = 0,
            time = 0,
            size = contents.len(),
            major = device.0,
            minor = device.1,
            check = 0,
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::{Command, Stdio};

    use super::*;

    /// What an archive's entry says: name, mode, device, contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn read(bytes: &[u8]) -> Vec<Entry> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            assert_eq!(at % 4, 0);
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_bytes) = (field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_bytes];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_bytes - 1].to_vec()).unwrap();
            let start = (at + 110 + name_bytes).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!((size, start), (0, bytes.len()));
                return entries;
            }
            entries.push((name, field(1), (field(9), field(10)), bytes[start..start + size].to_vec()));
            at = (start + size).next_multiple_of(4);
        }
    }

    #[test]
    fn an_archive_holds_what_was_added_with_its_directories() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.file("usr/bin/a", 0o644, b"").unwrap();
        archive.link("usr/bin/b", "a").unwrap();
        archive.device("dev/console", 0o600, 5, 1).unwrap();
        archive.directory("usr/bin").unwrap();
        archive.directory("proc").unwrap();
        let plain = |name: &str, mode| (name.to_owned(), mode, (0, 0), Vec::new());
        assert!(archive.has("usr/bin/a") && archive.has("proc") && !archive.has("usr/bin/c"));
        assert_eq!(
            read(&archive.finish()),
            [
                ("init".into(), 0o100_755, (0, 0), b"#!/bin/sh\n".to_vec()),
                plain("usr", 0o040_755),
                plain("usr/bin", 0o040_755),
                plain("usr/bin/a", 0o100_644),
                ("usr/bin/b".into(), 0o120_777, (0, 0), b"a".to_vec()),
                plain("dev", 0o040_755),
                ("dev/console".into(), 0o020_600, (5, 1), Vec::new()),
                plain("proc", 0o040_755),
            ]
        );
    }

    #[test]
    fn names_that_are_none_or_taken_are_refused() {
        let mut archive = Archive::default();
        for bad in
            ["", "/bin/sh", "bin//sh", "bin/", "../x", "a/./b", "a\0b", "TRAILER!!!", &"x".repeat(4096)]
        {
            assert!(archive.file(bad, 0o644, b"").is_err(), "{bad:?}");
        }
        archive.file("bin/sh", 0o755, b"").unwrap();
        let error = archive.link("bin/sh", "busybox").unwrap_err().to_string();
        assert_eq!(error, "there are two files 'bin/sh' in the initrd");
        assert!(archive.file("bin", 0o755, b"").is_err(), "it is a directory");
        assert!(archive.file("bin/sh/x", 0o755, b"").is_err(), "it is a file");
    }

    #[test]
    fn the_program_cpio_reads_it() {
        if !crate::process::is_program("cpio") {
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.file("bin/tool", 0o750, &[9; 4097]).unwrap();
        archive.link("bin/other", "tool").unwrap();
        let path = tree.path().join("archive");
        std::fs::write(&path, archive.finish()).unwrap();
        let input = std::fs::File::open(&path).unwrap();
        let mut cpio = Command::new("cpio");
        cpio.args(["-idm", "--quiet"]).current_dir(tree.path()).stdin(input).stderr(Stdio::null());
        assert!(cpio.status().unwrap().success());
        assert_eq!(std::fs::read(tree.path().join("bin/other")).unwrap(), [9; 4097]);
        let metadata = std::fs::metadata(tree.path().join("bin/tool")).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o750, 0));
    }
}
