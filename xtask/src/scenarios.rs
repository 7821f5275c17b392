//! The system tests, in the order in which they run.

use std::ops::Range;
use std::time::Duration;

use guest_kit::early;
use ipc::guest::AtEnd;
use ipc::image::{Entry, EntryKind, Header};
use zerocopy::{FromBytes, IntoBytes};

use crate::cluster::{ALL_UP, BootMethod, JUMBO_MTU};
use crate::guest::initrd::{GREETING, PROMPT};
use crate::image::DEFAULT_MANIFEST;
use crate::qemu::Clock;
use crate::scenario::{Cut, End, Guest, Scenario, System};
use crate::script::Step;

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
    expect_first: None,
    never: &[],
    end: End::Running,
    network: "",
    mtu: JUMBO_MTU,
    cut: None,
    damage: None,
    guest: None,
    held_back: None,
};

/// Two nodes that exchange frames, in rounds without end.
const FRAMES: Scenario = Scenario {
    manifest: "tests/images/frames.toml",
    nodes: 2,
    timeout: Duration::from_secs(180),
    never: &["fail:", "stopped:"],
    ..BASE
};

/// A guest with a shell at its console.
const GUEST: Guest = Guest {
    cpus: None,
    ram_bytes: None,
    walk_cache: None,
    system: System::Shell,
    command_line: None,
    at_end: None,
    steps: &[],
    patience: Duration::from_secs(120),
};

/// A node whose guest is told to power off, which ends the node.
const WITH_GUEST: Scenario = Scenario {
    guest: Some(GUEST),
    expect: &[ALL_UP, "guest ended: powered off"],
    end: End::PoweredOff,
    timeout: Duration::from_secs(300),
    ..BASE
};

/// The whole test kit on the guest's shell.
const fn kit(name: &'static str, cpus: u8, walk_cache: bool) -> Scenario {
    let steps = &[
        Step::See(GREETING),
        Step::Run { command: "kit all", prints: &[], status: 0 },
        Step::See(PROMPT),
        Step::Type("poweroff\n"),
    ];
    let guest = Guest {
        system: System::Kit,
        cpus: Some(cpus),
        walk_cache: Some(walk_cache),
        steps,
        patience: Duration::from_secs(400),
        ..GUEST
    };
    Scenario { name, guest: Some(guest), timeout: Duration::from_secs(600), ..WITH_GUEST }
}

/// A guest that spans nodes, which all end with it.
const SPANNING: Scenario = Scenario {
    nodes: 2,
    cpus: 1,
    guest: Some(GUEST),
    expect: &[ALL_UP],
    expect_first: Some(&[ALL_UP, "guest ended: powered off"]),
    end: End::PoweredOff,
    timeout: Duration::from_secs(600),
    ..BASE
};

/// The test kit on the shell of a guest that spans so many nodes of so many vCPUs each. A step and the whole have so many seconds.
const fn on_spanning_kit(
    name: &'static str,
    (nodes, cpus): (u8, u8),
    steps: &'static [Step],
    (patience, timeout): (u64, u64),
) -> Scenario {
    let patience = Duration::from_secs(patience);
    let guest = Guest { system: System::Kit, cpus: Some(cpus), steps, patience, ..GUEST };
    Scenario { name, nodes, guest: Some(guest), timeout: Duration::from_secs(timeout), ..SPANNING }
}

/// A part of it: each page that two of its threads use in turn crosses the network.
const fn spanning_kit(name: &'static str, nodes: u8, cpus: u8) -> Scenario {
    let steps = &[
        Step::See(GREETING),
        Step::Run { command: "kit all --effort 2 --mib 16", prints: &[], status: 0 },
        Step::See(PROMPT),
        Step::Type("poweroff\n"),
    ];
    on_spanning_kit(name, (nodes, cpus), steps, (600, 900))
}

/// All of it.
const fn whole_spanning_kit(name: &'static str, nodes: u8, cpus: u8) -> Scenario {
    let steps = &[
        Step::See(GREETING),
        Step::Run { command: "kit all --limit 3000", prints: &[], status: 0 },
        Step::See(PROMPT),
        Step::Type("poweroff\n"),
    ];
    on_spanning_kit(name, (nodes, cpus), steps, (6000, 7200))
}

/// Boots of a guest that spans two nodes, one after another.
const fn spanning_boots(
    name: &'static str,
    times: u32,
    network: &'static str,
    mtu: u16,
    expect_first: &'static [&'static str],
) -> Scenario {
    let guest = Guest {
        command_line: Some("console=ttyS0 panic=-1 rdinit=/sbin/poweroff -- -f"),
        at_end: Some(AtEnd::Again(times)),
        ..GUEST
    };
    Scenario {
        name,
        guest: Some(guest),
        network,
        mtu,
        expect_first: Some(expect_first),
        never: &["guest ended: reset", "guest ended: crashed"],
        timeout: Duration::from_secs(900),
        ..SPANNING
    }
}

