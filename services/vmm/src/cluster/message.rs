//! What the platforms of a guest's nodes say to each other: 24 bytes, little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0-3 | the number of the guest's start ("run") |
//! | 4 | which message |
//! | 5-7 | small fields |
//! | 8-15 | a word |
//! | 16-23 | a word |
//!
//! Bytes without a meaning are 0. Decoding is total: what is no message becomes `None`.

#[cfg(test)]
mod tests;

use ipc::wire::MESSAGE_BYTES;

use super::ending::Ending;
use crate::interrupt::{DeliveryMode, Interrupt, Trigger};

/// The run of a platform that does not know it any more, because it failed and was restarted. It is every run.
pub const ANY_RUN: u32 = 0;

/// A message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// Of which start of the guest.
    pub run: u32,
    /// What it says.
    pub say: Say,
}

/// What a message says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Say {
    /// First node to others: a guest is to start.
    Prepare,
    /// Other to first: its memory's service has begun.
    Ready,
    /// First to others: the guest's memory is loaded, and it runs.
    Go(Go),
    /// To any: a vCPU there gets an interrupt.
    Signal(Signal),
    /// Other to first: a device is accessed, and the vCPU waits for the answer.
    Access {
        /// Which of its sender's.
        id: u32,
        /// What is done.
        access: Access,
    },
    /// First to other: what an access gave.
    Answer {
        /// The access's.
        id: u32,
        /// What was read; 0 for a write.
        value: u32,
    },
    /// Other to first: the end of an interrupt whose source is served until it is quiet.
    EndOfInterrupt {
        /// Its vector.
        vector: u8,
    },
    /// Other to first: its part of the guest is over.
    Ended(Ending),
    /// First to others: the guest is over, and its vCPUs are to be stopped. Memory stays, because others may still need it.
    Stop,
    /// Other to first: its vCPUs are stopped.
    Stopped,
    /// First to others: nobody needs the guest's memory any more.
    Release {
        /// How the guest ended.
        ending: Ending,
        /// Whether the nodes are powered off now.
        power_off: bool,
    },
}

/// With what a guest starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Go {
    /// The cluster's time at which the guest's TSC is 0, in ticks.
    pub start: u64,
    /// Seconds from 1970 until then. The guest's own format ends in 2106, too.
    pub unix_seconds: u32,
    /// Thousands of ticks of the TSC in a second. All nodes use the first one's: measured by each for itself it would be
    /// another number, and the guest's clock would not be one.
    pub tsc_khz: u32,
}

/// An interrupt for one vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signal {
    /// Its number among all of the guest's.
    pub vcpu: u8,
    /// How it is told.
    pub delivery: DeliveryMode,
    /// See [`Interrupt::vector`].
    pub vector: u8,
    /// See there.
    pub trigger: Trigger,
}

impl Signal {
    /// The part of an interrupt that reaches a vCPU.
    #[must_use]
    pub const fn of(interrupt: &Interrupt, vcpu: u8) -> Self {
        let Interrupt { delivery, vector, trigger, .. } = *interrupt;
        Self { vcpu, delivery, vector, trigger }
    }
}

/// Where devices have registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Space {
    /// I/O ports.
    Ports = 0,
    /// The I/O APIC; an address is the offset in its page.
    IoApic = 1,
}

/// A read or write of a device's register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// The register.
    pub address: u16,
    /// Bytes, from 1 to 15. Reads of the I/O APIC give 4, whatever it is.
    pub bytes: u8,
    /// What is written; `None` reads.
    pub write: Option<u32>,
}

const WRITES: u8 = 1;
const LEVEL: u8 = 1;
const POWER_OFF: u8 = 1;

