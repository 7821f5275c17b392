//! The coherence protocol: which node has which page, as a state machine without clock or I/O.
//!
//! For each page there is at any time one node that may write or any number that may read, and whoever reads finds the
//! latest value. Faults, messages and ends of page operations come in as calls of [`Coherence`]; messages, page operations and ends of
//! faults go out through [`environment::Environment`]. `docs/coherence.md` has the transactions and their races.
//!
//! * [`word`]: what a home knows of a page, in eight bytes.
//! * [`homes`]: which node is a page's home.
//! * [`home`]: the home's half: it orders the requests for a page.
//! * [`learn`]: how a page is used.
//! * [`member`]: the other half, a node that wants pages ([`fault`]), has some ([`demand`]), or has too many ([`evict`]).
//! * [`hold`]: how long a page stays at least.
//! * [`message`]: what nodes say to each other.
//! * [`profile`]: which pages and instructions have the most faults; the service tells it of each.
//!
//! All tables are made at the start. Invariants, which the tests check after each step: one page is in transit for one
//! transaction at a time; frames that are free, set aside, or hold a page are together as many as at the start.
//!
//! [`crate::span`] drives it. A guest on one node needs none of it.

pub mod demand;
pub mod environment;
pub mod error;
pub mod evict;
pub mod fault;
pub mod hold;
pub mod home;
pub mod homes;
pub mod learn;
pub mod member;
pub mod message;
pub mod node;
pub mod post;
pub mod profile;
pub mod word;

#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use self::environment::{Environment, Failed, Outcome, Ticket, Waiter};
use self::error::{ConfigError, Error, ErrorCounts};
use self::fault::Fault;
use self::hold::HoldTimes;
use self::home::Home;
use self::homes::Homes;
use self::member::{Member, Phase};
use self::message::{Access, Kind, Message, Page};
use self::node::NodeId;
use self::post::Post;

/// The most waiters of a node: a held page has a bit for each.
pub const MAX_WAITERS: u8 = 128;
/// The most evictions under way at one time.
pub const MAX_EVICTIONS: u8 = 16;

/// What a node is told at the start. But for `node`, `frames`, `spare_frames` and `seed` it is the same on all nodes.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The nodes, and the guest's pages that each gives.
    pub homes: Homes,
    /// How many may wait for a page on a node, 1 to [`MAX_WAITERS`].
    pub waiters: u8,
    /// How many evictions may be under way, 1 to [`MAX_EVICTIONS`].
    pub evictions: u8,
    /// Frames of this node for the guest's pages, without the shared page of zeros.
    pub frames: u32,
    /// How many of them are kept for this node's own faults when another pushes pages here.
    pub spare_frames: u32,
    /// How long pages stay.
    pub hold: HoldTimes,
    /// The epoch of the membership.
    pub epoch: u32,
    /// Random: with it nobody outside a transaction guesses its number.
    pub seed: u64,
}

/// What became of this node's faults.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Faults by reading.
    pub reads: u64,
    /// Faults by writing.
    pub writes: u64,
    /// Grants of the shared page of zeros.
    pub zeros_shared: u64,
    /// Grants of a page of zeros to write.
    pub materialised: u64,
    /// Grants without contents, since they were here.
    pub kept: u64,
    /// Pages that came from another node.
    pub fetched: u64,
    /// Pages that left because others wanted them.
    pub given: u64,
    /// Copies that were given up.
    pub invalidated: u64,
    /// Pages that were pushed here by a node without room.
    pub taken: u64,
}

/// A node's part in the protocol.
#[derive(Clone, Debug)]
pub struct Coherence {
    config: Config,
    home: Home,
    member: Member,
    /// Messages of this node to itself that are not taken yet; empty between inputs.
    own: VecDeque<Message>,
    errors: ErrorCounts,
    counters: Counters,
}