const GUEST_OFF: &str = "guest ended: powered off";
/// A network that does all that a network can do, short of changing frames.
const FAULTS: &str = "loss=1%,dup=1%,reorder=1%";

/// The second node is lost at a random moment of the guest's life, again and again.
const fn losses(name: &'static str, times: u32, expect_first: &'static [&'static str]) -> Scenario {
    Scenario {
        name,
        guest: Some(Guest { at_end: Some(AtEnd::Again(100)), ..GUEST }),
        cut: Some(Cut {
            from: "guest started: ",
            until: NODE_LOST,
            times,
            within: Duration::from_secs(12),
            most: Duration::from_secs(5),
        }),
        expect_first: Some(expect_first),
        end: End::Running,
        timeout: Duration::from_secs(900),
        ..SPANNING
    }
}

const NODE_LOST: &str = "guest ended: crashed: node 2 is lost";

/// The same, but only when it is asked for.
const fn held_back(scenario: Scenario) -> Scenario {
    Scenario { held_back: Some("takes a quarter of an hour or more"), ..scenario }
}

/// A guest that tries the monitor from ring 0 at its very beginning. It ends twice in the same way: the next one can start.
const fn early(name: &'static str, scenario: early::Scenario, ends: &'static [&'static str; 2]) -> Scenario {
    let guest = Guest { system: System::Early(scenario), at_end: Some(AtEnd::Again(2)), ..GUEST };
    Scenario { name, guest: Some(guest), expect: ends, timeout: Duration::from_secs(120), ..WITH_GUEST }
}

/// 20,000 operations of ring 0, chosen by a seed.
const FUZZ: early::Scenario = early::Scenario::Fuzz { seed: 7, iterations: 20_000 };

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
        // A fault's report, with the last that the service said beneath it.
        expect: &[ALL_UP, "about to commit crime 0", "stopped: panic", "its last", "verdict: 0 failed"],
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
        name: "frames",
        expect: &["pass: frames, round 1"],
        never: &["fail:", "stopped:", "refused"],
        ..FRAMES
    },
    Scenario {
        name: "frames-faults",
        network: "loss=2%,dup=1%,reorder=2%,corrupt=2000ppm",
        expect: &["lost and repeated", "refused as corrupt", "pass: frames, round 1"],
        ..FRAMES
    },
    Scenario {
        name: "frames-cut",
        cut: Some(Cut::once("pass: frames, round 1", "no answer from node")),
        expect: &["has fallen silent", "must not act", ": nodes 1 2", "pass: frames, round"],
        ..FRAMES
    },
    Scenario {
        name: "frames-three",
        nodes: 3,
        cut: Some(Cut::once("pass: frames, round 1", "no answer from node")),
        expect: &[
            ": nodes 1 2 3",
            "node 1 has fallen silent",
            "node 1 is no member any more",
            ": nodes 2 3",
            ": nodes 1 2 3",
            "pass: frames, round",
        ],
        expect_first: Some(&[
            ": nodes 1 2 3",
            "this node must not act",
            "this node's life is over",
            ": nodes 1 2 3",
            "pass: frames, round",
        ]),
        ..FRAMES
    },
    Scenario {
        name: "frames-restart",
        manifest: "tests/images/frames-restart.toml",
        expect: &[
            "pass: frames, round 1",
            "service interconnect (number 1, generation 0) stopped: panic",
            "service interconnect restarted (generation 1)",
            "pass: frames, round 2",
        ],
        never: &["fail:", "generation 1) stopped:"],
        ..FRAMES
    },
    // As the benchmark of two nodes runs it.
    Scenario {
        name: "frames-measured",
        manifest: "images/bench-net.toml",
        expect: &[ALL_UP],
        expect_first: Some(&[ALL_UP, "bench done"]),
        ..FRAMES
    },
    Scenario {
        name: "module-truncated",
        damage: Some(|module| module.truncate(module.len() / 2)),
        expect: &["boot module truncated"],
        ..BASE
    },
    Scenario {
        name: "module-damaged",
        // Somewhere in a service's program.
        damage: Some(|module| {
            let range = elf_of(module, "health");
            module[range.end - 100] ^= 1;
        }),
        expect: &["is damaged (checksum)"],
        ..BASE
    },
    Scenario {
        name: "module-bad-elf",
        // For another processor, in a module that is whole otherwise.
        damage: Some(|module| damage_elf(module, "health", |elf| elf[18] = 0xb7)),
        expect: &["service 'health'"],
        ..BASE
    },
    Scenario {
        name: "module-short-elf",
        damage: Some(|module| damage_elf(module, "ept", |elf| elf[32..40].fill(0xff))),
        expect: &["service 'ept'"],
        ..BASE
    },
    Scenario {
        name: "module-foreign",
        damage: Some(|module| *module = b"#!/bin/sh\n".repeat(100)),
        expect: &["boot module is not a Unum image"],
        ..BASE
    },
    Scenario {
        name: "guest-boot",
        guest: Some(Guest {
            cpus: Some(2),
            steps: &[
                Step::See(GREETING),
                Step::Run { command: "echo cpus=$(nproc)", prints: &["cpus=2"], status: 0 },
                Step::Run { command: "lscpu > /tmp/cpus && free -m && ls /nowhere", prints: &[], status: 1 },
                Step::See(PROMPT),
                Step::Type("poweroff\n"),
            ],
            ..GUEST
        }),
        ..WITH_GUEST
    },
    Scenario {
        name: "guest-most-cpus",
        guest: Some(Guest {
            cpus: Some(64),
            steps: &[
                Step::See(GREETING),
                Step::Run { command: "echo cpus=$(nproc)", prints: &["cpus=64"], status: 0 },
                Step::See(PROMPT),
                Step::Type("poweroff\n"),
            ],
            ..GUEST
        }),
        ..WITH_GUEST
    },
    kit("guest-kit-1", 1, false),
    kit("guest-kit-2", 2, false),
    kit("guest-kit-4", 4, false),
    kit("guest-walk-cache-1", 1, true),
    kit("guest-walk-cache-2", 2, true),
    kit("guest-walk-cache-4", 4, true),
    // Each time that Linux has powered off, all that is in use is the page of zeros.
    Scenario {
        name: "guest-restarts",
        guest: Some(Guest {
            cpus: Some(2),
            command_line: Some("console=ttyS0 panic=-1 rdinit=/sbin/poweroff -- -f"),
            at_end: Some(AtEnd::Again(50)),
            ..GUEST
        }),
        expect: &["guest memory: 1 of "; 50],
        never: &["guest ended: reset", "guest ended: crashed"],
        timeout: Duration::from_secs(900),
        ..WITH_GUEST
    },
    Scenario {
        name: "span-boot",
        guest: Some(Guest {
            steps: &[
                Step::See(GREETING),
                Step::Run { command: "echo cpus=$(nproc)", prints: &["cpus=2"], status: 0 },
                Step::Run {
                    command: "cat /sys/devices/system/node/online /sys/devices/system/node/node*/cpulist",
                    prints: &["0-1", "0", "1"],
                    status: 0,
                },
                // 512 MiB, less what Linux keeps of it for itself.
                Step::Run {
                    command: "test $(grep MemTotal /proc/meminfo | tr -dc 0-9) -gt 450000",
                    prints: &[],
                    status: 0,
                },
                Step::See(PROMPT),
                Step::Type("poweroff\n"),
            ],
            patience: Duration::from_secs(200),
            ..GUEST
        }),
        ..SPANNING
    },
    held_back(spanning_kit("span-kit-2x1", 2, 1)),
    held_back(spanning_kit("span-kit-2x2", 2, 2)),
    held_back(spanning_kit("span-kit-3x1", 3, 1)),
    held_back(spanning_kit("span-kit-4x1", 4, 1)),
    // All of what the processors must agree on: the time, locked operations, and the order of what they see of memory.
    held_back(on_spanning_kit(
        "span-order",
        (2, 1),
        &[
            Step::See(GREETING),
            Step::Run { command: "kit litmus", prints: &[], status: 0 },
            Step::Run { command: "kit clocks", prints: &[], status: 0 },
            Step::Run { command: "kit atomics", prints: &[], status: 0 },
            Step::See(PROMPT),
            Step::Type("poweroff\n"),
        ],
        (900, 1200),
    )),
    held_back(whole_spanning_kit("span-whole-kit-2x1", 2, 1)),
    held_back(whole_spanning_kit("span-whole-kit-2x2", 2, 2)),
    held_back(whole_spanning_kit("span-whole-kit-3x1", 3, 1)),
    held_back(whole_spanning_kit("span-whole-kit-4x1", 4, 1)),
    // More memory than a node has, used by one processor, which compares what it reads.
    held_back(on_spanning_kit(
        "span-memory",
        (2, 1),
        &[
            Step::See(GREETING),
            Step::Run { command: "kit bench random --mib 384", prints: &[], status: 0 },
            Step::See(PROMPT),
            Step::Type("poweroff\n"),
        ],
        (900, 1200),
    )),
    spanning_boots("span-restarts", 2, "", JUMBO_MTU, &[GUEST_OFF; 2]),
    spanning_boots("span-restarts-faults", 2, FAULTS, JUMBO_MTU, &[GUEST_OFF; 2]),
    spanning_boots("span-restarts-short", 1, "", 1500, &[GUEST_OFF; 1]),
    held_back(spanning_boots("span-many-restarts", 8, "", JUMBO_MTU, &[GUEST_OFF; 8])),
    held_back(spanning_boots("span-many-restarts-faults", 10, FAULTS, JUMBO_MTU, &[GUEST_OFF; 10])),
    held_back(spanning_boots("span-many-restarts-short", 2, "", 1500, &[GUEST_OFF; 2])),
    losses("span-loss", 2, &[NODE_LOST; 2]),
    held_back(losses("span-many-losses", 20, &[NODE_LOST; 20])),
    early("early-fuzz", FUZZ, &["early-fuzz done"; 2]),
    Scenario {
        name: "early-fuzz-walk-cache",
        guest: Some(Guest { system: System::Early(FUZZ), walk_cache: Some(true), ..GUEST }),
        expect: &[ALL_UP, "early-fuzz done", "guest ended: powered off"],
        ..WITH_GUEST
    },
    early("early-triple-fault", early::Scenario::TripleFault, &["guest ended: crashed: triple fault"; 2]),
    early(
        "early-halt-forever",
        early::Scenario::HaltForever,
        &["guest ended: crashed: all processors halted with interrupts off"; 2],
    ),
    early("early-vmrun", early::Scenario::Vmrun, &["early survived"; 2]),
    early(
        "early-vector-store",
        early::Scenario::VectorStore,
        &["guest ended: crashed: an instruction that is not emulated touched device memory"; 2],
    ),
    early(
        "early-jump-nowhere",
        early::Scenario::JumpNowhere,
        &["guest ended: crashed: code at 0xd0000000"; 2],
    ),
    early(
        "early-tables-nowhere",
        early::Scenario::TablesNowhere,
        &["guest ended: crashed: page tables at 0xd0000000"; 2],
    ),
    early(
        "early-stack-nowhere",
        early::Scenario::StackNowhere,
        &["guest ended: crashed: stack or vectors at 0xd00007f8"; 2],
    ),
    early(
        "early-vectors-nowhere",
        early::Scenario::VectorsNowhere,
        &["guest ended: crashed: stack or vectors at 0xd0000030"; 2],
    ),
    // It never ends, and the services go on beside it.
    Scenario {
        name: "early-exit-storm",
        guest: Some(Guest { system: System::Early(early::Scenario::ExitStorm), ..GUEST }),
        expect: &[ALL_UP, "0 halts a second", "0 halts a second"],
        never: &["guest ended"],
        ..BASE
    },
];

