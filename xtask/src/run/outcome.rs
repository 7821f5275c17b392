//! How a run ended: followed from the nodes' logs and consoles.

use std::time::Duration;

use crate::cluster::{ALL_UP, Event};
use crate::qemu::Ending;

/// What it logs before what the guest is made of.
const GUEST_STARTED: &str = "guest started: ";
/// What the platform's service logs before how the guest ended.
const GUEST_ENDED: &str = "guest ended: ";
/// What Linux prints when it gives up.
const GUEST_PANIC: &str = "Kernel panic - not syncing";

/// How a run ended, the worst last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// The guest powered off, or the nodes ended as they should, or were stopped in good health.
    Good,
    /// The time was over before the guest had ended, or before all services were up.
    TooSlow,
    /// The guest reset itself.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest cannot go on.
    GuestCrashed,
    /// A node reported a failure.
    Failed,
    /// A node had a triple fault, or its QEMU died.
    Crashed,
    /// Ctrl-C, or the keys that end a run.
    Interrupted,
}

impl Outcome {
    /// The exit code that says so.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failed => 3,
            Self::Crashed => 4,
            Self::TooSlow => 5,
            Self::GuestReset => 6,
            Self::GuestPanicked => 7,
            Self::GuestCrashed => 8,
            Self::Interrupted => 130,
        }
    }
}

/// What becomes of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Guest {
    /// The image has none.
    None,
    /// It has not ended.
    Running,
    /// It ended so; a later end counts instead.
    Ended(Outcome),
}

/// Follows the nodes' health and the guest's.
pub struct Watcher {
    up: Vec<bool>,
    worst: Outcome,
    guest: Guest,
    panicked: bool,
}

impl Watcher {
    /// Nothing was seen yet of so many nodes, and of a guest when there is one.
    pub fn new(nodes: usize, has_guest: bool) -> Self {
        let guest = if has_guest { Guest::Running } else { Guest::None };
        Self { up: vec![false; nodes], worst: Outcome::Good, guest, panicked: false }
    }

    /// What to tell of an event; `age` is how long its node has been running.
    pub fn take(&mut self, event: &Event, age: Duration) -> Option<String> {
        match event {
            Event::Log(_, line) if line.text.starts_with(GUEST_ENDED) => {
                let how = line.text.strip_prefix(GUEST_ENDED)?;
                self.guest = Guest::Ended(match how {
                    "powered off" => Outcome::Good,
                    "reset" => Outcome::GuestReset,
                    _ => Outcome::GuestCrashed,
                });
                Some(format!("guest: {how}"))
            }
            Event::Log(_, line) if line.text.starts_with(GUEST_STARTED) => {
                Some(format!("guest: {}", line.text.strip_prefix(GUEST_STARTED)?))
            }
            Event::Log(node, line) if line.text.contains(ALL_UP) => {
                let up = self.up.get_mut(*node).filter(|up| !**up)?;
                *up = true;
                Some(format!("node {}: {ALL_UP} after {} ms", node + 1, age.as_millis()))
            }
            Event::Console(_, line) => {
                self.panicked |= line.contains(GUEST_PANIC);
                None
            }
            Event::Log(..) | Event::Output(..) => None,
            Event::Ended(node, ending) => {
                let (outcome, text) = match ending {
                    Ending::Passed => (Outcome::Good, "ended with success"),
                    Ending::PoweredOff => (Outcome::Good, "powered off"),
                    Ending::Failed => (Outcome::Failed, "reported a failure"),
                    Ending::TripleFault => (Outcome::Crashed, "had a triple fault"),
                    Ending::Died(how) => (Outcome::Crashed, how.as_str()),
                };
                self.worst = self.worst.max(outcome);
                Some(format!("node {}: {text}", node + 1))
            }
        }
    }

    /// The outcome when all nodes ended by themselves.
    pub fn ended(&self) -> Outcome {
        // Somebody should have said what became of it.
        self.worst.max(self.of_guest(Outcome::Failed))
    }

    /// The outcome when the run is stopped because its time is over.
    pub fn stopped(&self) -> Outcome {
        let nodes = if self.up.iter().all(|up| *up) { Outcome::Good } else { Outcome::TooSlow };
        let guest = self.of_guest(Outcome::TooSlow);
        // Nodes that run no service any more may have told so before their guest ended.
        let nodes = if matches!(self.guest, Guest::Ended(_)) { Outcome::Good } else { nodes };
        self.worst.max(nodes).max(guest)
    }

