//! What a dynamically linked program needs to run, and where it is among unpacked packages.
//!
//! Source: System V gABI, chapter 5, "Dynamic Section" and "Program Interpreter".

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// What a program or a library needs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Needs {
    /// The loader's path.
    pub interpreter: Option<String>,
    /// The names of libraries.
    pub libraries: Vec<String>,
}

/// What an ELF file says that it needs; nothing when it says nothing that can be read.
pub fn needs(file: &[u8]) -> Needs {
    read(file).unwrap_or_default()
}

fn read(file: &[u8]) -> object::Result<Needs> {
    let header = FileHeader64::<object::Endianness>::parse(file)?;
    let endian = header.endian()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, file)? {
        if let Some(path) = segment.interpreter(endian, file)? {
            needs.interpreter = Some(text(path));
        }
    }
    let sections = header.sections(endian, file)?;
    if let Some((entries, strings)) = sections.dynamic(endian, file)? {
        let strings = sections.strings(endian, file, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            needs.libraries.push(text(entry.string(endian, strings)?));
        }
    }
    Ok(needs)
}

/// The file in one of several trees whose path ends so (`bin/busybox`). Links are followed within a tree only.
///
/// # Errors
/// There is none, or a tree cannot be read.
pub fn find(trees: &[PathBuf], name: &str) -> Result<PathBuf> {
    for tree in trees {
        let tree = tree.canonicalize().with_context(|| format!("{} is missing", tree.display()))?;
        if let Some(path) = find_in(&tree, &tree, name)? {
            return Ok(path);
        }
    }
    let packages: Vec<_> = trees.iter().filter_map(|tree| tree.file_name()?.to_str()).collect();
    anyhow::bail!("there is no file {name} in {}", packages.join(", "))
}

fn find_in(tree: &Path, directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} cannot be listed", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if let Some(path) = find_in(tree, &entry.path(), name)? {
                return Ok(Some(path));
            }
        } else if entry.path().ends_with(name)
            && let Ok(path) = entry.path().canonicalize()
            && path.starts_with(tree)
            && path.is_file()
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn this_program_needs_its_loader_and_the_c_library() {
        let needs = needs(&fs::read(std::env::current_exe().unwrap()).unwrap());
        assert!(needs.interpreter.is_some_and(|path| path.starts_with("/lib")));
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{:?}", needs.libraries);
    }

    #[test]
    fn what_is_no_program_needs_nothing() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        for file in [&b""[..], b"#!/bin/sh\n", &own[..64], &own[..4096]] {
            assert_eq!(needs(file).libraries, [""; 0]);
        }
    }

    #[test]
    fn files_are_found_by_name_and_links_stay_in_their_tree() {
        let base = tempfile::tempdir().unwrap();
        let trees = ["a_1", "b_2"].map(|name| base.path().join(name));
        for tree in &trees {
            fs::create_dir_all(tree.join("usr/lib")).unwrap();
        }
        fs::write(base.path().join("outside"), "").unwrap();
        symlink("/etc/passwd", trees[0].join("usr/lib/x.so.1")).unwrap();
        symlink("../../../outside", trees[0].join("usr/lib/y.so.1")).unwrap();
        fs::write(trees[1].join("usr/lib/x.so.1.2"), "x").unwrap();
        symlink("x.so.1.2", trees[1].join("usr/lib/x.so.1")).unwrap();
        assert!(find(&trees, "x.so.1").unwrap().ends_with("b_2/usr/lib/x.so.1.2"));
        assert!(find(&trees, "lib/x.so.1").is_ok() && find(&trees, "bin/x.so.1").is_err());
        let error = find(&trees, "y.so.1").unwrap_err().to_string();
        assert_eq!(error, "there is no file y.so.1 in a_1, b_2");
    }
}
