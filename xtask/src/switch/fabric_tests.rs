//! The fabric against its promises, on seeded random traffic.

use super::counters::{DropReason, LinkState, PortId};
use super::fabric::{Delivery, Fabric, MAX_IN_FLIGHT};
use super::impairment::{Impairment, Probability};
use super::wire::{MAX_FRAME, MIN_FRAME, PREFIX_BYTES, Wire, encode};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

const BROADCAST: u8 = 255;

/// The address of the node at a port, or the broadcast address.
fn mac(node: u8) -> [u8; 6] {
    if node == BROADCAST { [0xff; 6] } else { [2, 0, 0, 0, 0, node] }
}

/// A frame whose payload is its number.
fn frame(to: u8, from: u8, number: u32, length: usize) -> Vec<u8> {
    let mut frame = [mac(to).as_slice(), &mac(from), &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.resize(length.max(frame.len()), 0);
    frame
}

fn number(delivery: &Delivery) -> u32 {
    let at = PREFIX_BYTES + MIN_FRAME;
    u32::from_be_bytes(delivery.bytes[at..at + 4].try_into().unwrap())
}

fn impairment(text: &str) -> Impairment {
    text.parse().unwrap()
}

/// A fabric with its time, which checks what every delivery must fulfil.
struct Bench {
    fabric: Fabric,
    now: Duration,
    delivered: Vec<Delivery>,
}

impl Bench {
    fn new(seed: u64, ports: usize, impairment: Impairment) -> Self {
        let mut fabric = Fabric::new(seed, &vec![MAX_FRAME; ports]);
        for from in fabric.ports() {
            fabric.set_link(from, LinkState::Up);
            for to in fabric.ports() {
                fabric.set_impairment(from, to, impairment);
            }
        }
        Self { fabric, now: Duration::ZERO, delivered: Vec::new() }
    }

    fn send(&mut self, from: u8, frame: &[u8]) {
        let bytes = encode(frame);
        let from = PortId(from);
        let verdict = self.fabric.ingress(self.now, from, Wire::new(&bytes).unwrap());
        let original = |to| Delivery { from, to, bytes: bytes.clone().into() };
        self.delivered.extend(verdict.originals.iter().map(original));
        self.delivered.extend(verdict.copies);
    }

    /// Lets time pass until `now`; deliveries come at their time, not at the end.
    fn wait_until(&mut self, now: Duration) {
        assert!(now >= self.now);
        while let Some(due) = self.fabric.next_due().filter(|due| *due <= now) {
            assert!(due >= self.now, "due in the past");
            self.now = due;
            self.delivered.extend(std::iter::from_fn(|| self.fabric.release(due)));
        }
        self.now = now;
    }

    fn drain(&mut self) {
        self.wait_until(self.now + Duration::from_secs(60));
        assert_eq!(self.fabric.next_due(), None);
    }

    fn delivered_to(&self, to: u8) -> u64 {
        u64::try_from(self.delivered.iter().filter(|delivery| delivery.to.0 == to).count()).unwrap()
    }
}

/// Random traffic on four ports whose addresses are known. How many copies each port should get if nothing is done
/// to them.
fn random_traffic(bench: &mut Bench, traffic_seed: u64, frames: u32) -> [u64; 4] {
    let mut random = ChaCha8Rng::seed_from_u64(traffic_seed);
    let mut expected = [0; 4];
    for count in 0..frames {
        let from = random.random_range(0..4);
        // The first frames tell the switch where everyone is.
        let (from, to) = if count < 4 {
            (u8::try_from(count).unwrap(), BROADCAST)
        } else {
            (from, if random.random_ratio(1, 5) { BROADCAST } else { random.random_range(0..4) })
        };
        for port in 0..4 {
            let wanted = port != from && (to == port || to == BROADCAST);
            expected[usize::from(port)] += u64::from(wanted);
        }
        let longest = if random.random_ratio(1, 20) { MAX_FRAME } else { 100 };
        let length = random.random_range(MIN_FRAME + 4..=longest);
        bench.send(from, &frame(to, from, count, length));
        bench.wait_until(bench.now + Duration::from_micros(random.random_range(0..30)));
    }
    expected
}

#[test]
fn every_copy_is_delivered_dropped_or_in_flight() {
    for seed in 0..24 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut probability = |most| Probability::from_ppm(random.random_range(0..=most)).unwrap();
        let impairment = Impairment {
            loss: probability(400_000),
            duplicate: probability(400_000),
            reorder: probability(400_000),
            // A corrupt address would be unknown to the count below only as a source, which is the sender's.
            corrupt: probability(400_000),
            delay: Duration::from_micros(seed % 3 * 200),
            jitter: Duration::from_micros(seed % 2 * 300),
        };
        let mut bench = Bench::new(seed, 4, impairment);
        let expected = random_traffic(&mut bench, seed, 600);
        // Some ports are cut from others and one loses its node while frames are in flight.
        bench.fabric.cut([PortId(0)].into_iter().collect(), [PortId(1), PortId(2)].into_iter().collect());
        bench.fabric.set_link(PortId(3), LinkState::Down);
        bench.drain();
        for port in 0..4 {
            let counters = bench.fabric.counters(PortId(port));
            let own = counters.dropped.get(DropReason::OwnPort);
            let dropped = counters.dropped.total() - own;
            assert_eq!(
                expected[usize::from(port)] + counters.duplicated,
                bench.delivered_to(port) + dropped,
                "seed {seed} port {port}: {counters:?}"
            );
        }
        assert!(bench.delivered.iter().all(|delivery| delivery.from != delivery.to), "back to its own port");
    }
}

