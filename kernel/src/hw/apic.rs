//! The local APIC: end of interrupt, interrupts between cores, the one-shot timer (Intel SDM 3A, 11).
//!
//! Its registers are reached through memory (xAPIC) or, where the processor has it, as model-specific registers
//! (x2APIC); the register with MMIO offset `o` is MSR `0x800 + o / 16`. The timer runs by TSC deadline where that
//! exists, else by a count that may end early: whoever sets it looks at the clock when it comes, and sets it again.
#![expect(unsafe_code, reason = "device registers")]

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use ipc::abi::NEVER;
use kernel::address::PhysAddr;

use super::clock::Frequencies;
use super::direct;
use super::instructions::{cpuid, read_msr, read_tsc, write_msr};

/// The vector of the core's own timer.
pub const TIMER_VECTOR: u8 = 0xf0;
/// The vector by which another core asks for a look at the run queue.
pub const RESCHEDULE_VECTOR: u8 = 0xf1;
const SPURIOUS_VECTOR: u32 = 0xff;

const MSR_APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const TSC_DEADLINE_MODE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const DELIVERY_PENDING: u32 = 1 << 12;
/// Level assert, which every command but one of the 486's has.
const ASSERT: u32 = 1 << 14;
const NMI_TO_OTHERS: u32 = 3 << 18 | ASSERT | 4 << 8;
const INIT: u32 = ASSERT | 5 << 8;
const STARTUP: u32 = ASSERT | 6 << 8;

const OFF: u8 = 0;
const XAPIC: u8 = 1;
const X2APIC: u8 = 2;

/// How all cores' local APICs are reached; set by the first core.
static MODE: AtomicU8 = AtomicU8::new(OFF);
/// The registers' physical address, for xAPIC.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
static BY_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Timer counts per TSC tick, times 2^32.
static COUNTS_PER_TICK: AtomicU64 = AtomicU64::new(0);

/// The MSR that is the register in x2APIC mode.
const fn msr(register: u32) -> u32 {
    0x800 + (register >> 4)
}

/// The register in xAPIC mode.
fn place(register: u32) -> *mut u32 {
    direct::pointer(PhysAddr(REGISTERS.load(Ordering::Relaxed) + u64::from(register)))
}

fn read(register: u32) -> u32 {
    if MODE.load(Ordering::Relaxed) == X2APIC {
        // SAFETY: in x2APIC mode the processor has all of the registers named above.
        let value = unsafe { read_msr(msr(register)) };
        return (value & 0xffff_ffff) as u32;
    }
    // SAFETY: the address space maps the registers, uncached, before the mode is set.
    unsafe { place(register).read_volatile() }
}

fn write(register: u32, value: u32) {
    if MODE.load(Ordering::Relaxed) == X2APIC {
        // SAFETY: in x2APIC mode the processor has all of the registers named above, and they touch no memory.
        return unsafe { write_msr(msr(register), u64::from(value)) };
    }
    // SAFETY: the address space maps the registers, uncached, before the mode is set.
    unsafe { place(register).write_volatile(value) };
}

/// Where the registers are, to be mapped uncached before [`enable`].
#[must_use]
pub fn registers() -> PhysAddr {
    // SAFETY: every processor in long mode has a local APIC and this register.
    PhysAddr(unsafe { read_msr(MSR_APIC_BASE) } & BASE_ADDRESS)
}

