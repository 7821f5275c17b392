//! Proposals: who makes them, what they hold, and who agrees.

use ipc::wire::NO_NODE;

use super::{Event, Hello, Member, Membership, Phase, Promise, View};

/// A view that this node proposes.
#[derive(Clone, Debug)]
pub(super) struct Proposal {
    pub view: View,
    /// After that it is given up.
    expires: u64,
}

impl Membership {
    /// Whether a peer is heard of and can be reached.
    fn is_alive(&self, life: Member, now: u64) -> bool {
        self.table.life(life).is_some_and(|peer| {
            now.saturating_sub(peer.heard) <= self.timing.death && now >= peer.shunned_until && !peer.leaving
        })
    }

    /// Leaves a node out of proposals for a while.
    pub(super) fn shun(&mut self, node: u16, now: u64) {
        let until = now.saturating_add(self.timing.death);
        if let Some(peer) = self.table.get_mut(node) {
            peer.shunned_until = peer.shunned_until.max(until);
        }
    }

    /// Leaves out who cannot be reached; or, when that is this node, who cannot reach it.
    pub(super) fn heed_complaint(&mut self, from: Member, complaint: u16, now: u64) {
        if complaint != NO_NODE && self.installed.contains(from) && self.installed.get(complaint).is_some() {
            self.shun(if complaint == self.me.node { from.node } else { complaint }, now);
        }
    }

    /// Proposes a view, if it is this node's turn and there is something to change.
    pub(super) fn propose(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        if self.phase != Phase::Taking || !self.is_ready(now) {
            return;
        }
        self.review(now);
        if self.proposal.is_some() || now < self.next_proposal {
            return;
        }
        let Some(view) = self.wanted(now) else { return };
        self.promise = Promise { epoch: view.epoch, by: self.me.node };
        self.promised_view = view.clone();
        self.joins = false;
        self.proposal = Some(Proposal { view, expires: now.saturating_add(self.timing.proposal) });
        self.say_soon(now);
        self.count_promises(now, events);
    }

    /// Gives the proposal up when it cannot succeed any more.
    fn review(&mut self, now: u64) {
        let Some(Proposal { view, expires }) = &self.proposal else { return };
        let is_outbid = self.table.highest_epoch() > view.epoch || self.promise.epoch > view.epoch;
        let is_dead = view.members().iter().any(|&life| life != self.me && !self.is_alive(life, now));
        let is_late = now >= *expires;
        if !is_outbid && !is_dead && !is_late {
            return;
        }
        let epoch = view.epoch;
        let silent = view.members().iter().map(|member| member.node).filter(|&node| {
            self.table.get(node).is_some_and(|peer| peer.promise != Promise { epoch, by: self.me.node })
        });
        if is_late && !is_outbid {
            // Who hears this node answers. Without those who do not, the next one can succeed.
            for node in silent.collect::<heapless::Vec<u16, { super::MAX_MEMBERS }>>() {
                self.shun(node, now);
            }
        }
        self.proposal = None;
        // Two who outbid each other must not do so in step: the lower one comes first.
        let rank = self.table.iter().filter(|peer| peer.life.node < self.me.node).count() as u64;
        self.next_proposal = now.saturating_add(self.timing.hello.saturating_mul(rank));
    }

    /// The view that this node should propose now.
    fn wanted(&self, now: u64) -> Option<View> {
        let alive = |life: Member| life == self.me || self.is_alive(life, now);
        let joining = self.table.iter().filter(|peer| {
            let may_join = peer.ready && peer.installed == 0 && !self.installed.contains(peer.life);
            may_join && alive(peer.life)
        });
        let joining = joining.map(|peer| peer.life);
        let epoch =
            self.promise.epoch.max(self.installed.epoch).max(self.table.highest_epoch()).checked_add(1)?;
        let view = if self.installed.is_some() {
            let staying = || self.installed.members().iter().copied().filter(|&life| alive(life));
            // The lowest member that is there proposes, if it acts in this view at all.
            if staying().find(|&life| self.follows(life, now)) != Some(self.me) {
                return None;
            }
            View::new(epoch, self.installed.origin, staying().chain(joining))?
        } else {
            // A cluster that can act takes this node in; one that cannot has lost too many to go on.
            let is_formed = self.table.iter().any(|peer| {
                peer.installed != 0
                    && now.saturating_sub(peer.heard) <= self.timing.death
                    && (peer.quorate || self.profile.expected.is_none())
            });
            let origin = u32::from(self.me.node) << 16 | u32::from(self.me.incarnation);
            let view = View::new(epoch, origin, joining.chain([self.me]))?;
            let is_whole = Some(view.members().len()) == self.profile.expected.map(usize::from);
            let waited = now.saturating_sub(self.started) >= self.timing.form;
            if is_formed || view.members().first() != Some(&self.me) || !(is_whole || waited) {
                return None;
            }
            view
        };
        // A view that a member does not follow is proposed anew.
        let is_followed = self.installed.members().iter().all(|&life| self.follows(life, now));
        let is_news = view.members() != self.installed.members() || !is_followed;
        (is_news && self.is_acceptable(&view)).then_some(view)
    }

    /// Whether a member has installed this view, or has not had the time to. Who has not may have promised another one.
    fn follows(&self, life: Member, now: u64) -> bool {
        life == self.me
            || now.saturating_sub(self.installed_at) <= self.timing.proposal
            || self.table.life(life).is_none_or(|peer| peer.installed >= self.installed.epoch)
    }

    /// Whether enough members of what is installed are in a view, and enough of all nodes.
    fn is_acceptable(&self, view: &View) -> bool {
        let has = |life: Member| view.contains(life);
        let continues = !self.installed.is_some() || self.installed.is_majority(has);
        match self.profile.expected {
            Some(expected) => continues && view.members().len() * 2 > usize::from(expected),
            // Somebody may have installed what this node has only promised: that must go on as well.
            None if !self.installed.is_some() => true,
            None => continues && (!self.promised_view.is_some() || self.promised_view.is_majority(has)),
        }
    }

    /// Promises the view that a hello proposes, if it may be.
    pub(super) fn consider(&mut self, from: Member, hello: &Hello, now: u64) {
        let view = &hello.proposed;
        let same_base = !self.installed.is_some()
            || (hello.installed.epoch, hello.installed.origin)
                == (self.installed.epoch, self.installed.origin);
        let may = view.is_some()
            && hello.promise.by == from.node
            && view.epoch > self.promise.epoch
            && view.contains(self.me)
            && view.contains(from)
            && same_base
            && self.phase == Phase::Taking
            && self.is_ready(now)
            && self.is_acceptable(view);
        if may {
            self.promise = hello.promise;
            self.promised_view = view.clone();
            self.joins = hello.installed.is_some();
            self.proposal = None;
            self.say_soon(now);
        }
    }

    /// Installs the view that this node proposes, when all its members have promised it.
    pub(super) fn count_promises(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        let Some(Proposal { view, expires }) = &self.proposal else { return };
        let wanted = Promise { epoch: view.epoch, by: self.me.node };
        let has_promised = |life: &Member| {
            *life == self.me || self.table.life(*life).is_some_and(|peer| peer.promise == wanted)
        };
        if now < *expires && self.promise == wanted && view.members().iter().all(has_promised) {
            let view = view.clone();
            self.install(view, now, events);
        }
    }
}
