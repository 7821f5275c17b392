//! The card: start, frames that come and go, its address, MTU and link.

use core::fmt;

use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::memory::{DmaMemory, Frame};
use crate::queue::{Chains, Misbehaviour, Part, QueueKind, Slot, Tickets};
use crate::transport::{InterruptCause, RouteInterrupts, TransportError};
use crate::{CARD_HEADER_BYTES, HEADER_BYTES, MIN_PAYLOAD_BYTES, PAGE_BYTES, PAGE_MTU, WIRE_HEADER_BYTES};

// Features (virtio 1.2, 5.1.3 and 6).
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;
const FEATURE_VERSION_1: u64 = 1 << 32;

// Offsets in the network card's configuration (5.1.4).
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const CONFIG_MTU: usize = 10;
/// Bit of the status: the link is up.
const STATUS_LINK_UP: u16 = 1;

/// `virtio_net_hdr.flags`: the receiver is to complete a checksum (5.1.6).
const NEEDS_CHECKSUM: u8 = 1;

/// Bytes of a page frame that is posted for reception.
const WHOLE_PAGE: u16 = 4096;
const _: () = assert!(WHOLE_PAGE as usize == PAGE_BYTES);
/// Reads of the status that a reset may take.
const RESET_READS: u32 = 1_000_000;
/// Tries to read a configuration that does not change meanwhile.
const CONFIG_READS: u32 = 16;

/// Which MSI-X entries the card raises; `None` for no interrupt.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterruptEntries {
    /// When its configuration changes.
    pub configuration: Option<u16>,
    /// When frames have come.
    pub receive: Option<u16>,
}

/// Why the card cannot do what was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NetError {
    /// It does not finish its reset.
    ResetTimeout,
    /// It does not offer virtio 1.0 or an address of its own; its features.
    Features(u64),
    /// It does not agree to the features that it offered.
    FeaturesRefused,
    /// Its registers are not as they must be.
    Transport(TransportError),
    /// A queue cannot be set up: too short, or no memory.
    Queue(virtio_drivers::Error),
    /// All chains of the queue are posted.
    QueueFull,
    /// A payload shorter than [`MIN_PAYLOAD_BYTES`], or one that is not within its page: its offset and bytes.
    Payload(u16, u16),
    /// The card broke its side of the protocol.
    DeviceMisbehaved(Misbehaviour),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetTimeout => f.write_str("the card does not finish its reset"),
            Self::Features(offered) => {
                write!(f, "the card lacks virtio 1.0 or an address (features {offered:#x})")
            }
            Self::FeaturesRefused => f.write_str("the card refuses the features that it offered"),
            Self::Transport(error) => error.fmt(f),
            Self::Queue(error) => write!(f, "a queue cannot be set up: {error}"),
            Self::QueueFull => f.write_str("the queue is full"),
            Self::Payload(offset, bytes) => {
                write!(f, "a payload of {bytes} bytes from offset {offset} of a page cannot be sent")
            }
            Self::DeviceMisbehaved(how) => write!(f, "the card misbehaved: {how}"),
        }
    }
}

impl core::error::Error for NetError {}

impl From<Misbehaviour> for NetError {
    fn from(how: Misbehaviour) -> Self {
        Self::DeviceMisbehaved(how)
    }
}

impl From<TransportError> for NetError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// A frame that came.
#[derive(Debug, Eq, PartialEq)]
pub struct Received {
    /// Its first bytes, Ethernet's header and the protocol's; zero where the frame is shorter.
    pub header: [u8; WIRE_HEADER_BYTES],
    /// Bytes of the Ethernet frame, as the card says: at most a header and a page.
    pub bytes: usize,
    /// What follows the header.
    pub frame: Frame,
}

/// A virtio network card.
pub struct VirtioNet<D: DmaMemory, T> {
    transport: T,
    receive: Chains<D>,
    transmit: Chains<D>,
    tickets: Tickets,
    features: u64,
    mac: [u8; 6],
    mtu: Option<u16>,
}

