//! A system test: what is booted, what must be seen, and the verdict.
//!
//! A verdict is pass, fail or unknown. It fails when the system showed something wrong; it is unknown when the
//! system could not show anything any more: a triple fault, a hang, an emulator that died.

use std::fmt;
use std::time::Duration;

use guest_kit::early;
use ipc::guest::AtEnd;

use crate::cluster::BootMethod;
use crate::manifest::{InitrdSource, KernelSource, Overrides};
use crate::qemu::{Clock, Ending};
use crate::script::Step;

/// What the kernel prints on COM1 before the reason for which it gave up.
pub const KERNEL_PANIC: &str = "kernel panic";
/// What it prints before the reason for which it does not boot.
const REFUSED: &str = "this node does not start";

/// One system test.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// The manifest of the image.
    pub manifest: &'static str,
    /// How its nodes boot.
    pub boot: BootMethod,
    /// Nodes.
    pub nodes: u8,
    /// Processors of each.
    pub cpus: u32,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// The nodes' time.
    pub clock: Clock,
    /// How long it may take.
    pub timeout: Duration,
    /// Texts that every node's log must show, in this order, each in a line of its own.
    pub expect: &'static [&'static str],
    /// Texts that the first node must show in their place.
    pub expect_first: Option<&'static [&'static str]>,
    /// Texts that no log may show.
    pub never: &'static [&'static str],
    /// How the nodes must end.
    pub end: End,
    /// What the network does to frames, as [`crate::switch::Impairment`] reads it; the seed is fixed.
    pub network: &'static str,
    /// The longest Ethernet payload of the nodes' links in bytes.
    pub mtu: u16,
    /// When the first node is cut off from the others, and until when.
    pub cut: Option<Cut>,
    /// A change to the boot module, to test that it is refused.
    pub damage: Option<fn(&mut Vec<u8>)>,
    /// What is done at the guest's console, on the first node.
    pub guest: Option<Guest>,
    /// Why it runs only when `--only` gives its whole name.
    pub held_back: Option<&'static str>,
}

/// A guest, as a scenario wants it, and what is done at its console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guest {
    /// vCPUs, when not as many as the manifest says.
    pub cpus: Option<u8>,
    /// Memory in bytes, when not as much as the manifest says.
    pub ram_bytes: Option<u64>,
    /// Whether the walk cache is on, when not as the manifest says.
    pub walk_cache: Option<bool>,
    /// What boots.
    pub system: System,
    /// Linux's command line, when not as the manifest says.
    pub command_line: Option<&'static str>,
    /// What becomes of the node when the guest has ended, when not as the manifest says.
    pub at_end: Option<AtEnd>,
    /// What is done at its console. The scenario does not pass before the last step.
    pub steps: &'static [Step],
    /// The longest that one step may take.
    pub patience: Duration,
}

/// What a scenario's guest boots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum System {
    /// Debian's kernel, with a shell on the console.
    Shell,
    /// The same with the test kit.
    Kit,
    /// A kernel that tries the monitor before there is an operating system.
    Early(early::Scenario),
}

impl Scenario {
    /// What it wants otherwise than the manifest; where that has a guest, it spans all nodes.
    pub fn overrides(&self) -> Overrides {
        let guest = self.guest.map(|guest| guest.overrides()).unwrap_or_default();
        Overrides { nodes: Some(self.nodes), ..guest }
    }
}

impl Guest {
    /// What it wants otherwise than the manifest.
    fn overrides(&self) -> Overrides {
        let (kernel, initrd) = match self.system {
            System::Shell => (KernelSource::Debian, InitrdSource::Shell),
            System::Kit => (KernelSource::Debian, InitrdSource::Kit),
            System::Early(scenario) => (KernelSource::Early(scenario), InitrdSource::None),
        };
        Overrides {
            kernel: Some(kernel),
            initrd: Some(initrd),
            command_line: self.command_line.map(str::to_owned),
            nodes: None,
            cpus: self.cpus,
            ram_bytes: self.ram_bytes,
            keep_bytes: None,
            walk_cache: self.walk_cache,
            at_end: self.at_end,
        }
    }
}

