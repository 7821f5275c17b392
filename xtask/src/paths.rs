//! Where things are: the workspace, the build's output, and what a run leaves behind.
//!
//! xtask works from the workspace's root, so that the paths of sockets stay short (Linux allows 107 bytes).

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The triple that kernel and services are built for: the host target (docs/decisions say why).
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workspace's root.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Goes to the workspace's root.
///
/// # Errors
/// The tree in which xtask was built is gone.
pub fn enter_root() -> Result<()> {
    std::env::set_current_dir(root()).with_context(|| {
        format!("{} is not there any more; build xtask again where the sources are", root().display())
    })
}

/// A path that the user gave: relative to where the user is, or else to the workspace's root. To be called before
/// [`enter_root`].
///
/// # Errors
/// There is no current directory.
pub fn of_user(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.exists() {
        return Ok(path.to_owned());
    }
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    Ok(path.strip_prefix(root()).map(Path::to_owned).unwrap_or(path))
}

/// What `cargo metadata` says of the workspace.
///
/// # Errors
/// Cargo fails, or what it prints is not JSON.
pub fn metadata() -> Result<serde_json::Value> {
    let output = Command::new(cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata cannot be started")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata does not print JSON")
}

/// The cargo that runs xtask.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// The directory for everything that is built, as cargo chooses it.
///
/// # Errors
/// As [`metadata`].
pub fn target_directory() -> Result<PathBuf> {
    metadata()?["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}

/// A directory that one xtask at a time uses for what its run leaves behind: logs, sockets, copies of firmware.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// Held for the lock on it.
    lock: File,
}

impl RunDirectory {
    /// Takes and empties `.unum/NAME`.
    ///
    /// # Errors
    /// Another xtask uses it, or it cannot be written.
    pub fn claim(name: &str) -> Result<Self> {
        Self::claim_in(Path::new(".unum"), name)
    }

    fn claim_in(base: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(base).with_context(|| format!("{} cannot be made", base.display()))?;
        let lock_path = base.join(format!("{name}.lock"));
        let lock =
            File::create(&lock_path).with_context(|| format!("{} cannot be made", lock_path.display()))?;
        let path = base.join(name);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another cargo xtask uses {}; end it first", path.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} cannot be locked", lock_path.display()));
            }
        }
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{} cannot be emptied", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self { path, lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(path)
    }
}

impl Drop for RunDirectory {
    /// Closing the lock would not be enough: a process that is being started has it, too, until it runs its own program.
    fn drop(&mut self) {
        // When that fails the lock ends with the last that has it.
        let _ = self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_has_one_user_and_starts_empty() {
        let base = tempfile::tempdir().unwrap();
        let first = RunDirectory::claim_in(base.path(), "run").unwrap();
        fs::write(first.path().join("log.txt"), "old").unwrap();
        let error = RunDirectory::claim_in(base.path(), "run").unwrap_err();
        assert!(error.to_string().contains("another cargo xtask uses"), "{error}");
        assert!(RunDirectory::claim_in(base.path(), "test").is_ok());
        drop(first);
        let second = RunDirectory::claim_in(base.path(), "run").unwrap();
        assert_eq!(fs::read_dir(second.path()).unwrap().count(), 0);
    }
}
