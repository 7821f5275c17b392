//! Places virtual processors on cores.
#![no_std]
#![forbid(unsafe_code)]
