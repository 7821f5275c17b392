//! What comes from a wire that lies.

use std::vec::Vec;

use ipc::wire::{
    ALL_STATIONS, Class, FrameHeader, HEADER_BYTES, Kind, MacAddress, Message as Fields, NO_NODE, UnumHeader,
    crc32c, tag,
};
use rand::Rng;
use zerocopy::{FromBytes, IntoBytes};

use super::channels::{BAD, GOOD, chat, formed};
use super::seeds;
use super::surroundings::{FRAMES, Held};
use super::world::{LIMITS, World, mac};
use crate::membership::Refusal;
use crate::statistics::ClassCounters;
use ipc::interfaces::interconnect::Drops;

/// Makes the checksums right.
fn reseal(bytes: &mut [u8]) {
    let payload = crc32c(0, &bytes[HEADER_BYTES..]);
    let (header, _) = FrameHeader::read_from_prefix(bytes).unwrap();
    bytes[..HEADER_BYTES].copy_from_slice(header.seal(payload).as_bytes());
}

/// A frame from node 2 to node 1 of a world, whole and right.
fn frame(world: &World, kind: Kind, class: Class, payload: &[u8]) -> Vec<u8> {
    let payload_bytes = u16::try_from(payload.len()).unwrap();
    let fields = Fields { payload_bytes, ..Fields::new(kind, class) };
    let header = FrameHeader::new(world.hosts[1].node.identity(), mac(1), mac(0), fields);
    let mut bytes = header.seal(0).as_bytes().to_vec();
    bytes.extend(payload);
    reseal(&mut bytes);
    bytes
}

fn altered(bytes: &[u8], change: impl Fn(&mut UnumHeader)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let (header, _) = FrameHeader::mut_from_prefix(&mut bytes).unwrap();
    change(&mut header.unum);
    reseal(&mut bytes);
    bytes
}

#[test]
fn every_wrong_field_is_counted_and_has_no_other_effect() {
    let mut world = formed(1, 2, LIMITS, GOOD);
    let good = frame(&world, Kind::Data, Class::Request, &[5; 64]);
    let drops = |world: &World| *world.hosts[0].node.drops();
    let mut expected = drops(&world);
    let mut check = |world: &mut World, bytes: &[u8], count: fn(&mut Drops) -> &mut u64| {
        world.arrive(0, bytes);
        *count(&mut expected) += 1;
        assert_eq!(drops(world), expected, "{:02x?}", &bytes[..bytes.len().min(HEADER_BYTES)]);
        assert_eq!(world.hosts[0].around.count(Held::Free), FRAMES);
    };
    for length in 0..HEADER_BYTES {
        check(&mut world, &good[..length], |d| &mut d.short);
    }
    for length in (HEADER_BYTES..good.len()).chain([good.len() + 1, 3000, 9000]) {
        let mut bytes = good.clone();
        bytes.resize(length, 0);
        check(&mut world, &bytes, |d| &mut d.malformed);
    }
    check(&mut world, &altered(&good, |h| h.version = 1), |d| &mut d.version);
    check(&mut world, &altered(&good, |h| h.key = 1), |d| &mut d.key);
    for kind in [0, 1, 11, 12, 13, 14, 15] {
        check(&mut world, &altered(&good, |h| h.kind = kind), |d| &mut d.malformed);
    }
    check(&mut world, &altered(&good, |h| h.cluster = 2.into()), |d| &mut d.other_cluster);
    for epoch in [0, 2, u32::MAX] {
        check(&mut world, &altered(&good, |h| h.epoch = epoch.into()), |d| &mut d.other_epoch);
    }
    check(&mut world, &altered(&good, |h| h.source = NO_NODE.into()), |d| &mut d.malformed);
    check(&mut world, &altered(&good, |h| h.source = 1.into()), |d| &mut d.duplicate);
    check(&mut world, &altered(&good, |h| h.source = 9.into()), |d| &mut d.stranger);
    for extent in [0u16, 7, 63, 4097, 0x1fff] {
        check(&mut world, &altered(&good, |h| h.extent = extent.into()), |d| &mut d.malformed);
    }
    for acknowledgement in [1, 64, 1 << 30, (1 << 31) - 1] {
        let bytes = altered(&good, |h| h.acknowledgement = acknowledgement.into());
        check(&mut world, &bytes, |d| &mut d.unexpected);
    }
    let bytes = frame(&world, Kind::ClockReply, Class::Control, &[]);
    check(&mut world, &bytes, |d| &mut d.unexpected);
    for kind in [Kind::Acknowledge, Kind::Probe] {
        let bytes = frame(&world, kind, Class::Page, &[]);
        for bad in [
            altered(&bytes, |h| h.sequence = 65.into()),
            altered(&bytes, |h| h.sequence = u32::MAX.into()),
            altered(&bytes, |h| h.message = tag(1)),
            altered(&bytes, |h| h.message = tag(u64::MAX)),
            altered(&bytes, |h| h.acknowledgement = 1.into()),
        ] {
            check(&mut world, &bad, |d| &mut d.unexpected);
        }
    }
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        reseal(&mut bytes);
        bytes
    };
    check(&mut world, &with(0, &mac(5).0), |d| &mut d.elsewhere);
    check(&mut world, &with(0, &ALL_STATIONS.0), |d| &mut d.elsewhere);
    check(&mut world, &with(6, &[3, 0, 0, 0, 0, 1]), |d| &mut d.malformed);
    check(&mut world, &with(6, &mac(9).0), |d| &mut d.duplicate);
    check(&mut world, &with(12, &[8, 0]), |d| &mut d.foreign);
    // Not resealed: every bit of the frame counts.
    for bit in (14 * 8..good.len() * 8).step_by(7) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let before = drops(&world).total();
        world.arrive(0, &bytes);
        assert_eq!(drops(&world).total(), before + 1, "bit {bit}");
    }
    expected = drops(&world);
    assert!(world.hosts[0].application.came.is_empty());
    let classes = world.hosts[0].node.counters(2).unwrap();
    let unexpected: u64 = classes.iter().map(|class| class.unexpected).sum();
    assert_eq!(classes.iter().map(|class| class.received_frames).sum::<u64>(), 0);
    assert_eq!(unexpected, 4 + 10);
    // Beyond the credit, which the class counts; and then the good one, twice.
    world.arrive(0, &altered(&good, |h| h.sequence = 32.into()));
    world.arrive(0, &altered(&good, |h| h.sequence = u32::MAX.into()));
    world.arrive(0, &good);
    world.arrive(0, &good);
    let [_, _, request, _] = world.hosts[0].node.counters(2).unwrap();
    let ClassCounters { received_frames, repeated, beyond_credit, .. } = request;
    assert_eq!((received_frames, repeated, beyond_credit), (1, 2, 1));
    assert_eq!(drops(&world), expected);
}

