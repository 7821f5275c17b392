//! How fast the time-stamp counter and the APIC timer go.
//!
//! Both are measured over 20 ms against the ACPI power-management timer, or the PIT where that is missing. Each end of a
//! measurement is an event that the counter is read just before and just after; of several tries the one with the
//! least time between the two counts, so that a virtual core which is held up in the middle does no harm. CPUID's
//! figure for the TSC is exact where it is true, so it is taken when it agrees with the measurement.
#![expect(unsafe_code, reason = "port I/O")]

use super::apic;
use super::instructions::{cpuid, in8, in32, out8, read_tsc};

/// Ticks per second.
#[derive(Clone, Copy, Debug)]
pub struct Frequencies {
    /// Of the time-stamp counter.
    pub tsc_hz: u64,
    /// Of the APIC timer.
    pub apic_hz: u64,
}

const WINDOWS_PER_SECOND: u64 = 50;
/// Ticks of the power-management timer per second (ACPI 6.5, 4.8.3.3).
const PM_TIMER_HZ: u64 = 3_579_545;
/// The timer has at least this many bits.
const PM_TIMER_MASK: u32 = 0x00ff_ffff;
/// Ticks of the PIT per second.
const PIT_HZ: u64 = 1_193_182;
const PIT_MASK: u32 = 0xffff;
/// Polls after which a clock counts as stopped: a second or more, as a port read takes about 1 us.
const MOST_POLLS: u32 = 1_000_000;

/// Tries of each measurement.
const TRIES: usize = 5;

/// Both counters at one moment.
#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    /// Counts down.
    apic: u32,
    /// By how much `tsc` can be wrong.
    error: u64,
}

impl Sample {
    /// The moment between `before` and now.
    fn since(before: u64) -> Self {
        let apic = apic::count();
        let error = read_tsc().saturating_sub(before);
        Self { tsc: before + error / 2, apic, error }
    }

    /// Ticks per second, when the time from `self` to `end` is `denominator / numerator` seconds.
    fn frequencies(self, end: Self, numerator: u64, denominator: u64) -> Option<Frequencies> {
        let per_second = |ticks: u64| {
            u64::try_from(u128::from(ticks) * u128::from(numerator) / u128::from(denominator.max(1))).ok()
        };
        let tsc_hz = per_second(end.tsc.checked_sub(self.tsc)?)?;
        let apic_hz = per_second(u64::from(self.apic.checked_sub(end.apic)?))?;
        Some(Frequencies { tsc_hz, apic_hz })
    }
}

/// Measures, with the power-management timer at port `pm_timer` (from the FADT) when there is one. `None` when no
/// clock runs.
#[must_use]
pub fn measure(pm_timer: Option<u16>) -> Option<Frequencies> {
    apic::start_count();
    // SAFETY: the FADT names the port as this timer's, which only counts.
    let by_pm_timer =
        pm_timer.and_then(|port| against(PM_TIMER_HZ, PM_TIMER_MASK, &|| unsafe { in32(port) }));
    let measured = by_pm_timer.or_else(|| {
        start_pit();
        against(PIT_HZ, PIT_MASK, &read_pit)
    })?;
    let tsc_hz = stated_tsc_hz().filter(|&stated| agrees(stated, measured.tsc_hz)).unwrap_or(measured.tsc_hz);
    if tsc_hz == 0 { None } else { Some(Frequencies { tsc_hz, ..measured }) }
}

/// Within one in 256.
const fn agrees(stated: u64, measured: u64) -> bool {
    stated.abs_diff(measured) < measured / 256
}

/// Measures against a clock that counts up `hz` times a second, modulo `mask` + 1.
fn against(hz: u64, mask: u32, clock: &dyn Fn() -> u32) -> Option<Frequencies> {
    let now = || clock() & mask;
    // The clock's next step: its count then, and the counters.
    let step = || {
        let old = now();
        let mut before = read_tsc();
        for _ in 0..MOST_POLLS {
            let count = now();
            if count != old {
                return Some((count, Sample::since(before)));
            }
            before = read_tsc();
        }
        None
    };
    let best = || (0..TRIES).filter_map(|_| step()).min_by_key(|(_, sample)| sample.error);
    let (first, start) = best()?;
    let passed = |count: u32| u64::from(count.wrapping_sub(first) & mask);
    (0..MOST_POLLS).find(|_| passed(now()) >= hz / WINDOWS_PER_SECOND)?;
    let (last, end) = best()?;
    start.frequencies(end, hz, passed(last))
}

/// The PIT's channel 2, its command register, and the port of its gate (bit 0) and the speaker (bit 1).
const PIT_CHANNEL: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const PIT_GATE: u16 = 0x61;

fn write(port: u16, value: u8) {
    // SAFETY: the PIT's channel 2 and its gate raise no interrupt and touch no memory.
    unsafe { out8(port, value) };
}

fn read(port: u16) -> u8 {
    // SAFETY: as for writing.
    unsafe { in8(port) }
}

/// Lets channel 2 count down from 65,536 again and again (Intel 8254 datasheet, mode 2).
fn start_pit() {
    write(PIT_GATE, read(PIT_GATE) & !0x02 | 0x01);
    write(PIT_COMMAND, 0b1011_0100);
    write(PIT_CHANNEL, 0);
    write(PIT_CHANNEL, 0);
}

/// How far it has counted.
fn read_pit() -> u32 {
    write(PIT_COMMAND, 0b1000_0000); // holds the count until both bytes are read
    let low = read(PIT_CHANNEL);
    let high = read(PIT_CHANNEL);
    u32::from(u16::from_le_bytes([low, high])).wrapping_neg()
}

/// What CPUID says of the TSC: leaf 0x15, with leaf 0x16's base frequency where the crystal's is left out (Intel SDM
/// 3B, 18.7.3).
fn stated_tsc_hz() -> Option<u64> {
    let last = cpuid(0, 0)[0];
    if last < 0x15 {
        return None;
    }
    let [denominator, numerator, crystal_hz, _] = cpuid(0x15, 0);
    if denominator == 0 || numerator == 0 {
        return None;
    }
    if crystal_hz != 0 {
        return Some(u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator));
    }
    if last < 0x16 {
        return None;
    }
    Some(u64::from(cpuid(0x16, 0)[0] & 0xffff) * 1_000_000)
}

/// Waits so many TSC ticks.
pub fn wait(ticks: u64) {
    let start = read_tsc();
    while read_tsc().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}
