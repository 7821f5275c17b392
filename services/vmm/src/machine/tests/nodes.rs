//! A guest on two nodes: two machines, and messages between them by hand.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;
use std::vec::Vec;

use ipc::guest::{Share, total_vcpus};
use ipc::vcpu::{ACCESS_WRITE, Event, HALT, PortAccess};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Access, Disposition, EOI, End, ExitReason, FIXED, Guest, GuestPhysAddr, INIT, Message, NMI, RFLAGS_IF,
    SPURIOUS, START_UP, Say, Walks,
};
use crate::cluster::message::{Signal, Space};
use crate::interrupt::{DeliveryMode, Trigger};
use crate::memory::GuestMemory;

const PAGES: u64 = (super::GUEST_BYTES / super::PAGE_SIZE) as u64;
/// Two vCPUs on node 1, three on node 5: their APIC IDs are 0, 1 and 4, 5, 6.
const SHARES: [Share; 2] =
    [Share { node: 1, vcpus: 2, pages: PAGES / 2 }, Share { node: 5, vcpus: 3, pages: PAGES - PAGES / 2 }];
/// The first APIC ID of the second node.
const SECOND: usize = 4;
const LOWEST: u64 = 0x4100;
const ALL: u64 = 2 << 18;
const OTHERS: u64 = 3 << 18;

/// A guest on two nodes.
struct Pair {
    first: Rc<RefCell<Guest>>,
    second: Guest,
}

impl Pair {
    /// The first vCPU runs, the others wait.
    fn started() -> Self {
        let first = Guest::part(&SHARES, 0, Walks::Cached);
        let mut pair =
            Self { first: Rc::new(RefCell::new(first)), second: Guest::part(&SHARES, 1, Walks::Cached) };
        pair.second.node.first = Some(pair.first.clone());
        for vcpu in 0..2 {
            pair.first().exit(vcpu, ExitReason::Started, [0; 3]);
        }
        for vcpu in 0..3 {
            assert_eq!(pair.second.exit(vcpu, ExitReason::Started, [0; 3]), Disposition::Park);
        }
        pair
    }

    /// All run, with their APICs enabled.
    fn running() -> Self {
        let mut pair = Self::started();
        pair.first().send(0, 0, OTHERS | START_UP | 0x10);
        pair.carry();
        for vcpu in 0..2 {
            pair.first().write_msr(vcpu, SPURIOUS, 0x1ff);
        }
        for vcpu in 0..3 {
            pair.second.write_msr(vcpu, SPURIOUS, 0x1ff);
            pair.second.set_rflags(vcpu, RFLAGS_IF);
        }
        pair.first().node.kicks.clear();
        pair.second.node.kicks.clear();
        pair.second.node.unparked.clear();
        pair
    }

    fn first(&self) -> RefMut<'_, Guest> {
        self.first.borrow_mut()
    }

    /// Carries what they said to each other; how much.
    fn carry(&mut self) -> usize {
        let there = core::mem::take(&mut self.first().node.sent);
        let back = core::mem::take(&mut self.second.node.sent);
        let count = there.len() + back.len();
        for (to, say) in there {
            assert_eq!(to, 5);
            assert!(self.second.tell(1, say), "{say:?}");
        }
        for (to, say) in back {
            assert_eq!(to, 1);
            assert!(self.first().tell(5, say), "{say:?}");
        }
        count
    }

    /// Brings a vCPU of the second node to flat protected mode, where it reaches the I/O APIC.
    fn protect(&mut self, vcpu: usize) {
        let node = &mut self.second.node;
        let state = node.hardware[0];
        let flat = ipc::vcpu::Segment { selector: 0x18, attributes: 0xc93, limit: !0, base: 0 };
        let cs = ipc::vcpu::Segment { selector: 0x10, attributes: 0xc9b, ..flat };
        node.hardware[vcpu] = ipc::vcpu::SystemState { cr0: 0x11, cs, ds: flat, es: flat, ss: flat, ..state };
        node.leave(vcpu);
    }

    /// Accesses the I/O APIC from the second node's first vCPU by `MOV [EBX], EAX` or back; EAX afterwards.
    fn io_apic(&mut self, offset: u64, write: Option<u64>) -> u64 {
        self.second.load(0, if write.is_some() { &[0x89, 0x03] } else { &[0x8b, 0x03] });
        let at = 0xfec0_0000 + offset;
        let registers = &mut self.second.node.pages[0].registers;
        (registers.rbx, registers.rax) = (at, write.unwrap_or(0));
        let access = if write.is_some() { ACCESS_WRITE } else { 0 };
        assert_eq!(self.second.exit(0, ExitReason::Memory, [at, access, 0]), Disposition::Resume);
        self.second.node.pages[0].registers.rax
    }

    /// Writes a register of the I/O APIC from there.
    fn write_io_apic(&mut self, register: u64, value: u64) {
        self.io_apic(0, Some(register));
        self.io_apic(0x10, Some(value));
    }
}

