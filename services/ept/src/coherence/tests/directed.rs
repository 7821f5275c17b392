//! What single accesses cost and do.

use super::super::error::ConfigError;
use super::super::word::{Class, State};
use super::super::{MAX_EVICTIONS, MAX_WAITERS};
use super::*;

/// What went over the network.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Traffic {
    messages: usize,
    pages: usize,
    bytes: usize,
}

/// Nodes whose messages arrive in order, one after another.
struct Cluster(Vec<Site>);

impl Cluster {
    fn new(nodes: u16, pages: u32, frames: u32) -> Self {
        Self((0..nodes).map(|node| Site::new(config(node, nodes, pages, frames))).collect())
    }

    /// Goes on until nothing is under way.
    fn settle(&mut self) -> Traffic {
        let mut traffic = Traffic::default();
        loop {
            let mut letters = Vec::new();
            for site in &mut self.0 {
                while !site.around.operations.is_empty() {
                    site.perform(0).unwrap();
                }
                let from = site.coherence.config.node;
                letters.extend(site.around.sent.drain(..).map(|(to, letter)| (from, to, letter)));
                assert_eq!(site.around.wrong, None);
            }
            if letters.is_empty() {
                return traffic;
            }
            for (from, to, letter) in letters {
                traffic.messages += 1;
                traffic.pages += usize::from(letter.1.is_some());
                traffic.bytes += ipc::wire::HEADER_BYTES;
                self.0[to.index()].receive(from, letter).unwrap();
            }
        }
    }

    /// Faults and waits for the end.
    fn fault(&mut self, node: usize, page: u32, access: Access) -> (Outcome, Traffic) {
        self.0[node].fault(0, Page(page), access).unwrap();
        let mut traffic = self.settle();
        traffic.bytes += traffic.pages * ipc::abi::PAGE_SIZE;
        let resumed = std::mem::take(&mut self.0[node].around.resumed);
        let [(Waiter(0), outcome)] = resumed[..] else { panic!("{resumed:?}") };
        (outcome, traffic)
    }

    /// Reads or writes, at once or after a fault.
    fn access(&mut self, node: usize, page: u32, access: Access) -> (u64, Traffic) {
        let mut traffic = Traffic::default();
        if !self.0[node].around.views[page as usize].allows(access) {
            let (outcome, faulted) = self.fault(node, page, access);
            assert_eq!(outcome, Outcome::Granted);
            traffic = faulted;
        }
        let around = &mut self.0[node].around;
        let value = around.value(Page(page)).unwrap();
        if access == Access::Write {
            around.frames[page as usize] = Some(value + 1);
        }
        self.0[node].retired(0).unwrap();
        let after = self.settle();
        (value, Traffic { messages: traffic.messages + after.messages, ..traffic })
    }

    fn word(&self, page: u32) -> super::super::word::Word {
        let home = self.0[0].coherence.config.homes.of(Page(page)).index();
        self.0[home].coherence.home().word(Page(page)).unwrap()
    }
}

const READ: Access = Access::Read;
const WRITE: Access = Access::Write;

#[test]
fn a_dormant_page_moves_no_contents() {
    let mut cluster = Cluster::new(3, 3, 3);
    for node in 0..3 {
        let (value, traffic) = cluster.access(node, 0, READ);
        assert_eq!((value, traffic.pages, traffic.messages), (0, 0, if node == 0 { 0 } else { 3 }));
        assert_eq!(cluster.0[node].coherence.free_frames(), 3);
    }
    assert_eq!(cluster.word(0).state(), State::Dormant);
    // The first write: two readers are told and acknowledge.
    let (value, traffic) = cluster.access(1, 0, WRITE);
    assert_eq!((value, traffic.pages, traffic.messages), (0, 0, 3 + 2 + 1));
    assert_eq!((cluster.word(0).state(), cluster.word(0).owner()), (State::Exclusive, NodeId(1)));
    assert_eq!(cluster.0.iter().map(|site| site.coherence.free_frames()).collect::<Vec<_>>(), [3, 2, 3]);
}

