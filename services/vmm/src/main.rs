//! The guest's platform: the program.
//!
//! One thread does everything: it serves exits on the time of the vCPUs that make them, one after another, so nothing here
//! needs a lock.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod files;
mod link;
mod node;
mod program;
mod report;
mod terminal;

use rt::start::Start;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    program::Program::new(start).run()
}
