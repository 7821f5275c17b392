//! Each rule of the sender by itself.

use super::*;
use crate::transport::rtt::RtoLimits;

fn piece(frame: u32) -> Piece<u32> {
    Piece {
        message: [0; MESSAGE_BYTES],
        part: Some(Part { frame, offset: 0, bytes: 8 }),
        fragment: Fragment::WHOLE,
    }
}

fn ack(next: u32, selective: u64) -> Acknowledgement {
    Acknowledgement { next, selective, limit: None }
}

/// A sender of `count` pieces, all transmitted, at times 0, 1, ...
fn sent(count: u32) -> Sender<u32> {
    let mut sender = Sender::new();
    sender.limit = 64;
    for number in 0..count {
        sender.queue(piece(number));
        assert_eq!(sender.ready(), Some(number));
        sender.transmit(number, number.into()).unwrap();
        sender.completed(number);
    }
    assert_eq!(sender.ready(), None);
    sender
}

fn done(sender: &mut Sender<u32>) -> std::vec::Vec<u32> {
    core::iter::from_fn(|| sender.pop_done()).collect()
}

fn rtt() -> RttEstimator {
    RttEstimator::new(RtoLimits { initial: 100, min: 10, max: 1000 })
}

#[test]
fn frames_come_back_in_order_when_acknowledged_and_read() {
    let mut sender = sent(4);
    sender.slot(1).unwrap().in_card = true;
    assert_eq!(sender.acknowledge(ack(3, 0), 50), Ok(Some(48)));
    assert_eq!(done(&mut sender), [0]);
    sender.completed(1);
    assert_eq!(done(&mut sender), [1, 2]);
    assert_eq!((sender.room(), sender.is_empty()), (63, false));
}

#[test]
fn three_later_arrivals_mean_loss_and_fewer_do_not() {
    let mut sender = sent(8);
    sender.acknowledge(ack(0, 0b11), 50).unwrap();
    assert_eq!(sender.ready(), None);
    sender.acknowledge(ack(0, 0b111), 50).unwrap();
    assert_eq!(sender.ready(), Some(0));
    // While the card reads it, it is not given to the card again.
    sender.slot(0).unwrap().in_card = true;
    assert_eq!(sender.ready(), None);
    sender.completed(0);
    assert_eq!(sender.transmit(0, 60).unwrap().count, 1);
    assert_eq!((sender.ready(), sender.retransmissions()), (None, (1, 0)));
    // Lost once more: found by what was sent after it.
    sender.completed(0);
    for number in 8..11 {
        sender.queue(piece(number));
        sender.transmit(number, 70).unwrap();
    }
    sender.acknowledge(ack(0, 0b11_1111_1111), 80).unwrap();
    assert_eq!((sender.ready(), sender.retransmissions()), (Some(0), (2, 0)));
    sender.acknowledge(ack(11, 0), 80).unwrap();
    assert_eq!(sender.ready(), None);
}

#[test]
fn a_repeated_transmission_gives_no_sample() {
    let mut sender = sent(1);
    let rtt = rtt();
    assert_eq!(sender.deadline(&rtt), Some(100));
    assert_eq!(sender.expire(99, &rtt), Due::Nothing);
    assert_eq!(sender.ready(), None);
    assert_eq!(sender.expire(100, &rtt), Due::Nothing);
    assert_eq!(sender.ready(), Some(0));
    sender.transmit(0, 100).unwrap();
    sender.completed(0);
    // Back-off.
    assert_eq!(sender.deadline(&rtt), Some(300));
    assert_eq!(sender.acknowledge(ack(1, 0), 120), Ok(None));
    assert_eq!(sender.deadline(&rtt), None);
}

#[test]
fn what_was_never_sent_cannot_be_acknowledged() {
    let mut sender = sent(4);
    for (next, selective) in [(5, 0), (4, 1), (3, 1), (0, 0b1000), (1 << 30, 0)] {
        assert_eq!(sender.acknowledge(ack(next, selective), 9), Err(Unexpected), "{next} {selective}");
    }
    for limit in [65, u32::MAX] {
        let greedy = Acknowledgement { limit: Some(limit), ..ack(0, 0) };
        assert_eq!(sender.acknowledge(greedy, 9), Err(Unexpected));
    }
    assert_eq!(done(&mut sender), []);
    assert_eq!(sender.acknowledge(ack(2, 0), 9), Ok(Some(8)));
    // An older one that comes late says nothing.
    assert_eq!(sender.acknowledge(ack(1, 0b1111), 9), Ok(None));
    assert_eq!(done(&mut sender), [0, 1]);
}