#[test]
fn vcpus_of_another_node_wait_until_they_are_started() {
    let mut pair = Pair::started();
    pair.first().send(0, SECOND + 1, INIT);
    pair.first().send(0, SECOND + 1, START_UP | 0x10);
    assert_eq!(pair.carry(), 2);
    assert_eq!((&pair.second.node.unparked[..], &pair.second.node.kicks[..]), (&[1][..], &[][..]));
    assert_eq!(pair.second.node.hardware[1].cs.base, 0x1_0000);
    // It starts the others of both nodes itself.
    pair.second.send(1, 0, OTHERS | INIT);
    assert_eq!(pair.carry(), 2, "and resets the first one");
    assert_eq!(pair.first().exit(0, ExitReason::Kicked, [0; 3]), Disposition::Park);
    pair.second.send(1, 1, START_UP | 0x20);
    pair.second.send(1, SECOND + 2, START_UP | 0x20);
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.first().node.unparked, [1]);
    assert_eq!(pair.second.node.unparked, [1, 2]);
}

#[test]
fn a_start_that_is_faster_than_the_vcpu_is_kept() {
    let mut second = Guest::part(&SHARES, 1, Walks::Cached);
    for delivery in [DeliveryMode::Init, DeliveryMode::StartUp] {
        let signal = Signal { vcpu: 3, delivery, vector: 0x30, trigger: Trigger::Edge };
        assert!(second.tell(1, Say::Signal(signal)));
    }
    assert_eq!(second.exit(0, ExitReason::Started, [0; 3]), Disposition::Park);
    assert_eq!(second.exit(1, ExitReason::Started, [0; 3]), Disposition::Resume);
    assert_eq!(second.node.hardware[1].cs.base, 0x3_0000);
}

#[test]
fn interrupts_go_both_ways() {
    let mut pair = Pair::running();
    pair.second.execute(2, ExitReason::Halt, &[0xf4]);
    assert_eq!(pair.second.node.entered[2].activity, HALT);
    pair.first().send(1, SECOND + 2, FIXED | 0x45);
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.second.node.kicks, [2]);
    assert_eq!(pair.second.kicked(2).event, Event::interrupt(0x45));
    pair.second.send(2, 1, NMI);
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.first().node.kicks, [1]);
    assert_eq!(pair.first().kicked(1).event, Event::nmi());
    // To itself, and to a neighbour, nothing leaves the node.
    pair.second.send(0, SECOND, FIXED | 0x46);
    assert_eq!(pair.second.node.entered[0].event, Event::interrupt(0x46));
    pair.second.send(0, SECOND + 1, FIXED | 0x46);
    assert_eq!(pair.carry(), 0);
    // To all, and to an ID that nobody has.
    pair.second.send(1, 0, ALL | FIXED | 0x47);
    assert_eq!(pair.carry(), 2);
    pair.second.send(1, 3, FIXED | 0x47);
    pair.second.send(1, 7, FIXED | 0x47);
    assert_eq!(pair.carry(), 0);
}

#[test]
fn a_logical_destination_names_vcpus_of_both_nodes() {
    let mut pair = Pair::running();
    // Cluster 0: the IDs 1, 4 and 6.
    pair.first().send(0, 1 << 1 | 1 << 4 | 1 << 6, FIXED | 1 << 11 | 0x50);
    assert_eq!(pair.carry(), 2);
    assert_eq!(pair.first().node.kicks, [1]);
    assert_eq!(pair.second.node.kicks, [0, 2]);
}

#[test]
fn lowest_priority_takes_one_of_all() {
    let mut pair = Pair::running();
    let mut taken = Vec::new();
    for vector in 0..6 {
        let before = (pair.first().node.kicks.len(), pair.second.node.kicks.len());
        pair.first().send(0, 1 << 1 | 1 << 4 | 1 << 6, LOWEST | 1 << 11 | (0x50 + vector));
        let elsewhere = pair.carry();
        let (here, there) = (pair.first().node.kicks.len(), pair.second.node.kicks.len());
        assert_eq!((here - before.0) + (there - before.1), 1);
        taken.push(elsewhere);
    }
    // The one that is here has something to do after the first, and those elsewhere are taken to have not.
    assert_eq!(taken.iter().sum::<usize>(), 5);
}

