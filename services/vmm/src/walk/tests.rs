use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::vec::Vec;

use super::control::CR4_PSE;
use super::format::LARGE;
use super::reference::{self, Miss};
use super::*;
use crate::memory::testing::Ram;

const PROCESSOR: Processor = Processor { physical_bits: 40, gigabyte_pages: true };
const LONG: Mode = Mode {
    cr0: 1 | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE | CR4_PGE,
    efer: EFER_LMA | EFER_NXE,
    cs_base: 0,
    cs_attributes: 0,
    cpl: 0,
};
const NX: u64 = NO_EXECUTE;

fn put(ram: &mut Ram, at: u64, entry: u64) {
    ram.write(GuestPhysAddr(at), &entry.to_le_bytes()).unwrap();
}

fn get(ram: &Ram, at: u64) -> u64 {
    ram.get(GuestPhysAddr(at)).unwrap()
}

/// Tables at 0x1000, 0x2000, 0x3000 and 0x4000; the address 0x5678 of the first 2 MiB leads to 0xa678.
fn four_levels(page: u64) -> Ram {
    let mut ram = Ram::new(0x6000);
    put(&mut ram, 0x1000, 0x2007);
    put(&mut ram, 0x2000, 0x3007);
    put(&mut ram, 0x3000, 0x4007);
    put(&mut ram, 0x4028, 0xa000 | page);
    ram
}

fn at(ram: &mut Ram, mode: &Mode, privilege: Privilege, access: Access) -> Result<Translation, WalkError> {
    translate(ram, PROCESSOR, mode, privilege, GuestVirtAddr(0x5678), access)
}

fn fault(error_code: u32) -> Result<Translation, WalkError> {
    Err(WalkError::PageFault { error_code })
}

use Access::{Execute, Read, Write};
use Privilege::{Supervisor, SupervisorAc, User};

#[test]
fn a_page_is_found_and_marked() {
    let mut ram = four_levels(0x107);
    let page = at(&mut ram, &LONG, User, Read).unwrap();
    let expected = Translation {
        address: GuestPhysAddr(0xa678),
        size: PageSize::Kib4,
        writable: true,
        user: true,
        executable: true,
        global: true,
        dirty: false,
        pat_index: 0,
    };
    assert_eq!(page, expected);
    let entries = |ram: &Ram| [0x1000, 0x2000, 0x3000, 0x4028].map(|at| get(ram, at) & 0xfff);
    assert_eq!(entries(&ram), [0x27, 0x27, 0x27, 0x127]);
    assert_eq!(at(&mut ram, &LONG, User, Write), Ok(Translation { dirty: true, ..expected }));
    assert_eq!(entries(&ram), [0x27, 0x27, 0x27, 0x167]);
    assert_eq!(at(&mut ram, &LONG, User, Execute), Ok(Translation { dirty: true, ..expected }));
    let without = Mode { cr4: CR4_PAE, ..LONG };
    assert!(!at(&mut ram, &without, User, Read).unwrap().global);
}

#[test]
fn large_pages_have_their_sizes_and_memory_types() {
    let mut ram = four_levels(0);
    put(&mut ram, 0x3000, 0x60_1000 | 0x9f);
    let page = at(&mut ram, &LONG, Supervisor, Write).unwrap();
    assert_eq!((page.address.0, page.size, page.pat_index), (0x60_5678, PageSize::Mib2, 7));
    assert_eq!(get(&ram, 0x3000), 0x60_10ff);
    put(&mut ram, 0x2000, 0x8000_0000 | 0x8b);
    let page = at(&mut ram, &LONG, Supervisor, Read).unwrap();
    assert_eq!((page.address.0, page.size, page.pat_index), (0x8000_5678, PageSize::Gib1, 1));
    let old = Processor { gigabyte_pages: false, ..PROCESSOR };
    let result = translate(&mut ram, old, &LONG, Supervisor, GuestVirtAddr(0), Read);
    assert_eq!(result, fault(9));
}

