//! The walker against a model: a map from each page of 4 KiB to its frame and attributes.

extern crate std;
use std::{collections::BTreeMap, format, vec::Vec};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::ept::EptFormat;
use super::host::{Access, Cache, HostAttributes, HostFormat, Owner};
use super::nested::GuestAccess;
use super::npt::NptFormat;
use super::*;
use crate::address::VirtAddr;

/// Tables by their order; frame 1,000 is the first.
struct Tables {
    tables: Vec<[u64; ENTRIES]>,
    limit: usize,
    retired: Vec<FrameNumber>,
}

const FIRST_TABLE: u64 = 1000;

impl TableMemory for Tables {
    fn read_entry(&self, table: FrameNumber, index: usize) -> u64 {
        self.tables[(table.0 - FIRST_TABLE) as usize][index]
    }

    fn write_entry(&mut self, table: FrameNumber, index: usize, entry: u64) {
        self.tables[(table.0 - FIRST_TABLE) as usize][index] = entry;
    }

    fn allocate_table(&mut self) -> Option<FrameNumber> {
        if self.tables.len() == self.limit {
            return None;
        }
        self.tables.push([0; ENTRIES]);
        Some(FrameNumber(FIRST_TABLE + self.tables.len() as u64 - 1))
    }

    fn retire_table(&mut self, table: FrameNumber) {
        assert!(!self.retired.contains(&table));
        self.retired.push(table);
    }
}

type Host = PageTable<HostFormat>;

fn tables<F: Format>(limit: usize) -> (Tables, PageTable<F>) {
    let mut memory = Tables { tables: Vec::new(), limit, retired: Vec::new() };
    let table = PageTable::new(&mut memory).unwrap();
    (memory, table)
}

const DATA: HostAttributes =
    HostAttributes { access: Access::ReadWrite, owner: Owner::User, cache: Cache::WriteBack };
const CODE: HostAttributes = HostAttributes { access: Access::ReadExecute, ..DATA };
const DEVICE: HostAttributes =
    HostAttributes { access: Access::ReadWrite, owner: Owner::Kernel, cache: Cache::Uncached };
const CONSTANTS: HostAttributes = HostAttributes { access: Access::Read, ..DEVICE };
const ALL: [HostAttributes; 4] = [DATA, CODE, DEVICE, CONSTANTS];

#[test]
fn entries_say_what_the_manuals_say() {
    let page =
        |attributes, level| HostFormat::encode(Entry::Page(FrameNumber(0x1_4000_0000), attributes), level);
    assert_eq!(page(DATA, Level::One), 0x8000_1400_0000_0067);
    assert_eq!(page(CODE, Level::Two), 0x0000_1400_0000_00e5);
    assert_eq!(page(DEVICE, Level::Three), 0x8000_1400_0000_01fb);
    assert_eq!(page(CONSTANTS, Level::One), 0x8000_1400_0000_0179);
    assert_eq!(HostFormat::encode(Entry::Table(FrameNumber(5)), Level::Four), 0x5027);
    for level in [Level::One, Level::Two, Level::Three] {
        for attributes in ALL {
            let entry = Entry::Page(FrameNumber(0xf_ffff_c000_0000 >> 12), attributes);
            assert_eq!(HostFormat::decode(HostFormat::encode(entry, level), level), entry);
        }
    }
    for level in [Level::Two, Level::Three, Level::Four] {
        let entry = Entry::Table(FrameNumber(0xff_ffff_ffff));
        assert_eq!(HostFormat::decode(HostFormat::encode(entry, level), level), entry);
    }
    assert_eq!(HostFormat::decode(!1, Level::One), Entry::Absent);
}