#[test]
fn devices_are_the_first_nodes() {
    let mut pair = Pair::running();
    assert_eq!(pair.second.out(1, 0x3f8, 1, b'x'.into()), Disposition::Resume);
    assert_eq!(pair.first().node.output, b"x");
    assert!(pair.second.node.output.is_empty());
    pair.second.node.pages[1].registers.rax = 0x1122_3344;
    assert_eq!(pair.second.input(1, 0x3fd, 1), 0x1122_3360, "the line's status");
    let mut first = pair.first();
    let Guest { machine, node } = &mut *first;
    machine.input(node, b"k");
    drop(first);
    assert_eq!(pair.second.input(2, 0x3f8, 1) & 0xff, b'k'.into());
    // Nobody is asked what nobody has.
    pair.second.node.first = None;
    pair.second.node.pages[1].registers.rax = 0;
    assert_eq!(pair.second.input(1, 0xcf8, 4), 0xffff_ffff);
    assert_eq!(pair.second.input(1, 0x80, 1), 0xffff_ffff);
    // Who does not answer reads as all ones, too.
    assert_eq!(pair.second.input(1, 0x3fd, 1) & 0xff, 0xff);
}

#[test]
fn strings_go_to_a_device_elsewhere() {
    let mut pair = Pair::running();
    pair.second.node.ram.write(GuestPhysAddr(0x3000), b"strings!").unwrap();
    pair.protect(0);
    pair.second.load(0, &[0xf3, 0x6e]);
    let registers = &mut pair.second.node.pages[0].registers;
    (registers.rcx, registers.rsi, registers.rdx) = (8, 0x3000, 0x3f8);
    let access = PortAccess::new(0x3f8, 1, PortAccess::STRING | PortAccess::REPEATED);
    assert_eq!(pair.second.exit(0, ExitReason::Port, [access.0, 0, 0]), Disposition::Resume);
    assert_eq!(pair.second.node.pages[0].registers.rcx, 0);
    assert_eq!(pair.first().node.output, b"strings!");
}

#[test]
fn a_device_that_is_set_from_elsewhere_brings_the_first_vcpu() {
    let mut pair = Pair::running();
    pair.second.out(0, 0x70, 1, 0x0b);
    assert!(pair.first().node.kicks.is_empty(), "nothing comes of it");
    pair.second.out(0, 0x71, 1, 0x42);
    assert_eq!(pair.first().node.kicks, [0], "the periodic interrupt");
    let due = pair.first().kicked(0).deadline;
    assert!(due > super::START && due <= super::START + super::TSC_HZ / 1024 + 1, "{due}");
    assert_eq!(pair.second.kicked(0).deadline, ipc::abi::NEVER);
}

#[test]
fn the_io_apic_is_reached_from_elsewhere_and_reaches_there() {
    let mut pair = Pair::running();
    pair.protect(0);
    // The serial port's pin, to the last vCPU of the second node, by its ID.
    pair.write_io_apic(0x19, 6 << 24);
    pair.write_io_apic(0x18, 0x34);
    assert_eq!(pair.io_apic(0x10, None), 0x34);
    pair.first().out(0, 0x3fc, 1, 0x08);
    pair.first().out(0, 0x3f9, 1, 0x02);
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.second.node.kicks, [2]);
    assert_eq!(pair.second.kicked(2).event, Event::interrupt(0x34));
    pair.second.write_msr(2, EOI, 0);
    assert_eq!(pair.carry(), 0, "an edge ends without a word");
}

#[test]
fn a_level_is_told_to_have_ended() {
    let mut pair = Pair::running();
    pair.protect(0);
    // The SCI's pin, level-triggered. The power management timer's status comes of itself.
    pair.write_io_apic(0x23, 5 << 24);
    pair.write_io_apic(0x22, 0x8041);
    pair.second.out(0, 0x602, 2, 1);
    pair.first().node.now += super::TSC_HZ * 700;
    pair.first().kicked(0);
    assert_eq!(pair.carry(), 1);
    assert_eq!(pair.second.node.kicks, [1]);
    assert_eq!(pair.second.kicked(1).event, Event::interrupt(0x41));
    pair.second.write_msr(1, EOI, 0);
    assert_eq!(pair.second.node.sent, [(1, Say::EndOfInterrupt { vector: 0x41 })]);
    pair.carry();
    assert_eq!(pair.carry(), 1, "it is still there, and comes again");
    assert_eq!(pair.second.kicked(1).event, Event::interrupt(0x41));
    pair.second.out(1, 0x600, 2, 1);
    pair.second.write_msr(1, EOI, 0);
    pair.carry();
    assert_eq!(pair.carry(), 0);
    assert_eq!(pair.second.kicked(1).event, Event::NONE);
}

#[test]
fn the_guest_switches_itself_off_from_elsewhere() {
    let mut pair = Pair::running();
    assert_eq!(pair.second.out(2, 0x604, 2, 1 << 13 | 5 << 10), Disposition::Resume, "until it is told");
    assert!(pair.second.machine.end().is_none());
    assert_eq!(pair.first().end(), End::PoweredOff);
}

