//! Tests of guest memory: what can be mapped, large pages, zeroing, tables, and who must forget what.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use ipc::abi::{
    Error, GUEST_ACCESS_NONE, GUEST_ACCESS_READ, GUEST_ACCESS_WRITE, GUEST_ZERO, MAX_ZERO_PAGES, Syscall,
};
use ipc::vcpu::{HIGH_MEMORY_START, LOW_MEMORY_END, PRIVATE_START};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::address::{FrameNumber, GuestPhysAddr};
use crate::frames::FrameRange;
use crate::guest::{TableStock, Tables, ranges, tables_needed};
use crate::ids::{CoreId, ServiceId};
use crate::machine::Machine;
use crate::paging::nested::GuestAccess;
use crate::paging::npt::NptFormat;
use crate::paging::{ENTRIES, Entry, Format, Level, Mapping, PageSize, PageTable, Stale, TableMemory};
use crate::state::State;
use crate::svm::vmcb::code;
use crate::testing::FakeMachine;
use crate::testing::guest::{MEMORY, Node, PAGES, POOL, PRIVATE_PAGES, TABLES, first};

const CORE: CoreId = CoreId(0);
const PAGE: u64 = 4096;
const PRIVATE: u64 = PRIVATE_START / PAGE;

/// The memory's owner is current on core 0.
fn node(cores: u8, vcpus: u8) -> Node {
    let mut n = Node::running(cores, vcpus);
    n.interrupted(CORE, ipc::vcpu::Event::NONE, |state, m, core| {
        state.thread_mut(first(MEMORY)).core = core;
        state.raise(m, core, MEMORY, 1);
        state.reschedule(m, core);
    });
    assert_eq!(n.current(CORE), Some(first(MEMORY)));
    n
}

/// Its call.
fn map(n: &mut Node, page: u64, index: u64, pages: u64, access: u64) -> u64 {
    let guest = n.guest_handle(CORE);
    n.syscall(CORE, Syscall::GuestMap, |r| {
        (r.rdi, r.rsi, r.rdx, r.r8, r.r9) = (guest, page, index, pages, access);
    })
}

fn lookup(n: &mut Node, page: u64) -> Option<Mapping<GuestAccess>> {
    let guest = n.state.guest.as_mut().unwrap();
    let tables = Tables { m: &mut n.m, stock: &mut guest.stock };
    guest.nested.lookup(&tables, GuestPhysAddr(page * PAGE))
}

fn generation(n: &Node) -> u64 {
    n.state.guest.as_ref().unwrap().generation
}

/// The pool's frame with a number.
fn frame(index: u64) -> FrameNumber {
    let in_first = POOL[0].pages;
    let (run, offset) = if index < in_first { (POOL[0], index) } else { (POOL[1], index - in_first) };
    FrameNumber(run.first.0 + offset)
}

#[test]
fn pages_are_mapped_as_asked_and_taken_away() {
    let mut n = node(1, 1);
    assert_eq!(map(&mut n, 5, 100, 2, GUEST_ACCESS_READ), 0);
    assert_eq!(map(&mut n, PRIVATE + 3, 7, 1, GUEST_ACCESS_WRITE), 0);
    let small = |frame, attributes| Some(Mapping { frame, size: PageSize::Small, attributes });
    assert_eq!(lookup(&mut n, 5), small(frame(100), GuestAccess::Read));
    assert_eq!(lookup(&mut n, 6), small(frame(101), GuestAccess::Read));
    assert_eq!(lookup(&mut n, PRIVATE + 3), small(frame(7), GuestAccess::ReadWrite));
    assert_eq!((lookup(&mut n, 4), lookup(&mut n, 7), generation(&n)), (None, None, 0));
    // More or less of a right, another frame, nothing: each is a change. The same again is none.
    assert_eq!(map(&mut n, 5, 100, 1, GUEST_ACCESS_WRITE), 0);
    assert_eq!((lookup(&mut n, 5), generation(&n)), (small(frame(100), GuestAccess::ReadWrite), 1));
    assert_eq!(map(&mut n, 5, 100, 1, GUEST_ACCESS_WRITE), 0);
    assert_eq!(generation(&n), 1);
    assert_eq!(map(&mut n, 6, 9, 1, GUEST_ACCESS_READ), 0);
    assert_eq!(map(&mut n, 0, u64::MAX, 512, GUEST_ACCESS_NONE), 0);
    assert_eq!((lookup(&mut n, 5), lookup(&mut n, 6), generation(&n)), (None, None, 3));
    assert_eq!(map(&mut n, 0, 0, 512, GUEST_ACCESS_NONE), 0);
    assert_eq!(generation(&n), 3);
}

