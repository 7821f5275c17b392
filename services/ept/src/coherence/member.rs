//! The other half of the protocol: a node as one that wants pages and has some.
//!
//! [`super::fault`] has what this node wants, [`super::evict`] what it wants to be rid of, [`super::demand`] what others want of
//! it. Here is what they share: slots, frames, and the pages that are held.

use alloc::vec::Vec;

use super::demand::{Demand, Taking};
use super::environment::{Environment, Holding};
use super::error::ConfigError;
use super::hold::{Holds, PAGES_PER_WAITER};
use super::homes::Homes;
use super::message::{Access, Message, Page};
use super::node::{NodeId, NodeSet};
use super::post::Post;
use super::{Config, table};

/// Page operations for other nodes that may be under way when a message is taken.
const MOST_OPERATIONS: usize = 64;

/// Where a slot's transaction is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Phase {
    /// There is none.
    Idle,
    /// A fault that waits for a frame to put the page in.
    Starved,
    /// A fault at a page that another slot of this node has in transit.
    Behind,
    /// The home is asked.
    Asked,
    /// The page is here, and being mapped.
    Mapping,
    /// The page was here already, and is mapped again.
    Remapping,
    /// An eviction: others have the page, it is being unmapped.
    Dropping,
    /// An eviction: it is being unmapped, and goes to the target then.
    Pushing,
    /// An eviction: the contents are on their way.
    Pushed,
}

/// What a grant brought, as long as acknowledgements are missing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Granted {
    pub message: Message,
    /// Who acknowledges.
    pub expected: NodeSet,
}

/// A slot: of a waiter, or of an eviction.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Slot {
    pub phase: Phase,
    pub page: Page,
    pub access: Access,
    pub device: bool,
    pub number: u32,
    /// Whether a frame is set aside for it.
    pub is_reserved: bool,
    pub granted: Option<Granted>,
    pub acknowledged: NodeSet,
    /// Of a pushed page: who takes it.
    pub target: NodeId,
}

impl Slot {
    pub const IDLE: Self = Self {
        phase: Phase::Idle,
        page: Page(0),
        access: Access::Read,
        device: false,
        number: 0,
        is_reserved: false,
        granted: None,
        acknowledged: NodeSet::EMPTY,
        target: NodeId(0),
    };

    /// Whether messages or operations for its page are under way.
    pub const fn is_in_transit(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Starved | Phase::Behind)
    }
}

/// A node without its half of the directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Member {
    pub(super) me: NodeId,
    pub(super) homes: Homes,
    /// Slots of waiters; those of evictions follow.
    pub(super) waiters: u8,
    pub(super) slots: Vec<Slot>,
    pub(super) demands: Vec<Option<Demand>>,
    /// For each home the page that it asked this node to take.
    pub(super) taking: Vec<Option<Taking>>,
    pub(super) holds: Holds,
    pub(super) free_frames: u32,
    /// Frames that are kept for this node's own faults.
    spare_frames: u32,
    /// The slot that gets a free frame first.
    pub(super) turn: u8,
    /// Another node was refused room.
    pub(super) is_pressed: bool,
    /// Evictions in a row that ended because nobody had room.
    pub(super) refusals: u8,
    seed: u64,
    transactions: u32,
}

impl Member {
    /// A node that has no page.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let slots = usize::from(config.waiters) + usize::from(config.evictions);
        let mut demands = Vec::new();
        demands.try_reserve_exact(Self::most_demands(slots)).map_err(|_| ConfigError::NoRoom)?;
        Ok(Self {
            me: config.node,
            homes: config.homes.clone(),
            waiters: config.waiters,
            slots: table(Slot::IDLE, slots)?,
            demands,
            taking: table(None, usize::from(config.homes.nodes().get()))?,
            holds: Holds::new(config.hold, config.waiters)?,
            free_frames: config.frames,
            spare_frames: config.spare_frames,
            turn: 0,
            is_pressed: false,
            refusals: 0,
            seed: config.seed,
            transactions: 0,
        })
    }

    const fn most_demands(slots: usize) -> usize {
        MOST_OPERATIONS + (PAGES_PER_WAITER + 1) * slots
    }

    /// Whether one more message can be taken. The rest of the table is for demands that were put off, and for what follows
    /// from this node's own slots.
    pub(super) fn has_headroom(&self) -> bool {
        self.demands.iter().filter(|demand| demand.is_some()).count() < MOST_OPERATIONS
    }

    /// Whether this node has room for another's page.
    pub(super) const fn has_room(&self) -> bool {
        self.free_frames > self.spare_frames
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.phase == Phase::Idle)
            && self.demands.iter().all(Option::is_none)
            && self.taking.iter().all(Option::is_none)
            && self.holds.is_idle()
    }

    /// Bytes of the tables.
    pub(super) const fn table_bytes(&self) -> usize {
        size_of_val(self.slots.as_slice())
            + size_of_val(self.taking.as_slice())
            + self.demands.capacity() * size_of::<Option<Demand>>()
    }

    /// A number for a new transaction. A peer that takes no part in it cannot guess it, if the seed is random: SplitMix64
    /// (Steele, Lea, Flood, OOPSLA 2014).
    pub(super) fn next_number(&mut self) -> u32 {
        self.transactions = self.transactions.wrapping_add(1);
        let mut z = self.seed.wrapping_add(u64::from(self.transactions).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 32) as u32
    }

    /// The slot that has asked for the page and has no frame to put it in.
    pub(super) fn lacks_frame<E: Environment>(&self, post: &Post<'_, E>, page: Page) -> Option<usize> {
        let lacks = |slot: &Slot| slot.phase == Phase::Asked && slot.page == page && !slot.is_reserved;
        let slot = self.slots.iter().take(usize::from(self.waiters)).position(lacks)?;
        if post.environment.holding(page).has_frame() { None } else { Some(slot) }
    }

    /// Whether a waiter's slot is busy with the page.
    pub(super) fn is_asked(&self, page: Page) -> bool {
        let mut slots = self.slots.iter().take(usize::from(self.waiters));
        slots.any(|slot| slot.phase != Phase::Idle && slot.page == page)
    }

    /// Whether a page may be given away: nobody of this node works on it.
    pub(super) fn may_go(&self, page: Page) -> bool {
        let is_wanted = |slot: &Slot| slot.phase != Phase::Idle && slot.page == page;
        !self.slots.iter().any(is_wanted)
            && !self.holds.is_needed(page)
            && !self.demands.iter().flatten().any(|demand| demand.page == page)
    }

    /// Lets go of pages whose time is over.
    pub(super) fn release_holds<E: Environment>(&mut self, post: &mut Post<'_, E>, now: u64) {
        while let Some(put_off) = self.holds.release(now) {
            self.meet_put_off(post, put_off);
        }
    }

    /// Meets a demand that was put off.
    pub(super) fn meet_put_off<E: Environment>(&mut self, post: &mut Post<'_, E>, put_off: Option<Demand>) {
        if let Some(demand) = put_off
            && let Err(error) = self.meet(post, demand)
        {
            post.errors.add(error);
        }
    }

    /// What the page's holding becomes by a grant.
    pub(super) const fn granted_holding(access: Access, is_zero: bool) -> Holding {
        match (access, is_zero) {
            (Access::Write, _) => Holding::Write,
            (Access::Read, true) => Holding::Zero,
            (Access::Read, false) => Holding::Read,
        }
    }
}
