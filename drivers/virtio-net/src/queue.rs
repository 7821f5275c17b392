//! One queue of [80-byte header][page] chains on `virtio-drivers`' [`VirtQueue`].
//!
//! A header buffer is the chain's *slot*; the queue's own name for the chain is its *head*, the first descriptor.
//! Invariant: `slot_of_head[head]` is a slot exactly while the device has that chain, and then `chains[slot]` says what
//! was posted; all other slots are in `free`.
#![expect(unsafe_code, reason = "the queue's calls promise that the device's buffers stay")]

use core::fmt;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use crate::memory::{DmaMemory, Frame, HeaderBuffers, QueueHal, Ticket};
use crate::{HEADER_BYTES, MAX_CHAINS, PAGE_BYTES, QUEUE_SIZE};

/// Which queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum QueueKind {
    /// Frames that come.
    Receive = 0,
    /// Frames that go.
    Transmit = 1,
}

/// What a device wrote that it must not. After one of these the card is not to be trusted before its next reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Misbehaviour {
    /// It returned a chain that it does not have.
    UsedId {
        /// Where.
        queue: QueueKind,
        /// What it called the chain.
        id: u16,
    },
    /// It says that it wrote more than the chain holds, or less than its own header.
    UsedLength {
        /// Where.
        queue: QueueKind,
        /// Bytes that it says it wrote.
        bytes: u32,
    },
    /// It changed an entry of the used ring after it had published it.
    UsedRing {
        /// Where.
        queue: QueueKind,
    },
    /// It asks for work (a checksum, segments) that was not negotiated.
    Offload {
        /// `virtio_net_hdr.flags`.
        flags: u8,
        /// `virtio_net_hdr.gso_type`.
        gso_type: u8,
    },
    /// It says that it must be reset.
    NeedsReset,
}

impl fmt::Display for Misbehaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsedId { queue, id } => write!(f, "{queue:?}: returned chain {id}, which it does not have"),
            Self::UsedLength { queue, bytes } => write!(f, "{queue:?}: says it wrote {bytes} bytes"),
            Self::UsedRing { queue } => write!(f, "{queue:?}: changed a published used entry"),
            Self::Offload { flags, gso_type } => {
                write!(f, "asks for offloads (flags {flags:#x}, type {gso_type:#x}) that were not negotiated")
            }
            Self::NeedsReset => f.write_str("says that it must be reset"),
        }
    }
}

impl core::error::Error for Misbehaviour {}

/// What the queue is shown in place of the buffers.
pub(crate) struct Tickets {
    header: Ticket<HEADER_BYTES>,
    page: Ticket<PAGE_BYTES>,
}

impl Tickets {
    pub(crate) const fn new() -> Self {
        Self { header: Ticket::new(), page: Ticket::new() }
    }
}

/// A chain that a queue has, by its header buffer: from 0, below [`MAX_CHAINS`].
pub type Slot = u16;

/// Part of a page frame: so many bytes from an offset on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// The page frame.
    pub frame: Frame,
    /// Where the bytes begin in it.
    pub offset: u16,
    /// How many.
    pub bytes: u16,
}

#[derive(Clone, Copy)]
struct Chain {
    part: Option<Part>,
}

/// A queue cannot take another chain.
pub(crate) struct NoRoom;

/// A chain that came back.
pub(crate) struct Taken {
    /// The header buffer, to be read before [`Chains::release`].
    pub(crate) slot: Slot,
    pub(crate) part: Option<Part>,
    /// Bytes that the device says it wrote.
    pub(crate) bytes: u32,
}

const NO_SLOT: Slot = u16::MAX;

pub(crate) struct Chains<D: DmaMemory> {
    kind: QueueKind,
    queue: VirtQueue<QueueHal<D>, QUEUE_SIZE>,
    pub(crate) headers: HeaderBuffers,
    chains: [Option<Chain>; MAX_CHAINS],
    slot_of_head: [Slot; QUEUE_SIZE],
    free: [Slot; MAX_CHAINS],
    free_count: usize,
}

impl<D: DmaMemory> Chains<D> {
    /// Sets the queue up in the device.
    ///
    /// # Errors
    /// `virtio-drivers`' [`virtio_drivers::Error`].
    pub(crate) fn new(
        kind: QueueKind,
        transport: &mut impl Transport,
    ) -> Result<Self, virtio_drivers::Error> {
        let headers = HeaderBuffers::allocate::<D>(MAX_CHAINS).ok_or(virtio_drivers::Error::DmaError)?;
        let mut queue = VirtQueue::new(transport, kind as u16, false, false)?;
        queue.set_dev_notify(false);
        let mut free = [0; MAX_CHAINS];
        for (slot, number) in free.iter_mut().zip(0u16..) {
            *slot = number;
        }
        Ok(Self {
            kind,
            queue,
            headers,
            chains: [None; MAX_CHAINS],
            slot_of_head: [NO_SLOT; QUEUE_SIZE],
            free,
            free_count: MAX_CHAINS,
        })
    }

