//! The platform's way out when another node is lost.
//!
//! The platform sees that a node is lost, ends the guest and says so; but not while it waits, in the window, for a page that the
//! lost node has. So after a while it is looked whether all nodes are there. If not, the guest is over for this node: the
//! window gets any memory in place of such pages, and the platform comes back to its loop and finds out. vCPUs need no such
//! thing, for they are stopped wherever they wait.

use ipc::abi::NEVER;

use super::links::Links;
use super::{Lost, Round, Span};
use crate::coherence::environment::{Outcome, Waiter};
use crate::coherence::message::Page;
use crate::fault::Refusal;
use crate::space::Space;

/// The page that the window waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    page: Page,
    /// When it is looked whether the nodes are there.
    pub look: u64,
}

impl Span {
    /// A fault of the window is not answered.
    pub(super) fn window_waits(&mut self, page: Page, now: u64) {
        self.stuck = Some(Stuck { page, look: now.saturating_add(self.times.patience) });
    }

    /// The answer to a fault of the window when the guest is over; `None` while it is not.
    pub(super) fn severed<S: Space, L>(
        &mut self,
        round: &mut Round<'_, S, L>,
        page: Page,
    ) -> Option<Result<(), Refusal>> {
        self.is_severed.then(|| round.memory.scratch(round.space, page).map_err(|_| Refusal::NotMapped))
    }

    /// When the window is looked after.
    pub(super) fn look_at(&self) -> u64 {
        self.stuck.map_or(NEVER, |stuck| stuck.look)
    }

    /// Looks after the window, when it is time.
    pub(super) fn look<S: Space, L: Links>(
        &mut self,
        round: &mut Round<'_, S, L>,
        now: u64,
    ) -> Result<(), Lost> {
        let Some(stuck) = self.stuck.filter(|stuck| now >= stuck.look) else { return Ok(()) };
        if round.links.are_there(&self.desk.nodes)? {
            self.stuck = Some(Stuck { look: now.saturating_add(self.times.patience), ..stuck });
            return Ok(());
        }
        self.is_severed = true;
        self.stuck = None;
        let window: Waiter = self.waiters.window();
        let outcome = match round.memory.scratch(round.space, stuck.page) {
            Ok(()) => Outcome::Granted,
            Err(_) => Outcome::NotMapped,
        };
        self.desk.resumed.push_back((window, outcome));
        Ok(())
    }
}
