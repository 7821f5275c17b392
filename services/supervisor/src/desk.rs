//! The interface that services call, answered from the policy.

use ipc::abi::FaultCause;
use ipc::interfaces::supervisor::{
    Beat, BeatAnswer, BeatReply, Description, LastFault, NodeState, Registration, Server, ServiceReport,
    Standing,
};
use ipc::message::{Caller, Refused};

use crate::policy::{Fault, Known, Phase, Policy, Watched};

/// Answers one message at one time.
#[derive(Debug)]
pub struct Desk<'a> {
    /// What is known.
    pub policy: &'a mut Policy,
    /// The time, in ticks.
    pub now: u64,
    /// What a service that registered said of itself.
    pub registered: Option<Description>,
}

impl Desk<'_> {
    fn milliseconds_since(&self, then: u64) -> u64 {
        self.policy.clock().microseconds(self.now.saturating_sub(then)) / 1_000
    }

    fn last_fault(&self, fault: &Fault) -> Option<LastFault> {
        Some(LastFault {
            cause: FaultCause::from_number(fault.cause)?,
            instruction: fault.instruction,
            address: fault.address,
            age_ms: self.milliseconds_since(fault.tsc),
        })
    }

    fn report(&self, watched: &Watched) -> ServiceReport {
        let beat_age = watched.last_beat.map(|then| self.milliseconds_since(then));
        ServiceReport {
            name: watched.terms.name.clone(),
            standing: match watched.phase {
                Phase::Starting => Standing::Starting,
                Phase::Up => Standing::Up,
                Phase::Stopping | Phase::Waiting { .. } | Phase::Reloading { .. } | Phase::Ready => {
                    Standing::Restarting
                }
                Phase::GivingUp | Phase::Down => Standing::Down,
            },
            generation: watched.generation,
            recent_restarts: u16::try_from(watched.restarts.recent(self.now)).unwrap_or(u16::MAX),
            last_fault: watched.last_fault.as_ref().and_then(|fault| self.last_fault(fault)),
            beat_age_ms: beat_age.map(|age| u32::try_from(age).unwrap_or(u32::MAX)),
        }
    }

    fn beat_ms(&self, service: usize) -> u32 {
        self.policy.services().get(service).map_or(0, |watched| watched.terms.beat_ms)
    }
}

impl Server for Desk<'_> {
    fn register(&mut self, caller: Caller, description: Description) -> Result<Registration, Refused> {
        let watched = self.policy.services().get(caller.service).ok_or(Refused)?;
        if watched.terms.name != description.name {
            return Err(Refused);
        }
        if self.policy.registered(caller.service, self.now) == Known::No {
            return Err(Refused);
        }
        self.registered = Some(description);
        let service = u8::try_from(caller.service).map_err(|_| Refused)?;
        Ok(Registration { service, beat_ms: self.beat_ms(caller.service) })
    }

    fn beat(&mut self, caller: Caller, _beat: Beat) -> Result<BeatReply, Refused> {
        let answer = match self.policy.beat(caller.service, self.now) {
            Known::Yes => BeatAnswer::Accepted,
            Known::No => BeatAnswer::RegisterAgain,
        };
        Ok(BeatReply { answer, due_ms: u64::from(self.beat_ms(caller.service)) })
    }

    fn service_report(&mut self, _caller: Caller, service: u8) -> Result<Option<ServiceReport>, Refused> {
        Ok(self.policy.services().get(usize::from(service)).map(|watched| self.report(watched)))
    }

    fn node_state(&mut self, _caller: Caller) -> Result<NodeState, Refused> {
        let count = |phase| {
            let count = self.policy.services().iter().filter(|watched| watched.phase == phase).count();
            u8::try_from(count).unwrap_or(u8::MAX)
        };
        Ok(NodeState {
            up: count(Phase::Up),
            down: count(Phase::Down),
            total: u8::try_from(self.policy.services().len()).unwrap_or(u8::MAX),
            since_ms: self.milliseconds_since(self.policy.changed()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::abi::{FaultReport, ServiceState, Token};
    use ipc::image::NameString;
    use rt::time::Clock;
    use zerocopy::FromZeros;

    use crate::policy::Terms;

    fn policy() -> Policy {
        let mut policy = Policy::new(0, Clock::new(1_000_000), 0);
        for (name, beat_ms) in [("supervisor", 0), ("ept", 500)] {
            let name = NameString::try_from(name).unwrap();
            let terms = Terms { name, restart_limit: 5, restart_period_ms: 10_000, beat_ms };
            policy.add(terms, ServiceState::Running, 0, 0);
        }
        policy
    }

    fn desk(policy: &mut Policy, now: u64) -> Desk<'_> {
        Desk { policy, now, registered: None }
    }

    fn description(name: &str) -> Description {
        Description {
            name: NameString::try_from(name).unwrap(),
            version: "1".try_into().unwrap(),
            interface: None,
        }
    }

    const EPT: Caller = Caller::of(Token::new(1, 1, 1));
    const STRANGER: Caller = Caller::of(Token::new(9, 9, 1));

    #[test]
    fn a_service_registers_under_its_own_name_only() {
        let mut policy = policy();
        let mut desk = desk(&mut policy, 10);
        assert_eq!(desk.register(EPT, description("supervisor")), Err(Refused));
        assert_eq!(desk.register(STRANGER, description("ept")), Err(Refused));
        assert_eq!(desk.registered, None);
        let again = BeatReply { answer: BeatAnswer::RegisterAgain, due_ms: 500 };
        assert_eq!(desk.beat(EPT, Beat { sequence: 0 }), Ok(again));
        let registration = desk.register(EPT, description("ept"));
        assert_eq!(registration, Ok(Registration { service: 1, beat_ms: 500 }));
        assert!(desk.registered.is_some());
        let accepted = BeatReply { answer: BeatAnswer::Accepted, due_ms: 500 };
        assert_eq!(desk.beat(EPT, Beat { sequence: 1 }), Ok(accepted));
        let stranger = desk.beat(STRANGER, Beat { sequence: 1 });
        assert_eq!(stranger, Ok(BeatReply { answer: BeatAnswer::RegisterAgain, due_ms: 0 }));
    }

    #[test]
    fn reports_say_what_became_of_a_service() {
        let mut policy = policy();
        desk(&mut policy, 10).register(EPT, description("ept")).unwrap();
        let state = desk(&mut policy, 2_010).node_state(EPT).unwrap();
        assert_eq!(state, NodeState { up: 2, down: 0, total: 2, since_ms: 2 });
        assert!(state.all_up());
        let up = desk(&mut policy, 3_010).service_report(EPT, 1).unwrap().unwrap();
        assert_eq!((up.standing, up.beat_age_ms, up.last_fault), (Standing::Up, Some(3), None));

        let fault = FaultReport {
            service: 1,
            cause: FaultCause::Budget as u64,
            tsc: 4_000,
            ..FaultReport::new_zeroed()
        };
        policy.faulted(&fault, 5_000);
        let report = desk(&mut policy, 9_000).service_report(EPT, 1).unwrap().unwrap();
        assert_eq!(
            (report.standing, report.generation, report.recent_restarts),
            (Standing::Restarting, 1, 1)
        );
        let fault = report.last_fault.unwrap();
        assert_eq!((fault.cause, fault.age_ms), (FaultCause::Budget, 5));
        assert_eq!(desk(&mut policy, 9_000).service_report(EPT, 2), Ok(None));
        assert!(!desk(&mut policy, 9_000).node_state(EPT).unwrap().all_up());
    }
}
