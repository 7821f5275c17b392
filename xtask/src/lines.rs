//! Counts the lines of a crate's sources, what is only for tests apart.
//!
//! That is told from the form that rustfmt gives to it: an item after `#[cfg(test)]` at the start of a line ends with the
//! next `}` or `;` of the same depth. A module of tests in a file of its own counts as tests with all below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines of source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lines {
    /// All that is not for tests alone.
    pub total: usize,
    /// Of these, those that are neither blank nor comment.
    pub code: usize,
    /// Those for tests alone.
    pub tests: usize,
}

/// The lines of all Rust and assembly files in a directory.
///
/// # Errors
/// A file cannot be read.
pub fn count(directory: &Path) -> Result<Lines> {
    let mut files = Vec::new();
    collect(directory, &mut files)?;
    let mut counts = Vec::new();
    let mut test_modules = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let (lines, modules) = count_file(&text);
        let below = directory_of_modules(&path);
        test_modules.extend(modules.into_iter().map(|name| below.join(name)));
        counts.push((path, lines));
    }
    let is_test = |path: &Path| path.with_extension("").ancestors().any(|part| test_modules.contains(part));
    Ok(counts.iter().fold(Lines::default(), |sum, (path, lines)| match is_test(path) {
        true => Lines { tests: sum.tests + lines.total + lines.tests, ..sum },
        false => Lines {
            total: sum.total + lines.total,
            code: sum.code + lines.code,
            tests: sum.tests + lines.tests,
        },
    }))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} cannot be listed", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| ["rs", "s", "S"].iter().any(|known| e == *known)) {
            files.push(path);
        }
    }
    Ok(())
}

/// Where the modules that a file declares lie.
fn directory_of_modules(file: &Path) -> PathBuf {
    let is_root =
        ["lib", "main", "mod"].iter().any(|root| file.file_stem().is_some_and(|stem| stem == *root));
    if is_root { file.parent().unwrap_or(file).to_owned() } else { file.with_extension("") }
}

/// A file's lines, and the modules in files of their own that it declares for tests.
fn count_file(source: &str) -> (Lines, Vec<String>) {
    let mut lines = Lines::default();
    let mut modules = Vec::new();
    let mut in_comment = false;
    let mut in_test_item = false;
    for line in source.lines() {
        in_test_item |= line == "#[cfg(test)]";
        if in_test_item {
            lines.tests += 1;
            let declared =
                line.trim_start_matches("pub ").strip_prefix("mod ").and_then(|m| m.strip_suffix(';'));
            modules.extend(declared.map(str::to_owned));
            let at_depth_0 = !line.starts_with([' ', '#']);
            in_test_item = !(at_depth_0 && line.ends_with(['}', ';']));
            continue;
        }
        lines.total += 1;
        let line = line.trim();
        // A block comment that begins after code, or code after its end, is not our style.
        in_comment |= line.starts_with("/*");
        if !in_comment && !line.is_empty() && !line.starts_with("//") {
            lines.code += 1;
        }
        in_comment &= !line.ends_with("*/");
    }
    (lines, modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "//! What.\n\nuse x;\n/* a\n b\n*/\n/// Doc.\nfn f() {} // why\n    // more\n/* one */\nlet x;\n";

    #[test]
    fn lines_of_code_leave_out_blanks_and_comments() {
        assert_eq!(count_file(SOURCE).0, Lines { total: 11, code: 3, tests: 0 });
        assert_eq!(count_file("").0, Lines::default());
    }

    #[test]
    fn items_for_tests_are_counted_apart() {
        let source = "fn f() {}\n\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n    use y;\n}\n\
                      #[cfg(test)]\nuse z;\n#[cfg(test)]\nmod fake {}\n#[cfg(test)]\nmod far;\nfn g() {}\n";
        let (lines, modules) = count_file(source);
        assert_eq!(lines, Lines { total: 3, code: 2, tests: 11 });
        assert_eq!(modules, ["far"]);
    }

    #[test]
    fn modules_of_tests_are_tests_wherever_they_lie() {
        let tree = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("src/lib.rs", "pub mod a;\n#[cfg(test)]\nmod helper;\n");
        write("src/helper.rs", "fn h() {}\n\n");
        write("src/helper/more.rs", "fn i() {}\n");
        write("src/a.rs", "fn a() {}\n#[cfg(test)]\npub mod tests;\n");
        write("src/a/tests.rs", "fn t() {}\n#[cfg(test)]\nuse x;\n");
        write("src/a/b.rs", "fn b() {}\n");
        write("boot.S", "# start\nnop\n");
        write("Cargo.toml", "[package]\n");
        assert_eq!(count(tree.path()).unwrap(), Lines { total: 5, code: 5, tests: 10 });
    }
}
