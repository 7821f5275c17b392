//! The registers of a virtio device over PCI (virtio 1.2, 4.1.4.3), as `virtio-drivers`' [`Transport`].
//!
//! `virtio-drivers` has a PCI transport of its own. It sizes BARs by writing them, which is the kernel's right alone,
//! programs no MSI-X vectors, and panics on a doorbell outside its BAR; this one does none of that, and rings a
//! doorbell with one write.

use core::fmt;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::structures::{Structure, Structures};

/// The memory of one BAR. Offsets that the transport passes are multiples of the width and lie in `0..length()`.
pub trait Registers {
    /// Bytes.
    fn length(&self) -> usize;
    /// Reads 8 bits.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read_u16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read_u32(&self, offset: usize) -> u32;
    /// Writes 8 bits.
    fn write_u8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write_u16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write_u32(&self, offset: usize, value: u32);
}

/// What raises an interrupt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InterruptCause {
    /// The device's configuration changed, or it failed.
    Configuration,
    /// The device used buffers of this queue.
    Queue(u16),
}

/// Why the device cannot be driven.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TransportError {
    /// A BAR is not there, or too small for the structure in it.
    NoRoom {
        /// What the structure is.
        structure: &'static str,
        /// The BAR.
        bar: u8,
    },
    /// A structure does not lie at a multiple of 4 in its BAR.
    Misaligned(&'static str),
    /// The doorbell of this queue lies outside the notification structure.
    Doorbell {
        /// The queue.
        queue: u16,
        /// Where the doorbell would be.
        offset: u64,
    },
    /// The device refuses an MSI-X entry.
    Vector {
        /// For what.
        cause: InterruptCause,
        /// The entry.
        entry: u16,
    },
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { structure, bar } => {
                write!(f, "BAR {bar} has no room for the {structure} structure")
            }
            Self::Misaligned(structure) => write!(f, "the {structure} structure is misaligned"),
            Self::Doorbell { queue, offset } => {
                write!(f, "the doorbell of queue {queue} at {offset:#x} is out of its structure")
            }
            Self::Vector { cause, entry } => write!(f, "the card refuses MSI-X entry {entry} for {cause:?}"),
        }
    }
}

impl core::error::Error for TransportError {}

/// A transport that can route interrupts and check a queue's doorbell, before queues are set up and after each reset.
pub trait RouteInterrupts {
    /// Has `cause` raise MSI-X entry `entry`, or none.
    ///
    /// # Errors
    /// [`TransportError::Vector`].
    fn route(&mut self, cause: InterruptCause, entry: Option<u16>) -> Result<(), TransportError>;

    /// Finds the doorbell of a queue.
    ///
    /// # Errors
    /// [`TransportError::Doorbell`].
    fn find_doorbell(&mut self, queue: u16) -> Result<(), TransportError>;
}

/// Queues whose doorbells are remembered.
const MAX_QUEUES: usize = 2;
/// "No MSI-X entry" (4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

// Offsets in the common configuration.
const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const CONFIG_MSIX_VECTOR: usize = 16;
const DEVICE_STATUS: usize = 20;
const CONFIG_GENERATION: usize = 21;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_MSIX_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFFSET: usize = 30;
const QUEUE_DESCRIPTORS: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;
const COMMON_BYTES: usize = 56;

/// A structure within a BAR, bounds checked.
struct Window<R> {
    registers: R,
    start: usize,
    length: usize,
}

impl<R: Registers> Window<R> {
    fn new(
        name: &'static str,
        structure: Structure,
        least: usize,
        bar: &mut impl FnMut(u8) -> Option<R>,
    ) -> Result<Self, TransportError> {
        let no_room = TransportError::NoRoom { structure: name, bar: structure.bar };
        let registers = bar(structure.bar).ok_or(no_room)?;
        let start = usize::try_from(structure.offset).map_err(|_| no_room)?;
        let length = usize::try_from(structure.length).map_err(|_| no_room)?;
        let end = start.checked_add(length).ok_or(no_room)?;
        if end > registers.length() || length < least {
            return Err(no_room);
        }
        if !start.is_multiple_of(4) {
            return Err(TransportError::Misaligned(name));
        }
        Ok(Self { registers, start, length })
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.registers.read_u16(self.start + offset)
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.registers.write_u16(self.start + offset, value);
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.registers.write_u32(self.start + offset, value);
    }

    /// 64-bit registers are written as two halves (4.1.3.1).
    #[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
    fn write_u64(&self, offset: usize, value: u64) {
        self.write_u32(offset, value as u32);
        self.write_u32(offset + 4, (value >> 32) as u32);
    }
}

/// A virtio network card behind PCI.
pub struct ModernPci<R> {
    common: Window<R>,
    notify: Window<R>,
    notify_multiplier: u32,
    device: Window<R>,
    doorbells: [Option<usize>; MAX_QUEUES],
}

