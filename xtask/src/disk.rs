//! A disk as Linux describes it: what it is, what is on it, and what uses it.
//!
//! All is read below three roots, `/dev`, `/sys` and `/proc`, so that tests can stand a directory in for the
//! machine. Names of disks, partitions and models come from hardware that anybody may plug in: they are claims.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Bytes of the unit in which Linux gives a disk's size, whatever its own sectors are.
const SECTOR: u64 = 512;

/// Where the machine is described.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// The number of the block device that a file is, if it is one.
    pub device_number: fn(&Metadata) -> Option<Number>,
}

/// A device's major and minor number.
pub type Number = (u64, u64);

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Self {
            dev: "/dev".into(),
            sys: "/sys".into(),
            proc: "/proc".into(),
            device_number: |metadata| {
                let number = metadata.rdev();
                metadata
                    .file_type()
                    .is_block_device()
                    .then(|| (nix::sys::stat::major(number), nix::sys::stat::minor(number)))
            },
        }
    }
}

/// A whole disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disk {
    /// Its name in `/dev`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its number.
    pub number: Number,
    /// Maker and model, as it says.
    pub model: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it says that it can be removed.
    pub removable: bool,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// What uses it, or a partition of it.
    pub uses: Vec<String>,
}

/// A partition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Partition {
    /// Its name in `/dev`.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Disk {
    /// The disk that a path in `/dev` names, directly or by symbolic links.
    ///
    /// # Errors
    /// It is not there, or not a whole disk.
    pub fn find(machine: &Machine, device: &Path) -> Result<Self> {
        let shown = printable(&device.to_string_lossy());
        let path = fs::canonicalize(device).with_context(|| format!("{shown} is not there"))?;
        let dev = fs::canonicalize(&machine.dev).context("/dev is not there")?;
        let metadata = fs::metadata(&path).with_context(|| format!("{shown} cannot be examined"))?;
        let Some(number) = (machine.device_number)(&metadata) else {
            bail!("{shown} is not a block device; give a disk, as /dev/sdb");
        };
        let name = path.strip_prefix(&dev).ok().and_then(Path::to_str);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            bail!("{shown} does not lie in /dev");
        };
        // Linux writes a slash within a device's name as an exclamation mark.
        let in_sys = name.replace('/', "!");
        let directory = machine.sys.join("block").join(&in_sys);
        if !directory.is_dir() {
            let partition = machine.sys.join("class/block").join(&in_sys).join("partition");
            if partition.exists() {
                bail!("{shown} is a partition; give the whole disk");
            }
            bail!("{shown} is not a disk");
        }
        if read_number(&directory.join("dev"))? != number {
            bail!("{shown} is not the disk that its name says");
        }
        Self::read(machine, name, &path, &directory)
    }

    /// All disks that say that they can be removed and that hold a medium.
    ///
    /// # Errors
    /// The machine's disks cannot be listed.
    pub fn removable(machine: &Machine) -> Result<Vec<Self>> {
        let mut disks = Vec::new();
        for name in directories(&machine.sys.join("block"))? {
            let path = machine.dev.join(name.replace('!', "/"));
            // A disk that went away meanwhile, or that has no file in /dev, cannot be written to either.
            disks.extend(Self::find(machine, &path).ok().filter(|disk| disk.removable && disk.bytes > 0));
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    fn read(machine: &Machine, name: &str, path: &Path, directory: &Path) -> Result<Self> {
        let flag = |file: &str| Ok::<_, anyhow::Error>(read_text(&directory.join(file))? == "1");
        let model: Vec<String> = ["device/vendor", "device/model"]
            .iter()
            .filter_map(|file| read_text(&directory.join(file)).ok())
            .map(|text| printable(&text))
            .filter(|text| !text.is_empty())
            .collect();
        let mut partitions = Vec::new();
        let mut parts = vec![Part::read(name, directory)?];
        for entry in directories(directory)? {
            let below = directory.join(&entry);
            if below.join("partition").exists() {
                let name = entry.replace('!', "/");
                partitions.push(Partition { name: name.clone(), bytes: read_size(&below)? });
                parts.push(Part::read(&name, &below)?);
            }
        }
        partitions.sort_by(|a, b| a.name.len().cmp(&b.name.len()).then_with(|| a.name.cmp(&b.name)));
        let number = read_number(&directory.join("dev"))?;
        let mut uses = Vec::new();
        for part in &parts {
            uses.extend(part.holders.iter().map(|holder| format!("{} is part of {holder}", part.name)));
        }
        uses.extend(mounts(machine, &parts)?);
        uses.extend(swaps(machine, &parts)?);
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            number,
            model: model.join(" "),
            bytes: read_size(directory)?,
            removable: flag("removable")?,
            read_only: flag("ro")?,
            partitions,
            uses,
        })
    }
}

