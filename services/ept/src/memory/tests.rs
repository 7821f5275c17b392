use std::collections::BTreeMap;
use std::vec::Vec;

use ipc::abi::Error;
use ipc::vcpu::memory_ranges;

use super::*;
use crate::testing::{FakeSpace, Operation, Random};

const HIGH: u64 = ipc::vcpu::HIGH_MEMORY_START / 4096;
const LOW_END: u64 = ipc::vcpu::LOW_MEMORY_END / 4096;
const PRIVATE: u64 = ipc::vcpu::PRIVATE_START / 4096;

/// Guest memory, the space that it asks, and what the guest must read.
struct World {
    memory: GuestMemory,
    space: FakeSpace,
    written: BTreeMap<u64, u64>,
    stamp: u64,
}

impl World {
    fn new(pages: u64, private: u64, frames: u32, max_pages: u16) -> Self {
        Self::with_blocks(pages, private, frames, max_pages, |_| true)
    }

    fn with_blocks(pages: u64, private: u64, frames: u32, max_pages: u16, mappable: fn(u32) -> bool) -> Self {
        let layout = Layout::new(pages, private).unwrap();
        let pool = Frames::new(frames, mappable).unwrap();
        let [low, high] = memory_ranges(pages);
        Self {
            memory: GuestMemory::new(layout, pool, Policy::new(max_pages)).unwrap(),
            space: FakeSpace::new(&[low, high, (PRIVATE, private)], frames, mappable),
            written: BTreeMap::new(),
            stamp: 0,
        }
    }

    fn fault(&mut self, page: u64, access: Access) -> Result<(), Refusal> {
        let fault = Fault { address: page * 4096 + 8, access, source: Source::Vcpu(0) };
        self.memory.fault(&mut self.space, fault)
    }

    /// The guest writes: it faults when it must.
    fn write(&mut self, page: u64) -> Result<(), Refusal> {
        self.stamp += 1;
        if !self.space.write(page, self.stamp) {
            self.fault(page, Access::ReadWrite)?;
            let was = self.written.get(&page).copied().unwrap_or(0);
            assert_eq!(self.space.read(page), Some(was), "a frame appears as the page was");
            assert!(self.space.write(page, self.stamp), "an answered write can be tried again");
        }
        self.written.insert(page, self.stamp);
        Ok(())
    }

    fn read(&mut self, page: u64) -> Result<(), Refusal> {
        if self.space.read(page).is_none() {
            self.fault(page, Access::Read)?;
        }
        let expected = self.written.get(&page).copied().unwrap_or(0);
        assert_eq!(self.space.read(page), Some(expected), "page {page:#x}");
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.memory.counters()
    }

    fn pages(&self) -> Vec<u64> {
        self.space.ranges.iter().flat_map(|(first, count)| *first..first + count).collect()
    }

    /// Asserts that the tables agree with each other and with what is mapped.
    fn check(&self) {
        let memory = &self.memory;
        memory.frames.check();
        let (mut zero, mut owned, mut large, mut reserved) = (0, 0, 0, 0);
        for (number, chunk) in memory.chunks.iter().enumerate() {
            let (first, _) = memory.layout.chunk(number);
            let mut touched = 0;
            for place in 0..512_u16 {
                let page = first.0 + u64::from(place);
                let mapped = self.space.mapped.get(&page).copied();
                match memory.entries[number * CHUNK_PAGES + usize::from(place)].state() {
                    PageState::Dormant => assert_eq!(mapped, None),
                    PageState::Zero => {
                        assert_eq!(mapped, Some((0, Access::Read)));
                        (touched, zero) = (touched + 1, zero + 1);
                    }
                    PageState::Owned(frame) => {
                        assert_eq!(mapped, Some((frame.0, Access::ReadWrite)));
                        assert!(!memory.frames.is_free(frame));
                        if let Placement::Reserved(block) = chunk.placement {
                            assert_eq!(frame, block.frame(place));
                        }
                        (touched, owned) = (touched + 1, owned + 1);
                    }
                }
            }
            assert_eq!(chunk.touched, touched);
            large += u64::from(chunk.mapping == Mapping::Large);
            reserved += u64::from(matches!(chunk.placement, Placement::Reserved(_)));
        }
        let counters = self.counters();
        assert_eq!(counters.frames.used, owned + 1);
        assert_eq!((counters.zero_pages, counters.ranges.large), (zero, large));
        assert_eq!(counters.ranges.reserved, reserved);
        assert_eq!(self.space.mapped.len() as u64, zero + owned);
    }

