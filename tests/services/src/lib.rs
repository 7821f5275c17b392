//! What the test services share.
#![no_std]
