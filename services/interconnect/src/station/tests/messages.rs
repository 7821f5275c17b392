//! What the guest's services send and receive, and whose each page frame is.

use std::collections::BTreeSet;

use ipc::interfaces::interconnect::{
    Contents, Incoming, IncomingKind, NO_FRAME, Next, Outgoing, SendAnswer, Sent,
};
use ipc::wire::MESSAGE_BYTES;

use super::super::clients::{Alerts, Client};
use super::super::frames::kept;
use super::*;

const NO_NEXT: Next = Next { frame: NO_FRAME, reserved: 0 };
/// The service's first page frame at the start.
pub const FIRST: u32 = POOL - FRAMES;

fn outgoing(class: Class, contents: Contents, frame: u32, say: u8) -> Outgoing {
    Outgoing { message: [say; MESSAGE_BYTES], frame, node: 2, class, contents }
}

fn sent(answer: SendAnswer) -> Option<Sent> {
    Some(Sent { answer, frame: NO_FRAME })
}

impl Node {
    pub fn memory_sends(&mut self, outgoing: Outgoing) -> Option<Sent> {
        self.station.send(Client::Memory, outgoing)
    }

    pub fn memory_takes(&mut self, frame: u32) -> Incoming {
        self.station.receive(Client::Memory, Next { frame, reserved: 0 }).unwrap()
    }

    pub fn owned(&self) -> BTreeSet<u32> {
        self.station.port.frames.list().into_iter().collect()
    }

    pub fn memory(&mut self, frame: u32) -> &mut [u8; 4096] {
        &mut self.station.port.card.memory[frame as usize]
    }
}

#[test]
fn a_given_page_is_exchanged_and_comes_without_a_copy() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    nodes[0].memory(7).fill(0x77);
    let Some(Sent { answer: SendAnswer::Taken, frame }) =
        nodes[0].memory_sends(outgoing(Class::Page, Contents::Given, 7, 1))
    else {
        panic!("not taken")
    };
    assert!(frame >= FIRST && frame != NO_FRAME);
    assert!(nodes[0].owned().contains(&7) && !nodes[0].owned().contains(&frame));
    // It is the service's now; the other one is not.
    let again = outgoing(Class::Page, Contents::Shared, 7, 2);
    assert_eq!(nodes[0].memory_sends(again), sent(SendAnswer::BadFrame));
    // The first transmission is lost.
    nodes[0].tick();
    assert_eq!(nodes[0].station.port.card.outbox[0].page, Some(7));
    nodes[0].station.port.card.outbox.clear();
    pass(&mut nodes, &clock, 600);
    assert_eq!(nodes[1].station.alerts(), Alerts { platform: true, memory: true });
    let came = nodes[1].memory_takes(NO_FRAME);
    assert_eq!((came.node, came.class, came.kind), (1, Class::Page, IncomingKind::Last));
    assert_eq!(came.message, [1; MESSAGE_BYTES]);
    assert_eq!(*nodes[1].memory(came.frame), [0x77; 4096]);
    assert!(!nodes[1].owned().contains(&came.frame));
    nodes[1].memory_takes(3);
    pass(&mut nodes, &clock, 100);
    let messages = nodes[0].station.counters(|ticks| ticks).messages;
    assert_eq!((messages.sent, messages.acknowledged, messages.abandoned), (1, 1, 0));
    for node in &nodes {
        node.check_frames();
        assert_eq!(node.owned().len(), FRAMES as usize);
        assert_eq!(node.station.port.card.copied, 0);
    }
}

#[test]
fn a_frame_that_came_is_made_up_for_first() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    for say in 1..=2 {
        nodes[0].memory_sends(outgoing(Class::Page, Contents::Shared, 7, say));
    }
    nodes[0].memory_sends(outgoing(Class::Control, Contents::None, NO_FRAME, 3));
    pass(&mut nodes, &clock, 20);
    let two = &mut nodes[1];
    // The most urgent first; it had no page.
    assert_eq!(two.memory_takes(NO_FRAME).message, [3; MESSAGE_BYTES]);
    // Nothing is owed yet.
    assert_eq!(two.station.receive(Client::Memory, Next { frame: 3, reserved: 0 }), None);
    let came = two.memory_takes(NO_FRAME);
    assert_eq!(came.message, [1; MESSAGE_BYTES]);
    let posted = two.station.port.card.posted[0];
    for frame in [NO_FRAME, POOL, u32::MAX - 1, posted] {
        assert_eq!(two.memory_takes(frame).kind, IncomingKind::Owed, "{frame}");
    }
    // It may be the same one.
    let second = two.memory_takes(came.frame);
    assert_eq!((second.message, second.kind), ([2; MESSAGE_BYTES], IncomingKind::Last));
    assert_eq!(two.station.receive(Client::Platform, Next { frame: 3, reserved: 0 }), None);
    assert_eq!(two.memory_takes(3).kind, IncomingKind::Nothing);
    two.check_frames();
    assert_eq!(two.owned().len(), FRAMES as usize);
}

