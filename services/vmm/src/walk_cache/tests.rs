use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::model::{BASE, Memory, PROCESSOR, Tlb, check};
use super::roots::MAX_VISITORS;
use super::*;
use crate::walk::control::{CR4_SMAP, RFLAGS_AC};

const LONG: Mode = Mode {
    cr0: 1 | CR0_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE | CR4_PGE | CR4_PCIDE,
    efer: EFER_LMA | EFER_NXE,
    cs_base: 0,
    cs_attributes: 0,
    cpl: 0,
};
const KERNEL: u64 = 0xffff_8000_0000_0000;
const NO_FLUSH: u64 = CR3_NO_FLUSH;

/// A vCPU whose two page-table roots, at 0x1000 and 0x2000, have the same tables: the lower and the upper half are both
/// those at 0x3000, 0x4000 and 0x5000.
struct Vcpu {
    memory: Memory,
    cache: WalkCache,
    mode: Mode,
    tlb: Tlb,
}

impl Vcpu {
    fn new(pages: u16, mode: Mode) -> Self {
        let mut memory = Memory::new(16, pages);
        for (at, entry) in [
            (0x1000, 0x3007),
            (0x1800, 0x3007),
            (0x2000, 0x3007),
            (0x2800, 0x3007),
            (0x3000, 0x4007),
            (0x4000, 0x5007),
        ] {
            memory.put(at, entry);
        }
        let cache = WalkCache::new(PROCESSOR, GuestPhysAddr(BASE), pages).unwrap();
        let mut vcpu = Self { memory, cache, mode, tlb: Tlb::default() };
        assert!(vcpu.cache.load(&mut vcpu.memory, &mode).unwrap().flush);
        vcpu
    }

    fn fault(&mut self, address: u64, error_code: u32) -> (Outcome, Update) {
        let at = GuestVirtAddr(address);
        self.cache.page_fault(&mut self.memory, &self.mode, 0, at, error_code).unwrap()
    }

    /// What the processor finds in the tables, as the page's address and its entry's lowest bits.
    fn there(&mut self, address: u64) -> Option<(u64, bool)> {
        self.tlb.flush();
        let mode = Mode { cr3: self.cache.hardware_cr3(), ..self.mode };
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let what = (address, Privilege::SupervisorAc, Access::Read);
        let found = self.tlb.access(&self.memory, &mut random, &mode, what).ok()?;
        Some((found.address, found.writable))
    }

    fn write_cr3(&mut self, value: u64) -> Update {
        self.mode.cr3 = value & !NO_FLUSH;
        self.cache.write_cr3(&mut self.memory, value).unwrap()
    }

    fn invlpg(&mut self, address: u64) -> bool {
        self.cache.invalidate_page(&mut self.memory, GuestVirtAddr(address)).unwrap().flush
    }
}

const NOTHING: Update = Update { cr3: None, flush: false };
const FLUSH: Update = Update { cr3: None, flush: true };
const FILLED: (Outcome, Update) = (Outcome::Filled, NOTHING);

fn reflected(error_code: u32) -> Outcome {
    Outcome::Reflect { error_code }
}

#[test]
fn modes_that_are_cached() {
    assert!(is_cached(&LONG));
    for other in [
        Mode { cr0: 1, ..LONG },
        Mode { cr0: 1 | CR0_PG, ..LONG },
        Mode { efer: EFER_NXE, ..LONG },
        Mode { cr4: CR4_PAE | CR4_LA57, ..LONG },
    ] {
        assert!(!is_cached(&other));
        let vcpu = Vcpu::new(8, other);
        assert_eq!(vcpu.cache.hardware_cr3(), 0x1000);
    }
}

#[test]
fn bad_places_are_refused() {
    let new = |base, pages| WalkCache::new(PROCESSOR, GuestPhysAddr(base), pages).is_some();
    assert!(new(PRIVATE_START, MIN_PAGES) && new(BASE, 1 << 15));
    assert!(!new(PRIVATE_START, MIN_PAGES - 1) && !new(BASE, (1 << 15) + 1) && !new(BASE, u16::MAX));
    assert!(!new(PRIVATE_START - 0x1000, 8) && !new(PRIVATE_START + 8, 8));
}

