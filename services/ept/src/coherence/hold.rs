//! Pages that stay for a while after they have come.
//!
//! A page stays until each waiter that was granted it has retired an instruction, and for the hold time that the home gave
//! with the grant; but not beyond a limit, lest a vCPU that does not run keep a page from all others. What another node wants of
//! it meanwhile is put off here: the home runs one transaction for a page at a time, so that is one demand.
//!
//! An instruction may need several pages. Its waiter keeps those that it was granted while it waits for one with a higher number,
//! and gives up those with the same or a higher number than the one that it waits for. So nobody who keeps a page waits for a
//! lower one: there is no cycle, and whoever has the lowest page that an instruction needs gets the others too. A
//! locked operation across a page boundary is such an instruction.

use alloc::vec::Vec;

use super::demand::Demand;
use super::environment::Waiter;
use super::error::ConfigError;
use super::message::Page;

/// How long pages stay, in the unit of the times that are passed in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct HoldTimes {
    /// The hold time of level 1. Each further level is twice as long; level 0 is no time at all.
    pub unit: u64,
    /// After so long a page leaves in any case.
    pub limit: u64,
}

/// Room for held pages, for each waiter. An instruction that needs more pages at once keeps the latest.
pub const PAGES_PER_WAITER: usize = 8;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Hold {
    page: Page,
    /// A bit for each waiter that has not retired an instruction yet.
    waiters: u128,
    until: u64,
    limit: u64,
    demand: Option<Demand>,
}

impl Hold {
    const fn due(&self) -> u64 {
        if self.waiters != 0 || self.limit < self.until { self.limit } else { self.until }
    }
}

/// The pages that are held.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Holds {
    times: HoldTimes,
    most: usize,
    held: Vec<Hold>,
}

impl Holds {
    /// None. There is room for [`PAGES_PER_WAITER`] pages of each waiter.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn new(times: HoldTimes, waiters: u8) -> Result<Self, ConfigError> {
        let most = PAGES_PER_WAITER * usize::from(waiters);
        let mut held = Vec::new();
        held.try_reserve_exact(most).map_err(|_| ConfigError::NoRoom)?;
        Ok(Self { times, most, held })
    }

    /// Holds a page, without a limit until [`Holds::run`]. When there is no room, another is let go, if
    /// possible one that no waiter needs; the demand that was put off for it is the answer.
    #[must_use]
    pub fn add(&mut self, page: Page, waiter: Waiter, level: u8, now: u64) -> Option<Demand> {
        let time = if level == 0 { 0 } else { self.times.unit << (level - 1) };
        let until = now.saturating_add(time);
        let bit = 1 << waiter.0;
        if let Some(hold) = self.held.iter_mut().find(|hold| hold.page == page) {
            hold.waiters |= bit;
            hold.until = hold.until.max(until);
            hold.limit = u64::MAX;
            return None;
        }
        let released = if self.held.len() < self.most { None } else { self.let_go() };
        self.held.push(Hold { page, waiters: bit, until, limit: u64::MAX, demand: None });
        released
    }

    fn let_go(&mut self) -> Option<Demand> {
        let page = self.held.iter().min_by_key(|hold| (hold.waiters != 0, hold.until))?.page;
        self.remove(page)
    }

    fn remove(&mut self, page: Page) -> Option<Demand> {
        let place = self.held.iter().position(|hold| hold.page == page)?;
        self.held.remove(place).demand
    }

    /// The waiter has not retired yet, and now waits for `page`: it keeps only what is below, without a limit.
    pub fn wait(&mut self, waiter: Waiter, page: Page) {
        let bit = 1 << waiter.0;
        for hold in self.held.iter_mut().filter(|hold| hold.waiters & bit != 0) {
            if hold.page < page {
                hold.limit = u64::MAX;
            } else {
                hold.waiters &= !bit;
            }
        }
    }

    /// The waiter goes on: the limit of what it holds begins to count.
    pub fn run(&mut self, waiter: Waiter, now: u64) {
        let limit = now.saturating_add(self.times.limit);
        for hold in self.held.iter_mut().filter(|hold| hold.waiters >> waiter.0 & 1 != 0) {
            hold.limit = hold.limit.min(limit);
        }
    }

    /// The waiter has retired an instruction, or will not.
    pub fn retire(&mut self, waiter: Waiter) {
        for hold in &mut self.held {
            hold.waiters &= !(1 << waiter.0);
        }
    }

    /// Whether the page must stay now.
    #[must_use]
    pub fn is_held(&self, page: Page, now: u64) -> bool {
        self.held.iter().any(|hold| hold.page == page && now < hold.due())
    }

    /// Whether a waiter still needs the page. Hold time alone does not count: it is this node that gains by it.
    #[must_use]
    pub fn is_needed(&self, page: Page) -> bool {
        self.held.iter().any(|hold| hold.page == page && hold.waiters != 0)
    }

    /// Puts a demand for a page that is held off; `false` when there is one already.
    #[must_use]
    pub fn put_off(&mut self, demand: Demand) -> bool {
        match self.held.iter_mut().find(|hold| hold.page == demand.page) {
            Some(hold) if hold.demand.is_none() => {
                hold.demand = Some(demand);
                true
            }
            _ => false,
        }
    }

    /// Lets a page go whose time is over: the answer has what was put off for it. `None` when there is no such page.
    pub fn release(&mut self, now: u64) -> Option<Option<Demand>> {
        let page = self.held.iter().find(|hold| hold.due() <= now)?.page;
        Some(self.remove(page))
    }

    /// When the next page is let go that somebody waits for; `None` while that does not depend on time.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let due = self.held.iter().filter(|hold| hold.demand.is_some()).map(Hold::due).min()?;
        if due == u64::MAX { None } else { Some(due) }
    }

    /// A bit for each waiter for whose sake a page stays that somebody waits for.
    #[must_use]
    pub fn in_the_way(&self) -> u128 {
        self.held.iter().filter(|hold| hold.demand.is_some()).fold(0, |all, hold| all | hold.waiters)
    }

    /// Whether nothing is put off.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.iter().all(|hold| hold.demand.is_none())
    }
}