    /// Takes all away; how many steps it took.
    fn reset(&mut self) -> usize {
        for steps in 1..10_000 {
            let before = self.space.operations.len();
            let progress = self.memory.reset_step(&mut self.space);
            assert!(self.space.operations.len() - before <= RESET_CALLS);
            if progress == Ok(Progress::Done) {
                self.written.clear();
                self.check();
                assert_eq!(self.space.mapped.len(), 0);
                let Counters { zero_pages, frames, ranges, .. } = self.counters();
                assert_eq!((zero_pages, frames.used, frames.reserved), (0, 1, 0));
                assert_eq!((ranges.reserved, ranges.large), (0, 0));
                assert!(self.memory.chunks.iter().all(|chunk| chunk.stream == Stream::NONE));
                return steps;
            }
            self.check();
            assert_eq!(self.fault(0, Access::Read), Err(Refusal::Stopping));
        }
        panic!("the reset has no end");
    }
}

#[test]
fn a_page_is_dormant_until_it_is_written() {
    let mut world = World::new(1024, 0, 4096, 1);
    world.read(5).unwrap();
    world.read(6).unwrap();
    assert_eq!(world.counters().frames.used, 1);
    world.write(5).unwrap();
    world.write(7).unwrap();
    world.read(5).unwrap();
    // Two vCPUs had the same fault; the second is told to go on.
    world.fault(5, Access::ReadWrite).unwrap();
    world.fault(5, Access::Read).unwrap();
    world.fault(6, Access::Read).unwrap();
    world.check();
    let block = Frame(512);
    assert_eq!(
        world.space.operations,
        [
            // The shared page is cleared once.
            Operation::Map(5, 0, 1, Access::Read, Contents::Zero),
            Operation::Map(6, 0, 1, Access::Read, Contents::AsIs),
            Operation::Map(5, block.0 + 5, 1, Access::ReadWrite, Contents::Zero),
            Operation::Map(7, block.0 + 7, 1, Access::ReadWrite, Contents::Zero),
        ]
    );
    let counters = world.counters();
    let faults = counters.faults;
    assert_eq!((faults.read_dormant, faults.write_dormant, faults.upgrade, faults.spurious), (2, 1, 1, 3));
    assert_eq!((counters.frames.used, counters.frames.reserved, counters.zero_pages), (3, 510, 1));
}

#[test]
fn what_is_no_guest_memory_is_refused_and_counted() {
    let mut world = World::new(LOW_END + 3, 2, 1024, 16);
    let outside = [LOW_END, HIGH - 1, HIGH + 3, PRIVATE - 1, PRIVATE + 2, u64::MAX >> 12];
    for page in outside {
        assert_eq!(world.fault(page, Access::Read), Err(Refusal::Outside));
        assert_eq!(world.fault(page, Access::ReadWrite), Err(Refusal::Outside));
    }
    let window = Fault { address: u64::MAX, access: Access::ReadWrite, source: Source::Window };
    assert_eq!(world.memory.fault(&mut world.space, window), Err(Refusal::Outside));
    assert_eq!(world.space.operations, []);
    let faults = world.counters().faults;
    assert_eq!((faults.outside, faults.of_window), (13, 1));
    for page in [0, LOW_END - 1, HIGH, HIGH + 2, PRIVATE, PRIVATE + 1] {
        world.write(page).unwrap();
    }
    world.check();
}