#[test]
fn without_impairment_frames_arrive_at_once_unchanged_and_in_order() {
    let mut bench = Bench::new(1, 4, Impairment::default());
    let mut last = HashMap::new();
    let expected = random_traffic(&mut bench, 2, 3000);
    assert_eq!(bench.fabric.next_due(), None);
    for delivery in &bench.delivered {
        let number = number(delivery);
        let path = (delivery.from, delivery.to);
        assert!(last.insert(path, number).is_none_or(|last| last < number), "{path:?} out of order");
        let wire = Wire::new(&delivery.bytes).unwrap();
        assert_eq!(wire.frame(), frame_again(wire, number));
    }
    for port in 0..4 {
        assert_eq!(bench.delivered_to(port), expected[usize::from(port)]);
    }

    /// The frame as it was sent.
    fn frame_again(wire: Wire<'_>, number: u32) -> Vec<u8> {
        let node = |mac: [u8; 6]| mac[5];
        frame(node(wire.destination()), node(wire.source()), number, wire.frame().len())
    }
}

#[test]
fn the_same_seed_gives_the_same_and_another_seed_does_not() {
    let impairment = impairment("loss=5%,dup=5%,reorder=5%,corrupt=5%,delay=50us,jitter=40us");
    let run = |seed| {
        let mut bench = Bench::new(seed, 4, impairment);
        random_traffic(&mut bench, 7, 2000);
        bench.drain();
        let counters = [0, 1, 2, 3].map(|port| *bench.fabric.counters(PortId(port)));
        (bench.delivered, counters)
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert!(first == again);
    assert!(first.0 != other.0 && first.1 != other.1);
}

#[test]
fn a_choice_depends_on_port_and_number_not_on_the_traffic_of_others() {
    let lost_from_0 = |with_others: bool| {
        let mut bench = Bench::new(9, 3, impairment("loss=30%"));
        for count in 0..500 {
            if with_others {
                bench.send(2, &frame(BROADCAST, 2, count, 64));
            }
            bench.send(0, &frame(BROADCAST, 0, count, 64));
        }
        bench.delivered.retain(|delivery| delivery.from.0 == 0);
        bench.delivered
    };
    assert_eq!(lost_from_0(false), lost_from_0(true));
}

#[test]
fn rates_are_what_was_asked_and_a_higher_rate_includes_a_lower_ones_choices() {
    let survivors = |text: &str| {
        let mut bench = Bench::new(3, 2, impairment(text));
        for count in 0..20_000 {
            bench.send(0, &frame(1, 0, count, 64));
        }
        bench.drain();
        let counters = *bench.fabric.counters(PortId(1));
        (bench.delivered.iter().map(number).collect::<Vec<_>>(), counters)
    };
    let (_, counters) = survivors("loss=1%,dup=2%,corrupt=0.5%");
    assert!((150..250).contains(&counters.dropped.get(DropReason::Lost)), "{counters:?}");
    assert!((330..470).contains(&counters.duplicated), "{counters:?}");
    assert!((60..145).contains(&counters.corrupted), "{counters:?}");
    let (at_5, _) = survivors("loss=5%");
    // A flipped bit may have been in the number.
    let at_1: HashSet<u32> = survivors("loss=1%,dup=2%").0.into_iter().collect();
    assert!(at_5.len() < at_1.len() && at_5.iter().all(|number| at_1.contains(number)));
    assert!(survivors("loss=100%").0.is_empty());
    assert_eq!(survivors("dup=100%").0.len(), 40_000);
}

#[test]
fn delay_and_jitter_keep_the_order_and_the_time() {
    let mut bench = Bench::new(4, 2, impairment("delay=100us,jitter=80us"));
    let mut seen = Vec::new();
    for count in 0..2000 {
        bench.send(0, &frame(1, 0, count, 64));
        let sent = bench.now;
        // One frame at a time: its own delay is seen.
        bench.wait_until(bench.now + Duration::from_micros(99));
        assert_eq!(bench.delivered.len(), usize::try_from(count).unwrap());
        let due = bench.fabric.next_due().unwrap() - sent;
        assert!((100..=180).contains(&due.as_micros()), "{due:?}");
        seen.push(due);
        bench.wait_until(sent + Duration::from_micros(180));
        assert_eq!(bench.delivered.len(), usize::try_from(count).unwrap() + 1);
    }
    assert!(seen.iter().any(|due| *due != seen[0]), "no jitter");
    for count in 2000..4000 {
        bench.send(0, &frame(1, 0, count, 64));
        bench.wait_until(bench.now + Duration::from_micros(1));
    }
    // The order holds when the impairment goes while frames are in flight.
    bench.fabric.set_impairment(PortId(0), PortId(1), Impairment::default());
    bench.send(0, &frame(1, 0, 4000, 64));
    bench.drain();
    bench.send(0, &frame(1, 0, 4001, 64));
    assert!(bench.delivered.iter().map(number).eq(0..4002));
    assert_eq!(bench.fabric.counters(PortId(1)).delayed, 4000);
}

#[test]
fn reordering_lets_later_frames_overtake() {
    let mut bench = Bench::new(5, 2, impairment("reorder=10%"));
    for count in 0..1000 {
        bench.send(0, &frame(1, 0, count, 64));
        bench.wait_until(bench.now + Duration::from_micros(20));
    }
    bench.drain();
    let numbers: Vec<u32> = bench.delivered.iter().map(number).collect();
    let overtaken = numbers.iter().zip(&numbers[1..]).filter(|(this, next)| this > next).count();
    let held = bench.fabric.counters(PortId(1)).reordered;
    assert!((60..140).contains(&held), "{held}");
    assert!(overtaken > 40, "{overtaken}");
    let mut sorted = numbers;
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..1000), "lost or doubled");
}

