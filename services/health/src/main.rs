//! Reports the node's state and carries its log out: the program.
#![no_std]
#![no_main]