#[test]
fn each_client_sends_and_receives_its_own() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    nodes.iter_mut().for_each(|node| assert_ne!(node.station.alerts(), Alerts::default()));
    let one = &mut nodes[0].station;
    for class in Class::ALL {
        let message = outgoing(class, Contents::None, NO_FRAME, class as u8);
        for client in [Client::Platform, Client::Memory] {
            let may = client == Client::of(class);
            assert_eq!(
                one.send(client, message),
                sent(SendAnswer::Taken).filter(|_| may),
                "{client:?} {class:?}"
            );
        }
        let elsewhere = Outgoing { node: 3, ..message };
        assert_eq!(one.send(Client::of(class), elsewhere), sent(SendAnswer::NoSuchMember));
        let to_itself = Outgoing { node: 1, ..message };
        assert_eq!(one.send(Client::of(class), to_itself), sent(SendAnswer::NoSuchMember));
    }
    // The platform has no page frames.
    for contents in [Contents::Shared, Contents::Given] {
        let page = outgoing(Class::Platform, contents, 7, 0);
        assert_eq!(one.send(Client::Platform, page), sent(SendAnswer::BadFrame));
    }
    pass(&mut nodes, &clock, 20);
    let two = &mut nodes[1].station;
    assert_eq!(two.alerts(), Alerts { platform: true, memory: true });
    assert_eq!(two.alerts(), Alerts::default());
    let mut take = |client| {
        let came = two.receive(client, NO_NEXT).unwrap();
        came.kind.is_message().then_some(came.class)
    };
    assert_eq!([(); 2].map(|()| take(Client::Platform)), [Some(Class::Platform), None]);
    let memory = [Class::Control, Class::Request, Class::Page].map(Some);
    assert_eq!([(); 3].map(|()| take(Client::Memory)), memory);
    assert_eq!(take(Client::Memory), None);
}

#[test]
fn a_client_is_told_of_what_comes_when_it_had_nothing() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    nodes[1].station.alerts();
    let memory = Alerts { platform: false, memory: true };
    for expected in [memory, Alerts::default()] {
        nodes[0].memory_sends(outgoing(Class::Request, Contents::None, NO_FRAME, 0));
        pass(&mut nodes, &clock, 20);
        assert_eq!(nodes[1].station.alerts(), expected);
    }
    while nodes[1].memory_takes(NO_FRAME).kind != IncomingKind::Nothing {}
    nodes[0].memory_sends(outgoing(Class::Control, Contents::None, NO_FRAME, 0));
    pass(&mut nodes, &clock, 20);
    assert_eq!(nodes[1].station.alerts(), memory);
    // And of another view.
    clock.set(clock.get() + 3_000);
    nodes[0].tick();
    nodes[0].station.alerts();
    pass(&mut nodes[..1], &clock, 3_000);
    assert_eq!(nodes[0].station.alerts(), Alerts { platform: true, memory: true });
}

#[test]
fn a_bad_frame_is_refused() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    for frame in [POOL, POOL + 1, NO_FRAME, FIRST, POOL - 1] {
        for contents in [Contents::Shared, Contents::Given] {
            let message = outgoing(Class::Page, contents, frame, 0);
            assert_eq!(one.memory_sends(message), sent(SendAnswer::BadFrame), "{frame}");
        }
    }
    one.check_frames();
}

