//! Time: what ticks of the TSC mean, and kvmclock, which tells the guest.
//!
//! Device models count time in *ticks*: TSC ticks of the guest's machine since it was started, the same on every vCPU
//! and out of the guest's reach. A vCPU's own TSC is ahead of them by what the guest wrote to it, its *skew*
//! (IA32_TSC_ADJUST, see [`crate::msr`]).
//!
//! kvmclock (Linux, Documentation/virt/kvm/x86/msr.rst and cpuid.rst) is one line, the same for all vCPUs, that is never
//! anchored anew while the rate of the TSC stays: two vCPUs can not drift apart, and time never steps.

use core::num::NonZeroU64;
use core::sync::atomic::{Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::{GuestMemory, GuestPhysAddr, NotMemory};

#[cfg(test)]
mod tests;

/// Nanoseconds in a second.
pub const NANOSECONDS: u32 = 1_000_000_000;

/// Turns ticks into counts of slower clocks and back, without rounding errors that add up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timebase {
    tsc_hz: NonZeroU64,
}

impl Timebase {
    /// Time with so many ticks a second.
    #[must_use]
    pub const fn new(tsc_hz: NonZeroU64) -> Self {
        Self { tsc_hz }
    }

    /// Ticks a second.
    #[must_use]
    pub const fn tsc_hz(self) -> u64 {
        self.tsc_hz.get()
    }

    /// How often a clock of `hz` has ticked at `ticks`; `u64::MAX` when that is more than fits.
    #[must_use]
    pub fn count(self, ticks: u64, hz: u32) -> u64 {
        let count = u128::from(ticks) * u128::from(hz) / u128::from(self.tsc_hz.get());
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The first tick at which a clock of `hz` has ticked `count` times; `u64::MAX` when that is beyond all time, or when
    /// `hz` is 0.
    #[must_use]
    pub fn ticks_at(self, count: u64, hz: u32) -> u64 {
        if hz == 0 {
            return u64::MAX;
        }
        let ticks = (u128::from(count) * u128::from(self.tsc_hz.get())).div_ceil(u128::from(hz));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// How kvmclock turns TSC ticks into nanoseconds: shift by `shift` (left if positive), multiply by `multiplier`/2^32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scale {
    /// 2^31 or more, so that all 32 bits count.
    pub multiplier: u32,
    /// -34 to 30.
    pub shift: i8,
}

impl Scale {
    /// The scale for a TSC of this rate: the largest that is never ahead of the true time, and less than one part in 2^31
    /// behind it.
    #[must_use]
    pub fn of(tsc_hz: NonZeroU64) -> Self {
        let (mut nanoseconds, mut ticks) = (u128::from(NANOSECONDS) << 32, u128::from(tsc_hz.get()));
        let mut shift = 0;
        // nanoseconds / ticks is the multiplier of shift 0. Both loops end: one side doubles each time.
        while nanoseconds / ticks > u128::from(u32::MAX) {
            ticks <<= 1;
            shift += 1;
        }
        while nanoseconds / ticks < 1 << 31 {
            nanoseconds <<= 1;
            shift -= 1;
        }
        let multiplier = u32::try_from(nanoseconds / ticks).unwrap_or(u32::MAX);
        Self { multiplier, shift }
    }

    /// Nanoseconds in so many ticks, computed as the guest computes them; it wraps as the guest's does.
    #[must_use]
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let by = u32::from(self.shift.unsigned_abs());
        let shifted = if self.shift < 0 { ticks.checked_shr(by) } else { ticks.checked_shl(by) };
        let product = u128::from(shifted.unwrap_or(0)) * u128::from(self.multiplier);
        #[expect(clippy::cast_possible_truncation, reason = "at most 64 bits are left")]
        let nanoseconds = (product >> 32) as u64;
        nanoseconds
    }
}

/// `pvclock_vcpu_time_info`, a vCPU's clock page.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TimeInfo {
    /// Odd while the rest changes.
    pub version: u32,
    /// Zero.
    pub pad0: u32,
    /// The vCPU's TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds.
    pub system_time: u64,
    /// [`Scale::multiplier`].
    pub tsc_to_system_mul: u32,
    /// [`Scale::shift`].
    pub tsc_shift: i8,
    /// [`TSC_STABLE`].
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// `pvclock_wall_clock`: the time of day at which system time was 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct WallClock {
    /// Odd while the rest changes.
    pub version: u32,
    /// Seconds since 1970.
    pub seconds: u32,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

const _: () = assert!(size_of::<TimeInfo>() == 32);
const _: () = assert!(core::mem::offset_of!(TimeInfo, tsc_timestamp) == 8);
const _: () = assert!(core::mem::offset_of!(TimeInfo, tsc_shift) == 28);
const _: () = assert!(size_of::<WallClock>() == 12);

/// [`TimeInfo::flags`]: the pages of all vCPUs show one and the same time (PVCLOCK_TSC_STABLE_BIT).
pub const TSC_STABLE: u8 = 1;

/// The guest's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    scale: Scale,
    /// Ticks and nanoseconds of one moment, from which the line goes on.
    anchor_ticks: u64,
    anchor_nanoseconds: u64,
    /// Nanoseconds since 1970 at system time 0.
    unix_nanoseconds: u64,
}