#[test]
fn what_the_guest_or_the_pool_does_not_have_is_refused_and_changes_nothing() {
    let mut n = node(1, 1);
    let frames = POOL.iter().map(|run| run.pages).sum::<u64>();
    let (gone, bad) = (Error::NoSuchItem, Error::Malformed);
    let write = GUEST_ACCESS_WRITE;
    for (page, index, pages, access, error) in [
        (PAGES, 0, 1, write, gone),
        (PAGES - 1, 0, 2, write, gone),
        (0, 0, 0, write, bad),
        (0, 0, 513, write, bad),
        (0, 0, u64::MAX, write, bad),
        (u64::MAX, 0, 1, write, gone),
        (u64::MAX - 5, 0, 512, write, gone),
        (1 << 52, 0, 1, write, gone),
        (PRIVATE - 1, 0, 1, write, gone),
        (PRIVATE, 0, u64::from(PRIVATE_PAGES) + 1, write, gone),
        (PRIVATE + u64::from(PRIVATE_PAGES), 0, 1, GUEST_ACCESS_NONE, gone),
        (HIGH_MEMORY_START / PAGE, 0, 1, write, gone),
        (0, frames, 1, write, gone),
        (0, frames - 1, 2, write, gone),
        (0, u64::MAX, 1, write, gone),
        (0, u64::MAX, 512, write, gone),
        // The pool's pieces do not touch.
        (0, POOL[0].pages - 1, 2, write, gone),
        (0, 0, 1, 3, bad),
        (0, 0, 1, 8 | write, bad),
        (0, 0, 1, u64::MAX, bad),
        (0, 0, MAX_ZERO_PAGES + 1, GUEST_ZERO | write, bad),
        (0, 0, 1, GUEST_ZERO, bad),
    ] {
        let status = map(&mut n, page, index, pages, access);
        assert_eq!(status, error.status(), "{page:#x} {index:#x} {pages} {access}");
    }
    assert_eq!((lookup(&mut n, 0), generation(&n)), (None, 0));
    assert_eq!(map(&mut n, PAGES - 1, POOL[0].pages, 1, write), 0);
    assert_eq!(map(&mut n, 0, frames - 512, 512, write), 0);
    assert_eq!(lookup(&mut n, PAGES - 1).unwrap().frame, POOL[1].first);
}

#[test]
fn frames_are_zeroed_before_they_are_seen_and_no_others() {
    let mut n = node(1, 1);
    let around = |n: &mut Node, index: u64| n.m.at(frame(index).start())[..4096].to_vec();
    for index in 0..MAX_ZERO_PAGES + 4 {
        n.m.at(frame(index).start())[..4096].fill(0x5a);
    }
    assert_eq!(map(&mut n, 0, 1, MAX_ZERO_PAGES, GUEST_ACCESS_READ | GUEST_ZERO), 0);
    for index in 0..MAX_ZERO_PAGES + 4 {
        let value = if (1..=MAX_ZERO_PAGES).contains(&index) { 0 } else { 0x5a };
        assert!(around(&mut n, index).iter().all(|&byte| byte == value), "frame {index}");
    }
    assert_eq!(map(&mut n, 100, MAX_ZERO_PAGES + 1, 1, GUEST_ACCESS_READ), 0);
    assert_eq!(around(&mut n, MAX_ZERO_PAGES + 1)[0], 0x5a);
}

