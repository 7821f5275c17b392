//! virtio-net with [64-byte header][page] descriptor chains.
#![no_std]
