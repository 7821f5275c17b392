//! Watches the node's services and restarts those that fail.
#![no_std]
#![forbid(unsafe_code)]