impl Message {
    /// The message on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let (kind, small, first, second) = match self.say {
            Say::Prepare => (1, [0; 3], 0, 0),
            Say::Ready => (2, [0; 3], 0, 0),
            Say::Go(Go { start, unix_seconds, tsc_khz }) => {
                (3, [0; 3], start, u64::from(tsc_khz) << 32 | u64::from(unix_seconds))
            }
            Say::Signal(Signal { vcpu, delivery, vector, trigger }) => {
                let level = if trigger == Trigger::Level { LEVEL } else { 0 };
                (4, [vcpu, delivery as u8, vector], level.into(), 0)
            }
            Say::Access { id, access: Access { space, address, bytes, write } } => {
                let writes = if write.is_some() { WRITES } else { 0 };
                let value = u64::from(write.unwrap_or(0));
                let word = u64::from(address) << 32 | u64::from(id);
                (5, [space as u8, bytes, writes], word, value)
            }
            Say::Answer { id, value } => (6, [0; 3], id.into(), value.into()),
            Say::EndOfInterrupt { vector } => (7, [vector, 0, 0], 0, 0),
            Say::Ended(ending) => {
                let (code, who, word) = ending.encode();
                (8, [code, 0, 0], who.into(), word)
            }
            Say::Stop => (9, [0; 3], 0, 0),
            Say::Stopped => (10, [0; 3], 0, 0),
            Say::Release { ending, power_off } => {
                let (code, who, word) = ending.encode();
                (11, [code, if power_off { POWER_OFF } else { 0 }, 0], who.into(), word)
            }
        };
        let mut bytes = [0; MESSAGE_BYTES];
        let [a, b, c] = small;
        let [low, high] = [self.run.to_le_bytes(), [kind, a, b, c]].map(u32::from_le_bytes).map(u64::from);
        let words = [high << 32 | low, first, second].map(u64::to_le_bytes);
        bytes.copy_from_slice(words.as_flattened());
        bytes
    }

    /// The message that these bytes are.
    #[must_use]
    pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Self> {
        let (&run, rest) = bytes.split_first_chunk()?;
        let run = u32::from_le_bytes(run);
        let (&[kind, a, b, c], rest) = rest.split_first_chunk()?;
        let (&first, rest) = rest.split_first_chunk()?;
        let &second = rest.first_chunk()?;
        let [first, second] = [first, second].map(u64::from_le_bytes);
        let say = match (kind, [a, b, c], first, second) {
            (1, [0, 0, 0], 0, 0) => Say::Prepare,
            (2, [0, 0, 0], 0, 0) => Say::Ready,
            (3, [0, 0, 0], start, times) => {
                let [unix_seconds, tsc_khz] = halves(times);
                Say::Go(Go { start, unix_seconds, tsc_khz })
            }
            (4, [vcpu, delivery, vector], level @ 0..=1, 0) => {
                let delivery = DeliveryMode::from_register(u32::from(delivery) << 8)
                    .filter(|&known| known as u8 == delivery)?;
                let trigger = if level == 0 { Trigger::Edge } else { Trigger::Level };
                Say::Signal(Signal { vcpu, delivery, vector, trigger })
            }
            (5, [space, bytes @ 1..=15, writes @ 0..=1], word, value) => {
                let space = match space {
                    0 => Space::Ports,
                    1 => Space::IoApic,
                    _ => return None,
                };
                let [id, address] = halves(word);
                let (address, value) = (u16::try_from(address).ok()?, u32::try_from(value).ok()?);
                let write = if writes == WRITES { Some(value) } else { None };
                if write.is_none() && value != 0 {
                    return None;
                }
                Say::Access { id, access: Access { space, address, bytes, write } }
            }
            (6, [0, 0, 0], id, value) => {
                Say::Answer { id: u32::try_from(id).ok()?, value: u32::try_from(value).ok()? }
            }
            (7, [vector, 0, 0], 0, 0) => Say::EndOfInterrupt { vector },
            (8, [code, 0, 0], who, word) => Say::Ended(Ending::decode(code, u16::try_from(who).ok()?, word)?),
            (9, [0, 0, 0], 0, 0) => Say::Stop,
            (10, [0, 0, 0], 0, 0) => Say::Stopped,
            (11, [code, power_off @ 0..=1, 0], who, word) => Say::Release {
                ending: Ending::decode(code, u16::try_from(who).ok()?, word)?,
                power_off: power_off == POWER_OFF,
            },
            _ => return None,
        };
        Some(Self { run, say })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}
