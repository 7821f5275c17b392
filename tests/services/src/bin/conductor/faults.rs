//! Each way to fail ends the service that fails, and nothing else; it comes back as new.

use ipc::abi::FaultCause;
use ipc::interfaces::supervisor::Standing;
use ipc::message::CallError;
use rt::capability::Endpoint;
use rt::start::Start;
use test_services::crime::{ALL, Crime};
use test_services::{echo, victim};

use crate::{Outcome, endpoint, ensure, fail, report_of, until};

/// Has the victim commit every crime in turn.
pub fn run(start: &Start<'_>) -> Outcome {
    let mut victim = victim::Client::new(endpoint(start, "victim")?);
    let mut echo = echo::Client::new(endpoint(start, "echo")?);
    let before = echo_generation(start)?;
    for (number, crime) in ALL.into_iter().enumerate() {
        commit(start, &mut victim, "victim", crime)?;
        let got = echo.add(&[number as u64; 4]);
        ensure!(got == Ok([number as u64 + 1; 4]), "echo after {crime:?}: {got:?}");
        match victim.counts() {
            // Its memory is as at the first start, but for the region that it keeps.
            Ok([1, starts]) => ensure!(starts == number as u64 + 2, "{starts} starts after {crime:?}"),
            other => fail!("the victim after {crime:?}: {other:?}"),
        }
        defmt::info!("isolated: {=str}", name(crime).as_str());
    }
    ensure!(echo_generation(start)? == before, "echo was restarted");
    Ok(())
}

fn name(crime: Crime) -> rt::text::Text<24> {
    rt::text::Text::of(format_args!("{crime:?}"))
}

fn echo_generation(start: &Start<'_>) -> Result<u32, crate::Failure> {
    Ok(report_of(start, "echo", None)?.generation)
}

/// Has a service commit a crime, and waits until it is back.
fn commit(start: &Start<'_>, client: &mut victim::Client<Endpoint>, name: &str, crime: Crime) -> Outcome {
    let before = report_of(start, name, None)?;
    let got = client.commit(&(crime as u64));
    ensure!(got == Err(CallError::Restarted), "the call to a service that commits {crime:?}: {got:?}");
    until(20, "a restart", || {
        let report = report_of(start, name, None)?;
        Ok(report.generation == before.generation + 1 && report.standing == Standing::Up)
    })?;
    let report = report_of(start, name, None)?;
    let cause = report.last_fault.map(|fault| fault.cause);
    ensure!(cause == Some(crime.cause()), "{crime:?} is reported as {cause:?}");
    Ok(())
}

/// Past its restart limit a service stays down, and says so to its callers.
pub fn restart_limit(start: &Start<'_>) -> Outcome {
    let mut doomed = victim::Client::new(endpoint(start, "doomed")?);
    for _ in 0..2 {
        commit(start, &mut doomed, "doomed", Crime::Panic)?;
    }
    let got = doomed.commit(&(Crime::Divide as u64));
    // By the time that the runtime asks for the way on, the supervisor may have given it up.
    let ended = matches!(got, Err(CallError::Restarted | CallError::Down));
    ensure!(ended, "the last call: {got:?}");
    until(20, "giving up", || Ok(report_of(start, "doomed", None)?.standing == Standing::Down))?;
    let got = doomed.counts();
    ensure!(got == Err(CallError::Down), "a call to a service that is down: {got:?}");
    let cause = report_of(start, "doomed", None)?.last_fault.map(|fault| fault.cause);
    ensure!(cause == Some(FaultCause::Exception), "the last fault: {cause:?}");
    Ok(())
}
