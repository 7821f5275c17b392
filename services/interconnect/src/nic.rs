//! The node's network card: found among the capabilities, driven by `virtio-net`, with page frames of a shared pool.

mod hal;

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use interconnect::card::{Card, Received, Rejected, word};
use ipc::abi::PAGE_SIZE;
use ipc::wire::{HEADER_BYTES, MacAddress};
use pci::{Address, ConfigAccess};
use rt::capability::{Interrupt, PciFunction};
use rt::start::{Missing, Start};
use rt::syscall::Width;
use virtio_net::structures::{PciError, enable, find_structures};
use virtio_net::{Frame, InterruptEntries, ModernPci, NetError, TransportError, VirtioNet, device};

use hal::{Bar, Rings};

/// What the manifest calls the card.
const NAME: &str = "nic";
/// What the manifest calls the memory of the card's rings, which no other service shares.
const RINGS: &str = "rings";
/// What the manifest calls the page frames that services share.
const POOL: &str = "frames";
/// The card's MSI-X entry for changes of its configuration.
const CONFIGURATION_ENTRY: u16 = 0;
/// The card's MSI-X entry for frames that came.
const RECEIVE_ENTRY: u16 = 1;
/// Page frames of the pool, from its start, that are this service's: enough to keep the receive queue full while as
/// many frames again are on their way out.
const FRAMES: u32 = 192;
/// 64-bit words in a page frame.
const WORDS: usize = PAGE_SIZE / 8;

/// The card, and the contents of its page frames as shared words.
pub struct Nic {
    net: VirtioNet<Rings, ModernPci<Bar>>,
    pool: &'static [AtomicU64],
}

/// The card, its page frames, and the notification bits of its interrupts.
pub struct Opened {
    /// The card.
    pub nic: Nic,
    /// The page frames, to be taken once.
    pub frames: hal::Frames,
    /// The card's configuration changed.
    pub configuration: Interrupt,
    /// Frames came.
    pub receive: Interrupt,
}

/// Why there is a card that is not driven.
pub enum OpenError {
    /// The manifest gives the card but not what it needs.
    Missing(Missing),
    /// The pool holds fewer page frames than this service works with.
    SmallPool,
    /// It is no card that the driver knows.
    Pci(PciError),
    /// Its registers are not where they must be.
    Transport(TransportError),
    /// It does not start.
    Net(NetError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::SmallPool => write!(f, "the pool '{POOL}' has fewer than {FRAMES} page frames"),
            Self::Pci(error) => error.fmt(f),
            Self::Transport(error) => error.fmt(f),
            Self::Net(error) => error.fmt(f),
        }
    }
}

/// The card's configuration space, through the kernel.
struct Config(PciFunction);

impl ConfigAccess for Config {
    fn read(&mut self, _: Address, offset: u16, width: pci::Width) -> u32 {
        // What cannot be read looks like a function that is not there.
        self.0.read(offset, width_of(width)).unwrap_or(u32::MAX)
    }

    fn write(&mut self, _: Address, offset: u16, width: pci::Width, value: u32) {
        // A kernel that refuses leaves the card deaf, which its start then finds.
        let _ = self.0.write(offset, width_of(width), value);
    }
}

const fn width_of(width: pci::Width) -> Width {
    match width {
        pci::Width::Byte => Width::Byte,
        pci::Width::Word => Width::Word,
        pci::Width::Dword => Width::Dword,
    }
}

/// Starts the card; `None` when the node has none.
///
/// # Errors
/// [`OpenError`].
pub fn open(start: &Start<'_>) -> Result<Option<Opened>, OpenError> {
    let Ok(function) = start.pci_function(NAME) else { return Ok(None) };
    let configuration = start.interrupt(NAME, CONFIGURATION_ENTRY).map_err(OpenError::Missing)?;
    let receive = start.interrupt(NAME, RECEIVE_ENTRY).map_err(OpenError::Missing)?;
    let rings = start.dma_region(RINGS).map_err(OpenError::Missing)?;
    let pool = start.dma_region(POOL).map_err(OpenError::Missing)?;
    if pool.region.bytes < u64::from(FRAMES) * PAGE_SIZE as u64 {
        return Err(OpenError::SmallPool);
    }
    let mut config = Config(function);
    let address = Address::from_id(function.address);
    let structures = find_structures(&mut config, address).map_err(OpenError::Pci)?;
    enable(&mut config, address);
    let bar = |number: u8| start.device_memory(NAME, u16::from(number)).ok().map(Bar::new);
    let mut transport = ModernPci::new(&structures, bar).map_err(OpenError::Transport)?;
    // Before its rings are zeroed and laid anew: a former life of this service may have left the card running.
    device::reset(&mut transport).map_err(OpenError::Net)?;
    hal::give_rings(&rings);
    let entries = InterruptEntries { configuration: Some(CONFIGURATION_ENTRY), receive: Some(RECEIVE_ENTRY) };
    let net = VirtioNet::new(transport, entries).map_err(OpenError::Net)?;
    let nic = Nic { net, pool: pool.region.words() };
    Ok(Some(Opened { nic, frames: hal::Frames::of(&pool, FRAMES), configuration, receive }))
}