/// Fragments that no sender sends: out of their order, too long, without contents, and whole ones between.
#[test]
fn fragments_that_do_not_fit_are_dropped_and_the_class_goes_on() {
    for seed in seeds(20) {
        let mut world = formed(seed, 2, LIMITS, GOOD);
        world.distrusted = Some(2);
        for sequence in 0..2_000u32 {
            let bytes = [0, 8, 1440, 4096][world.random.random_range(0..4)];
            let good = frame(&world, Kind::Data, Class::Page, &[7; 4096][..bytes]);
            let [fragment, more] = [world.random.random_range(0..4u16), world.random.random_range(0..2)];
            let extent = u16::try_from(bytes).unwrap() | fragment << 13 | more << 15;
            world.arrive(0, &altered(&good, |h| (h.sequence, h.extent) = (sequence.into(), extent.into())));
            world.attend(0);
            world.run(1_000);
        }
        let [.., page] = world.hosts[0].node.counters(2).unwrap();
        assert_eq!(page.received_frames, 2_000);
        assert!(page.unexpected > 200);
        assert!(world.hosts[0].around.count(Held::Free) >= FRAMES - 1);
    }
}

/// All that was ever said is said again, in another order, while the nodes talk on, and after one was started again.
#[test]
fn what_is_replayed_changes_nothing() {
    for seed in seeds(6) {
        let mut world = formed(seed, 3, LIMITS, GOOD);
        world.record = true;
        chat(&mut world, 100);
        for round in 0..3 {
            for _ in 0..2_000 {
                let at = world.random.random_range(0..world.recorded.len());
                let bytes = world.recorded[at].clone();
                for host in 0..3 {
                    if bytes[..6] == ALL_STATIONS.0 || bytes[..6] == mac(host).0 {
                        world.arrive(host, &bytes);
                        world.attend(host);
                    }
                }
                let pause = world.random.random_range(0..10);
                world.run(pause);
                if world.random.random_ratio(1, 50) {
                    chat(&mut world, 1);
                }
            }
            world.run_until(20_000_000, "all messages", World::all_came);
            if round == 1 {
                world.restart(2);
                world.run_until(20_000_000, "its return", |world| world.agree_on(&[1, 2, 3]));
                chat(&mut world, 30);
            }
        }
        assert!(world.hosts[0].node.drops().other_epoch > 100);
    }
}

