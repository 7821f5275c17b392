//! What crosses a boundary in Unum.
//!
//! * [`abi`]: the system calls, their registers, handles and errors: the boundary between kernel and service.
//! * [`vcpu`], [`guest`]: a virtual processor's state and exits, and what the guest is to be.
//! * [`image`]: the boot module that xtask writes and the kernel reads.
//! * [`channel`]: rings of descriptors in shared memory. [`frame`]: pages that change hands by name.
//! * [`message`], [`interface`](mod@interface), [`interfaces`]: calls from service to service, and what each service offers.
//! * [`log`]: the node's log on a serial line.
//! * [`wire`]: the frame between nodes.
//!
//! Everything here is safe code without hardware, and is tested on the host.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod channel;
pub mod frame;
pub mod guest;
pub mod image;
pub mod interface;
pub mod interfaces;
pub mod log;
pub mod message;
pub mod vcpu;
pub mod wire;
