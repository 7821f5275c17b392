//! States as nodes tell them, and states that nobody would.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn values(text: &str) -> BTreeMap<String, u64> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').unwrap();
        (key.to_owned(), value.parse().unwrap())
    };
    text.split_whitespace().map(pair).collect()
}

/// A node's state: each subject with its values a second before the end and at the end.
fn node(came_ms: u64, subjects: &[(&str, &str, &str)]) -> NodeState {
    let sample = |nanos, text: &str| Sample { nanos, values: values(text) };
    let told = |&(subject, before, last): &(&str, &str, &str)| {
        let before = Some(sample(9_000_000_000, before));
        (subject.to_owned(), Told { last: sample(10_000_000_000, last), before })
    };
    NodeState { came_ms, subjects: subjects.iter().map(told).collect() }
}

fn overview(nodes: impl IntoIterator<Item = (u8, NodeState)>, now_ms: u64) -> Overview {
    Overview::of(&State { nodes: nodes.into_iter().collect() }, now_ms, &Symbols::default()).unwrap()
}

#[test]
fn totals_become_rates_and_the_rest_is_as_told() {
    let state = node(
        1_000,
        &[
            ("node", "", "cores=2 load=750 most=1000 free_kib=1024 total_kib=4096 vcpus=1 log_lost=3"),
            ("view", "", "epoch=4 members=2 member=1 may_act=0"),
            ("clock", "", "error_ns=1500"),
            ("memory", "", "frames_total=100 frames_used=60 write=59 zero=7 dormant=34"),
            (
                "faults",
                "reads=10 writes=5 spurious=0 refused=0 window=3",
                "reads=30 writes=6 spurious=2 refused=0 window=4",
            ),
            (
                "wire",
                "sent_bytes=1000 sent_frames=10 received_bytes=50 received_frames=1",
                "sent_bytes=5096 sent_frames=14 received_bytes=50 received_frames=1 dropped=4 no_room=1 link_up=1 \
                 retransmitted=3 median_ns=700 slow_ns=900",
            ),
        ],
    );
    let overview = overview([(1, state)], 1_250);
    assert_eq!((overview.age_ms, overview.is_old()), (250, false));
    let node = &overview.nodes[0];
    assert_eq!((node.node, node.member, node.may_act, node.epoch), (1, Some(true), Some(false), Some(4)));
    assert_eq!(
        (node.load_permille, node.most_permille, node.clock_error_ns),
        (Some(750), Some(1_000), Some(1_500))
    );
    assert_eq!((node.memory.write, node.memory.zero, node.memory.read), (Some(59), Some(7), None));
    let faults = &node.faults;
    assert_eq!((faults.reads_per_second, faults.writes_per_second), (Some(20), Some(1)));
    assert_eq!((faults.faults_per_second, faults.window_per_second), (Some(23), Some(1)));
    assert_eq!((faults.fetched_per_second, faults.refused), (None, Some(0)));
    let wire = &node.wire;
    assert_eq!((wire.sent_bytes_per_second, wire.sent_frames_per_second), (Some(4_096), Some(4)));
    assert_eq!((wire.received_bytes_per_second, wire.dropped, wire.link_up), (Some(0), Some(5), Some(true)));
    assert_eq!(
        (wire.retransmitted, wire.round_trip_p50_ns, wire.round_trip_p99_ns),
        (Some(3), Some(700), Some(900))
    );
}

/// A line with a key that is none would be taken for one of the log.
#[test]
fn what_health_writes_is_understood() {
    let source = include_str!("../../../../services/health/src/state.rs");
    let lines =
        source.lines().filter_map(|line| line.trim().strip_prefix("defmt::println!(").or(Some(line.trim())));
    let mut subjects = 0;
    for line in lines.filter_map(|line| line.strip_prefix("\"state ")) {
        let (text, _) = line.split_once('"').unwrap();
        let mut words = text.split(' ');
        let (kind, _) = words.next().map(|subject| subject.split_once('/').unwrap_or((subject, ""))).unwrap();
        let keys = words.map(|word| word.split_once('=').unwrap().0);
        for name in keys.chain([kind]) {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name} in {text}");
        }
        subjects += 1;
    }
    assert!(subjects >= 10, "{subjects}");
}

#[test]
fn rates_need_two_samples_that_make_sense() {
    let sample = |nanos, count| Sample { nanos, values: BTreeMap::from([("a".to_owned(), count)]) };
    assert_eq!(rate(&sample(0, 10), &sample(500_000_000, 20), "a"), Some(20));
    assert_eq!(rate(&sample(0, 10), &sample(500_000_000, 9), "a"), None, "the service was restarted");
    assert_eq!(rate(&sample(5, 10), &sample(5, 20), "a"), None);
    assert_eq!(rate(&sample(5, 10), &sample(4, 20), "a"), None);
    assert_eq!(rate(&sample(0, 0), &sample(1, u64::MAX), "a"), None);
    assert_eq!(rate(&sample(0, 0), &sample(1, 1), "b"), None);
}

