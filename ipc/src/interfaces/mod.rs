//! The interfaces of the system's services, one module each.
//!
//! | number | interface | served by |
//! | --- | --- | --- |
//! | 1 | [`supervisor`] | supervisor |
//! | 2 | [`health`] | health |
//! | 3 | [`ept`] | ept |
//! | 4 | [`interconnect`] | interconnect |
//! | 5 | [`scheduler`] | scheduler |
//! | 6 | [`vmm`] | vmm |
//!
//! Loads are in permille of one core over the server's last period of observation.

pub mod ept;
pub mod health;
pub mod interconnect;
pub mod scheduler;
pub mod supervisor;
pub mod vmm;

#[cfg(test)]
mod tests;
