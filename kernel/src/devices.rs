//! What services may do to devices through the kernel: ports, PCI configuration, DMA addresses, interrupts.

use ipc::abi::Error;

use crate::machine::{Machine, PciAddress, Width};
use crate::service::Object;
use crate::state::State;
use crate::syscall::Request;

/// The most bytes that one [`ipc::abi::Syscall::PortWriteBytes`] takes.
const MAX_PORT_BYTES: usize = 64;
/// Bytes of an MSI-X capability (PCI Local Bus Specification 3.0, 6.8.2).
const MSIX_CAPABILITY_BYTES: u16 = 12;
/// The base address registers of a type 0 header.
const BARS: core::ops::Range<u16> = 0x10..0x28;
/// The expansion ROM's base address register.
const ROM_BAR: core::ops::Range<u16> = 0x30..0x34;
/// Bytes of a function's extended configuration space.
const CONFIG_BYTES: u16 = 4096;

impl State {
    /// [`ipc::abi::Syscall::AcknowledgeInterrupt`].
    pub(crate) fn acknowledge(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let Object::Interrupt(index) = self.object(request)? else { return Err(Error::WrongKind) };
        if let Some(gsi) = self.interrupts.get(index).and_then(|line| line.masked) {
            m.unmask(gsi);
        }
        Ok(())
    }

    /// [`ipc::abi::Syscall::DmaAddress`].
    pub(crate) fn dma_address(&self, request: &Request) -> Result<u64, Error> {
        let Object::Dma { physical, bytes } = self.object(request)? else { return Err(Error::WrongKind) };
        let offset = request.registers.rsi;
        if offset < bytes { Ok(physical.0 + offset) } else { Err(Error::BadPointer) }
    }

    /// The port and width of a port access, when the whole of it lies in the range that the handle stands for.
    fn port(&self, request: &Request, bytes: u64) -> Result<(u16, Width), Error> {
        let Object::Ports { first, count } = self.object(request)? else { return Err(Error::WrongKind) };
        let width = Width::from_bytes(bytes).ok_or(Error::Malformed)?;
        let port = u16::try_from(request.registers.rsi).map_err(|_| Error::Refused)?;
        let offset = port.checked_sub(first).ok_or(Error::Refused)?;
        if u64::from(offset) + width.bytes() > u64::from(count) {
            return Err(Error::Refused);
        }
        Ok((port, width))
    }

    /// [`ipc::abi::Syscall::PortRead`].
    pub(crate) fn port_read(&mut self, m: &mut impl Machine, request: &Request) -> Result<u64, Error> {
        let (port, width) = self.port(request, request.registers.rdx)?;
        Ok(u64::from(m.port_read(port, width)))
    }

    /// [`ipc::abi::Syscall::PortWrite`].
    pub(crate) fn port_write(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let (port, width) = self.port(request, request.registers.rdx)?;
        m.port_write(port, width, (request.registers.r8 & 0xffff_ffff) as u32);
        Ok(())
    }

    /// [`ipc::abi::Syscall::PortWriteBytes`].
    pub(crate) fn port_write_bytes(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let (port, width) = self.port(request, 1)?;
        let mut buffer = [0; MAX_PORT_BYTES];
        let length = usize::try_from(request.registers.r8).map_err(|_| Error::Malformed)?;
        let bytes = buffer.get_mut(..length).ok_or(Error::Malformed)?;
        self.read_user(m, request.service, request.registers.rdx, bytes)?;
        for &byte in bytes.iter() {
            m.port_write(port, width, u32::from(byte));
        }
        Ok(())
    }

    /// The function, offset and width of a configuration access.
    fn config(&self, request: &Request) -> Result<(PciAddress, u16, u16, Width), Error> {
        let Object::PciFunction { address, msix } = self.object(request)? else {
            return Err(Error::WrongKind);
        };
        let width = Width::from_bytes(request.registers.rdx).ok_or(Error::Malformed)?;
        let offset = u16::try_from(request.registers.rsi).map_err(|_| Error::Malformed)?;
        if !u64::from(offset).is_multiple_of(width.bytes()) || offset >= CONFIG_BYTES {
            return Err(Error::Malformed);
        }
        Ok((address, msix, offset, width))
    }

    /// [`ipc::abi::Syscall::ConfigRead`].
    pub(crate) fn config_read(&mut self, m: &mut impl Machine, request: &Request) -> Result<u64, Error> {
        let (address, _, offset, width) = self.config(request)?;
        Ok(u64::from(m.config_read(address, offset, width)))
    }

    /// [`ipc::abi::Syscall::ConfigWrite`].
    pub(crate) fn config_write(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let (address, msix, offset, width) = self.config(request)?;
        let in_msix = msix != 0 && (msix..msix + MSIX_CAPABILITY_BYTES).contains(&offset);
        if BARS.contains(&offset) || ROM_BAR.contains(&offset) || in_msix {
            return Err(Error::Refused);
        }
        m.config_write(address, offset, width, (request.registers.r8 & 0xffff_ffff) as u32);
        Ok(())
    }
}
