//! The screen in a terminal in memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::overview::{Faults, Memory, Vcpu, Wire};
use super::*;

/// The lines of a screen of this size.
fn screen(view: &View, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..lines).map(line).collect()
}

fn node_of(number: u8) -> Node {
    Node {
        node: number,
        member: Some(true),
        may_act: Some(true),
        epoch: Some(3),
        members: Some(2),
        cores: Some(2),
        load_permille: Some(425),
        most_permille: Some(1_000),
        free_kib: Some(123_456),
        total_kib: Some(524_288),
        clock_error_ns: Some(1_500),
        log_lost: Some(0),
        memory: Memory { frames_total: Some(65_536), frames_used: Some(12_345), ..Memory::default() },
        faults: Faults { faults_per_second: Some(4_200), ..Faults::default() },
        wire: Wire { link_up: Some(true), sent_bytes_per_second: Some(1_234_567), ..Wire::default() },
        ..Node::default()
    }
}

fn run(nodes: u8, vcpus: u64, hottest: u64) -> Overview {
    let vcpu = |number| Vcpu {
        vcpu: Some(number),
        node: 1,
        local: number,
        activity: Some("running"),
        load_permille: Some(999),
        ..Vcpu::default()
    };
    let hot = |number| Hot {
        address: 0xffff_ffff_8100_0000 + number,
        faults: 100 - number,
        nodes: vec![1],
        symbol: Some(format!("handler+{number:#x}")),
    };
    Overview {
        nodes: (1..=nodes).map(node_of).collect(),
        vcpus: (0..vcpus).map(vcpu).collect(),
        hot_pages: Vec::new(),
        hot_instructions: (0..hottest).map(hot).collect(),
        ..Overview::default()
    }
}

#[test]
fn two_nodes_fit_a_small_terminal() {
    let lines = screen(&View::Run(run(2, 2, 16)), 80, 24);
    let expected = [
        "unum: 2 nodes, 2 vCPUs",
        "NODE   member     epoch cores   load   most   free  total clock +- log lost",
        "n1     yes, of 2      3     2  42.5% 100.0%   120M   512M   1500ns        0",
        "n2     yes, of 2      3     2  42.5% 100.0%   120M   512M   1500ns        0",
        "VCPU   node core state      load  steal  exits/s faults/s  halts/s",
        "0        n1    - running   99.9%      -        -        -        -",
        "1        n1    - running   99.9%      -        -        -        -",
        "MEMORY   used frames   read  write   zero dormant mostly migrat bounce device",
        "n1        12k    65k      -      -      -       -      -      -      -      -",
        "n2        12k    65k      -      -      -       -      -      -      -      -",
        "FAULTS  all/s read/s write/s window/s fetch/s kept/s given/s inval/s refused",
        "n1       4200      -       -        -       -      -       -       -       -",
        "n2       4200      -       -        -       -      -       -       -       -",
        "WIRE   link out B/s frames/s  in B/s frames/s dropped  again     p50     p99",
        "n1     up     1234k        -       -        -       -      -       -       -",
        "n2     up     1234k        -       -        -       -      -       -       -",
        "HOT PAGE   faults symbol             INSTRUCTION      faults symbol",
        "                                     ffffffff81000000    100 handler+0x0",
        "                                     ffffffff81000001     99 handler+0x1",
        "                                     ffffffff81000002     98 handler+0x2",
        "                                     ffffffff81000003     97 handler+0x3",
        "                                     ffffffff81000004     96 handler+0x4",
        "+11",
        "q, Esc or Ctrl-C ends this, not the run",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn no_section_is_wider_than_a_small_terminal() {
    for columns in [NODES, VCPUS, MEMORY, FAULTS, WIRE, HOT] {
        let width: usize = columns.iter().map(|column| usize::from(column.width) + 1).sum();
        assert!(width <= 81, "{}: {width}", columns[0].heading);
        for column in columns {
            assert!(column.heading.len() <= usize::from(column.width), "{}", column.heading);
        }
    }
}

#[test]
fn all_rows_have_all_columns() {
    for section in sections(&run(3, 5, 16)) {
        assert!(!section.rows.is_empty());
        for row in &section.rows {
            assert_eq!(row.len(), section.columns.len(), "{}", section.columns[0].heading);
        }
    }
}

#[test]
fn what_there_is_not_is_said_plainly() {
    let lines = screen(&View::Nothing(super::super::NO_RUN.to_owned()), 80, 24);
    assert_eq!(lines[1], "no state of a run: start one with cargo xtask run");
    let old = Overview { age_ms: 12_999, ..run(1, 1, 0) };
    let lines = screen(&View::Run(old), 80, 24);
    assert_eq!(lines[0], "unum: the state is 12 s old: the run has ended, or its nodes say nothing");
    let mut silent = run(2, 1, 0);
    silent.nodes[1].age_ms = 7_000;
    assert!(screen(&View::Run(silent), 80, 24)[3].starts_with("n2     silent 7 "));
}

#[test]
fn a_terminal_of_any_size_shows_something_or_nothing() {
    for (columns, lines) in [(1, 1), (3, 2), (80, 3), (20, 10), (300, 100)] {
        screen(&View::Run(run(32, 64, 16)), columns, lines);
        screen(&View::Run(run(0, 0, 0)), columns, lines);
        screen(&View::Nothing("none".to_owned()), columns, lines);
    }
}

#[test]
fn lines_are_shared_out_in_turns() {
    assert_eq!(share_out(&[3, 3, 10], 16), [3, 3, 10]);
    assert_eq!(share_out(&[3, 3, 10], 100), [3, 3, 10]);
    assert_eq!(share_out(&[3, 3, 10], 11), [3, 3, 5]);
    assert_eq!(share_out(&[3, 60, 10], 15), [3, 6, 6]);
    assert_eq!(share_out(&[3, 3, 10], 2), [1, 1, 0]);
    assert_eq!(share_out(&[], 5), Vec::<usize>::new());
}
