//! Turning on SVM (AMD APM 2, 15.4), and what all vCPUs share: the areas where cores keep their own state, and the
//! permission maps.
#![expect(unsafe_code, reason = "model-specific registers, VMSAVE, and the maps in physical memory")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use ipc::abi::PAGE_SIZE;
use kernel::address::PhysAddr;
use kernel::frames::{Frames, NoMemory};
use kernel::load::Virtualization;
use kernel::svm::Features;

use super::direct::pointer;
use super::extended;
use super::instructions::{cpuid, read_msr, write_msr};
use super::percpu::PerCpu;

const MSR_EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const MSR_VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

const PAGE: u64 = PAGE_SIZE as u64;
/// Each core's: one page for `VMRUN`, one for `VMSAVE`.
const AREA_PAGES: u64 = 2;
/// The I/O permission map and the one of model-specific registers (15.10.1, 15.11).
const IO_MAP_PAGES: u64 = 3;
const MSR_MAP_PAGES: u64 = 2;

/// What a guest reads and writes without an exit, because `VMSAVE` and `VMLOAD` switch it: SYSENTER's three; STAR, LSTAR,
/// CSTAR, SFMASK; FS, GS and kernel GS base.
const OPEN_MSRS: [core::ops::RangeInclusive<u32>; 3] =
    [0x174..=0x176, 0xc000_0081..=0xc000_0084, 0xc000_0100..=0xc000_0102];

/// Where the cores' areas are; zero when the processor has no SVM.
static AREAS: AtomicU64 = AtomicU64::new(0);

/// What the processor offers, or `None` when it cannot run a guest: no SVM, SVM locked by firmware, no nested paging.
fn detect() -> Option<Features> {
    let largest = cpuid(0x8000_0000, 0)[0];
    if largest < 0x8000_000a || cpuid(0x8000_0001, 0)[2] >> 2 & 1 == 0 {
        return None;
    }
    // SAFETY: a processor with SVM has the register.
    if unsafe { read_msr(MSR_VM_CR) } & VM_CR_SVMDIS != 0 {
        return None;
    }
    let offered = cpuid(0x8000_000a, 0)[3];
    let has = |bit: u32| offered >> bit & 1 != 0;
    has(0).then(|| Features {
        next_rip: has(3),
        flush_by_asid: has(6),
        decode_assists: has(7),
        pause_filter: has(10) && has(12),
        xcr0: extended::detect(),
    })
}

/// Sets aside what guests need on cores 0 to `cores - 1`; `None` when the processor cannot run any.
///
/// # Errors
/// [`NoMemory`].
pub fn prepare(frames: &mut Frames, cores: usize) -> Result<Option<Virtualization>, NoMemory> {
    let Some(features) = detect() else { return Ok(None) };
    let areas = frames.allocate(cores as u64 * AREA_PAGES, 1, None)?;
    let maps = frames.allocate(IO_MAP_PAGES + MSR_MAP_PAGES, 1, None)?;
    fill(areas.start(), areas.bytes(), 0);
    fill(maps.start(), maps.bytes(), 0xff);
    let msr_map = PhysAddr(maps.start().0 + IO_MAP_PAGES * PAGE);
    for msr in OPEN_MSRS.into_iter().flatten() {
        let (byte, mask) = msr_bits(msr);
        let place: *mut u8 = pointer(PhysAddr(msr_map.0 + byte));
        // SAFETY: the byte is in the map, which is nobody else's yet.
        let bits = unsafe { place.read() };
        // SAFETY: as above.
        unsafe { place.write(bits & !mask) };
    }
    AREAS.store(areas.start().0, Ordering::Release);
    Ok(Some(Virtualization { features, permission_maps: [maps.start(), msr_map] }))
}

/// The byte of the map and the two bits in it that intercept a register, which is below 0x2000 or from 0xc000_0000 on
/// below 0xc000_2000.
const fn msr_bits(msr: u32) -> (u64, u8) {
    let base = if msr >= 0xc000_0000 { 0x800 } else { 0 };
    let index = (msr & 0x1fff) as u64;
    (base + index / 4, 3 << (index % 4 * 2))
}

fn fill(at: PhysAddr, bytes: u64, value: u8) {
    let bytes = usize::try_from(bytes).unwrap_or(0);
    // SAFETY: the frames were just allocated.
    unsafe { pointer::<u8>(at).write_bytes(value, bytes) };
}

/// Turns SVM on for this core, if there is anything to run. All other registers of the core have their final values.
pub fn enable(core: &mut PerCpu) {
    let areas = AREAS.load(Ordering::Acquire);
    if areas == 0 {
        return;
    }
    let area = areas + core.core() as u64 * AREA_PAGES * PAGE;
    // SAFETY: every processor in long mode has this register.
    let efer = unsafe { read_msr(MSR_EFER) };
    // SAFETY: the processor has SVM.
    unsafe { write_msr(MSR_EFER, efer | EFER_SVME) };
    // SAFETY: the page is this core's.
    unsafe { write_msr(MSR_VM_HSAVE_PA, area) };
    // SAFETY: SVM is on, and the page is this core's.
    unsafe { asm!("vmsave rax", in("rax") area + PAGE, options(nostack, preserves_flags)) };
    core.set_host_save(area + PAGE);
}
