//! A service that is killed a thousand times in a row, under load, costs no memory and loses nobody's call.

use ipc::abi::Inspect;
use ipc::message::CallError;
use rt::start::Start;
use test_services::crime::Crime;
use test_services::load::{self, Tally};
use test_services::{echo, victim};

use crate::{Outcome, endpoint, ensure, fail, report_of, until};

/// How often.
const KILLS: u64 = 1_000;
/// In what way, one after another: quick ones, so that the load is what takes the time.
const CRIMES: [Crime; 4] = [Crime::Panic, Crime::NullWrite, Crime::Overflow, Crime::InvalidOpcode];

/// Kills, and compares the counts of memory and of calls.
pub fn run(start: &Start<'_>) -> Outcome {
    let mut prey = victim::Client::new(endpoint(start, "prey")?);
    let mut load = load::Client::new(endpoint(start, "load")?);
    let mut echo = echo::Client::new(endpoint(start, "echo")?);
    let free = free_frames()?;
    let mut kills = 0;
    while kills < KILLS {
        let crime = CRIMES[usize::try_from(kills).unwrap_or(0) % CRIMES.len()];
        match prey.commit(&(crime as u64)) {
            Err(CallError::Restarted) => kills += 1,
            other => fail!("kill {kills}: {other:?}"),
        }
        let got = echo.add(&[kills; 4]);
        ensure!(got == Ok([kills + 1; 4]), "echo after kill {kills}: {got:?}");
        if kills.is_multiple_of(100) {
            defmt::info!("{=u64} kills", kills);
        }
    }
    until(20, "the last restart", || Ok(prey.counts().is_ok()))?;
    let generation = report_of(start, "prey", None)?.generation;
    ensure!(u64::from(generation) == KILLS, "killed {KILLS} times, restarted {generation} times");
    ensure!(free_frames()? == free, "{free} frames were free, now {}", free_frames()?);
    let tallies = (load.to_prey(), load.to_echo());
    let (Ok(to_prey), Ok(to_echo)) = tallies else { fail!("the load does not answer: {tallies:?}") };
    defmt::info!(
        "under load: {=u64} calls to the prey, of which {=u64} ended as restarted; {=u64} to another service",
        to_prey.calls,
        to_prey.restarted,
        to_echo.calls
    );
    all_accounted_for("the prey", to_prey)?;
    all_accounted_for("echo", to_echo)?;
    ensure!(to_echo.restarted == 0, "a call to another service was lost: {to_echo:?}");
    ensure!(
        to_prey.restarted > 0 && to_prey.right > 0 && to_echo.right > 0,
        "there was no load: {tallies:?}"
    );
    Ok(())
}

/// Every call ended in a defined way; one may be under way.
fn all_accounted_for(of: &str, tally: Tally) -> Outcome {
    let ended = tally.right + tally.restarted + tally.wrong;
    ensure!(tally.wrong == 0, "calls to {of}: {tally:?}");
    ensure!(tally.calls >= ended && tally.calls - ended <= 1, "calls to {of} do not add up: {tally:?}");
    Ok(())
}

fn free_frames() -> Result<u64, crate::Failure> {
    match rt::syscall::inspect(Inspect::Node, 0) {
        Ok([_, free, ..]) => Ok(free),
        Err(error) => fail!("the kernel does not show its memory: {error}"),
    }
}
