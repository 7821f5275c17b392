//! What both sides of a channel have in common: finding each other, believing an index, publishing one, sleeping.
//!
//! A side that opens stores, in this order: acknowledgement 0, its new epoch, index 0, and then the acknowledgement of
//! the peer's epoch. The peer loads in this order: epoch, acknowledgement, index. So:
//!
//! * It sees the new epoch: it starts anew.
//! * It sees the old epoch and the old acknowledgement: an index it then loads is the old one, or the new 0, which is either
//!   what it has seen already or impossible; before it calls an index impossible it looks at the epoch again, and as the
//!   index was stored after the epoch, it sees the new one.
//! * Once it acknowledged the new epoch, it believes no index before it sees its own epoch acknowledged, and the index 0
//!   was stored before that.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{ChannelError, Descriptor, HEADER_WORDS, SharedWords, Wake};

/// The words that one side writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    index: usize,
    wake: usize,
    epoch: usize,
    acknowledged: usize,
}

pub(super) const PRODUCER: Place = Place { index: 0, wake: 16, epoch: 17, acknowledged: 18 };
pub(super) const CONSUMER: Place = Place { index: 8, wake: 24, epoch: 25, acknowledged: 26 };

/// One side's private state.
#[derive(Debug)]
pub(super) struct Side<S, D> {
    words: S,
    mine: Place,
    peers: Place,
    /// Descriptors that the ring holds, a power of two.
    pub(super) capacity: u64,
    /// Descriptors that may lie in the ring now: 0 until the peer acknowledges this side, then the capacity.
    pub(super) window: u64,
    epoch: u64,
    /// The peer's epoch that this side acknowledges.
    peer_epoch: u64,
    /// Descriptors that this side is done with.
    pub(super) index: u64,
    /// How many of these the peer was told of.
    pub(super) published: u64,
    /// The peer's index as last loaded and believed.
    pub(super) seen: u64,
    descriptors: PhantomData<D>,
}

impl<S: SharedWords, D: Descriptor> Side<S, D> {
    const WORDS: usize = {
        assert!(size_of::<D>() > 0 && size_of::<D>().is_multiple_of(8), "a descriptor is whole words");
        size_of::<D>() / 8
    };

    pub(super) fn open(words: S, mine: Place, peers: Place) -> Result<Self, ChannelError> {
        let room = words.count().saturating_sub(HEADER_WORDS) / Self::WORDS;
        let capacity = 1u64 << room.checked_ilog2().ok_or(ChannelError::TooSmall)?;
        // Only an epoch that differs from the last one counts, so a peer that tampers with the word gains nothing.
        let epoch = words.load(mine.epoch, Relaxed).wrapping_add(1).max(1);
        words.store(mine.acknowledged, 0, Release);
        words.store(mine.epoch, epoch, Release);
        words.store(mine.index, 0, Release);
        let peer_epoch = words.load(peers.epoch, Acquire);
        words.store(mine.acknowledged, peer_epoch, Release);
        Ok(Self {
            words,
            mine,
            peers,
            capacity,
            window: 0,
            epoch,
            peer_epoch,
            index: 0,
            published: 0,
            seen: 0,
            descriptors: PhantomData,
        })
    }

    /// Loads the peer's index into `seen`: at least what it was, at most `most`. While the peer does not acknowledge this
    /// side, `seen` stays as it is.
    pub(super) fn look(&mut self, most: u64) -> Result<(), ChannelError> {
        self.check_epoch()?;
        if self.words.load(self.peers.acknowledged, Acquire) != self.epoch {
            return Ok(());
        }
        let index = self.words.load(self.peers.index, Acquire);
        if index < self.seen || index > most {
            self.check_epoch()?;
            return Err(ChannelError::Misbehaved);
        }
        (self.seen, self.window) = (index, self.capacity);
        Ok(())
    }

    /// Begins anew when the peer has.
    #[inline]
    pub(super) fn check_epoch(&mut self) -> Result<(), ChannelError> {
        let peer_epoch = self.words.load(self.peers.epoch, Acquire);
        if peer_epoch == self.peer_epoch { Ok(()) } else { Err(self.begin_anew(peer_epoch)) }
    }

    #[cold]
    fn begin_anew(&mut self, peer_epoch: u64) -> ChannelError {
        self.peer_epoch = peer_epoch;
        (self.window, self.index, self.published, self.seen) = (0, 0, 0, 0);
        self.words.store(self.mine.index, 0, Release);
        self.words.store(self.mine.acknowledged, peer_epoch, Release);
        ChannelError::PeerRestarted
    }

    /// Tells the peer of all descriptors that this side is done with.
    #[inline]
    pub(super) fn publish(&mut self) -> Wake {
        let before = self.published;
        if before == self.index {
            return Wake::NotNeeded;
        }
        self.words.store(self.mine.index, self.index, Release);
        self.published = self.index;
        self.words.fence();
        let wanted = self.words.load(self.peers.wake, Relaxed);
        if before < wanted && wanted <= self.index { Wake::Needed } else { Wake::NotNeeded }
    }

    /// Asks to be woken when the peer's index passes what was seen, and looks again.
    pub(super) fn ask_for_wake(&mut self, most: u64) -> Result<(), ChannelError> {
        self.words.store(self.mine.wake, self.seen + 1, Relaxed);
        self.words.fence();
        self.look(most)
    }

    /// The first word of the descriptor with this index.
    #[inline]
    fn position(&self, index: u64) -> usize {
        let slot = usize::try_from(index & (self.capacity - 1)).unwrap_or(0);
        HEADER_WORDS + slot * Self::WORDS
    }

    /// Writes the next descriptor.
    #[inline]
    pub(super) fn write(&mut self, descriptor: &D) {
        let first = self.position(self.index);
        for (i, word) in descriptor.as_bytes().as_chunks().0.iter().enumerate() {
            self.words.store(first + i, u64::from_ne_bytes(*word), Relaxed);
        }
        self.index += 1;
    }

    /// Reads the next descriptor.
    #[inline]
    pub(super) fn read(&mut self) -> D {
        let first = self.position(self.index);
        let mut descriptor = D::new_zeroed();
        for (i, word) in descriptor.as_mut_bytes().as_chunks_mut().0.iter_mut().enumerate() {
            *word = self.words.load(first + i, Relaxed).to_ne_bytes();
        }
        self.index += 1;
        descriptor
    }
}