/// The disk or a partition of it, as others name it.
struct Part {
    name: String,
    number: Number,
    holders: Vec<String>,
}

impl Part {
    fn read(name: &str, directory: &Path) -> Result<Self> {
        let holders = match fs::read_dir(directory.join("holders")) {
            Ok(_) => directories(&directory.join("holders"))?.iter().map(|name| printable(name)).collect(),
            Err(_) => Vec::new(),
        };
        Ok(Self { name: name.to_owned(), number: read_number(&directory.join("dev"))?, holders })
    }

    fn is_named_by(&self, machine: &Machine, source: &str) -> bool {
        Path::new(source) == machine.dev.join(&self.name)
            || fs::canonicalize(source).is_ok_and(|path| path == machine.dev.join(&self.name))
    }
}

/// Mounts of `parts`, from mountinfo (proc_pid_mountinfo(5)): `36 35 8:17 / /mnt/x rw - ext4 /dev/sdb1 rw`.
fn mounts(machine: &Machine, parts: &[Part]) -> Result<Vec<String>> {
    let path = machine.proc.join("self/mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ').skip(2);
        let (Some(number), Some(point)) = (fields.next(), fields.nth(1)) else { continue };
        let number = parse_number(number);
        // Some file systems (btrfs) have numbers of their own: then their source tells.
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1)).map(unescape);
        for part in parts {
            let named = source.as_ref().is_some_and(|source| part.is_named_by(machine, source));
            if number == Some(part.number) || named {
                found.push(format!("{} is mounted at {}", part.name, printable(&unescape(point))));
            }
        }
    }
    Ok(found)
}

/// Swap areas on `parts`.
fn swaps(machine: &Machine, parts: &[Part]) -> Result<Vec<String>> {
    let path = machine.proc.join("swaps");
    // A Linux without swap has no such file.
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
    let sources = text.lines().skip(1).filter_map(|line| line.split([' ', '\t']).next()).map(unescape);
    let named =
        sources.flat_map(|source| parts.iter().filter(move |part| part.is_named_by(machine, &source)));
    Ok(named.map(|part| format!("{} is swap space", part.name)).collect())
}

/// Undoes the octal escapes of /proc's tables: `\040` is a space.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let value = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, value) {
            (b'\\', Some(value)) => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text from outside without what would steer a terminal.
pub fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn read_number(path: &Path) -> Result<Number> {
    parse_number(&read_text(path)?).with_context(|| format!("{} holds no device number", path.display()))
}

fn read_size(directory: &Path) -> Result<u64> {
    let path = directory.join("size");
    let sectors: u64 =
        read_text(&path)?.parse().with_context(|| format!("{} holds no size", path.display()))?;
    sectors.checked_mul(SECTOR).with_context(|| format!("{} holds no possible size", path.display()))
}

