//! Stations on a simulated wire.

mod messages;
mod owners;

use core::cell::Cell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use ipc::interfaces::interconnect::{Exchange, ExchangeAnswer, ExchangeRequest, ExchangeTimes, Shape};
use ipc::wire::{ALL_STATIONS, Class, FrameHeader, HEADER_BYTES, Identity, Kind, MacAddress, Message};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::{FromBytes, IntoBytes};

use super::port::Leaving;
use super::*;
use crate::membership::{Member, Profile, Timing};
use crate::simulation::{FakeCard, QUEUE};
use crate::transport::Limits;
use crate::transport::rtt::RtoLimits;

const TIMING: Timing =
    Timing { hello: 100, hello_gap: 5, suspect: 450, death: 1000, proposal: 300, quiet: 650, form: 900 };
const LIMITS: Limits = Limits {
    rto: RtoLimits { initial: 200, min: 100, max: 400 },
    acknowledge_delay: 10,
    windows: [16; 4],
    waiting_frames: 32,
    pages_in_card: 8,
    mtu: 9000,
};
const PATIENCE: u64 = 40;
/// Page frames of the guest's pool, and of the service at the start.
const POOL: u32 = 400;
const FRAMES: u32 = 250;

struct Node {
    station: Station<FakeCard>,
    events: Vec<Event>,
}

impl Node {
    fn new(number: u8, clock: &Rc<Cell<u64>>) -> Self {
        Self::with_mtu(number, clock, LIMITS.mtu)
    }

    fn with_mtu(number: u8, clock: &Rc<Cell<u64>>, mtu: u16) -> Self {
        Self::with_frames(number, clock, mtu, Frames::new(POOL, POOL - FRAMES..POOL, &[]))
    }

    fn with_frames(number: u8, clock: &Rc<Cell<u64>>, mtu: u16, frames: Frames) -> Self {
        let mut card = FakeCard::new(number, clock, POOL);
        card.mtu = Some(mtu);
        let config = Config {
            cluster: 1,
            // Each has another time.
            life: Member { node: number.into(), incarnation: 5 + u16::from(clock.get() != 0), mac: card.mac },
            profile: Profile { image: 1, features: 2, expected: None },
            timing: TIMING,
            limits: Limits { mtu, ..LIMITS },
            clock_interval: 500,
        };
        let pool = Pool { frames, is_guests: true };
        Self { station: Station::new(card, config, PATIENCE, pool), events: vec![] }
    }

    fn poll(&mut self) -> usize {
        self.station.poll(&mut |event| self.events.push(event)).unwrap()
    }

    fn tick(&mut self) {
        self.station.tick(&mut |event| self.events.push(event));
    }

    fn advance(&mut self) -> bool {
        self.station.advance()
    }

    fn events(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.events)
    }

    fn mac(&self) -> MacAddress {
        self.station.port.card.mac
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.station.port.card.inbox.push_back(bytes.to_vec());
        self.poll();
    }

    /// The service's page frames that are not the state machine's, and whether each is in one place.
    fn places(&self) -> Vec<u32> {
        let port = &self.station.port;
        let mut numbers: Vec<u32> = port.card.posted.iter().copied().collect();
        let in_card = port.leaving.iter().flatten();
        numbers.extend(in_card.filter_map(|leaving| match leaving {
            Leaving::Page(frame) => Some(*frame),
            Leaving::Header | Leaving::Message(_) => None,
        }));
        numbers.extend(port.frames.spares());
        numbers.extend(port.queues.frames());
        numbers.sort_unstable();
        assert!(numbers.is_sorted_by(|a, b| a < b), "a page frame is in two places");
        assert_eq!(port.card.untold, 0);
        numbers
    }

    /// Every page frame of the service is somewhere, once, and the state machine has none.
    fn check_frames(&self) {
        let mut owned = self.station.port.frames.list();
        owned.sort_unstable();
        assert_eq!(self.places(), owned[..]);
    }
}

/// Carries what was sent to whom it is for, once; how many frames.
fn carry(nodes: &mut [Node]) -> usize {
    let mut count = 0;
    for from in 0..nodes.len() {
        for sent in core::mem::take(&mut nodes[from].station.port.card.outbox) {
            count += 1;
            for (to, node) in nodes.iter_mut().enumerate() {
                let destination = &sent.bytes[..6];
                if to != from && (destination == [0xff; 6] || destination == node.mac().0) {
                    node.station.port.card.inbox.push_back(sent.bytes.clone());
                }
            }
        }
    }
    for node in nodes {
        while node.poll() != 0 {}
    }
    count
}

fn settle(nodes: &mut [Node]) {
    while carry(nodes) != 0 {}
}

