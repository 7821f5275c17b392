//! Places virtual processors on cores: the program.
#![no_std]
#![no_main]