#[test]
fn faults_are_told_and_change_nothing() {
    let mut ram = four_levels(0x5);
    let before = ram.clone();
    assert_eq!(at(&mut ram, &LONG, User, Write), fault(7));
    assert_eq!(at(&mut ram, &LONG, Supervisor, Write), fault(3));
    put(&mut ram, 0x4028, 0xa006);
    assert_eq!(at(&mut ram, &LONG, User, Read), fault(4));
    put(&mut ram, 0x4028, 0xa003);
    assert_eq!(at(&mut ram, &LONG, User, Execute), fault(0x15));
    put(&mut ram, 0x4028, NX | 0xa007);
    assert_eq!(at(&mut ram, &LONG, Supervisor, Execute), fault(0x11));
    // Without NXE the bit is reserved, and fetches are not told.
    let plain = Mode { efer: EFER_LMA, ..LONG };
    assert_eq!(at(&mut ram, &plain, Supervisor, Execute), fault(9));
    assert_eq!(at(&mut ram, &plain, User, Read), fault(13));
    // Reserved comes before rights, and not present before both.
    put(&mut ram, 0x4028, 1 << 40 | 0xa001);
    assert_eq!(at(&mut ram, &LONG, User, Write), fault(15));
    put(&mut ram, 0x1000, 0x2087);
    assert_eq!(at(&mut ram, &LONG, User, Read), fault(13));
    put(&mut ram, 0x1000, 0x2086);
    assert_eq!(at(&mut ram, &LONG, User, Read), fault(4));
    put(&mut ram, 0x1000, 0x2007);
    put(&mut ram, 0x4028, 0xa005);
    assert_eq!(ram.0, before.0);
}

#[test]
fn write_protection_binds_ring_0_only_when_asked() {
    let unprotected = Mode { cr0: 1 | CR0_PG, ..LONG };
    let mut ram = four_levels(0x5);
    assert_eq!(at(&mut ram, &unprotected, User, Write), fault(7));
    let page = at(&mut ram, &unprotected, Supervisor, Write).unwrap();
    assert!(!page.writable && page.dirty);
    assert_eq!(get(&ram, 0x4028), 0xa065);
}

#[test]
fn smep_and_smap_keep_ring_0_from_user_pages() {
    let mut ram = four_levels(0x7);
    let smep = Mode { cr4: CR4_PAE | CR4_SMEP, ..LONG };
    assert_eq!(at(&mut ram, &smep, Supervisor, Execute), fault(0x11));
    assert!(at(&mut ram, &smep, Supervisor, Read).is_ok());
    assert!(at(&mut ram, &smep, User, Execute).is_ok());
    let smap = Mode { cr4: CR4_PAE | CR4_SMAP, efer: EFER_LMA, ..LONG };
    assert_eq!(at(&mut ram, &smap, Supervisor, Read), fault(1));
    assert_eq!(at(&mut ram, &smap, Supervisor, Write), fault(3));
    assert!(at(&mut ram, &smap, Supervisor, Execute).is_ok());
    assert!(at(&mut ram, &smap, SupervisorAc, Write).is_ok());
    // A page is a user's only when all levels say so.
    put(&mut ram, 0x2000, 0x3003);
    assert!(at(&mut ram, &smap, Supervisor, Read).is_ok());
    assert_eq!(Privilege::explicit(&Mode { cpl: 3, ..LONG }, RFLAGS_AC), User);
    assert_eq!(Privilege::explicit(&Mode { cpl: 2, ..LONG }, RFLAGS_AC), SupervisorAc);
    assert_eq!(Privilege::explicit(&LONG, 0x202), Supervisor);
}

#[test]
fn older_ways_of_paging() {
    let off = Mode { cr0: 1, ..LONG };
    let mut ram = Ram::new(0x6000);
    let page = translate(&mut ram, PROCESSOR, &off, Supervisor, GuestVirtAddr(0x1_2345_6789), Write).unwrap();
    assert_eq!(page.address, GuestPhysAddr(0x2345_6789));

    // Two levels: a page of 4 MiB beyond 4 GiB; its bit means nothing without PSE.
    let two = Mode { cr4: CR4_PSE, efer: 0, cr3: 0xffff_ffff_0000_1018, ..LONG };
    ram.write(GuestPhysAddr(0x1004), &0x0081_2083_u32.to_le_bytes()).unwrap();
    let linear = GuestVirtAddr(0xffff_ffff_0055_5555);
    let page = translate(&mut ram, PROCESSOR, &two, Supervisor, linear, Write).unwrap();
    assert_eq!((page.address.0, page.size), (0x9_0095_5555, PageSize::Mib4));
    assert_eq!(ram.get::<u32>(GuestPhysAddr(0x1004)), Ok(0x0081_20e3));
    let small = Processor { physical_bits: 35, ..PROCESSOR };
    assert_eq!(translate(&mut ram, small, &two, Supervisor, linear, Read), fault(9));
    let no_pse = Mode { cr4: 0, ..two };
    let result = translate(&mut ram, PROCESSOR, &no_pse, Supervisor, linear, Read);
    assert_eq!(result, Err(WalkError::NotMemory(GuestPhysAddr(0x0081_2554))));

    // PAE: no rights in the first level.
    let pae = Mode { efer: EFER_NXE, cr3: 0x1fe0, ..LONG };
    put(&mut ram, 0x1fe8, 0x2001);
    put(&mut ram, 0x2008, NX | 0x20_0087);
    let linear = GuestVirtAddr(0x4020_1234);
    let page = translate(&mut ram, PROCESSOR, &pae, User, linear, Write).unwrap();
    assert_eq!((page.address.0, page.size, page.executable), (0x20_1234, PageSize::Mib2, false));
    assert_eq!((get(&ram, 0x1fe8), get(&ram, 0x2008)), (0x2001, NX | 0x20_00e7));
    put(&mut ram, 0x1fe8, 0x2003);
    assert_eq!(translate(&mut ram, PROCESSOR, &pae, User, linear, Execute), fault(0x1d));
    put(&mut ram, 0x1fe8, 0x2001);
    put(&mut ram, 0x2008, 1 << 52 | 0x20_0087);
    assert_eq!(translate(&mut ram, PROCESSOR, &pae, User, linear, Read), fault(13));

    let five = Mode { cr4: CR4_PAE | CR4_LA57, ..LONG };
    assert_eq!(at(&mut ram, &five, User, Read), Err(WalkError::FiveLevels));
}

