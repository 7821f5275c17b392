//! A service's standing with the supervisor: it registers at its start, and again when the supervisor asks
//! for it, and beats at half the time that the image gives it.

use ipc::abi::NEVER;
use ipc::interfaces::supervisor::{Beat, BeatAnswer, Client, Description};
use ipc::message::{CallError, Transport};

use crate::time::Clock;

/// How long the supervisor may take to answer, in milliseconds.
const PATIENCE_MS: u64 = 1_000;
/// When to try again after a call that failed, in milliseconds.
const AGAIN_MS: u64 = 20;

/// What a service says of itself; a name or version that is too long for it is left empty.
#[must_use]
pub fn description(name: &str, version: &str, interface: Option<u8>) -> Description {
    Description {
        name: name.try_into().unwrap_or_default(),
        version: version.try_into().unwrap_or_default(),
        interface,
    }
}

/// Keeps a service registered and beating.
#[derive(Debug)]
pub struct Membership<T> {
    client: Client<T>,
    description: Description,
    clock: Clock,
    standing: Standing,
    sequence: u64,
    due: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// To be registered.
    Unknown,
    /// Registered.
    Known,
}

impl<T: Transport> Membership<T> {
    /// Registers as soon as [`Membership::keep`] is first called.
    pub fn new(supervisor: T, description: Description, clock: Clock) -> Self {
        let client = Client::new(supervisor).within(clock.milliseconds_to_ticks(PATIENCE_MS));
        Self { client, description, clock, standing: Standing::Unknown, sequence: 0, due: 0 }
    }

    /// When [`Membership::keep`] is to be called next, in ticks.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due
    }

    /// Registers or beats, when that is due.
    ///
    /// # Errors
    /// How the call to the supervisor failed; it is made again a little later.
    pub fn keep(&mut self, now: u64) -> Result<(), CallError> {
        if now < self.due {
            return Ok(());
        }
        let result = match self.standing {
            Standing::Unknown => self.register(now),
            Standing::Known => self.beat(now),
        };
        if let Err(error) = result {
            self.due = now.saturating_add(self.clock.milliseconds_to_ticks(AGAIN_MS)).min(NEVER - 1);
            if matches!(error, CallError::Restarted) {
                // A new supervisor does not know this service.
                self.standing = Standing::Unknown;
                // When renewing fails, so does the next call, and says why.
                let _ = self.client.refresh();
            }
        }
        result
    }

    fn register(&mut self, now: u64) -> Result<(), CallError> {
        let registration = self.client.register(&self.description)?;
        self.standing = Standing::Known;
        self.due_in(now, u64::from(registration.beat_ms));
        Ok(())
    }

    fn beat(&mut self, now: u64) -> Result<(), CallError> {
        let reply = self.client.beat(&Beat { sequence: self.sequence })?;
        self.sequence = self.sequence.wrapping_add(1);
        match reply.answer {
            BeatAnswer::Accepted => self.due_in(now, reply.due_ms),
            BeatAnswer::RegisterAgain => {
                self.standing = Standing::Unknown;
                self.due = now;
            }
        }
        Ok(())
    }

    fn due_in(&mut self, now: u64, beat_ms: u64) {
        self.due = if beat_ms == 0 {
            NEVER
        } else {
            now.saturating_add(self.clock.milliseconds_to_ticks(beat_ms) / 2).min(NEVER - 1)
        };
    }
}

/// The membership of the service that this is; it registers at its first [`Membership::keep`].
///
/// # Panics
/// When the manifest does not let the service call the supervisor.
#[cfg(feature = "metal")]
#[must_use]
pub fn own(version: &str, interface: Option<u8>) -> Membership<crate::capability::Endpoint> {
    let start = crate::start();
    match start.endpoint("supervisor") {
        Ok(supervisor) => {
            Membership::new(supervisor, description(start.name(), version, interface), start.clock())
        }
        Err(missing) => panic!("{missing}"),
    }
}