#[test]
fn a_full_range_becomes_one_large_page() {
    for max_pages in [1, 16, 64] {
        let mut world = World::new(2048, 0, 4096, max_pages);
        world.read(512 + 200).unwrap();
        for page in (512..1024).rev() {
            let is_full = world.counters().frames.used == 513;
            assert_eq!(world.counters().ranges.large, u64::from(is_full));
            world.write(page).unwrap();
        }
        assert_eq!(
            world.space.operations.last(),
            Some(&Operation::Map(512, 512, 512, Access::ReadWrite, Contents::AsIs))
        );
        let counters = world.counters();
        assert_eq!((counters.ranges.large, counters.ranges.reserved, counters.frames.reserved), (1, 1, 0));
        assert_eq!(counters.frames.used, 513);
        world.check();
        for page in 512..1024 {
            world.read(page).unwrap();
        }
        world.reset();
    }
}

#[test]
fn a_range_that_is_not_all_memory_gets_single_frames() {
    // Low memory ends in the middle of a range, as does high memory after the hole, and what is private.
    for (pages, private, ends) in [
        (700, 3, [512..700, PRIVATE..PRIVATE + 3]),
        (LOW_END + 20, 5, [HIGH..HIGH + 20, PRIVATE..PRIVATE + 5]),
    ] {
        let mut world = World::new(pages, private, 4096, 64);
        for page in ends.into_iter().flatten() {
            world.write(page).unwrap();
            world.read(page).unwrap();
        }
        assert_eq!(world.counters().ranges.reserved, 0);
        assert_eq!(world.counters().faults.around_pages, 0);
        world.check();
        world.reset();
    }
    // The range right below the hole is whole.
    let mut world = World::new(LOW_END + 512, 0, 4096, 64);
    for page in (LOW_END - 512..LOW_END).chain(HIGH..HIGH + 512) {
        world.write(page).unwrap();
    }
    assert_eq!(world.counters().ranges.large, 2);
    world.check();
}

#[test]
fn reservations_are_broken_when_nothing_else_is_free() {
    // Frames for two blocks besides the first, 511 frames of which are single.
    let mut world = World::new(4 * 512, 0, 3 * 512, 1);
    for page in [0, 512, 1024] {
        world.write(page).unwrap();
    }
    // The third range had no block.
    assert_eq!(world.counters().ranges.reserved, 2);
    for page in 1025..1024 + 511 {
        world.write(page).unwrap();
    }
    assert_eq!(world.counters().ranges.broken, 0);
    world.write(1).unwrap();
    world.write(1024 + 511).unwrap();
    // The second range's was used least recently.
    assert_eq!((world.counters().ranges.broken, world.counters().ranges.reserved), (1, 1));
    world.check();
    for page in 513..1024 {
        world.write(page).unwrap();
    }
    assert_eq!((world.counters().ranges.broken, world.counters().ranges.reserved), (2, 0));
    world.check();
    // The rest goes until there is nothing, and then the refusal says so and leaves all as it is.
    let mut refused = 0;
    for page in 0..2048 {
        match world.write(page) {
            Ok(()) => {}
            Err(refusal) => {
                assert_eq!(refusal, Refusal::OutOfMemory);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 2048 - (3 * 512 - 1));
    assert_eq!((world.counters().faults.out_of_memory, world.counters().frames.used), (refused, 3 * 512));
    world.check();
    for page in 0..2048 {
        // Reads need no frame.
        world.read(page).unwrap();
    }
    world.reset();
    world.write(0).unwrap();
    assert_eq!(world.counters().ranges.reserved, 1);
}

#[test]
fn groups_grow_with_a_stream_and_go_on_in_the_next_range() {
    let mut world = World::new(4096, 0, 8192, 16);
    for page in 1024..2048 {
        world.write(page).unwrap();
    }
    let sizes: Vec<_> = world
        .space
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Map(_, _, count, _, Contents::Zero) => Some(*count),
            _ => None,
        })
        .collect();
    assert_eq!(sizes[..5], [1, 1, 2, 4, 8]);
    assert!(sizes[5..].iter().all(|size| *size == 16));
    assert_eq!(sizes.len(), 5 + 31 + 32);
    let counters = world.counters();
    assert_eq!(counters.faults.write_dormant, 68);
    assert_eq!((counters.faults.around_pages, counters.ranges.large), (1024 - 68, 2));
    world.check();
    // Scattered writes get a page each, but for the first after the stream, which gets a quarter of a group.
    for page in (2048 + 200..4096).step_by(67) {
        world.write(page).unwrap();
    }
    assert_eq!(world.counters().faults.around_pages, 1024 - 68 + 3);
}

