//! The command line of `cargo xtask run`.

use std::path::PathBuf;

use ipc::guest::MAX_COMMAND_LINE;
use ipc::vcpu::MAX_VCPUS;

use crate::cluster::JUMBO_MTU;
use crate::manifest::{InitrdSource, KernelSource, MAX_RAM_BYTES, MIN_RAM_BYTES, Overrides};
use crate::switch::Impairment;
use crate::{image, paths};

/// Builds Unum and runs it on nodes in QEMU, and the guest on it, until they end.
///
/// The terminal is the guest's console: Ctrl-] or Ctrl-A x ends the run. What is piped in is typed there once the
/// guest's shell reads it; with another initrd, once the console has been quiet for 10 s. All nodes' logs go, merged,
/// to .unum/run/log.txt.
///
/// Exit code:
///   0    the guest powered off; without a guest: every node powered off or reported success, or --timeout passed
///        after all services came up
///   1    the run could not be made
///   2    the command line is wrong
///   3    a node reported failure, or ended and nobody said how its guest did
///   4    a node crashed: a triple fault, or its QEMU died
///   5    --timeout passed before the guest ended, or before all services came up
///   6    the guest reset itself
///   7    the guest's kernel panicked
///   8    the guest crashed: the last that it did is in the log
///   130  Ctrl-C, or the keys that end the run
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Nodes to run, all of which the guest spans; as many as the manifest says when not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub nodes: Option<u8>,
    /// Processors of each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory of each node, as 512M or 2G; as much as the guest needs when not given
    #[arg(long, value_parser = parse_memory)]
    pub memory: Option<Mebibytes>,
    /// The manifest: which services the nodes run, and what each may do
    #[arg(long, default_value = image::DEFAULT_MANIFEST, value_parser = paths::of_user)]
    pub manifest: PathBuf,
    /// Run this ISO or boot module as it is, instead of what the manifest says
    #[arg(long, value_parser = paths::of_user, conflicts_with_all = ["kernel", "initrd", "command_line", "guest_cpus", "guest_memory", "guest_keep", "walk_cache"])]
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub guest: GuestArguments,
    /// Let each node wait for a debugger before its first instruction
    #[arg(long)]
    pub gdb: bool,
    /// Show the merged log on the terminal, too
    #[arg(long)]
    pub verbose: bool,
    /// What the network does to frames, as "loss=1%,dup=0.1%,reorder=1%,corrupt=10ppm,delay=2ms,jitter=1ms"
    #[arg(long, default_value = "")]
    pub network: Impairment,
    /// The longest Ethernet payload of the nodes' links in bytes; a page needs 4150 to go in one frame
    #[arg(long, default_value_t = JUMBO_MTU, value_parser = clap::value_parser!(u16).range(1500..=9000))]
    pub mtu: u16,
    /// Record the network's frames in .unum/run/network.pcap
    #[arg(long)]
    pub record: bool,
    /// Stop after so many seconds
    #[arg(long)]
    pub timeout: Option<u64>,
}

/// What the guest is to be, when not as the manifest says.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "The guest, where it is not to be as the manifest says")]
pub struct GuestArguments {
    /// Its kernel, a bzImage; or "debian" for Debian's current cloud kernel; or "early:NAME" for one that tries the monitor
    #[arg(long = "guest-kernel", value_name = "FILE", value_parser = paths::of_user)]
    pub kernel: Option<PathBuf>,
    /// Its initrd; or "shell" for busybox with a shell, "kit" for that with the test kit, "none" for none
    #[arg(long = "guest-initrd", value_name = "FILE", value_parser = paths::of_user)]
    pub initrd: Option<PathBuf>,
    /// Its kernel's command line
    #[arg(long = "guest-cmdline", value_name = "TEXT", value_parser = parse_command_line)]
    pub command_line: Option<String>,
    /// Its virtual processors on each node
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MAX_VCPUS as i64))]
    pub guest_cpus: Option<u8>,
    /// Its memory on each node, as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_guest_memory)]
    pub guest_memory: Option<Mebibytes>,
    /// The memory that each node keeps for itself beyond what its services have, as 16M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub guest_keep: Option<Mebibytes>,
    /// Switch its walk cache on
    #[arg(long)]
    pub walk_cache: bool,
}

impl GuestArguments {
    /// In the words of the manifest.
    pub fn overrides(&self) -> Overrides {
        let text = |path: &PathBuf| path.to_str().map(str::to_owned);
        // A path that is no text is no name of a source either.
        let kernel =
            |path: &PathBuf| text(path).map_or(KernelSource::File(path.clone()), |t| KernelSource::named(&t));
        let initrd =
            |path: &PathBuf| text(path).map_or(InitrdSource::File(path.clone()), |t| InitrdSource::named(&t));
        Overrides {
            kernel: self.kernel.as_ref().map(kernel),
            initrd: self.initrd.as_ref().map(initrd),
            command_line: self.command_line.clone(),
            nodes: None,
            cpus: self.guest_cpus,
            ram_bytes: self.guest_memory.map(|memory| u64::from(memory.0) << 20),
            keep_bytes: self.guest_keep.map(|memory| u64::from(memory.0) << 20),
            walk_cache: self.walk_cache.then_some(true),
            at_end: None,
        }
    }
}