#[test]
fn the_first_write_sets_the_dirty_bit() {
    let mut vcpu = Vcpu::new(8, LONG);
    vcpu.memory.put(0x5008, 0xa007);
    assert_eq!(vcpu.fault(0x1234, 0), FILLED);
    assert_eq!(vcpu.there(0x1234), Some((0xa234, false)));
    assert_eq!(vcpu.memory.word(0x5008), 0xa027);
    assert_eq!(vcpu.fault(0x1234, 3), FILLED);
    assert_eq!(vcpu.there(0x1234), Some((0xa234, true)));
    assert_eq!(vcpu.memory.word(0x5008), 0xa067);
    // A page that is dirty already is writable at once.
    vcpu.memory.put(0x5010, 0xb047);
    assert_eq!(vcpu.fault(0x2000, 0), FILLED);
    assert_eq!(vcpu.there(0x2000), Some((0xb000, true)));
    let expected = Counters { fills: 3, flushes: 1, ..Counters::default() };
    assert_eq!(vcpu.cache.counters(), expected);
}

#[test]
fn the_guests_own_faults_are_reflected() {
    let mut vcpu = Vcpu::new(8, LONG);
    assert_eq!(vcpu.fault(0x1234, 6), (reflected(6), NOTHING));
    vcpu.memory.put(0x5008, 0xa005);
    assert_eq!(vcpu.fault(0x1234, 4), FILLED);
    // What is known of the page ends with a fault.
    assert_eq!(vcpu.fault(0x1234, 7), (reflected(7), FLUSH));
    assert_eq!(vcpu.there(0x1234), None);
    assert_eq!(vcpu.cache.counters().reflected, 2);
}

#[test]
fn devices_are_put_in_and_private_pages_never() {
    let mut vcpu = Vcpu::new(8, LONG);
    vcpu.memory.put(0x5008, 0xfec0_007b);
    assert_eq!(vcpu.fault(0x1010, 2), FILLED);
    assert_eq!(vcpu.there(0x1010), Some((0xfec0_0010, true)));
    vcpu.memory.put(0x5010, BASE | 0x67);
    assert_eq!(vcpu.fault(0x2010, 2), FILLED);
    assert_eq!(vcpu.there(0x2010), Some((crate::walk::UNBACKED.0 | 0x10, true)));
    // A table of the guest there is none.
    vcpu.memory.put(0x4008, BASE | 0x67);
    let at = GuestVirtAddr(0x20_0000);
    let result = vcpu.cache.page_fault(&mut vcpu.memory, &LONG, 0, at, 2);
    assert_eq!(result.unwrap_err(), NotMemory(GuestPhysAddr(BASE)));
}

#[test]
fn processes_keep_their_translations_and_share_the_kernels() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.memory.put(0x5008, 0xa067);
    vcpu.memory.put(0x5010, 0xb163);
    let first = vcpu.write_cr3(0x1001);
    assert!(first.cr3.is_some_and(|cr3| cr3 >= BASE && cr3 & 0xfff == 1));
    assert_eq!([vcpu.fault(0x1000, 0), vcpu.fault(KERNEL | 0x2000, 0)], [FILLED; 2]);
    let root = vcpu.cache.roots.pool.list(pool::Owner::Shared);
    let pages = root.iter().flat_map(|table| {
        (0..512).map(|index| vcpu.cache.roots.pool.entry(&vcpu.memory, *table, index).unwrap())
    });
    assert!(pages.into_iter().any(|entry| entry == 0xb163), "the processor keeps it too");
    // Another process has the kernel's page at once, and not the other's.
    assert!(!vcpu.write_cr3(0x2002 | NO_FLUSH).flush);
    assert_eq!((vcpu.there(0x1000), vcpu.there(KERNEL | 0x2000)), (None, Some((0xb000, true))));
    // Back again, all is there.
    assert_eq!(vcpu.write_cr3(0x1001 | NO_FLUSH), Update { cr3: first.cr3, flush: false });
    assert_eq!(vcpu.there(0x1000), Some((0xa000, true)));
    // Unless it is another process, or the guest does not want it kept.
    assert!(vcpu.write_cr3(0x2001 | NO_FLUSH).flush);
    assert_eq!((vcpu.there(0x1000), vcpu.there(KERNEL | 0x2000)), (None, Some((0xb000, true))));
    assert_eq!(vcpu.fault(0x1000, 0), FILLED);
    assert_eq!(vcpu.write_cr3(0x2001), FLUSH);
    assert_eq!(vcpu.there(0x1000), None);
    // The kernel's page goes for all at once.
    assert!(vcpu.invlpg(KERNEL | 0x2000));
    assert!(!vcpu.write_cr3(0x1007 | NO_FLUSH).flush);
    assert_eq!(vcpu.there(KERNEL | 0x2000), None);
    assert!(!vcpu.invlpg(KERNEL | 0x2000), "nothing was there");
    check(&vcpu.cache, &vcpu.memory);
}

