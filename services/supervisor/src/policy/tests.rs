//! The policy against a kernel in memory, with chosen and with random events.

extern crate std;

use std::vec::Vec;

use ipc::abi::{FaultCause, FaultReport, ServiceState};
use ipc::image::NameString;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rt::time::Clock;
use zerocopy::FromZeros;

use super::{Action, Done, Known, Phase, Policy, START_MS, Terms};

/// One tick a microsecond.
const CLOCK: Clock = Clock::new(1_000_000);
const MS: u64 = 1_000;

fn terms(beat_ms: u32, restart_limit: u32) -> Terms {
    Terms {
        name: NameString::try_from("service").unwrap(),
        restart_limit,
        restart_period_ms: 10_000,
        beat_ms,
    }
}

fn report(service: u32, generation: u32) -> FaultReport {
    FaultReport {
        service,
        generation: u64::from(generation),
        cause: FaultCause::PageFault as u64,
        address: 0xdead,
        ..FaultReport::new_zeroed()
    }
}

/// The supervisor (0) and services with these beats.
fn policy(beats: &[u32], limit: u32) -> Policy {
    let mut policy = Policy::new(0, CLOCK, 0);
    policy.add(terms(0, 0), ServiceState::Running, 0, 0);
    for &beat in beats {
        policy.add(terms(beat, limit), ServiceState::Running, 0, 0);
    }
    policy
}

/// Does what is due at `now`, each with success and reloads in three steps; what was done.
fn settle(policy: &mut Policy, now: &mut u64) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut steps = 0;
    while let Some(action) = policy.due(*now) {
        if actions.last() != Some(&action) {
            actions.push(action);
        }
        let done = match action {
            Action::Reload(_) if steps < 3 => {
                steps += 1;
                Done::More
            }
            _ => Done::Finished,
        };
        policy.done(action, done, *now);
        if matches!(action, Action::Reload(_)) {
            *now += 100;
        }
    }
    actions
}

#[test]
fn a_service_is_up_from_its_registration_on() {
    let mut policy = policy(&[500, 0], 5);
    assert_eq!(policy.services()[1].phase, Phase::Starting);
    assert_eq!(policy.services()[2].phase, Phase::Up);
    assert!(!policy.announce_all_up());
    assert_eq!(policy.beat(1, 5), Known::No);
    assert_eq!(policy.registered(1, 10), Known::Yes);
    assert_eq!(policy.changed(), 10);
    assert!(policy.announce_all_up());
    assert!(!policy.announce_all_up());
    assert_eq!(policy.beat(1, 20), Known::Yes);
    assert_eq!(policy.registered(9, 20), Known::No);
}

#[test]
fn a_fault_leads_to_a_restart_after_the_pause() {
    let mut policy = policy(&[500], 5);
    policy.registered(1, 0);
    let mut now = 7;
    policy.faulted(&report(1, 0), now);
    assert_eq!(policy.services()[1].phase, Phase::Waiting { until: 7 + MS });
    assert_eq!(policy.beat(1, now), Known::No);
    assert_eq!(policy.registered(1, now), Known::No);
    now = policy.deadline();
    let actions = settle(&mut policy, &mut now);
    assert_eq!(actions, [Action::Reload(1), Action::Start(1)]);
    let watched = &policy.services()[1];
    assert_eq!((watched.phase, watched.generation), (Phase::Starting, 1));
    assert_eq!(watched.last_fault.unwrap().address, 0xdead);
    assert_eq!(policy.registered(1, now), Known::Yes);
    // The report of the life that ended comes a second time: it changes nothing.
    policy.faulted(&report(1, 0), now);
    assert_eq!(policy.services()[1].phase, Phase::Up);
}

