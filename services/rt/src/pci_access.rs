//! A PCI function's configuration space, through the kernel.

use ipc::abi::Error;

use crate::capability::PciFunction;
use crate::syscall::{self, Width};

impl PciFunction {
    /// Reads at an offset that is a multiple of the width.
    ///
    /// # Errors
    /// [`Error::Malformed`] for an offset past the end or not aligned.
    pub fn read(&self, offset: u16, width: Width) -> Result<u32, Error> {
        syscall::config_read(self.handle, offset, width)
    }

    /// Writes at an offset that is a multiple of the width.
    ///
    /// # Errors
    /// [`Error::Refused`] for the BARs and the MSI-X capability, which are the kernel's; [`Error::Malformed`]
    /// for an offset past the end or not aligned.
    pub fn write(&self, offset: u16, width: Width, value: u32) -> Result<(), Error> {
        syscall::config_write(self.handle, offset, width, value)
    }
}