#[test]
fn without_pcids_a_switch_keeps_global_pages_alone() {
    let mut vcpu = Vcpu::new(20, Mode { cr4: CR4_PAE | CR4_PGE, ..LONG });
    vcpu.memory.put(0x5008, 0xa067);
    vcpu.memory.put(0x5010, 0xb163);
    assert_eq!([vcpu.fault(0x1000, 0), vcpu.fault(KERNEL | 0x2000, 0)], [FILLED; 2]);
    assert_eq!(vcpu.write_cr3(0x2000), FLUSH);
    assert_eq!((vcpu.there(0x1000), vcpu.there(KERNEL | 0x2000)), (None, Some((0xb000, true))));
    assert_eq!(vcpu.write_cr3(0x1000), NOTHING);
    // Without global pages, nothing.
    vcpu.mode.cr4 = CR4_PAE;
    assert!(vcpu.cache.write_control(&mut vcpu.memory, &vcpu.mode).unwrap().flush);
    assert_eq!(vcpu.fault(KERNEL | 0x2000, 0), FILLED);
    assert_eq!(vcpu.write_cr3(0x2000), FLUSH);
    assert_eq!(vcpu.there(KERNEL | 0x2000), None);
}

#[test]
fn pcids_that_the_processor_does_not_know() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.cache = vcpu.cache.with_virtual_pcids();
    let _ = vcpu.cache.load(&mut vcpu.memory, &LONG).unwrap();
    assert_eq!(vcpu.cache.hardware_cr4(LONG.cr4), LONG.cr4 & !CR4_PCIDE);
    let hardware = Mode { cr3: 0, cr4: LONG.cr4 & !CR4_PCIDE, ..LONG };
    assert_eq!(vcpu.cache.guest_mode(&hardware), LONG);
    vcpu.mode = hardware;
    vcpu.memory.put(0x5008, 0xa067);
    let first = vcpu.write_cr3(0x1001 | NO_FLUSH);
    assert!(first.flush && first.cr3.is_some_and(|cr3| cr3 & 0xfff == 0));
    assert_eq!(vcpu.fault(0x1000, 0), FILLED);
    assert!(vcpu.write_cr3(0x1002 | NO_FLUSH).flush);
    assert_eq!(vcpu.there(0x1000), None);
    assert_eq!(vcpu.write_cr3(0x1001 | NO_FLUSH), first);
    assert_eq!(vcpu.there(0x1000), Some((0xa000, true)));
}