/// A silent peer keeps what it is sent on its way.
#[test]
fn reception_never_starves_and_room_is_told() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    for _ in 0..8 {
        nodes[0].memory_sends(outgoing(Class::Control, Contents::None, NO_FRAME, 0));
    }
    pass(&mut nodes, &clock, 20);
    nodes[0].station.alerts();
    let mut given = 0;
    let mut mine: Vec<u32> = (0..100).collect();
    loop {
        let frame = mine.pop().unwrap();
        let classes = [Class::Page, Class::Request];
        match nodes[0].memory_sends(outgoing(classes[given % 2], Contents::Given, frame, 0)) {
            Some(Sent { answer: SendAnswer::Taken, frame }) => mine.insert(0, frame),
            full => break assert_eq!(full, sent(SendAnswer::Full)),
        }
        given += 1;
    }
    assert!(given > 40, "{given}");
    nodes[0].tick();
    assert_eq!(nodes[0].station.port.card.posted.len(), QUEUE);
    assert!(nodes[0].station.port.frames.spare() > 32);
    assert_eq!(nodes[0].station.alerts(), Alerts::default());
    // As what was given is acknowledged there is room again.
    pass(&mut nodes, &clock, 600);
    assert_eq!(nodes[0].station.alerts(), Alerts { platform: false, memory: true });
    assert!(nodes[0].memory_sends(outgoing(Class::Page, Contents::Given, 0, 0)).is_some());
}

#[test]
fn a_full_class_says_when_it_has_room() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    nodes[0].station.alerts();
    let message = outgoing(Class::Platform, Contents::None, NO_FRAME, 0);
    let mut count = 0;
    while nodes[0].station.send(Client::Platform, message) == sent(SendAnswer::Taken) {
        count += 1;
    }
    assert_eq!(count, 64);
    // The other classes go on.
    assert_eq!(
        nodes[0].memory_sends(outgoing(Class::Control, Contents::None, NO_FRAME, 0)),
        sent(SendAnswer::Taken)
    );
    pass(&mut nodes, &clock, 20);
    assert_eq!(nodes[0].station.alerts(), Alerts { platform: true, memory: false });
    // No more than the credit comes before some is taken.
    pass(&mut nodes, &clock, 500);
    assert_eq!(nodes[1].memory_takes(NO_FRAME).kind, IncomingKind::Last);
    let mut came = 0;
    for _ in 0..40 {
        while nodes[1].station.receive(Client::Platform, NO_NEXT).unwrap().kind.is_message() {
            came += 1;
        }
        pass(&mut nodes, &clock, 100);
    }
    assert_eq!(came, 64);
}

#[test]
fn a_shared_page_goes_to_several_and_again_at_a_time() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = [1, 2, 3].map(|number| Node::new(number, &clock));
    pass(&mut nodes, &clock, 1200);
    nodes[0].memory(7).fill(0x3c);
    nodes[0].station.port.card.stuck = true;
    for node in [2, 3, 2, 3] {
        let message = Outgoing { node, ..outgoing(Class::Page, Contents::Shared, 7, 0) };
        assert_eq!(nodes[0].memory_sends(message), sent(SendAnswer::Taken));
    }
    nodes[0].tick();
    let pages = nodes[0].station.port.card.outbox.iter().filter(|sent| sent.page == Some(7)).count();
    assert_eq!(pages, 4);
    settle(&mut nodes);
    for node in &mut nodes[1..] {
        for spare in [NO_FRAME, 3] {
            let came = node.memory_takes(spare);
            assert!(came.kind.is_message() && *node.memory(came.frame) == [0x3c; 4096]);
        }
    }
    // It is the client's all the time, and may be given while the card still reads it.
    assert!(!nodes[0].owned().contains(&7));
    let given = nodes[0].memory_sends(outgoing(Class::Page, Contents::Given, 7, 0)).unwrap();
    assert_eq!((given.answer, nodes[0].owned().contains(&7)), (SendAnswer::Taken, true));
    nodes[0].station.port.card.stuck = false;
    pass(&mut nodes, &clock, 200);
    nodes[0].check_frames();
    assert_eq!(nodes[0].owned().len(), FRAMES as usize);
    let messages = nodes[0].station.counters(|ticks| ticks).messages;
    assert_eq!((messages.sent, messages.acknowledged), (5, 5));
}