/// Frames of a member with some bits changed and checksums that fit: it hurts nobody but its own messages.
#[test]
fn a_member_that_lies_hurts_no_other() {
    for seed in seeds(6) {
        let mut world = formed(seed, 3, LIMITS, BAD);
        world.distrusted = Some(3);
        world.record = true;
        let identity = world.hosts[2].node.identity();
        let mut injected = 0;
        for _ in 0..200 {
            // Between the two others only.
            for _ in 0..8 {
                let at = world.random.random_range(0..2usize);
                let class = Class::from_bits(world.random.random());
                let bytes = 8 * world.random.random_range(0..=512);
                world.send(at, [2, 1][at], class, bytes);
                world.attend(at);
            }
            world.run(1_000);
            for _ in 0..20 {
                let at = world.random.random_range(0..world.recorded.len());
                let mut bytes = world.recorded[at].clone();
                let kind = bytes[16] & 0xf;
                if kind == Kind::Hello as u8 {
                    continue;
                }
                for _ in 0..world.random.random_range(1..4) {
                    let at = world.random.random_range(14..bytes.len().min(HEADER_BYTES));
                    bytes[at] ^= 1 << world.random.random_range(0..8);
                }
                if bytes[16] & 0xf == Kind::Hello as u8 {
                    continue;
                }
                let host = world.random.random_range(0..2);
                bytes[..6].copy_from_slice(&mac(host).0);
                bytes[6..12].copy_from_slice(&mac(2).0);
                if world.random.random() {
                    bytes[20..24].copy_from_slice(&identity.epoch.to_le_bytes());
                    bytes[24..26].copy_from_slice(&identity.node.to_le_bytes());
                }
                reseal(&mut bytes);
                world.arrive(host, &bytes);
                world.attend(host);
                injected += 1;
            }
        }
        assert!(injected > 2_000);
        let between = |world: &World, at: usize| {
            let (me, peer) = (&world.hosts[at], &world.hosts[1 - at]);
            let sent = me.application.sent.iter().filter(|(stream, _)| stream.0 != 3);
            let came = peer.application.came.values().sum::<u32>();
            sent.map(|(_, count)| count).sum::<u32>() == came
        };
        world.run_until(20_000_000, "what the two said", |world| between(world, 0) && between(world, 1));
        assert!(world.hosts[0].application.sent.values().sum::<u32>() > 300);
        assert!(world.agree_on(&[1, 2, 3]), "{}", world.describe());
    }
}

/// Anything at all, hellos with forged views among it: nothing panics, no page frame is lost, all tables keep their
/// bounds; and when it is over, all agree again.
#[test]
fn after_any_flood_the_cluster_recovers() {
    for seed in seeds(10) {
        let mut world = formed(seed, 3, LIMITS, GOOD);
        world.record = true;
        chat(&mut world, 50);
        world.run(100_000);
        world.forged = true;
        let is_hello = |frame: &&Vec<u8>| frame[16] & 0xf == Kind::Hello as u8;
        let hellos: Vec<_> = world.recorded.iter().filter(is_hello).cloned().collect();
        for _ in 0..6_000 {
            let said = if world.random.random() { &hellos } else { &world.recorded };
            let mut bytes = said[world.random.random_range(0..said.len())].clone();
            if world.random.random_ratio(1, 4) {
                // Newer than anything that was said.
                bytes[28..32].copy_from_slice(&world.random.random_range(1u32..1 << 31).to_le_bytes());
            }
            match world.random.random_range(0..4) {
                0 => world.random.fill(&mut bytes[14..]),
                1 => {
                    let length = world.random.random_range(0..HEADER_BYTES + 4200);
                    bytes.resize(length, world.random.random());
                }
                _ => {
                    let hello = bytes[16] & 0xf == Kind::Hello as u8;
                    for _ in 0..world.random.random_range(1..6) {
                        let end = if hello { bytes.len() } else { bytes.len().min(HEADER_BYTES) };
                        let at = world.random.random_range(6..end);
                        bytes[at] = world.random.random();
                    }
                }
            }
            let is_data = bytes.len() > 16 && matches!(bytes[16] & 0xf, 6..=8);
            // A forged message of a member is a message; only its own checksum could tell.
            if bytes.len() >= HEADER_BYTES && !is_data && world.random.random_ratio(9, 10) {
                bytes[12..16].copy_from_slice(&[0x88, 0xb5, ipc::wire::VERSION, 0]);
                bytes[6] &= !1;
                reseal(&mut bytes);
            }
            let at = world.random.random_range(0..3);
            world.arrive(at, &bytes);
            world.attend(at);
            let pause = world.random.random_range(0..30);
            world.run(pause);
        }
        assert!(world.hosts.iter().all(|host| host.node.membership().refusals().iter().sum::<u64>() > 20));
        world.run_until(20_000_000, "agreement", |world| world.agree_on(&[1, 2, 3]));
        chat(&mut world, 50);
        world.run_until(20_000_000, "all messages", World::all_came);
        world.run(500_000);
        for host in &world.hosts {
            assert_eq!(host.around.count(Held::Free), FRAMES);
        }
    }
}

#[test]
fn a_crowd_of_strangers_fills_only_its_table() {
    let mut world = formed(2, 3, LIMITS, GOOD);
    world.record = true;
    world.run(50_000);
    let is_hello = |frame: &&Vec<u8>| frame[16] & 0xf == Kind::Hello as u8;
    let hello = world.recorded.iter().find(is_hello).unwrap().clone();
    for number in 100..1_000u16 {
        let mut bytes = hello.clone();
        let [low, high] = number.to_le_bytes();
        bytes[6..12].copy_from_slice(&MacAddress([2, 1, 0, 0, high, low]).0);
        bytes[24..26].copy_from_slice(&[low, high]);
        reseal(&mut bytes);
        world.arrive(0, &bytes);
        world.attend(0);
    }
    assert!(world.hosts[0].node.membership().refusals()[Refusal::NoRoom as usize] > 800);
    world.run(2_000_000);
    assert!(world.agree_on(&[1, 2, 3]));
}