fn directories(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("{} cannot be listed", path.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine made of files: the disk `sdb` with a partition, standing for a USB stick.
    pub struct Fake {
        _directory: tempfile::TempDir,
        pub machine: Machine,
    }

    impl Fake {
        pub fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(directory.path()).unwrap();
            let machine = Machine {
                dev: root.join("dev"),
                sys: root.join("sys"),
                proc: root.join("proc"),
                // The length of a file stands for its number.
                device_number: |m| (m.is_file() && m.len() > 0).then_some((8, m.len() / SECTOR)),
            };
            let fake = Self { _directory: directory, machine };
            fake.disk("sdb", 16, true);
            fake.write("sys/block/sdb/sdb1/partition", "1\n");
            fake.write("sys/block/sdb/sdb1/dev", "8:17\n");
            fake.write("sys/block/sdb/sdb1/size", "8\n");
            fake.write("sys/class/block/sdb1/partition", "1\n");
            fs::write(fake.machine.dev.join("sdb1"), [0; 17 * 512]).unwrap();
            fake.write("proc/self/mountinfo", "22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n");
            fake.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
            fake
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.machine.sys.parent().unwrap().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A disk of `minor` sectors.
        pub fn disk(&self, name: &str, minor: usize, removable: bool) {
            let sys = format!("sys/block/{}", name.replace('/', "!"));
            self.write(&format!("{sys}/dev"), &format!("8:{minor}\n"));
            self.write(&format!("{sys}/size"), &format!("{minor}\n"));
            self.write(&format!("{sys}/ro"), "0\n");
            self.write(&format!("{sys}/removable"), if removable { "1\n" } else { "0\n" });
            self.write(&format!("{sys}/device/model"), "Stick\x1b[2J \n");
            self.write(&format!("dev/{name}"), &"\0".repeat(minor * 512));
        }

        pub fn find(&self, name: &str) -> Result<Disk> {
            Disk::find(&self.machine, &self.machine.dev.join(name))
        }
    }

    fn refusal(result: Result<Disk>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_disk_is_described() {
        let fake = Fake::new();
        let disk = fake.find("sdb").unwrap();
        assert_eq!((disk.bytes, disk.removable, disk.read_only, disk.number), (8192, true, false, (8, 16)));
        assert_eq!(disk.model, "Stick?[2J");
        assert_eq!(disk.partitions, [Partition { name: "sdb1".into(), bytes: 4096 }]);
        assert!(disk.uses.is_empty(), "{:?}", disk.uses);
        std::os::unix::fs::symlink("sdb", fake.machine.dev.join("stick")).unwrap();
        assert_eq!(fake.find("stick").unwrap(), disk);
        fake.disk("cciss/c0d0", 40, false);
        assert_eq!(fake.find("cciss/c0d0").unwrap().name, "cciss/c0d0");
    }

    #[test]
    fn removable_disks_with_a_medium_are_listed() {
        let fake = Fake::new();
        fake.disk("sda", 32, false);
        fake.disk("sdc", 24, true);
        fake.disk("sdd", 48, true);
        fake.write("sys/block/sdd/size", "0\n");
        let names: Vec<_> = Disk::removable(&fake.machine).unwrap().into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["sdb", "sdc"]);
    }

    #[test]
    fn what_uses_a_disk_is_found() {
        let fake = Fake::new();
        let uses = || fake.find("sdb").unwrap().uses;
        fake.write("proc/self/mountinfo", "22 1 8:17 / /mnt/my\\040stick rw,x - vfat none rw\n");
        assert_eq!(uses(), ["sdb1 is mounted at /mnt/my stick"]);
        let source = fake.machine.dev.join("sdb1").display().to_string();
        fake.write("proc/self/mountinfo", &format!("22 1 0:31 / /a\\x rw shared:1 - btrfs {source} rw\n"));
        assert_eq!(uses(), ["sdb1 is mounted at /a\\x"]);
        fake.write("proc/self/mountinfo", "short\n\n22 1 8:16 / / rw - ext4 /dev/root rw\n");
        assert_eq!(uses(), ["sdb is mounted at /"]);
        fake.write("proc/self/mountinfo", "");
        fake.write("proc/swaps", &format!("Filename Type\n{source}\tpartition\t1\t0\t-2\n"));
        assert_eq!(uses(), ["sdb1 is swap space"]);
        fake.write("proc/swaps", "");
        fake.write("sys/block/sdb/sdb1/holders/dm-0/x", "");
        assert_eq!(uses(), ["sdb1 is part of dm-0"]);
    }

    #[test]
    fn what_is_no_whole_disk_is_refused() {
        let fake = Fake::new();
        assert!(refusal(fake.find("sdb1")).contains("is a partition"));
        assert!(refusal(fake.find("none")).contains("is not there"));
        assert!(refusal(fake.find("\u{1b}[31m\n")).contains("?[31m is not there"));
        assert!(refusal(fake.find("")).contains("not a block device"));
        assert!(refusal(fake.find("../proc/swaps")).contains("does not lie in /dev"));
        fs::write(fake.machine.dev.join("loose"), [0; 512]).unwrap();
        assert!(refusal(fake.find("loose")).contains("is not a disk"));
        // A file with a disk's name but another number.
        fs::write(fake.machine.dev.join("sdb"), [0; 512]).unwrap();
        assert!(refusal(fake.find("sdb")).contains("not the disk that its name says"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refusal(Disk::find(&Machine::this(), file.path())).contains("not a block device"));
        assert!(refusal(Disk::find(&Machine::this(), Path::new("/dev/null"))).contains("not a block device"));
    }

    #[test]
    fn damaged_descriptions_are_errors() {
        for (file, text) in [
            ("size", "many"),
            ("size", "99999999999999999999"),
            ("dev", "8"),
            ("size", "18446744073709551615"),
        ] {
            let fake = Fake::new();
            fake.write(&format!("sys/block/sdb/{file}"), text);
            assert!(fake.find("sdb").is_err(), "{file} {text}");
        }
        assert_eq!(unescape("\\04"), "\\04");
        assert_eq!(unescape("\\999\\134x\\"), "\\999\\x\\");
    }
}
