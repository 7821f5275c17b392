//! `cargo xtask flash`: writes the ISO to a disk, after showing what that erases.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use crate::disk::{Disk, Machine};
use crate::process::check_interrupted;
use crate::{image, paths, sizes};

/// Bytes that are written or compared at a time.
const CHUNK: usize = 4 << 20;

/// Writes the image to a disk and verifies it. Everything on that disk is lost.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The disk, as /dev/sdb. Without it, the only removable disk is taken; a disk that is not removable must be named
    #[arg(value_parser = paths::of_user)]
    device: Option<PathBuf>,
    /// The manifest of the image to write
    #[arg(long, default_value = image::DEFAULT_MANIFEST, value_parser = paths::of_user)]
    manifest: PathBuf,
    /// The number of the node that boots it, as of `cargo xtask image`
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    node: Option<u8>,
}

/// Runs the command.
///
/// # Errors
/// The disk is refused, the user does not agree, or it cannot be written and read back.
pub fn run(arguments: &Arguments) -> Result<()> {
    let machine = Machine::this();
    let disk = choose(&machine, arguments.device.as_deref())?;
    let iso = image::build(&arguments.manifest, arguments.node)?;
    let input = io::stdin().lock();
    flash(&machine, &disk, &iso, input, &mut io::stdout().lock())
}

/// The disk that was named, or the only removable one.
fn choose(machine: &Machine, device: Option<&Path>) -> Result<Disk> {
    let disk = match device {
        Some(device) => Disk::find(machine, device)?,
        None => {
            let mut disks = Disk::removable(machine)?;
            let list: Vec<_> = disks.iter().map(describe).collect();
            match (disks.pop(), disks.is_empty()) {
                (Some(disk), true) => disk,
                (Some(_), false) => bail!("name one of the removable disks:\n  {}", list.join("\n  ")),
                (None, _) => bail!("there is no removable disk; name the disk to write to"),
            }
        }
    };
    refuse(&disk)?;
    Ok(disk)
}

/// Refuses a disk that must not or cannot be written to.
fn refuse(disk: &Disk) -> Result<()> {
    let name = &disk.name;
    if !disk.uses.is_empty() {
        bail!("{name} is in use, and is not touched:\n  {}", disk.uses.join("\n  "));
    }
    ensure!(disk.bytes > 0, "{name} holds no medium");
    ensure!(!disk.read_only, "{name} is write-protected");
    Ok(())
}

fn describe(disk: &Disk) -> String {
    let kind = if disk.removable { "removable" } else { "NOT removable" };
    let model = if disk.model.is_empty() { "unknown model" } else { &disk.model };
    format!("{}: {model}, {}, {kind}", disk.path.display(), sizes::human(disk.bytes))
}

fn flash(
    machine: &Machine,
    disk: &Disk,
    iso: &Path,
    mut input: impl BufRead,
    output: &mut impl Write,
) -> Result<()> {
    let mut source = File::open(iso).with_context(|| format!("{} cannot be read", iso.display()))?;
    let length = source.metadata()?.len();
    ensure!(length <= disk.bytes, "{} is too small for {}", disk.name, sizes::human(length));

    writeln!(output, "This erases all that is on this disk:\n  {}", describe(disk))?;
    for partition in &disk.partitions {
        writeln!(output, "    partition {}: {}", partition.name, sizes::human(partition.bytes))?;
    }
    if disk.partitions.is_empty() {
        writeln!(output, "    without partitions")?;
    }
    write!(output, "Type {} to go on: ", disk.name)?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    ensure!(answer.trim_end_matches(['\n', '\r']) == disk.name, "nothing was written");

    // Meanwhile the disk may have been mounted, or be another one.
    let now = Disk::find(machine, &disk.path)?;
    ensure!(now == *disk, "{} has changed; nothing was written", disk.name);
    let mut target = open(machine, disk)?;
    write_all(&mut source, &mut target, length, output)?;
    target.sync_all().with_context(|| format!("{} does not take what was written", disk.name))?;
    // What is compared must come from the disk, not from memory.
    posix_fadvise(&target, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .with_context(|| format!("{} cannot be read past Linux's cache", disk.name))?;
    verify(&mut source, &mut target, length)
        .with_context(|| format!("{} is not good: use another disk", disk.name))?;
    writeln!(output, "Written and verified: {} on {}.", sizes::human(length), disk.path.display())?;
    Ok(())
}

/// Opens a disk for us alone: Linux refuses `O_EXCL` while it is mounted or part of another device.
fn open(machine: &Machine, disk: &Disk) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_EXCL | OFlag::O_NOFOLLOW).bits())
        .open(&disk.path)
        .with_context(|| {
            format!("{} cannot be opened; is it in use, or must you be root?", disk.path.display())
        })?;
    let number = (machine.device_number)(&file.metadata()?);
    ensure!(number == Some(disk.number), "{} has changed; nothing was written", disk.name);
    Ok(file)
}

fn write_all(source: &mut File, target: &mut File, length: u64, output: &mut impl Write) -> Result<()> {
    let mut done = 0;
    let mut told = 0;
    for_each_chunk(source, |bytes| {
        target.write_all(bytes).with_context(|| format!("writing failed at byte {done}"))?;
        // So that progress is the disk's, not the cache's.
        target.sync_data().with_context(|| format!("writing failed before byte {done}"))?;
        done += bytes.len() as u64;
        let percent = done * 100 / length.max(1);
        if percent >= told + 20 {
            told = percent;
            writeln!(output, "written: {percent} %")?;
        }
        Ok(())
    })
}

