//! What the service asks of a network card.

use ipc::wire::{HEADER_BYTES, MacAddress};
use virtio_net::NetError;

/// A frame that came.
#[derive(Debug)]
pub struct Received<F> {
    /// Its first bytes; zero where it is shorter.
    pub header: [u8; HEADER_BYTES],
    /// Bytes of the Ethernet frame, as the card says.
    pub bytes: usize,
    /// The page frame with what follows the header.
    pub frame: F,
}

/// What could not be given to the card; the page frame is the caller's again.
#[derive(Debug)]
pub struct Rejected<F> {
    /// Why.
    pub error: NetError,
    /// The page frame, if there was one.
    pub frame: Option<F>,
}

/// A network card with [header][page frame] buffers, and the clock.
pub trait Card {
    /// A page frame; who has the value has the frame.
    type Frame;

    /// The time in TSC ticks.
    fn now(&self) -> u64;
    /// The card's Ethernet address.
    fn mac(&self) -> MacAddress;
    /// The longest Ethernet payload of the link, if the card knows.
    fn mtu(&self) -> Option<u16>;
    /// Whether the link is up.
    fn link_is_up(&self) -> bool;

    /// The next frame that came.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    fn poll_receive(&mut self) -> Result<Option<Received<Self::Frame>>, NetError>;
    /// Gives the card a page frame to receive into.
    ///
    /// # Errors
    /// [`NetError::QueueFull`].
    fn post_receive(&mut self, frame: Self::Frame) -> Result<(), Rejected<Self::Frame>>;
    /// Tells the card of posted page frames.
    fn notify_receive(&mut self);
    /// Sends a header, and behind it the first bytes of a page frame, so many.
    ///
    /// # Errors
    /// [`NetError::QueueFull`], [`NetError::PayloadLength`].
    fn send(
        &mut self,
        header: &[u8; HEADER_BYTES],
        payload: Option<(Self::Frame, u16)>,
    ) -> Result<(), Rejected<Self::Frame>>;
    /// The next frame that was sent: `Some(None)` for one that had no page frame.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    fn reclaim_sent(&mut self) -> Result<Option<Option<Self::Frame>>, NetError>;

    /// Frames that can be sent before one must be reclaimed.
    fn send_room(&self) -> usize;

    /// A page frame's number, which no other one has.
    fn number(frame: &Self::Frame) -> u32;
    /// Copies a page frame's first bytes, at most a page.
    fn read(&self, frame: &Self::Frame, bytes: &mut [u8]);
    /// Writes a page frame's first bytes, at most a page.
    fn write(&mut self, frame: &mut Self::Frame, bytes: &[u8]);
    /// Copies the first `bytes` of page frame `from` to `offset` in page frame `to`; both are multiples of 8.
    fn append(&mut self, from: &Self::Frame, to: &mut Self::Frame, offset: u16, bytes: u16);
    /// The CRC-32C of a page frame's first bytes, so many and at most a page.
    fn checksum(&self, frame: &Self::Frame, bytes: u16) -> u32;
    /// Fills a page frame with the [`word`]s of a seed.
    fn fill(&mut self, frame: &mut Self::Frame, seed: u64);
    /// Whether a page frame holds just the [`word`]s of a seed.
    fn holds(&self, frame: &Self::Frame, seed: u64) -> bool;
}

/// The 64-bit word at a place of a page of test contents: different at each place and for each seed.
#[must_use]
pub const fn word(seed: u64, place: u64) -> u64 {
    // Odd, so that no two sums give the same product.
    const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
    seed.wrapping_mul(SCATTER).wrapping_add(place).wrapping_mul(SCATTER)
}
