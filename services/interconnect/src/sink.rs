//! What the interconnect's state machine asks of its surroundings, and tells them.
//!
//! A page frame is a name, `F`; its contents stay where they are. Who has a frame's name may use it: a frame that came
//! from the card is either delivered or recycled, once; one that was given to be sent is done, once. Until then its
//! contents must not change.

use ipc::wire::{Class, FrameHeader, MESSAGE_BYTES, Parsed};

use crate::membership::Event;

/// Names what a frame in the card was sent for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Token {
    pub(crate) link: Receipt,
    pub(crate) sequence: u32,
}

/// Names the class of a peer's life that a message came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Receipt {
    pub(crate) generation: u32,
    pub(crate) class: Class,
}

/// What follows a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Payload<'a, F> {
    /// Nothing.
    None,
    /// So many bytes of a page frame from an offset on. When the card has read them, `Node::transmitted` wants the
    /// token.
    Part {
        /// The page frame.
        frame: F,
        /// Where the bytes begin in it.
        offset: u16,
        /// How many.
        bytes: u16,
        /// To be given back.
        token: Token,
    },
    /// These bytes, at most [`MAX_INLINE`]: to be copied.
    Bytes(&'a [u8]),
}

/// The most bytes of [`Payload::Bytes`].
pub const MAX_INLINE: usize = crate::membership::MAX_HELLO;

/// A message that came: each once, those of a class in their order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Delivery<F> {
    /// From which node.
    pub node: u16,
    /// In which class.
    pub class: Class,
    /// What it says.
    pub message: [u8; MESSAGE_BYTES],
    /// Its contents: the page frame with them at its start, and how many bytes. The frame is the receiver's now.
    pub contents: Option<(F, u16)>,
    /// To be given to `Node::consumed`, once, when the message is dealt with: its sender's credit.
    pub receipt: Receipt,
}

/// What the state machine tells its surroundings.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a, F> {
    /// To be given to the card. The header is yet to be sealed with the payload's checksum.
    Transmit {
        /// The header.
        header: FrameHeader,
        /// What follows it.
        payload: Payload<'a, F>,
    },
    /// A message.
    Deliver(Delivery<F>),
    /// A bare exchange's request or answer, from a member, and the page frame with what follows its header: the
    /// receiver's now. Nobody sends one again.
    Bare {
        /// What it says.
        parsed: Parsed,
        /// The page frame.
        frame: F,
    },
    /// A page frame that came from the card and may be posted again.
    Recycle(F),
    /// A page frame that was to be sent is the caller's again.
    Done {
        /// For which node it was.
        node: u16,
        /// In which class.
        class: Class,
        /// The page frame.
        frame: F,
        /// What became of it.
        outcome: Outcome,
    },
    /// A class that had no room has some again.
    Writable {
        /// The node.
        node: u16,
        /// The class.
        class: Class,
    },
    /// The membership changed, or something is wrong with it.
    Event(Event),
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The peer has it.
    Acknowledged,
    /// The peer is no member any more; whether it has it is not known.
    Abandoned,
}

/// The surroundings: page frames' contents, and who takes outputs.
pub trait Sink<F> {
    /// The CRC-32C of a page frame's first bytes.
    fn checksum(&self, frame: F, bytes: u16) -> u32;
    /// Copies a page frame's first bytes, at most [`MAX_INLINE`].
    fn read(&self, frame: F, bytes: &mut [u8]);
    /// Copies the first `bytes` of page frame `from` to `offset` in page frame `to`. Only fragments need it.
    fn append(&mut self, from: F, to: F, offset: u16, bytes: u16);
    /// Takes an output. It must not call the state machine.
    fn put(&mut self, output: Output<'_, F>);
}
