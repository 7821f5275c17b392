//! Carries messages and pages between nodes.
//!
//! * [`card`]: what the service asks of a network card.
//! * [`node`]: the interconnect as one state machine; it is made of [`transport`] (reliable channels),
//!   [`membership`] (who belongs to the cluster) and [`clock`] (one time for all); [`sink`] is what it asks of its
//!   surroundings, [`statistics`] what it counts.
//! * [`station`]: the node at its card: whose page frames are when, and bare exchanges.
//! * [`exchange`]: the measurement of bare exchanges.
//! * [`pace`]: when to poll the card and when to sleep.
//!
//! All of it is safe code that knows no device; the program adds the card and the loop.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod card;
pub mod clock;
pub mod exchange;
pub mod membership;
pub mod node;
pub mod pace;
pub mod serial;
pub mod sink;
pub mod station;
pub mod statistics;
pub mod transport;

#[cfg(test)]
mod simulation;

/// Bytes of a page.
const PAGE: u16 = 4096;
const _: () = assert!(PAGE as usize == ipc::wire::MAX_PAYLOAD);