impl<R: Registers> ModernPci<R> {
    /// The card with these structures, whose BARs `bar` gives.
    ///
    /// # Errors
    /// [`TransportError::NoRoom`], [`TransportError::Misaligned`].
    pub fn new(
        structures: &Structures,
        mut bar: impl FnMut(u8) -> Option<R>,
    ) -> Result<Self, TransportError> {
        Ok(Self {
            common: Window::new("common configuration", structures.common, COMMON_BYTES, &mut bar)?,
            notify: Window::new("notification", structures.notify, 2, &mut bar)?,
            notify_multiplier: structures.notify_multiplier,
            device: Window::new("device configuration", structures.device, 6, &mut bar)?,
            doorbells: [None; MAX_QUEUES],
        })
    }

    fn select(&self, queue: u16) {
        self.common.write_u16(QUEUE_SELECT, queue);
    }

    /// Whether `bytes` bytes at `offset` lie in the device configuration.
    fn check_device_range(&self, offset: usize, bytes: usize) -> Result<(), Error> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.device.length => Ok(()),
            _ => Err(Error::ConfigSpaceTooSmall),
        }
    }
}

impl<R: Registers> RouteInterrupts for ModernPci<R> {
    fn route(&mut self, cause: InterruptCause, entry: Option<u16>) -> Result<(), TransportError> {
        let register = match cause {
            InterruptCause::Configuration => CONFIG_MSIX_VECTOR,
            InterruptCause::Queue(queue) => {
                self.select(queue);
                QUEUE_MSIX_VECTOR
            }
        };
        let entry = entry.unwrap_or(NO_VECTOR);
        self.common.write_u16(register, entry);
        // A device that cannot map the entry reads back "none" (4.1.5.1.2).
        if self.common.read_u16(register) == entry {
            Ok(())
        } else {
            Err(TransportError::Vector { cause, entry })
        }
    }

    fn find_doorbell(&mut self, queue: u16) -> Result<(), TransportError> {
        self.select(queue);
        let number = self.common.read_u16(QUEUE_NOTIFY_OFFSET);
        let offset = u64::from(number) * u64::from(self.notify_multiplier);
        let refused = TransportError::Doorbell { queue, offset };
        let at = usize::try_from(offset).map_err(|_| refused)?;
        if !at.is_multiple_of(2) || at.checked_add(2).is_none_or(|end| end > self.notify.length) {
            return Err(refused);
        }
        *self.doorbells.get_mut(usize::from(queue)).ok_or(refused)? = Some(at);
        Ok(())
    }
}

impl<R: Registers> Transport for ModernPci<R> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        [1, 0].into_iter().fold(0, |features, half| {
            self.common.write_u32(DEVICE_FEATURE_SELECT, half);
            features << 32 | u64::from(self.common.registers.read_u32(self.common.start + DEVICE_FEATURE))
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
    fn write_driver_features(&mut self, features: u64) {
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write_u32(DRIVER_FEATURE_SELECT, half);
            self.common.write_u32(DRIVER_FEATURE, value);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        self.common.read_u16(QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        // `find_doorbell` precedes the set-up of a queue.
        if let Some(&Some(at)) = self.doorbells.get(usize::from(queue)) {
            self.notify.write_u16(at, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        let status = self.common.registers.read_u8(self.common.start + DEVICE_STATUS);
        DeviceStatus::from_bits_truncate(status.into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let [low, ..] = status.bits().to_le_bytes();
        self.common.registers.write_u8(self.common.start + DEVICE_STATUS, low);
    }

    fn set_guest_page_size(&mut self, _bytes: u32) {
        // PCI devices take whole addresses.
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    #[expect(clippy::cast_possible_truncation, reason = "a queue has at most 32,768 descriptors")]
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.select(queue);
        self.common.write_u16(QUEUE_SIZE, size as u16);
        self.common.write_u64(QUEUE_DESCRIPTORS, descriptors);
        self.common.write_u64(QUEUE_DRIVER, driver_area);
        self.common.write_u64(QUEUE_DEVICE, device_area);
        self.common.write_u16(QUEUE_ENABLE, 1);
    }

    fn queue_unset(&mut self, _queue: u16) {
        // Over PCI a queue ends with the device's reset (4.1.4.3.2).
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.common.read_u16(QUEUE_ENABLE) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        // With MSI-X the message says all; the ISR register is not used (4.1.4.5.2).
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        self.common.registers.read_u8(self.common.start + CONFIG_GENERATION).into()
    }

    /// The driver side must read by the widths of the fields (4.1.3.1); network fields are of one or two bytes.
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        self.check_device_range(offset, size_of::<T>())?;
        let at = self.device.start + offset;
        let mut value = T::new_zeroed();
        if size_of::<T>() == 2 && at.is_multiple_of(2) {
            value.as_mut_bytes().copy_from_slice(&self.device.registers.read_u16(at).to_le_bytes());
        } else {
            for (byte, at) in value.as_mut_bytes().iter_mut().zip(at..) {
                *byte = self.device.registers.read_u8(at);
            }
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        self.check_device_range(offset, size_of::<T>())?;
        for (&byte, at) in value.as_bytes().iter().zip(self.device.start + offset..) {
            self.device.registers.write_u8(at, byte);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
