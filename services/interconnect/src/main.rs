//! Carries messages and pages between nodes: the program.
#![no_std]
#![no_main]

mod guest;
mod nic;
mod program;
mod settings;
mod tell;

use rt::serve::serve;
use rt::start::Start;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    serve(&mut program::Program::new(start))
}
