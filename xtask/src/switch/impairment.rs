//! What the switch does to frames on request, and how that is written on the command line:
//! `loss=1%,dup=0.1%,reorder=1%,delay=50us,jitter=20us,corrupt=10ppm`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MILLION: u64 = 1_000_000;
/// The longest delay or jitter that is accepted.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// How likely something is, in parts per million.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Probability(u32);

impl Probability {
    /// It always happens.
    pub const ALWAYS: Self = Self(1_000_000);

    /// So many parts per million; `None` for more than a million.
    #[must_use]
    pub const fn from_ppm(ppm: u32) -> Option<Self> {
        if ppm <= Self::ALWAYS.0 { Some(Self(ppm)) } else { None }
    }

    /// Parts per million.
    #[must_use]
    pub const fn ppm(self) -> u32 {
        self.0
    }
}

/// What happens to the frames from one port to another. The default is nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Impairment {
    /// A frame does not arrive.
    pub loss: Probability,
    /// A frame arrives twice.
    pub duplicate: Probability,
    /// A frame is held back between 0.1 ms and 1 ms, so that later ones overtake it.
    pub reorder: Probability,
    /// One bit of a frame arrives flipped.
    pub corrupt: Probability,
    /// Every frame arrives so much later (whole microseconds).
    pub delay: Duration,
    /// Every frame arrives up to so much later still (whole microseconds). Jitter alone never changes the order.
    pub jitter: Duration,
}

/// Why a text is no [`Impairment`]. Each variant names the part at fault.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ImpairmentError {
    /// The part is not of the form `name=value`.
    NoValue(String),
    /// The name is not one of ours.
    UnknownName(String),
    /// The name was there before.
    Repeated(String),
    /// The value is no probability.
    Probability {
        /// `name=value`.
        part: String,
    },
    /// The value is no time.
    Time {
        /// `name=value`.
        part: String,
    },
}

impl fmt::Display for ImpairmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue(part) => write!(f, "'{part}' is not of the form name=value"),
            Self::UnknownName(name) => {
                write!(f, "'{name}' is not an impairment: loss, dup, reorder, corrupt, delay and jitter are")
            }
            Self::Repeated(name) => write!(f, "'{name}' is given twice"),
            Self::Probability { part } => write!(
                f,
                "'{part}': a probability is a number of % or ppm, from 0% to 100% in steps of 1ppm, such as 0.1%"
            ),
            Self::Time { part } => write!(
                f,
                "'{part}': a time is a number of us, ms or s, from 0us to {}s in steps of 1us, such as 50us",
                MAX_DELAY.as_secs()
            ),
        }
    }
}

impl std::error::Error for ImpairmentError {}

impl FromStr for Impairment {
    type Err = ImpairmentError;

    fn from_str(text: &str) -> Result<Self, ImpairmentError> {
        let mut impairment = Self::default();
        let mut seen = Vec::new();
        if text.trim().is_empty() {
            return Ok(impairment);
        }
        for part in text.split(',').map(str::trim) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| ImpairmentError::NoValue(part.to_owned()))?;
            if seen.contains(&name) {
                return Err(ImpairmentError::Repeated(name.to_owned()));
            }
            seen.push(name);
            let probability = || {
                parse_probability(value).ok_or_else(|| ImpairmentError::Probability { part: part.to_owned() })
            };
            let time = || parse_time(value).ok_or_else(|| ImpairmentError::Time { part: part.to_owned() });
            match name {
                "loss" => impairment.loss = probability()?,
                "dup" => impairment.duplicate = probability()?,
                "reorder" => impairment.reorder = probability()?,
                "corrupt" => impairment.corrupt = probability()?,
                "delay" => impairment.delay = time()?,
                "jitter" => impairment.jitter = time()?,
                _ => return Err(ImpairmentError::UnknownName(name.to_owned())),
            }
        }
        Ok(impairment)
    }
}

impl fmt::Display for Impairment {
    /// In the form that [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let probabilities = [
            ("loss", self.loss),
            ("dup", self.duplicate),
            ("reorder", self.reorder),
            ("corrupt", self.corrupt),
        ];
        for (name, probability) in probabilities.into_iter().filter(|(_, p)| *p != Probability::default()) {
            write!(f, "{comma}{name}={}ppm", probability.ppm())?;
            comma = ",";
        }
        for (name, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            if !time.is_zero() {
                write!(f, "{comma}{name}={}us", time.as_micros())?;
                comma = ",";
            }
        }
        Ok(())
    }
}

