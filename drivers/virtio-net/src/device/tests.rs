//! The driver against the simulated card.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::simulation::{self, Card, HostMemory, MAC};
use crate::{MAX_CHAINS, QUEUE_SIZE};

type Net = VirtioNet<HostMemory, Card>;

const ENTRIES: InterruptEntries = InterruptEntries { configuration: Some(0), receive: Some(1) };

fn start_card(change: impl FnOnce(&mut Card)) -> Result<Net, NetError> {
    let mut card = Card::new();
    change(&mut card);
    Net::new(card, ENTRIES)
}

fn started() -> Net {
    start_card(|_| {}).unwrap()
}

/// A card header, 68 header bytes and a payload that all depend on `seed`.
fn bytes_of(seed: u32, payload: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    let mut bytes = vec![0; CARD_HEADER_BYTES];
    bytes.extend((0..WIRE_HEADER_BYTES + payload).map(|_| random()));
    bytes
}

fn part(frame: Frame, offset: u16, bytes: u16) -> Option<Part> {
    Some(Part { frame, offset, bytes })
}

fn header_of(bytes: &[u8]) -> [u8; WIRE_HEADER_BYTES] {
    bytes[CARD_HEADER_BYTES..HEADER_BYTES].try_into().unwrap()
}

#[test]
fn it_agrees_to_no_more_than_it_does() {
    let mut net = started();
    assert_eq!(net.mac(), MAC);
    assert_eq!(net.mtu(), Some(9000));
    assert!(net.link_is_up());
    net.transport().config[6] = 0;
    assert!(!net.link_is_up());
    // Not the offloads, mergeable buffers and event indices; not an MTU whose frames would not fit.
    assert_eq!(net.transport().agreed, 1 << 32 | 1 << 16 | 1 << 5);
    assert!(net.transport().status.contains(DeviceStatus::DRIVER_OK));
    let routes = [
        (InterruptCause::Configuration, Some(0)),
        (InterruptCause::Queue(0), Some(1)),
        (InterruptCause::Queue(1), None),
    ];
    assert_eq!(net.transport().routes, routes);
    let mut net = start_card(|card| card.config[10..].copy_from_slice(&PAGE_MTU.to_le_bytes())).unwrap();
    assert_eq!(net.transport().agreed, 1 << 32 | 1 << 16 | 1 << 5 | 1 << 3);
    let mut net = start_card(|card| card.offered = 1 << 32 | 1 << 5).unwrap();
    assert_eq!((net.mtu(), net.link_is_up()), (None, true));
    assert_eq!(net.transport().agreed, 1 << 32 | 1 << 5);
}

#[test]
fn a_card_that_does_not_start_is_named() {
    let error = |change: fn(&mut Card)| start_card(change).err().unwrap();
    assert_eq!(error(|card| card.never_resets = true), NetError::ResetTimeout);
    assert_eq!(error(|card| card.offered = 1 << 5), NetError::Features(1 << 5));
    assert_eq!(error(|card| card.offered = 1 << 32), NetError::Features(1 << 32));
    assert_eq!(error(|card| card.refuses_features = true), NetError::FeaturesRefused);
    assert_eq!(error(|card| card.queue_size = 128), NetError::Queue(virtio_drivers::Error::InvalidParam));
    assert_eq!(
        error(|card| card.refuses_vector = true),
        NetError::Transport(TransportError::Vector { cause: InterruptCause::Configuration, entry: 0 })
    );
}

#[test]
fn a_page_lands_at_the_start_of_its_frame() {
    let mut net = started();
    let frame = simulation::frame(7);
    let address = frame.address();
    net.post_receive(frame).unwrap();
    net.notify_receive();
    assert_eq!(net.transport().notified, [1, 0]);
    assert_eq!(net.poll_receive(), Ok(None));
    let bytes = bytes_of(1, PAGE_BYTES);
    assert!(net.transport().deliver(&bytes));
    let received = net.poll_receive().unwrap().unwrap();
    assert_eq!(received.header, header_of(&bytes));
    assert_eq!(received.bytes, WIRE_HEADER_BYTES + PAGE_BYTES);
    assert_eq!(received.frame.number(), 7);
    assert_eq!(simulation::peek_bytes(address, PAGE_BYTES), bytes[HEADER_BYTES..]);
    assert_eq!(net.poll_receive(), Ok(None));

    // And from that very frame back.
    let header = header_of(&bytes_of(2, 0));
    let slot = net.send(&header, part(received.frame, 0, 4096)).unwrap();
    assert_eq!(net.transport().notified, [1, 1]);
    assert_eq!(net.reclaim_sent(), Ok(None));
    let sent = net.transport().transmit().unwrap();
    assert_eq!(sent[..CARD_HEADER_BYTES], [0; CARD_HEADER_BYTES]);
    assert_eq!(header_of(&sent), header);
    assert_eq!(sent[HEADER_BYTES..], bytes[HEADER_BYTES..]);
    assert_eq!((received.frame.number(), received.frame.address()), (7, address));
    assert_eq!((net.reclaim_sent(), net.reclaim_sent()), (Ok(Some(slot)), Ok(None)));
}