/// Turns this core's local APIC on, with everything in it masked.
///
/// # Safety
/// The page at [`registers`] is mapped, uncached, in the direct map, and the interrupt descriptor table is loaded.
pub unsafe fn enable() {
    // SAFETY: every processor in long mode has a local APIC and this register.
    let base = unsafe { read_msr(MSR_APIC_BASE) };
    let x2apic = cpuid(1, 0)[2] >> 21 & 1 != 0;
    // SAFETY: from off or xAPIC to xAPIC is a legal transition.
    unsafe { write_msr(MSR_APIC_BASE, base | BASE_ENABLE) };
    if x2apic {
        // SAFETY: from xAPIC or x2APIC to x2APIC is a legal transition, and the processor has it.
        unsafe { write_msr(MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC) };
    }
    REGISTERS.store(base & BASE_ADDRESS, Ordering::Relaxed);
    BY_DEADLINE.store(cpuid(1, 0)[2] >> 24 & 1 != 0, Ordering::Relaxed);
    MODE.store(if x2apic { X2APIC } else { XAPIC }, Ordering::Release);
    write(SPURIOUS, SOFTWARE_ENABLE | SPURIOUS_VECTOR);
    write(TASK_PRIORITY, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Lets this core's timer interrupt, once it is set.
pub fn arm_timer_interrupt() {
    if BY_DEADLINE.load(Ordering::Relaxed) {
        write(LVT_TIMER, TSC_DEADLINE_MODE | u32::from(TIMER_VECTOR));
        // The mode has to be set before the first deadline is (Intel SDM 3A, 11.5.4.1).
        // SAFETY: SSE2 is part of x86-64.
        unsafe { core::arch::x86_64::_mm_mfence() };
    } else {
        write(LVT_TIMER, u32::from(TIMER_VECTOR));
    }
}

/// Tells all cores' timers how fast they count, and arms this core's.
pub fn set_frequencies(frequencies: Frequencies) {
    let ratio = (u128::from(frequencies.apic_hz) << 32) / u128::from(frequencies.tsc_hz.max(1));
    COUNTS_PER_TICK.store(u64::try_from(ratio).unwrap_or(u64::MAX), Ordering::Relaxed);
    write(TIMER_INITIAL, 0);
    arm_timer_interrupt();
}

/// Lets the count run down from its greatest value, without an interrupt: to be measured with [`count`].
pub fn start_count() {
    write(LVT_TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
}

/// What is left of the count.
#[must_use]
pub fn count() -> u32 {
    read(TIMER_CURRENT)
}

/// Ends the interrupt that is being served.
#[inline]
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Lets the timer interrupt come at `deadline` (TSC ticks), or at once when that has passed; [`NEVER`] disarms it.
pub fn set_timer(deadline: u64) {
    if BY_DEADLINE.load(Ordering::Relaxed) {
        // Zero disarms; the past fires at once.
        let value = if deadline == NEVER { 0 } else { deadline.max(1) };
        // SAFETY: CPUID says that the register is there; it touches no memory.
        return unsafe { write_msr(MSR_TSC_DEADLINE, value) };
    }
    let count = if deadline == NEVER {
        0
    } else {
        let ticks = u128::from(deadline.saturating_sub(read_tsc()));
        let counts = (ticks * u128::from(COUNTS_PER_TICK.load(Ordering::Relaxed))) >> 32;
        // One more, because the divisions round down; and never zero, which would disarm.
        u32::try_from(counts).unwrap_or(u32::MAX).saturating_add(1)
    };
    write(TIMER_INITIAL, count);
}

/// Sends an interrupt command.
fn command(apic_id: u32, low: u32) {
    if MODE.load(Ordering::Relaxed) == X2APIC {
        // SAFETY: the command register of the x2APIC; what is sent is one of the commands below.
        unsafe { write_msr(msr(COMMAND_LOW), u64::from(apic_id) << 32 | u64::from(low)) };
        return;
    }
    write(COMMAND_HIGH, apic_id << 24);
    write(COMMAND_LOW, low);
    // The next command would overwrite one that has not left yet; it leaves within microseconds.
    for _ in 0..100_000 {
        if read(COMMAND_LOW) & DELIVERY_PENDING == 0 {
            break;
        }
        core::hint::spin_loop();
    }
}

/// Sends a vector to another core.
pub fn send(apic_id: u32, vector: u8) {
    // In x2APIC mode a command does not wait for the stores before it, which the other core is to see.
    // SAFETY: SSE2 is part of x86-64.
    unsafe { core::arch::x86_64::_mm_mfence() };
    command(apic_id, ASSERT | u32::from(vector));
}

/// Resets another core.
pub fn send_init(apic_id: u32) {
    command(apic_id, INIT);
}

/// Starts a core that was reset, in real mode at page number `page`.
pub fn send_startup(apic_id: u32, page: u8) {
    command(apic_id, STARTUP | u32::from(page));
}

/// Sends an NMI to every other core, when there is an APIC to do it.
pub fn send_nmi_to_others() {
    if MODE.load(Ordering::Acquire) != OFF {
        command(0, NMI_TO_OTHERS);
    }
}