#[test]
fn corruption_flips_one_bit_anywhere() {
    let mut bench = Bench::new(6, 2, impairment("corrupt=100%"));
    let sent = frame(1, 0, 0, 64);
    for _ in 0..3000 {
        bench.send(0, &sent);
    }
    let mut flipped = [0_u32; 64];
    for delivery in &bench.delivered {
        let frame = Wire::new(&delivery.bytes).unwrap().frame();
        let mut bits = 0;
        for (at, (got, sent)) in frame.iter().zip(&sent).enumerate() {
            bits += (got ^ sent).count_ones();
            flipped[at] += (got ^ sent).count_ones();
        }
        assert_eq!(bits, 1);
    }
    assert!(flipped.iter().all(|count| *count > 0), "{flipped:?}");
}

#[test]
fn a_partition_isolates_until_it_heals() {
    let mut bench = Bench::new(7, 4, impairment("delay=1ms"));
    random_traffic(&mut bench, 7, 200);
    let (left, right) = ([PortId(0), PortId(1)], [PortId(2), PortId(3)]);
    bench.fabric.cut(left.into_iter().collect(), right.into_iter().collect());
    bench.delivered.clear();
    random_traffic(&mut bench, 8, 500);
    bench.drain();
    assert!(!bench.delivered.is_empty());
    let same_side = |delivery: &Delivery| left.contains(&delivery.from) == left.contains(&delivery.to);
    assert!(bench.delivered.iter().all(same_side), "also of what was in flight");
    assert!(bench.fabric.counters(PortId(2)).dropped.get(DropReason::Cut) > 0);
    bench.fabric.heal();
    bench.delivered.clear();
    random_traffic(&mut bench, 9, 500);
    bench.drain();
    assert!(!bench.delivered.iter().all(same_side));
}

