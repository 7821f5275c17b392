//! The system tests, in the order in which they run.

use std::time::Duration;

use crate::cluster::{ALL_UP, BootMethod};
use crate::image::DEFAULT_MANIFEST;
use crate::qemu::Clock;
use crate::scenario::{End, Scenario};

/// What most scenarios have in common.
const BASE: Scenario = Scenario {
    name: "",
    manifest: DEFAULT_MANIFEST,
    boot: BootMethod::Direct,
    nodes: 1,
    cpus: 2,
    memory_mib: 512,
    clock: Clock::Wall,
    timeout: Duration::from_secs(60),
    expect: &[ALL_UP],
    never: &[],
    end: End::Running,
    network: "",
    cut: None,
    damage: None,
};

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "boot-direct", ..BASE },
    Scenario { name: "boot-one-core", cpus: 1, ..BASE },
    Scenario { name: "boot-eight-cores", cpus: 8, ..BASE },
    Scenario { name: "boot-two-nodes", nodes: 2, ..BASE },
    Scenario { name: "boot-bios", boot: BootMethod::Bios, ..BASE },
    Scenario { name: "boot-uefi", boot: BootMethod::Uefi, timeout: Duration::from_secs(120), ..BASE },
    Scenario { name: "boot-bochs", boot: BootMethod::Bochs, timeout: Duration::from_secs(180), ..BASE },
    Scenario {
        name: "services",
        manifest: "tests/images/services.toml",
        end: End::Verdict,
        timeout: Duration::from_secs(300),
        ..BASE
    },
    Scenario {
        name: "kills",
        manifest: "tests/images/kills.toml",
        end: End::Verdict,
        timeout: Duration::from_secs(300),
        ..BASE
    },
    Scenario {
        name: "module-truncated",
        damage: Some(|module| module.truncate(module.len() / 2)),
        expect: &["boot module truncated"],
        ..BASE
    },
    Scenario {
        name: "module-damaged",
        // Somewhere in the last service's program.
        damage: Some(|module| {
            if let Some(byte) = module.len().checked_sub(100).and_then(|at| module.get_mut(at)) {
                *byte ^= 1;
            }
        }),
        expect: &["is damaged (checksum)"],
        ..BASE
    },
    Scenario {
        name: "module-foreign",
        // As long as a real one: QEMU's own loader crashes on a very short one.
        damage: Some(|module| *module = b"#!/bin/sh\n".repeat(30_000)),
        expect: &["boot module is not a Unum image"],
        ..BASE
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::switch::Impairment;

    #[test]
    fn scenarios_can_be_told_apart_and_run() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS {
            assert!(scenario.network.parse::<Impairment>().is_ok(), "{}", scenario.name);
            assert!(scenario.nodes > 0 && !scenario.timeout.is_zero(), "{}", scenario.name);
            assert!(
                scenario.end != End::Running || !scenario.expect.is_empty(),
                "{} sees nothing",
                scenario.name
            );
            assert!(scenario.cut.is_none() || scenario.nodes > 1, "{}: nothing to cut", scenario.name);
            let in_bochs = scenario.boot == BootMethod::Bochs;
            assert!(!in_bochs || scenario.nodes == 1, "{}: nodes in Bochs have no network", scenario.name);
            let damaged = scenario.damage.is_some();
            assert!(!damaged || scenario.boot == BootMethod::Direct, "{}: the ISO is whole", scenario.name);
        }
    }
}