#[test]
fn groups_are_single_pages_when_switched_off_or_frames_are_short() {
    let mut off = World::new(1024, 0, 4096, 1);
    for page in 0..1024 {
        off.write(page).unwrap();
    }
    assert_eq!((off.counters().faults.around_pages, off.counters().faults.write_dormant), (0, 1024));

    // Frames for 7 of 16 ranges, and singles for the end that is no whole range, which takes them first. As soon as an
    // eighth of the frames is left, which is the last range's, no page gets one unasked.
    let end = 16 * 512;
    let mut short = World::new(end + 511, 0, 8 * 512, 16);
    for page in (end..end + 511).chain(0..6 * 512) {
        short.write(page).unwrap();
    }
    let around_pages = short.counters().faults.around_pages;
    assert!(around_pages > 6 * 512 * 9 / 10);
    for page in 6 * 512..7 * 512 {
        short.write(page).unwrap();
    }
    assert_eq!(short.counters().faults.around_pages, around_pages);
    assert_eq!((short.counters().ranges.large, short.memory.frames.free()), (7, 0));
    assert_eq!(short.write(7 * 512), Err(Refusal::OutOfMemory));
    short.check();
    short.reset();

    // A guest that cannot run out is never short, whatever is left.
    let mut enough = World::new(9 * 512, 0, 10 * 512, 16);
    for page in 0..9 * 512 {
        enough.write(page).unwrap();
    }
    assert_eq!(enough.counters().faults.write_dormant, 5 + 31 + 8 * 32);
}

#[test]
fn an_operation_that_fails_changes_nothing() {
    let mut world = World::new(1024 + 10, 0, 4096, 16);
    for page in [0, 1030] {
        world.space.failing = 2;
        assert_eq!(world.fault(page, Access::Read), Err(Refusal::NotMapped));
        assert_eq!(world.fault(page, Access::ReadWrite), Err(Refusal::NotMapped));
        world.check();
        let counters = world.counters();
        assert_eq!((counters.frames.used, counters.ranges.reserved, counters.zero_pages), (1, 0, 0));
    }
    assert_eq!(world.counters().faults.not_mapped, 4);
    // A range that cannot be made large works in small pages.
    for page in 512..1023 {
        world.write(page).unwrap();
    }
    if world.space.read(1023).is_none() {
        world.write(1023).unwrap();
    }
    let large = world.counters().ranges.large;
    assert_eq!(large, 1);
    for page in 0..511 {
        world.write(page).unwrap();
    }
    world.check();
    world.reset();
}

#[test]
fn a_range_that_cannot_become_large_stays_small() {
    let mut world = World::new(512, 0, 1024, 1);
    for page in 0..511 {
        world.write(page).unwrap();
    }
    // The page itself is mapped, its range is not.
    struct RefusesLarge<'a>(&'a mut FakeSpace);
    impl Space for RefusesLarge<'_> {
        fn map(
            &mut self,
            first: GuestPage,
            frame: Frame,
            count: usize,
            access: Access,
            contents: Contents,
        ) -> Result<(), Error> {
            if count == 512 { Err(Error::NoRoom) } else { self.0.map(first, frame, count, access, contents) }
        }

        fn unmap(&mut self, first: GuestPage, count: usize) -> Result<(), Error> {
            self.0.unmap(first, count)
        }
    }
    let fault = Fault { address: 511 * 4096, access: Access::ReadWrite, source: Source::Vcpu(1) };
    world.memory.fault(&mut RefusesLarge(&mut world.space), fault).unwrap();
    let ranges = world.counters().ranges;
    assert_eq!((ranges.large, ranges.not_promoted, ranges.reserved), (0, 1, 1));
    world.check();
    world.reset();
}

