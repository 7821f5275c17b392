//! Watches the node's services and restarts those that fail.
//!
//! * [`policy`]: what to do with which service when; a state machine without clock or system calls.
//! * [`restarts`]: how often and how soon a service is started again.
//! * [`desk`]: the interface that services call, answered from the policy.
//! * [`trail`]: where the last log records of each service are.
//! * [`memory`]: what a supervisor tells its next life.
#![no_std]
#![forbid(unsafe_code)]

pub mod desk;
pub mod memory;
pub mod policy;
pub mod restarts;
pub mod trail;