#[test]
fn a_read_miss_costs_at_most_4300_bytes_on_two_nodes() {
    for owner in [0, 1] {
        let mut cluster = Cluster::new(2, 1, 1);
        cluster.access(owner, 0, WRITE);
        let (value, traffic) = cluster.access(1 - owner, 0, READ);
        std::println!("read miss, 2 nodes, owned by node {owner}, homed at node 0: {traffic:?}");
        assert_eq!((value, traffic.pages), (1, 1));
        assert!(traffic.bytes <= 4_300, "{traffic:?}");
    }
}

#[test]
fn contents_go_from_owner_to_requester() {
    // Home, owner and requester are three nodes: request, forward, data, done.
    let mut cluster = Cluster::new(3, 1, 1);
    cluster.access(1, 0, WRITE);
    let (value, traffic) = cluster.access(2, 0, READ);
    std::println!("read miss, 3 nodes: {traffic:?}");
    assert_eq!((value, traffic.pages, traffic.messages), (1, 1, 4));
    assert_eq!(cluster.0[1].around.views[0], View::Read);
}

#[test]
fn an_upgrade_moves_no_contents() {
    let mut cluster = Cluster::new(4, 1, 1);
    cluster.access(1, 0, WRITE);
    for reader in [2, 3] {
        cluster.access(reader, 0, READ);
    }
    let (value, traffic) = cluster.access(2, 0, WRITE);
    // Request, two told, two acknowledge, grant, done.
    assert_eq!((value, traffic.pages, traffic.messages), (1, 0, 7));
    let frames: Vec<_> = cluster.0.iter().map(|site| site.coherence.free_frames()).collect();
    assert_eq!(frames, [1, 1, 0, 1]);
    assert_eq!(cluster.access(3, 0, READ).0, 2);
}

#[test]
fn classes_are_learned() {
    let mut cluster = Cluster::new(6, 4, 4);
    cluster.access(1, 0, WRITE);
    for reader in 2..6 {
        cluster.access(reader, 0, READ);
    }
    assert_eq!(cluster.word(0).class(), Class::ReadMostly);
    cluster.access(2, 0, WRITE);
    assert_eq!(cluster.word(0).class(), Class::Plain);

    // Read and then written, one after the other: after the first time the right to write comes with the read.
    cluster.access(1, 1, WRITE);
    let moved: Vec<_> = [2, 3, 4]
        .map(|node| {
            (cluster.access(node, 1, READ).1.messages > 0, cluster.access(node, 1, WRITE).1.messages > 0)
        })
        .into();
    assert_eq!(moved, [(true, true), (true, false), (true, false)]);
    assert_eq!(cluster.word(1).class(), Class::Migratory);
    // When it is only read that is found out.
    for reader in [5, 0, 1, 2, 3, 4, 5, 0, 1] {
        cluster.access(reader, 1, READ);
    }
    assert_ne!(cluster.word(1).class(), Class::Migratory);

    cluster.access(1, 2, WRITE);
    let fault = Fault { waiter: Waiter(0), page: Page(2), access: READ, device: true };
    let site = &mut cluster.0[3];
    site.coherence.fault(&mut site.around, 0, &fault).unwrap();
    cluster.settle();
    cluster.0[3].around.resumed.clear();
    assert_eq!(cluster.word(2).class(), Class::Device);
}

#[test]
fn a_guest_may_be_larger_than_a_node() {
    // One vCPU writes all pages, and then reads all: most of them are on other nodes.
    let mut cluster = Cluster::new(4, 60, 16);
    for round in 0..3 {
        for page in 0..60 {
            assert_eq!(cluster.access(1, page, WRITE).0, round);
        }
    }
    for page in 0..60 {
        assert_eq!(cluster.access(2, page, READ).0, 3);
    }
    let free: u32 = cluster.0.iter().map(|site| site.coherence.free_frames()).sum();
    assert!(free <= 4 * 16 - 60);
}