/// Lets the time pass, and all talk.
fn pass(nodes: &mut [Node], clock: &Rc<Cell<u64>>, ticks: u64) {
    for _ in 0..ticks / 10 {
        clock.set(clock.get() + 10);
        nodes.iter_mut().for_each(Node::tick);
        settle(nodes);
    }
}

/// Two nodes in one view.
fn two(clock: &Rc<Cell<u64>>) -> [Node; 2] {
    two_with_mtu(clock, LIMITS.mtu)
}

fn two_with_mtu(clock: &Rc<Cell<u64>>, mtu: u16) -> [Node; 2] {
    let mut nodes = [1, 2].map(|number| Node::with_mtu(number, clock, mtu));
    pass(&mut nodes, clock, 1200);
    for node in &nodes {
        let view = node.station.view(|ticks| ticks);
        assert_eq!((view.epoch, &view.members[..], view.may_act), (1, &[1, 2][..], true));
    }
    nodes
}

/// The station that takes frames for node `to`; of 0, all stations.
fn station_of(to: u8) -> MacAddress {
    if to == 0 { ALL_STATIONS } else { MacAddress([2, 0, 0, 0, 0, to]) }
}

fn frame(from: u16, to: u8, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let identity = Identity { cluster: 1, epoch: 1, node: from, incarnation: 0 };
    let message = Message {
        sequence: 77,
        payload_bytes: u16::try_from(payload.len()).unwrap(),
        ..Message::new(kind, Class::Page)
    };
    let mac = MacAddress([2, 0, 0, 0, 0, u8::try_from(from).unwrap()]);
    let checksum = ipc::wire::crc32c(0, payload);
    let mut bytes =
        FrameHeader::new(identity, mac, station_of(to), message).seal(checksum).as_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

#[test]
fn members_are_told_of_and_silence_is_noticed() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, two] = two(&clock);
    assert_eq!(one.events(), [Event::Found(2, two.mac()), Event::Installed(1), Event::Quorum]);
    assert_eq!(one.station.view(|ticks| ticks).clock_error_ns, Some(0));
    let peers = one.station.peers(|ticks| ticks);
    assert_eq!((peers.len(), peers[0].node, peers[0].mac, peers[0].is_member), (1, 2, two.mac().0, true));
    clock.set(clock.get() + 600);
    one.tick();
    assert_eq!(one.events()[0], Event::Suspected(2));
    one.poll();
    one.check_frames();
}

#[test]
fn a_page_goes_back_from_the_frame_it_landed_in() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.port.card.outbox.clear();
    let landing = one.station.port.card.posted[0];
    let payload: Vec<u8> = (0..4096u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
    one.deliver(&frame(2, 1, Kind::EchoRequest, &payload));
    let sent = &one.station.port.card.outbox[0];
    assert_eq!(sent.page, Some(landing));
    assert_eq!(sent.bytes[HEADER_BYTES..], payload);
    let parsed = FrameHeader::parse(&sent.bytes, sent.bytes.len()).unwrap();
    assert_eq!((parsed.kind, parsed.header.acknowledgement.get()), (Kind::Reply, 77));
    assert_eq!(parsed.to, station_of(2));
    assert_eq!(one.station.port.card.filled, 0);
    // A header alone is answered by a header alone.
    one.deliver(&frame(2, 1, Kind::EchoRequest, &[]));
    assert_eq!(one.station.port.card.outbox[1].bytes.len(), HEADER_BYTES);
    one.poll();
    one.check_frames();
}

#[test]
fn a_page_that_is_asked_for_comes_in_the_frame_of_the_request() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.port.card.outbox.clear();
    let landing = one.station.port.card.posted[0];
    one.deliver(&frame(2, 1, Kind::PageRequest, &[]));
    let sent = &one.station.port.card.outbox[0];
    assert_eq!((sent.page, sent.bytes.len()), (Some(landing), HEADER_BYTES + 4096));
    let parsed = FrameHeader::parse(&sent.bytes, sent.bytes.len()).unwrap();
    assert_eq!((parsed.kind, parsed.header.acknowledgement.get()), (Kind::Reply, 77));
    assert_eq!(parsed.payload_checksum, ipc::wire::crc32c(0, &sent.bytes[HEADER_BYTES..]));
    one.poll();
    one.check_frames();
}

