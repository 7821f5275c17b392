//! The node's network card: found among the capabilities, driven by `virtio-net`, with page frames of the guest's pool or of
//! its own.

mod hal;

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use interconnect::card::{Card, Part, Received, word};
use interconnect::station::{self, Frames};
use ipc::guest::CARRIER_FRAMES;
use ipc::image::GUEST_FRAMES;
use ipc::wire::{HEADER_BYTES, MacAddress};
use pci::{Address, ConfigAccess};
use rt::capability::{Guest, Interrupt, PciFunction};
use rt::start::{Missing, Start};
use rt::syscall::Width;
use virtio_net::structures::{PciError, enable, find_structures};
use virtio_net::{InterruptEntries, ModernPci, NetError, Slot, TransportError, VirtioNet, device};

use hal::{Bar, Pool, Rings, WORDS};

/// What the manifest calls the card.
const NAME: &str = "nic";
/// What the manifest calls the memory of the card's rings, which no other service shares.
const RINGS: &str = "rings";
/// What the manifest calls the memory that outlives a restart, for the list of the guest's frames that the service has.
const KEPT: &str = "frames-state";
/// What the manifest calls the page frames of a node whose guest spans no others.
const POOL: &str = "frames";
/// The card's MSI-X entry for changes of its configuration.
const CONFIGURATION_ENTRY: u16 = 0;
/// The card's MSI-X entry for frames that came.
const RECEIVE_ENTRY: u16 = 1;
/// Page frames of that pool that this service works with: enough to keep the receive queue full while half as many frames
/// again are on their way out.
const FRAMES: u32 = 192;

/// The card, and the contents of its page frames as shared words.
pub struct Nic {
    net: VirtioNet<Rings, ModernPci<Bar>>,
    pool: Pool,
}

/// The card, its page frames, and the notification bits of its interrupts.
pub struct Opened {
    /// The card.
    pub nic: Nic,
    /// Its page frames.
    pub pool: station::Pool,
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
    SmallPool(&'static str, u32),
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
            Self::SmallPool(name, least) => write!(f, "the pool '{name}' has fewer than {least} page frames"),
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
    let (pool, lot) = pool(start)?;
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
    Ok(Some(Opened { nic: Nic { net, pool }, pool: lot, configuration, receive }))
}

/// The page frames: those of the guest's pool when it spans nodes, or else the first ones of a pool of our own.
fn pool(start: &Start<'_>) -> Result<(Pool, station::Pool), OpenError> {
    if spanning(start).is_some() {
        let pool = Pool::of(start.dma_pieces(GUEST_FRAMES));
        if let Some(frames) = carried(start, pool.frames())? {
            return Ok((pool, station::Pool { frames, is_guests: true }));
        }
    }
    let pool = Pool::of(start.dma_pieces(POOL));
    let frames = Some(pool.frames()).filter(|&frames| frames >= FRAMES);
    let frames = frames.ok_or(OpenError::SmallPool(POOL, FRAMES))?;
    Ok((pool, station::Pool { frames: Frames::new(frames, 0..FRAMES, &[]), is_guests: false }))
}

/// The service's frames of the guest's pool, which has so many: the last ones at the node's boot, and those that its last life
/// had. `None` when these are not known: what it received into others would ruin the guest's memory.
fn carried(start: &Start<'_>, pool: u32) -> Result<Option<Frames>, OpenError> {
    let kept = start.region(KEPT).ok().filter(|region| region.kept && region.writable);
    let kept = kept.map_or_else(Default::default, |region| region.words());
    if start.generation() > 0 {
        return Ok(Frames::recall(pool, kept));
    }
    let first = pool.checked_sub(CARRIER_FRAMES);
    let first = first.ok_or(OpenError::SmallPool(GUEST_FRAMES, CARRIER_FRAMES))?;
    Ok(Some(Frames::new(pool, first..pool, kept)))
}

/// The guest, when it spans several nodes.
pub fn spanning(start: &Start<'_>) -> Option<Guest> {
    start.guest().ok().filter(|guest| guest.nodes > 1)
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
}

impl Card for Nic {
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

    fn poll_receive(&mut self) -> Result<Option<Received>, NetError> {
        let received = self.net.poll_receive()?;
        Ok(received.map(|virtio_net::Received { header, bytes, frame }| {
            let frame = frame.number();
            Received { header, bytes, frame }
        }))
    }

    fn post_receive(&mut self, frame: u32) -> Result<(), NetError> {
        // The station knows no frames but the pool's.
        let frame = self.pool.frame(frame).ok_or(NetError::QueueFull)?;
        self.net.post_receive(frame)
    }

    fn notify_receive(&mut self) {
        self.net.notify_receive();
    }

    fn send(&mut self, header: &[u8; HEADER_BYTES], part: Option<Part>) -> Result<Slot, NetError> {
        let part = match part {
            None => None,
            Some(Part { frame, offset, bytes }) => {
                let frame = self.pool.frame(frame).ok_or(NetError::Payload(offset, bytes))?;
                Some(virtio_net::Part { frame, offset, bytes })
            }
        };
        self.net.send(header, part)
    }

    fn reclaim_sent(&mut self) -> Result<Option<Slot>, NetError> {
        self.net.reclaim_sent()
    }

    fn send_room(&self) -> usize {
        self.net.send_room()
    }

    fn read(&self, frame: u32, bytes: &mut [u8]) {
        for (bytes, shared) in bytes.chunks_mut(8).zip(self.pool.words(frame)) {
            let word = shared.load(Ordering::Relaxed).to_le_bytes();
            bytes.copy_from_slice(word.get(..bytes.len()).unwrap_or_default());
        }
    }

    fn write(&mut self, frame: u32, bytes: &[u8]) {
        for (bytes, shared) in bytes.chunks(8).zip(self.pool.words(frame)) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            shared.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn append(&mut self, from: u32, to: u32, offset: u16, bytes: u16) {
        let target = self.pool.words(to).get(usize::from(offset) / 8..).unwrap_or_default();
        for (from, to) in self.pool.words(from).iter().zip(target).take(usize::from(bytes) / 8) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn checksum(&self, part: Part) -> u32 {
        let words = self.pool.words(part.frame).get(usize::from(part.offset) / 8..).unwrap_or_default();
        hal::crc32c(words, usize::from(part.bytes))
    }

    fn fill(&mut self, frame: u32, seed: u64) {
        for (place, shared) in (0..).zip(self.pool.words(frame)) {
            shared.store(word(seed, place), Ordering::Relaxed);
        }
    }

    fn holds(&self, frame: u32, seed: u64) -> bool {
        let words = self.pool.words(frame);
        let as_written =
            |(place, shared): (u64, &AtomicU64)| shared.load(Ordering::Relaxed) == word(seed, place);
        words.len() == WORDS && (0..).zip(words).all(as_written)
    }
}
