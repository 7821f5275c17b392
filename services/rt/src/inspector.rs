//! Reading the kernel's counters, and loads made of them.

use ipc::abi::{Error, Inspect, MESSAGE_WORDS};

/// Where the kernel's counters come from.
pub trait Inspector {
    /// The words of one item.
    ///
    /// # Errors
    /// [`Error::NoSuchItem`] past the last index, [`Error::Refused`] without the right to inspect.
    fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; MESSAGE_WORDS], Error>;
}

/// The kernel itself.
#[cfg(feature = "metal")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

#[cfg(feature = "metal")]
impl Inspector for Kernel {
    fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; MESSAGE_WORDS], Error> {
        crate::syscall::inspect(item, index)
    }
}

/// How busy something was between the last two looks at it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LoadMeter {
    busy: u64,
    total: u64,
    permille: u16,
}

impl LoadMeter {
    /// Takes a look: `busy` of `total` ticks since the kernel's start. Counters that do not grow leave the
    /// load as it was.
    pub fn look(&mut self, busy: u64, total: u64) {
        let (Some(busy_since), Some(since)) = (busy.checked_sub(self.busy), total.checked_sub(self.total))
        else {
            return;
        };
        if since == 0 {
            return;
        }
        let permille = u128::from(busy_since) * 1_000 / u128::from(since);
        self.permille = u16::try_from(permille.min(1_000)).unwrap_or(1_000);
        self.busy = busy;
        self.total = total;
    }

    /// The load in permille.
    #[must_use]
    pub fn permille(&self) -> u16 {
        self.permille
    }
}

#[cfg(test)]
mod tests {
    use super::LoadMeter;

    #[test]
    fn a_load_is_that_since_the_last_look() {
        let mut meter = LoadMeter::default();
        meter.look(100, 1_000);
        assert_eq!(meter.permille(), 100);
        meter.look(100, 1_000);
        assert_eq!(meter.permille(), 100);
        meter.look(600, 2_000);
        assert_eq!(meter.permille(), 500);
        meter.look(600, 3_000);
        assert_eq!(meter.permille(), 0);
    }

    #[test]
    fn counters_that_lie_are_bounded() {
        let mut meter = LoadMeter::default();
        meter.look(u64::MAX, 1);
        assert_eq!(meter.permille(), 1_000);
        meter.look(0, 10);
        assert_eq!(meter.permille(), 1_000);
        meter.look(u64::MAX, u64::MAX);
        assert_eq!(meter.permille(), 0);
    }
}
