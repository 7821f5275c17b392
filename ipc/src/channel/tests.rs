use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{ChannelError, Consumer, HEADER_WORDS, Producer, SharedWords, Sleep, Wake, region_bytes};

#[derive(Clone, Debug)]
struct Words(Arc<[AtomicU64]>);

impl Words {
    fn new(entries: usize, descriptor_bytes: usize) -> Self {
        Self((0..region_bytes(entries, descriptor_bytes) / 8).map(|_| AtomicU64::new(0)).collect())
    }
}

impl SharedWords for Words {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[index].load(order)
    }

    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[index].store(value, order);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Sample {
    number: u64,
    check: [u32; 2],
}

impl Sample {
    fn new(number: u64) -> Self {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            number,
            check: [u32::try_from(mixed >> 32).unwrap(), u32::try_from(mixed & 0xffff_ffff).unwrap()],
        }
    }
}

type Ends = (Producer<Words, Sample>, Consumer<Words, Sample>);

fn linked(words: &Words) -> Ends {
    let mut producer = Producer::open(words.clone()).unwrap();
    let consumer = Consumer::open(words.clone()).unwrap();
    assert_eq!(producer.push(&Sample::default()), Err(ChannelError::PeerRestarted));
    (producer, consumer)
}

/// A notification: sticky, one waiter.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let rung = self.rung.lock().unwrap();
        let (mut rung, result) =
            self.changed.wait_timeout_while(rung, Duration::from_secs(20), |rung| !*rung).unwrap();
        assert!(!result.timed_out(), "a wake-up was lost");
        *rung = false;
    }
}

#[test]
fn the_capacity_is_what_fits() {
    let open = |words: usize| {
        let words = Words((0..words).map(|_| AtomicU64::new(0)).collect());
        Producer::<_, Sample>::open(words).map(|producer| producer.capacity())
    };
    assert_eq!(open(0).unwrap_err(), ChannelError::TooSmall);
    assert_eq!(open(HEADER_WORDS + 1).unwrap_err(), ChannelError::TooSmall);
    assert_eq!(open(HEADER_WORDS + 2), Ok(1));
    assert_eq!(open(HEADER_WORDS + 7), Ok(2));
    assert_eq!(open(512), Ok(128));
    assert_eq!(region_bytes(200, 16), 256 + 256 * 16);
}

#[test]
fn descriptors_come_in_order_and_a_full_ring_says_so() {
    let words = Words::new(4, 16);
    let (mut producer, mut consumer) = linked(&words);
    for round in 0..100 {
        for i in 0..4 {
            assert_eq!(producer.push(&Sample::new(round * 4 + i)), Ok(Wake::NotNeeded));
        }
        assert_eq!(producer.push(&Sample::new(0)), Err(ChannelError::Full));
        for i in 0..4 {
            assert_eq!(consumer.pop(), Ok(Some((Sample::new(round * 4 + i), Wake::NotNeeded))));
        }
        assert_eq!(consumer.pop(), Ok(None));
    }
}

#[test]
fn a_batch_is_published_at_once_and_wakes_once() {
    let words = Words::new(8, 16);
    let (mut producer, mut consumer) = linked(&words);
    assert_eq!(consumer.prepare_to_sleep(), Ok(Sleep::Ready));
    let samples: Vec<Sample> = (0..10).map(Sample::new).collect();
    producer.stage(&samples[0]).unwrap();
    assert_eq!(consumer.take(), Ok(None), "staged is not published");
    assert_eq!(producer.prepare_to_sleep(), Ok(Sleep::NotNow));
    assert_eq!(producer.push_batch(&samples[1..]), Ok((7, Wake::Needed)));
    assert_eq!(producer.push_batch(&samples[8..]), Ok((0, Wake::NotNeeded)));
    assert_eq!(producer.prepare_to_sleep(), Ok(Sleep::Ready));
    let mut out = [Sample::default(); 5];
    assert_eq!(consumer.take(), Ok(Some(samples[0])));
    assert_eq!(producer.push_batch(&samples[8..]), Ok((0, Wake::NotNeeded)), "taken is not released");
    assert_eq!(consumer.pop_batch(&mut out), Ok((5, Wake::Needed)));
    assert_eq!(out, samples[1..6]);
    assert_eq!(producer.push_batch(&samples[8..]), Ok((2, Wake::NotNeeded)));
    assert_eq!(consumer.pop_batch(&mut out), Ok((4, Wake::NotNeeded)));
    assert_eq!(out[..4], samples[6..]);
    assert_eq!(consumer.pop_batch(&mut out), Ok((0, Wake::NotNeeded)));
}

