//! Carries messages and pages between nodes.
//!
//! * [`card`]: what the service asks of a network card.
//! * [`station`]: the node on the wire: it announces itself, answers echoes, judges and counts what comes.
//! * [`peers`]: the other nodes.
//! * [`exchange`]: the measurement of bare exchanges.
//! * [`pace`]: when to poll the card and when to sleep.
//!
//! All of it is safe code that knows no device; the program adds the card and the loop.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod card;
pub mod clock;
pub mod exchange;
pub mod membership;
pub mod pace;
pub mod peers;
pub mod serial;
pub mod sink;
pub mod station;
pub mod statistics;
pub mod transport;

#[cfg(test)]
mod simulation;