#[test]
fn nothing_private_is_reached() {
    let mut ram = four_levels(0);
    put(&mut ram, 0x4028, PRIVATE_START | 0x3000 | 0x7);
    assert_eq!(at(&mut ram, &LONG, User, Read).unwrap().address, GuestPhysAddr(UNBACKED.0 + 0x678));
    put(&mut ram, 0x2000, PRIVATE_START | 0x87);
    assert_eq!(at(&mut ram, &LONG, User, Read).unwrap().address, GuestPhysAddr(UNBACKED.0 + 0x5678));
    put(&mut ram, 0x2000, PRIVATE_START | 0x7);
    let private = Err(WalkError::NotMemory(GuestPhysAddr(PRIVATE_START)));
    assert_eq!(at(&mut ram, &LONG, User, Read), private);
    assert_eq!(at(&mut ram, &Mode { cr3: PRIVATE_START, ..LONG }, User, Read), private);
}

/// Memory that another processor changes between the walk's read and its compare-exchange.
struct Racing {
    ram: Ram,
    races: usize,
}

impl GuestMemory for Racing {
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        self.ram.read(at, into)
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        self.ram.write(at, bytes)
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        if self.races > 0 {
            self.races -= 1;
            // The page moves.
            let entry = get(&self.ram, 0x4028);
            put(&mut self.ram, 0x4028, entry + 0x1000);
            if at.0 != 0x4028 {
                return Ok(Err(old ^ 1 << 9));
            }
        }
        self.ram.compare_exchange_u64(at, old, new)
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        self.ram.compare_exchange_u32(at, old, new)
    }
}

#[test]
fn a_lost_race_starts_the_walk_again_for_a_while() {
    let walk = |races| {
        let mut memory = Racing { ram: four_levels(0x7), races };
        let result = translate(&mut memory, PROCESSOR, &LONG, User, GuestVirtAddr(0x5678), Write);
        (result, memory.ram)
    };
    let (result, ram) = walk(3);
    assert_eq!(result.unwrap().address, GuestPhysAddr(0xd678));
    assert_eq!(get(&ram, 0x4028), 0xd067);
    let (result, ram) = walk(usize::MAX);
    assert_eq!(result, Err(WalkError::Contended));
    assert_eq!(get(&ram, 0x4028) & 0xfff, 7);
}

/// A random entry: mostly a useful one.
fn entry(random: &mut ChaCha8Rng, tables: u64) -> u64 {
    if random.random_bool(0.02) {
        return random.random();
    }
    let mut entry = random.random_range(0..tables) << 12 | 0x7;
    for (bit, chance) in [(0, 0.03), (1, 0.15), (2, 0.15)] {
        if random.random_bool(chance) {
            entry &= !(1 << bit);
        }
    }
    let unlikely = random.random_range(9..52);
    for (bit, chance) in
        [(3, 0.1), (4, 0.1), (5, 0.5), (6, 0.5), (7, 0.2), (8, 0.3), (63, 0.1), (unlikely, 0.05), (38, 0.02)]
    {
        if random.random_bool(chance) {
            entry |= 1 << bit;
        }
    }
    // Large pages want clear low bits.
    if entry & LARGE != 0 && random.random_bool(0.8) {
        entry = entry & !(ADDRESS & 0x3fff_e000) | random.random_range(0..4) << 30;
    }
    entry
}

