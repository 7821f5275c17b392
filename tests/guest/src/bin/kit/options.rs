//! The command line.

use core::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What to do with ports that Linux lists as somebody's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClaimedPorts {
    /// They are tried like any others.
    Use,
    /// They are left alone.
    Avoid,
}

/// Which clock source Linux must have chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClockSource {
    /// It does not matter.
    Any,
    /// `kvm-clock`.
    KvmClock,
}

/// What the flags say; `kit` without arguments lists them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// What random choices begin with.
    pub seed: u64,
    /// Iterations of a test's main loop, instead of its own number.
    pub iterations: Option<u64>,
    /// Percent of every test's own numbers.
    pub effort: u64,
    /// Memory in MiB.
    pub mib: Option<usize>,
    /// Pages in a chunk of the benchmark of first touches.
    pub pages: usize,
    /// How long a test may take when all are run.
    pub limit: Duration,
    /// The clock source to expect.
    pub clock_source: ClockSource,
    /// Whether claimed ports are tried.
    pub claimed_ports: ClaimedPorts,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            iterations: None,
            effort: 100,
            mib: None,
            pages: 2048,
            limit: Duration::from_secs(600),
            clock_source: ClockSource::Any,
            claimed_ports: ClaimedPorts::Use,
        }
    }
}

impl Options {
    /// Reads pairs of a flag and its value.
    ///
    /// # Errors
    /// A flag is unknown or lacks its value, or the value is not one.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for pair in arguments.chunks(2) {
            let [flag, value] = pair else { bail!("{} lacks its value", pair.concat()) };
            let number = || value.parse::<u64>().with_context(|| format!("{flag} {value}: not a number"));
            match flag.as_str() {
                "--seed" => options.seed = number()?,
                "--iterations" => options.iterations = Some(number()?),
                "--effort" => options.effort = number()?,
                "--mib" => options.mib = Some(usize::try_from(number()?)?),
                "--pages" => options.pages = usize::try_from(number()?)?,
                "--limit" => options.limit = Duration::from_secs(number()?),
                "--expect-kvmclock" => {
                    options.clock_source =
                        if yes(flag, value)? { ClockSource::KvmClock } else { ClockSource::Any };
                }
                "--claimed-ports" => {
                    options.claimed_ports =
                        if yes(flag, value)? { ClaimedPorts::Use } else { ClaimedPorts::Avoid };
                }
                _ => bail!("unknown flag {flag}"),
            }
        }
        ensure!(options.iterations != Some(0) && options.pages != 0, "0 of nothing can be tested");
        Ok(options)
    }

    /// Iterations of a test's main loop whose own number is `usual`.
    pub fn iterations(&self, usual: u64) -> u64 {
        self.iterations.unwrap_or_else(|| self.scaled(usual))
    }

    /// A test's own number, as the effort scales it; at least 1.
    pub fn scaled(&self, usual: u64) -> u64 {
        (usual.saturating_mul(self.effort) / 100).max(1)
    }
}

fn yes(flag: &str, value: &str) -> Result<bool> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => bail!("{flag} is yes or no, not {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read() {
        let options = parse("--seed 7 --iterations 3 --expect-kvmclock yes --claimed-ports no").unwrap();
        assert_eq!((options.seed, options.iterations(10)), (7, 3));
        assert_eq!(options.clock_source, ClockSource::KvmClock);
        assert_eq!(options.claimed_ports, ClaimedPorts::Avoid);
        assert_eq!(parse("--effort 1").unwrap().iterations(50), 1);
        assert_eq!(parse("--effort 300").unwrap().iterations(50), 150);
    }

    #[test]
    fn what_is_no_flag_is_refused() {
        for line in ["--seed", "--seed x", "--what 1", "--expect-kvmclock 1", "--iterations 0", "--seed -1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