impl<D: DmaMemory, T: Transport + RouteInterrupts> VirtioNet<D, T> {
    /// Resets the card and starts it (virtio 1.2, 3.1.1), with no frame posted and no interrupts asked for.
    ///
    /// # Errors
    /// [`NetError`]; the card is left marked as failed.
    pub fn new(mut transport: T, interrupts: InterruptEntries) -> Result<Self, NetError> {
        let started = start(&mut transport, interrupts).and_then(|negotiated| {
            let queue = |kind, transport: &mut T| Chains::new(kind, transport).map_err(NetError::Queue);
            let receive = queue(QueueKind::Receive, &mut transport)?;
            let transmit = queue(QueueKind::Transmit, &mut transport)?;
            Ok((negotiated, receive, transmit))
        });
        match started {
            Ok((Negotiated { features, mac, mtu }, receive, transmit)) => {
                transport.finish_init();
                Ok(Self { transport, receive, transmit, tickets: Tickets::new(), features, mac, mtu })
            }
            Err(error) => {
                transport.set_status(DeviceStatus::FAILED);
                Err(error)
            }
        }
    }

    /// The card's Ethernet address.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The longest Ethernet payload of the link, if the card knows.
    #[must_use]
    pub const fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Whether the link is up; a card that cannot tell says it is.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.features & FEATURE_STATUS == 0
            || self.transport.read_config_space::<u16>(CONFIG_STATUS).is_ok_and(|s| s & STATUS_LINK_UP != 0)
    }

    /// Asks the card whether it is well, after a configuration interrupt.
    ///
    /// # Errors
    /// [`Misbehaviour::NeedsReset`].
    pub fn check_health(&self) -> Result<(), NetError> {
        if self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(Misbehaviour::NeedsReset.into());
        }
        Ok(())
    }

    /// How many more page frames can be posted for reception.
    #[must_use]
    pub const fn receive_room(&self) -> usize {
        self.receive.room()
    }

    /// How many more frames can be sent before some are reclaimed.
    #[must_use]
    pub const fn send_room(&self) -> usize {
        self.transmit.room()
    }

    /// Gives the card a page frame to receive into. It may not look for it before [`VirtioNet::notify_receive`].
    ///
    /// # Errors
    /// [`NetError::QueueFull`].
    pub fn post_receive(&mut self, frame: Frame) -> Result<(), NetError> {
        let slot = self.receive.reserve().ok_or(NetError::QueueFull)?;
        let part = Part { frame, offset: 0, bytes: WHOLE_PAGE };
        self.receive.post(&mut self.tickets, slot, Some(part)).map_err(|_| NetError::QueueFull)
    }

    /// Tells the card of posted page frames, if it wants to be told.
    pub fn notify_receive(&mut self) {
        self.receive.notify(&mut self.transport);
    }

    /// The next frame that came.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    pub fn poll_receive(&mut self) -> Result<Option<Received>, NetError> {
        let Some(taken) = self.receive.take(&mut self.tickets)? else { return Ok(None) };
        let bytes = usize::try_from(taken.bytes).unwrap_or(usize::MAX);
        let bad_length = Misbehaviour::UsedLength { queue: QueueKind::Receive, bytes: taken.bytes };
        // Every chain of this queue was posted with a page.
        let Part { frame, .. } = taken.part.ok_or(bad_length)?;
        if !(CARD_HEADER_BYTES..=HEADER_BYTES + PAGE_BYTES).contains(&bytes) {
            return Err(bad_length.into());
        }
        let mut buffer = self.receive.headers.read(taken.slot);
        self.receive.release(taken.slot);
        // The buffer has old bytes past what was written now.
        if let Some(rest) = buffer.get_mut(bytes..) {
            rest.fill(0);
        }
        let [flags, gso_type, ..] = buffer;
        if flags & NEEDS_CHECKSUM != 0 || gso_type != 0 {
            return Err(Misbehaviour::Offload { flags, gso_type }.into());
        }
        let mut header = [0; WIRE_HEADER_BYTES];
        header.copy_from_slice(&buffer[CARD_HEADER_BYTES..]);
        Ok(Some(Received { header, bytes: bytes - CARD_HEADER_BYTES, frame }))
    }

    /// Sends a header, and behind it a part of a page. Until [`VirtioNet::reclaim_sent`] returns the same slot, the card
    /// may read the page.
    ///
    /// # Errors
    /// [`NetError::QueueFull`], [`NetError::Payload`].
    pub fn send(
        &mut self,
        header: &[u8; WIRE_HEADER_BYTES],
        payload: Option<Part>,
    ) -> Result<Slot, NetError> {
        if let Some(Part { offset, bytes, .. }) = payload
            && (usize::from(bytes) < MIN_PAYLOAD_BYTES
                || usize::from(offset) + usize::from(bytes) > PAGE_BYTES)
        {
            return Err(NetError::Payload(offset, bytes));
        }
        let slot = self.transmit.reserve().ok_or(NetError::QueueFull)?;
        // The card's header of a frame without offloads is all zero (5.1.6.2).
        let mut buffer = [0; HEADER_BYTES];
        buffer[CARD_HEADER_BYTES..].copy_from_slice(header);
        self.transmit.headers.write(slot, &buffer);
        self.transmit.post(&mut self.tickets, slot, payload).map_err(|_| NetError::QueueFull)?;
        self.transmit.notify(&mut self.transport);
        Ok(slot)
    }

    /// The next frame that was sent, in the order in which the card is done with them.
    ///
    /// # Errors
    /// [`NetError::DeviceMisbehaved`].
    pub fn reclaim_sent(&mut self) -> Result<Option<Slot>, NetError> {
        // What a device says it wrote to buffers that it only reads means nothing (2.7.8.2).
        let Some(taken) = self.transmit.take(&mut self.tickets)? else { return Ok(None) };
        self.transmit.release(taken.slot);
        Ok(Some(taken.slot))
    }

    /// Asks for an interrupt when a frame comes; `true` when none has come meanwhile, so that it is safe to sleep.
    pub fn enable_receive_interrupts(&mut self) -> bool {
        self.receive.enable_interrupts()
    }

    /// Asks for no more interrupts; some may still come.
    pub fn disable_receive_interrupts(&mut self) {
        self.receive.disable_interrupts();
    }

    /// The transport, for tests that play the device.
    #[cfg(test)]
    pub(crate) fn transport(&mut self) -> &mut T {
        &mut self.transport
    }
}