#[test]
fn a_service_that_does_not_beat_is_looked_at_twice_and_stopped() {
    let mut policy = policy(&[500], 5);
    policy.registered(1, 0);
    assert_eq!(policy.deadline(), 500 * MS);
    assert_eq!(policy.due(500 * MS - 1), None);
    // The node stood still; the service beats as soon as it can.
    assert_eq!(policy.due(5_000 * MS), None);
    assert_eq!(policy.deadline(), 5_250 * MS);
    policy.beat(1, 5_001 * MS);
    assert_eq!(policy.deadline(), 5_501 * MS);
    // It does not.
    assert_eq!(policy.due(5_501 * MS), None);
    assert_eq!(policy.due(5_750 * MS), None);
    assert_eq!(policy.due(5_751 * MS), Some(Action::Stop(1)));
    policy.done(Action::Stop(1), Done::Finished, 5_751 * MS);
    assert_eq!(policy.due(6_000 * MS), None);
    policy.faulted(&report(1, 0), 5_752 * MS);
    assert!(matches!(policy.services()[1].phase, Phase::Waiting { .. }));
}

#[test]
fn a_service_that_does_not_register_is_stopped() {
    let mut policy = policy(&[500], 5);
    assert_eq!(policy.deadline(), (START_MS + 500) * MS);
    assert_eq!(policy.due((START_MS + 500) * MS), Some(Action::Stop(1)));
}

#[test]
fn past_its_limit_a_service_stays_down() {
    let mut policy = policy(&[500], 3);
    let mut now = 0;
    for generation in 0..3 {
        policy.registered(1, now);
        policy.faulted(&report(1, generation), now);
        now = policy.deadline();
        let actions = settle(&mut policy, &mut now);
        assert_eq!(actions, [Action::Reload(1), Action::Start(1)], "restart {generation}");
    }
    policy.faulted(&report(1, 3), now);
    assert_eq!(settle(&mut policy, &mut now), [Action::GiveUp(1)]);
    assert_eq!(policy.services()[1].phase, Phase::Down);
    assert_eq!(policy.deadline(), u64::MAX);
    policy.reconcile(1, ServiceState::Running, 4, now);
    policy.faulted(&report(1, 4), now);
    assert_eq!(settle(&mut policy, &mut now), []);
    assert_eq!(policy.registered(1, now), Known::No);
}

#[test]
fn a_restart_that_the_kernel_refuses_counts_as_a_fault() {
    let mut policy = policy(&[0], 2);
    let mut now = 0;
    policy.faulted(&report(1, 0), now);
    for _ in 0..2 {
        now = policy.deadline();
        let action = policy.due(now).unwrap();
        assert_eq!(action, Action::Reload(1));
        policy.done(action, Done::Failed, now);
    }
    assert_eq!(settle(&mut policy, &mut now), [Action::GiveUp(1)]);
}

#[test]
fn the_supervisor_itself_is_not_acted_upon() {
    let mut policy = policy(&[], 5);
    policy.faulted(&report(0, 0), 1);
    policy.reconcile(0, ServiceState::Stopped, 1, 2);
    assert_eq!(policy.due(u64::MAX - 1), None);
    assert!(policy.announce_all_up());
}

#[test]
fn a_stopped_service_without_a_report_is_found() {
    let mut policy = policy(&[500, 500, 0], 5);
    policy.registered(2, 0);
    for (service, state) in
        [(1, ServiceState::Stopped), (2, ServiceState::Reloading), (3, ServiceState::Ready)]
    {
        policy.reconcile(service, state, 1, 10);
        assert!(matches!(policy.services()[service].phase, Phase::Waiting { .. }), "{state:?}");
    }
    policy.reconcile(1, ServiceState::Down, 1, 10);
    assert_eq!(policy.services()[1].phase, Phase::Down);
}

/// What the kernel would know of a service.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    state: ServiceState,
    generation: u32,
    reload_steps: u32,
    reported: Option<u32>,
    restarts: u32,
    given_up: bool,
}

impl Kernel {
    fn stop(&mut self) {
        self.state = ServiceState::Stopped;
        self.reported = Some(self.generation);
        self.generation += 1;
    }

