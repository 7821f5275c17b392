//! The cache against what a TLB may do, with random guests.
//!
//! The *oracle* keeps for each address and PCID what the guest's tables have said since the last invalidation that counts
//! for it: what an access then does must be one of these.

use rand::{
    Rng, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::model::{BASE, Memory, PROCESSOR, Tlb, check};
use super::*;
use crate::walk::control::{CR4_SMAP, RFLAGS_AC};
use crate::walk::reference::{self, Found, Miss};

/// Something that the guest's tables said, and when the entries it came from were written.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    found: Found,
    written: Vec<u32>,
}

struct World {
    random: ChaCha8Rng,
    memory: Memory,
    cache: WalkCache,
    mode: Mode,
    hardware_cr3: u64,
    tlb: Tlb,
    /// When each entry of the guest's tables was written last, in writes.
    written: BTreeMap<u64, u32>,
    /// By PCID and address.
    said: BTreeMap<(u64, u64), Vec<Said>>,
    said_global: BTreeMap<u64, Vec<Said>>,
    addresses: Vec<u64>,
    seen: BTreeMap<&'static str, u32>,
}

const SLOTS: [u64; 4] = [0, 255, 256, 511];
const MIDDLE: [u64; 3] = [0, 1, 511];
const LOWEST: [u64; 3] = [0, 5, 511];
/// Pages of the guest's tables: roots, then those of levels 3, 2 and 1.
const TABLES: [u64; 5] = [1, 4, 9, 15, 24];

fn canonical(slot: u64, third: u64, second: u64, first: u64) -> u64 {
    let address = slot << 39 | third << 30 | second << 21 | first << 12;
    if slot < 256 { address } else { address | 0xffff << 48 }
}