#[test]
fn nobody_knows_that_all_are_halted() {
    let pair = Pair::running();
    for vcpu in 0..2 {
        pair.first().set_rflags(vcpu, 0);
        pair.first().execute(vcpu, ExitReason::Halt, &[0xf4]);
        assert_eq!(pair.first().node.entered[vcpu].activity, HALT);
    }
    assert!(pair.first().machine.end().is_none());
}

#[test]
fn a_crash_elsewhere_has_its_number_among_all() {
    let mut pair = Pair::running();
    assert_eq!(pair.second.exit(2, ExitReason::Shutdown, [0; 3]), Disposition::Ended);
    let report = *pair.second.machine.end().unwrap();
    assert_eq!((report.vcpu, pair.second.machine.number_of(report.vcpu)), (2, 4));
}

#[test]
fn each_vcpu_has_its_id() {
    let mut pair = Pair::running();
    for (vcpu, id) in [(0, 4), (1, 5), (2, 6)] {
        let registers = &mut pair.second.node.pages[vcpu].registers;
        (registers.rax, registers.rcx) = (0xb, 1);
        pair.second.execute(vcpu, ExitReason::Cpuid, &[0x0f, 0xa2]);
        let registers = &pair.second.node.pages[vcpu].registers;
        assert_eq!((registers.rax, registers.rbx, registers.rdx), (2, 3, id));
    }
}

#[test]
fn hostile_messages_do_no_harm() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let vcpus = u8::try_from(total_vcpus(&SHARES)).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..60 {
        let pair = Pair::running();
        let Pair { first, mut second } = pair;
        second.node.first = None;
        let mut first = first.borrow_mut();
        for _ in 0..200 {
            let guest = if random.random() { &mut *first } else { &mut second };
            let mut bytes = [0; 24];
            random.fill_bytes(&mut bytes);
            // Mostly something that is a message.
            let say = match random.random_range(0..5) {
                0 => Message::decode(&bytes).map(|message| message.say),
                1 => Some(Say::EndOfInterrupt { vector: bytes[0] }),
                2 | 3 => {
                    bytes[6] &= 7;
                    let delivery = DeliveryMode::from_register(u32::from(bytes[6]) << 8);
                    let trigger = if bytes[8] & 1 == 0 { Trigger::Edge } else { Trigger::Level };
                    let vcpu = if random.random() { bytes[5] % vcpus } else { bytes[5] };
                    delivery.map(|delivery| Say::Signal(Signal { vcpu, delivery, vector: bytes[7], trigger }))
                }
                _ => {
                    const PORTS: [u16; 8] = [0x3f8, 0x3f9, 0x70, 0x71, 0x600, 0x40, 0x61, 0x20];
                    let space = if random.random() { Space::Ports } else { Space::IoApic };
                    let address = if random.random() {
                        PORTS[random.random_range(0..PORTS.len())]
                    } else {
                        random.random()
                    };
                    let write = random.random::<bool>().then(|| random.random());
                    let access = Access { space, address, bytes: bytes[0] % 15 + 1, write };
                    Some(Say::Access { id: random.random(), access })
                }
            };
            let Some(say) = say else { continue };
            let of_machine = matches!(say, Say::Signal(_) | Say::Access { .. } | Say::EndOfInterrupt { .. });
            let is_taken = guest.tell(random.random(), say);
            assert!(!is_taken || of_machine);
            if is_taken {
                taken += 1
            } else {
                refused += 1
            }
            guest.node.now += random.random_range(0..super::TSC_HZ);
            let vcpu = random.random_range(0..guest.node.pages.len());
            if guest.machine.end().is_none() && random.random_range(0..4) == 0 {
                guest.exit(vcpu, ExitReason::Kicked, [0; 3]);
            }
        }
    }
    assert!(taken > 3000 && refused > 1000, "{taken} {refused}");
}

#[test]
fn who_is_not_here_gets_nothing() {
    let mut pair = Pair::running();
    let signal =
        |vcpu| Say::Signal(Signal { vcpu, delivery: DeliveryMode::Nmi, vector: 0, trigger: Trigger::Edge });
    for vcpu in [0, 1, 5, 64, 255] {
        assert!(!pair.second.tell(1, signal(vcpu)), "{vcpu}");
    }
    for vcpu in [2, 4, 255] {
        assert!(!pair.first().tell(5, signal(vcpu)), "{vcpu}");
    }
    assert!(!pair.second.tell(1, Say::EndOfInterrupt { vector: 0x41 }));
    let access = Access { space: Space::Ports, address: 0x3f8, bytes: 1, write: Some(1) };
    assert!(!pair.second.tell(1, Say::Access { id: 1, access }));
    assert!(pair.second.node.sent.is_empty());
}
