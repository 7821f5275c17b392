//! Placeholder until the hostile service lands.
#![no_std]
#![no_main]
