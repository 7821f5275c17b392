//! Exchanges frames with another node through the interconnect. Where the manifest names this service `frames` it
//! tests, on every node; where it names it `exchange` it measures, on one.
//!
//! When it fails it says why, and gives the verdict to the machine.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod frames;
mod link;
mod measure;

use core::time::Duration;

use rt::capability::Endpoint;
use rt::membership::{Membership, description, keep};
use rt::start::Start;
use rt::text::Text;

use link::Link;

rt::entry!(main);

/// Why it failed.
type Failure = Text<104>;

/// Fails with a text.
macro_rules! fail {
    ($($text:tt)*) => { return Err(rt::text::Text::of(format_args!($($text)*))) };
}
pub(crate) use fail;

/// What QEMU's debug exit port takes for a failure: the test tool knows it.
const FAIL: u32 = 0x11;
/// For what was logged to get out before the machine is gone.
const LINGER: Duration = Duration::from_millis(300);

fn main(start: &'static Start<'static>) -> ! {
    let description = description(start.name(), env!("CARGO_PKG_VERSION"), None);
    keep(&mut Membership::new(endpoint(start, "supervisor"), description, start.clock()), rt::now());
    let link = Link::new(endpoint(start, "interconnect"));
    let result = if start.name() == "frames" { frames::run(start, link) } else { measure::run(start, link) };
    if let Err(why) = result {
        defmt::error!("fail: {=str}: {=str}", start.name(), why.as_str());
        give_up(start);
    }
    loop {
        rt::sleep(Duration::from_secs(3600));
    }
}

fn endpoint(start: &Start<'_>, name: &str) -> Endpoint {
    match start.endpoint(name) {
        Ok(endpoint) => endpoint,
        Err(missing) => panic!("{missing}"),
    }
}

fn give_up(start: &Start<'_>) {
    rt::sleep(LINGER);
    let verdict = start.ports("verdict").map(|ports| ports.write(0, rt::syscall::Width::Dword, FAIL));
    if !matches!(verdict, Ok(Ok(()))) {
        panic!("the verdict cannot be given");
    }
}