/// Memory in MiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mebibytes(pub u32);

fn parse_memory(text: &str) -> Result<Mebibytes, String> {
    match parse_size(text) {
        Ok(Mebibytes(..64)) => Err("a node needs at least 64M".into()),
        size => size,
    }
}

fn parse_size(text: &str) -> Result<Mebibytes, String> {
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let value = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(factor));
    match value {
        Some(mebibytes) => Ok(Mebibytes(mebibytes)),
        None => Err("give a whole number with M or G, as 512M".into()),
    }
}

fn parse_guest_memory(text: &str) -> Result<Mebibytes, String> {
    let (least, most) = (MIN_RAM_BYTES >> 20, MAX_RAM_BYTES >> 20);
    parse_memory(text).map_err(|error| error.replace("a node", "a guest")).and_then(|memory| match u64::from(
        memory.0,
    ) {
        mebibytes if (least..=most).contains(&mebibytes) => Ok(memory),
        _ => Err(format!("a guest has from {least}M to {most}M")),
    })
}

fn parse_command_line(text: &str) -> Result<String, String> {
    match text.len() {
        ..=MAX_COMMAND_LINE => Ok(text.to_owned()),
        bytes => Err(format!("it is {bytes} bytes long, and Linux takes {MAX_COMMAND_LINE}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn memory_has_units() {
        assert_eq!(parse_memory("512M"), Ok(Mebibytes(512)));
        assert_eq!(parse_memory("2G"), Ok(Mebibytes(2048)));
        assert_eq!(parse_memory("300"), Ok(Mebibytes(300)));
        for bad in ["", "M", "-1M", "1.5G", "63M", "4194304G", "1T", "99999999999"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_guest_memory("255G"), Ok(Mebibytes(255 << 10)));
        assert_eq!(parse_guest_memory("256G"), Err("a guest has from 64M to 261120M".into()));
        assert_eq!(parse_guest_memory("63M"), Err("a guest needs at least 64M".into()));
    }

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Command::try_parse_from([&["run"], words].concat()).map(|command| command.arguments)
    }

    #[test]
    fn the_guests_options_take_the_place_of_the_manifests() {
        assert_eq!(parse(&[]).unwrap().guest.overrides(), Overrides::default());
        let all = parse(&[
            "--guest-kernel",
            "no/vmlinuz",
            "--guest-initrd",
            "none",
            "--guest-cmdline",
            "console=ttyS0 quiet",
            "--guest-cpus",
            "4",
            "--guest-memory",
            "1G",
            "--guest-keep",
            "8M",
            "--walk-cache",
        ]);
        let wanted = Overrides {
            kernel: Some(KernelSource::File("no/vmlinuz".into())),
            initrd: Some(InitrdSource::None),
            command_line: Some("console=ttyS0 quiet".into()),
            nodes: None,
            cpus: Some(4),
            ram_bytes: Some(1 << 30),
            keep_bytes: Some(8 << 20),
            walk_cache: Some(true),
            at_end: None,
        };
        assert_eq!(all.unwrap().guest.overrides(), wanted);
        let named =
            parse(&["--guest-kernel", "debian", "--guest-initrd", "shell"]).unwrap().guest.overrides();
        assert_eq!((named.kernel, named.initrd), (Some(KernelSource::Debian), Some(InitrdSource::Shell)));
    }

    #[test]
    fn options_out_of_their_range_or_against_each_other_are_refused() {
        let told = |words: &[&str]| parse(words).unwrap_err().to_string();
        let long = "x".repeat(2048);
        assert!(told(&["--guest-cmdline", &long]).contains("it is 2048 bytes long, and Linux takes 2047"));
        assert!(told(&["--guest-cpus", "0"]).contains("0 is not in 1..=64"));
        assert!(told(&["--guest-cpus", "65"]).contains("65 is not in 1..=64"));
        assert!(told(&["--guest-memory", "32M"]).contains("a guest needs at least 64M"));
        for other in [["--guest-cpus", "2"], ["--guest-kernel", "x"], ["--guest-cmdline", "x"]] {
            assert!(
                told(&[&["--image", "x.iso"], &other[..]].concat()).contains("cannot be used with"),
                "{other:?}"
            );
        }
        assert!(told(&["--image", "x.iso", "--walk-cache"]).contains("cannot be used with"));
    }
}
