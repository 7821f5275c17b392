//! Membership: who belongs to the cluster, in one agreed view after another.
//!
//! Every node says hello to all, again and again. The lowest member proposes a view when the nodes that it hears are
//! not those of its view; who agrees promises to install nothing older; when all members of the proposed view have
//! promised, the proposer installs it, and the others follow when they hear that somebody has. `docs/wire-protocol.md`
//! has the algorithm and the argument for it.

mod hello;
mod propose;
mod quorum;
mod table;
mod view;

use ipc::wire::{MacAddress, NO_NODE};

pub use hello::{Hello, MAX_HELLO, Profile, Promise};
pub use table::{REFUSALS, Refusal};
pub use view::{MAX_MEMBERS, Member, View};

use propose::Proposal;
use quorum::ActiveAt;
use table::{Heard, Table};

/// How often and how long, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two hellos.
    pub hello: u64,
    /// The least time between two hellos, however much there is to say.
    pub hello_gap: u64,
    /// Silence after which a member is suspected, and does not count any more as one to act with.
    pub suspect: u64,
    /// Silence after which a member is taken for dead. More than [`Timing::suspect`].
    pub death: u64,
    /// How long a proposal waits for its members.
    pub proposal: u64,
    /// How long a node that starts agrees to nothing: at least twice [`Timing::proposal`], because it may have
    /// forgotten what it promised in its former life.
    pub quiet: u64,
    /// How long a node that starts waits for others before it forms a view without all that are expected. At least
    /// [`Timing::quiet`].
    pub form: u64,
}

/// How far an epoch may be ahead of those that a node knows. Epochs are counted one by one; without a bound a single
/// lie could use them all up.
const MAX_EPOCH_AHEAD: u32 = 1 << 24;

/// What happened to the membership.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A node was heard of for the first time.
    Found(u16, MacAddress),
    /// A node was started again.
    Restarted(u16, MacAddress),
    /// A new view is installed: its epoch. `Membership::view` has its members.
    Installed(u32),
    /// A member has been silent for a while, or cannot be reached.
    Suspected(u16),
    /// A member is none any more: it left, died or was started again. What was on its way to it is given up.
    Removed(u16),
    /// The others have gone on without this node, or too many have ended their lives for this view to go on: this node
    /// begins a new life, with this incarnation.
    Expelled(u16),
    /// This node has left.
    Left,
    /// Too few members are heard of: this node must not act in its view.
    QuorumLost,
    /// This node may act in its view.
    Quorum,
    /// A node cannot be a member.
    Refused(u16, MacAddress, Refusal),
    /// Another card claims this node's number.
    OwnNumberTaken(MacAddress),
}

/// What this node is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// It is a member, or wants to be one.
    Taking,
    /// It asks to be left out.
    Leaving,
    /// It was left out.
    Gone,
}

/// The membership as one node knows it.
#[derive(Debug)]
pub struct Membership {
    me: Member,
    profile: Profile,
    timing: Timing,
    table: Table,
    installed: View,
    promise: Promise,
    /// What was promised, until it or a later view is installed.
    promised_view: View,
    proposal: Option<Proposal>,
    phase: Phase,
    started: u64,
    /// Whether what was promised is a view of a cluster that has had others.
    joins: bool,
    /// From when on the view that is installed may be acted in.
    active_at: ActiveAt,
    installed_at: u64,
    quorate: bool,
    complaint: u16,
    next_hello: u64,
    last_hello: u64,
    next_proposal: u64,
    sequence: u32,
    refusals: [u64; REFUSALS],
}

impl Membership {
    /// A node that starts at `now`.
    #[must_use]
    pub fn new(me: Member, profile: Profile, timing: Timing, now: u64) -> Self {
        Self {
            me,
            profile,
            timing,
            table: Table::new(),
            installed: View::NONE,
            promise: Promise { epoch: 0, by: NO_NODE },
            promised_view: View::NONE,
            proposal: None,
            phase: Phase::Taking,
            started: now,
            joins: false,
            active_at: ActiveAt::Time(0),
            installed_at: 0,
            quorate: false,
            complaint: NO_NODE,
            next_hello: now,
            last_hello: 0,
            next_proposal: 0,
            sequence: 0,
            refusals: [0; REFUSALS],
        }
    }

    /// This node's life.
    #[must_use]
    pub const fn me(&self) -> Member {
        self.me
    }