#[test]
fn aligned_pages_become_a_large_one_and_split_again() {
    let mut n = node(1, 1);
    let size = |n: &mut Node, page| lookup(n, page).map(|m| m.size);
    let write = GUEST_ACCESS_WRITE;
    assert_eq!(map(&mut n, 512, 0, 512, write), 0);
    assert_eq!(size(&mut n, 700), Some(PageSize::Large));
    assert_eq!(map(&mut n, 1024, 1, 500, write), 0);
    assert_eq!(size(&mut n, 1024), Some(PageSize::Small));
    // One page of the large one goes: the others stay.
    assert_eq!(map(&mut n, 700, 0, 1, GUEST_ACCESS_NONE), 0);
    assert_eq!(size(&mut n, 700), None);
    assert_eq!(lookup(&mut n, 701).map(|m| (m.frame, m.size)), Some((frame(189), PageSize::Small)));
    assert_eq!(map(&mut n, 700, 188, 1, GUEST_ACCESS_READ), 0);
    // All of them at once are a large page again; what is not aligned alike is not.
    assert_eq!(map(&mut n, 512, 0, 512, write), 0);
    assert_eq!(size(&mut n, 700), Some(PageSize::Large));
    assert_eq!(map(&mut n, 512, POOL[0].pages + 1, 512, write), 0);
    assert_eq!(size(&mut n, 700), Some(PageSize::Small));
    assert_eq!(map(&mut n, 512, 0, 512, GUEST_ACCESS_NONE), 0);
    assert_eq!(size(&mut n, 700), None);
}

#[test]
fn who_may_use_a_stale_translation_is_expelled_and_flushes() {
    // Core 0: the memory's owner; 1: a guest; 2: a thread of the platform's; 3: another service; 4: nothing.
    let mut n = node(5, 2);
    let wake = |n: &mut Node, service: ServiceId, core: u8| {
        n.state.thread_mut(first(service)).core = CoreId(core);
        n.interrupted(CoreId(core), ipc::vcpu::Event::NONE, |state: &mut State, m, core| {
            state.raise(m, core, service, 1);
            state.reschedule(m, core);
        });
        assert_eq!(n.current(CoreId(core)), Some(first(service)));
    };
    wake(&mut n, crate::testing::guest::PLATFORM, 2);
    wake(&mut n, crate::testing::guest::PLACEMENT, 3);
    assert!(n.guest(CoreId(1)).is_some() && n.current(CoreId(4)).is_none());
    assert_eq!(map(&mut n, 5, 0, 1, GUEST_ACCESS_READ), 0);
    assert!(n.m.expelled.is_empty(), "nothing was there before");
    assert_eq!(map(&mut n, 5, 0, 1, GUEST_ACCESS_WRITE), 0);
    assert_eq!((n.m.expelled.as_slice(), generation(&n)), ([1, 2].as_slice(), 1));
    // Each flushes when it goes on, and once.
    let flushes = |n: &mut Node| n.state.vcpus[1].hardware.vmcb.control.tlb_control != 0;
    n.timer(CoreId(1));
    assert!(n.guest(CoreId(1)).is_some() && flushes(&mut n));
    n.timer(CoreId(1));
    assert!(!flushes(&mut n));
    let root = n.state.service(crate::testing::guest::PLATFORM).root;
    let switches = n.m.spaces.len();
    n.timer(CoreId(2));
    assert_eq!(n.m.spaces[switches..], [root]);
    n.timer(CoreId(2));
    assert_eq!(n.m.spaces.len(), switches + 1);
    // The one whose time the owner runs on need not be told.
    n.receive(CORE);
    assert!(n.guest(CORE).is_some());
    n.exit(CORE, code::NESTED_PAGE_FAULT, [6, 5 * PAGE]);
    let expelled = n.m.expelled.len();
    assert_eq!(map(&mut n, 5, 9, 1, GUEST_ACCESS_WRITE), 0);
    assert_eq!(n.m.expelled[expelled..], [1, 2]);
    assert_eq!(generation(&n), 2);
}

