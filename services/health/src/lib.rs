//! Reports the node's state and carries its log out.
//!
//! * [`pump`]: takes records from the kernel's log rings and gives them to the serial port as it has room.
//! * [`observer`]: loads, memory and services, and the interface that tells of them.
//! * [`turns`]: telling of many things a few at a time.
//! * [`vcpus`]: what the guest's vCPUs did.
#![no_std]
#![forbid(unsafe_code)]

pub mod observer;
pub mod pump;
pub mod turns;
pub mod vcpus;