fn parse_probability(text: &str) -> Option<Probability> {
    let ppm = match text.strip_suffix("ppm") {
        Some(number) => parse_scaled(number, 1)?,
        None => parse_scaled(text.strip_suffix('%')?, MILLION / 100)?,
    };
    Probability::from_ppm(u32::try_from(ppm).ok()?)
}

fn parse_time(text: &str) -> Option<Duration> {
    let microseconds = if let Some(number) = text.strip_suffix("us") {
        parse_scaled(number, 1)?
    } else if let Some(number) = text.strip_suffix("ms") {
        parse_scaled(number, 1000)?
    } else {
        parse_scaled(text.strip_suffix('s')?, MILLION)?
    };
    Some(Duration::from_micros(microseconds)).filter(|time| *time <= MAX_DELAY)
}

/// The decimal number `text` times `scale`, a power of ten; `None` unless that is a whole number.
fn parse_scaled(text: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut weight = scale;
    for digit in fraction.bytes().map(|byte| u64::from(byte - b'0')) {
        if digit != 0 && weight < 10 {
            return None;
        }
        weight /= 10;
        value = value.checked_add(digit * weight)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::{Impairment, Probability};
    use rand::{Rng as _, SeedableRng as _};
    use std::time::Duration;

    fn ppm(ppm: u32) -> Probability {
        Probability::from_ppm(ppm).unwrap()
    }

    #[test]
    fn the_example_is_understood() {
        let parsed: Impairment =
            "loss=1%,dup=0.1%, reorder=12.3456%,delay=50us,jitter=1.5ms,corrupt=10ppm".parse().unwrap();
        let expected = Impairment {
            loss: ppm(10_000),
            duplicate: ppm(1000),
            reorder: ppm(123_456),
            corrupt: ppm(10),
            delay: Duration::from_micros(50),
            jitter: Duration::from_micros(1500),
        };
        assert_eq!(parsed, expected);
        assert_eq!("".parse(), Ok(Impairment::default()));
        assert_eq!("loss=100%,delay=10s".parse::<Impairment>().unwrap().loss, Probability::ALWAYS);
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for _ in 0..1000 {
            let mut probability =
                || ppm(if random.random() { 0 } else { random.random_range(0..=1_000_000) });
            let impairment = Impairment {
                loss: probability(),
                duplicate: probability(),
                reorder: probability(),
                corrupt: probability(),
                delay: Duration::from_micros(random.random_range(0..=10_000_000)),
                jitter: Duration::from_micros(random.random_range(0..=1)),
            };
            assert_eq!(impairment.to_string().parse(), Ok(impairment));
        }
    }

    #[test]
    fn an_error_names_the_part_at_fault() {
        let cases = [
            ("loss", "'loss' is not of the form name=value"),
            ("loss=1%,", "'' is not of the form"),
            ("los=1%", "'los' is not an impairment"),
            ("loss=1%,loss=2%", "'loss' is given twice"),
            ("delay=1us,loss=1", "'loss=1': a probability"),
            ("loss=101%", "'loss=101%'"),
            ("loss=100.0001%", "'loss=100.0001%'"),
            ("loss=0.00001%", "'loss=0.00001%'"),
            ("loss=.5%", "'loss=.5%'"),
            ("loss=1.%", "'loss=1.%'"),
            ("loss=-1%", "'loss=-1%'"),
            ("loss=+1%", "'loss=+1%'"),
            ("loss=1.2.3%", "'loss=1.2.3%'"),
            ("loss=1.5ppm", "'loss=1.5ppm'"),
            ("loss=99999999999999999999%", "'loss=99999999999999999999%'"),
            ("loss=18446744073709551615%", "'loss=18446744073709551615%'"),
            ("delay=50", "'delay=50': a time"),
            ("delay=11s", "'delay=11s'"),
            ("jitter=1.5us", "'jitter=1.5us'"),
            ("jitter=1ns", "'jitter=1ns'"),
            ("jitter=", "'jitter='"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Impairment>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