/// Cuts of the first node's link, each between two texts of the logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cut {
    /// The text that begins it.
    pub from: &'static str,
    /// The text that ends it.
    pub until: &'static str,
    /// How often it happens.
    pub times: u32,
    /// It begins at a random moment within this time after its text, by a fixed seed.
    pub within: Duration,
    /// How soon the text that ends it must come.
    pub most: Duration,
}

impl Cut {
    /// One cut, at once, however long it lasts.
    pub const fn once(from: &'static str, until: &'static str) -> Self {
        Self { from, until, times: 1, within: Duration::ZERO, most: Duration::MAX }
    }
}

/// How the nodes of a scenario must end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// They are running when all that is expected has been seen.
    Running,
    /// A program on each writes its verdict to port 0xf4.
    Verdict,
    /// They power off.
    PoweredOff,
}

/// What came of a scenario.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// All was as it must be.
    Pass,
    /// Something was wrong.
    Fail(String),
    /// It cannot be said.
    Unknown(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Fail(reason) => write!(f, "fail: {reason}"),
            Self::Unknown(reason) => write!(f, "unknown: {reason}"),
        }
    }
}

/// Judges a scenario by what its nodes show.
#[derive(Debug)]
pub struct Judge<'a> {
    scenario: &'a Scenario,
    nodes: Vec<Progress>,
    /// Whether all was done at the guest's console.
    script_done: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Expected texts seen.
    seen: usize,
    ended: bool,
}

impl<'a> Judge<'a> {
    /// Nothing was seen yet.
    pub fn new(scenario: &'a Scenario) -> Self {
        let nodes = vec![Progress::default(); usize::from(scenario.nodes)];
        let script_done = scenario.guest.is_none_or(|guest| guest.steps.is_empty());
        Self { scenario, nodes, script_done }
    }

    /// All was done at the guest's console.
    pub fn script_done(&mut self) -> Option<Verdict> {
        self.script_done = true;
        self.passed()
    }

    /// A line of the log or of the console of a node, counted from 0.
    pub fn line(&mut self, node: usize, line: &str) -> Option<Verdict> {
        let scenario = self.scenario;
        // A test may expect the very text that would otherwise be a failure.
        let expected = self.expected(node);
        if let Some(progress) = self.nodes.get_mut(node)
            && expected.get(progress.seen).is_some_and(|text| line.contains(text))
        {
            progress.seen += 1;
            return self.passed();
        }
        let bad = scenario.never.iter().chain(&[KERNEL_PANIC, REFUSED]).find(|text| line.contains(**text))?;
        Some(Verdict::Fail(format!("{} says '{bad}'", name(node))))
    }

    /// The end of a node, after all its lines.
    pub fn ended(&mut self, node: usize, ending: &Ending) -> Option<Verdict> {
        let who = name(node);
        match (ending, self.scenario.end) {
            (Ending::Failed, _) => return Some(Verdict::Fail(format!("{who} reports a failure"))),
            (Ending::TripleFault, _) => return Some(Verdict::Unknown(format!("{who} had a triple fault"))),
            (Ending::Died(how), _) => return Some(Verdict::Unknown(format!("{who}: {how}"))),
            (Ending::Passed, End::Verdict) | (Ending::PoweredOff, End::PoweredOff) => {}
            (Ending::Passed, End::Running | End::PoweredOff) => {
                return Some(Verdict::Fail(format!("{who} ended with a verdict")));
            }
            (Ending::PoweredOff, End::Running | End::Verdict) => {
                return Some(Verdict::Fail(format!("{who} powered off")));
            }
        }
        if node == 0 && !self.script_done {
            return Some(Verdict::Fail(format!("{who} ended before all was done at the guest's console")));
        }
        if let Some(missing) = self.missing(node) {
            return Some(Verdict::Fail(format!("{who} ended without '{missing}'")));
        }
        if let Some(progress) = self.nodes.get_mut(node) {
            progress.ended = true;
        }
        self.passed()
    }