impl Nic {
    /// Asks for an interrupt when a frame comes; `true` when none has come meanwhile.
    pub fn enable_interrupts(&mut self) -> bool {
        self.net.enable_receive_interrupts()
    }

    /// Asks for no more interrupts.
    pub fn disable_interrupts(&mut self) {
        self.net.disable_receive_interrupts();
    }

    /// Whether the card is well.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    pub fn check_health(&self) -> Result<(), NetError> {
        self.net.check_health()
    }

    /// The words of a page frame.
    fn words(&self, frame: &Frame) -> &[AtomicU64] {
        let first = frame.number() as usize * WORDS;
        // Frames are made for the pool's pages alone.
        self.pool.get(first..).and_then(|words| words.get(..WORDS)).unwrap_or_default()
    }
}

impl Card for Nic {
    type Frame = Frame;

    fn now(&self) -> u64 {
        rt::now()
    }

    fn mac(&self) -> MacAddress {
        MacAddress(self.net.mac())
    }

    fn mtu(&self) -> Option<u16> {
        self.net.mtu()
    }

    fn link_is_up(&self) -> bool {
        self.net.link_is_up()
    }

    fn poll_receive(&mut self) -> Result<Option<Received<Frame>>, NetError> {
        let received = self.net.poll_receive()?;
        Ok(received.map(|virtio_net::Received { header, bytes, frame }| Received { header, bytes, frame }))
    }

    fn post_receive(&mut self, frame: Frame) -> Result<(), Rejected<Frame>> {
        self.net.post_receive(frame).map_err(rejected)
    }

    fn notify_receive(&mut self) {
        self.net.notify_receive();
    }

    fn send(
        &mut self,
        header: &[u8; HEADER_BYTES],
        payload: Option<(Frame, u16)>,
    ) -> Result<(), Rejected<Frame>> {
        self.net.send(header, payload).map_err(rejected)
    }

    fn reclaim_sent(&mut self) -> Result<Option<Option<Frame>>, NetError> {
        self.net.reclaim_sent()
    }

    fn send_room(&self) -> usize {
        self.net.send_room()
    }

    fn number(frame: &Frame) -> u32 {
        frame.number()
    }

    fn read(&self, frame: &Frame, bytes: &mut [u8]) {
        for (bytes, shared) in bytes.chunks_mut(8).zip(self.words(frame)) {
            let word = shared.load(Ordering::Relaxed).to_le_bytes();
            bytes.copy_from_slice(word.get(..bytes.len()).unwrap_or_default());
        }
    }

    fn write(&mut self, frame: &mut Frame, bytes: &[u8]) {
        for (bytes, shared) in bytes.chunks(8).zip(self.words(frame)) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            shared.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn append(&mut self, from: &Frame, to: &mut Frame, offset: u16, bytes: u16) {
        let target = self.words(to).get(usize::from(offset) / 8..).unwrap_or_default();
        for (from, to) in self.words(from).iter().zip(target).take(usize::from(bytes) / 8) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn checksum(&self, frame: &Frame, bytes: u16) -> u32 {
        hal::crc32c(self.words(frame), usize::from(bytes))
    }

    fn fill(&mut self, frame: &mut Frame, seed: u64) {
        for (place, shared) in (0..).zip(self.words(frame)) {
            shared.store(word(seed, place), Ordering::Relaxed);
        }
    }

    fn holds(&self, frame: &Frame, seed: u64) -> bool {
        let words = self.words(frame);
        let as_written =
            |(place, shared): (u64, &AtomicU64)| shared.load(Ordering::Relaxed) == word(seed, place);
        words.len() == WORDS && (0..).zip(words).all(as_written)
    }
}

fn rejected(rejected: virtio_net::Rejected) -> Rejected<Frame> {
    Rejected { error: rejected.error, frame: rejected.frame }
}
