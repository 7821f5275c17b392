//! Reports the node's state and carries its log out.
#![no_std]
#![forbid(unsafe_code)]
