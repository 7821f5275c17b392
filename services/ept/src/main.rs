//! Decides over every page of guest memory: the program.
#![no_std]
#![no_main]