/// Over Ethernet's MTU a page goes in three parts, from where they are; the receiver copies all but the first.
#[test]
fn a_page_goes_in_parts_over_a_short_link() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two_with_mtu(&clock, 1500);
    let contents: Vec<u8> =
        (0..4096u32).map(|i| (i * 11).to_le_bytes()[0] ^ (i >> 8).to_le_bytes()[0]).collect();
    nodes[0].memory(7).copy_from_slice(&contents);
    nodes[0].memory_sends(outgoing(Class::Page, Contents::Shared, 7, 9));
    nodes[0].tick();
    let outbox = &nodes[0].station.port.card.outbox;
    let parts: Vec<_> =
        outbox.iter().filter(|sent| sent.page == Some(7)).map(|sent| sent.bytes.len()).collect();
    assert_eq!(parts, [1440, 1440, 1216].map(|bytes| bytes + HEADER_BYTES));
    settle(&mut nodes);
    let came = nodes[1].memory_takes(NO_FRAME);
    assert_eq!((came.kind, came.message), (IncomingKind::Last, [9; MESSAGE_BYTES]));
    assert_eq!(nodes[1].memory(came.frame)[..], contents);
    assert_eq!([0, 1].map(|node| nodes[node].station.port.card.copied), [0, 4096 - 1440]);
    nodes[1].memory_takes(3);
    pass(&mut nodes, &clock, 100);
    nodes.iter().for_each(Node::check_frames);
}

/// Pages of another length, and pages for the platform, are no messages of ours.
#[test]
fn what_no_client_sends_is_dropped_and_the_class_goes_on() {
    let clock = Rc::new(Cell::new(0));
    let [mut one, _] = two(&clock);
    one.station.alerts();
    let identity = Identity { cluster: 1, epoch: 1, node: 2, incarnation: 0 };
    let mut sequences = [0; 4];
    let mut deliver = |one: &mut Node, class: Class, bytes: usize| {
        let sequence = sequences[class as usize];
        sequences[class as usize] += 1;
        let payload_bytes = u16::try_from(bytes).unwrap();
        let message = Message { sequence, payload_bytes, ..Message::new(Kind::Data, class) };
        let header = FrameHeader::new(identity, station_of(2), station_of(1), message);
        let payload = vec![5; bytes];
        let mut bytes = header.seal(ipc::wire::crc32c(0, &payload)).as_bytes().to_vec();
        bytes.extend(payload);
        one.deliver(&bytes);
    };
    let before = one.station.counters(|ticks| ticks).dropped.unexpected;
    for _ in 0..50 {
        deliver(&mut one, Class::Page, 8);
        deliver(&mut one, Class::Platform, 4096);
        deliver(&mut one, Class::Control, 4088);
        one.tick();
        one.check_frames();
    }
    assert_eq!(one.station.counters(|ticks| ticks).dropped.unexpected - before, 150);
    assert_eq!(one.station.alerts(), Alerts::default());
    deliver(&mut one, Class::Control, 4096);
    assert_eq!(one.memory_takes(NO_FRAME).kind, IncomingKind::Last);
}

#[test]
fn a_client_that_begins_anew_learns_what_the_service_has() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    // Of what waits for credit nothing goes out any more.
    for say in 0..30 {
        let contents = if say % 2 == 0 { Contents::Given } else { Contents::Shared };
        nodes[0].memory_sends(outgoing(Class::Page, contents, u32::from(say), say));
    }
    nodes[0].station.send(Client::Platform, outgoing(Class::Platform, Contents::None, NO_FRAME, 0));
    nodes[0].tick();
    let list = nodes[0].station.frames();
    assert_eq!(list.len(), FRAMES as usize);
    assert_eq!(nodes[0].station.counters(|ticks| ticks).messages.abandoned, 22);
    pass(&mut nodes, &clock, 300);
    nodes[0].check_frames();
    // One was taken and is not made up for any more, the others are dropped.
    let taken = nodes[1].memory_takes(NO_FRAME);
    let list = nodes[1].station.frames();
    assert!(list.len() == FRAMES as usize - 1 && !list.contains(&taken.frame));
    nodes[1].check_frames();
    assert_eq!(nodes[1].station.receive(Client::Memory, Next { frame: 3, reserved: 0 }), None);
    assert_eq!(nodes[1].memory_takes(NO_FRAME).kind, IncomingKind::Nothing);
    // The platform's are not.
    let came = nodes[1].station.receive(Client::Platform, NO_NEXT).unwrap();
    assert_eq!(came.kind, IncomingKind::Last);
    // The channel goes on: credit was given back.
    for say in 40..45 {
        nodes[0].memory_sends(outgoing(Class::Page, Contents::None, NO_FRAME, say));
        pass(&mut nodes, &clock, 100);
        assert_eq!(nodes[1].memory_takes(NO_FRAME).message, [say; MESSAGE_BYTES]);
    }
}

