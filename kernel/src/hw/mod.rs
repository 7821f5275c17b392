//! The hardware layer: the only part of the kernel that is not safe Rust.
//!
//! [`boot`] enters `crate::kernel_main` on the first core and [`smp`] `crate::ap_main` on the others; both end in
//! [`boot::leave`]. From then on [`entry`] calls `crate::on_syscall`, `crate::on_interrupt` and
//! `crate::on_exception`, and goes on with whatever [`percpu::PerCpu::set_current`] chose last.

pub mod apic;
pub mod boot;
pub mod clock;
pub mod console;
pub mod direct;
pub mod entry;
mod extended;
mod gdt;
mod idt;
pub mod instructions;
pub mod ioapic;
pub mod lock;
pub mod machine;
mod mem;
pub mod msix;
pub mod panic;
pub mod pci;
pub mod percpu;
mod pic;
pub mod ports;
pub mod power;
pub mod processor;
pub mod smp;
pub mod space;
pub mod stacks;
pub mod svm;
