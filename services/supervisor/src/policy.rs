//! What to do with which service when.
//!
//! The program feeds in what happened (a fault report, a registration, a beat, what the kernel says of a
//! service) with the time, asks for the [`Action`] that is due, does it, and says how it ended. A service
//! goes
//!
//! ```text
//! Starting -> Up -> (Stopping) -> Waiting -> Reloading -> Ready -> Starting
//!                                    \-> GivingUp -> Down
//! ```
//!
//! A service with a beat is up from its registration on, one without as soon as it runs. A beat that is
//! missing is looked at a second time half a beat later before the service is stopped: when the whole node
//! stood still, the service gets the chance to show that it lives.

use heapless::Vec;
use ipc::abi::{FaultReport, MAX_SERVICES, NEVER, ServiceState};
use ipc::image::NameString;
use rt::time::Clock;

use crate::restarts::{Restarts, Verdict};

/// How long a service with a beat may take from its start to its registration, in milliseconds.
pub const START_MS: u64 = 5_000;
/// The pause between two steps of a reload, in microseconds, so that what is less urgent than the supervisor
/// runs.
pub const RELOAD_PAUSE_US: u64 = 100;

/// What the image says of a service.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Its name.
    pub name: NameString,
    /// Restarts within the period after which it stays down.
    pub restart_limit: u32,
    /// The period in milliseconds.
    pub restart_period_ms: u32,
    /// The longest time between two beats in milliseconds; 0: none are due.
    pub beat_ms: u32,
}

/// Where a service stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Started, not yet registered.
    Starting,
    /// In service.
    Up,
    /// To be stopped; the kernel's report is to come.
    Stopping,
    /// Stopped; its restart is due at this time.
    Waiting {
        /// In ticks.
        until: u64,
    },
    /// Its memory is being restored; the next step is due at this time.
    Reloading {
        /// In ticks.
        next: u64,
    },
    /// Its memory is restored.
    Ready,
    /// Past its limit; the kernel is to be told.
    GivingUp,
    /// Stays down.
    Down,
}

/// What the program is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Stop the service, which did not register or beat in time.
    Stop(u8),
    /// Restore the next piece of the service.
    Reload(u8),
    /// Start the service.
    Start(u8),
    /// Mark the service as staying down.
    GiveUp(u8),
}

/// How an [`Action`] ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Done {
    /// It is done.
    Finished,
    /// There is more of it to do, later.
    More,
    /// The kernel refused.
    Failed,
}

/// Why a service was last stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// An [`ipc::abi::FaultCause`].
    pub cause: u64,
    /// Where it ran.
    pub instruction: u64,
    /// The address of a page fault.
    pub address: u64,
    /// When.
    pub tsc: u64,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What the image says of it.
    pub terms: Terms,
    /// Where it stands.
    pub phase: Phase,
    /// Which start it is at, or will be at next.
    pub generation: u32,
    /// Its restarts.
    pub restarts: Restarts,
    /// Why it was last stopped.
    pub last_fault: Option<Fault>,
    /// When it last registered or beat, since its start.
    pub last_beat: Option<u64>,
    /// When it was last started, or when the first supervisor began to watch it.
    pub started: u64,
    /// From when on this supervisor waits for its registration.
    awaited: u64,
    beat: u64,
    /// A beat is missing: when it is looked at again.
    second_look: Option<u64>,
}

/// Whether the policy knows a caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// It does.
    Yes,
    /// It has not registered since its start or the supervisor's.
    No,
}

/// All services of the node.
#[derive(Clone, Debug)]
pub struct Policy {
    services: Vec<Watched, MAX_SERVICES>,
    own: usize,
    start_time: u64,
    reload_pause: u64,
    clock: Clock,
    changed: u64,
    announced: bool,
}

impl Policy {
    /// No services yet; `own` is the number of the supervisor itself, which it does not watch.
    #[must_use]
    pub fn new(own: usize, clock: Clock, now: u64) -> Self {
        Self {
            services: Vec::new(),
            own,
            start_time: clock.milliseconds_to_ticks(START_MS),
            reload_pause: clock.milliseconds_to_ticks(RELOAD_PAUSE_US) / 1_000,
            clock,
            changed: now,
            announced: false,
        }
    }

