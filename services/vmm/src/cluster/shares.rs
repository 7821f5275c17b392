//! The shares of a guest: which vCPU is in which, and what is seen of their nodes.

use ipc::guest::{MAX_NODES, Share};

/// Which of the shares a vCPU of the guest is in, and its number there.
#[must_use]
pub fn vcpu_at(shares: &[Share], vcpu: usize) -> Option<(usize, usize)> {
    let mut local = vcpu;
    for (place, share) in shares.iter().enumerate() {
        match local.checked_sub(share.vcpus.into()) {
            Some(rest) => local = rest,
            None => return Some((place, local)),
        }
    }
    None
}

/// The number among all of the guest's of the first vCPU of a share.
#[must_use]
pub fn first_vcpu(shares: &[Share], place: usize) -> usize {
    shares.iter().take(place).map(|share| usize::from(share.vcpus)).sum()
}

/// One of a node's lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Life {
    /// Which.
    pub incarnation: u16,
    /// Milliseconds since it was last heard of.
    pub silent_ms: u32,
}

/// What a node sees of the cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sight {
    /// For each share its node's life, if it is a member.
    pub lives: heapless::Vec<Option<Life>, MAX_NODES>,
    /// Whether this node may act.
    pub may_act: bool,
    /// Whether it knows the cluster's time.
    pub knows_time: bool,
}

impl Sight {
    pub(super) fn life(&self, place: usize) -> Option<Life> {
        self.lives.get(place).copied().flatten()
    }
}

/// A set of shares, by their places.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Places(u32);

const _: () = assert!(MAX_NODES <= u32::BITS as usize);

impl Places {
    pub(super) const fn one(place: usize) -> Self {
        Self(if place < MAX_NODES { 1 << place } else { 0 })
    }

    pub(super) const fn add(&mut self, place: usize) {
        self.0 |= Self::one(place).0;
    }

    /// Whether a share is in it.
    #[must_use]
    pub const fn has(self, place: usize) -> bool {
        self.0 & Self::one(place).0 != 0
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_NODES).filter(move |&place| self.has(place))
    }
}
