//! The channel's own code under a model checker: loom runs it in every order of steps, up to a number of preemptions,
//! and lets each load see every value that the memory model of Rust (that of C++) allows. A lost wake-up shows as a
//! deadlock.

use std::sync::Arc;
use std::vec::Vec;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;

use super::{ChannelError, Consumer, HEADER_WORDS, Producer, SharedWords, Sleep, Wake};

const ENTRIES: usize = 2;

/// Whether the fences of the wake-up protocol are there.
#[derive(Clone, Copy)]
enum Fences {
    Present,
    Missing,
}

/// Whether a side heeds what [`Sleep`] says after it looked again.
#[derive(Clone, Copy)]
enum SecondLook {
    Heeded,
    Ignored,
}

#[derive(Clone)]
struct Words(Arc<Vec<AtomicU64>>, Fences);

impl SharedWords for Words {
    fn count(&self) -> usize {
        HEADER_WORDS + ENTRIES
    }

    fn load(&self, index: usize, order: Ordering) -> u64 {
        self.0[place(index)].load(order)
    }

    fn store(&self, index: usize, value: u64, order: Ordering) {
        self.0[place(index)].store(value, order);
    }

    fn fence(&self) {
        if matches!(self.1, Fences::Present) {
            fence(Ordering::SeqCst);
        }
    }
}

/// Only the words that are in use have an atomic of loom's: each costs it time.
fn place(index: usize) -> usize {
    const USED: [usize; 8] = [0, 8, 16, 17, 18, 24, 25, 26];
    USED.iter().position(|&used| used == index).unwrap_or_else(|| USED.len() + index - HEADER_WORDS)
}

/// A channel and the notifications of both sides.
#[derive(Clone)]
struct Both {
    words: Words,
    to_producer: Arc<Notify>,
    to_consumer: Arc<Notify>,
}

impl Both {
    fn new(fences: Fences) -> Self {
        let words = (0..8 + ENTRIES).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: Words(Arc::new(words), fences),
            to_producer: Arc::new(Notify::new()),
            to_consumer: Arc::new(Notify::new()),
        }
    }

    /// Both sides, opened, each acknowledged by the other.
    fn linked(&self) -> (Producer<Words, u64>, Consumer<Words, u64>) {
        let mut producer = Producer::open(self.words.clone()).unwrap();
        let consumer = Consumer::open(self.words.clone()).unwrap();
        assert_eq!(producer.prepare_to_sleep(), Err(ChannelError::PeerRestarted));
        (producer, consumer)
    }

    fn push(&self, producer: &mut Producer<Words, u64>, value: u64, second_look: SecondLook) {
        loop {
            match producer.push(&value) {
                Ok(Wake::Needed) => return self.to_consumer.notify(),
                Ok(Wake::NotNeeded) => return,
                Err(ChannelError::PeerRestarted) => self.to_consumer.notify(),
                Err(ChannelError::Full) => {
                    sleep(&self.to_producer, &self.to_consumer, producer.prepare_to_sleep(), second_look)
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn pop(&self, consumer: &mut Consumer<Words, u64>, second_look: SecondLook) -> u64 {
        loop {
            match consumer.pop() {
                Ok(Some((value, wake))) => {
                    if wake == Wake::Needed {
                        self.to_producer.notify();
                    }
                    return value;
                }
                Ok(None) => {
                    sleep(&self.to_consumer, &self.to_producer, consumer.prepare_to_sleep(), second_look)
                }
                Err(ChannelError::PeerRestarted) => self.to_producer.notify(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn sleep(mine: &Notify, peers: &Notify, answer: Result<Sleep, ChannelError>, second_look: SecondLook) {
    match (answer, second_look) {
        (Ok(Sleep::Ready), _) | (Ok(Sleep::NotNow), SecondLook::Ignored) => mine.wait(),
        (Ok(Sleep::NotNow), SecondLook::Heeded) => {}
        (Err(ChannelError::PeerRestarted), _) => peers.notify(),
        (Err(error), _) => panic!("{error}"),
    }
}

fn explore(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(body);
}

/// Passes `count` numbers through a channel of two entries: beyond two, both sides may have to sleep.
fn pass(count: u64, fences: Fences, second_look: SecondLook) {
    explore(3, move || {
        let both = Both::new(fences);
        let (mut producer, mut consumer) = both.linked();
        let theirs = both.clone();
        let thread = thread::spawn(move || {
            for value in 1..=count {
                theirs.push(&mut producer, value, second_look);
            }
        });
        for value in 1..=count {
            assert_eq!(both.pop(&mut consumer, second_look), value);
        }
        thread.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost_and_every_descriptor_arrives_whole() {
    pass(3, Fences::Present, SecondLook::Heeded);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_second_look_a_wake_up_is_lost() {
    pass(1, Fences::Present, SecondLook::Ignored);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fences_a_wake_up_is_lost() {
    pass(1, Fences::Missing, SecondLook::Heeded);
}

#[test]
fn two_sides_that_open_at_once_find_each_other() {
    explore(2, || {
        let both = Both::new(Fences::Present);
        let theirs = both.clone();
        let thread = thread::spawn(move || {
            let mut producer = Producer::open(theirs.words.clone()).unwrap();
            theirs.to_consumer.notify();
            theirs.push(&mut producer, 7, SecondLook::Heeded);
        });
        let mut consumer = Consumer::open(both.words.clone()).unwrap();
        both.to_producer.notify();
        assert_eq!(both.pop(&mut consumer, SecondLook::Heeded), 7);
        thread.join().unwrap();
    });
}

#[test]
fn a_consumer_that_restarts_at_any_point_gets_what_is_sent_again() {
    explore(2, || {
        let both = Both::new(Fences::Present);
        let (mut producer, before) = both.linked();
        let arrived = Arc::new(AtomicBool::new(false));
        let (theirs, seen) = (both.clone(), arrived.clone());
        let thread = thread::spawn(move || {
            theirs.push(&mut producer, 7, SecondLook::Heeded);
            while !seen.load(Ordering::Acquire) {
                theirs.to_producer.wait();
                if producer.publish() == Err(ChannelError::PeerRestarted) {
                    theirs.to_consumer.notify();
                    theirs.push(&mut producer, 7, SecondLook::Heeded);
                }
            }
        });
        drop(before);
        let mut consumer = Consumer::open(both.words.clone()).unwrap();
        both.to_producer.notify();
        assert_eq!(both.pop(&mut consumer, SecondLook::Heeded), 7);
        arrived.store(true, Ordering::Release);
        both.to_producer.notify();
        thread.join().unwrap();
    });
}

#[test]
fn a_producer_that_restarts_at_any_point_is_heard() {
    explore(2, || {
        let both = Both::new(Fences::Present);
        let (mut before, mut consumer) = both.linked();
        let wake = before.push(&6).unwrap();
        assert_eq!(wake, Wake::NotNeeded);
        let theirs = both.clone();
        let thread = thread::spawn(move || {
            drop(before);
            let mut producer = Producer::open(theirs.words.clone()).unwrap();
            theirs.to_consumer.notify();
            theirs.push(&mut producer, 7, SecondLook::Heeded);
        });
        // What the first one sent may have been lost, but arrives in no case after, or instead of, the second's.
        let mut value = both.pop(&mut consumer, SecondLook::Heeded);
        if value == 6 {
            value = both.pop(&mut consumer, SecondLook::Heeded);
        }
        assert_eq!(value, 7);
        thread.join().unwrap();
    });
}