#[test]
fn random_calls_agree_with_a_model_and_never_want_for_tables() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut n = node(2, 2);
    let mut model: BTreeMap<u64, (FrameNumber, GuestAccess)> = BTreeMap::new();
    let all: Vec<u64> = (0..PAGES).chain(PRIVATE..PRIVATE + u64::from(PRIVATE_PAGES)).collect();
    let needed = tables_needed(&ranges(PAGES, PRIVATE_PAGES));
    for step in 0..6000u32 {
        let private = random.random_bool(0.1);
        let (low, end) = if private { (PRIVATE, PRIVATE + 16) } else { (0, PAGES) };
        let whole = !private && random.random_bool(0.4);
        let page = if whole { random.random_range(0..4) * 512 } else { random.random_range(low..end) };
        let pages = if whole { 512 } else { random.random_range(1..=(end - page).min(40)) };
        let index = if random.random_bool(0.6) {
            (random.random_range(0..4) * 512 + page % 512).min(2560 - pages)
        } else {
            random.random_range(0..=2560 - pages)
        };
        let access = random.random_range(0..3);
        let before = generation(&n);
        let status = map(&mut n, page, index, pages, access);
        let in_one_piece = index >= 512 || index + pages <= 512;
        if access != GUEST_ACCESS_NONE && !in_one_piece {
            assert_eq!(status, Error::NoSuchItem.status());
            continue;
        }
        assert_eq!(status, 0);
        let mut changed = false;
        for offset in 0..pages {
            let wanted = match access {
                GUEST_ACCESS_READ => Some((frame(index + offset), GuestAccess::Read)),
                GUEST_ACCESS_WRITE => Some((frame(index + offset), GuestAccess::ReadWrite)),
                _ => None,
            };
            let old = match wanted {
                Some(new) => model.insert(page + offset, new),
                None => model.remove(&(page + offset)),
            };
            changed |= old.is_some() && old != wanted;
        }
        let counted = generation(&n) - before;
        assert!(counted == u64::from(changed) || whole && counted == 1, "{counted} {changed}");
        if step % 16 == 0 || step > 5900 {
            for &page in &all {
                let found = lookup(&mut n, page).map(|m| (m.frame, m.attributes));
                assert_eq!(found, model.get(&page).copied(), "page {page:#x} after step {step}");
            }
        }
    }
    // What follows the tables' frames is untouched.
    let after = FrameNumber(TABLES.0 + needed).start();
    assert!(n.m.at(after)[..0x10_0000].iter().all(|&byte| byte == 0));
}

/// Tables whose taking and giving back is watched.
struct Watched<'a> {
    tables: Tables<'a, FakeMachine>,
    root: Option<FrameNumber>,
    retired: u64,
    /// In this call, after which alone everybody flushes.
    retired_now: bool,
}

impl Watched<'_> {
    fn linked(&self) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut left: Vec<(FrameNumber, Level)> =
            self.root.map(|root| (root, Level::Four)).into_iter().collect();
        while let Some((table, level)) = left.pop() {
            assert!(found.insert(table.0), "{table:?} is linked twice");
            for index in 0..ENTRIES {
                let entry = NptFormat::decode(self.tables.read_entry(table, index), level);
                if let (Entry::Table(next), Some(below)) = (entry, level.below()) {
                    left.push((next, below));
                }
            }
        }
        found
    }
}

impl TableMemory for Watched<'_> {
    fn read_entry(&self, table: FrameNumber, index: usize) -> u64 {
        self.tables.read_entry(table, index)
    }

    fn write_entry(&mut self, table: FrameNumber, index: usize, entry: u64) {
        self.tables.write_entry(table, index, entry);
    }

    fn allocate_table(&mut self) -> Option<FrameNumber> {
        assert!(!self.retired_now, "a table is used again before anybody flushed");
        let table = self.tables.allocate_table()?;
        assert!(!self.linked().contains(&table.0), "{table:?} is in use");
        assert!((0..ENTRIES).all(|index| self.read_entry(table, index) == 0));
        Some(table)
    }

    fn retire_table(&mut self, table: FrameNumber) {
        assert!(!self.linked().contains(&table.0), "{table:?} is still linked");
        let kept: Vec<u64> = (1..ENTRIES).map(|index| self.read_entry(table, index)).collect();
        self.tables.retire_table(table);
        assert_eq!(self.read_entry(table, 0) & 1, 0, "a processor that still walks it finds nothing there");
        assert!((1..ENTRIES).all(|index| self.read_entry(table, index) == kept[index - 1]));
        (self.retired, self.retired_now) = (self.retired + 1, true);
    }
}

