//! The runtime of a service.
#![no_std]