impl World {
    fn new(seed: u64, pages: u16, cr4: u64, pcids: Pcids) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut addresses = Vec::new();
        for slot in SLOTS {
            for third in MIDDLE {
                for second in MIDDLE {
                    let first = *LOWEST.choose(&mut random).unwrap();
                    addresses.push(canonical(slot, third, second, first));
                    addresses.push(canonical(slot, third, second, 7));
                }
            }
        }
        addresses.shuffle(&mut random);
        let mode = Mode {
            cr0: 1 | CR0_PG | CR0_WP,
            cr3: 0x1000,
            cr4: CR4_PAE | cr4,
            efer: EFER_LMA | EFER_NXE,
            ..Mode::default()
        };
        let cache = WalkCache::new(PROCESSOR, GuestPhysAddr(BASE), pages).unwrap();
        let mut world = Self {
            random,
            memory: Memory::new(32, pages),
            cache: if pcids == Pcids::Virtual { cache.with_virtual_pcids() } else { cache },
            mode,
            hardware_cr3: 0,
            tlb: Tlb::default(),
            written: BTreeMap::new(),
            said: BTreeMap::new(),
            said_global: BTreeMap::new(),
            addresses,
            seen: BTreeMap::new(),
        };
        for page in TABLES[0]..TABLES[4] {
            for index in 0..512 {
                world.write_entry(page, index);
            }
        }
        world.load();
        world
    }

    fn chance(&mut self, of_100: u32) -> bool {
        self.random.random_range(0..100) < of_100
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// A page, often one of a few.
    fn address(&mut self) -> u64 {
        let often = self.addresses.len() / 8;
        let few = if self.chance(70) { often } else { self.addresses.len() };
        *self.addresses[..few].choose(&mut self.random).unwrap()
    }

    /// Writes a random entry to a guest's table.
    fn write_entry(&mut self, page: u64, index: u64) {
        let level = 4 - TABLES[1..].iter().position(|end| page < *end).unwrap();
        let large = level < 4 && (level == 1 || self.chance(if level == 3 { 8 } else { 25 }));
        let (writable, user, no_execute) = if large { (80, 50, 10) } else { (98, 98, 2) };
        let mut entry = 1;
        for (bit, chance) in [(1, writable), (2, user), (3, 10), (4, 10), (5, 50), (6, 60), (63, no_execute)]
        {
            entry |= u64::from(self.chance(chance)) << bit;
        }
        if large {
            let frames = [0, 0x12_3456, 0x75_0000_u64, 0xfec0_0000 >> 12, 0x3ff_ffff, 0xfff_ffff];
            let frame = *frames.choose(&mut self.random).unwrap() + self.random.random_range(0..4);
            let size = 12 + 9 * (u32::try_from(level).unwrap() - 1);
            entry |= ((frame << 12 & 0xff_ffff_f000) >> size) << size;
            entry |= if level > 1 { 0x80 } else { 0 };
            entry |= u64::from(self.chance(10)) << if level > 1 { 12 } else { 7 };
            entry |= u64::from(self.chance(60)) << 8;
            if self.chance(2) {
                entry |= 1 << 45;
            }
        } else if self.chance(1) {
            entry |= [PRIVATE_START, BASE, 1 << 30].choose(&mut self.random).unwrap();
        } else {
            let tables =
                if self.chance(1) { TABLES[0]..TABLES[1] } else { TABLES[5 - level]..TABLES[6 - level] };
            // The roots have much in common.
            let table = if level == 4 && self.chance(70) {
                tables.start + index % (tables.end - tables.start)
            } else {
                self.random.random_range(tables)
            };
            entry |= table << 12;
        }
        if self.chance(4) {
            entry &= !1;
        }
        let at = page * 4096 + index * 8;
        self.memory.put(at, entry);
        *self.written.entry(at).or_default() += 1;
    }

    /// What the guest's tables say now.
    fn look_up(&self, address: u64) -> Result<Found, Miss> {
        reference::look_up(&self.memory, &self.mode, PROCESSOR.physical_bits.into(), true, address)
    }

    fn pcid(&self) -> u64 {
        if self.mode.cr4 & CR4_PCIDE == 0 { 0 } else { self.mode.cr3 & 0xfff }
    }

    fn say(&self, found: Found) -> Said {
        let written = found.entries.iter().map(|at| self.written[at]).collect();
        Said { found, written }
    }

    /// The TLB may take up anything that the present tables say.
    fn observe(&mut self) {
        for address in self.addresses.clone() {
            let Ok(found) = self.look_up(address) else { continue };
            let said = self.say(found);
            let global = said.found.global;
            let add = |list: &mut Vec<Said>| {
                if !list.contains(&said) {
                    list.push(said.clone());
                }
            };
            add(self.said.entry((self.pcid(), address)).or_default());
            if global {
                add(self.said_global.entry(address).or_default());
            }
        }
    }

    fn forget_page(&mut self, pcid: Option<u64>, globals: bool, address: u64) {
        let covers = |at: u64, said: &Said| {
            let page = at & !(said.found.bytes - 1);
            address >= page && address - page < said.found.bytes
        };
        for ((of, at), list) in &mut self.said {
            if pcid == Some(*of) {
                list.retain(|said| !covers(*at, said));
            }
        }
        if globals {
            self.said_global.iter_mut().for_each(|(at, list)| list.retain(|said| !covers(*at, said)));
        }
    }

    fn obey(&mut self, update: Update) {
        if let Some(cr3) = update.cr3 {
            self.hardware_cr3 = cr3;
            // Without PCIDs nothing tells one root's translations from another's.
            assert!(update.flush || self.cache.hardware_cr4(self.mode.cr4) & CR4_PCIDE != 0);
        }
        if update.flush {
            self.tlb.flush();
        }
        assert_eq!(self.hardware_cr3, self.cache.hardware_cr3());
    }

    /// The mode that the processor runs in.
    fn hardware_mode(&self) -> Mode {
        let cr4 = self.cache.hardware_cr4(self.mode.cr4);
        let mode = Mode { cr3: self.hardware_cr3, cr4, ..self.mode };
        assert_eq!(self.cache.guest_mode(&mode), self.mode);
        mode
    }

    fn load(&mut self) {
        let update = self.cache.load(&mut self.memory, &self.mode).unwrap();
        self.start_over(update);
    }

    fn start_over(&mut self, update: Update) {
        assert!(update.flush);
        self.obey(update);
        self.said.clear();
        self.said_global.clear();
        self.observe();
    }

    fn access(&mut self) {
        let address = self.address() + self.random.random_range(0..0x1000);
        let access = *[Access::Read, Access::Write, Access::Execute].choose(&mut self.random).unwrap();
        let ac = self.random.random_bool(0.5);
        let implicit = access != Access::Execute && self.chance(20);
        self.mode.cpl = if self.chance(50) { 3 } else { 0 };
        let rflags = if ac { RFLAGS_AC } else { 0 };
        let explicit = Privilege::explicit(&self.mode, rflags);
        let privilege = if implicit { Privilege::Supervisor } else { explicit };
        let looked_up = self.look_up(address);
        let expected = reference::access(&looked_up, &self.mode, privilege, access);
        let page = address & !0xfff;
        self.memory.marked.clear();

        for attempt in 0.. {
            assert!(attempt < 6, "the guest makes no progress");
            let hardware = self.hardware_mode();
            let what = (address, privilege, access);
            match self.tlb.access(&self.memory, &mut self.random, &hardware, what) {
                Ok(found) => {
                    self.check_success(page, address, privilege, access, &found, &looked_up);
                    break;
                }
                Err(error_code) => {
                    let at = GuestVirtAddr(address);
                    let fault = self.cache.page_fault(&mut self.memory, &hardware, rflags, at, error_code);
                    let (outcome, update) = match (fault, &looked_up) {
                        (Ok(fault), _) => fault,
                        (Err(NotMemory(at)), Err(Miss::NotMemory(expected))) => {
                            assert_eq!(at.0, *expected);
                            return self.count("no memory");
                        }
                        (error, _) => panic!("{error:?} {looked_up:x?}"),
                    };
                    self.obey(update);
                    if let Outcome::Reflect { error_code } = outcome {
                        assert_eq!(
                            expected.as_ref().err(),
                            Some(&error_code),
                            "{looked_up:x?} {:x?}",
                            self.mode
                        );
                        assert!(self.memory.marked.is_empty() || attempt > 0);
                        self.forget_page(Some(self.pcid()), false, address);
                        self.observe();
                        self.count(if implicit { "implicit reflected" } else { "reflected" });
                        break;
                    }
                    self.count("filled");
                }
            }
        }
        // Only accessed and dirty bits of the entries on the way were set, dirty by a write to the page alone.
        for (at, old, new) in core::mem::take(&mut self.memory.marked) {
            let entries = &looked_up.as_ref().unwrap().entries;
            let may = if access == Access::Write && entries.last() == Some(&at) { 0x60 } else { 0x20 };
            assert!(entries.contains(&at) && old | may == new | may && old & !new == 0 && old != new);
            let ambiguous = implicit || access == Access::Read && !tells_fetches(&self.mode);
            assert!(expected.is_ok() || ambiguous, "marked without an access");
        }
    }

    fn check_success(
        &mut self,
        page: u64,
        address: u64,
        privilege: Privilege,
        access: Access,
        found: &Found,
        looked_up: &Result<Found, Miss>,
    ) {
        let mut said = self.said.get(&(self.pcid(), page)).cloned().unwrap_or_default();
        said.extend(self.said_global.get(&page).into_iter().flatten().cloned());
        let same = |said: &Said| {
            let legal = &said.found;
            legal.address + (address - page) == found.address
                && legal.pat_index == found.pat_index
                && reference::allowed(legal, &self.mode, privilege, access)
                && (!found.writable || legal.writable)
                && (!found.user || legal.user)
                && (!found.executable || legal.executable)
        };
        assert!(said.iter().any(same), "{address:x} {found:x?} of {said:x?}");
        // With nothing stale around, accessed and dirty bits must be set by now.
        let now = looked_up.as_ref().ok().map(|now| {
            let now = Found { address: now.address - (address - page), ..now.clone() };
            self.say(now)
        });
        if now.is_some_and(|now| said.iter().all(|said| *said == now)) {
            let entries = &looked_up.as_ref().unwrap().entries;
            for at in entries {
                let dirty = access == Access::Write && Some(at) == entries.last();
                let bits = if dirty { 0x60 } else { 0x20 };
                assert_eq!(self.memory.word(*at) & bits, bits, "accessed and dirty bits");
            }
            self.count("fresh");
        } else {
            self.count("perhaps stale");
        }
    }

    fn invalidate_page(&mut self, address: u64) {
        let update = self.cache.invalidate_page(&mut self.memory, GuestVirtAddr(address)).unwrap();
        self.obey(update);
        self.forget_page(Some(self.pcid()), true, address);
        self.observe();
    }

    fn write_cr3(&mut self) {
        let mut value = self.random.random_range(TABLES[0]..TABLES[1]) << 12;
        let pcids = self.mode.cr4 & CR4_PCIDE != 0;
        if pcids {
            // More than there are roots, a few of them often.
            let pcids = if self.chance(80) { 4 } else { 24 };
            let pcid = self.random.random_range(0..pcids);
            if self.chance(90) {
                value = (TABLES[0] + pcid % (TABLES[1] - TABLES[0])) << 12;
            }
            value |= pcid;
            value |= u64::from(self.chance(60)) << 63;
        }
        let update = self.cache.write_cr3(&mut self.memory, value).unwrap();
        self.mode.cr3 = value & !CR3_NO_FLUSH;
        assert_eq!(self.cache.guest_cr3(), self.mode.cr3);
        self.obey(update);
        let pcid = self.pcid();
        if value & CR3_NO_FLUSH == 0 {
            self.said.retain(|(of, _), _| *of != pcid);
        } else if !update.flush {
            self.count("kept");
        }
        self.observe();
    }

    fn invalidate_context(&mut self) {
        let kind = self.random.random_range(0..4);
        let pcids = if self.mode.cr4 & CR4_PCIDE == 0 { 1 } else { 6 };
        let pcid = self.random.random_range(0..pcids);
        let address = self.address();
        let update = self.cache.invalidate_context(&mut self.memory, kind, [pcid, address]).unwrap();
        self.obey(update);
        match kind {
            0 => self.forget_page(Some(pcid), false, address),
            1 => self.said.retain(|(of, _), _| *of != pcid),
            _ => self.said.clear(),
        }
        if kind == 2 {
            self.said_global.clear();
        }
        self.observe();
    }

    fn write_control(&mut self) {
        let old = self.mode;
        match self.random.random_range(0..5) {
            0 => self.mode.cr4 ^= CR4_SMEP,
            1 => self.mode.cr4 ^= CR4_PGE,
            2 => self.mode.efer ^= EFER_NXE,
            _ => self.mode.cr4 ^= CR4_SMAP,
        }
        let update = self.cache.write_control(&mut self.memory, &self.mode).unwrap();
        if self.mode.cr4 ^ old.cr4 == CR4_SMAP {
            assert_eq!(update, Update::default());
        } else {
            self.start_over(update);
        }
    }

    /// Some time without write protection, on the guest's own tables.
    fn run_uncached(&mut self) {
        self.mode.cr0 &= !CR0_WP;
        let update = self.cache.write_control(&mut self.memory, &self.mode).unwrap();
        let hidden = if self.cache.hardware_cr4(CR4_PCIDE) == 0 { self.pcid() } else { 0 };
        assert_eq!(update, Update { cr3: Some(self.mode.cr3 - hidden), flush: true });
        self.obey(update);
        let address = GuestVirtAddr(self.addresses[0]);
        let (outcome, update) = self.cache.page_fault(&mut self.memory, &self.mode, 0, address, 2).unwrap();
        assert_eq!((outcome, update), (Outcome::Reflect { error_code: 2 }, Update::default()));
        self.write_cr3();
        self.mode.cr0 |= CR0_WP;
        let update = self.cache.write_control(&mut self.memory, &self.mode).unwrap();
        self.start_over(update);
    }

    fn step(&mut self) {
        match self.random.random_range(0..1000) {
            0..700 => self.access(),
            700..830 => {
                let address = self.address();
                let level = self.random.random_range(0..100);
                let level = [4, 3, 3, 2, 2, 2].get(level).copied().unwrap_or(1);
                let page = self.random.random_range(TABLES[4 - level]..TABLES[5 - level]);
                self.write_entry(page, address >> (3 + 9 * level) & 511);
                self.observe();
                if self.chance(30) {
                    self.invalidate_page(address);
                }
            }
            830..890 => {
                let address = self.address();
                self.invalidate_page(address);
            }
            890..950 => self.write_cr3(),
            950..975 => self.invalidate_context(),
            975..980 => self.write_control(),
            980..983 => self.run_uncached(),
            983..985 => self.load(),
            985..990 => self.tlb.flush(),
            _ => check(&self.cache, &self.memory),
        }
    }
}

