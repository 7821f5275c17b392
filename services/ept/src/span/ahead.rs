//! Pages that are asked for before somebody needs them, as [`Foresight`] says.
//!
//! Each has a waiter of its own, after the vCPUs and the window, whom nobody answers. When its page has come it may leave again
//! at once: whether it is used cannot be seen, and to hold it would keep others waiting.

use ipc::interfaces::ept::Ahead as Counters;

use super::foresight::{Foresight, MOST_AHEAD};
use super::hands::Hands;
use super::{Round, Span};
use crate::coherence::environment::{Outcome, Waiter};
use crate::coherence::fault::Fault;
use crate::coherence::message::{Access, Page};

/// The pages that are asked for ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    foresight: Foresight,
    /// Those that are on their way, each at its waiter's place.
    asked: [Option<Page>; MOST_AHEAD as usize],
    /// The first of their waiters.
    first: u8,
    pub counters: Counters,
}

impl Ahead {
    /// None yet; `first` is the first of their waiters.
    pub const fn new(foresight: Foresight, first: u8) -> Self {
        let counters = Counters { asked: 0, granted: 0, hits: 0 };
        Self { foresight, asked: [None; MOST_AHEAD as usize], first, counters }
    }
}

impl Span {
    /// A waiter's fault needs another node: asks for what is needed next.
    pub(super) fn look_ahead<S, L>(
        &mut self,
        round: &mut Round<'_, S, L>,
        waiter: Waiter,
        (page, access): (Page, Access),
        now: u64,
    ) {
        let Self { ahead: Ahead { foresight, asked, first, counters }, coherence, desk, .. } = self;
        // It was foreseen, though too late.
        counters.hits += u64::from(asked.contains(&Some(page)));
        let pages = round.memory.shown();
        foresight.fault(waiter.0, page, |page| {
            if u64::from(page.0) >= pages {
                return false;
            }
            if coherence.is_asked(page) || round.memory.holding(page).allows(access) {
                return true;
            }
            // What is needed for certain comes first.
            if !coherence.has_room() || coherence.free_frames() <= 2 * u32::from(MOST_AHEAD) {
                return false;
            }
            let idle = (*first..).zip(asked.iter_mut()).find(|(_, asked)| asked.is_none());
            let Some((number, place)) = idle else { return false };
            let fault = Fault { waiter: Waiter(number), page, access, device: false };
            let hands = &mut Hands { memory: round.memory, desk };
            if coherence.fault(hands, now, &fault).is_err() {
                return false;
            }
            *place = Some(page);
            counters.asked += 1;
            true
        });
    }

    /// A page has come that was asked for ahead, or will not: it may leave. Whether there was one.
    pub(super) fn let_go<S, L>(&mut self, round: &mut Round<'_, S, L>, now: u64) -> bool {
        let resumed = &mut self.desk.resumed;
        let ahead = resumed.iter().position(|(waiter, _)| waiter.0 >= self.ahead.first);
        let Some((waiter, outcome)) = ahead.and_then(|place| resumed.remove(place)) else { return false };
        let place = usize::from(waiter.0 - self.ahead.first);
        if let Some(asked) = self.ahead.asked.get_mut(place) {
            *asked = None;
        }
        self.ahead.counters.granted += u64::from(outcome == Outcome::Granted);
        self.retire(round, waiter, now);
        true
    }
}
