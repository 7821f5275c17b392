//! The microkernel's logic: safe code without hardware, tested on the host.
//!
//! The bare-metal program (`main.rs`, `hw/`) is a thin shell around it: it implements [`machine::Machine`], enters
//! here with a trap, and leaves to the [`context::UserContext`] that the logic chose.
#![no_std]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod address;
pub mod boot;
pub mod call;
pub mod context;
pub mod cpu;
pub mod devices;
pub mod elf;
pub mod frames;
pub mod guest;
pub mod ids;
pub mod inspect;
pub mod interrupts;
pub mod lifecycle;
pub mod load;
pub mod log_ring;
pub mod machine;
pub mod memory_map;
pub mod multiboot2;
pub mod paging;
pub mod physical;
pub mod pvh;
pub mod service;
pub mod state;
pub mod svm;
pub mod syscall;
pub mod table;
pub mod thread;
pub mod vcpu;

#[cfg(test)]
mod guest_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod vcpu_tests;
