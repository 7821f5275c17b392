//! Ports, what is counted at each, and how that is shown.
//!
//! For every port, once nothing is queued or in flight: frames sent to it + `duplicated` - `dropped` on the way to
//! it = `out_frames`. What happens on the way from one port to another is counted at the receiving one.

use super::wire::MAX_ANNOUNCED;
use std::fmt;
use std::io;

/// The most ports of a switch: a [`PortSet`] is one word.
pub const MAX_PORTS: usize = 64;

/// A port of the switch, from 0.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortId(pub u8);

impl PortId {
    /// All ports of a switch with so many ports ([`MAX_PORTS`] at most).
    pub fn all(ports: usize) -> impl Iterator<Item = Self> {
        (0_u8..).map(Self).take(ports.min(MAX_PORTS))
    }

    /// The port's place in a table of ports.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PortSet(u64);

impl PortSet {
    /// Adds a port; whether it was new.
    pub fn insert(&mut self, port: PortId) -> bool {
        let bit = Self::bit(port);
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new && bit != 0
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(self, port: PortId) -> bool {
        self.0 & Self::bit(port) != 0
    }

    /// What is in one of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Its ports, the lowest first.
    pub fn iter(self) -> impl Iterator<Item = PortId> {
        (0_u8..64).map(PortId).filter(move |port| self.contains(*port))
    }

    fn bit(port: PortId) -> u64 {
        1_u64.checked_shl(u32::from(port.0)).unwrap_or(0)
    }
}

impl FromIterator<PortId> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortId>>(ports: I) -> Self {
        let mut set = Self::default();
        for port in ports {
            set.insert(port);
        }
        set
    }
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DropReason {
    /// Shorter than an Ethernet header, or from a group address. Counted at the sender's port.
    Malformed,
    /// Longer than the limit of the port at which it is counted: the sender's or the receiver's.
    TooLong,
    /// The node went away inside the frame. Counted at the sender's port.
    Unfinished,
    /// To an address at the port that it came from, where it is counted.
    OwnPort,
    /// Lost on request.
    Lost,
    /// The two ports are cut from each other.
    Cut,
    /// The receiving port's queue, or the way to it, is full.
    QueueFull,
    /// The receiving port's node went away.
    NoLink,
}

impl DropReason {
    const ALL: [Self; 8] = [
        Self::Malformed,
        Self::TooLong,
        Self::Unfinished,
        Self::OwnPort,
        Self::Lost,
        Self::Cut,
        Self::QueueFull,
        Self::NoLink,
    ];
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too long",
            Self::Unfinished => "unfinished",
            Self::OwnPort => "to own port",
            Self::Lost => "lost",
            Self::Cut => "cut",
            Self::QueueFull => "queue full",
            Self::NoLink => "no link",
        })
    }
}

/// Frames that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// One more.
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// So many more.
    pub fn add(&mut self, reason: DropReason, frames: u64) {
        self.0[reason as usize] += frames;
    }

    /// For one reason.
    #[must_use]
    pub const fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// For all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What is counted at a port. "In" is from the node into the switch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Whole frames that the node sent and that the switch looked at.
    pub in_frames: u64,
    /// Bytes of these.
    pub in_bytes: u64,
    /// Frames that went into the node's socket.
    pub out_frames: u64,
    /// Bytes of these.
    pub out_bytes: u64,
    /// Frames that came no further.
    pub dropped: Drops,
    /// Second copies made on request.
    pub duplicated: u64,
    /// Copies that were held back on request, to be overtaken.
    pub reordered: u64,
    /// Copies in which a bit was flipped on request.
    pub corrupted: u64,
    /// Copies that were delayed on request.
    pub delayed: u64,
}

impl Counters {
    /// What is counted here and there together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.in_frames += other.in_frames;
        self.in_bytes += other.in_bytes;
        self.out_frames += other.out_frames;
        self.out_bytes += other.out_bytes;
        for reason in DropReason::ALL {
            self.dropped.add(reason, other.dropped.get(reason));
        }
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.delayed += other.delayed;
        self
    }
}

/// Whether a node is connected to a port.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LinkState {
    /// Nobody is.
    #[default]
    Down,
    /// A node is.
    Up,
}