    /// The view that is installed; [`View::NONE`] before the first.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.installed
    }

    /// Whether this node may act in its view: it hears enough of its members.
    #[must_use]
    pub const fn is_quorate(&self) -> bool {
        self.quorate
    }

    /// The other nodes that were heard of lately, and when each was last.
    pub fn peers(&self) -> impl Iterator<Item = (Member, u64)> {
        self.table.iter().map(|peer| (peer.life, peer.heard))
    }

    /// Nodes that were refused, by [`Refusal`].
    #[must_use]
    pub const fn refusals(&self) -> &[u64; REFUSALS] {
        &self.refusals
    }

    /// Asks to be left out of the next view.
    pub fn leave(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        if self.phase == Phase::Taking {
            self.phase = Phase::Leaving;
            self.proposal = None;
            self.say_soon(now);
            // Nobody is there who could agree.
            if self.installed.members().iter().all(|&member| member == self.me) {
                self.go(now, events);
            }
        }
    }

    /// Notes that a member cannot be reached, although it may be heard of.
    pub fn complain(&mut self, node: u16, now: u64) {
        if self.complaint != node {
            self.complaint = node;
            self.say_soon(now);
        }
        self.shun(node, now);
    }

    /// Notes that another card sends with this node's number.
    pub fn own_number_taken(&mut self, mac: MacAddress, events: &mut impl FnMut(Event)) {
        self.refusals[Refusal::Duplicate as usize] += 1;
        if self.refusals[Refusal::Duplicate as usize] == 1 {
            events(Event::OwnNumberTaken(mac));
        }
    }

    /// Takes a hello from this node and card.
    ///
    /// # Errors
    /// [`Refusal`], which is counted.
    pub fn hear(
        &mut self,
        from: (u16, MacAddress),
        sequence: u32,
        bytes: &[u8],
        now: u64,
        events: &mut impl FnMut(Event),
    ) -> Result<(), Refusal> {
        if self.phase == Phase::Gone {
            return Ok(());
        }
        let highest = self.promise.epoch.max(self.installed.epoch).saturating_add(MAX_EPOCH_AHEAD);
        let hello =
            Hello::decode(bytes).filter(|hello| hello.promise.epoch.max(hello.installed.epoch) < highest);
        let hello = hello.ok_or(Refusal::Malformed);
        let heard = hello.and_then(|hello| {
            match self.table.hear(from, sequence, &hello, &self.profile, now, self.timing.death) {
                Heard::Refused(refusal) => Err(refusal),
                heard => Ok((hello, heard)),
            }
        });
        let (node, mac) = from;
        let (hello, heard) = heard.map_err(|refusal| self.refuse(node, mac, refusal, events))?;
        match heard {
            Heard::Stale => return Ok(()),
            Heard::New => events(Event::Found(node, mac)),
            Heard::Restarted => events(Event::Restarted(node, mac)),
            Heard::Known | Heard::Refused(_) => {}
        }
        if heard != Heard::Known {
            self.say_soon(now);
        }
        self.follow(&hello, now, events).map_err(|refusal| self.refuse(node, mac, refusal, events))?;
        if self.phase != Phase::Gone {
            let life = Member { node, incarnation: hello.incarnation, mac };
            self.heed_complaint(life, hello.complaint, now);
            self.consider(life, &hello, now);
            self.count_promises(now, events);
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        node: u16,
        mac: MacAddress,
        refusal: Refusal,
        events: &mut impl FnMut(Event),
    ) -> Refusal {
        let count = &mut self.refusals[refusal as usize];
        *count += 1;
        // The first of each kind is told: a node that is refused goes on to say hello.
        if *count == 1 {
            events(Event::Refused(node, mac, refusal));
        }
        refusal
    }

    /// Installs the view that another has installed, if it is newer; or finds that it is without this node.
    fn follow(&mut self, hello: &Hello, now: u64, events: &mut impl FnMut(Event)) -> Result<(), Refusal> {
        let view = &hello.installed;
        if !view.is_some() || (view.epoch, view.origin) == (self.installed.epoch, self.installed.origin) {
            return Ok(());
        }
        if self.installed.is_some() && view.origin != self.installed.origin {
            // Only where the number of nodes is known does a majority of them decide which cluster goes on.
            if self.profile.expected.is_none() || !hello.quorate || self.quorate {
                return Err(Refusal::OtherOrigin);
            }
            self.expel(now, events);
        } else if view.epoch > self.installed.epoch {
            if !view.contains(self.me) {
                if self.installed.is_some() || self.phase == Phase::Leaving {
                    self.expel(now, events);
                }
            } else if self.installed.is_some() || view.epoch >= self.promise.epoch {
                // A node that was never a member installs nothing below its promise: the members may have closed the
                // channels of that view, and count from zero again in the promised one.
                self.install(view.clone(), now, events);
            }
        }
        Ok(())
    }

    fn install(&mut self, view: View, now: u64, events: &mut impl FnMut(Event)) {
        let is_unasked = |member: &Member| {
            !view.contains(*member) && !self.table.life(*member).is_some_and(|peer| peer.leaving)
        };
        // A node that joins does not know whether there is such a one.
        let joins = self.joins && !self.installed.is_some();
        let waits = joins || self.installed.members().iter().any(is_unasked);
        if waits {
            // Else what the former view still waits for goes on.
            self.active_at = ActiveAt::AfterMajority;
        }
        for former in self.installed.members().iter().filter(|former| !view.contains(**former)) {
            events(Event::Removed(former.node));
        }
        self.installed = view;
        self.installed_at = now;
        if self.promise.epoch <= self.installed.epoch {
            self.promised_view = View::NONE;
        }
        self.proposal = None;
        if self.installed.get(self.complaint).is_none() {
            self.complaint = NO_NODE;
        }
        events(Event::Installed(self.installed.epoch));
        self.say_soon(now);
        self.judge_quorum(now, events);
    }

    /// Ends this life: the others have gone on without it.
    fn expel(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        if self.phase == Phase::Leaving {
            self.go(now, events);
            return;
        }
        self.end_life(now);
        self.me.incarnation = self.me.incarnation.wrapping_add(1);
        self.started = now;
        self.sequence = 0;
        events(Event::Expelled(self.me.incarnation));
    }

    fn go(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        self.end_life(now);
        self.phase = Phase::Gone;
        events(Event::Left);
    }

    fn end_life(&mut self, now: u64) {
        self.active_at = ActiveAt::Time(0);
        self.installed = View::NONE;
        self.promised_view = View::NONE;
        self.proposal = None;
        self.quorate = false;
        self.complaint = NO_NODE;
        self.say_soon(now);
    }

    /// Takes note of the time: who is silent, what is to be proposed.
    pub fn tick(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        if self.phase == Phase::Gone {
            return;
        }
        for peer in self.table.iter_mut() {
            let is_silent = now.saturating_sub(peer.heard) > self.timing.suspect;
            if is_silent && !peer.suspected && self.installed.contains(peer.life) {
                events(Event::Suspected(peer.life.node));
            }
            peer.suspected = is_silent;
        }
        self.table.forget(now, self.timing.death, &self.installed);
        if self.is_hopeless() {
            self.expel(now, events);
        }
        self.judge_quorum(now, events);
        self.propose(now, events);
    }

    /// When [`Membership::tick`] or [`Membership::hello`] is due.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        if self.phase == Phase::Gone { u64::MAX } else { self.next_hello }
    }

    fn say_soon(&mut self, now: u64) {
        let soon = self.last_hello.saturating_add(self.timing.hello_gap).max(now);
        self.next_hello = self.next_hello.min(soon);
    }

    /// What to say to all, and its number, when it is time.
    pub fn hello(&mut self, now: u64) -> Option<(Hello, u32)> {
        if now < self.next_hello || self.phase == Phase::Gone {
            return None;
        }
        self.last_hello = now;
        self.next_hello = now.saturating_add(self.timing.hello);
        self.sequence = self.sequence.wrapping_add(1);
        let hello = Hello {
            profile: self.profile,
            incarnation: self.me.incarnation,
            complaint: self.complaint,
            promise: self.promise,
            installed: self.installed.clone(),
            proposed: self.proposal.as_ref().map_or(View::NONE, |proposal| proposal.view.clone()),
            leaving: self.phase == Phase::Leaving,
            ready: self.is_ready(now),
            quorate: self.quorate,
        };
        Some((hello, self.sequence))
    }

    /// Whether this life may agree to a view.
    const fn is_ready(&self, now: u64) -> bool {
        self.installed.is_some() || now.saturating_sub(self.started) >= self.timing.quiet
    }
}