#[test]
fn paths_are_impaired_one_by_one() {
    let mut bench = Bench::new(8, 2, Impairment::default());
    bench.fabric.set_impairment(PortId(0), PortId(1), impairment("loss=100%"));
    bench.send(0, &frame(BROADCAST, 0, 0, 64));
    assert_eq!(bench.delivered_to(1), 0);
    bench.send(1, &frame(0, 1, 1, 64));
    assert_eq!(bench.delivered_to(0), 1);
}

#[test]
fn a_node_that_left_gets_nothing_and_is_looked_for_everywhere() {
    let mut bench = Bench::new(9, 3, Impairment::default());
    bench.send(1, &frame(BROADCAST, 1, 0, 64));
    bench.delivered.clear();
    bench.send(0, &frame(1, 0, 1, 64));
    assert_eq!((bench.delivered_to(1), bench.delivered_to(2)), (1, 0));
    bench.fabric.set_link(PortId(1), LinkState::Down);
    bench.send(0, &frame(1, 0, 2, 64));
    assert_eq!((bench.delivered_to(1), bench.delivered_to(2)), (1, 1));
    // Its node has moved to port 2.
    bench.send(2, &frame(BROADCAST, 1, 3, 64));
    bench.send(0, &frame(1, 0, 4, 64));
    assert_eq!((bench.delivered_to(1), bench.delivered_to(2)), (1, 2));
}

#[test]
fn limits_and_nonsense_are_counted_where_they_belong() {
    let mut fabric = Fabric::new(0, &[MAX_FRAME, 1514]);
    fabric.ports().for_each(|port| fabric.set_link(port, LinkState::Up));
    let mut send = |from, frame: &[u8]| {
        let bytes = encode(frame);
        fabric.ingress(Duration::ZERO, PortId(from), Wire::new(&bytes).unwrap()).originals.iter().count()
    };
    assert_eq!(send(0, &frame(1, 0, 0, 1514)), 1);
    assert_eq!(send(0, &frame(1, 0, 0, 1515)), 0);
    assert_eq!(send(1, &frame(0, 1, 0, 1514)), 1);
    assert_eq!(send(1, &frame(0, 1, 0, 1515)), 0);
    assert_eq!(send(0, &frame(1, BROADCAST, 0, 64)), 0);
    assert_eq!(send(0, &frame(0, 0, 0, 64)), 0);
    let drops = |port, reason| fabric.counters(PortId(port)).dropped.get(reason);
    assert_eq!(drops(0, DropReason::TooLong), 0);
    assert_eq!(drops(1, DropReason::TooLong), 2);
    assert_eq!(drops(0, DropReason::Malformed), 1);
    assert_eq!(drops(0, DropReason::OwnPort), 1);
}

#[test]
fn what_is_in_flight_is_bounded_for_each_path() {
    let mut bench = Bench::new(0, 3, impairment("delay=10s"));
    for count in 0..10_000 {
        bench.send(0, &frame(1, 0, count, 64));
    }
    bench.send(2, &frame(1, 2, 0, 64));
    let dropped = &bench.fabric.counters(PortId(1)).dropped;
    assert_eq!(dropped.get(DropReason::QueueFull), 10_000 - u64::try_from(MAX_IN_FLIGHT).unwrap());
    bench.drain();
    assert_eq!(bench.delivered_to(1), u64::try_from(MAX_IN_FLIGHT).unwrap() + 1);
}