#[test]
fn a_push_touches_few_shared_words() {
    /// Counts accesses.
    struct Counted(Words, Arc<AtomicU64>);
    impl SharedWords for Counted {
        fn count(&self) -> usize {
            self.0.count()
        }
        fn load(&self, index: usize, order: Ordering) -> u64 {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.load(index, order)
        }
        fn store(&self, index: usize, value: u64, order: Ordering) {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.store(index, value, order);
        }
    }
    let words = Words::new(64, 16);
    let touched = Arc::new(AtomicU64::new(0));
    let mut consumer = Consumer::<_, Sample>::open(Counted(words.clone(), touched.clone())).unwrap();
    let mut producer = Producer::<_, Sample>::open(Counted(words, touched.clone())).unwrap();
    assert_eq!(consumer.take(), Err(ChannelError::PeerRestarted));
    let mut samples: Vec<Sample> = (0..64).map(Sample::new).collect();
    touched.store(0, Ordering::Relaxed);
    assert_eq!(producer.push_batch(&samples), Ok((64, Wake::NotNeeded)));
    assert_eq!(touched.swap(0, Ordering::Relaxed), 64 * 2 + 6, "two words a descriptor, six a batch");
    assert_eq!(consumer.pop_batch(&mut samples), Ok((64, Wake::NotNeeded)));
    assert_eq!(touched.load(Ordering::Relaxed), 64 * 2 + 5);
}