#[test]
fn parts_of_one_page_leave_at_a_time() {
    let mut net = started();
    let frame = simulation::frame(7);
    let contents = bytes_of(9, PAGE_BYTES);
    simulation::poke_bytes(frame.address(), &contents[HEADER_BYTES..]);
    let parts = [(0u16, 1440u16), (1440, 1440), (2880, 1216), (0, 4096), (4088, 8)];
    let mut slots = vec![];
    for (offset, bytes) in parts {
        slots.push(net.send(&[3; WIRE_HEADER_BYTES], part(frame, offset, bytes)).unwrap());
    }
    for (offset, bytes) in parts {
        let (from, to) = (HEADER_BYTES + usize::from(offset), HEADER_BYTES + usize::from(offset + bytes));
        assert_eq!(net.transport().transmit().unwrap()[HEADER_BYTES..], contents[from..to]);
        assert_eq!(net.reclaim_sent(), Ok(Some(slots.remove(0))));
    }
}

#[test]
fn a_short_frame_shows_nothing_of_an_older_one() {
    let mut net = started();
    for payload in [PAGE_BYTES, 0] {
        net.post_receive(simulation::frame(0)).unwrap();
        let mut bytes = bytes_of(3, payload);
        if payload == 0 {
            bytes.truncate(CARD_HEADER_BYTES + 20);
        }
        assert!(net.transport().deliver(&bytes));
        let received = net.poll_receive().unwrap().unwrap();
        if payload == 0 {
            assert_eq!(received.bytes, 20);
            assert_eq!(received.header[..20], bytes[CARD_HEADER_BYTES..]);
            assert_eq!(received.header[20..], [0; WIRE_HEADER_BYTES - 20]);
        }
    }
}

#[test]
fn queues_fill_and_empty() {
    let mut net = started();
    for number in 0..MAX_CHAINS {
        assert_eq!(net.receive_room(), MAX_CHAINS - number);
        net.post_receive(simulation::frame(u32::try_from(number).unwrap())).unwrap();
        net.send(&[0; WIRE_HEADER_BYTES], None).unwrap();
    }
    assert_eq!(net.post_receive(simulation::frame(1000)), Err(NetError::QueueFull));
    let full = net.send(&[0; WIRE_HEADER_BYTES], part(simulation::frame(1001), 0, 8));
    assert_eq!(full, Err(NetError::QueueFull));
    let mut slots = vec![];
    for _ in 0..MAX_CHAINS {
        assert_eq!(net.transport().transmit().unwrap(), [0; HEADER_BYTES]);
        slots.push(net.reclaim_sent().unwrap().unwrap());
    }
    slots.sort_unstable();
    assert!(slots.into_iter().map(usize::from).eq(0..MAX_CHAINS));
    assert_eq!(net.send_room(), MAX_CHAINS);
}

#[test]
fn a_payload_that_is_no_part_of_a_page_is_refused() {
    let mut net = started();
    for (offset, bytes) in
        [(0, 0), (0, 7), (0, 4097), (0, u16::MAX), (1, 4096), (4089, 8), (4096, 8), (u16::MAX, u16::MAX)]
    {
        let refused = net.send(&[0; WIRE_HEADER_BYTES], part(simulation::frame(5), offset, bytes));
        assert_eq!(refused, Err(NetError::Payload(offset, bytes)));
    }
    assert_eq!(net.send_room(), MAX_CHAINS);
    net.send(&[0; WIRE_HEADER_BYTES], part(simulation::frame(5), 0, 8)).unwrap();
    assert_eq!(net.transport().transmit().unwrap().len(), HEADER_BYTES + 8);
}

#[test]
fn a_bogus_used_id_is_named() {
    for id in [1u16, 77, 255, 256, 0xffff] {
        let mut net = started();
        net.post_receive(simulation::frame(0)).unwrap();
        assert_eq!(net.transport().next(0).unwrap().head, 0);
        net.transport().publish(0, id.into(), 64);
        let expected = Misbehaviour::UsedId { queue: QueueKind::Receive, id };
        assert_eq!(net.poll_receive(), Err(NetError::DeviceMisbehaved(expected)));
        // It stays so: the driver does not step over it.
        assert!(net.poll_receive().is_err());
    }
    // A chain returned twice, and a chain of the other queue.
    let mut net = started();
    net.post_receive(simulation::frame(0)).unwrap();
    assert!(net.transport().deliver(&bytes_of(1, 0)));
    assert!(net.poll_receive().unwrap().is_some());
    net.transport().publish(0, 0, 64);
    let expected = Misbehaviour::UsedId { queue: QueueKind::Receive, id: 0 };
    assert_eq!(net.poll_receive(), Err(NetError::DeviceMisbehaved(expected)));
    net.transport().publish(1, 0, 0);
    let expected = Misbehaviour::UsedId { queue: QueueKind::Transmit, id: 0 };
    assert_eq!(net.reclaim_sent(), Err(NetError::DeviceMisbehaved(expected)));
}

