//! What the supervisor asks of the kernel.

use core::sync::atomic::Ordering;

use ipc::abi::{Error, FaultReport, Inspect, MAX_NAME_BYTES, Name, ServiceOperation, ServiceState};
use ipc::image::NameString;
use ipc::message::MessagePage;
use rt::capability::Region;
use rt::page::Page;
use rt::syscall;
use supervisor::memory::Memory;
use supervisor::policy::{Action, Done, Terms};
use zerocopy::{FromZeros, IntoBytes};

/// All services: what the image says of each, its state and its generation.
pub(crate) fn services() -> impl Iterator<Item = (Terms, ServiceState, u32)> {
    (0..).map_while(service)
}

fn service(number: u64) -> Option<(Terms, ServiceState, u32)> {
    let [first, second, restarts, beat] = syscall::inspect(Inspect::ServiceName, number).ok()?;
    let [_, state, generation, _] = syscall::inspect(Inspect::Service, number).ok()?;
    let mut name = [0; MAX_NAME_BYTES];
    name.as_mut_slice().copy_from_slice([first.to_le_bytes(), second.to_le_bytes()].as_flattened());
    let [limit, period] = halves(restarts);
    let terms = Terms {
        name: NameString::try_from(Name(name).as_str()).unwrap_or_default(),
        restart_limit: limit,
        restart_period_ms: period,
        beat_ms: halves(beat)[0],
    };
    let [state, ..] = state.to_le_bytes();
    Some((terms, ServiceState::from_number(state)?, halves(generation)[0]))
}

/// When the kernel was entered, in ticks.
pub(crate) fn entered() -> u64 {
    syscall::inspect(Inspect::Boot, 0).map_or(0, |[entered, ..]| entered)
}

/// The low half and the high half of a word.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The oldest fault report that was not taken yet.
pub(crate) fn next_fault() -> Option<FaultReport> {
    syscall::next_fault().ok()?;
    let mut report = FaultReport::new_zeroed();
    Page.read(report.as_mut_bytes());
    Some(report)
}

/// Does an action; how it ended, and with which error if with one that says more than "later".
pub(crate) fn perform(action: Action) -> (Done, Option<Error>) {
    let (service, operation) = match action {
        Action::Stop(service) => (service, ServiceOperation::Stop),
        Action::Reload(service) => (service, ServiceOperation::Reload),
        Action::Start(service) => (service, ServiceOperation::Start),
        Action::GiveUp(service) => (service, ServiceOperation::GiveUp),
    };
    match (syscall::control(u64::from(service), operation), action) {
        (Ok(()), _) => (Done::Finished, None),
        (Err(Error::Again), Action::Reload(_) | Action::Stop(_)) => (Done::More, None),
        (Err(error), _) => (Done::Failed, Some(error)),
    }
}

/// The region that outlives the supervisor's restarts, if the manifest gives it.
pub(crate) struct Kept(pub(crate) Option<Region>);

impl Memory for Kept {
    fn load(&self, index: usize) -> Option<u64> {
        Some(self.0?.words().get(index)?.load(Ordering::Relaxed))
    }

    fn store(&mut self, index: usize, value: u64) {
        if let Some(word) =
            self.0.filter(|region| region.writable).and_then(|region| region.words().get(index))
        {
            word.store(value, Ordering::Relaxed);
        }
    }
}