#[test]
fn a_million_descriptors_between_two_threads_that_park() {
    const COUNT: u64 = 1_000_000;
    let words = Words::new(64, 16);
    let (mut producer, mut consumer) = linked(&words);
    let bells = Arc::new((Bell::default(), Bell::default()));
    let theirs = bells.clone();
    let thread = thread::spawn(move || {
        let (to_producer, to_consumer) = &*theirs;
        let mut next = 0;
        let mut naps = 0u64;
        while next < COUNT {
            // Now single, now in batches.
            let result = if next.is_multiple_of(3) {
                producer.push(&Sample::new(next)).map(|wake| (1, wake))
            } else {
                let batch = [next, next + 1, next + 2].map(Sample::new);
                let length = usize::try_from(COUNT - next).unwrap().min(3);
                producer.push_batch(&batch[..length])
            };
            match result {
                Ok((0, _)) | Err(ChannelError::Full) => {
                    if producer.prepare_to_sleep() == Ok(Sleep::Ready) {
                        naps += 1;
                        to_producer.wait();
                    }
                }
                Ok((pushed, wake)) => {
                    next += pushed as u64;
                    if wake == Wake::Needed {
                        to_consumer.ring();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        naps
    });
    let (to_producer, to_consumer) = &*bells;
    let mut out = [Sample::default(); 16];
    let mut expected = 0;
    let mut naps = 0u64;
    while expected < COUNT {
        let (there, wake) = consumer.pop_batch(&mut out).unwrap();
        for sample in &out[..there] {
            assert_eq!(*sample, Sample::new(expected));
            expected += 1;
        }
        if wake == Wake::Needed {
            to_producer.ring();
        }
        if there == 0 && consumer.prepare_to_sleep() == Ok(Sleep::Ready) {
            naps += 1;
            to_consumer.wait();
        }
    }
    assert_eq!(consumer.take(), Ok(None));
    let producer_naps = thread.join().unwrap();
    assert!(producer_naps + naps > 0, "nobody ever slept");
}

#[test]
fn an_impossible_index_is_misbehaviour() {
    const PRODUCERS: usize = 0;
    const CONSUMERS: usize = 8;
    for wrong in [0u64, 1, 5, 100, u64::MAX - 1, u64::MAX] {
        let words = Words::new(4, 16);
        let (mut producer, mut consumer) = linked(&words);
        producer.push_batch(&[Sample::new(1); 3]).map(drop).unwrap();
        let _ = consumer.pop().unwrap();
        // The consumer knows of 3 and took 1, so 3 to 5 are possible; only 5 of these is among the wrong ones.
        words.store(PRODUCERS, wrong, Ordering::SeqCst);
        let mut out = [Sample::default(); 8];
        let told = consumer.pop_batch(&mut out);
        assert_eq!(told.is_err(), wrong != 5, "{wrong}");
        assert!(told.is_ok() || told == Err(ChannelError::Misbehaved));
    }
    for wrong in [0u64, 2, 4, u64::MAX] {
        let words = Words::new(4, 16);
        let (mut producer, mut consumer) = linked(&words);
        producer.push_batch(&[Sample::new(1); 3]).map(drop).unwrap();
        let _ = consumer.pop().unwrap();
        producer.push_batch(&[Sample::new(1); 2]).map(drop).unwrap();
        // The producer knows of 1 and published 5.
        words.store(CONSUMERS, wrong, Ordering::SeqCst);
        let told = producer.push(&Sample::new(1));
        assert_eq!(told == Err(ChannelError::Misbehaved), wrong == 0 || wrong > 5, "{wrong} {told:?}");
    }
}

/// Values that a hostile peer may like.
fn hostile_word(random: &mut ChaCha8Rng, words: &Words) -> u64 {
    match random.random_range(0..5) {
        0 => random.random(),
        1 => random.random_range(0..16),
        2 => u64::MAX - random.random_range(0..4),
        3 => 1 << random.random_range(0..64),
        _ => {
            let at = random.random_range(0..words.count());
            words.load(at, Ordering::Relaxed).wrapping_add(random.random_range(0..5)).wrapping_sub(2)
        }
    }
}

#[test]
fn a_peer_that_scribbles_harms_the_channel_alone() {
    let mut misbehaved = 0;
    let mut passed = 0;
    for seed in 0..200 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let words = Words::new(8, 16);
        let (mut producer, mut consumer) = linked(&words);
        let mut out = [Sample::default(); 5];
        for _ in 0..2000 {
            if random.random_bool(0.3) {
                // Rather the header than the descriptors.
                let end = if random.random() { HEADER_WORDS } else { words.count() };
                let at = random.random_range(0..end);
                words.store(at, hostile_word(&mut random, &words), Ordering::Relaxed);
            }
            // Each of these indexes the words, which panics out of range, and computes, which panics on overflow.
            let result = match random.random_range(0..8) {
                0 => producer.push(&Sample::new(1)).map(drop),
                1 => producer.push_batch(&out).map(drop),
                2 => producer.stage(&Sample::new(2)),
                3 => producer.prepare_to_sleep().map(drop),
                4 => consumer.pop().map(drop),
                5 => consumer.pop_batch(&mut out).map(|(there, _)| passed += there),
                6 => consumer.take().map(drop),
                _ => consumer.prepare_to_sleep().map(drop),
            };
            match result {
                Err(ChannelError::Misbehaved) => {
                    misbehaved += 1;
                    if random.random() {
                        producer = Producer::open(words.clone()).unwrap();
                    } else {
                        consumer = Consumer::open(words.clone()).unwrap();
                    }
                }
                Ok(()) | Err(ChannelError::PeerRestarted | ChannelError::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
        // And when it stops, a channel opened anew works.
        producer = Producer::open(words.clone()).unwrap();
        consumer = Consumer::open(words.clone()).unwrap();
        assert_eq!(producer.prepare_to_sleep(), Err(ChannelError::PeerRestarted));
        assert_eq!(producer.push_batch(&[Sample::new(seed); 3]).map(|(pushed, _)| pushed), Ok(3));
        assert_eq!(consumer.pop_batch(&mut out).map(|(there, _)| there), Ok(3));
        assert_eq!(out[2], Sample::new(seed));
    }
    assert!(misbehaved > 200 && passed > 1000, "{misbehaved} {passed}");
}

#[test]
fn a_peer_that_scribbles_meanwhile_harms_the_channel_alone() {
    let words = Words::new(8, 16);
    let (mut producer, mut consumer) = linked(&words);
    let stop = Arc::new(AtomicBool::new(false));
    let (theirs, until) = (words.clone(), stop.clone());
    let thread = thread::spawn(move || {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        while !until.load(Ordering::Relaxed) {
            let at = random.random_range(0..theirs.count());
            theirs.store(at, hostile_word(&mut random, &theirs), Ordering::Relaxed);
        }
    });
    let mut out = [Sample::default(); 5];
    for _ in 0..20_000 {
        if producer.push_batch(&out) == Err(ChannelError::Misbehaved) {
            producer = Producer::open(words.clone()).unwrap();
        }
        if consumer.pop_batch(&mut out) == Err(ChannelError::Misbehaved) {
            consumer = Consumer::open(words.clone()).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

/// One side of the simulation below.
#[derive(Default)]
struct Actor {
    asleep: bool,
    notified: bool,
}

impl Actor {
    /// Whether it has a turn: it is awake, or was woken.
    fn turn(&mut self) -> bool {
        if self.asleep && !self.notified {
            return false;
        }
        if self.asleep {
            (self.asleep, self.notified) = (false, false);
        }
        true
    }

    fn slept(&mut self, result: Result<Sleep, ChannelError>, peer: &mut Self) {
        match result {
            Ok(sleep) => self.asleep = sleep == Sleep::Ready,
            Err(ChannelError::PeerRestarted) => peer.notified = true,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn restarts_lose_only_what_was_under_way() {
    for seed in 0..300 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let words = Words::new(4, 16);
        let mut producer = Producer::<_, Sample>::open(words.clone()).unwrap();
        let mut consumer = Consumer::<_, Sample>::open(words.clone()).unwrap();
        let (mut p, mut c) = (Actor::default(), Actor::default());
        (p.notified, c.notified) = (true, true);
        let mut next = 0;
        // What was sent since the last restart and did not arrive yet.
        let mut under_way = VecDeque::new();
        let mut next_at_restart = 0;
        let mut arrived = None;
        let mut restarts = 0;
        let mut steps = 0;
        while next < 2000 || !under_way.is_empty() {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: a wake-up was lost, {next} sent");
            if restarts < 50 && random.random_bool(0.02) {
                restarts += 1;
                next_at_restart = next;
                under_way.clear();
                if random.random() {
                    producer = Producer::open(words.clone()).unwrap();
                    (p.asleep, c.notified) = (false, true);
                } else {
                    consumer = Consumer::open(words.clone()).unwrap();
                    (c.asleep, p.notified) = (false, true);
                }
            }
            if random.random() && next < 2000 && p.turn() {
                match producer.push(&Sample::new(next)) {
                    Ok(wake) => {
                        under_way.push_back(next);
                        next += 1;
                        c.notified |= wake == Wake::Needed;
                    }
                    Err(ChannelError::PeerRestarted) => {
                        assert!(under_way.is_empty(), "seed {seed}");
                        c.notified = true;
                    }
                    Err(ChannelError::Full) => p.slept(producer.prepare_to_sleep(), &mut c),
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            } else if random.random() && c.turn() {
                match consumer.pop() {
                    Ok(Some((sample, wake))) => {
                        assert_eq!(sample, Sample::new(sample.number));
                        // Before it learns of the producer's restart it may read what was sent before.
                        if sample.number >= next_at_restart {
                            assert_eq!(under_way.pop_front(), Some(sample.number), "seed {seed}");
                        }
                        assert!(arrived < Some(sample.number), "seed {seed}: nothing arrives twice");
                        arrived = Some(sample.number);
                        p.notified |= wake == Wake::Needed;
                    }
                    Ok(None) => c.slept(consumer.prepare_to_sleep(), &mut p),
                    Err(ChannelError::PeerRestarted) => p.notified = true,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        }
        assert!(restarts > 10, "seed {seed}");
    }
}