#[test]
fn invpcid_takes_out_what_it_names() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.memory.put(0x5008, 0xa067);
    vcpu.memory.put(0x5010, 0xb163);
    let fill = |vcpu: &mut Vcpu| {
        let _ = vcpu.write_cr3(0x1001 | NO_FLUSH);
        let _ = (vcpu.fault(0x1000, 0), vcpu.fault(KERNEL | 0x2000, 0));
        let _ = vcpu.write_cr3(0x2002 | NO_FLUSH);
    };
    let after = |vcpu: &mut Vcpu, kind, descriptor| {
        fill(vcpu);
        let update = vcpu.cache.invalidate_context(&mut vcpu.memory, kind, descriptor).unwrap();
        let _ = vcpu.write_cr3(0x1001 | NO_FLUSH);
        (update.flush, vcpu.there(0x1000).is_some(), vcpu.there(KERNEL | 0x2000).is_some())
    };
    assert_eq!(after(&mut vcpu, 0, [1, 0x1fff]), (true, false, true));
    assert_eq!(after(&mut vcpu, 0, [1, KERNEL | 0x2000]), (false, true, true));
    assert_eq!(after(&mut vcpu, 0, [2, 0x1000]), (false, true, true));
    assert_eq!(after(&mut vcpu, 1, [1, 1 << 60]), (true, false, true));
    assert_eq!(after(&mut vcpu, 1, [3, 0]), (false, true, true));
    assert_eq!(after(&mut vcpu, 2, [0, 0]), (true, false, false));
    assert_eq!(after(&mut vcpu, 3, [0, 0]), (true, false, true));
    let mut refused = |kind, descriptor| {
        vcpu.cache.invalidate_context(&mut vcpu.memory, kind, descriptor)
            == Err(ContextError::GeneralProtection)
    };
    assert!(refused(4, [0, 0]) && refused(u64::MAX, [0, 0]) && refused(2, [0x1000, 0]));
    assert!(refused(0, [1, 1 << 47]) && refused(1, [1 << 40, 0]));
    let mut vcpu = Vcpu::new(20, Mode { cr4: CR4_PAE, ..LONG });
    let mut result = |kind, pcid| vcpu.cache.invalidate_context(&mut vcpu.memory, kind, [pcid, 0]);
    assert_eq!(result(1, 1), Err(ContextError::GeneralProtection));
    assert_eq!((result(1, 0), result(3, 1)), (Ok(NOTHING), Ok(NOTHING)));
}

#[test]
fn global_pages_that_are_not_shared_go_from_all_roots() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.memory.put(0x5008, 0xa167);
    for pcid in 1..4 {
        let _ = vcpu.write_cr3(0x1000 | pcid | NO_FLUSH);
        assert_eq!(vcpu.fault(0x1000, 0), FILLED);
    }
    assert!(vcpu.invlpg(0x1000));
    for pcid in 1..4 {
        assert!(!vcpu.write_cr3(0x1000 | pcid | NO_FLUSH).flush);
        assert_eq!(vcpu.there(0x1000), None);
    }
}

#[test]
fn large_pages_stay_large_and_go_whole() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.memory.put(0x4008, 0x60_10e7);
    vcpu.memory.put(0x3008, 0x8000_00e7);
    assert_eq!([vcpu.fault(0x21_2345, 2), vcpu.fault(0x4123_4567, 2)], [FILLED; 2]);
    assert_eq!(
        (vcpu.there(0x3f_ffff), vcpu.there(0x7fff_ffff)),
        (Some((0x7f_ffff, true)), Some((0xbfff_ffff, true)))
    );
    assert!(vcpu.invlpg(0x20_1000) && vcpu.invlpg(0x5555_5555));
    assert_eq!((vcpu.there(0x3f_ffff), vcpu.there(0x7fff_ffff)), (None, None));
    // In the place of a table, whose page is free again; and back.
    vcpu.memory.put(0x5008, 0xa067);
    assert_eq!(vcpu.fault(0x1000, 0), FILLED);
    vcpu.memory.put(0x4000, 0x1000_00e7);
    assert_eq!(vcpu.fault(0x2000, 0), (Outcome::Filled, FLUSH));
    assert_eq!(vcpu.there(0x1000), Some((0x1000_1000, true)));
    check(&vcpu.cache, &vcpu.memory);
    vcpu.memory.put(0x4000, 0x5007);
    vcpu.memory.put(0x5008, 0xa065);
    assert_eq!(vcpu.fault(0x1000, 1), (Outcome::Filled, FLUSH));
    assert_eq!((vcpu.there(0x1000), vcpu.there(0x2000)), (Some((0xa000, false)), None));
    check(&vcpu.cache, &vcpu.memory);
}

