//! The switch with real sockets and threads; each client is what QEMU would be.

use super::counters::{DropReason, LinkState, PortError, PortSnapshot};
use super::wire::{PREFIX_BYTES, encode};
use super::{Control, Impairment, MAX_FRAME, PortId, Switch, SwitchConfig, lock, pcap};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);
const ALL: u8 = 255;

fn frame(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    let to = if to == ALL { [255; 6] } else { [2, 0, 0, 0, 0, to] };
    [to.as_slice(), &[2, 0, 0, 0, 0, from], &[0x88, 0xb5], payload].concat()
}

/// A switch in a directory of its own.
fn start(ports: usize, change: impl FnOnce(&mut SwitchConfig)) -> (TempDir, Switch) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = SwitchConfig::new(directory.path().join("net"), ports);
    change(&mut config);
    (directory, Switch::start(config).unwrap())
}

/// A node at the port of its number.
struct Node {
    stream: UnixStream,
    number: u8,
}

impl Node {
    fn join(switch: &Switch, number: u8) -> Self {
        let before = port(&switch.control(), number).connections;
        let stream = UnixStream::connect(switch.socket_path(PortId(number)).unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        until(&switch.control(), number, |port| port.connections > before && port.link == LinkState::Up);
        Self { stream, number }
    }

    fn send(&mut self, to: u8, payload: &[u8]) {
        self.stream.write_all(&encode(&frame(to, self.number, payload))).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; PREFIX_BYTES];
        self.stream.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix).try_into().unwrap()];
        self.stream.read_exact(&mut frame).unwrap();
        frame
    }

    /// Nothing has come. What was sent before must have been counted as delivered or dropped.
    fn has_nothing(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let result = (&self.stream).read(&mut [0; 1]);
        self.stream.set_nonblocking(false).unwrap();
        result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The switch has closed the connection.
    fn is_disconnected(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |_| true)
    }
}

fn port(control: &Control, number: u8) -> PortSnapshot {
    control.counters().ports.swap_remove(number.into())
}