#[test]
fn too_large_a_guest_is_told_so_and_goes_on() {
    let mut cluster = Cluster::new(2, 5, 2);
    for page in 0..4 {
        cluster.access(0, page, WRITE);
    }
    assert_eq!(cluster.fault(1, 4, WRITE).0, Outcome::OutOfFrames);
    assert_eq!(cluster.fault(0, 4, WRITE).0, Outcome::OutOfFrames);
    for page in 0..4 {
        let holder = usize::from(cluster.0[1].around.holdings[page as usize] != Holding::Nothing);
        assert_eq!(cluster.access(holder, page, READ).0, 1);
    }
}

#[test]
fn a_page_that_was_not_mapped_is_mapped_at_the_next_fault() {
    let mut cluster = Cluster::new(2, 1, 1);
    cluster.access(0, 0, WRITE);
    cluster.0[1].fault(0, Page(0), WRITE).unwrap();
    loop {
        for (from, to) in [(1, 0), (0, 1)] {
            for (_, letter) in std::mem::take(&mut cluster.0[from].around.sent) {
                cluster.0[to].receive(NodeId(u8::try_from(from).unwrap()), letter).unwrap();
            }
        }
        if !cluster.0[0].around.operations.is_empty() {
            cluster.0[0].perform(0).unwrap();
        }
        if !cluster.0[1].around.operations.is_empty() {
            break;
        }
    }
    cluster.0[1].fail(0).unwrap();
    assert_eq!(cluster.0[1].around.resumed.pop(), Some((Waiter(0), Outcome::NotMapped)));
    cluster.settle();
    // It is this node's all the same, so no message is needed.
    let (value, traffic) = cluster.access(1, 0, WRITE);
    assert_eq!((value, traffic.messages), (1, 0));
    assert_eq!(cluster.access(0, 0, READ).0, 2);
}

#[test]
fn a_vcpu_that_does_not_run_keeps_a_page_up_to_the_limit() {
    let mut cluster = Cluster::new(2, 1, 1);
    for site in &mut cluster.0 {
        let hold = HoldTimes { unit: 100, limit: 5_000 };
        *site = Site::new(Config { hold, ..site.coherence.config.clone() });
    }
    assert_eq!(cluster.fault(0, 0, WRITE).0, Outcome::Granted);
    cluster.0[1].fault(0, Page(0), WRITE).unwrap();
    cluster.settle();
    assert_eq!((cluster.0[0].around.views[0], cluster.0[0].coherence.deadline()), (View::Write, Some(5_000)));
    cluster.0[0].wait();
    cluster.settle();
    assert_eq!(cluster.0[1].around.resumed.pop(), Some((Waiter(0), Outcome::Granted)));
    assert_eq!(cluster.0[0].coherence.deadline(), None);
}

#[test]
fn the_directory_costs_eight_bytes_a_page() {
    for nodes in [1, 3, 256] {
        let pages = 1 << 16;
        let sites = (0..nodes).map(|node| Coherence::new(config(node, nodes, pages, 1)).unwrap());
        let (mut directory, mut fixed) = (0, 0);
        for coherence in sites {
            directory += coherence.home().directory_bytes();
            fixed = coherence.fixed_bytes();
        }
        assert_eq!(directory, 8 * pages as usize);
        let small = Coherence::new(config(0, nodes, 1, 1)).unwrap();
        assert_eq!(small.fixed_bytes(), fixed, "nothing else depends on the number of pages");
    }
    let largest = Config { waiters: 64, evictions: 4, ..config(0, 256, 1, 1) };
    std::println!(
        "tables of 256 nodes with 64 waiters: {} bytes",
        Coherence::new(largest).unwrap().fixed_bytes()
    );
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let good = config(1, 2, 1, 1);
    let error = |config| Coherence::new(config).unwrap_err();
    let good = || good.clone();
    assert_eq!(error(Config { node: NodeId(2), ..good() }), ConfigError::Node);
    for (waiters, evictions) in [(0, 1), (1, 0), (MAX_WAITERS + 1, 1), (1, MAX_EVICTIONS + 1)] {
        assert_eq!(error(Config { waiters, evictions, ..good() }), ConfigError::Slots);
    }
    assert!(Coherence::new(Config { waiters: MAX_WAITERS, evictions: MAX_EVICTIONS, ..good() }).is_ok());
}