#[test]
fn visitors_leave_with_their_process() {
    let mut vcpu = Vcpu::new(20, LONG);
    for page in 0..512 {
        vcpu.memory.put(0x5000 + page * 8, 0x10_0067 | page << 12);
    }
    let _ = vcpu.write_cr3(0x1001);
    assert_eq!(vcpu.fault(KERNEL | 0x1000, 0), FILLED);
    assert!(vcpu.write_cr3(0x2002).flush);
    assert_eq!(vcpu.there(KERNEL | 0x1000), None);
    // With too many of them nothing is shared any more, and each process keeps its own.
    for page in 0..=MAX_VISITORS as u64 {
        assert!(vcpu.cache.roots.shared.is_some());
        assert_eq!(vcpu.fault(KERNEL | page << 12, 0).0, Outcome::Filled);
    }
    assert!(vcpu.cache.roots.shared.is_none());
    let last = KERNEL | (MAX_VISITORS as u64) << 12;
    assert!(!vcpu.write_cr3(0x1001 | NO_FLUSH).flush);
    assert_eq!(vcpu.there(last), None);
    assert!(!vcpu.write_cr3(0x2002 | NO_FLUSH).flush);
    assert!(vcpu.there(last).is_some());
    check(&vcpu.cache, &vcpu.memory);
    // A new regime tries again; where most pages are global, the shared part stays.
    let _ = vcpu.cache.load(&mut vcpu.memory, &LONG).unwrap();
    for page in 0..512 {
        let global = if page < 300 { 0x100 } else { 0 };
        vcpu.memory.put(0x5000 + page * 8, 0x10_0067 | page << 12 | global);
        assert_eq!(vcpu.fault(KERNEL | page << 12, 0).0, Outcome::Filled);
    }
    assert!(vcpu.cache.roots.shared.is_some());
    let _ = vcpu.write_cr3(0x2002 | NO_FLUSH);
    let kept = (0..512).filter(|page| vcpu.there(KERNEL | page << 12).is_some());
    assert!(kept.eq(0..300));
    check(&vcpu.cache, &vcpu.memory);
}

#[test]
fn visitors_leave_with_their_pcid() {
    let mut vcpu = Vcpu::new(20, LONG);
    vcpu.memory.put(0x5008, 0xa067);
    for (kind, pcid, leaves) in
        [(0, 1, true), (0, 2, false), (1, 1, true), (1, 2, false), (2, 0, true), (3, 0, true)]
    {
        let _ = vcpu.write_cr3(0x1001);
        assert_eq!(vcpu.fault(KERNEL | 0x1000, 0), FILLED);
        let update = vcpu.cache.invalidate_context(&mut vcpu.memory, kind, [pcid, KERNEL | 0x1000]);
        assert_eq!(update, Ok(Update { cr3: None, flush: leaves }));
        assert_eq!(vcpu.there(KERNEL | 0x1000).is_none(), leaves);
    }
}

#[test]
fn what_smap_forbids_alone_comes_to_be_known() {
    let mut vcpu = Vcpu::new(8, Mode { cr4: LONG.cr4 | CR4_SMAP, ..LONG });
    vcpu.memory.put(0x5008, 0xa067);
    let mut fault = |error_code| {
        let at = GuestVirtAddr(0x1000);
        vcpu.cache.page_fault(&mut vcpu.memory, &vcpu.mode, RFLAGS_AC, at, error_code).unwrap()
    };
    // The processor reads a descriptor in a user's page while RFLAGS.AC is set.
    assert_eq!(fault(0), FILLED);
    assert_eq!(fault(1), (Outcome::Filled, FLUSH));
    assert_eq!(fault(1), (reflected(1), FLUSH));
    // A user whose processor remembers an older translation.
    assert_eq!(fault(4), FILLED);
    assert_eq!([fault(7), fault(7)], [(Outcome::Filled, FLUSH); 2]);
}