#[test]
fn large_pages_are_used_and_split() {
    let (mut memory, table): (_, Host) = tables(16);
    let base = VirtAddr(0xffff_8000_0000_0000);
    let gib = (1 << 30) / PAGE;
    // From one 4 KiB page below 1 GiB on, so that every size is used.
    let start = VirtAddr(base.0 + (1 << 30) - (2 << 20) - PAGE);
    let first = FrameNumber(2 * gib - 513);
    table.map(&mut memory, start, first, 1 + 512 + gib + 512 + 1, DEVICE, PageSize::Huge).unwrap();
    let at = |memory: &Tables, offset: u64| table.lookup(memory, VirtAddr(base.0 + offset));
    let sizes =
        [(1 << 30) - (2 << 20) - 1, (1 << 30) - 1, (1 << 30), (2 << 30) - 1, 2 << 30, (2 << 30) + (2 << 20)];
    let got: Vec<_> = sizes.iter().map(|offset| at(&memory, *offset).unwrap().size).collect();
    let (small, large, huge) = (PageSize::Small, PageSize::Large, PageSize::Huge);
    assert_eq!(got, [small, large, huge, huge, large, small]);
    assert_eq!(at(&memory, (1 << 30) + 0x12345).unwrap().frame, FrameNumber(2 * gib + 0x12));
    assert_eq!(at(&memory, (2 << 30) + (2 << 20) + PAGE), None);
    assert_eq!(memory.tables.len(), 6);

    // One page in the middle of the 1 GiB page: two tables more, and all around it as it was.
    let hole = VirtAddr(base.0 + (1 << 30) + (4 << 20) + PAGE);
    assert_eq!(table.replace(&mut memory, hole, None, 1), Ok(Stale::Something));
    assert_eq!(memory.tables.len(), 8);
    for page in 0..gib {
        let address = VirtAddr(base.0 + (1 << 30) + page * PAGE);
        let expected = (address != hole).then_some((FrameNumber(2 * gib + page), DEVICE));
        assert_eq!(table.lookup(&memory, address).map(|m| (m.frame, m.attributes)), expected);
    }
    // Without room for tables a split fails and changes nothing.
    memory.limit = 8;
    let (page, frame) = (VirtAddr(base.0 + (2 << 30) + PAGE), FrameNumber(3 * gib + 1));
    let error = table.replace(&mut memory, page, Some((frame, CODE)), 1).unwrap_err();
    assert_eq!(error, PagingError::NoTables(page));
    assert_eq!(at(&memory, (2 << 30) + PAGE).unwrap().attributes, DEVICE);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut memory, table): (_, Host) = tables(8);
    let mut map =
        |at: u64, pages, size| table.map(&mut memory, VirtAddr(at), FrameNumber(0), pages, DATA, size);
    let small = PageSize::Small;
    assert_eq!(map(0x1001, 1, small), Err(PagingError::BadAddress(VirtAddr(0x1001))));
    assert_eq!(map(1 << 47, 1, small), Err(PagingError::BadAddress(VirtAddr(1 << 47))));
    assert_eq!(
        map(0xffff_ffff_ffff_f000, 2, small),
        Err(PagingError::BadRange(VirtAddr(0xffff_ffff_ffff_f000)))
    );
    assert_eq!(map(0, u64::MAX, small), Err(PagingError::BadRange(VirtAddr(0))));
    assert_eq!(map(0xffff_ffff_ffff_f000, 1, small), Ok(()));
    assert_eq!(map(0x20_0000, 512, PageSize::Large), Ok(()));
    assert_eq!(map(0x20_0000, 512, small), Ok(()), "the same in pages of another size is the same");
    let error = map(0x20_1000, 1, small).unwrap_err();
    assert_eq!(format!("{error}"), "something else is mapped at VirtAddr(201000)");
    assert_eq!(table.lookup(&memory, VirtAddr(1 << 47)), None);
}

#[test]
fn address_spaces_share_the_kernels_half_alone() {
    let (mut memory, kernel): (_, Host) = tables(16);
    let (high, low) = (VirtAddr(0xffff_8000_0000_0000), VirtAddr(0));
    for at in [high, low] {
        kernel.map(&mut memory, at, FrameNumber(7), 1, DEVICE, PageSize::Small).unwrap();
    }
    let service = Host::new(&mut memory).unwrap();
    service.share_upper_half(&mut memory, &kernel);
    kernel.replace(&mut memory, high, Some((FrameNumber(7), CONSTANTS)), 1).unwrap();
    assert_eq!(service.lookup(&memory, high).unwrap().attributes, CONSTANTS);
    assert_eq!(service.lookup(&memory, low), None);
}

/// Pages of the window that the random test looks at: 8 MiB across a boundary of 1 GiB.
const WINDOW: u64 = 2048;
const BASE: u64 = (1 << 30) - (4 << 20);

fn address<F: Format>(page: u64) -> F::Address {
    F::address(BASE + page * PAGE)
}