#[test]
fn wrong_calls_of_the_service_are_refused() {
    let mut site = Site::new(config(0, 1, 1, 1));
    assert_eq!(site.fault(1, Page(0), READ), Err(Error::Waiter));
    assert_eq!(site.fault(0, Page(1), READ), Err(Error::UnknownPage));
    assert_eq!(site.retired(1), Err(Error::Waiter));
    for ticket in [Ticket::Slot(0), Ticket::Slot(1), Ticket::Slot(255), Ticket::Demand(0), Ticket::Demand(9)]
    {
        assert_eq!(site.coherence.completed(&mut site.around, 0, ticket, Ok(())), Err(Error::Ticket));
    }
    site.fault(0, Page(0), READ).unwrap();
    assert_eq!(site.fault(0, Page(0), READ), Err(Error::Waiter));
    site.perform(0).unwrap();
    assert_eq!(site.around.resumed, [(Waiter(0), Outcome::Granted)]);
    assert_eq!(site.coherence.errors().get(Error::Ticket), 5);
}

#[test]
fn messages_come_as_bytes() {
    let mut site = Site::new(config(0, 2, 1, 1));
    let (bytes, length) = Message::new(Kind::Read, Page(0), 0, 7).encode();
    let receive = |site: &mut Site, bytes: &[u8]| {
        site.coherence.receive_bytes(&mut site.around, 0, NodeId(1), EPOCH, bytes)
    };
    assert_eq!(receive(&mut site, &bytes[..length - 1]), Err(Error::Malformed));
    assert_eq!(receive(&mut site, &bytes[..length]), Ok(()));
    let [(NodeId(1), (Message { kind: Kind::Zero, number: 7, .. }, None))] = site.around.sent[..] else {
        panic!("{:?}", site.around.sent)
    };
    assert_eq!(site.coherence.errors().get(Error::Malformed), 1);
}

#[test]
fn a_message_waits_while_too_many_operations_are_under_way() {
    let (nodes, pages) = (3, 300);
    let mut site = Site::new(config(0, nodes, pages, pages));
    // It has many pages to read, and another node takes them all away.
    for page in pages / 3..pages / 3 * 2 {
        site.fault(0, Page(page), READ).unwrap();
        let (_, (request, _)) = site.around.sent.pop().unwrap();
        let grant = Message { kind: Kind::Zero, ..request };
        site.receive(NodeId(1), (grant, None)).unwrap();
        site.perform(0).unwrap();
        site.retired(0).unwrap();
        site.around.sent.clear();
    }
    let mut waiting = Vec::new();
    for page in pages / 3..pages / 3 * 2 {
        let letter =
            (Message { node: NodeId(2), ..Message::new(Kind::Invalidate, Page(page), 0, page) }, None);
        match site.receive(NodeId(1), letter) {
            Ok(()) => assert!(waiting.is_empty()),
            Err(error) => {
                assert_eq!(error, Error::Full);
                waiting.push(letter);
            }
        }
    }
    assert!(!waiting.is_empty() && site.around.sent.is_empty());
    for letter in waiting {
        site.perform(0).unwrap();
        site.receive(NodeId(1), letter).unwrap();
    }
    while !site.around.operations.is_empty() {
        site.perform(0).unwrap();
    }
    let acknowledged =
        site.around.sent.iter().filter(|(to, (message, _))| *to == NodeId(2) && message.kind == Kind::Ack);
    assert_eq!(acknowledged.count(), 100);
}
