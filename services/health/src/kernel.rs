//! The kernel's log rings, and the memory that keeps how far they were read.

use core::sync::atomic::Ordering;

use health::pump::{self, Rings, Slice};
use ipc::abi::{MAX_CORES, MAX_MESSAGE_BYTES};
use ipc::message::MessagePage;
use rt::capability::Region;
use rt::page::Page;
use rt::start::Start;
use rt::syscall;

/// The kernel's rings.
pub(crate) struct LogRings;

impl Rings for LogRings {
    fn read(&mut self, core: usize, cursor: u64, into: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<Slice> {
        let syscall::LogSlice { bytes, cursor, lost } = syscall::log_read(core as u64, cursor).ok()?;
        if let Some(into) = into.get_mut(..bytes) {
            Page.read(into);
        }
        Some(Slice { bytes, cursor, lost })
    }
}

/// How far each core's ring was read: in a region that outlives a restart, one word a core, when the manifest
/// gives one. Without it, a health that restarts sends what the rings hold once more.
pub(crate) struct Cursors {
    kept: Option<Region>,
    own: [u64; MAX_CORES],
}

impl Cursors {
    /// Those of the region `cursors`, if the manifest gives it.
    pub(crate) fn of(start: &Start<'_>) -> Self {
        let kept = start.region("cursors").ok().filter(|region| region.writable);
        let mut own = [0; MAX_CORES];
        if let Some(region) = &kept {
            for (cursor, word) in own.iter_mut().zip(region.words()) {
                *cursor = word.load(Ordering::Relaxed);
            }
        }
        Self { kept, own }
    }
}

impl pump::Cursors for Cursors {
    fn get(&self, core: usize) -> u64 {
        pump::Cursors::get(&self.own, core)
    }

    fn set(&mut self, core: usize, cursor: u64) {
        pump::Cursors::set(&mut self.own, core, cursor);
        if let Some(word) = self.kept.as_ref().and_then(|region| region.words().get(core)) {
            word.store(cursor, Ordering::Relaxed);
        }
    }
}
