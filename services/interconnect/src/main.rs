//! Carries messages and pages between nodes: the program.
#![no_std]
#![no_main]