/// Compares what was written.
fn verify(source: &mut (impl Read + Seek), target: &mut (impl Read + Seek), length: u64) -> Result<()> {
    target.seek(SeekFrom::Start(0))?;
    let mut done = 0;
    let mut there = Vec::new();
    for_each_chunk(source, |bytes| {
        there.resize(bytes.len(), 0);
        target.read_exact(&mut there).with_context(|| format!("reading back failed at byte {done}"))?;
        if let Some(at) = bytes.iter().zip(&there).position(|(a, b)| a != b) {
            bail!("byte {} differs from what was written", done + at as u64);
        }
        done += bytes.len() as u64;
        Ok(())
    })?;
    ensure!(done == length, "the image changed while it was written");
    Ok(())
}

fn for_each_chunk(source: &mut (impl Read + Seek), mut act: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    source.seek(SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        check_interrupted()?;
        buffer.clear();
        source.by_ref().take(CHUNK as u64).read_to_end(&mut buffer).context("the image cannot be read")?;
        if buffer.is_empty() {
            return Ok(());
        }
        act(&buffer)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::disk::tests::Fake;

    fn try_flash(fake: &Fake, iso: &[u8], answer: &str) -> (Result<()>, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), iso).unwrap();
        let mut output = Vec::new();
        let result = choose(&fake.machine, Some(&fake.machine.dev.join("sdb")))
            .and_then(|disk| flash(&fake.machine, &disk, file.path(), answer.as_bytes(), &mut output));
        (result, String::from_utf8(output).unwrap())
    }

    fn contents(fake: &Fake) -> Vec<u8> {
        std::fs::read(fake.machine.dev.join("sdb")).unwrap()
    }

    #[test]
    fn an_image_is_written_after_its_disk_is_named() {
        let fake = Fake::new();
        let iso: Vec<u8> = (0..=255).cycle().take(8000).collect();
        let (result, text) = try_flash(&fake, &iso, "sdb\n");
        result.unwrap();
        assert_eq!(contents(&fake)[..8000], iso);
        assert_eq!(contents(&fake).len(), 8192);
        assert!(
            text.contains("partition sdb1: 4.0 KiB") && text.contains("Stick?[2J, 8.0 KiB, removable"),
            "{text}"
        );
        assert!(text.contains("Written and verified"), "{text}");
    }

    #[test]
    fn any_other_answer_writes_nothing() {
        for answer in ["", "\n", "y\n", "yes\n", "sdb1\n", "SDB\n", " sdb\n", "sdb \n"] {
            let fake = Fake::new();
            let (result, _) = try_flash(&fake, &[7; 512], answer);
            assert!(result.unwrap_err().to_string().contains("nothing was written"), "{answer:?}");
            assert!(contents(&fake).iter().all(|&b| b == 0), "{answer:?}");
        }
    }

    #[test]
    fn disks_that_must_not_be_written_are_refused() {
        let refused = |prepare: &dyn Fn(&Fake), iso: &[u8], text: &str| {
            let fake = Fake::new();
            prepare(&fake);
            let error = try_flash(&fake, iso, "sdb\n").0.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert!(contents(&fake).iter().all(|&b| b == 0));
        };
        let mounted = "22 1 8:17 / / rw - ext4 /dev/root rw\n";
        refused(&|f| f.write("proc/self/mountinfo", mounted), &[7], "sdb1 is mounted at /");
        refused(&|f| f.write("sys/block/sdb/holders/md0/x", ""), &[7], "sdb is part of md0");
        refused(&|f| f.write("sys/block/sdb/ro", "1"), &[7], "write-protected");
        refused(&|f| f.write("sys/block/sdb/size", "0"), &[7], "no medium");
        refused(&|_| {}, &[7; 8193], "too small");
    }

    #[test]
    fn a_disk_that_changes_before_the_answer_is_refused() {
        let fake = Fake::new();
        let iso = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(iso.path(), [7; 512]).unwrap();
        let disk = choose(&fake.machine, Some(&fake.machine.dev.join("sdb"))).unwrap();
        fake.write("proc/self/mountinfo", "22 1 8:17 / /media rw - ext4 /dev/sdb1 rw\n");
        let error = flash(&fake.machine, &disk, iso.path(), &b"sdb\n"[..], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("has changed"), "{error}");
        assert!(contents(&fake).iter().all(|&b| b == 0));
    }

    #[test]
    fn a_fixed_disk_must_be_named_and_one_of_several_chosen() {
        let fake = Fake::new();
        assert_eq!(choose(&fake.machine, None).unwrap().name, "sdb");
        fake.disk("sdc", 24, true);
        let error = choose(&fake.machine, None).unwrap_err().to_string();
        assert!(error.contains("sdb: ") && error.contains("sdc: "), "{error}");
        fake.write("sys/block/sdb/removable", "0");
        fake.write("sys/block/sdc/removable", "0");
        assert!(choose(&fake.machine, None).unwrap_err().to_string().contains("no removable disk"));
        let fixed = choose(&fake.machine, Some(&fake.machine.dev.join("sdb"))).unwrap();
        assert!(describe(&fixed).contains("NOT removable"));
    }

    #[test]
    fn a_disk_that_forgets_is_found_out() {
        let image = vec![7; 10_000];
        let mut bad = image.clone();
        bad[9_999] = 6;
        let compare = |disk: &[u8]| verify(&mut Cursor::new(&image), &mut Cursor::new(disk), 10_000);
        compare(&image).unwrap();
        assert!(compare(&bad).unwrap_err().to_string().contains("byte 9999 differs"));
        assert!(format!("{:#}", compare(&image[..5_000]).unwrap_err()).contains("reading back failed"));
        assert!(verify(&mut Cursor::new(&image), &mut Cursor::new(&image), 10_001).is_err());
    }
}
