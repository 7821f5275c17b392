//! Puts the kernel and its services to the test: runs each suite whose services the manifest has, says in the log how
//! each ended, and gives the verdict to the machine.
#![no_std]
#![no_main]

mod calls;
mod channels;
mod cores;
mod faults;
mod hermit;
mod kills;
mod timers;

use core::time::Duration;

use rt::capability::Endpoint;
use rt::start::Start;
use rt::text::Text;

rt::entry!(main);

/// How a suite ends when something is wrong: what.
type Failure = Text<104>;
type Outcome = Result<(), Failure>;

/// A suite's name, the service that it needs, and what it does.
type Suite = (&'static str, &'static str, fn(&Start<'_>) -> Outcome);

/// Fails a suite with a text.
macro_rules! fail {
    ($($text:tt)*) => { return Err(rt::text::Text::of(format_args!($($text)*))) };
}

/// Fails a suite unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            crate::fail!($($text)*);
        }
    };
}

pub(crate) use {ensure, fail};

/// What QEMU's debug exit port takes: the test tool knows these.
const PASS: u32 = 0x10;
const FAIL: u32 = 0x11;

fn main(start: &'static Start<'static>) -> ! {
    let suites: [Suite; 9] = [
        ("timers", "victim", timers::run),
        ("cores", "victim", cores::run),
        ("floating point", "victim", cores::floating_point),
        ("hermit-abi", "victim", hermit::run),
        ("calls", "victim", calls::run),
        ("channels", "victim", channels::run),
        ("faults", "victim", faults::run),
        ("restart limit", "doomed", faults::restart_limit),
        ("kills", "prey", kills::run),
    ];
    let mut failures = 0;
    for (name, needs, suite) in suites {
        if start.endpoint(needs).is_err() {
            continue;
        }
        match suite(start) {
            Ok(()) => defmt::info!("pass: {=str}", name),
            Err(text) => {
                failures += 1;
                defmt::error!("fail: {=str}: {=str}", name, text.as_str());
            }
        }
    }
    if let Ok(bits) = start.incoming("hostile-done") {
        match wait_for_hostile(start, bits) {
            Ok(()) => defmt::info!("pass: hostile"),
            Err(text) => {
                failures += 1;
                defmt::error!("fail: hostile: {=str}", text.as_str());
            }
        }
    }
    defmt::info!("verdict: {=u32} failed", failures);
    // So that what was logged gets out before the machine is gone.
    rt::sleep(Duration::from_millis(300));
    verdict(start, if failures == 0 { PASS } else { FAIL })
}

fn verdict(start: &Start<'_>, code: u32) -> ! {
    if let Ok(ports) = start.ports("verdict") {
        let width = rt::syscall::Width::Dword;
        if let Err(error) = rt::syscall::port_write(ports.handle, ports.first, width, code) {
            panic!("the verdict cannot be given: {error}");
        }
    }
    loop {
        rt::sleep(Duration::from_secs(3600));
    }
}

/// While the hostile service does its worst, others are served as ever.
fn wait_for_hostile(start: &Start<'_>, bits: u64) -> Outcome {
    let mut echo = test_services::echo::Client::new(endpoint(start, "echo")?);
    let give_up = rt::deadline_in(Duration::from_secs(300));
    loop {
        let got = echo.add(&[1, 2, 3, 4]);
        ensure!(got == Ok([2, 3, 4, 5]), "echo is disturbed: {got:?}");
        if rt::syscall::wait(bits, rt::deadline_in(Duration::from_millis(5))).is_ok() {
            break;
        }
        ensure!(rt::now() < give_up, "the hostile service did not finish");
    }
    let report = report_of(start, "hostile-done", Some("hostile"))?;
    ensure!(report.generation == 0, "the hostile service was restarted: {:?}", report.last_fault);
    Ok(())
}

/// The endpoint of a service, which the manifest has.
fn endpoint(start: &Start<'_>, name: &str) -> Result<Endpoint, Failure> {
    start.endpoint(name).map_err(|missing| Text::of(format_args!("{missing}")))
}

/// The supervisor's report of the service of this name.
fn report_of(
    start: &Start<'_>,
    name: &str,
    other: Option<&str>,
) -> Result<ipc::interfaces::supervisor::ServiceReport, Failure> {
    let wanted = other.unwrap_or(name);
    let mut supervisor = ipc::interfaces::supervisor::Client::new(endpoint(start, "supervisor")?);
    for number in 0..=u8::MAX {
        match supervisor.service_report(&number) {
            Ok(Some(report)) if report.name == wanted => return Ok(report),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => fail!("the supervisor does not report: {error}"),
        }
    }
    fail!("the supervisor knows no '{wanted}'")
}

/// Waits until `done`, and fails when it takes longer than `seconds`.
fn until(seconds: u64, what: &str, mut done: impl FnMut() -> Result<bool, Failure>) -> Outcome {
    let give_up = rt::deadline_in(Duration::from_secs(seconds));
    while !done()? {
        ensure!(rt::now() < give_up, "{what}: not within {seconds} s");
        rt::sleep(Duration::from_millis(1));
    }
    Ok(())
}
