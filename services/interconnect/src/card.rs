//! What the service asks of a network card.

use ipc::wire::{HEADER_BYTES, MacAddress};
use virtio_net::{NetError, Slot};

/// A frame that came.
#[derive(Debug)]
pub struct Received {
    /// Its first bytes; zero where it is shorter.
    pub header: [u8; HEADER_BYTES],
    /// Bytes of the Ethernet frame, as the card says.
    pub bytes: usize,
    /// The page frame with what follows the header.
    pub frame: u32,
}

/// Bytes of a page frame: so many from an offset on. Both are multiples of 8 where the bytes are a message's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// The page frame.
    pub frame: u32,
    /// Where the bytes begin in it.
    pub offset: u16,
    /// How many.
    pub bytes: u16,
}

/// A network card with [header][page frame] buffers, the page frames by their numbers, and the clock. It knows nothing of
/// whose a page frame is; of numbers that are none it reads and writes nothing.
pub trait Card {
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
    fn poll_receive(&mut self) -> Result<Option<Received>, NetError>;
    /// Gives the card a page frame to receive into.
    ///
    /// # Errors
    /// [`NetError::QueueFull`].
    fn post_receive(&mut self, frame: u32) -> Result<(), NetError>;
    /// Tells the card of posted page frames.
    fn notify_receive(&mut self);
    /// Sends a header, and behind it a part of a page frame, which the card reads until [`Card::reclaim_sent`] returns
    /// the same slot. It may read one page frame for several frames at a time.
    ///
    /// # Errors
    /// [`NetError::QueueFull`], [`NetError::Payload`].
    fn send(&mut self, header: &[u8; HEADER_BYTES], part: Option<Part>) -> Result<Slot, NetError>;
    /// The next frame that was sent.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    fn reclaim_sent(&mut self) -> Result<Option<Slot>, NetError>;

    /// Frames that can be sent before one must be reclaimed.
    fn send_room(&self) -> usize;

    /// Copies a page frame's first bytes, at most a page.
    fn read(&self, frame: u32, bytes: &mut [u8]);
    /// Writes a page frame's first bytes, at most a page.
    fn write(&mut self, frame: u32, bytes: &[u8]);
    /// Copies the first `bytes` of page frame `from` to `offset` in page frame `to`; both are multiples of 8.
    fn append(&mut self, from: u32, to: u32, offset: u16, bytes: u16);
    /// The CRC-32C of a part of a page frame whose offset is a multiple of 8.
    fn checksum(&self, part: Part) -> u32;
    /// Fills a page frame with the [`word`]s of a seed.
    fn fill(&mut self, frame: u32, seed: u64);
    /// Whether a page frame holds just the [`word`]s of a seed.
    fn holds(&self, frame: u32, seed: u64) -> bool;
}

/// The 64-bit word at a place of a page of test contents: different at each place and for each seed.
#[must_use]
pub const fn word(seed: u64, place: u64) -> u64 {
    // Odd, so that no two sums give the same product.
    const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
    seed.wrapping_mul(SCATTER).wrapping_add(place).wrapping_mul(SCATTER)
}
