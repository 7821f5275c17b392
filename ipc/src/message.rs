//! A message, what carries it, and how a call fails.
//!
//! A call passes [`Message`]: a label and four words in registers, and as many bytes in the thread's message page as
//! the label says. Nobody but this thread and the kernel writes that page, yet clients and servers on one thread
//! share it, so it is reached by copies alone ([`MessagePage`]): a handler may make calls of its own.

use core::fmt;

use crate::abi::{Error, Label, MESSAGE_WORDS, NEVER, Token};

/// What travels in registers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Message {
    /// The method and the bytes in the message page; in a reply also its [`Status`].
    pub label: Label,
    /// The words, meant by the method.
    pub words: [u64; MESSAGE_WORDS],
}

/// A thread's message page.
pub trait MessagePage {
    /// Copies `bytes` to the page's start. Bytes that would lie past its end are not written.
    fn write(&mut self, bytes: &[u8]);

    /// Copies the page's start to `out`. Bytes of `out` past the page's end stay as they are.
    fn read(&self, out: &mut [u8]);
}

/// The way from a client to one endpoint.
pub trait Transport: MessagePage {
    /// Sends a message and waits for the reply until `deadline`, in TSC ticks.
    ///
    /// # Errors
    /// Those of [`Syscall::Call`](crate::abi::Syscall::Call).
    fn call(&mut self, message: Message, deadline: u64) -> Result<Message, Error>;

    /// Goes on with the present generation of the service, after [`Error::Restarted`].
    ///
    /// # Errors
    /// Those of [`Syscall::Refresh`](crate::abi::Syscall::Refresh).
    fn refresh(&mut self) -> Result<(), Error>;

    /// The time in TSC ticks.
    fn now(&self) -> u64;

    /// The deadline `timeout` ticks from now; [`NEVER`] stays [`NEVER`].
    fn deadline(&self, timeout: u64) -> u64 {
        if timeout == NEVER { NEVER } else { self.now().saturating_add(timeout) }
    }
}

impl<P: MessagePage + ?Sized> MessagePage for &mut P {
    fn write(&mut self, bytes: &[u8]) {
        (**self).write(bytes);
    }

    fn read(&self, out: &mut [u8]) {
        (**self).read(out);
    }
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn call(&mut self, message: Message, deadline: u64) -> Result<Message, Error> {
        (**self).call(message, deadline)
    }

    fn refresh(&mut self) -> Result<(), Error> {
        (**self).refresh()
    }

    fn now(&self) -> u64 {
        (**self).now()
    }
}

/// Who calls, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The service's number.
    pub service: usize,
    /// Whom the reply goes to.
    pub token: Token,
}

impl Caller {
    /// The caller whom the kernel's token names.
    #[must_use]
    pub const fn of(token: Token) -> Self {
        Self { service: token.service(), token }
    }
}

/// How a server answered: bits 32 to 39 of a reply's label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Status {
    /// With the method's reply.
    Done = 0,
    /// It does not do this for this caller.
    Refused = 1,
    /// The request was not the method's.
    RequestMalformed = 2,
    /// It has no such method.
    UnknownMethod = 3,
    /// Its reply does not fit a message page.
    ReplyTooLong = 4,
}

impl Status {
    const SHIFT: u32 = 32;

    /// The status in a reply's label; `None` for a number that is none.
    #[must_use]
    pub const fn of(label: Label) -> Option<Self> {
        match label.0 >> Self::SHIFT {
            0 => Some(Self::Done),
            1 => Some(Self::Refused),
            2 => Some(Self::RequestMalformed),
            3 => Some(Self::UnknownMethod),
            4 => Some(Self::ReplyTooLong),
            _ => None,
        }
    }

    /// The label of a reply to `method` with `bytes` bytes in the message page.
    #[must_use]
    pub const fn label(self, method: u16, bytes: u16) -> Label {
        Label(Label::new(method, bytes).0 | (self as u64) << Self::SHIFT)
    }
}

/// A server's answer to a caller for whom it does not do this.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused;