/// [`Membership::keep`], with a failure in the log.
#[cfg(feature = "metal")]
pub fn keep<T: Transport>(membership: &mut Membership<T>, now: u64) {
    if let Err(error) = membership.keep(now) {
        let text = crate::text::Text::<96>::of(format_args!("{error}"));
        defmt::warn!("registration or beat: {=str}", text.as_str());
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::*;
    use ipc::abi::{Error, Token};
    use ipc::interfaces::supervisor::{BeatReply, NodeState, Registration, Server, ServiceReport, dispatch};
    use ipc::message::{Caller, Message, MessagePage, Refused};

    /// A supervisor at the other end of a call.
    #[derive(Default)]
    struct Supervisor {
        known: bool,
        registrations: u32,
        beats: Vec<u64>,
    }

    impl Server for Supervisor {
        fn register(&mut self, _: Caller, request: Description) -> Result<Registration, Refused> {
            if request.name != "ept" {
                return Err(Refused);
            }
            self.known = true;
            self.registrations += 1;
            Ok(Registration { service: 3, beat_ms: 100 })
        }

        fn beat(&mut self, _: Caller, request: Beat) -> Result<BeatReply, Refused> {
            if !self.known {
                return Ok(BeatReply { answer: BeatAnswer::RegisterAgain, due_ms: 0 });
            }
            self.beats.push(request.sequence);
            Ok(BeatReply { answer: BeatAnswer::Accepted, due_ms: 100 })
        }

        fn service_report(&mut self, _: Caller, _: u8) -> Result<Option<ServiceReport>, Refused> {
            Err(Refused)
        }

        fn node_state(&mut self, _: Caller) -> Result<NodeState, Refused> {
            Err(Refused)
        }
    }

    #[derive(Clone, Default)]
    struct Shared(Rc<RefCell<Wire>>);

    #[derive(Default)]
    struct Wire {
        supervisor: Supervisor,
        page: Vec<u8>,
        fails_with: Option<Error>,
        refreshed: u32,
    }

    struct Page<'a>(&'a mut Vec<u8>);

    impl MessagePage for Page<'_> {
        fn write(&mut self, bytes: &[u8]) {
            *self.0 = bytes.to_vec();
        }

        fn read(&self, out: &mut [u8]) {
            out.copy_from_slice(&self.0[..out.len()]);
        }
    }

    impl MessagePage for Shared {
        fn write(&mut self, bytes: &[u8]) {
            Page(&mut self.0.borrow_mut().page).write(bytes);
        }

        fn read(&self, out: &mut [u8]) {
            Page(&mut self.0.borrow_mut().page).read(out);
        }
    }

    impl Transport for Shared {
        fn call(&mut self, message: Message, _deadline: u64) -> Result<Message, Error> {
            let wire = &mut *self.0.borrow_mut();
            if let Some(error) = wire.fails_with.take() {
                return Err(error);
            }
            let caller = Caller::of(Token::new(1, 3, 1));
            Ok(dispatch(&mut wire.supervisor, caller, message, &mut Page(&mut wire.page)))
        }

        fn refresh(&mut self) -> Result<(), Error> {
            self.0.borrow_mut().refreshed += 1;
            Ok(())
        }

        fn now(&self) -> u64 {
            0
        }
    }

    /// One tick a millisecond.
    fn membership(name: &str) -> (Membership<Shared>, Shared) {
        let wire = Shared::default();
        (Membership::new(wire.clone(), description(name, "1", None), Clock::new(1_000)), wire)
    }

    #[test]
    fn a_service_registers_and_beats_at_half_its_time() {
        let (mut membership, wire) = membership("ept");
        for now in 0..=250 {
            membership.keep(now).unwrap();
        }
        let supervisor = &wire.0.borrow().supervisor;
        assert_eq!(supervisor.registrations, 1);
        assert_eq!(supervisor.beats, [0, 1, 2, 3, 4]);
        assert_eq!(membership.due(), 300);
    }

    #[test]
    fn after_the_supervisors_restart_it_registers_again() {
        let (mut membership, wire) = membership("ept");
        membership.keep(0).unwrap();
        wire.0.borrow_mut().supervisor.known = false;
        membership.keep(50).unwrap();
        assert_eq!(membership.due(), 50);
        membership.keep(50).unwrap();
        assert_eq!(wire.0.borrow_mut().supervisor.registrations, 2);
        wire.0.borrow_mut().fails_with = Some(Error::Restarted);
        assert_eq!(membership.keep(100), Err(CallError::Restarted));
        assert_eq!((membership.due(), wire.0.borrow_mut().refreshed), (120, 1));
        membership.keep(120).unwrap();
        assert_eq!(wire.0.borrow_mut().supervisor.registrations, 3);
    }

    #[test]
    fn a_failure_is_told_and_tried_again() {
        let (mut stranger, _) = membership("stranger");
        assert_eq!(stranger.keep(0), Err(CallError::Refused));
        assert_eq!(stranger.keep(19), Ok(()));
        assert_eq!(stranger.keep(20), Err(CallError::Refused));
        let (mut service, wire) = membership("ept");
        service.keep(0).unwrap();
        wire.0.borrow_mut().fails_with = Some(Error::TimedOut);
        assert_eq!(service.keep(50), Err(CallError::TimedOut));
        service.keep(70).unwrap();
        assert_eq!(wire.0.borrow_mut().supervisor.beats, [0]);
    }
}