/// Many steps of one guest; what was seen.
fn run(mut world: World, steps: usize) -> (BTreeMap<&'static str, u32>, Counters) {
    for _ in 0..steps {
        world.step();
    }
    check(&world.cache, &world.memory);
    (world.seen, world.cache.counters())
}

#[test]
fn random_guests_see_what_a_tlb_may_show() {
    let mut seed = 0x5443;
    for pages in [MIN_PAGES, 12, 40, 200] {
        for (cr4, pcids) in [
            (0, Pcids::Hardware),
            (CR4_PGE, Pcids::Hardware),
            (CR4_PCIDE, Pcids::Hardware),
            (CR4_PGE | CR4_PCIDE, Pcids::Hardware),
            (CR4_PGE | CR4_PCIDE, Pcids::Virtual),
        ] {
            seed += 1;
            let (seen, counters) = run(World::new(seed, pages, cr4, pcids), 2500);
            let at_least = |what: &str, least| {
                let count = seen.get(what).copied().unwrap_or_default();
                assert!(count >= least, "{pages} {cr4:x} {what}: {seen:?}");
            };
            at_least("filled", 400);
            at_least("fresh", 100);
            at_least("perhaps stale", 60);
            at_least("reflected", 100);
            at_least("implicit reflected", 10);
            if cr4 & CR4_PCIDE != 0 && pcids == Pcids::Hardware {
                at_least("kept", 6);
            }
            assert!(counters.fills >= 300 && counters.flushes >= 60, "{counters:?}");
            assert!(counters.evictions >= 30 || pages > 12, "{counters:?}");
        }
    }
}