#[test]
fn a_bogus_length_is_named() {
    for bytes in [0, 11, 4177, u32::MAX] {
        let mut net = started();
        net.post_receive(simulation::frame(0)).unwrap();
        let head = net.transport().next(0).unwrap().head;
        net.transport().publish(0, head.into(), bytes);
        let expected = Misbehaviour::UsedLength { queue: QueueKind::Receive, bytes };
        assert_eq!(net.poll_receive(), Err(NetError::DeviceMisbehaved(expected)));
    }
}

#[test]
fn an_offload_that_was_not_negotiated_is_named() {
    for (flags, gso_type) in [(1, 0), (0, 1), (3, 0x80)] {
        let mut net = started();
        net.post_receive(simulation::frame(0)).unwrap();
        let mut bytes = bytes_of(1, 8);
        bytes[..2].copy_from_slice(&[flags, gso_type]);
        assert!(net.transport().deliver(&bytes));
        let expected = Misbehaviour::Offload { flags, gso_type };
        assert_eq!(net.poll_receive(), Err(NetError::DeviceMisbehaved(expected)));
    }
}

#[test]
fn a_card_that_must_be_reset_says_so() {
    let mut net = started();
    assert_eq!(net.check_health(), Ok(()));
    net.transport().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    assert_eq!(net.check_health(), Err(NetError::DeviceMisbehaved(Misbehaviour::NeedsReset)));
}

#[test]
fn interrupts_and_notifications_come_only_when_asked_for() {
    let mut net = started();
    assert!(!net.transport().wants_interrupt(0) && !net.transport().wants_interrupt(1));
    net.post_receive(simulation::frame(0)).unwrap();
    assert!(net.enable_receive_interrupts());
    assert!(net.transport().wants_interrupt(0));
    assert!(net.transport().deliver(&bytes_of(1, 0)));
    // A frame that came in between is told, so that nobody sleeps over it.
    assert!(!net.enable_receive_interrupts());
    net.disable_receive_interrupts();
    assert!(!net.transport().wants_interrupt(0));

    net.transport().suppress_notifications(1, 1);
    net.send(&[0; WIRE_HEADER_BYTES], None).unwrap();
    assert_eq!(net.transport().notified[1], 0);
    net.transport().suppress_notifications(1, 0);
    net.send(&[0; WIRE_HEADER_BYTES], None).unwrap();
    assert_eq!(net.transport().notified[1], 1);
}

/// 100,000 frames each way, so that all indices wrap, with the rings at changing depths and the device returning sent
/// chains out of order.
#[test]
fn rings_wrap() {
    let mut net = started();
    let mut spare: Vec<Frame> = (0..64).map(simulation::frame).collect();
    let mut random = 0x2545_f491_u32;
    let mut next_random = |below: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % below
    };
    let (mut delivered, mut received, mut sent, mut expected) = (0u32, 0u32, 0u32, vec![]);
    let mut leaving = [None; MAX_CHAINS];
    while received < 100_000 {
        for _ in 0..next_random(20) {
            if let Some(frame) = spare.pop() {
                net.post_receive(frame).unwrap();
            }
        }
        for _ in 0..next_random(20) {
            let payload = [0, 1, 8, 300][next_random(4) as usize];
            if net.transport().deliver(&bytes_of(delivered, payload)) {
                expected.push(payload);
                delivered += 1;
            }
        }
        while let Some(Received { header, bytes, frame }) = net.poll_receive().unwrap() {
            let payload = expected.remove(0);
            let told = bytes_of(received, payload);
            assert_eq!(header, header_of(&told));
            assert_eq!(bytes, WIRE_HEADER_BYTES + payload);
            assert_eq!(simulation::peek_bytes(frame.address(), payload), told[HEADER_BYTES..]);
            received += 1;
            // Back out of the same frame when there is something to send, else without one.
            if payload >= MIN_PAYLOAD_BYTES {
                let slot = net.send(&header, part(frame, 0, u16::try_from(payload).unwrap())).unwrap();
                assert_eq!(leaving[usize::from(slot)].replace(frame), None);
            } else {
                spare.push(frame);
                net.send(&header, None).unwrap();
            }
            let mut chains = vec![];
            if next_random(3) == 0 {
                while let Some(posted) = net.transport().next(1) {
                    let length: usize = posted.buffers.iter().map(|&(_, length, _)| length as usize).sum();
                    assert!(
                        length == HEADER_BYTES || length == HEADER_BYTES + 8 || length == HEADER_BYTES + 300
                    );
                    chains.push(posted.head);
                }
            }
            while !chains.is_empty() {
                let chain = chains.swap_remove(next_random(u32::try_from(chains.len()).unwrap()) as usize);
                net.transport().publish(1, chain.into(), 0);
            }
            while let Some(slot) = net.reclaim_sent().unwrap() {
                spare.extend(leaving[usize::from(slot)].take());
                sent += 1;
            }
        }
    }
    assert!(sent > 99_000 && QUEUE_SIZE * 200 < 100_000);
    // No frame was lost: those not spare are posted or on their way out.
    let posted = MAX_CHAINS - net.receive_room();
    let leaving = leaving.iter().flatten().count();
    assert_eq!(spare.len() + posted + leaving, 64);
}