#[test]
fn vcpus_are_numbered_through_all_nodes() {
    let vcpu = "core=1 load=500 steal=0 exits=9 faults=8 halts=7 activity=2";
    let one = node(0, &[("node", "", "vcpus=11"), ("vcpu/2", "", vcpu), ("vcpu/10", "", vcpu)]);
    let two = node(0, &[("node", "", "vcpus=1"), ("vcpu/0", "", "activity=9"), ("vcpu/x", "", vcpu)]);
    let numbers = |nodes: &[(u8, &NodeState)]| -> Vec<_> {
        let overview = overview(nodes.iter().map(|(number, state)| (*number, (*state).clone())), 0);
        overview.vcpus.iter().map(|vcpu| (vcpu.vcpu, vcpu.node, vcpu.local)).collect()
    };
    assert_eq!(numbers(&[(1, &one), (2, &two)]), [(Some(2), 1, 2), (Some(10), 1, 10), (Some(11), 2, 0)]);
    // Nothing is known of node 2, so nothing of node 3's numbers.
    assert_eq!(numbers(&[(1, &one), (3, &two)])[2], (None, 3, 0));
    let all = overview([(1, one), (2, two)], 0).vcpus;
    assert_eq!((all[0].activity, all[0].halts_per_second, all[2].activity), (Some("halted"), Some(7), None));
}

#[test]
fn what_a_node_no_longer_tells_is_gone() {
    let mut state = node(0, &[("node", "", "cores=1"), ("memory", "", "write=5")]);
    let write = |state: &NodeState| overview([(1, state.clone())], 0).nodes[0].memory.write;
    state.subjects.get_mut("node").unwrap().last.nanos += GONE_NANOS;
    assert_eq!(write(&state), Some(5));
    state.subjects.get_mut("node").unwrap().last.nanos += 1;
    assert_eq!(write(&state), None);
}

#[test]
fn what_is_hot_is_summed_over_nodes() {
    let one = node(
        0,
        &[
            ("hot_page/0", "", "page=1 faults=10"),
            ("hot_page/1", "", "page=2 faults=15"),
            // It has gone up since.
            ("hot_page/2", "", "page=1 faults=8"),
            ("hot_page/3", "", "page=18446744073709551615 faults=1"),
            ("hot_page/4", "", "page=9"),
            ("hot_page/5", "", "page=10 faults=0"),
            ("hot_instruction/0", "", "rip=18446744071578845184 faults=3"),
        ],
    );
    let two = node(0, &[("hot_page/0", "", "page=1 faults=7")]);
    let overview = overview([(1, one), (2, two)], 0);
    let pages: Vec<_> =
        overview.hot_pages.iter().map(|hot| (hot.address, hot.faults, hot.nodes.as_slice())).collect();
    assert_eq!(pages, [(4_096, 17, &[1, 2][..]), (8_192, 15, &[1]), (u64::MAX, 1, &[1])]);
    assert_eq!(overview.hot_instructions[0].address, 0xffff_ffff_8100_0000);
}

#[test]
fn without_nodes_there_is_nothing() {
    assert_eq!(Overview::of(&State::default(), 5, &Symbols::default()), None);
    let old = overview([(1, node(1_000, &[]))], 1_001 + OLD_MS);
    assert!(old.is_old());
    // Clocks that were set back make nothing old.
    assert_eq!(overview([(1, node(1_000, &[]))], 0).age_ms, 0);
}

proptest! {
    #[test]
    fn no_state_panics(
        numbers in proptest::collection::vec(any::<(u64, u64, u64, u8)>(), 1..40),
        now in any::<u64>(),
    ) {
        let subjects = ["node", "faults", "wire", "memory", "vcpu/3", "hot_page/1", "hot_instruction/2", "view"];
        let keys = ["vcpus", "reads", "writes", "sent_bytes", "page", "rip", "faults", "dropped", "no_room", "member"];
        let mut state = State::default();
        for (number, (value, nanos, came_ms, node)) in numbers.into_iter().enumerate() {
            let node = state.nodes.entry(node % 4).or_default();
            node.came_ms = came_ms;
            let told = node.subjects.entry(subjects[number % subjects.len()].to_owned()).or_default();
            let values = keys.iter().map(|key| ((*key).to_owned(), value)).collect();
            told.before = Some(std::mem::replace(&mut told.last, Sample { nanos, values }));
        }
        let overview = Overview::of(&state, now, &Symbols::default()).unwrap();
        prop_assert!(serde_json::to_string(&overview).is_ok());
    }
}
