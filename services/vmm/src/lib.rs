//! The guest's platform: what is not memory or a plain instruction.
//!
//! Each module is logic without hardware, tested on the host.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod acpi;
pub mod apic;
pub mod boot;
pub mod clock;
pub mod cluster;
pub mod cpuid;
pub mod emulate;
pub mod interrupt;
pub mod ioapic;
pub mod legacy;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod node_clock;
pub mod ports;
pub mod power;
pub mod rtc;
pub mod topology;
pub mod uart;
pub mod walk;
pub mod walk_cache;