/// Why a call brought no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallError {
    /// The server, or the kernel, does not do this for this service.
    Refused,
    /// The server was restarted: whether it did what was asked is not known, and what it knew of this client is
    /// lost. The client's `refresh` leads on.
    Restarted,
    /// The server stays down.
    Down,
    /// The deadline passed: whether the server did what was asked is not known.
    TimedOut,
    /// The server, or the kernel, finds the request malformed: client and server are of different versions.
    RequestMalformed,
    /// The request does not fit a message page; nothing was sent.
    RequestTooLong,
    /// What the server replied is not a reply of this method.
    ReplyMalformed,
    /// The server's reply did not fit a message page.
    ReplyTooLong,
    /// The server has no such method.
    UnknownMethod,
    /// Another failure that the kernel tells: the handle is not one of an endpoint, say.
    Kernel(Error),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused => Self::Refused,
            Error::Restarted => Self::Restarted,
            Error::Down => Self::Down,
            Error::TimedOut => Self::TimedOut,
            Error::Malformed => Self::RequestMalformed,
            other => Self::Kernel(other),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "the server refused",
            Self::Restarted => "the server was restarted",
            Self::Down => "the server is down",
            Self::TimedOut => "the call timed out",
            Self::RequestMalformed => "the server found the request malformed",
            Self::RequestTooLong => "the request does not fit a message page",
            Self::ReplyMalformed => "the reply is malformed",
            Self::ReplyTooLong => "the server's reply did not fit a message page",
            Self::UnknownMethod => "the server has no such method",
            Self::Kernel(error) => return write!(f, "the kernel ended the call: {error}"),
        })
    }
}

impl core::error::Error for CallError {}

/// Checks a reply's label against the method that was called; its bytes in the message page.
pub(crate) fn checked_reply(label: Label, method: u16) -> Result<usize, CallError> {
    match Status::of(label) {
        _ if label.method() != method => Err(CallError::ReplyMalformed),
        Some(Status::Done) => Ok(label.bytes()),
        Some(Status::Refused) => Err(CallError::Refused),
        Some(Status::RequestMalformed) => Err(CallError::RequestMalformed),
        Some(Status::UnknownMethod) => Err(CallError::UnknownMethod),
        Some(Status::ReplyTooLong) => Err(CallError::ReplyTooLong),
        None => Err(CallError::ReplyMalformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_tells_how_it_ended() {
        let label = |status: Status| status.label(0x0203, 17);
        assert_eq!(checked_reply(label(Status::Done), 0x0203), Ok(17));
        assert_eq!(checked_reply(label(Status::Done), 0x0204), Err(CallError::ReplyMalformed));
        assert_eq!(checked_reply(label(Status::Refused), 0x0203), Err(CallError::Refused));
        assert_eq!(checked_reply(label(Status::RequestMalformed), 0x0203), Err(CallError::RequestMalformed));
        assert_eq!(checked_reply(label(Status::UnknownMethod), 0x0203), Err(CallError::UnknownMethod));
        assert_eq!(checked_reply(label(Status::ReplyTooLong), 0x0203), Err(CallError::ReplyTooLong));
        for status in 5..=u64::from(u32::MAX).min(300) {
            assert_eq!(checked_reply(Label(0x0203 | status << 32), 0x0203), Err(CallError::ReplyMalformed));
        }
        assert_eq!(checked_reply(Label(u64::MAX), u16::MAX), Err(CallError::ReplyMalformed));
    }

    #[test]
    fn kernel_errors_keep_their_meaning() {
        assert_eq!(CallError::from(Error::Restarted), CallError::Restarted);
        assert_eq!(CallError::from(Error::TimedOut), CallError::TimedOut);
        assert_eq!(CallError::from(Error::Down), CallError::Down);
        assert_eq!(CallError::from(Error::Refused), CallError::Refused);
        assert_eq!(CallError::from(Error::Malformed), CallError::RequestMalformed);
        assert_eq!(CallError::from(Error::BadHandle), CallError::Kernel(Error::BadHandle));
    }
}