/// What one node asks of another, on a wire that takes longer with each exchange.
#[test]
fn exchanges_are_measured() {
    for (shape, pages_written) in [(Shape::Short, [0, 0]), (Shape::Page, [50, 0]), (Shape::Fetch, [0, 50])] {
        let clock = Rc::new(Cell::new(0));
        let mut nodes = two(&clock);
        let before = nodes[0].station.counters(|ticks| ticks);
        let request = ExchangeRequest { node: 2, shape, count: 50 };
        assert_eq!(nodes[0].station.begin_exchange(request), ExchangeAnswer::Begun);
        assert_eq!(nodes[0].station.begin_exchange(request), ExchangeAnswer::Busy);
        for i in 0..50 {
            assert_eq!(nodes[0].station.exchange(), Exchange::Running(i));
            assert!(nodes[0].station.can_advance() && nodes[0].advance());
            assert!(nodes[0].station.is_expecting() && !nodes[0].advance());
            clock.set(clock.get() + 10 + u64::from(i));
            settle(&mut nodes);
        }
        let expected = ExchangeTimes {
            request,
            completed: 50,
            lost: 0,
            wrong: 0,
            least_ticks: 10,
            median_ticks: 34,
            percentile_99_ticks: 59,
            most_ticks: 59,
        };
        assert_eq!(nodes[0].station.exchange(), Exchange::Done(expected));
        assert_eq!([0, 1].map(|node| nodes[node].station.port.card.filled), pages_written);
        let counters = nodes[0].station.counters(|ticks| ticks);
        assert_eq!(counters.sent.frames - before.sent.frames, 50);
        assert_eq!(counters.dropped, before.dropped);
        for node in &mut nodes {
            node.poll();
            node.check_frames();
        }
    }
}

#[test]
fn every_page_is_another_and_a_wrong_answer_is_told() {
    for shape in [Shape::Page, Shape::Fetch] {
        let clock = Rc::new(Cell::new(0));
        let mut nodes = two(&clock);
        let before = nodes[0].station.counters(|ticks| ticks).dropped;
        nodes[0].station.begin_exchange(ExchangeRequest { node: 2, shape, count: 3 });
        let mut last = vec![];
        for damage in [None, Some(17), Some(4095)] {
            nodes[0].advance();
            let asked = nodes[0].station.port.card.outbox.remove(0).bytes;
            nodes[1].deliver(&asked);
            let mut bytes = nodes[1].station.port.card.outbox.remove(0).bytes;
            assert_ne!(bytes[HEADER_BYTES..], last);
            last = bytes[HEADER_BYTES..].to_vec();
            if let Some(at) = damage {
                // One byte is another, and the checksums fit: no wire does that, but a defect may.
                bytes[HEADER_BYTES + at] ^= 0x40;
                let (mut header, _) = FrameHeader::read_from_prefix(&bytes).unwrap();
                header.unum.integrity[1] = ipc::wire::crc32c(0, &bytes[HEADER_BYTES..]).into();
                bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
            }
            nodes[0].deliver(&bytes);
        }
        let Exchange::Done(times) = nodes[0].station.exchange() else { panic!("still runs") };
        assert_eq!((times.completed, times.wrong, times.lost), (3, 2, 0));
        assert_eq!(nodes[0].station.counters(|ticks| ticks).dropped, before);
    }
}

#[test]
fn an_exchange_that_cannot_be_is_refused() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    let good = ExchangeRequest { node: 2, shape: Shape::Page, count: 1 };
    let mut answer = |request| one.station.begin_exchange(request);
    assert_eq!(answer(ExchangeRequest { node: 3, ..good }), ExchangeAnswer::NoSuchPeer);
    for count in [0, 1001, u16::MAX] {
        assert_eq!(answer(ExchangeRequest { count, ..good }), ExchangeAnswer::OutOfRange);
    }
    for mtu in [Some(4149), None] {
        one.station.port.card.mtu = mtu;
        for shape in [Shape::Page, Shape::Fetch] {
            assert_eq!(
                one.station.begin_exchange(ExchangeRequest { shape, ..good }),
                ExchangeAnswer::TooLong(mtu)
            );
        }
    }
    let short = ExchangeRequest { shape: Shape::Short, ..good };
    assert_eq!(one.station.begin_exchange(short), ExchangeAnswer::Begun);
}

#[test]
fn a_silent_peer_ends_the_measurement() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.begin_exchange(ExchangeRequest { node: 2, shape: Shape::Page, count: 100 });
    let mut tries = 0;
    while one.advance() {
        tries += 1;
        assert!(one.station.deadline() <= clock.get() + PATIENCE);
        clock.set(clock.get() + 40);
        one.tick();
        one.poll();
    }
    assert_eq!(tries, 8);
    let Exchange::Done(times) = one.station.exchange() else { panic!("still runs") };
    assert_eq!((times.completed, times.lost), (0, 8));
    one.poll();
    one.check_frames();
}

#[test]
fn a_full_card_costs_no_frame() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.port.card.stuck = true;
    let page = frame(2, 1, Kind::EchoRequest, &[1; 4096]);
    for _ in 0..400 {
        one.deliver(&page);
        one.check_frames();
    }
    let sent = one.station.port.card.leaving.len();
    assert_eq!(sent, QUEUE);
    assert!(one.station.counters(|ticks| ticks).dropped.no_room > 200);
    one.station.port.card.stuck = false;
    one.poll();
    one.check_frames();
    assert_eq!(one.station.port.card.posted.len(), QUEUE);
}