/// What a node did to be disconnected, other than closing its socket between two frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortError {
    /// It announced a frame of so many bytes.
    AbsurdLength(u32),
    /// It went away inside a frame.
    UnfinishedFrame,
    /// Reading from its socket failed.
    Read(io::ErrorKind),
    /// Waiting for a connection failed; the port is dead.
    Accept(io::ErrorKind),
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AbsurdLength(bytes) => write!(
                f,
                "disconnected: the node announced a frame of {bytes} bytes (the longest possible is {MAX_ANNOUNCED})"
            ),
            Self::UnfinishedFrame => f.write_str("the node went away inside a frame"),
            Self::Read(kind) => write!(f, "disconnected: reading from the node failed: {kind}"),
            Self::Accept(kind) => write!(f, "the port is dead: waiting for a node failed: {kind}"),
        }
    }
}

/// A port at one moment.
#[derive(Clone, Debug)]
pub struct PortSnapshot {
    /// Which.
    pub port: PortId,
    /// Whether a node is connected.
    pub link: LinkState,
    /// How often a node has connected.
    pub connections: u64,
    /// The counters.
    pub counters: Counters,
    /// How often a node had to be given up.
    pub errors: u64,
    /// The last time's reason.
    pub last_error: Option<PortError>,
}

impl fmt::Display for PortSnapshot {
    /// One line; what is zero is left out, but for frames and bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = match self.link {
            LinkState::Up => "up",
            LinkState::Down => "down",
        };
        let counters = &self.counters;
        write!(
            f,
            "{} {link}: in {} frames {} bytes, out {} frames {} bytes",
            self.port, counters.in_frames, counters.in_bytes, counters.out_frames, counters.out_bytes
        )?;
        if counters.dropped.total() > 0 {
            write!(f, ", dropped {} (", counters.dropped.total())?;
            let mut comma = "";
            for reason in DropReason::ALL {
                let frames = counters.dropped.get(reason);
                if frames > 0 {
                    write!(f, "{comma}{frames} {reason}")?;
                    comma = ", ";
                }
            }
            f.write_str(")")?;
        }
        let done = [
            ("duplicated", counters.duplicated),
            ("reordered", counters.reordered),
            ("corrupted", counters.corrupted),
            ("delayed", counters.delayed),
        ];
        for (name, frames) in done.into_iter().filter(|(_, frames)| *frames > 0) {
            write!(f, ", {name} {frames}")?;
        }
        if self.connections > 1 {
            write!(f, ", connected {} times", self.connections)?;
        }
        if let Some(error) = self.last_error {
            write!(f, ", {} errors, the last: {error}", self.errors)?;
        }
        Ok(())
    }
}

/// The switch at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All ports, in order.
    pub ports: Vec<PortSnapshot>,
    /// Why a recording ended early.
    pub recording_errors: Vec<String>,
}

impl fmt::Display for Snapshot {
    /// A line per port, then one per recording that failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for port in &self.ports {
            writeln!(f, "{port}")?;
        }
        for error in &self.recording_errors {
            writeln!(f, "{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Counters, DropReason, Drops, LinkState, PortError, PortId, PortSet, PortSnapshot};

    #[test]
    fn a_set_holds_ports_0_to_63() {
        let mut set = PortSet::default();
        assert!(set.insert(PortId(63)) && set.insert(PortId(0)) && !set.insert(PortId(63)));
        assert!(!set.insert(PortId(64)), "no room for it");
        assert_eq!(set.iter().collect::<Vec<_>>(), [PortId(0), PortId(63)]);
        assert!(set.contains(PortId(63)) && !set.contains(PortId(1)));
        assert_eq!(PortId::all(1000).count(), 64);
    }

    #[test]
    fn a_port_is_one_line() {
        let mut dropped = Drops::default();
        dropped.add(DropReason::Lost, 2);
        dropped.count(DropReason::NoLink);
        let mut snapshot = PortSnapshot {
            port: PortId(3),
            link: LinkState::Up,
            connections: 1,
            counters: Counters {
                in_frames: 7,
                in_bytes: 448,
                out_frames: 1,
                out_bytes: 64,
                ..Counters::default()
            },
            errors: 0,
            last_error: None,
        };
        assert_eq!(snapshot.to_string(), "port 3 up: in 7 frames 448 bytes, out 1 frames 64 bytes");
        let more = Counters { dropped, delayed: 4, ..Counters::default() };
        snapshot.counters = snapshot.counters.plus(&more).plus(&more);
        snapshot.connections = 2;
        snapshot.errors = 1;
        snapshot.last_error = Some(PortError::AbsurdLength(1 << 31));
        assert_eq!(
            snapshot.to_string(),
            "port 3 up: in 7 frames 448 bytes, out 1 frames 64 bytes, dropped 6 (4 lost, 2 no link), delayed 8, \
             connected 2 times, 1 errors, the last: disconnected: the node announced a frame of 2147483648 bytes \
             (the longest possible is 69632)"
        );
    }
}