/// A service that was restarted goes on with the frames that its last life had when it died.
#[test]
fn a_later_life_has_the_frames_of_the_last_one() {
    let kept = kept();
    let clock = Rc::new(Cell::new(0));
    let first = Frames::new(POOL, POOL - FRAMES..POOL, kept);
    let mut nodes = [Node::with_frames(1, &clock, LIMITS.mtu, first), Node::new(2, &clock)];
    pass(&mut nodes, &clock, 1200);
    for say in 0..9 {
        for (from, to) in [(0, 2), (1, 1)] {
            let given = outgoing(Class::Page, Contents::Given, u32::from(say), say);
            nodes[from].memory_sends(Outgoing { node: to, ..given });
        }
    }
    pass(&mut nodes, &clock, 300);
    nodes[0].memory_takes(NO_FRAME);
    nodes[0].memory_takes(100);
    let before = nodes[0].owned();
    assert!(before.len() == FRAMES as usize - 1 && before.contains(&100) && before.contains(&8));
    // Its card is reset, and its life is another.
    let frames = Frames::recall(POOL, kept).unwrap();
    let [_, other] = nodes;
    let mut nodes = [Node::with_frames(1, &clock, LIMITS.mtu, frames), other];
    assert_eq!(nodes[0].owned(), before);
    pass(&mut nodes, &clock, 4_000);
    nodes[0].check_frames();
    let list = nodes[0].station.frames();
    assert_eq!(list.len(), before.len());
    assert!((0..FRAMES).all(|_| nodes[0].memory_takes(NO_FRAME).kind == IncomingKind::Nothing), "owes");
    nodes[1].station.frames();
    let mut free: Vec<u32> = (0..POOL).filter(|frame| !list.contains(frame)).collect();
    for say in 50..90 {
        let frame = free.pop().unwrap();
        nodes[0].memory(frame).fill(say);
        let given = outgoing(Class::Page, Contents::Given, frame, say);
        let sent = nodes[0].memory_sends(given).unwrap();
        assert_eq!(sent.answer, SendAnswer::Taken);
        free.insert(0, sent.frame);
        pass(&mut nodes, &clock, 100);
        let came = nodes[1].memory_takes(NO_FRAME);
        assert_eq!((came.message, *nodes[1].memory(came.frame)), ([say; MESSAGE_BYTES], [say; 4096]));
        let next = (0..POOL).find(|frame| !nodes[1].owned().contains(frame)).unwrap();
        nodes[1].memory_takes(next);
    }
}

#[test]
fn an_answer_is_expected_of_what_says_so() {
    let clock = Rc::new(Cell::new(0));
    let mut nodes = two(&clock);
    let [request, done] =
        [Contents::Awaited, Contents::None].map(|contents| outgoing(Class::Request, contents, NO_FRAME, 0));
    nodes[0].memory_sends(done);
    assert!(!nodes[0].station.is_asking());
    nodes[0].memory_sends(request);
    let one = &mut nodes[0].station;
    assert!(one.has_asked() && !one.has_asked() && one.is_asking() && one.is_expecting());
    pass(&mut nodes, &clock, 20);
    assert_eq!(nodes[1].memory_takes(NO_FRAME).kind, IncomingKind::Message);
    assert_eq!(nodes[1].memory_takes(NO_FRAME).kind, IncomingKind::Last);
    let page = outgoing(Class::Page, Contents::Shared, 7, 0);
    nodes[1].memory_sends(Outgoing { node: 1, ..page });
    assert!(!nodes[1].station.is_asking());
    pass(&mut nodes, &clock, 20);
    assert!(!nodes[0].station.is_asking());
    nodes[1].memory_sends(Outgoing { node: 1, ..request });
    assert!(nodes[1].station.is_asking());
    nodes[1].station.ask_no_more();
    assert!(!nodes[1].station.is_expecting());
}

#[test]
fn the_clusters_time_is_told_once_it_is_known() {
    let clock = Rc::new(Cell::new(0));
    assert_eq!(Node::new(1, &clock).station.time(), None);
    let mut nodes = two(&clock);
    assert_eq!(nodes[1].station.time(), None, "it is not known well yet");
    pass(&mut nodes, &clock, 10_000);
    let [one, two] = [0, 1].map(|node| nodes[node].station.time().unwrap());
    assert_eq!((one.local, one.error), (clock.get(), 0));
    assert!(one.cluster.abs_diff(two.cluster) <= two.error, "{one:?} {two:?}");
}