    /// The time is over.
    pub fn timed_out(&self) -> Verdict {
        let waited = (0..self.nodes.len()).find_map(|node| self.missing(node).map(|text| (node, text)));
        let seconds = self.scenario.timeout.as_secs();
        Verdict::Unknown(match waited {
            Some((node, text)) => format!("{} did not say '{text}' within {seconds} s", name(node)),
            None if !self.script_done => {
                format!("not all was done at the guest's console within {seconds} s")
            }
            None => format!("not all nodes ended within {seconds} s"),
        })
    }

    fn expected(&self, node: usize) -> &'static [&'static str] {
        self.scenario.expect_first.filter(|_| node == 0).unwrap_or(self.scenario.expect)
    }

    fn missing(&self, node: usize) -> Option<&'static str> {
        self.nodes.get(node).and_then(|progress| self.expected(node).get(progress.seen)).copied()
    }

    fn passed(&self) -> Option<Verdict> {
        let all = self.nodes.iter().enumerate().all(|(number, node)| {
            node.seen == self.expected(number).len() && (node.ended || self.scenario.end == End::Running)
        });
        (all && self.script_done).then_some(Verdict::Pass)
    }
}

/// Nodes are shown with their numbers from 1.
fn name(node: usize) -> String {
    format!("node {}", node + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::JUMBO_MTU;

    const BASE: Scenario = Scenario {
        name: "base",
        manifest: "images/unum.toml",
        boot: BootMethod::Direct,
        nodes: 1,
        cpus: 1,
        memory_mib: 256,
        clock: Clock::Wall,
        timeout: Duration::from_secs(30),
        expect: &["one", "two"],
        expect_first: None,
        never: &["lost"],
        end: End::Running,
        network: "",
        mtu: JUMBO_MTU,
        cut: None,
        damage: None,
        guest: None,
        held_back: None,
    };

    fn fails(verdict: Option<Verdict>, text: &str) {
        assert!(matches!(&verdict, Some(Verdict::Fail(reason)) if reason.contains(text)), "{verdict:?}");
    }

    fn is_unknown(verdict: Option<Verdict>, text: &str) {
        assert!(matches!(&verdict, Some(Verdict::Unknown(reason)) if reason.contains(text)), "{verdict:?}");
    }

    #[test]
    fn texts_must_come_in_order_each_in_its_line() {
        let mut judge = Judge::new(&BASE);
        assert_eq!(judge.line(0, "two"), None);
        assert_eq!(judge.line(0, "one two"), None);
        is_unknown(Some(judge.timed_out()), "node 1 did not say 'two' within 30 s");
        assert_eq!(judge.line(0, "number two"), Some(Verdict::Pass));
    }

    #[test]
    fn every_node_must_show_all() {
        let scenario = Scenario { nodes: 2, ..BASE };
        let mut judge = Judge::new(&scenario);
        for (node, text, verdict) in [
            (0, "one", None),
            (0, "two", None),
            (1, "one", None),
            (7, "two", None),
            (1, "two", Some(Verdict::Pass)),
        ] {
            assert_eq!(judge.line(node, text), verdict);
        }
    }

    #[test]
    fn the_first_node_may_have_to_show_something_else() {
        let scenario = Scenario { nodes: 2, expect_first: Some(&["three"]), ..BASE };
        let mut judge = Judge::new(&scenario);
        for (node, text) in [(0, "one"), (0, "two"), (1, "three"), (1, "one"), (1, "two")] {
            assert_eq!(judge.line(node, text), None);
        }
        is_unknown(Some(judge.timed_out()), "node 1 did not say 'three'");
        assert_eq!(judge.line(0, "three"), Some(Verdict::Pass));
    }

    #[test]
    fn what_must_not_be_seen_fails_at_once_unless_expected() {
        fails(Judge::new(&BASE).line(0, "frames lost: 1"), "node 1 says 'lost'");
        fails(Judge::new(&BASE).line(0, "kernel panic: no memory"), "kernel panic");
        let scenario = Scenario { expect: &["kernel panic: bad image"], ..BASE };
        assert_eq!(Judge::new(&scenario).line(0, "kernel panic: bad image"), Some(Verdict::Pass));
        fails(Judge::new(&scenario).line(0, "kernel panic: no memory"), "kernel panic");
    }

    #[test]
    fn a_verdict_counts_only_with_all_texts_and_from_all_nodes() {
        let scenario = Scenario { end: End::Verdict, nodes: 2, ..BASE };
        let mut judge = Judge::new(&scenario);
        for node in [0, 1] {
            assert_eq!(judge.line(node, "one"), None);
            assert_eq!(judge.line(node, "two"), None);
        }
        is_unknown(Some(judge.timed_out()), "not all nodes ended");
        assert_eq!(judge.ended(0, &Ending::Passed), None);
        assert_eq!(judge.ended(1, &Ending::Passed), Some(Verdict::Pass));
        let mut judge = Judge::new(&scenario);
        assert_eq!(judge.line(1, "one"), None);
        fails(judge.ended(1, &Ending::Passed), "node 2 ended without 'two'");
        fails(judge.ended(0, &Ending::Failed), "reports a failure");
        fails(judge.ended(0, &Ending::PoweredOff), "powered off");
    }

    const GUEST: Guest = Guest {
        cpus: Some(4),
        ram_bytes: None,
        walk_cache: Some(true),
        system: System::Shell,
        at_end: None,
        command_line: None,
        steps: &[Step::Type("poweroff\n")],
        patience: Duration::from_secs(9),
    };

    #[test]
    fn a_guest_passes_when_all_was_done_and_seen_and_the_nodes_are_off() {
        let scenario = Scenario { guest: Some(GUEST), end: End::PoweredOff, expect: &["one"], ..BASE };
        let mut judge = Judge::new(&scenario);
        assert_eq!(judge.line(0, "one"), None);
        is_unknown(Some(judge.timed_out()), "not all was done at the guest's console within 30 s");
        fails(judge.ended(0, &Ending::PoweredOff), "ended before all was done at the guest's console");
        assert_eq!(judge.script_done(), None);
        fails(judge.ended(0, &Ending::Passed), "ended with a verdict");
        assert_eq!(judge.ended(0, &Ending::PoweredOff), Some(Verdict::Pass));
        let scenario = Scenario { end: End::Running, ..scenario };
        let mut judge = Judge::new(&scenario);
        assert_eq!(judge.line(0, "one"), None);
        assert_eq!(judge.script_done(), Some(Verdict::Pass));
        let scenario = Scenario { guest: Some(Guest { steps: &[], ..GUEST }), ..scenario };
        assert_eq!(Judge::new(&scenario).line(0, "one"), Some(Verdict::Pass), "nothing is to be done");
    }

    #[test]
    fn a_scenario_says_what_its_guest_is_to_be() {
        let overrides = GUEST.overrides();
        let wanted = Overrides {
            kernel: Some(KernelSource::Debian),
            initrd: Some(InitrdSource::Shell),
            cpus: Some(4),
            walk_cache: Some(true),
            ..Overrides::default()
        };
        assert_eq!(overrides, wanted);
    }

    #[test]
    fn what_cannot_be_known_is_unknown() {
        is_unknown(Judge::new(&BASE).ended(0, &Ending::TripleFault), "triple fault");
        is_unknown(Judge::new(&BASE).ended(0, &Ending::Died("QEMU ended with signal 9".into())), "signal 9");
        fails(Judge::new(&BASE).ended(0, &Ending::PoweredOff), "powered off");
        fails(Judge::new(&BASE).ended(0, &Ending::Passed), "verdict");
    }
}
