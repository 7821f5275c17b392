//! The runtime of a service.
//!
//! The safe half is plain code that services' logic and its tests use on the host: [`mod@start`] (what a service
//! is told at its start), [`capability`], [`time`], [`serve`] (the loop of a service), [`text`]. The
//! bare-metal half, with the feature `metal`, is the entry, the system calls, the heap, the log and
//! hermit-abi's symbols; no other crate of a service contains unsafe code.
#![no_std]

pub mod capability;
pub mod inspector;
pub mod membership;
pub mod serve;
pub mod start;
pub mod text;
pub mod time;

#[cfg(feature = "metal")]
pub mod endpoint;
#[cfg(feature = "metal")]
mod entry;
#[cfg(feature = "metal")]
pub mod guest;
#[cfg(feature = "metal")]
pub mod heap;
#[cfg(feature = "metal")]
mod hermit;
#[cfg(feature = "metal")]
pub mod lock;
#[cfg(feature = "metal")]
pub mod logger;
#[cfg(any(test, feature = "metal"))]
mod memory;
#[cfg(feature = "metal")]
pub mod page;
#[cfg(feature = "metal")]
pub mod pci_access;
#[cfg(feature = "metal")]
pub mod ports;
#[cfg(feature = "metal")]
pub mod processor;
#[cfg(feature = "metal")]
pub mod region;
#[cfg(feature = "metal")]
mod stack;
#[cfg(feature = "metal")]
pub mod syscall;

#[cfg(feature = "metal")]
pub use entry::{clock, deadline_in, now, sleep, start};
#[cfg(feature = "metal")]
pub use stack::current_slot;