    /// Adds the next service, as the kernel shows it; no more than [`MAX_SERVICES`] fit.
    pub fn add(&mut self, terms: Terms, state: ServiceState, generation: u32, now: u64) {
        let restarts = Restarts::new(terms.restart_limit, terms.restart_period_ms, self.clock);
        let beat = self.clock.milliseconds_to_ticks(u64::from(terms.beat_ms));
        let phase = match state {
            // The others are looked at by `reconcile`, once their history is known.
            ServiceState::Down => Phase::Down,
            _ if beat == 0 || self.services.len() == self.own => Phase::Up,
            _ => Phase::Starting,
        };
        // A further service would be one more than an image can hold.
        let _ = self.services.push(Watched {
            terms,
            phase,
            generation,
            restarts,
            last_fault: None,
            last_beat: None,
            started: now,
            awaited: now,
            beat,
            second_look: None,
        });
    }

    /// The services, by number.
    #[must_use]
    pub fn services(&self) -> &[Watched] {
        &self.services
    }

    pub(crate) fn services_mut(&mut self) -> &mut [Watched] {
        &mut self.services
    }

    /// The clock that ticks are of.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// When a service last came up or went down.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.changed
    }

    fn watched(&mut self, service: usize) -> Option<&mut Watched> {
        if service == self.own { None } else { self.services.get_mut(service) }
    }

    fn set_phase(&mut self, service: usize, phase: Phase, now: u64) {
        if let Some(watched) = self.watched(service) {
            let settled = |phase| matches!(phase, Phase::Up | Phase::Down);
            let changes = watched.phase != phase && (settled(watched.phase) || settled(phase));
            watched.phase = phase;
            if changes {
                self.changed = now;
            }
        }
    }

    /// A service was stopped and reported.
    pub fn faulted(&mut self, report: &FaultReport, now: u64) {
        let service = report.service as usize;
        let Some(watched) = self.watched(service) else { return };
        let generation = u32::try_from(report.generation).unwrap_or(u32::MAX);
        watched.last_fault = Some(Fault {
            cause: report.cause,
            instruction: report.registers.rip,
            address: report.address,
            tsc: report.tsc,
        });
        // A life that this supervisor already saw end was already judged.
        if generation >= watched.generation {
            watched.generation = generation.wrapping_add(1);
            self.stopped(service, now);
        }
    }

    /// A service stopped: judges it, unless that was done.
    fn stopped(&mut self, service: usize, now: u64) {
        let Some(watched) = self.watched(service) else { return };
        if !matches!(watched.phase, Phase::Starting | Phase::Up | Phase::Stopping) {
            return;
        }
        self.judge(service, now);
    }

    fn judge(&mut self, service: usize, now: u64) {
        let Some(watched) = self.watched(service) else { return };
        watched.last_beat = None;
        watched.second_look = None;
        let phase = match watched.restarts.fault(now, watched.started) {
            Verdict::RestartAt(until) => Phase::Waiting { until },
            Verdict::GiveUp => Phase::GivingUp,
        };
        self.set_phase(service, phase, now);
    }

    /// Compares a service with what the kernel says of it: at the supervisor's start, and from time to time,
    /// so that no service is forgotten.
    pub fn reconcile(&mut self, service: usize, state: ServiceState, generation: u32, now: u64) {
        let Some(watched) = self.watched(service) else { return };
        watched.generation = generation;
        match (watched.phase, state) {
            (Phase::Down, _) => {}
            (_, ServiceState::Down) => self.set_phase(service, Phase::Down, now),
            // It was not stopped, or it was restarted by somebody else.
            (Phase::Stopping, ServiceState::Running) => self.started(service, now),
            (Phase::Starting | Phase::Up | Phase::Stopping, state) if state != ServiceState::Running => {
                self.stopped(service, now);
            }
            _ => {}
        }
    }

    fn started(&mut self, service: usize, now: u64) {
        let Some(watched) = self.watched(service) else { return };
        watched.started = now;
        watched.awaited = now;
        watched.last_beat = None;
        watched.second_look = None;
        let phase = if watched.beat == 0 { Phase::Up } else { Phase::Starting };
        self.set_phase(service, phase, now);
    }

    /// A service registered. [`Known::No`] when it is not running any more, as far as the policy knows.
    pub fn registered(&mut self, service: usize, now: u64) -> Known {
        let Some(watched) = self.watched(service) else { return Known::No };
        if !matches!(watched.phase, Phase::Starting | Phase::Up) {
            return Known::No;
        }
        watched.last_beat = Some(now);
        watched.second_look = None;
        self.set_phase(service, Phase::Up, now);
        Known::Yes
    }

    /// A service beat.
    pub fn beat(&mut self, service: usize, now: u64) -> Known {
        let Some(watched) = self.watched(service) else { return Known::No };
        if watched.last_beat.is_none() {
            return Known::No;
        }
        watched.last_beat = Some(now);
        watched.second_look = None;
        Known::Yes
    }

    /// When something is next due, in ticks.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        (0..self.services.len()).map(|service| self.due_at(service)).min().unwrap_or(NEVER)
    }

    fn due_at(&self, service: usize) -> u64 {
        let Some(watched) = self.services.get(service).filter(|_| service != self.own) else { return NEVER };
        match watched.phase {
            Phase::Starting => watched.awaited.saturating_add(self.start_time).saturating_add(watched.beat),
            Phase::Up => match (watched.second_look, watched.last_beat) {
                _ if watched.beat == 0 => NEVER,
                (Some(look), _) => look,
                (None, Some(last)) => last.saturating_add(watched.beat),
                (None, None) => NEVER,
            },
            Phase::Waiting { until: at } | Phase::Reloading { next: at } => at,
            Phase::Ready | Phase::GivingUp => 0,
            Phase::Stopping | Phase::Down => NEVER,
        }
    }

    /// The action that is due, if any; the program does it and calls [`Policy::done`].
    pub fn due(&mut self, now: u64) -> Option<Action> {
        for service in 0..self.services.len() {
            if self.due_at(service) <= now
                && let Some(action) = self.act(service, now)
            {
                return Some(action);
            }
        }
        None
    }

    fn act(&mut self, service: usize, now: u64) -> Option<Action> {
        let number = u8::try_from(service).ok()?;
        let watched = self.watched(service)?;
        match watched.phase {
            Phase::Up if watched.second_look.is_none() => {
                watched.second_look = Some(now.saturating_add(watched.beat / 2));
                None
            }
            Phase::Up | Phase::Starting => {
                self.set_phase(service, Phase::Stopping, now);
                Some(Action::Stop(number))
            }
            Phase::Waiting { .. } | Phase::Reloading { .. } => {
                self.set_phase(
                    service,
                    Phase::Reloading { next: now.saturating_add(self.reload_pause) },
                    now,
                );
                Some(Action::Reload(number))
            }
            Phase::Ready => Some(Action::Start(number)),
            Phase::GivingUp => Some(Action::GiveUp(number)),
            Phase::Stopping | Phase::Down => None,
        }
    }

    /// An action ended.
    pub fn done(&mut self, action: Action, done: Done, now: u64) {
        match (action, done) {
            // The report says the rest; when the service had already stopped, there is one already.
            (Action::Stop(_), Done::Finished | Done::More) => {}
            (Action::Reload(service), Done::Finished) => {
                self.set_phase(usize::from(service), Phase::Ready, now)
            }
            (Action::Reload(_), Done::More) => {}
            (Action::Start(service), Done::Finished) => self.started(usize::from(service), now),
            (Action::GiveUp(service), _) => self.set_phase(usize::from(service), Phase::Down, now),
            (Action::Stop(service) | Action::Reload(service) | Action::Start(service), _) => {
                self.judge(usize::from(service), now);
            }
        }
    }

    /// Whether all services are up and this was not yet said.
    pub fn announce_all_up(&mut self) -> bool {
        let news = !self.announced && self.services.iter().all(|watched| watched.phase == Phase::Up);
        self.announced |= news;
        news
    }

    pub(crate) fn announced_mut(&mut self) -> &mut bool {
        &mut self.announced
    }

    pub(crate) fn announced(&self) -> bool {
        self.announced
    }
}

#[cfg(test)]
mod tests;
