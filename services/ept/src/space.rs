//! What the service asks of the kernel: page operations on the guest space.

use ipc::abi::Error;

use crate::frames::Frame;
use crate::layout::GuestPage;

/// What the guest, and the platform's window, may do with a page. Execution is always allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

/// What is to be in the frames when they appear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contents {
    /// Zeros: the frames are cleared first.
    Zero,
    /// What is in them.
    AsIs,
}

/// The guest space of this node. Each operation is one call of the kernel; when it returns, every view has changed and every
/// TLB is flushed. When it fails, nothing has changed.
pub trait Space {
    /// Maps `count` guest pages from `first` on to as many frames from `frame` on, in place of what was mapped there. They
    /// all lie in one 2 MiB range; more than one frame are contiguous. All 512 pages of a range are one large page.
    ///
    /// # Errors
    /// As the kernel says.
    fn map(
        &mut self,
        first: GuestPage,
        frame: Frame,
        count: usize,
        access: Access,
        contents: Contents,
    ) -> Result<(), Error>;

    /// Takes away `count` guest pages, at most 512 in one 2 MiB range, whether mapped or not.
    ///
    /// # Errors
    /// As the kernel says.
    fn unmap(&mut self, first: GuestPage, count: usize) -> Result<(), Error>;
}
