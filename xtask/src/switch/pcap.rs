//! Recordings of frames in the classic pcap format with nanoseconds (draft-ietf-opsawg-pcap: magic 0xa1b23c4d,
//! LINKTYPE_ETHERNET). Each record is one write to the file, so a reader finds whole frames at any time.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// More than any frame: nothing is cut off.
const SNAPLEN: u32 = 262_144;

/// A file that frames are written to.
pub struct Recorder {
    path: PathBuf,
    file: File,
    record: Vec<u8>,
    /// Why nothing more is written.
    error: Option<std::io::Error>,
}

impl Recorder {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = || format!("cannot write the recording {}", path.display());
        let mut file = File::create(path).with_context(failed)?;
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC_NANOSECONDS.to_le_bytes());
        header.extend(2_u16.to_le_bytes());
        header.extend(4_u16.to_le_bytes());
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_le_bytes());
        header.extend(LINKTYPE_ETHERNET.to_le_bytes());
        file.write_all(&header).with_context(failed)?;
        Ok(Self { path: path.to_owned(), file, record: Vec::new(), error: None })
    }

    /// Adds a frame, at a time since 1970. A failure ends the recording, not the traffic; see [`Self::error`].
    pub fn record(&mut self, time: Duration, frame: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.record.clear();
        // The format's seconds end in 2106.
        self.record.extend(u32::try_from(time.as_secs()).unwrap_or(u32::MAX).to_le_bytes());
        self.record.extend(time.subsec_nanos().to_le_bytes());
        self.record.extend(length.to_le_bytes());
        self.record.extend(length.to_le_bytes());
        self.record.extend_from_slice(frame);
        self.error = self.file.write_all(&self.record).err();
    }

    /// Why the recording ended early, if it did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(format!("the recording {} ended early: {error}", self.path.display()))
    }
}

/// The frames of a recording, as this module writes it.
#[cfg(test)]
pub fn read(bytes: &[u8]) -> Vec<(Duration, Vec<u8>)> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!([word(0), word(4), word(16), word(20)], [MAGIC_NANOSECONDS, 0x0004_0002, SNAPLEN, 1]);
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < bytes.len() {
        assert_eq!(word(at + 8), word(at + 12), "cut off");
        let end = at + 16 + usize::try_from(word(at + 8)).unwrap();
        frames.push((Duration::new(word(at).into(), word(at + 4)), bytes[at + 16..end].to_vec()));
        at = end;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::{Duration, Path, Recorder, read};

    #[test]
    fn the_file_is_whole_after_every_frame() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("frames.pcap");
        let mut recorder = Recorder::create(&path).unwrap();
        assert_eq!(read(&std::fs::read(&path).unwrap()), []);
        let frames = [vec![1; 60], vec![2; 9216], vec![3; 14]];
        for (count, frame) in frames.iter().enumerate() {
            recorder.record(Duration::new(1_700_000_000, 999_999_999), frame);
            let written = read(&std::fs::read(&path).unwrap());
            assert_eq!(written.len(), count + 1);
            assert_eq!(written[count], (Duration::new(1_700_000_000, 999_999_999), frame.clone()));
        }
        assert_eq!(recorder.error(), None);
    }

    #[test]
    fn a_failure_is_reported_and_ends_the_recording_only() {
        let error = Recorder::create(Path::new("/nonexistent/frames.pcap")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/frames.pcap"), "{error}");
        let mut recorder = Recorder::create(Path::new("/dev/null")).unwrap();
        recorder.file = std::fs::File::open("/dev/null").unwrap();
        recorder.record(Duration::ZERO, &[0; 60]);
        recorder.record(Duration::ZERO, &[0; 60]);
        assert!(recorder.error().unwrap().starts_with("the recording /dev/null ended early"));
    }
}
