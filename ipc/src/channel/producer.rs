//! The side of a channel that writes descriptors.

use super::side::{CONSUMER, PRODUCER, Side};
use super::{ChannelError, Descriptor, SharedWords, Sleep, Wake};

/// The producer of a channel.
#[derive(Debug)]
pub struct Producer<S, D>(Side<S, D>);

impl<S: SharedWords, D: Descriptor> Producer<S, D> {
    /// Opens, or opens anew, the channel that lies in `words`. Raise the notification afterwards.
    ///
    /// # Errors
    /// [`ChannelError::TooSmall`].
    pub fn open(words: S) -> Result<Self, ChannelError> {
        Side::open(words, PRODUCER, CONSUMER).map(Self)
    }

    /// Descriptors that the channel holds.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Writes one descriptor and tells the consumer.
    ///
    /// # Errors
    /// [`ChannelError::Full`], [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    #[inline]
    pub fn push(&mut self, descriptor: &D) -> Result<Wake, ChannelError> {
        self.stage(descriptor)?;
        self.publish()
    }

    /// Writes as many of the descriptors as there is room for and tells the consumer once; how many these were.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    pub fn push_batch(&mut self, descriptors: &[D]) -> Result<(usize, Wake), ChannelError> {
        self.make_room(descriptors.len() as u64)?;
        let written = usize::try_from(self.room()).unwrap_or(usize::MAX).min(descriptors.len());
        for descriptor in descriptors.iter().take(written) {
            self.0.write(descriptor);
        }
        Ok((written, self.publish()?))
    }

    /// Writes one descriptor, of which the consumer learns at the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`ChannelError::Full`], [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    #[inline]
    pub fn stage(&mut self, descriptor: &D) -> Result<(), ChannelError> {
        self.make_room(1)?;
        if self.room() == 0 {
            return Err(ChannelError::Full);
        }
        self.0.write(descriptor);
        Ok(())
    }

    /// Tells the consumer of all staged descriptors.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`]: they are lost.
    #[inline]
    pub fn publish(&mut self) -> Result<Wake, ChannelError> {
        let wake = self.0.publish();
        // Here, since a producer that never finds the ring full would otherwise never learn of a restart.
        self.0.check_epoch()?;
        Ok(wake)
    }

    /// Makes ready to wait for room. [`Sleep::NotNow`] when there is some, or when staged descriptors are not
    /// published.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    pub fn prepare_to_sleep(&mut self) -> Result<Sleep, ChannelError> {
        if self.room() == 0 && self.0.index == self.0.published {
            self.0.ask_for_wake(self.0.published)?;
            if self.room() == 0 {
                return Ok(Sleep::Ready);
            }
        }
        Ok(Sleep::NotNow)
    }

    /// Free places as far as is known.
    #[inline]
    const fn room(&self) -> u64 {
        self.0.window.saturating_sub(self.0.index - self.0.seen)
    }

    /// Looks at the consumer's index when fewer than `wanted` places are free as far as is known.
    #[inline]
    fn make_room(&mut self, wanted: u64) -> Result<(), ChannelError> {
        if self.room() < wanted { self.0.look(self.0.published) } else { Ok(()) }
    }
}