/// Where a service's program lies in a boot module.
fn elf_of(module: &[u8], service: &str) -> Range<usize> {
    let (header, rest) = Header::read_from_prefix(module).expect("an image begins with a header");
    let count = usize::try_from(header.entry_count).expect("a count of entries");
    let (entries, _) = <[Entry]>::ref_from_prefix_with_elems(rest, count).expect("a table of entries");
    let is_it = |entry: &&Entry| entry.kind == EntryKind::Elf as u32 && entry.name.as_str() == service;
    let entry = entries.iter().find(is_it).expect("the service is in the image");
    let start = usize::try_from(entry.offset).expect("an offset");
    start..start + usize::try_from(entry.length).expect("a length")
}

/// Changes a service's program within a boot module, and makes the checksums right again.
fn damage_elf(module: &mut [u8], service: &str, change: fn(&mut [u8])) {
    let (header_bytes, rest) = module.split_at_mut(size_of::<Header>());
    let header = Header::mut_from_bytes(header_bytes).expect("an image begins with a header");
    let count = usize::try_from(header.entry_count).expect("a count of entries");
    let (table, contents) = rest.split_at_mut(count * size_of::<Entry>());
    let entries = <[Entry]>::mut_from_bytes(table).expect("a table of entries");
    let contents_at = size_of::<Header>() + count * size_of::<Entry>();
    let is_it = |entry: &&mut Entry| entry.kind == EntryKind::Elf as u32 && entry.name.as_str() == service;
    let entry = entries.iter_mut().find(is_it).expect("the service is in the image");
    let start = usize::try_from(entry.offset).expect("an offset") - contents_at;
    let elf = &mut contents[start..start + usize::try_from(entry.length).expect("a length")];
    change(elf);
    entry.crc = crc32fast::hash(elf);
    header.table_crc = crc32fast::hash(entries.as_bytes());
}

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
            assert!(
                scenario.guest.is_none() || !in_bochs,
                "{}: nobody can type at a node in Bochs",
                scenario.name
            );
        }
    }
}
