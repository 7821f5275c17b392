//! Owners of a guest's memory that send each other pages over a bad wire.

use std::collections::BTreeMap;

use ipc::interfaces::interconnect::{Contents, IncomingKind, NO_FRAME, Outgoing, SendAnswer, Sent};
use ipc::wire::MESSAGE_BYTES;

use super::messages::FIRST;
use super::*;
use crate::card::Card;

/// The frames of a guest's memory that are not the service's, and what its owner does with them.
struct Owner {
    free: Vec<u32>,
    /// Lent until the message is known to have come: which message, to whom, and which frame.
    lent: Vec<(u16, [u8; MESSAGE_BYTES], u32)>,
    owes: bool,
    next: BTreeMap<(u16, u8), u32>,
    came: BTreeMap<(u16, u8), u32>,
}

fn fill(message: [u8; MESSAGE_BYTES]) -> Vec<u8> {
    (0..4096usize).map(|i| message[i % MESSAGE_BYTES] ^ (i / 64).to_le_bytes()[0]).collect()
}

impl Owner {
    fn new() -> Self {
        Self {
            free: (0..FIRST).collect(),
            lent: vec![],
            owes: false,
            next: BTreeMap::new(),
            came: BTreeMap::new(),
        }
    }

    fn send(&mut self, node: &mut Node, to: u16, random: &mut ChaCha8Rng) {
        let class = [Class::Control, Class::Request, Class::Page][random.random_range(0..3)];
        let any = [Contents::None, Contents::Awaited, Contents::Shared, Contents::Given];
        let contents = any[random.random_range(0..any.len())];
        let number = self.next.entry((to, class as u8)).or_default();
        let from = node.station.node.identity().node;
        let mut message = [0; MESSAGE_BYTES];
        message[..4].copy_from_slice(&number.to_le_bytes());
        message[4..8].copy_from_slice(&[class as u8, contents as u8, from.to_le_bytes()[0], 0]);
        message[8..16].copy_from_slice(&random.random::<u64>().to_le_bytes());
        let mut frame = NO_FRAME;
        if matches!(contents, Contents::Shared | Contents::Given) {
            let Some(at) = self.free.len().checked_sub(1).map(|last| random.random_range(0..=last)) else {
                return;
            };
            frame = self.free.swap_remove(at);
            node.memory(frame).copy_from_slice(&fill(message));
        }
        match node.memory_sends(Outgoing { message, frame, node: to, class, contents }).unwrap() {
            Sent { answer: SendAnswer::Taken, frame: exchange } => {
                *number += 1;
                match contents {
                    Contents::None | Contents::Awaited => {}
                    Contents::Shared => self.lent.push((to, message, frame)),
                    Contents::Given => self.free.push(exchange),
                }
            }
            Sent { answer, .. } => {
                assert_eq!(answer, SendAnswer::Full);
                self.free.extend(Some(frame).filter(|&frame| frame != NO_FRAME));
            }
        }
    }

    /// Takes what came; which messages.
    fn take(&mut self, node: &mut Node) -> Vec<[u8; MESSAGE_BYTES]> {
        let mut taken = vec![];
        loop {
            let next = if self.owes { self.free.pop() } else { None };
            let came = node.memory_takes(next.unwrap_or(NO_FRAME));
            self.owes &= next.is_none();
            match came.kind {
                IncomingKind::Message | IncomingKind::Last => {}
                IncomingKind::Nothing => return taken,
                IncomingKind::Owed => {
                    assert!(self.owes);
                    return taken;
                }
            }
            let number = self.came.entry((came.node, came.class as u8)).or_default();
            assert_eq!(came.message[..4], number.to_le_bytes(), "out of order");
            assert_eq!(came.message[4], came.class as u8);
            *number += 1;
            assert_eq!(came.frame != NO_FRAME, (1..=2).contains(&came.message[5]));
            if came.frame != NO_FRAME {
                assert_eq!(node.memory(came.frame)[..], fill(came.message));
                self.free.push(came.frame);
                self.owes = true;
            }
            taken.push(came.message);
        }
    }
}

