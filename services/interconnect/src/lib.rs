//! Carries messages and pages between nodes.
#![no_std]
#![forbid(unsafe_code)]
