//! The guest's parts: its kernel, its initrd and its configuration, as blobs of the boot module.

#[cfg(test)]
mod boot_tests;
mod cpio;
mod debian;
pub mod initrd;
mod kit;
mod library;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use guest_kit::early;
use ipc::guest::{CONFIG_BLOB, GuestConfig, INITRD_BLOB, KERNEL_BLOB};

use crate::bundle::Blob;
use crate::manifest::{Guest, InitrdSource, KernelSource};

/// Bytes that a configuration takes at most: the command line and a few numbers.
const MAX_CONFIG_BYTES: usize = 4096;

/// Fetches and makes the guest's parts, and refuses what could not be booted.
///
/// # Errors
/// A part is not there or cannot be fetched, or the guest could not boot with it: the reason.
pub fn blobs(guest: &Guest) -> Result<Vec<Blob>> {
    let kernel = match &guest.kernel {
        KernelSource::Debian => read("kernel", &debian::kernel()?)?,
        KernelSource::Early(scenario) => early::bzimage(*scenario),
        KernelSource::File(path) => read("kernel", path)?,
    };
    let initrd = match &guest.initrd {
        InitrdSource::Shell => Some(initrd::shell()?),
        InitrdSource::Kit => Some(kit::initrd(&guest.kernel)?),
        InitrdSource::None => None,
        InitrdSource::File(path) => Some(read("initrd", path)?),
    };
    if let (InitrdSource::File(path), Some([])) = (&guest.initrd, initrd.as_deref()) {
        bail!("the guest's initrd is empty: {}", path.display());
    }
    let command_line = guest.config.command_line.as_str();
    vmm::boot::plan(&kernel, initrd.as_deref(), command_line, &guest.config.shares).with_context(|| {
        let kernel = match &guest.kernel {
            KernelSource::Debian => "Debian's kernel".to_owned(),
            KernelSource::Early(scenario) => format!("the image early:{}", scenario.name()),
            KernelSource::File(path) => path.display().to_string(),
        };
        format!("the guest cannot boot with {kernel}")
    })?;
    let config = Blob { name: CONFIG_BLOB, file: encode(&guest.config)? };
    let initrd = initrd.map(|file| Blob { name: INITRD_BLOB, file });
    Ok([config, Blob { name: KERNEL_BLOB, file: kernel }].into_iter().chain(initrd).collect())
}

fn encode(config: &GuestConfig) -> Result<Vec<u8>> {
    let mut buffer = [0; MAX_CONFIG_BYTES];
    let bytes = postcard::to_slice(config, &mut buffer).context("the guest's configuration is too long")?;
    Ok(bytes.to_vec())
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("the guest's {what} cannot be read: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use ipc::guest::{AtEnd, Share, Shares};

    use super::*;

    fn guest(kernel: &Path, initrd: InitrdSource) -> Guest {
        let command_line = "console=ttyS0".try_into().unwrap();
        let config = GuestConfig {
            shares: Shares::from_array([Share { node: 1, vcpus: 2, pages: 65_536 }]),
            patience_s: 60,
            command_line,
            walk_cache: true,
            at_end: AtEnd::Again(3),
        };
        Guest { config, node_bytes: 0, kernel: KernelSource::File(kernel.to_owned()), initrd }
    }

    #[test]
    fn a_part_that_is_not_there_or_not_sound_is_named() {
        let told = |guest: &Guest| format!("{:#}", blobs(guest).unwrap_err());
        let error = told(&guest(Path::new("no/kernel"), InitrdSource::None));
        assert!(error.starts_with("the guest's kernel cannot be read: no/kernel: "), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = told(&guest(file.path(), InitrdSource::File("no/initrd".into())));
        assert!(error.starts_with("the guest's initrd cannot be read: no/initrd: "), "{error}");
        let error = told(&guest(file.path(), InitrdSource::File(file.path().to_owned())));
        assert!(error.starts_with("the guest's initrd is empty: "), "{error}");
        let error = told(&guest(file.path(), InitrdSource::None));
        let path = file.path().display();
        assert_eq!(
            error,
            format!("the guest cannot boot with {path}: guest kernel: truncated: 0 bytes of 616")
        );
    }

    /// As much of a bzImage as is looked at: it wants 32 MiB of memory from 16 MiB on.
    fn bzimage() -> Vec<u8> {
        let mut kernel = vec![0; 5 * 512 + (1 << 20)];
        let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[4]);
        put(0x1f4, &(1_u32 << 16).to_le_bytes());
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x230, &(2_u32 << 20).to_le_bytes());
        put(0x234, &[1, 0, 0x7f, 0]);
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &(16_u64 << 20).to_le_bytes());
        put(0x260, &(32_u32 << 20).to_le_bytes());
        kernel
    }

    #[test]
    fn a_guest_that_could_not_boot_is_refused_before_anything_is_started() {
        let kernel = tempfile::NamedTempFile::new().unwrap();
        let initrd = tempfile::NamedTempFile::new().unwrap();
        let told = |kernel_bytes: &[u8], initrd_bytes: usize, command_line: &str| {
            fs::write(kernel.path(), kernel_bytes).unwrap();
            fs::write(initrd.path(), vec![1; initrd_bytes]).unwrap();
            let mut guest = guest(kernel.path(), InitrdSource::File(initrd.path().to_owned()));
            guest.config.command_line = command_line.try_into().unwrap();
            let error = blobs(&guest).err().map(|error| error.root_cause().to_string());
            error.unwrap_or_else(|| "good".to_owned())
        };
        let sound = bzimage();
        assert_eq!(told(&sound, 5_000, "console=ttyS0"), "good");
        assert_eq!(
            told(&sound[..1 << 20], 5_000, ""),
            "guest kernel: truncated: 1,048,576 bytes of 1,051,136"
        );
        let old = [&sound[..0x206], &[0x05, 2], &sound[0x208..]].concat();
        assert!(told(&old, 5_000, "").contains("boot protocol 2.05 is too old"));
        assert!(told(&[0; 4096], 5_000, "").contains("not a bzImage"));
        assert!(
            told(&sound, 220 << 20, "")
                .starts_with("guest initrd: 230,686,720 bytes, but the guest has room")
        );
        let short = [&sound[..0x238], &[9, 0, 0, 0], &sound[0x23c..]].concat();
        let told = told(&short, 5_000, "console=ttyS0");
        assert_eq!(told, "guest command line: 13 bytes, but the kernel takes 9");
    }

    #[test]
    fn a_configuration_is_read_as_it_was() {
        let mut guest = guest(Path::new("k"), InitrdSource::None);
        guest.config.command_line = "x".repeat(2047).as_str().try_into().unwrap();
        let bytes = encode(&guest.config).unwrap();
        assert_eq!(postcard::from_bytes::<GuestConfig>(&bytes).unwrap(), guest.config);
    }
}