    /// The guest's part in the outcome; `running` when nobody said that it ended.
    fn of_guest(&self, running: Outcome) -> Outcome {
        match self.guest {
            Guest::None => Outcome::Good,
            // It may be told by its own hand only that it gave up: a panic that it survived to power off is none.
            Guest::Ended(Outcome::Good) => Outcome::Good,
            Guest::Ended(_) | Guest::Running if self.panicked => Outcome::GuestPanicked,
            Guest::Ended(outcome) => outcome,
            Guest::Running => running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Line;

    const AGE: Duration = Duration::from_millis(812);

    fn log(node: usize, text: &str) -> Event {
        let service = "supervisor".to_owned();
        Event::Log(
            node,
            Line { nanos: 0, tsc: 0, node: 1, service, level: None, text: text.into(), context: Vec::new() },
        )
    }

    #[test]
    fn the_outcome_is_that_of_the_worst_node() {
        let mut watcher = Watcher::new(2, false);
        let up = log(1, &format!("{ALL_UP} after 5 ms"));
        assert_eq!(watcher.take(&up, AGE).unwrap(), "node 2: all services up after 812 ms");
        assert_eq!(watcher.take(&up, AGE), None);
        assert_eq!(watcher.stopped(), Outcome::TooSlow);
        watcher.take(&log(0, ALL_UP), AGE).unwrap();
        assert_eq!((watcher.stopped(), watcher.ended()), (Outcome::Good, Outcome::Good));
        watcher.take(&Event::Ended(0, Ending::Failed), AGE).unwrap();
        assert_eq!(watcher.stopped(), Outcome::Failed);
        let text =
            watcher.take(&Event::Ended(1, Ending::Died("QEMU ended with signal 9".into())), AGE).unwrap();
        assert_eq!(text, "node 2: QEMU ended with signal 9");
        watcher.take(&Event::Ended(1, Ending::Passed), AGE).unwrap();
        assert_eq!(watcher.ended(), Outcome::Crashed);
        assert_eq!(watcher.take(&Event::Console(0, ALL_UP.into()), AGE), None);
    }

    /// What becomes of a run whose guest's platform and console say this, before the node ends.
    fn of_guest(logs: &[&str], console: &[&str], ending: Ending) -> (Outcome, Outcome) {
        let mut watcher = Watcher::new(1, true);
        watcher.take(&log(0, ALL_UP), AGE).unwrap();
        for line in console {
            assert_eq!(watcher.take(&Event::Console(0, (*line).into()), AGE), None);
        }
        for line in logs {
            let told = watcher.take(&log(0, line), AGE);
            assert_eq!(told, line.strip_prefix(GUEST_ENDED).map(|how| format!("guest: {how}")));
        }
        let stopped = watcher.stopped();
        watcher.take(&Event::Ended(0, ending), AGE).unwrap();
        (stopped, watcher.ended())
    }

    #[test]
    fn the_outcome_says_how_the_guest_ended() {
        let off = || Ending::PoweredOff;
        let ended = |how: &str| of_guest(&[&format!("guest ended: {how}")], &[], off());
        let both = |outcome| (outcome, outcome);
        assert_eq!(ended("powered off"), both(Outcome::Good));
        assert_eq!(ended("reset"), both(Outcome::GuestReset));
        assert_eq!(ended("crashed: triple fault on vCPU 0"), both(Outcome::GuestCrashed));
        assert_eq!(of_guest(&[], &[], off()), (Outcome::TooSlow, Outcome::Failed));
        assert_eq!(of_guest(&["no guest ended: reset"], &[], off()), (Outcome::TooSlow, Outcome::Failed));
        assert_eq!(of_guest(&["guest ended: powered off"], &[], Ending::TripleFault).1, Outcome::Crashed);
    }

    #[test]
    fn a_panic_of_the_guest_is_one_unless_it_powered_off_after_all() {
        let panic = ["[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs"];
        let ended = |logs: &[&str]| of_guest(logs, &panic, Ending::PoweredOff);
        assert_eq!(ended(&["guest ended: reset"]).1, Outcome::GuestPanicked);
        assert_eq!(ended(&["guest ended: crashed: halted"]).1, Outcome::GuestPanicked);
        assert_eq!(ended(&[]), (Outcome::GuestPanicked, Outcome::GuestPanicked));
        assert_eq!(ended(&["guest ended: powered off"]).1, Outcome::Good);
    }

    #[test]
    fn the_last_end_of_a_guest_that_is_started_again_counts() {
        let logs = ["guest ended: reset", "guest ended: powered off"];
        assert_eq!(of_guest(&logs, &[], Ending::PoweredOff).1, Outcome::Good);
    }

    #[test]
    fn exit_codes_differ() {
        use Outcome::{Crashed, Failed, Good, GuestCrashed, GuestPanicked, GuestReset, Interrupted, TooSlow};
        let all = [Good, TooSlow, GuestReset, GuestPanicked, GuestCrashed, Failed, Crashed, Interrupted];
        assert_eq!(all.map(Outcome::exit_code), [0, 5, 6, 7, 8, 3, 4, 130]);
    }
}
