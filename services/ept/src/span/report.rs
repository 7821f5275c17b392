//! What became of the memory that nodes share.

use ipc::interfaces::ept::{Dropped, Hot, HotList, MOST_HOT, Sharing};

use super::Span;
use crate::coherence::error::Error;
use crate::coherence::profile;
use crate::memory::GuestMemory;

impl Span {
    /// What became of it.
    #[must_use]
    pub fn sharing(&self, memory: &GuestMemory) -> Sharing {
        let counters = self.coherence.counters();
        let errors = self.coherence.errors();
        let [read, write] = memory.held();
        let (run, malformed) = (errors.get(Error::Epoch), errors.get(Error::Malformed));
        Sharing {
            run: self.desk.run,
            place: self.me.0.into(),
            nodes: u16::try_from(self.desk.nodes.len()).unwrap_or(u16::MAX),
            zero: memory.counters().zero_pages,
            read,
            write,
            free: self.coherence.free_frames().into(),
            reads: counters.reads,
            writes: counters.writes,
            remote: self.remote,
            remote_user: self.remote_user,
            refused: self.refused,
            starved: self.starved,
            zeros: counters.zeros_shared,
            materialised: counters.materialised,
            kept: counters.kept,
            fetched: counters.fetched,
            given: counters.given,
            invalidated: counters.invalidated,
            taken: counters.taken,
            sent: self.desk.outbox.sent,
            received: self.received,
            full: self.desk.outbox.full,
            dropped: Dropped { run, malformed, unexpected: errors.total() - run - malformed, ..self.dropped },
            ahead: self.ahead.counters,
        }
    }

    /// What faulted most often.
    #[must_use]
    pub fn hottest(&self, memory: &GuestMemory) -> HotList {
        fn hot<T: Copy>(hot: &profile::Hot<T>, what: u64) -> Hot {
            Hot { what, count: hot.count, excess: hot.excess }
        }
        let pages = self.profile.pages.iter().map(|page| hot(page, memory.guest_page(page.what).0));
        let instructions =
            self.profile.instructions.iter().map(|instruction| hot(instruction, instruction.what));
        HotList { pages: pages.take(MOST_HOT).collect(), instructions: instructions.take(MOST_HOT).collect() }
    }
}
