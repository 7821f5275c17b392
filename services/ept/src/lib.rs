//! Decides over every page of guest memory.
#![no_std]
#![forbid(unsafe_code)]
