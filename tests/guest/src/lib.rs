//! Guest payloads: what a virtual machine runs so that its monitor is tried.
//!
//! The program `kit` tests a Linux guest from user space. [`early`] makes kernels that try a monitor from ring 0, before
//! any operating system is there.

pub mod early;
pub mod random;
