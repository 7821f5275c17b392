//! `cargo xtask sizes`: the kernel's lines of code, and the bytes of every part of the image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, SectionFlags, SectionKind, elf};

use crate::lines::{self, Lines};
use crate::manifest::Overrides;
use crate::setup::{self, Tool};
use crate::{build, image, paths};

/// The most lines of code that the kernel may have: without blanks, comments and tests.
const KERNEL_LINES: usize = 9_000;

/// Shows the kernel's lines and each image part's bytes; fails when the kernel has too many lines of code.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The manifest of the image to measure
    #[arg(long, default_value = image::DEFAULT_MANIFEST, value_parser = paths::of_user)]
    manifest: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// The image cannot be built, or the kernel has more than [`KERNEL_LINES`] of code.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Tool::Grub])?;
    let built = build::build(&arguments.manifest, &Overrides::default())?;
    let iso = image::make(&built, None)?;
    let lines = lines::count(Path::new("kernel"))?;

    println!("{:<16} {:>9} {:>9} {:>9} {:>9} {:>9}", "part", "text", "rodata", "data", "bss", "in all");
    print_part("kernel", Parts::of_file(&built.kernel)?);
    for service in &built.manifest.services {
        print_part(&service.name, Parts::of_file(&built.elf_of(service))?);
    }
    for (name, path) in [("kernel file", &built.boot_kernel), ("boot module", &built.module), ("ISO", &iso)] {
        let bytes = fs::metadata(path).with_context(|| format!("{} is missing", path.display()))?.len();
        println!("{name:<16} {:>49}", format!("{bytes} bytes ({})", human(bytes)));
    }
    println!("kernel: {}", verdict(lines)?);
    Ok(())
}

/// The kernel's lines in words.
fn verdict(Lines { total, code, tests }: Lines) -> Result<String> {
    ensure!(code <= KERNEL_LINES, "the kernel has {code} lines of code; at most {KERNEL_LINES}");
    Ok(format!(
        "{code} lines of code, of {KERNEL_LINES}; {total} with blanks and comments; {tests} more are tests"
    ))
}

/// A number of bytes for people.
pub fn human(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

fn print_part(name: &str, parts: Parts) {
    let Parts { text, rodata, data, bss } = parts;
    println!("{name:<16} {text:>9} {rodata:>9} {data:>9} {bss:>9} {:>9}", text + rodata + data + bss);
}

/// Bytes in memory of an ELF file's parts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Parts {
    text: u64,
    rodata: u64,
    data: u64,
    bss: u64,
}

impl Parts {
    fn of_file(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let file =
            object::File::parse(&*bytes).with_context(|| format!("{} is not an ELF file", path.display()))?;
        let mut parts = Self::default();
        for section in file.sections() {
            if let SectionFlags::Elf { sh_flags, .. } = section.flags() {
                parts.add(sh_flags, section.kind(), section.size());
            }
        }
        Ok(parts)
    }

    fn add(&mut self, flags: u64, kind: SectionKind, bytes: u64) {
        let has = |flag: u32| flags & u64::from(flag) != 0;
        let part = if !has(elf::SHF_ALLOC) {
            return;
        } else if has(elf::SHF_EXECINSTR) {
            &mut self.text
        } else if !has(elf::SHF_WRITE) {
            &mut self.rodata
        } else if kind.is_bss() {
            &mut self.bss
        } else {
            &mut self.data
        };
        *part += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_belong_to_parts() {
        let mut parts = Parts::default();
        let (alloc, write, execute) =
            (u64::from(elf::SHF_ALLOC), u64::from(elf::SHF_WRITE), u64::from(elf::SHF_EXECINSTR));
        parts.add(alloc | execute, SectionKind::Text, 1);
        parts.add(alloc, SectionKind::ReadOnlyData, 20);
        parts.add(alloc | write, SectionKind::Data, 300);
        parts.add(alloc | write, SectionKind::UninitializedData, 4_000);
        parts.add(0, SectionKind::Debug, 50_000);
        assert_eq!(parts, Parts { text: 1, rodata: 20, data: 300, bss: 4_000 });
    }

    #[test]
    fn this_program_has_parts() {
        let parts = Parts::of_file(&std::env::current_exe().unwrap()).unwrap();
        assert!(parts.text > 10_000 && parts.rodata > 1_000 && parts.data > 0 && parts.bss > 0, "{parts:?}");
        assert!(Parts::of_file(Path::new("Cargo.toml")).is_err());
    }

    #[test]
    fn lines_of_code_are_limited() {
        let shown = verdict(Lines { total: 12_000, code: 9_000, tests: 7 }).unwrap();
        assert_eq!(shown, "9000 lines of code, of 9000; 12000 with blanks and comments; 7 more are tests");
        let error = verdict(Lines { total: 9_001, code: 9_001, tests: 0 }).unwrap_err().to_string();
        assert_eq!(error, "the kernel has 9001 lines of code; at most 9000");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(20 << 20), "20.0 MiB");
        assert_eq!(human(u64::MAX), "17179869183.9 GiB");
    }
}