/// Stops the card: from then on it uses no memory.
///
/// # Errors
/// [`NetError::ResetTimeout`].
pub fn reset(transport: &mut impl Transport) -> Result<(), NetError> {
    transport.set_status(DeviceStatus::empty());
    // Over PCI the reset is done when the status reads 0 (4.1.4.3.2).
    if (0..RESET_READS).any(|_| transport.get_status().is_empty()) {
        Ok(())
    } else {
        Err(NetError::ResetTimeout)
    }
}

struct Negotiated {
    features: u64,
    mac: [u8; 6],
    mtu: Option<u16>,
}

/// From the reset to the routed interrupts; queues and `DRIVER_OK` follow.
fn start<T: Transport + RouteInterrupts>(
    transport: &mut T,
    interrupts: InterruptEntries,
) -> Result<Negotiated, NetError> {
    reset(transport)?;
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    let offered = transport.read_device_features();
    let needed = FEATURE_VERSION_1 | FEATURE_MAC;
    if offered & needed != needed {
        return Err(NetError::Features(offered));
    }
    // Fields of offered features can be read before features are agreed on (2.5.2).
    let mac = read_stable(transport, |t| t.read_config_space::<[u8; 6]>(CONFIG_MAC))?;
    let mtu = match offered & FEATURE_MTU {
        0 => None,
        _ => Some(read_stable(transport, |t| t.read_config_space::<u16>(CONFIG_MTU))?),
    };
    // A driver that agrees to the MTU must have room for each frame of it (5.1.4.2); one that does not may still
    // know it. Our own frames always fit, and a longer one is dropped by the card either way.
    let agree_mtu = if mtu.is_some_and(|mtu| mtu <= PAGE_MTU) { FEATURE_MTU } else { 0 };
    let features = offered & (needed | FEATURE_STATUS | agree_mtu);
    transport.write_driver_features(features);
    let agreed = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    transport.set_status(agreed);
    if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
        return Err(NetError::FeaturesRefused);
    }
    transport.route(InterruptCause::Configuration, interrupts.configuration)?;
    transport.route(InterruptCause::Queue(QueueKind::Receive as u16), interrupts.receive)?;
    // Sent frames are reclaimed as others are sent or polled for: their interrupt would only cost.
    transport.route(InterruptCause::Queue(QueueKind::Transmit as u16), None)?;
    transport.find_doorbell(QueueKind::Receive as u16)?;
    transport.find_doorbell(QueueKind::Transmit as u16)?;
    Ok(Negotiated { features, mac, mtu })
}

/// A value of the configuration that did not change while it was read (2.5.1).
fn read_stable<T: Transport, V>(
    transport: &T,
    read: impl Fn(&T) -> Result<V, virtio_drivers::Error>,
) -> Result<V, NetError> {
    let mut last = Err(NetError::Queue(virtio_drivers::Error::NotReady));
    for _ in 0..CONFIG_READS {
        let before = transport.read_config_generation();
        last = read(transport).map_err(NetError::Queue);
        if transport.read_config_generation() == before {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests;
