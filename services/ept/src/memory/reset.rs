//! The end of a guest: all of its pages are taken away, in steps that keep the service's loop responsive.

use ipc::abi::Error;

use super::{Chunk, Entry, GuestMemory, Mapping, PageState, Placement};
use crate::layout::CHUNK_PAGES;
use crate::space::Space;

/// Calls of the kernel in one step of taking all pages away.
pub const RESET_CALLS: usize = 8;
/// Chunks that one step looks at.
pub const RESET_CHUNKS: usize = 4096;

/// Whether all pages are taken away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// There are more.
    More,
    /// All frames are free again.
    Done,
}

impl GuestMemory {
    /// Takes all pages away from the guest, which no longer runs, a few with each call. From the first call until one says
    /// [`Progress::Done`] every fault is refused; then all is as at the start, but for the counters of what happened.
    ///
    /// # Errors
    /// The kernel's, when it does not take pages away; the next call tries again.
    pub fn reset_step<S: Space>(&mut self, space: &mut S) -> Result<Progress, Error> {
        let begin = self.reset.unwrap_or(0);
        let mut calls = 0;
        for number in begin..self.chunks.len() {
            self.reset = Some(number);
            if calls == RESET_CALLS || number - begin == RESET_CHUNKS {
                return Ok(Progress::More);
            }
            if self.chunks[number].touched != 0 {
                let (first, count) = self.layout.chunk(number);
                space.unmap(first, count)?;
                calls += 1;
                self.forget(number);
            }
        }
        self.reset = None;
        if self.is_shared {
            self.end_sharing();
        }
        Ok(Progress::Done)
    }

    /// Begins to take all pages away: from now on every fault is refused.
    pub fn begin_reset(&mut self) {
        self.reset = self.reset.or(Some(0));
    }

    /// Whether all pages are being taken away.
    #[must_use]
    pub const fn is_being_reset(&self) -> bool {
        self.reset.is_some()
    }

    /// Makes a chunk that is no longer mapped as it was at the start.
    fn forget(&mut self, number: usize) {
        if self.is_shared {
            // Who has which frame is told anew at the next start.
            self.chunks[number] = Chunk::LOOSE;
            self.entries[number * CHUNK_PAGES..(number + 1) * CHUNK_PAGES].fill(Entry::DORMANT);
            return;
        }
        let chunk = core::mem::replace(&mut self.chunks[number], Self::untouched(&self.layout, number));
        let slot = number * CHUNK_PAGES;
        for entry in &mut self.entries[slot..slot + CHUNK_PAGES] {
            match entry.state() {
                PageState::Dormant => {}
                PageState::Zero => self.zero_pages -= 1,
                PageState::Owned(frame) => {
                    if chunk.placement == Placement::Loose {
                        self.frames.give_back(frame);
                    }
                }
            }
            *entry = Entry::DORMANT;
        }
        if let Placement::Reserved(block) = chunk.placement {
            self.frames.release(block);
        }
        self.large -= u64::from(chunk.mapping == Mapping::Large);
    }
}