#[test]
fn each_bad_frame_is_counted_by_its_reason() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.port.card.outbox.clear();
    let good = frame(2, 1, Kind::EchoRequest, &[1; 64]);
    let mut drops = one.station.counters(|ticks| ticks).dropped;
    let mut expect = |one: &mut Node, bytes: &[u8], count: fn(&mut Drops) -> &mut u64| {
        one.deliver(bytes);
        *count(&mut drops) += 1;
        assert_eq!(one.station.counters(|ticks| ticks).dropped, drops);
        one.check_frames();
    };
    for length in 0..HEADER_BYTES {
        expect(&mut one, &good[..length], |d| &mut d.short);
    }
    for length in (HEADER_BYTES..good.len()).step_by(5) {
        expect(&mut one, &good[..length], |d| &mut d.malformed);
    }
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    expect(&mut one, &with(12, 8), |d| &mut d.foreign);
    expect(&mut one, &with(6, 3), |d| &mut d.malformed);
    expect(&mut one, &with(14, 9), |d| &mut d.version);
    expect(&mut one, &with(15, 9), |d| &mut d.key);
    expect(&mut one, &with(16, 3), |d| &mut d.corrupt);
    expect(&mut one, &with(HEADER_BYTES + 5, 0), |d| &mut d.corrupt);
    expect(&mut one, &frame(2, 9, Kind::EchoRequest, &[]), |d| &mut d.elsewhere);
    expect(&mut one, &frame(1, 1, Kind::EchoRequest, &[]), |d| &mut d.duplicate);
    expect(&mut one, &frame(2, 0, Kind::EchoRequest, &[1; 64]), |d| &mut d.elsewhere);
    expect(&mut one, &frame(2, 0, Kind::PageRequest, &[]), |d| &mut d.elsewhere);
    expect(&mut one, &frame(3, 1, Kind::EchoRequest, &[]), |d| &mut d.stranger);
    expect(&mut one, &frame(2, 1, Kind::Reply, &[1; 64]), |d| &mut d.unexpected);
    assert!(one.station.port.card.outbox.is_empty(), "something bad was answered");
    one.deliver(&good);
    assert_eq!(one.station.port.card.outbox.len(), 1);
}

/// Random frames: noise, good frames with some bits or their length changed, and good ones. Nothing panics, every
/// frame is counted once, and no page frame is lost.
#[test]
fn hostile_frames_do_no_harm() {
    let mut random = ChaCha8Rng::seed_from_u64(0x1a57);
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    let before = (one.station.port.received.frames, one.station.node().drops().total());
    let begun = clock.get();
    let total = 150_000u64;
    for i in 0..total {
        // Not so long that the other node is taken for dead.
        clock.set(begun + i * 400 / total);
        let kinds = [Kind::Hello, Kind::Data, Kind::EchoRequest, Kind::PageRequest, Kind::Reply];
        let kind = kinds[random.random_range(0..5)];
        let to = [1, 1, 1, 5, 0][random.random_range(0..5)];
        let payload = vec![random.random(); [0, 8, 100, 4096][random.random_range(0..4)]];
        let mut bytes = frame([2, 2, 2, 1, 9][random.random_range(0..5)], to, kind, &payload);
        match random.random_range(0..4) {
            0 => random.fill(&mut bytes[..]),
            1 => {
                for _ in 0..random.random_range(1..4) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
            }
            2 => bytes.resize(random.random_range(0..=HEADER_BYTES + 4096), random.random()),
            _ => {}
        }
        one.deliver(&bytes);
        if random.random_ratio(1, 50) {
            one.station.port.card.stuck = random.random();
            one.tick();
            one.station.begin_exchange(ExchangeRequest {
                node: random.random_range(0..70),
                shape: [Shape::Short, Shape::Page, Shape::Fetch][random.random_range(0..3)],
                count: random.random(),
            });
            one.advance();
        }
        if i % 500 == 0 {
            one.check_frames();
        }
        one.station.port.card.outbox.clear();
    }
    one.station.port.card.stuck = false;
    one.poll();
    one.check_frames();
    let accepted = one.station.port.received.frames - before.0;
    assert_eq!(accepted + one.station.node().drops().total() - before.1, total);
    let Drops { short, foreign, malformed, corrupt, elsewhere, duplicate, stranger, unexpected, .. } =
        one.station.counters(|ticks| ticks).dropped;
    for count in [short, foreign, malformed, corrupt, elsewhere, duplicate, stranger, unexpected, accepted] {
        assert!(count > 100, "{:?}", one.station.counters(|ticks| ticks));
    }
}
