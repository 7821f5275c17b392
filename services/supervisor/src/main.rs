//! Watches the node's services and restarts those that fail: the program.
#![no_std]
#![no_main]