impl Clock {
    /// A clock whose system time is 0 at tick 0, which was so many nanoseconds after 1970.
    #[must_use]
    pub fn new(timebase: Timebase, unix_nanoseconds: u64) -> Self {
        let scale = Scale::of(timebase.tsc_hz);
        Self { scale, anchor_ticks: 0, anchor_nanoseconds: 0, unix_nanoseconds }
    }

    /// Goes on with another rate of the TSC from tick `now` on. Every page must be published anew before its vCPU runs.
    pub fn change_rate(&mut self, timebase: Timebase, now: u64) {
        self.anchor_nanoseconds = self.nanoseconds(now);
        self.anchor_ticks = now;
        self.scale = Scale::of(timebase.tsc_hz);
    }

    /// System time at tick `now`, in nanoseconds.
    #[must_use]
    pub fn nanoseconds(&self, now: u64) -> u64 {
        let since = self.scale.nanoseconds(now.wrapping_sub(self.anchor_ticks));
        self.anchor_nanoseconds.wrapping_add(since)
    }

    /// Writes the clock page of a vCPU whose TSC is `skew` ahead of the ticks (IA32_TSC_ADJUST). The vCPU itself must not
    /// run meanwhile; others may read its page.
    ///
    /// # Errors
    /// [`NotMemory`], and nothing is written.
    pub fn publish(
        &self,
        memory: &mut impl GuestMemory,
        at: GuestPhysAddr,
        skew: u64,
    ) -> Result<(), NotMemory> {
        let there: TimeInfo = memory.get(at)?;
        let info = TimeInfo {
            version: odd_after(there.version),
            pad0: 0,
            tsc_timestamp: self.anchor_ticks.wrapping_add(skew),
            system_time: self.anchor_nanoseconds,
            tsc_to_system_mul: self.scale.multiplier,
            tsc_shift: self.scale.shift,
            flags: TSC_STABLE,
            pad: [0; 2],
        };
        publish(memory, at, info.version, info.as_bytes())
    }

    /// Writes the wall clock.
    ///
    /// # Errors
    /// [`NotMemory`], and nothing is written.
    pub fn publish_wall(&self, memory: &mut impl GuestMemory, at: GuestPhysAddr) -> Result<(), NotMemory> {
        let there: WallClock = memory.get(at)?;
        let seconds = self.unix_nanoseconds / u64::from(NANOSECONDS);
        let nanoseconds = self.unix_nanoseconds % u64::from(NANOSECONDS);
        let wall = WallClock {
            version: odd_after(there.version),
            // The format ends in 2106.
            seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        };
        publish(memory, at, wall.version, wall.as_bytes())
    }
}

/// The next odd version.
const fn odd_after(version: u32) -> u32 {
    version.wrapping_add(1) | 1
}

/// Writes a structure that begins with its version: first the odd version alone, then all, then the even one. A reader
/// that sees the same even version before and after has read one state.
fn publish(
    memory: &mut impl GuestMemory,
    at: GuestPhysAddr,
    odd: u32,
    structure: &[u8],
) -> Result<(), NotMemory> {
    memory.write(at, odd.as_bytes())?;
    fence(Ordering::Release);
    memory.write(at, structure)?;
    fence(Ordering::Release);
    memory.write(at, odd.wrapping_add(1).as_bytes())
}