/// Random pages: often whole large ones.
fn pick(random: &mut StdRng) -> core::ops::Range<u64> {
    if random.random_bool(0.4) {
        let first = random.random_range(0..4);
        first * 512..random.random_range(first + 1..=4) * 512
    } else {
        let first = random.random_range(0..WINDOW);
        first..random.random_range(first..=WINDOW.min(first + 700))
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    const GUEST: [GuestAccess; 2] = [GuestAccess::Read, GuestAccess::ReadWrite];
    agree_with_the_model::<HostFormat>(&ALL);
    agree_with_the_model::<NptFormat>(&GUEST);
    agree_with_the_model::<EptFormat>(&GUEST);
}

fn agree_with_the_model<F: Format<Address: PartialEq>>(all: &[F::Attributes]) {
    let mut random = StdRng::seed_from_u64(0x5041_4745);
    let mut outcomes = BTreeMap::new();
    for round in 0..80 {
        let (mut memory, table) = tables::<F>(if round % 4 == 0 { 6 } else { 64 });
        let mut model: BTreeMap<u64, (u64, F::Attributes)> = BTreeMap::new();
        for _ in 0..30 {
            let range = pick(&mut random);
            let pages = range.end - range.start;
            let attributes = all[random.random_range(0..all.len())];
            let shift = if random.random_bool(0.7) { 0x4_0000 } else { 0x4_0001 };
            let size = [PageSize::Small, PageSize::Large, PageSize::Huge][random.random_range(0..3)];
            let operation = random.random_range(0..4);
            let from = address::<F>(range.start);
            let outcome = match operation {
                0 => table.replace(&mut memory, from, None, pages).map(drop),
                1 => {
                    let to = FrameNumber(range.start + shift);
                    table.replace(&mut memory, from, Some((to, attributes)), pages).map(drop)
                }
                _ => {
                    let to = FrameNumber(range.start + shift);
                    table.map(&mut memory, from, to, pages, attributes, size)
                }
            };
            // The model does it page by page, up to where the walker says that it had no table left.
            let mut expected = Ok(());
            for page in range {
                if outcome == Err(PagingError::NoTables(address::<F>(page))) {
                    expected = outcome;
                    break;
                }
                let wanted = (page + shift, attributes);
                match (operation, model.get(&page)) {
                    (0, _) => drop(model.remove(&page)),
                    (1, _) => drop(model.insert(page, wanted)),
                    (_, Some(old)) if *old != wanted => {
                        expected = Err(PagingError::AlreadyMapped(address::<F>(page)));
                    }
                    _ => drop(model.insert(page, wanted)),
                }
                if expected.is_err() {
                    break;
                }
            }
            assert_eq!(outcome, expected);
            let kind = outcome.map_err(|error| core::mem::discriminant(&error));
            *outcomes.entry(format!("{operation} {kind:?}")).or_insert(0) += 1;
            for page in 0..WINDOW {
                let got = table.lookup(&memory, address::<F>(page)).map(|m| (m.frame.0, m.attributes));
                assert_eq!(got, model.get(&page).copied(), "page {page}");
            }
        }
    }
    // Each operation went well and failed in every way that it can.
    assert_eq!(outcomes.len(), 2 + 2 + 2 * 3, "{outcomes:?}");
}

#[test]
fn a_large_page_takes_the_place_of_its_table_and_back() {
    let (mut memory, table) = tables::<NptFormat>(8);
    let at = |page: u64| NptFormat::address(0x4000_0000 + page * PAGE);
    let read_write = |frame: u64| Some((FrameNumber(frame), GuestAccess::ReadWrite));
    let zeros = Some((FrameNumber(9), GuestAccess::Read));
    assert_eq!(table.replace(&mut memory, at(0), zeros, 1), Ok(Stale::Nothing));
    assert_eq!(table.replace(&mut memory, at(0), zeros, 1), Ok(Stale::Nothing), "the same again");
    assert_eq!(table.replace(&mut memory, at(0), read_write(0x200), 1), Ok(Stale::Something));
    for page in 1..512 {
        assert_eq!(table.replace(&mut memory, at(page), read_write(0x200 + page), 1), Ok(Stale::Nothing));
    }
    let used = memory.tables.len();
    assert_eq!(table.replace(&mut memory, at(0), read_write(0x200), 512), Ok(Stale::Something));
    assert_eq!(memory.retired.len(), 1);
    assert_eq!(table.lookup(&memory, at(17)).unwrap().size, PageSize::Large);
    // Frames that are not aligned stay in small pages.
    assert_eq!(table.replace(&mut memory, at(512), read_write(0x401), 512), Ok(Stale::Nothing));
    assert_eq!(table.lookup(&memory, at(513)).map(|m| (m.frame.0, m.size)), Some((0x402, PageSize::Small)));
    // A part that changes splits it; taking all of it away gives the table back.
    assert_eq!(table.replace(&mut memory, at(17), None, 1), Ok(Stale::Something));
    assert_eq!(table.lookup(&memory, at(17)), None);
    assert_eq!(table.lookup(&memory, at(18)).map(|m| m.frame.0), Some(0x212));
    assert_eq!(table.replace(&mut memory, at(0), None, 512), Ok(Stale::Something));
    assert_eq!((memory.tables.len(), memory.retired.len()), (used + 2, 2));
    assert_eq!(table.replace(&mut memory, at(0), None, 512), Ok(Stale::Nothing));
}
