//! What a frame is, how urgent, and which part of a message.

use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

/// The most fragments of a page.
pub const MAX_FRAGMENTS: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for the same payload back.
    EchoRequest = 2,
    /// What the request whose sequence number is the acknowledgement asked for.
    Reply = 3,
    /// Asks for a page that is filled from the seed that the message begins with: no payload.
    PageRequest = 4,
    /// What a node is and which membership it knows; the sequence counts such frames of one life.
    Hello = 5,
    /// A message, or a fragment of one: delivered once and in order.
    Data = 6,
    /// What came of a class: the acknowledgement, in the message's first eight bytes the bits of what came after it, in
    /// the sequence the first number that may not be sent yet.
    Acknowledge = 7,
    /// Asks for an acknowledgement of the class.
    Probe = 8,
    /// Asks what time it is; the sequence is the answer's.
    ClockRequest = 9,
    /// The time of the request's arrival in the message's first eight bytes, and how much later the answer left in the
    /// acknowledgement.
    ClockReply = 10,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::EchoRequest),
            3 => Some(Self::Reply),
            4 => Some(Self::PageRequest),
            5 => Some(Self::Hello),
            6 => Some(Self::Data),
            7 => Some(Self::Acknowledge),
            8 => Some(Self::Probe),
            9 => Some(Self::ClockRequest),
            10 => Some(Self::ClockReply),
            _ => None,
        }
    }
}

/// The number of classes.
pub const CLASSES: usize = 4;

/// How urgent a frame is, the most urgent first: one class never waits for another.
#[derive(Clone, Copy, Debug, Eq, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u8)]
pub enum Class {
    /// Short messages that others wait for: invalidations, their acknowledgements.
    Control = 0,
    /// Messages between the platforms of a guest: interrupts, accesses to devices.
    Platform = 1,
    /// Questions: what their answers say goes in the other classes.
    Request = 2,
    /// Page contents.
    Page = 3,
}

impl Class {
    /// All of them, the most urgent first.
    pub const ALL: [Self; CLASSES] = [Self::Control, Self::Platform, Self::Request, Self::Page];

    /// The class in two bits of a number.
    #[must_use]
    pub const fn from_bits(number: u8) -> Self {
        match number & 3 {
            0 => Self::Control,
            1 => Self::Platform,
            2 => Self::Request,
            _ => Self::Page,
        }
    }
}

/// Which part of a page a frame carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// Its place, from 0 and below [`MAX_FRAGMENTS`].
    pub index: u8,
    /// Whether none follows.
    pub last: bool,
}

impl Fragment {
    /// A whole message.
    pub const WHOLE: Self = Self { index: 0, last: true };
}