#[test]
fn without_credit_the_peer_is_asked_for_it() {
    let mut sender = Sender::new();
    for number in 0..10 {
        sender.queue(piece(number));
    }
    while let Some(number) = sender.ready() {
        sender.transmit(number, 0).unwrap();
        sender.completed(number);
    }
    let rtt = rtt();
    sender.acknowledge(Acknowledgement { limit: Some(8), ..ack(8, 0) }, 30).unwrap();
    assert_eq!((sender.ready(), sender.deadline(&rtt)), (None, Some(130)));
    assert_eq!(sender.expire(130, &rtt), Due::Probe);
    assert_eq!(sender.expire(131, &rtt), Due::Nothing);
    assert_eq!(sender.expire(330, &rtt), Due::Probe);
    sender.acknowledge(Acknowledgement { limit: Some(9), ..ack(8, 0) }, 340).unwrap();
    assert_eq!(sender.ready(), Some(8));
}

#[test]
fn a_peer_that_never_acknowledges_is_given_up() {
    let mut sender = sent(1);
    let rtt = rtt();
    let mut transmissions = 1;
    while !sender.is_exhausted() {
        let deadline = sender.deadline(&rtt).unwrap();
        sender.expire(deadline, &rtt);
        let number = sender.ready().unwrap();
        sender.transmit(number, deadline).unwrap();
        sender.completed(number);
        transmissions += 1;
        assert!(transmissions < 100);
    }
    sender.abandon();
    assert_eq!((sender.deadline(&rtt), sender.ready()), (None, None));
    assert_eq!(done(&mut sender), [0]);
    assert!(sender.is_empty());
}

#[test]
fn what_was_not_begun_can_be_taken_back() {
    let mut sender = Sender::new();
    let fragment = |frame, index, last| Piece { fragment: Fragment { index, last }, ..piece(frame) };
    let pieces = [fragment(1, 0, false), fragment(1, 1, false), fragment(1, 2, true), piece(2)];
    for piece in pieces.into_iter().chain([fragment(3, 0, false), fragment(3, 1, true)]) {
        sender.queue(piece);
    }
    sender.queue(Piece { part: None, ..piece(0) });
    sender.transmit(0, 0).unwrap();
    assert_eq!([(); 4].map(|()| sender.withdraw()), [Some(None), Some(Some(3)), Some(Some(2)), None]);
    // The rest of what was begun goes on.
    for number in [1, 2] {
        assert_eq!(sender.ready(), Some(number));
        sender.transmit(number, 0).unwrap();
    }
    assert_eq!((sender.ready(), sender.withdraw(), sender.room()), (None, None, 61));
    (0..3).for_each(|number| sender.completed(number));
    sender.acknowledge(ack(3, 0), 1).unwrap();
    assert_eq!((done(&mut sender), sender.is_empty()), (std::vec![1], true));
    sender.queue(piece(4));
    assert_eq!(sender.ready(), Some(3));
}

#[test]
fn numbers_wrap_without_harm() {
    let mut sender = Sender::new();
    let start = u32::MAX - 20;
    (sender.tail, sender.una, sender.next, sender.end) = (start, start, start, start);
    sender.limit = start.wrapping_add(8);
    let mut expected = 0;
    for frame in 0..100 {
        sender.queue(piece(frame));
        let number = sender.ready().unwrap();
        sender.transmit(number, 0).unwrap();
        sender.completed(number);
        let next = number.wrapping_add(1);
        let limit = Some(next.wrapping_add(8));
        sender.acknowledge(Acknowledgement { next, selective: 0, limit }, 1).unwrap();
        for frame in done(&mut sender) {
            assert_eq!(frame, expected);
            expected += 1;
        }
    }
    assert_eq!(expected, 100);
}