#[test]
fn a_table_is_used_again_only_after_it_was_unlinked_and_flushed() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut m = FakeMachine::new();
    let needed = tables_needed(&[(0, 4 * 512)]);
    let mut stock = TableStock::new(FrameRange { first: TABLES, pages: needed });
    let tables = Tables { m: &mut m, stock: &mut stock };
    let mut memory = Watched { tables, root: None, retired: 0, retired_now: false };
    let table = PageTable::<NptFormat>::new(&mut memory).unwrap();
    memory.root = Some(table.root());
    for _ in 0..800 {
        let large = random.random_range(0..4) * 512;
        let (page, pages) = match random.random_range(0..3) {
            0 => (large, 512),
            1 => (large + random.random_range(0..512), random.random_range(1..512)),
            _ => (large + random.random_range(0..512), 1),
        };
        let pages = pages.min(4 * 512 - page);
        let access = if random.random() { GuestAccess::Read } else { GuestAccess::ReadWrite };
        let shift = if random.random_bool(0.8) { 0x1_0000 } else { 0x1_0001 };
        let to = random.random_bool(0.8).then_some((FrameNumber(shift + page), access));
        memory.retired_now = false;
        let stale = table.replace(&mut memory, GuestPhysAddr(page * PAGE), to, pages).unwrap();
        assert!(!memory.retired_now || stale == Stale::Something, "nobody would flush");
    }
    assert!(memory.retired > 50);
}

#[test]
fn no_range_needs_more_tables_than_were_set_aside_and_some_need_all() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let low_end = LOW_MEMORY_END / PAGE;
    for round in 0..40 {
        let pages = match round {
            0 => 1,
            1 => low_end,
            2 => low_end + 1,
            _ => random.random_range(1..(1 << 20) - 1000),
        };
        let private = if round % 3 == 0 { 0 } else { random.random_range(1..2000) };
        let ranges = ranges(pages, private);
        assert_eq!(ranges.iter().map(|(_, pages)| pages).sum::<u64>(), pages + u64::from(private));
        let needed = tables_needed(&ranges);
        // A page in each 2 MiB needs every table.
        let touched = || {
            let starts = |(first, pages): (u64, u64)| {
                (first..first + pages).filter(move |p| p % 512 == 0 || *p == first)
            };
            ranges.into_iter().flat_map(starts)
        };
        for (tables, enough) in [(needed, true), (needed - 1, false)] {
            let mut m = FakeMachine::new();
            let mut stock = TableStock::new(FrameRange { first: FrameNumber(1), pages: tables });
            let memory = &mut Tables { m: &mut m, stock: &mut stock };
            let table = PageTable::<NptFormat>::new(memory).unwrap();
            assert!(table.second_table(memory, GuestPhysAddr(0)).is_some());
            let to = Some((FrameNumber(0x77), GuestAccess::Read));
            let fits = touched().all(|page| table.replace(memory, GuestPhysAddr(page * PAGE), to, 1).is_ok());
            assert_eq!(fits, enough, "{pages} pages, {private} private, {tables} tables");
        }
    }
}

#[test]
fn the_tables_are_the_windows_too() {
    let mut n = node(1, 1);
    assert_eq!(map(&mut n, 3, 4, 1, GUEST_ACCESS_WRITE), 0);
    let guest = n.state.guest.as_mut().unwrap();
    let tables = &mut Tables { m: &mut n.m, stock: &mut guest.stock };
    let second = guest.nested.second_table(tables, GuestPhysAddr(0)).unwrap();
    // A table whose entry for the window is that one finds the page as it is.
    let root = FrameNumber(0x700);
    tables.m.write_u64(root.start(), second.start().0 | 7);
    let view = PageTable::<NptFormat>::from_root(root);
    assert_eq!(view.lookup(tables, GuestPhysAddr(3 * PAGE)).map(|m| m.frame), Some(frame(4)));
    assert_eq!(crate::guest::window_address(crate::address::VirtAddr(0)), None);
}
