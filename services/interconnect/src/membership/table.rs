//! The other nodes, as far as they were heard of: which lives they have, and what each said last.

use core::fmt;

use heapless::Vec;
use ipc::wire::MacAddress;

use super::hello::{Hello, Profile, Promise};
use super::view::{MAX_MEMBERS, Member, View};
use crate::serial;

/// Why a node cannot be a member beside this one. It is counted, and told of once.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// Its hello is none.
    Malformed,
    /// It runs another image.
    Image,
    /// Its processor offers other features.
    Features,
    /// It is configured for another number of nodes.
    Expected,
    /// Another card, heard of lately, has its number.
    Duplicate,
    /// It is a member of a cluster that was formed apart from this one.
    OtherOrigin,
    /// The table of nodes is full.
    NoRoom,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "its hello is none",
            Self::Image => "it runs another image",
            Self::Features => "its processor offers other features",
            Self::Expected => "it is configured for another number of nodes",
            Self::Duplicate => "another card has its number",
            Self::OtherOrigin => "it is a member of another cluster",
            Self::NoRoom => "there are too many nodes",
        })
    }
}

/// The number of [`Refusal`]s.
pub const REFUSALS: usize = 7;

/// Another node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub life: Member,
    /// Its life before this one.
    former: Option<u16>,
    /// When it was last heard of.
    pub heard: u64,
    sequence: u32,
    pub promise: Promise,
    pub installed: u32,
    pub leaving: bool,
    pub ready: bool,
    pub quorate: bool,
    /// Whether its silence was told of.
    pub suspected: bool,
    /// Until when it is no candidate: it cannot be reached, or does not answer proposals.
    pub shunned_until: u64,
}

/// What a hello meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    Known,
    New,
    Restarted,
    /// An earlier one that came late, or again.
    Stale,
    Refused(Refusal),
}

/// The table of peers.
#[derive(Debug, Default)]
pub(super) struct Table {
    peers: Vec<Peer, MAX_MEMBERS>,
}

impl Table {
    pub const fn new() -> Self {
        Self { peers: Vec::new() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut()
    }

    pub fn get(&self, node: u16) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.life.node == node)
    }

    pub fn get_mut(&mut self, node: u16) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.life.node == node)
    }

    /// The peer that is this very life.
    pub fn life(&self, life: Member) -> Option<&Peer> {
        self.get(life.node).filter(|peer| peer.life == life)
    }

    /// Takes a hello with this sequence number of a node with these properties. A node that has been silent for
    /// `patience` has no claim to its number any more.
    pub fn hear(
        &mut self,
        (node, mac): (u16, MacAddress),
        sequence: u32,
        hello: &Hello,
        profile: &Profile,
        now: u64,
        patience: u64,
    ) -> Heard {
        let life = Member { node, incarnation: hello.incarnation, mac };
        let mut peer = Peer {
            life,
            former: None,
            heard: now,
            sequence,
            promise: hello.promise,
            installed: hello.installed.epoch,
            leaving: hello.leaving,
            ready: hello.ready,
            quorate: hello.quorate,
            suspected: false,
            shunned_until: 0,
        };
        if let Some(refusal) = differs(profile, &hello.profile) {
            return Heard::Refused(refusal);
        }
        let Some(known) = self.get_mut(node) else {
            return if self.peers.push(peer).is_ok() { Heard::New } else { Heard::Refused(Refusal::NoRoom) };
        };
        let is_alive = now.saturating_sub(known.heard) <= patience;
        if known.life.mac != mac && is_alive {
            return Heard::Refused(Refusal::Duplicate);
        }
        if known.life == life {
            // One that comes back after a long silence may have been slandered by a forged number.
            if is_alive && serial::distance(known.sequence, sequence).is_none_or(|ahead| ahead == 0) {
                return Heard::Stale;
            }
            peer.former = known.former;
            (peer.shunned_until, peer.suspected) = (known.shunned_until, known.suspected);
            *known = peer;
            return Heard::Known;
        }
        if is_alive && known.former == Some(hello.incarnation) {
            return Heard::Stale;
        }
        peer.former = Some(known.life.incarnation);
        *known = peer;
        Heard::Restarted
    }

    /// Forgets nodes that are silent for long and no members.
    pub fn forget(&mut self, now: u64, patience: u64, installed: &View) {
        self.peers.retain(|peer| {
            now.saturating_sub(peer.heard) <= patience || installed.get(peer.life.node).is_some()
        });
    }

    /// The highest epoch that any peer has spoken of.
    pub fn highest_epoch(&self) -> u32 {
        self.peers.iter().map(|peer| peer.promise.epoch.max(peer.installed)).max().unwrap_or(0)
    }
}

fn differs(ours: &Profile, theirs: &Profile) -> Option<Refusal> {
    if ours.image != theirs.image {
        Some(Refusal::Image)
    } else if ours.features != theirs.features {
        Some(Refusal::Features)
    } else if ours.expected != theirs.expected {
        Some(Refusal::Expected)
    } else {
        None
    }
}
