//! Whether a node may act in its view, and whether the view can have a successor at all.

use super::{Event, Member, Membership};

/// From when on a view may be acted in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ActiveAt {
    /// From this time on.
    Time(u64),
    /// When a majority has installed it, and nobody who was left out without asking can remember one of the former
    /// view: that takes the time of suspicion, a hello because the clock is looked at then, and one for the way.
    AfterMajority,
}

impl Membership {
    /// Whether the view can have no successor, because those of its lives that are known to have ended are too many.
    /// Those that are only silent may have gone on.
    pub(super) fn is_hopeless(&self) -> bool {
        let has_ended = |member: Member| {
            self.table.get(member.node).is_some_and(|peer| {
                peer.life.mac == member.mac && peer.life.incarnation != member.incarnation
            })
        };
        self.installed.is_some() && !self.installed.is_majority(|member| !has_ended(member))
    }

    /// Finds out whether this node may act in its view.
    pub(super) fn judge_quorum(&mut self, now: u64, events: &mut impl FnMut(Event)) {
        let acts_with = |member: Member| {
            member == self.me
                || self.table.life(member).is_some_and(|peer| {
                    peer.installed == self.installed.epoch
                        && now.saturating_sub(peer.heard) <= self.timing.suspect
                })
        };
        let count = self.installed.members().iter().filter(|member| acts_with(**member)).count();
        let enough = match self.profile.expected {
            Some(expected) => count * 2 > usize::from(expected),
            None => self.installed.is_majority(acts_with),
        };
        if enough && self.active_at == ActiveAt::AfterMajority {
            let hellos = self.timing.hello.saturating_mul(2);
            let memory = self.timing.suspect.saturating_add(hellos);
            self.active_at = ActiveAt::Time(now.saturating_add(memory));
        }
        let active = matches!(self.active_at, ActiveAt::Time(time) if now >= time);
        let quorate = self.installed.is_some() && enough && active;
        if quorate != self.quorate {
            self.quorate = quorate;
            events(if quorate { Event::Quorum } else { Event::QuorumLost });
            self.say_soon(now);
        }
    }
}