/// Three nodes that send each other pages over a wire that loses, repeats and reorders: all come once and in order, with
/// their contents, and every page frame of each pool has one owner all the time.
#[test]
fn no_page_frame_is_lost_on_a_bad_wire() {
    let (mut given, mut again) = (0, 0);
    for seed in 0..12 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let clock = Rc::new(Cell::new(0));
        let mtu = if seed % 3 == 2 { 1500 } else { 9000 };
        let mut nodes = [1, 2, 3].map(|number| Node::with_mtu(number, &clock, mtu));
        pass(&mut nodes, &clock, 1200);
        let mut owners = [(); 3].map(|()| Owner::new());
        let mut wire: Vec<(u64, usize, Vec<u8>)> = vec![];
        for round in 0..3_000 {
            let is_over = round >= 600;
            clock.set(clock.get() + 5);
            for at in 0..3 {
                if !is_over && random.random_ratio(2, 3) {
                    let to = [(at + 1) % 3, (at + 2) % 3][random.random_range(0..2)] + 1;
                    owners[at].send(&mut nodes[at], u16::try_from(to).unwrap(), &mut random);
                }
                if is_over || random.random_ratio(1, 3) {
                    for message in owners[at].take(&mut nodes[at]) {
                        let from = &mut owners[usize::from(message[6]) - 1];
                        let to = u16::try_from(at).unwrap() + 1;
                        if let Some(place) = from.lent.iter().position(|l| (l.0, l.1) == (to, message)) {
                            let (.., frame) = from.lent.swap_remove(place);
                            from.free.push(frame);
                        }
                    }
                }
                nodes[at].station.port.card.stuck = !is_over && random.random_ratio(1, 4);
                nodes[at].tick();
                for sent in core::mem::take(&mut nodes[at].station.port.card.outbox) {
                    let copies =
                        if is_over { 1 } else { [0, 1, 1, 1, 1, 1, 1, 1, 1, 2][random.random_range(0..10)] };
                    for _ in 0..copies {
                        wire.push((clock.get() + random.random_range(0..40), at, sent.bytes.clone()));
                    }
                }
            }
            let (arrived, rest): (Vec<_>, Vec<_>) =
                wire.into_iter().partition(|(when, ..)| *when <= clock.get());
            wire = rest;
            for (_, from, bytes) in arrived {
                for (to, node) in nodes.iter_mut().enumerate() {
                    if to != from && (bytes[..6] == [0xff; 6] || bytes[..6] == node.mac().0) {
                        node.station.port.card.inbox.push_back(bytes.clone());
                    }
                }
            }
            for (node, owner) in nodes.iter_mut().zip(&owners) {
                while node.poll() != 0 {}
                node.places();
                let owned = node.owned();
                let mut theirs: Vec<u32> =
                    owner.free.iter().copied().chain(owner.lent.iter().map(|l| l.2)).collect();
                theirs.sort_unstable();
                assert!(
                    theirs.is_sorted_by(|a, b| a < b) && theirs.iter().all(|frame| !owned.contains(frame))
                );
                assert_eq!(owned.len() + theirs.len(), POOL as usize, "seed {seed}, round {round}");
            }
        }
        for (at, node) in nodes.iter().enumerate() {
            node.check_frames();
            assert!(owners[at].lent.is_empty() && node.station.port.card.send_room() == QUEUE);
            for (&(to, class), &count) in &owners[at].next {
                let from = u16::try_from(at).unwrap() + 1;
                let came = owners[usize::from(to) - 1].came.get(&(from, class));
                assert_eq!(came.copied().unwrap_or(0), count, "seed {seed}: {from} to {to}, class {class}");
            }
            let counters = node.station.counters(|ticks| ticks);
            let messages = counters.messages;
            let classes: Vec<_> =
                [1, 2, 3].into_iter().filter_map(|peer| node.station.node.counters(peer)).flatten().collect();
            let sent_again = classes.iter().map(|c| c.fast_retransmissions + c.timeout_retransmissions).sum();
            assert_eq!(counters.retransmissions, sent_again);
            assert!(counters.round_trips.count > 0 && counters.round_trips.median_ns > 0);
            assert!(counters.round_trips.percentile_99_ns >= counters.round_trips.median_ns);
            assert_eq!(counters.copies != 0, mtu == 1500);
            assert_eq!((messages.acknowledged, messages.abandoned), (messages.sent, 0));
            given += messages.sent;
            again += sent_again;
        }
    }
    assert!(given > 3_000 && again > 500, "{given} pages, {again} sent again");
}
