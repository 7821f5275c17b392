//! The side of a channel that reads descriptors.

use super::side::{CONSUMER, PRODUCER, Side};
use super::{ChannelError, Descriptor, SharedWords, Sleep, Wake};

/// The consumer of a channel.
#[derive(Debug)]
pub struct Consumer<S, D>(Side<S, D>);

impl<S: SharedWords, D: Descriptor> Consumer<S, D> {
    /// Opens, or opens anew, the channel that lies in `words`. Raise the notification afterwards.
    ///
    /// # Errors
    /// [`ChannelError::TooSmall`].
    pub fn open(words: S) -> Result<Self, ChannelError> {
        Side::open(words, CONSUMER, PRODUCER).map(Self)
    }

    /// Descriptors that the channel holds.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Reads the next descriptor, if there is one, and gives its place back to the producer.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    #[inline]
    pub fn pop(&mut self) -> Result<Option<(D, Wake)>, ChannelError> {
        Ok(self.take()?.map(|descriptor| (descriptor, self.release())))
    }

    /// Reads as many descriptors as there are and `out` holds, and gives their places back at once; how many these
    /// were.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    pub fn pop_batch(&mut self, out: &mut [D]) -> Result<(usize, Wake), ChannelError> {
        self.find(out.len() as u64)?;
        let there = usize::try_from(self.there()).unwrap_or(usize::MAX).min(out.len());
        for place in out.iter_mut().take(there) {
            *place = self.0.read();
        }
        Ok((there, self.release()))
    }

    /// Reads the next descriptor, if there is one; its place goes back to the producer at the next
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    #[inline]
    pub fn take(&mut self) -> Result<Option<D>, ChannelError> {
        self.find(1)?;
        Ok(if self.there() == 0 { None } else { Some(self.0.read()) })
    }

    /// Gives the places of all taken descriptors back to the producer.
    #[inline]
    pub fn release(&mut self) -> Wake {
        self.0.publish()
    }

    /// Makes ready to wait for descriptors. [`Sleep::NotNow`] when there are some, or when the places of taken ones
    /// are not given back.
    ///
    /// # Errors
    /// [`ChannelError::PeerRestarted`], [`ChannelError::Misbehaved`].
    pub fn prepare_to_sleep(&mut self) -> Result<Sleep, ChannelError> {
        if self.there() == 0 && self.0.index == self.0.published {
            self.0.ask_for_wake(self.most())?;
            if self.there() == 0 {
                return Ok(Sleep::Ready);
            }
        }
        Ok(Sleep::NotNow)
    }

    /// Descriptors that wait, as far as is known.
    #[inline]
    const fn there(&self) -> u64 {
        self.0.seen - self.0.index
    }

    /// The largest index that the producer can have.
    #[inline]
    const fn most(&self) -> u64 {
        self.0.published + self.0.capacity
    }

    /// Looks at the producer's index when fewer than `wanted` descriptors wait as far as is known.
    #[inline]
    fn find(&mut self, wanted: u64) -> Result<(), ChannelError> {
        if self.there() < wanted { self.0.look(self.most()) } else { Ok(()) }
    }
}