#[test]
fn random_tables_agree_with_the_reference() {
    const TABLES: u64 = 8;
    let mut random = ChaCha8Rng::seed_from_u64(0x5741_4c4b);
    let mut seen = std::collections::BTreeMap::<_, u32>::new();
    for _ in 0..60 {
        let mut ram = Ram::new(usize::try_from(TABLES * 4096).unwrap());
        let way = random.random_range(0..3);
        for at in (0..TABLES * 4096).step_by(8) {
            let mut word = entry(&mut random, TABLES);
            if way == 2 {
                word = word & 0xffff_ffff | entry(&mut random, TABLES) << 32;
            } else if way == 1 && at < 4096 && random.random_bool(0.9) {
                word &= !0x1e6;
            }
            put(&mut ram, at, word);
        }
        for _ in 0..1000 {
            let mut flags = |bits: &[u64]| bits.iter().filter(|_| random.random_bool(0.6)).sum::<u64>();
            let mut mode = Mode {
                cr0: 1 | CR0_PG | flags(&[CR0_WP]),
                cr4: flags(&[CR4_PSE, CR4_PGE, CR4_SMEP, CR4_SMAP]),
                efer: flags(&[EFER_NXE]),
                ..LONG
            };
            mode.cr4 |= if way == 2 { 0 } else { CR4_PAE };
            mode.efer |= if way == 0 { EFER_LMA } else { 0 };
            mode.cr3 = if way == 1 {
                random.random_range(0..128) << 5
            } else {
                random.random_range(0..TABLES) << 12
            };
            let processor = Processor {
                physical_bits: [34, 38, 40, 46, 52][random.random_range(0..5)],
                gigabyte_pages: random.random_bool(0.8),
            };
            let address = random.random::<u64>() & bits(0, if way == 0 { 47 } else { 31 });
            let privilege = [User, Supervisor, SupervisorAc][random.random_range(0..3)];
            let access = [Read, Write, Execute][random.random_range(0..3)];

            let looked_up = reference::look_up(
                &ram,
                &mode,
                processor.physical_bits.into(),
                processor.gigabyte_pages,
                address,
            );
            let mut expected_ram = ram.clone();
            let expected = match (&looked_up, reference::access(&looked_up, &mode, privilege, access)) {
                (Err(Miss::NotMemory(at)), _) => Err(WalkError::NotMemory(GuestPhysAddr(*at))),
                (_, Err(error_code)) => Err(WalkError::PageFault { error_code }),
                (_, Ok(found)) => {
                    let mut dirty = false;
                    for (number, at) in found.entries.iter().enumerate() {
                        let last = number == found.entries.len() - 1;
                        let byte = &mut expected_ram.0[usize::try_from(*at).unwrap()];
                        *byte |= if last && access == Write { 0x60 } else { 0x20 };
                        dirty = *byte & 0x40 != 0;
                    }
                    let sizes = [PageSize::Kib4, PageSize::Mib2, PageSize::Mib4, PageSize::Gib1];
                    Ok(Translation {
                        address: GuestPhysAddr(found.address),
                        size: sizes.into_iter().find(|size| size.bytes() == found.bytes).unwrap(),
                        writable: found.writable,
                        user: found.user,
                        executable: found.executable,
                        global: found.global,
                        dirty,
                        pat_index: found.pat_index,
                    })
                }
            };
            let got = translate(&mut ram, processor, &mode, privilege, GuestVirtAddr(address), access);
            assert_eq!(got, expected, "{address:#x} {mode:x?} {privilege:?} {access:?}");
            assert!(ram.0 == expected_ram.0, "accessed and dirty bits");
            let kind = match got {
                Ok(page) => format!("{way} {:?}", page.size),
                Err(WalkError::PageFault { error_code }) => format!("{way} fault {}", error_code & 9),
                Err(_) => format!("{way} other"),
            };
            *seen.entry(kind).or_default() += 1;
        }
    }
    // Every way of paging: each of its sizes of pages, three causes of faults, and tables that are not there.
    assert_eq!(seen.len(), 3 + 2 + 2 + 3 * 3 + 3, "{seen:?}");
    let rare: Vec<_> = seen.iter().filter(|(_, count)| **count < 10).collect();
    assert!(rare.is_empty(), "{rare:?}");
}
