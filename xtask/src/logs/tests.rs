//! From the bytes of several nodes to the merged log.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipc::abi::{LOG_KERNEL, LOG_TEXT};

use super::stream::testing::frame;
use super::tables::testing::tables;
use super::*;

fn append(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn text(tsc: u64, service: u16, text: &str) -> Vec<u8> {
    frame(tsc, service, LOG_TEXT, text.as_bytes())
}

fn clock(hz: u64) -> Vec<u8> {
    text(0, LOG_KERNEL, &format!("tsc_hz={hz} cores=2"))
}

fn sources(directory: &Path) -> [Source; 2] {
    [1, 2].map(|node| Source { node, file: directory.join(format!("{node}.bin")) })
}

/// The merged log of what the two nodes' files hold.
fn merged(one: &[u8], two: &[u8], filter: &Filter) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let sources = sources(directory.path());
    append(&sources[0].file, one);
    append(&sources[1].file, two);
    let mut out = Vec::new();
    write(&mut Collector::new(tables(), sources), filter, Colour::Plain, None, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn nodes_with_different_clocks_are_merged_by_time() {
    let one = [clock(1_000), frame(5, 0, 0, &[4, 0]), text(1, LOG_KERNEL, "from another core")].concat();
    let two = [text(1_000_000, 1, "early"), clock(1_000_000_000), frame(2_000_000, 7, 0, &[1])].concat();
    let lines = merged(&one, &two, &Filter::default());
    assert_eq!(
        lines,
        [
            "0.000000 n1/kernel                tsc_hz=1000 cores=2",
            "0.000000 n2/kernel                tsc_hz=1000000000 cores=2",
            "0.001000 n1/kernel                from another core",
            "0.001000 n2/health                early",
            "0.002000 n2/service-7       WARN  a record of a service that is not in the image: 01",
            "0.005000 n1/supervisor      DEBUG fine",
        ]
    );
}

#[test]
fn a_node_without_a_clock_and_a_damaged_stream_are_visible() {
    let lines = merged(
        &text(2_000_000, 0, "here"),
        &[&clock(1_000)[..], &[9, 9, 0], &[3]].concat(),
        &Filter::default(),
    );
    assert_eq!(
        lines,
        [
            "0.000000 n1/log             WARN  the node does not tell its clock rate; 1000000000 ticks per second are assumed",
            "0.000000 n2/kernel                tsc_hz=1000 cores=2",
            "0.000000 n2/log             WARN  2 bytes of the log are not a record",
            "0.000000 n2/log             WARN  1 bytes of the log are not a record",
            "0.002000 n1/supervisor            here",
        ]
    );
}

#[test]
fn only_kernel_and_health_tell_the_clock() {
    let forged = text(0, 0, "tsc_hz=5");
    let wrong = text(0, 1, "tsc_hz=0");
    let lines = merged(&[forged, wrong, text(7_000, 0, "x"), clock(1_000)].concat(), &[], &Filter::default());
    assert_eq!(lines.last().unwrap(), "7.000000 n1/supervisor            x");
}

#[test]
fn filters_choose_lines() {
    let bytes = [clock(1_000), frame(1, 0, 0, &[4, 0]), frame(2, 1, 0, &[1, 0, 9, 0, 0, 0])].concat();
    let count = |filter: Filter| merged(&bytes, &bytes, &filter).len();
    assert_eq!(count(Filter::default()), 6);
    assert_eq!(count(Filter { node: Some(2), ..Filter::default() }), 3);
    assert_eq!(count(Filter { service: Some("health".to_owned()), ..Filter::default() }), 2);
    // The text of the kernel has no level: it is never left out.
    assert_eq!(count(Filter { level: Some(Level::Info), ..Filter::default() }), 4);
    assert_eq!("warn".parse(), Ok(Level::Warn));
    assert!("loud".parse::<Level>().unwrap_err().contains("trace, debug, info, warn or error"));
}

#[test]
fn a_fault_report_is_followed_by_the_last_words_of_its_service() {
    let bytes = [
        clock(1_000),
        text(1, 1, "long before"),
        text(10, 1, "opening"),
        text(20, 0, "  its last 2 log records: service 1, ticks 10 to 12"),
        text(11, 0, "the supervisor meanwhile"),
        // Of another core, and so read later.
        text(12, 1, "dividing"),
    ];
    let lines = merged(&bytes.concat(), &[], &Filter::default());
    let report = lines.iter().position(|line| line.contains("its last")).unwrap();
    let shown: Vec<_> =
        lines[report + 1..].iter().map(|line| line.split("health").last().unwrap().trim()).collect();
    assert_eq!(shown, ["opening", "dividing"]);
    assert!(lines[report + 1..].iter().all(|line| line.starts_with('|')));
}

#[test]
fn a_log_that_grows_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let sources = sources(directory.path());
    let stop = Arc::new(AtomicBool::new(false));
    let mut collector = Collector::new(tables(), sources.clone());
    let follower = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut out = Vec::new();
            write(&mut collector, &Filter::default(), Colour::Plain, Some(&stop), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        }
    });
    let bytes = [clock(1_000), text(3, 1, "third"), text(2, 0, "second")].concat();
    for byte in bytes {
        append(&sources[1].file, &[byte]);
    }
    append(&sources[0].file, &[clock(1_000), text(1, 1, "first")].concat());
    std::thread::sleep(Duration::from_millis(600));
    append(&sources[0].file, &text(4, 1, "fourth"));
    stop.store(true, Ordering::Relaxed);
    let out = follower.join().unwrap();
    let words: Vec<_> = out.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(words, ["cores=2", "cores=2", "first", "second", "third", "fourth"]);
}

#[test]
fn the_state_is_kept_beside_the_logs_and_is_no_part_of_them() {
    let run = tempfile::tempdir().unwrap();
    let directory = run.path().join("node-1");
    std::fs::create_dir(&directory).unwrap();
    let source = Source { node: 1, file: directory.join("com2.bin") };
    let lines = ["state node cores=2", "state of mind", "state node cores=4"];
    append(&source.file, &clock(1_000));
    for (tsc, words) in (1..).zip(lines) {
        append(&source.file, &text(tsc, 1, words));
    }
    append(&source.file, &text(9, 0, "state node cores=8"));
    let mut collector = Collector::new(tables(), [source.clone()]);
    collector.poll().unwrap();
    let told = State::read(run.path()).unwrap().unwrap().nodes[&1].subjects["node"].clone();
    assert_eq!((told.last.nanos, told.last.values["cores"]), (3_000_000, 4));
    assert_eq!(told.before.unwrap().values["cores"], 2);
    // Who shows the log again writes no state, and takes none away.
    let mut out = Vec::new();
    let mut shower = Collector::new(tables(), [source]);
    write(&mut shower, &Filter::default(), Colour::Plain, None, &mut out).unwrap();
    let shown = String::from_utf8(out).unwrap();
    assert!(State::read(run.path()).unwrap().is_some());
    let texts: Vec<_> = collector.finish().unwrap().into_iter().map(|line| line.text).collect();
    assert_eq!(texts, ["tsc_hz=1000 cores=2", "state of mind", "state node cores=8"]);
    assert_eq!(shown.lines().count(), texts.len());
    assert_eq!(State::read(run.path()).unwrap(), None);
}