impl Coherence {
    /// A node of a guest whose pages nobody has touched.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let homes = &config.homes;
        if !homes.nodes().has(config.node) {
            return Err(ConfigError::Node);
        }
        let slots =
            (1..=MAX_WAITERS).contains(&config.waiters) && (1..=MAX_EVICTIONS).contains(&config.evictions);
        if !slots {
            return Err(ConfigError::Slots);
        }
        let mut own = VecDeque::new();
        own.try_reserve(usize::from(MAX_WAITERS)).map_err(|_| ConfigError::NoRoom)?;
        Ok(Self {
            home: Home::new(config.node, homes.clone(), config.waiters + config.evictions)?,
            member: Member::new(&config)?,
            config,
            own,
            errors: ErrorCounts::NONE,
            counters: Counters::default(),
        })
    }

    /// Begins a fault; [`Environment::resume`] ends it, perhaps before this returns. `now` is the time, in a unit of the
    /// caller's and never less than before.
    ///
    /// # Errors
    /// [`Error::UnknownPage`] or [`Error::Waiter`]; the fault is not begun.
    pub fn fault<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        fault: &Fault,
    ) -> Result<(), Error> {
        if !self.config.homes.has(fault.page) {
            return self.counted(Err(Error::UnknownPage));
        }
        let result = self.input(environment, now, |_, member, post| member.fault(post, now, fault));
        if result.is_ok() {
            match fault.access {
                Access::Read => self.counters.reads += 1,
                Access::Write => self.counters.writes += 1,
            }
        }
        result
    }

    /// Whether this node is the page's home, and nobody has ever asked for it.
    #[must_use]
    pub fn is_untouched(&self, page: Page) -> bool {
        let homes = &self.config.homes;
        homes.has(page) && homes.of(page) == self.config.node && self.home.is_untouched(page)
    }

    /// Makes pages this node's own that are untouched ([`Coherence::is_untouched`]), in place of a fault by writing at `page`,
    /// which is one of them: it is the transaction of each, begun and ended at once. They are mapped already, to as many
    /// frames, which were free ([`Coherence::free_frames`]); what [`Environment::holding`] says of them is known there. As
    /// after a fault, `page` stays until its waiter has retired an instruction.
    ///
    /// # Errors
    /// [`Error::Waiter`], [`Error::UnknownPage`] when one is not untouched, [`Error::NotHeld`] when there are not so many free
    /// frames; nothing is changed then.
    pub fn claim<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        waiter: Waiter,
        page: Page,
        pages: Range<u32>,
    ) -> Result<(), Error> {
        let are_untouched = pages.clone().map(Page).all(|page| self.is_untouched(page));
        if !are_untouched || !pages.contains(&page.0) {
            return self.counted(Err(Error::UnknownPage));
        }
        let me = self.config.node;
        let count = pages.len();
        self.input(environment, now, |home, member, post| {
            member.claim(post, now, waiter, page, count)?;
            pages.map(Page).for_each(|page| home.claim(me, page));
            Ok(())
        })
    }

    /// Whether the waiter can begin a fault.
    #[must_use]
    pub fn is_waiting(&self, waiter: Waiter) -> bool {
        self.member.slots.get(usize::from(waiter.0)).is_none_or(|slot| slot.phase != Phase::Idle)
    }

    /// Whether a waiter of this node has asked for the page, and does not have it yet.
    #[must_use]
    pub fn is_asked(&self, page: Page) -> bool {
        self.member.is_asked(page)
    }

    /// Whether there are more free frames than this node keeps for its own faults.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.member.has_room()
    }

    /// A bit for each waiter that holds a page for which another node waits, because it has not retired an instruction.
    #[must_use]
    pub fn in_the_way(&self) -> u128 {
        self.member.holds.in_the_way()
    }

    /// Counts an input that was refused before it came here.
    pub fn refuse(&mut self, error: Error) {
        self.errors.add(error);
    }

    /// Takes a message that another node sent in `epoch`. Where contents came with it and [`Environment::adopt`] is not
    /// called, they are not needed.
    ///
    /// # Errors
    /// See [`Error`]. But for [`Error::Full`], where the message is to be offered again, it is dropped.
    pub fn receive<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        from: NodeId,
        epoch: u32,
        message: Message,
    ) -> Result<(), Error> {
        let check = if epoch != self.config.epoch {
            Err(Error::Epoch)
        } else if from == self.config.node {
            Err(Error::UnknownNode)
        } else if !self.member.has_headroom() {
            Err(Error::Full)
        } else {
            self.check(from, &message)
        };
        if check.is_err() {
            return self.counted(check);
        }
        self.home.heard(from, &message);
        self.input(environment, now, |home, member, post| {
            Self::dispatch(home, member, post, now, from, message)
        })
    }

    /// Takes a message as its bytes came; more may follow them. See [`Coherence::receive`].
    ///
    /// # Errors
    /// [`Error::Malformed`], or those of [`Coherence::receive`].
    pub fn receive_bytes<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        from: NodeId,
        epoch: u32,
        bytes: &[u8],
    ) -> Result<(), Error> {
        match Message::decode(bytes) {
            Some(message) => self.receive(environment, now, from, epoch, message),
            None => self.counted(Err(Error::Malformed)),
        }
    }

    /// The page operation of a ticket is done in all views, and every TLB is flushed; or, only for
    /// [`environment::Operation::Map`], it has failed.
    ///
    /// # Errors
    /// [`Error::Ticket`].
    pub fn completed<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        ticket: Ticket,
        result: Result<(), Failed>,
    ) -> Result<(), Error> {
        let outcome = if result.is_ok() { Outcome::Granted } else { Outcome::NotMapped };
        self.input(environment, now, |_, member, post| {
            let slot = match ticket {
                Ticket::Demand(place) => return member.demand_done(post, place),
                Ticket::Slot(slot) => usize::from(slot),
            };
            match member.slots.get(slot).map(|slot| slot.phase) {
                Some(Phase::Mapping | Phase::Remapping) => member.mapped(post, now, slot, outcome),
                Some(Phase::Dropping | Phase::Pushing) => member.unmapped(post, now, slot),
                _ => return Err(Error::Ticket),
            }
            Ok(())
        })
    }

    /// The waiter has retired an instruction after its fault ended, or gives up: what it was granted may leave.
    ///
    /// # Errors
    /// [`Error::Waiter`] when there is no such waiter.
    pub fn retired<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        waiter: Waiter,
    ) -> Result<(), Error> {
        self.input(environment, now, |_, member, post| {
            if waiter.0 >= member.waiters {
                return Err(Error::Waiter);
            }
            member.holds.retire(waiter);
            member.release_holds(post, now);
            Ok(())
        })
    }

    /// Time has passed: see [`Coherence::deadline`].
    pub fn tick<E: Environment>(&mut self, environment: &mut E, now: u64) {
        let result = self.input(environment, now, |_, member, post| {
            member.release_holds(post, now);
            Ok(())
        });
        debug_assert_eq!(result, Ok(()));
    }

    /// When [`Coherence::tick`] is to be called next, if at all.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.member.holds.deadline()
    }

    /// What was wrong with inputs, and how often.
    #[must_use]
    pub const fn errors(&self) -> &ErrorCounts {
        &self.errors
    }

    /// What became of faults.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// This node as a home.
    #[must_use]
    pub const fn home(&self) -> &Home {
        &self.home
    }

    /// Frames that hold no page and are set aside for none.
    #[must_use]
    pub const fn free_frames(&self) -> u32 {
        self.member.free_frames
    }

    /// Whether no transaction is under way in which this node takes part, as far as it knows.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.home.is_idle() && self.member.is_idle()
    }

    /// Bytes of all tables that do not depend on the number of pages.
    #[must_use]
    pub fn fixed_bytes(&self) -> usize {
        self.home.record_bytes() + self.member.table_bytes() + size_of::<Self>()
    }

    /// All that decides what happens next.
    #[cfg(test)]
    const fn state(&self) -> (&Home, &Member) {
        (&self.home, &self.member)
    }

    fn counted(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = result {
            self.errors.add(error);
        }
        result
    }

    /// Checks what can be checked without looking at the transaction.
    fn check(&self, from: NodeId, message: &Message) -> Result<(), Error> {
        let Config { node, ref homes, waiters, evictions, .. } = self.config;
        let nodes = homes.nodes();
        if !nodes.has(from) || !nodes.has(message.node) {
            return Err(Error::UnknownNode);
        }
        if !homes.has(message.page) {
            return Err(Error::UnknownPage);
        }
        let is_waiter = message.slot < waiters;
        let fits = match message.kind {
            Kind::Read | Kind::Write | Kind::Forward | Kind::Invalidate | Kind::Keep | Kind::Zero => {
                is_waiter
            }
            Kind::Evict | Kind::Drop | Kind::Take | Kind::Room | Kind::NoRoom | Kind::Push | Kind::Stay => {
                !is_waiter
            }
            Kind::Done | Kind::Data | Kind::Ack => true,
        };
        if !fits || message.slot >= waiters + evictions {
            return Err(Error::UnknownSlot);
        }
        let home = homes.of(message.page);
        let is_right = match message.kind {
            Kind::Read | Kind::Write | Kind::Evict | Kind::Done | Kind::Room | Kind::NoRoom => home == node,
            Kind::Data | Kind::Ack => true,
            _ => home == from,
        };
        if is_right { Ok(()) } else { Err(Error::NotHome) }
    }

    fn dispatch<E: Environment>(
        home: &mut Home,
        member: &mut Member,
        post: &mut Post<'_, E>,
        now: u64,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        match message.kind {
            Kind::Read | Kind::Write | Kind::Evict | Kind::Done | Kind::Room | Kind::NoRoom => {
                home.receive(post, from, message)
            }
            Kind::Forward | Kind::Invalidate => member.demand(post, now, message),
            Kind::Data if message.slot >= member.waiters => member.taken(post, from, message),
            Kind::Keep | Kind::Zero | Kind::Data => member.granted(post, from, message),
            Kind::Ack => member.acknowledged(post, now, from, &message),
            Kind::Take => member.take(post, from, message),
            Kind::Drop | Kind::Push | Kind::Stay => member.evict(post, now, &message),
        }
    }

    /// Takes an input, then what follows from it.
    fn input<E: Environment>(
        &mut self,
        environment: &mut E,
        now: u64,
        input: impl FnOnce(&mut Home, &mut Member, &mut Post<'_, E>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let room = self.member.has_room();
        let mut post = Post {
            environment,
            me: self.config.node,
            room,
            own: &mut self.own,
            errors: &mut self.errors,
            counters: &mut self.counters,
        };
        let result = input(&mut self.home, &mut self.member, &mut post);
        self.go_on(environment, now);
        self.counted(result)
    }

    /// Takes what this node said to itself, and gives out frames.
    fn go_on<E: Environment>(&mut self, environment: &mut E, now: u64) {
        let me = self.config.node;
        let room = self.member.has_room();
        loop {
            let message = self.own.pop_front();
            let mut post = Post {
                environment,
                me,
                room,
                own: &mut self.own,
                errors: &mut self.errors,
                counters: &mut self.counters,
            };
            match message {
                Some(message) => {
                    let result =
                        Self::dispatch(&mut self.home, &mut self.member, &mut post, now, me, message);
                    // The other half's messages are as they must be, unless another node has lied to it.
                    let _: Result<(), Error> = self.counted(result);
                }
                None => {
                    self.member.settle(&mut post, now);
                    if self.own.is_empty() {
                        return;
                    }
                }
            }
        }
    }
}

/// A table of `count` equal values, which never grows.
fn table<T: Clone>(value: T, count: usize) -> Result<Vec<T>, ConfigError> {
    crate::filled(value, count).map_err(|_| ConfigError::NoRoom)
}