#[test]
fn a_reset_goes_on_after_a_failure_and_in_bounded_steps() {
    let mut world = World::new(64 * 512 + 7, 40, 40 * 512, 16);
    for page in (0..64 * 512).step_by(300) {
        world.write(page).unwrap();
        world.read(page + 1).unwrap();
    }
    world.read(64 * 512 + 1).unwrap();
    world.write(PRIVATE + 39).unwrap();
    world.space.failing = 1;
    assert_eq!(world.memory.reset_step(&mut world.space), Err(Error::NoRoom));
    world.check();
    assert!(world.reset() >= 66 / RESET_CALLS);
    // A reset of nothing is one step, and does not ask for anything.
    let operations = world.space.operations.len();
    assert_eq!(world.reset(), 1);
    assert_eq!(world.space.operations.len(), operations);
    assert_eq!(World::new(0, 0, 1, 1).reset(), 1);
    // Chunks that nothing touched are looked at in bounded numbers as well.
    assert_eq!(World::new(2 * RESET_CHUNKS as u64 * 512, 0, 1, 1).reset(), 2);
}

#[test]
fn the_tables_are_small() {
    let pages = 1 << 20;
    let world = World::new(pages, 0, 1 << 20, 16);
    let bytes = world.memory.table_bytes() as u64;
    assert!(bytes * 10 <= pages * 43, "{bytes}");
}

/// One guest's life: random reads and writes, scattered or in streams, some beside its memory, some calls that fail.
fn live(world: &mut World, random: &mut Random, accesses: u32) {
    let pages = world.pages();
    let mut at = 0;
    let mut stream = 0;
    for step in 0..accesses {
        if stream == 0 {
            at = random.below(pages.len());
            stream = if random.one_in(2) { 1 } else { 1 + random.below(600_u32) };
        }
        stream -= 1;
        let page = pages[at % pages.len()];
        at += 1 + usize::from(random.one_in(9));
        if random.one_in(40) {
            world.space.failing = 1;
        }
        let failing = world.space.failing;
        let is_full = world.memory.frames.free() == 0;
        let not_promoted = world.counters().ranges.not_promoted;
        let answer = if random.one_in(4) { world.read(page) } else { world.write(page) };
        match answer {
            Ok(()) => {
                assert!(failing == world.space.failing || world.counters().ranges.not_promoted > not_promoted)
            }
            Err(Refusal::NotMapped) => assert!(failing > world.space.failing),
            Err(Refusal::OutOfMemory) => assert!(is_full),
            Err(refusal) => panic!("{refusal:?}"),
        }
        if random.one_in(20) {
            let page = pages[random.below(pages.len())];
            if world.space.mapped.get(&page).is_some_and(|(_, access)| *access == Access::ReadWrite) {
                assert_eq!(world.fault(page, Access::ReadWrite), Ok(()), "spurious");
            }
        }
        if step % 256 == 0 {
            world.check();
        }
    }
    world.space.failing = 0;
    world.check();
    for page in pages {
        if random.one_in(3) {
            world.read(page).unwrap();
        }
    }
}

#[test]
fn any_life_of_a_guest_leaves_all_frames_free() {
    let mut broken = 0;
    let mut large = 0;
    let mut full = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let pages = 1 + random.below(6 * 512);
        let private = if random.one_in(2) { 0 } else { random.below(700) };
        // From far too few frames to more than enough.
        let frames = u32::try_from(1 + random.below((pages + private) * 3 / 2 + 1024)).unwrap();
        let max_pages = [1, 2, 16, 64][random.below(4_usize)];
        let mappable: fn(u32) -> bool = if random.one_in(3) { |block| block % 3 != 1 } else { |_| true };
        let mut world = World::with_blocks(pages, private, frames, max_pages, mappable);
        for _ in 0..3 {
            let accesses = 500 + random.below(8000_u32);
            live(&mut world, &mut random, accesses);
            large += world.counters().ranges.large;
            world.reset();
        }
        broken += world.counters().ranges.broken;
        full += world.counters().faults.out_of_memory;
    }
    // The seeds reach what they are for.
    assert!(broken > 10 && large > 20 && full > 1000, "{broken} {large} {full}");
}
