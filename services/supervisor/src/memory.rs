//! What a supervisor tells its next life: the restarts of each service, so that a limit holds over its own
//! restart too.
//!
//! The words lie in a region that the manifest marks as kept; they are zero at boot. A supervisor that faults
//! between two stores leaves at most one service's counts half told.

use crate::policy::Policy;
use crate::restarts::History;

/// The first word once the others mean something.
const MAGIC: u64 = u64::from_le_bytes(*b"SUPERVS1");
/// Words for each service, after the first two: start of the period + 1, count and streak, its start.
const WORDS: usize = 3;
const HEADER: usize = 2;

/// Memory that outlives the supervisor.
pub trait Memory {
    /// A word, if there is one.
    fn load(&self, index: usize) -> Option<u64>;

    /// Writes a word, if there is one.
    fn store(&mut self, index: usize, value: u64);
}

/// Takes over what the last life told, if there was one; called when all services are added.
pub fn recall(policy: &mut Policy, memory: &impl Memory) {
    if memory.load(0) != Some(MAGIC) {
        return;
    }
    *policy.announced_mut() = memory.load(1).is_some_and(|word| word != 0);
    for (index, watched) in policy.services_mut().iter_mut().enumerate() {
        let word = |n| memory.load(HEADER + index * WORDS + n);
        let (Some(period), Some(counts), Some(started)) = (word(0), word(1), word(2)) else { return };
        let [a, b, c, d, e, f, g, h] = counts.to_le_bytes();
        watched.restarts.history = History {
            period_start: period.checked_sub(1),
            count: u32::from_le_bytes([a, b, c, d]),
            streak: u32::from_le_bytes([e, f, g, h]),
        };
        watched.started = started;
    }
}

/// Tells the next life.
pub fn remember(policy: &Policy, memory: &mut impl Memory) {
    memory.store(1, u64::from(policy.announced()));
    for (index, watched) in policy.services().iter().enumerate() {
        let History { period_start, count, streak } = watched.restarts.history;
        let at = HEADER + index * WORDS;
        memory.store(at, period_start.map_or(0, |start| start.saturating_add(1)));
        memory.store(at + 1, u64::from(count) | u64::from(streak) << 32);
        memory.store(at + 2, watched.started);
    }
    memory.store(0, MAGIC);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::abi::{FaultReport, ServiceState};
    use ipc::image::NameString;
    use rt::time::Clock;
    use zerocopy::FromZeros;

    use crate::policy::{Action, Done, Phase, START_MS, Terms};

    struct Words([u64; 16]);

    impl Memory for Words {
        fn load(&self, index: usize) -> Option<u64> {
            self.0.get(index).copied()
        }

        fn store(&mut self, index: usize, value: u64) {
            if let Some(word) = self.0.get_mut(index) {
                *word = value;
            }
        }
    }

    fn policy(now: u64) -> Policy {
        let mut policy = Policy::new(0, Clock::new(1_000), now);
        for beat_ms in [0, 0, 500] {
            let name = NameString::try_from("s").unwrap();
            let terms = Terms { name, restart_limit: 2, restart_period_ms: 10_000, beat_ms };
            policy.add(terms, ServiceState::Running, 0, now);
        }
        policy
    }

    fn fault_and_restart(policy: &mut Policy, generation: u64, now: u64) {
        policy.faulted(&FaultReport { service: 1, generation, ..FaultReport::new_zeroed() }, now);
        while let Some(action) = policy.due(now + 100) {
            policy.done(action, Done::Finished, now);
        }
    }

    #[test]
    fn a_limit_holds_over_the_supervisors_own_restart() {
        let mut words = Words([0; 16]);
        let mut first = policy(0);
        recall(&mut first, &words);
        first.registered(2, 1);
        assert!(first.announce_all_up());
        fault_and_restart(&mut first, 0, 10);
        fault_and_restart(&mut first, 1, 20);
        assert_eq!(first.services()[1].phase, Phase::Up);
        remember(&first, &mut words);

        let mut second = policy(1_000);
        recall(&mut second, &words);
        assert_eq!(second.services()[1].restarts, first.services()[1].restarts);
        assert_eq!(second.services()[1].started, 20);
        assert!(!second.announce_all_up());
        // A service that started long ago has as much time to register again as one that starts now.
        assert_eq!(second.deadline(), 1_000 + START_MS + 500);
        second.faulted(&FaultReport { service: 1, generation: 2, ..FaultReport::new_zeroed() }, 1_010);
        assert_eq!(second.due(1_010), Some(Action::GiveUp(1)));
    }

    #[test]
    fn memory_that_is_absent_or_too_small_is_no_harm() {
        struct Nothing;
        impl Memory for Nothing {
            fn load(&self, _index: usize) -> Option<u64> {
                None
            }
            fn store(&mut self, _index: usize, _value: u64) {}
        }
        let mut policy = policy(0);
        remember(&policy, &mut Nothing);
        recall(&mut policy, &Nothing);
        let mut small = Words([0; 16]);
        small.0[0] = MAGIC;
        recall(&mut policy, &small);
    }
}