    fn perform(&mut self, action: Action, random: &mut ChaCha8Rng) -> Done {
        match action {
            Action::Stop(_) => {
                if self.state != ServiceState::Running {
                    return Done::More;
                }
                self.stop();
                Done::Finished
            }
            Action::Reload(_) => {
                assert!(!self.given_up, "a service that was given up was reloaded");
                assert!(!matches!(self.state, ServiceState::Running | ServiceState::Down));
                if self.state == ServiceState::Stopped {
                    self.reload_steps = random.random_range(0..5);
                    self.state = ServiceState::Reloading;
                }
                if self.reload_steps > 0 {
                    self.reload_steps -= 1;
                    return Done::More;
                }
                self.state = ServiceState::Ready;
                Done::Finished
            }
            Action::Start(_) => {
                assert_eq!(self.state, ServiceState::Ready);
                self.state = ServiceState::Running;
                self.restarts += 1;
                Done::Finished
            }
            Action::GiveUp(_) => {
                assert_ne!(self.state, ServiceState::Running);
                self.state = ServiceState::Down;
                self.given_up = true;
                Done::Finished
            }
        }
    }
}

#[test]
fn random_events_lose_no_service() {
    for seed in 0..300 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = random.random_range(1..6);
        let limit = random.random_range(0..6);
        let beats: Vec<u32> = (0..count).map(|_| if random.random() { 100 } else { 0 }).collect();
        let mut policy = policy(&beats, limit);
        let new = Kernel {
            state: ServiceState::Running,
            generation: 0,
            reload_steps: 0,
            reported: None,
            restarts: 0,
            given_up: false,
        };
        let mut kernel = std::vec![new; count + 1];
        let mut now = 0;
        for _ in 0..3_000 {
            now += random.random_range(0..40 * MS);
            let service = random.random_range(1..=count);
            match random.random_range(0..100) {
                0..6 if kernel[service].state == ServiceState::Running => kernel[service].stop(),
                6..60 => {
                    if kernel[service].state == ServiceState::Running
                        && policy.beat(service, now) == Known::No
                    {
                        policy.registered(service, now);
                    }
                }
                60..63 => {
                    policy.reconcile(service, kernel[service].state, kernel[service].generation, now);
                }
                // A report that comes a second time, or of a life before the last.
                63..65 if kernel[service].generation > 0 => {
                    let generation = random.random_range(0..kernel[service].generation);
                    policy.faulted(&report(u32::try_from(service).unwrap(), generation), now);
                }
                65..80 => {
                    for (number, service) in kernel.iter_mut().enumerate() {
                        if let Some(generation) = service.reported.take() {
                            policy.faulted(&report(u32::try_from(number).unwrap(), generation), now);
                        }
                    }
                }
                _ => {
                    let mut turns = 0;
                    while let Some(action) = policy.due(now) {
                        let (Action::Stop(n) | Action::Reload(n) | Action::Start(n) | Action::GiveUp(n)) =
                            action;
                        let done = kernel[usize::from(n)].perform(action, &mut random);
                        policy.done(action, done, now);
                        turns += 1;
                        assert!(turns < 100, "the supervisor hogs the core");
                    }
                }
            }
            assert_eq!(policy.services()[0].phase, Phase::Up);
        }
        // Left alone, every service ends as running or down.
        for _ in 0..200 {
            for (number, service) in kernel.iter_mut().enumerate() {
                if let Some(generation) = service.reported.take() {
                    policy.faulted(&report(u32::try_from(number).unwrap(), generation), now);
                }
                policy.reconcile(number, service.state, service.generation, now);
                if service.state == ServiceState::Running && policy.beat(number, now) == Known::No {
                    policy.registered(number, now);
                }
            }
            while let Some(action) = policy.due(now) {
                let (Action::Stop(n) | Action::Reload(n) | Action::Start(n) | Action::GiveUp(n)) = action;
                let done = kernel[usize::from(n)].perform(action, &mut random);
                policy.done(action, done, now);
            }
            now += 20 * MS;
        }
        for (number, (kernel, watched)) in kernel.iter().zip(policy.services()).enumerate() {
            let agree = matches!(
                (kernel.state, watched.phase),
                (ServiceState::Running, Phase::Up) | (ServiceState::Down, Phase::Down)
            );
            assert!(agree, "seed {seed}, service {number}: {kernel:?} {watched:?}");
            assert!(!kernel.given_up || kernel.restarts >= limit, "seed {seed}: given up too early");
        }
    }
}
