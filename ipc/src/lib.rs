//! What crosses a boundary in Unum.
//!
//! * [`abi`]: the system calls, their registers, handles and errors: the boundary between kernel and service.
//! * [`image`]: the boot module that xtask writes and the kernel reads.
//!
//! Everything here is safe code without hardware, and is tested on the host.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod image;