/// Waits until the port is as it should be.
fn until(control: &Control, number: u8, is: impl Fn(&PortSnapshot) -> bool) -> PortSnapshot {
    let start = Instant::now();
    loop {
        let port = port(control, number);
        if is(&port) {
            return port;
        }
        assert!(start.elapsed() < PATIENCE, "not in time: {port}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_of_all_sizes_reach_whom_they_should() {
    let (_directory, switch) = start(3, |_| {});
    let mut nodes = [0, 1, 2].map(|number| Node::join(&switch, number));
    nodes[0].send(ALL, b"who is there");
    for number in [1, 2] {
        assert_eq!(nodes[number].receive(), frame(ALL, 0, b"who is there"));
    }
    for length in [0, 1, 46, 1500, 4200, MAX_FRAME - 14] {
        let payload = vec![7; length];
        nodes[1].send(0, &payload);
        assert_eq!(nodes[0].receive(), frame(0, 1, &payload));
    }
    assert!(nodes[2].has_nothing());
    let ports = switch.control().counters().ports;
    assert_eq!((ports[1].counters.in_frames, ports[0].counters.out_frames), (6, 6));
    assert_eq!(ports[1].counters.in_bytes, ports[0].counters.out_bytes);
    assert_eq!((ports[2].counters.out_frames, ports[2].counters.out_bytes), (1, 26));
    assert_eq!(ports.iter().map(|port| port.counters.dropped.total()).sum::<u64>(), 0);
}

#[test]
fn a_node_that_never_reads_blocks_nobody_and_loses_only_its_own() {
    let (_directory, switch) = start(3, |_| {});
    let mut nodes = [0, 1, 2].map(|number| Node::join(&switch, number));
    for number in [1, 2] {
        nodes[number].send(ALL, b"here");
        assert_eq!(nodes[0].receive(), frame(ALL, u8::try_from(number).unwrap(), b"here"));
        nodes[3 - number].receive();
    }
    // Node 2 stops reading; node 0 sends to both.
    let start = Instant::now();
    let big = vec![1; 4000];
    for count in 0..2000_u32 {
        nodes[0].send(2, &big);
        nodes[0].send(1, &count.to_be_bytes());
        assert_eq!(nodes[1].receive(), frame(1, 0, &count.to_be_bytes()));
    }
    assert!(start.elapsed() < PATIENCE);
    let slow = port(&switch.control(), 2);
    assert!(slow.counters.dropped.get(DropReason::QueueFull) > 1000, "{slow}");
    // Another node's frame to it waits in a queue of its own, and comes before the flood's rest.
    nodes[1].send(2, b"also");
    until(&switch.control(), 1, |port| port.counters.in_frames == 2);
    let dropped = port(&switch.control(), 2).counters.dropped.total();
    let received: Vec<_> = (0..2000 - dropped + 1).map(|_| nodes[2].receive()).collect();
    let at = received.iter().position(|got| *got == frame(2, 1, b"also")).unwrap();
    assert!(at < received.len() - 200, "{at} of {}", received.len());
    assert!(nodes[2].has_nothing());
    let slow = until(&switch.control(), 2, |port| port.counters.out_frames == 2002 - dropped);
    assert_eq!(slow.counters.dropped.total(), dropped);
}

#[test]
fn a_dead_node_comes_back_at_the_same_port() {
    let (_directory, switch) = start(2, |_| {});
    let mut stays = Node::join(&switch, 0);
    for round in 0..20_u8 {
        let mut comes = Node::join(&switch, 1);
        comes.send(ALL, &[round]);
        assert_eq!(stays.receive(), frame(ALL, 1, &[round]));
        stays.send(1, &[round]);
        assert_eq!(comes.receive(), frame(1, 0, &[round]));
        // It dies with frames unread.
        stays.send(1, &[round]);
        drop(comes);
        until(&switch.control(), 1, |port| port.link == LinkState::Down);
        stays.send(1, &[round]);
        let sent = 3 * (u64::from(round) + 1);
        until(&switch.control(), 0, |port| port.counters.in_frames == sent);
    }
    let port = port(&switch.control(), 1);
    assert_eq!((port.connections, port.errors, port.last_error), (20, 0, None), "{port}");
}

#[test]
fn nonsense_disconnects_only_its_sender_and_is_named() {
    let (_directory, switch) = start(3, |_| {});
    let control = switch.control();
    let (mut good, mut other) = (Node::join(&switch, 0), Node::join(&switch, 1));

    let mut bad = Node::join(&switch, 2);
    bad.stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert!(bad.is_disconnected());
    let seen = until(&control, 2, |port| port.errors == 1);
    assert_eq!(seen.last_error, Some(PortError::AbsurdLength(u32::MAX)));
    assert!(
        seen.to_string().contains("port 2 down: ") && seen.to_string().contains("4294967295 bytes"),
        "{seen}"
    );

    let mut bad = Node::join(&switch, 2);
    bad.stream.write_all(&[0, 0, 0, 60, 1, 2, 3]).unwrap();
    drop(bad);
    let seen = until(&control, 2, |port| port.errors == 2);
    assert_eq!(seen.last_error, Some(PortError::UnfinishedFrame));
    assert_eq!(seen.counters.dropped.get(DropReason::Unfinished), 1);

    // Lengths that are skipped: empty, shorter than a header, longer than is forwarded.
    let mut odd = Node::join(&switch, 2);
    for length in [0, 13, MAX_FRAME + 1, 65_550] {
        odd.stream.write_all(&encode(&vec![0xff; length])).unwrap();
    }
    odd.send(ALL, b"and now in earnest");
    for node in [&mut good, &mut other] {
        assert_eq!(node.receive(), frame(ALL, 2, b"and now in earnest"));
    }
    let seen = port(&control, 2);
    assert_eq!(seen.counters.dropped.get(DropReason::Malformed), 2);
    assert_eq!(seen.counters.dropped.get(DropReason::TooLong), 2);
    assert_eq!(seen.errors, 2);
    good.send(ALL, b"all is well");
    assert_eq!(other.receive(), frame(ALL, 0, b"all is well"));
}

#[test]
fn a_flood_of_random_bytes_concerns_its_port_alone() {
    use rand::{RngCore as _, SeedableRng as _};
    let (_directory, switch) = start(3, |_| {});
    let (mut left, mut right) = (Node::join(&switch, 0), Node::join(&switch, 1));
    left.send(ALL, b"");
    right.send(ALL, b"");
    left.receive();
    right.receive();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for _ in 0..50 {
        let mut hostile = Node::join(&switch, 2);
        let mut bytes = vec![0; 10_000];
        random.fill_bytes(&mut bytes);
        // A plausible length, so that some of it is taken for frames.
        bytes[..4].copy_from_slice(&1000_u32.to_be_bytes());
        bytes[10] &= 0xfe;
        // It may be disconnected in the middle.
        let _ = hostile.stream.write_all(&bytes);
        left.send(1, b"ping");
        while right.receive() != frame(1, 0, b"ping") {}
        drop(hostile);
        until(&switch.control(), 2, |port| port.link == LinkState::Down);
    }
    let port = port(&switch.control(), 2);
    assert!(port.errors >= 49, "{port}");
}

#[test]
fn a_switch_is_cut_healed_and_impaired_while_it_runs() {
    let (_directory, switch) = start(2, |_| {});
    let control = switch.control();
    let (mut left, mut right) = (Node::join(&switch, 0), Node::join(&switch, 1));
    control.cut(&[PortId(0)], &[PortId(1)]).unwrap();
    left.send(ALL, b"cut");
    until(&control, 1, |port| port.counters.dropped.get(DropReason::Cut) == 1);
    control.heal();
    left.send(ALL, b"healed");
    assert_eq!(right.receive(), frame(ALL, 0, b"healed"));

    let slow: Impairment = "delay=30ms".parse().unwrap();
    lock(&switch.shared.fabric).set_impairment(PortId(0), PortId(1), slow);
    let start = Instant::now();
    left.send(1, b"slow");
    right.send(0, b"fast");
    assert_eq!(left.receive(), frame(0, 1, b"fast"));
    assert_eq!(right.receive(), frame(1, 0, b"slow"));
    assert!(start.elapsed() >= Duration::from_millis(30));

    control.set_impairment("loss=50%,dup=20%,jitter=1ms,corrupt=10%".parse().unwrap());
    for count in 0..200_u32 {
        left.send(1, &count.to_be_bytes());
    }
    until(&control, 0, |port| port.counters.in_frames == 203);
    let sums_up = |port: &PortSnapshot| {
        let counters = &port.counters;
        203 + counters.duplicated == counters.out_frames + counters.dropped.total()
    };
    let port = until(&control, 1, sums_up);
    assert!(port.counters.dropped.get(DropReason::Lost) > 50 && port.counters.duplicated > 5, "{port}");

    let error = control.cut(&[PortId(0)], &[PortId(2)]).unwrap_err().to_string();
    assert_eq!(error, "the switch has no port 2: its ports are 0 to 1");
    assert!(switch.socket_path(PortId(2)).is_err());
}

#[test]
fn recordings_hold_what_came_in_and_what_went_out() {
    let files = tempfile::tempdir().unwrap();
    let (delivered, entered) = (files.path().join("delivered.pcap"), files.path().join("entered.pcap"));
    let (_directory, switch) = start(2, |config| {
        config.pcap = Some(delivered.clone());
        config.pcap_entered = Some(entered.clone());
        config.frame_limits[1] = 1514;
    });
    let (mut left, mut right) = (Node::join(&switch, 0), Node::join(&switch, 1));
    let mut both = Vec::new();
    for count in 0..50_u8 {
        left.send(ALL, &[count; 20]);
        both.push(right.receive());
        right.send(0, &[count; 1000]);
        both.push(left.receive());
    }
    left.send(1, &[0; 2000]);
    until(&switch.control(), 1, |port| port.counters.dropped.get(DropReason::TooLong) == 1);
    let read = |path| pcap::read(&std::fs::read(path).unwrap());
    // Questions stand before their answers, and time never runs back.
    let recorded = read(&delivered);
    assert!(recorded.is_sorted_by_key(|(time, _)| *time));
    let age = std::time::UNIX_EPOCH.elapsed().unwrap() - recorded[0].0;
    assert!(age < Duration::from_secs(60), "{age:?}");
    assert!(recorded.into_iter().map(|(_, frame)| frame).eq(both.clone()));
    both.push(frame(1, 0, &[0; 2000]));
    assert!(read(&entered).into_iter().map(|(_, frame)| frame).eq(both));
    assert!(switch.control().counters().recording_errors.is_empty());
}

#[test]
fn it_stops_at_once_and_leaves_no_socket() {
    let (directory, switch) = start(4, |config| config.impairment = "delay=10s".parse().unwrap());
    let control = switch.control();
    // One node idles, one floods, one does not read, the fourth never came.
    let mut idle = Node::join(&switch, 0);
    let flood = Node::join(&switch, 1);
    let _deaf = Node::join(&switch, 2);
    lock(&switch.shared.fabric).set_impairment(PortId(1), PortId(2), Impairment::default());
    let flooding = std::thread::spawn(move || {
        let bytes = encode(&frame(ALL, 1, &[0; 4000]));
        while (&flood.stream).write_all(&bytes).is_ok() {}
    });
    until(&control, 2, |port| port.counters.dropped.get(DropReason::QueueFull) > 100);
    let start = Instant::now();
    drop(switch);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    flooding.join().unwrap();
    assert!(idle.is_disconnected());
    assert_eq!(std::fs::read_dir(directory.path().join("net")).unwrap().count(), 0);
    // The handle outlives it, and starting again at the same place works.
    assert_eq!(control.counters().ports.len(), 4);
    drop(Switch::start(SwitchConfig::new(directory.path().join("net"), 4)).unwrap());
}

#[test]
fn a_bad_configuration_is_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |config: SwitchConfig| format!("{:#}", Switch::start(config).err().expect("accepted"));
    let config = |ports| SwitchConfig::new(directory.path(), ports);
    assert_eq!(refused(config(0)), "a switch has 1 to 64 ports, not 0");
    assert_eq!(refused(config(65)), "a switch has 1 to 64 ports, not 65");
    let limit = SwitchConfig { frame_limits: vec![9216, 9217], ..config(2) };
    assert!(refused(limit).starts_with("port 1: the longest frame must be of 14 to 9216 bytes, not 9217"));
    let long = SwitchConfig { directory: directory.path().join("x".repeat(120)), ..config(1) };
    assert!(refused(long).starts_with("port 0: cannot make the socket "));
    let pcap = SwitchConfig { pcap: Some("/nonexistent/a.pcap".into()), ..config(1) };
    assert!(refused(pcap).contains("/nonexistent/a.pcap"));

    // Of two ports the second is in the way: the first is removed again. A dead switch's socket is replaced.
    let path = directory.path().join("port-1.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(refused(config(2)).ends_with("port-1.sock is in the way: it is not a socket"));
    assert!(!directory.path().join("port-0.sock").exists());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let switch = Switch::start(config(2)).unwrap();
    assert!(refused(config(2)).ends_with("port-0.sock is in use by another switch"));
    let mut nodes = [0, 1].map(|number| Node::join(&switch, number));
    nodes[0].send(ALL, b"still there");
    assert_eq!(nodes[1].receive(), frame(ALL, 0, b"still there"));
}

/// `cargo test --release -- --ignored --nocapture ping_pong`
#[test]
#[ignore = "a measurement"]
fn ping_pong() {
    const ROUNDS: u32 = 50_000;
    let (_directory, switch) = start(2, |_| {});
    let (mut left, mut right) = (Node::join(&switch, 0), Node::join(&switch, 1));
    // Both know where the other is.
    left.send(ALL, b"");
    right.receive();
    for length in [50, 4096 + 50] {
        let (to_right, to_left) =
            (encode(&frame(1, 0, &vec![0; length])), encode(&frame(0, 1, &vec![0; length])));
        let bounce = |stream: &mut UnixStream, answer: &[u8], buffer: &mut [u8]| {
            for _ in 0..ROUNDS {
                stream.read_exact(buffer).unwrap();
                stream.write_all(answer).unwrap();
            }
        };
        // The same without a switch, to compare.
        let direct = UnixStream::pair().unwrap();
        let through = (left.stream.try_clone().unwrap(), right.stream.try_clone().unwrap());
        for (name, (mut here, mut there)) in [("direct", direct), ("switch", through)] {
            let (to_left, mut buffer) = (to_left.clone(), vec![0; to_left.len()]);
            let answering = std::thread::spawn(move || bounce(&mut there, &to_left, &mut buffer));
            let mut buffer = vec![0; to_right.len()];
            let start = Instant::now();
            for _ in 0..ROUNDS {
                here.write_all(&to_right).unwrap();
                here.read_exact(&mut buffer).unwrap();
            }
            let rate = f64::from(ROUNDS) / start.elapsed().as_secs_f64();
            println!("{name}, {} bytes: {rate:.0} round trips a second", length + 14);
            answering.join().unwrap();
        }
    }
    print!("{}", switch.control().counters());
}
