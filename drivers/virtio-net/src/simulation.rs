//! A simulated card, for tests: it walks the driver's rings in the host's memory as a real one would, and can lie.
#![expect(unsafe_code, reason = "the device's side of shared rings, by address")]

use core::ptr::{self, NonNull};
use std::alloc::{Layout, alloc_zeroed};
use std::vec;
use std::vec::Vec;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::transport::{InterruptCause, RouteInterrupts, TransportError};
use crate::{DmaMemory, Frame, PAGE_BYTES, QUEUE_SIZE};

/// The host's memory, at addresses that are the host's own. Tests leak it.
pub struct HostMemory;

// SAFETY: fresh zeroed pages of the host's heap, never freed.
unsafe impl DmaMemory for HostMemory {
    fn allocate(pages: usize) -> Option<(u64, NonNull<u8>)> {
        let layout = Layout::from_size_align(pages * PAGE_BYTES, PAGE_BYTES).unwrap();
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some((memory.as_ptr().expose_provenance() as u64, memory))
    }
}

/// A page frame of the host's memory.
pub fn frame(number: u32) -> Frame {
    let (address, _) = HostMemory::allocate(1).unwrap();
    // SAFETY: fresh memory, for this frame alone.
    unsafe { Frame::new(number, address) }
}

/// Reads what is at an address that `HostMemory` gave.
pub fn peek<T: Copy>(address: u64) -> T {
    let place: *const T = ptr::with_exposed_provenance(usize::try_from(address).unwrap());
    // SAFETY: the driver's or the test's memory, allocated by `HostMemory` and never freed.
    unsafe { place.read_volatile() }
}

/// Writes what is at an address that `HostMemory` gave.
pub fn poke<T: Copy>(address: u64, value: T) {
    let place: *mut T = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
    // SAFETY: as in `peek`.
    unsafe { place.write_volatile(value) };
}

pub fn peek_bytes(address: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| peek(address + at)).collect()
}

pub fn poke_bytes(address: u64, bytes: &[u8]) {
    for (&byte, at) in bytes.iter().zip(address..) {
        poke(at, byte);
    }
}

/// A queue as the driver told the device.
#[derive(Clone, Copy, Default)]
struct Rings {
    descriptors: u64,
    available: u64,
    used: u64,
    seen: u16,
}

/// A chain that the driver posted: (address, length, device may write) of each buffer.
pub struct Posted {
    pub head: u16,
    pub buffers: Vec<(u64, u32, bool)>,
}

/// What the device is, and what the driver did to it.
pub struct Card {
    pub offered: u64,
    pub agreed: u64,
    pub config: [u8; 12],
    pub status: DeviceStatus,
    pub refuses_features: bool,
    pub never_resets: bool,
    pub refuses_vector: bool,
    pub queue_size: u32,
    pub routes: Vec<(InterruptCause, Option<u16>)>,
    pub notified: [u64; 2],
    rings: [Rings; 2],
}

pub const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 16 | 1 << 15 | 1 << 5 | 1 << 3 | 3;
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

impl Card {
    pub fn new() -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&MAC);
        config[6] = 1;
        config[10..].copy_from_slice(&9000u16.to_le_bytes());
        Self {
            offered: FEATURES,
            agreed: 0,
            config,
            status: DeviceStatus::DRIVER_OK,
            refuses_features: false,
            never_resets: false,
            refuses_vector: false,
            queue_size: 1024,
            routes: vec![],
            notified: [0; 2],
            rings: [Rings::default(); 2],
        }
    }

    /// The next chain that the driver posted.
    pub fn next(&mut self, queue: usize) -> Option<Posted> {
        let rings = &mut self.rings[queue];
        if peek::<u16>(rings.available + 2) == rings.seen {
            return None;
        }
        let place = u64::from(rings.seen) % QUEUE_SIZE as u64;
        rings.seen = rings.seen.wrapping_add(1);
        let head = peek::<u16>(rings.available + 4 + 2 * place);
        let mut buffers = vec![];
        let mut at = head;
        loop {
            let descriptor = rings.descriptors + 16 * u64::from(at);
            let flags = peek::<u16>(descriptor + 12);
            buffers.push((peek(descriptor), peek(descriptor + 8), flags & 2 != 0));
            if flags & 1 == 0 {
                return Some(Posted { head, buffers });
            }
            at = peek(descriptor + 14);
        }
    }

    /// Writes a used entry and publishes it.
    pub fn publish(&mut self, queue: usize, id: u32, bytes: u32) {
        let rings = self.rings[queue];
        let index: u16 = peek(rings.used + 2);
        let place = rings.used + 4 + 8 * (u64::from(index) % QUEUE_SIZE as u64);
        poke(place, id);
        poke(place + 4, bytes);
        poke(rings.used + 2, index.wrapping_add(1));
    }

    /// Whether the driver wants an interrupt of this queue.
    pub fn wants_interrupt(&self, queue: usize) -> bool {
        peek::<u16>(self.rings[queue].available) & 1 == 0
    }

    /// Asks the driver not to notify (or to).
    pub fn suppress_notifications(&self, queue: usize, flag: u16) {
        poke(self.rings[queue].used, flag);
    }

    /// Receives a frame, card header included, into the next posted chain; `false` when it does not fit.
    pub fn deliver(&mut self, bytes: &[u8]) -> bool {
        let Some(Posted { head, buffers }) = self.next(0) else { return false };
        let mut rest = bytes;
        for (address, length, writable) in buffers {
            assert!(writable, "a receive buffer that the device may not write");
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            poke_bytes(address, now);
            rest = later;
        }
        assert!(rest.is_empty(), "the frame is longer than the chain");
        self.publish(0, head.into(), u32::try_from(bytes.len()).unwrap());
        true
    }

    /// Sends the next posted frame; its bytes, card header included.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        let Posted { head, buffers } = self.next(1)?;
        let mut bytes = vec![];
        for (address, length, writable) in buffers {
            assert!(!writable, "a send buffer that the device may write");
            bytes.extend(peek_bytes(address, length as usize));
        }
        self.publish(1, head.into(), 0);
        Some(bytes)
    }
}

impl RouteInterrupts for Card {
    fn route(&mut self, cause: InterruptCause, entry: Option<u16>) -> Result<(), TransportError> {
        self.routes.push((cause, entry));
        match entry {
            Some(entry) if self.refuses_vector => Err(TransportError::Vector { cause, entry }),
            _ => Ok(()),
        }
    }

    fn find_doorbell(&mut self, _queue: u16) -> Result<(), TransportError> {
        Ok(())
    }
}

impl Transport for Card {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        self.offered
    }

    fn write_driver_features(&mut self, features: u64) {
        self.agreed = features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        self.queue_size
    }

    fn notify(&mut self, queue: u16) {
        self.notified[usize::from(queue)] += 1;
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() && self.never_resets {
            return;
        }
        self.status = status;
        if self.refuses_features {
            self.status.remove(DeviceStatus::FEATURES_OK);
        }
    }

    fn set_guest_page_size(&mut self, _bytes: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        available: PhysAddr,
        used: PhysAddr,
    ) {
        assert_eq!(size as usize, QUEUE_SIZE);
        self.rings[usize::from(queue)] = Rings { descriptors, available, used, seen: 0 };
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, _queue: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        T::read_from_bytes(&self.config[offset..offset + size_of::<T>()])
            .map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        Err(Error::ConfigSpaceMissing)
    }
}