    /// Chains that can still be posted.
    pub(crate) const fn room(&self) -> usize {
        self.free_count
    }

    /// A header buffer for the next chain.
    pub(crate) fn reserve(&mut self) -> Option<Slot> {
        self.free_count = self.free_count.checked_sub(1)?;
        self.free.get(self.free_count).copied()
    }

    /// Gives a header buffer back.
    pub(crate) fn release(&mut self, slot: Slot) {
        if let Some(place) = self.free.get_mut(self.free_count) {
            *place = slot;
            self.free_count += 1;
        }
    }

    /// Gives the device the chain of a reserved header buffer and a part of a page.
    ///
    /// # Errors
    /// [`NoRoom`]; the header buffer is released.
    pub(crate) fn post(
        &mut self,
        tickets: &mut Tickets,
        slot: Slot,
        part: Option<Part>,
    ) -> Result<(), NoRoom> {
        let header = tickets.header.for_buffer(self.headers.address(slot), HEADER_BYTES);
        let body = part.map(|Part { frame, offset, bytes }| {
            tickets.page.for_buffer(frame.address() + u64::from(offset), usize::from(bytes))
        });
        let added = match (self.kind, body) {
            // SAFETY: the references are to tickets, which the device does not access. What they stand for is the
            // device's until the chain comes back: the header buffer because its slot is taken, the page because
            // whoever made its `Frame` promised so.
            (QueueKind::Receive, Some(body)) => unsafe { self.queue.add(&[], &mut [header, body]) },
            // SAFETY: likewise.
            (QueueKind::Receive, None) => unsafe { self.queue.add(&[], &mut [header]) },
            // SAFETY: likewise.
            (QueueKind::Transmit, Some(body)) => unsafe { self.queue.add(&[header, body], &mut []) },
            // SAFETY: likewise.
            (QueueKind::Transmit, None) => unsafe { self.queue.add(&[header], &mut []) },
        };
        let places = match added {
            Ok(head) => {
                (self.slot_of_head.get_mut(usize::from(head)), self.chains.get_mut(usize::from(slot)))
            }
            Err(_) => (None, None),
        };
        let (Some(slot_of_head), Some(chain)) = places else {
            self.release(slot);
            return Err(NoRoom);
        };
        *slot_of_head = slot;
        *chain = Some(Chain { part });
        Ok(())
    }

    /// Rings the doorbell if the device wants to be told of what was posted.
    pub(crate) fn notify(&mut self, transport: &mut impl Transport) {
        // The device sets its flag, then looks at the index: our index must be visible before we look at the flag.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.kind as u16);
        }
    }

    /// Takes back the next chain that the device has used.
    ///
    /// # Errors
    /// [`Misbehaviour::UsedId`], [`Misbehaviour::UsedRing`].
    pub(crate) fn take(&mut self, tickets: &mut Tickets) -> Result<Option<Taken>, Misbehaviour> {
        let Some(id) = self.queue.peek_used() else { return Ok(None) };
        let bad_id = Misbehaviour::UsedId { queue: self.kind, id };
        let slot_of_head = self.slot_of_head.get_mut(usize::from(id)).ok_or(bad_id)?;
        let slot = *slot_of_head;
        let chain = self.chains.get_mut(usize::from(slot)).ok_or(bad_id)?;
        let header = tickets.header.for_buffer(0, HEADER_BYTES);
        let part = chain.and_then(|chain| chain.part);
        let body = part.map(|part| tickets.page.for_buffer(0, usize::from(part.bytes)));
        let popped = match (self.kind, body) {
            // SAFETY: as many buffers as were added for this head; what they hold is not looked at.
            (QueueKind::Receive, Some(body)) => unsafe { self.queue.pop_used(id, &[], &mut [header, body]) },
            // SAFETY: likewise.
            (QueueKind::Receive, None) => unsafe { self.queue.pop_used(id, &[], &mut [header]) },
            // SAFETY: likewise.
            (QueueKind::Transmit, Some(body)) => unsafe { self.queue.pop_used(id, &[header, body], &mut []) },
            // SAFETY: likewise.
            (QueueKind::Transmit, None) => unsafe { self.queue.pop_used(id, &[header], &mut []) },
        };
        let bytes = popped.map_err(|_| Misbehaviour::UsedRing { queue: self.kind })?;
        *slot_of_head = NO_SLOT;
        *chain = None;
        Ok(Some(Taken { slot, part, bytes }))
    }

    /// Asks for interrupts; `true` when nothing has come meanwhile, so that it is safe to sleep.
    pub(crate) fn enable_interrupts(&mut self) -> bool {
        self.queue.set_dev_notify(true);
        // The device publishes its index, then looks at the flag: our flag must be visible before we look.
        fence(Ordering::SeqCst);
        !self.queue.can_pop()
    }

    /// Asks for no interrupts; some may still come.
    pub(crate) fn disable_interrupts(&mut self) {
        self.queue.set_dev_notify(false);
    }
}
