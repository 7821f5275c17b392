//! The microkernel's logic: safe code without hardware, tested on the host.
//!
//! The bare-metal program (`main.rs`, `hw/`) is a thin shell around it: it implements [`machine::Machine`], enters
//! here with a trap, and leaves to the [`context::UserContext`] that the logic chose.
#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod context;
pub mod machine;