#[test]
fn a_change_of_control_bits_is_noticed() {
    let mut vcpu = Vcpu::new(8, LONG);
    vcpu.memory.put(0x5008, 1 << 63 | 0xa067);
    assert_eq!(vcpu.fault(0x1000, 0), FILLED);
    // Even when nobody told: here EFER.NXE.
    vcpu.mode.efer = EFER_LMA;
    assert_eq!(vcpu.fault(0x1000, 9), (reflected(9), FLUSH));
    vcpu.mode.cr4 |= CR4_SMAP;
    assert_eq!(vcpu.cache.write_control(&mut vcpu.memory, &vcpu.mode).unwrap(), NOTHING);
    // Out of the cache and into it again.
    vcpu.mode.cr0 &= !CR0_WP;
    let out = vcpu.cache.write_control(&mut vcpu.memory, &vcpu.mode).unwrap();
    assert_eq!(out, Update { cr3: Some(0x1000), flush: true });
    assert_eq!(vcpu.fault(0x1000, 0x17), (reflected(0x17), NOTHING));
    assert!(vcpu.invlpg(0x1000));
    assert_eq!(vcpu.write_cr3(0x2000), Update { cr3: Some(0x2000), flush: true });
    vcpu.mode.cr0 |= CR0_WP;
    let back = vcpu.cache.write_control(&mut vcpu.memory, &vcpu.mode).unwrap();
    assert!(back.flush && back.cr3 == Some(vcpu.cache.hardware_cr3()) && back.cr3 >= Some(BASE));
    assert_eq!(vcpu.cache.guest_cr3(), 0x2000);
}

#[test]
fn pages_that_are_not_there_are_an_error() {
    let mut vcpu = Vcpu::new(8, LONG);
    vcpu.memory.put(0x5008, 0xa067);
    vcpu.memory.private.clear();
    let at = GuestVirtAddr(0x1000);
    let result = vcpu.cache.page_fault(&mut vcpu.memory, &LONG, 0, at, 0);
    assert!(result.is_err_and(|NotMemory(at)| at.0 >= BASE));
}

/// A guest that runs outside of the cache could write to its tables: it harms itself, and no more.
#[test]
fn tables_that_another_wrote_to_harm_nobody() {
    let mut random = ChaCha8Rng::seed_from_u64(0x4841_524d);
    for round in 0..60 {
        let pages = [MIN_PAGES, 9, 30][round % 3];
        let mut vcpu = Vcpu::new(pages, LONG);
        for page in 0..512 {
            let large = if page % 7 == 0 { 0x80 } else { 0 };
            vcpu.memory.put(0x3000 + page * 8, 0x4007);
            vcpu.memory.put(0x4000 + page * 8, 0x5007 & !(large * 0x20) | large);
            vcpu.memory.put(0x5000 + page * 8, 0x10_0067 | page << 12 | (page % 2) << 8);
        }
        for _ in 0..400 {
            for _ in 0..random.random_range(0..40) {
                let at = BASE + random.random_range(0..u64::from(pages) * 512) * 8;
                let entry = match random.random_range(0..3) {
                    0 => random.random(),
                    _ => BASE + random.random_range(0..u64::from(pages)) * 4096 + 0x27,
                };
                vcpu.memory.put(at, entry);
            }
            let half = if random.random() { KERNEL } else { 0 };
            let address = half | random.random_range(0..4) << 30 | random.random_range(0..1 << 24);
            let at = GuestVirtAddr(address);
            let context = [random.random_range(0..4), address];
            let mut random_below = |end: u64| random.random_range(0..end);
            match random_below(20) {
                0 => _ = vcpu.write_cr3(0x1000 | random_below(20) | random_below(2) << 63),
                1 => _ = vcpu.invlpg(address),
                2 => _ = vcpu.cache.invalidate_context(&mut vcpu.memory, random_below(4), context),
                3 => _ = vcpu.cache.load(&mut vcpu.memory, &LONG),
                _ => {
                    _ = vcpu.cache.page_fault(&mut vcpu.memory, &vcpu.mode, 0, at, random.random_range(0..2))
                }
            }
        }
    }
}
