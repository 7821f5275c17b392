//! Interfaces: declared once, client and server derived.
//!
//! [`interface!`](crate::interface!) stands in a module of its own and makes there: `INTERFACE` (its number), `Client`, the trait
//! `Server`, and `dispatch`. A method is of one of two kinds, named after the modules here that carry it out:
//!
//! * [`control`]: request and reply are any serde types, as postcard in the message page.
//! * [`hot`]: request and reply are zerocopy layouts of at most 32 bytes, in registers; no page is touched.
//!
//! A method's number on the wire is interface << 8 | number. Decoding is total: whatever bytes arrive give a value
//! of the type, or a reply that says `RequestMalformed` (server) or [`CallError::ReplyMalformed`] (client).

use zerocopy::{FromZeros, Immutable, IntoBytes, TryFromBytes};

use crate::abi::{Label, MAX_MESSAGE_BYTES, MESSAGE_WORDS};
use crate::message::{CallError, Message, MessagePage, Refused, Status, Transport, checked_reply};

/// A method's number on the wire.
#[must_use]
pub const fn method_id(interface: u8, number: u8) -> u16 {
    (interface as u16) << 8 | number as u16
}

/// Whether no number stands twice: two methods of one number would hide each other.
#[must_use]
pub const fn are_distinct(numbers: &[u8]) -> bool {
    let mut i = 0;
    while i < numbers.len() {
        let mut j = i + 1;
        while j < numbers.len() {
            if numbers[i] == numbers[j] {
                return false;
            }
            j += 1;
        }
        i += 1;
    }
    true
}

/// The reply to a message whose method no interface of the server has.
#[must_use]
pub const fn unknown_method(message: Message) -> Message {
    failed(message, Status::UnknownMethod)
}

const fn failed(message: Message, status: Status) -> Message {
    Message { label: status.label(message.label.method(), 0), words: [0; MESSAGE_WORDS] }
}

/// Methods whose request and reply are postcard in the message page.
pub mod control {
    use serde::{Serialize, de::DeserializeOwned};

    use super::{
        CallError, Label, MAX_MESSAGE_BYTES, MESSAGE_WORDS, Message, MessagePage, Refused, Status, Transport,
        checked_reply, failed,
    };

    /// The client's side.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<T: Transport, Q: Serialize, R: DeserializeOwned>(
        transport: &mut T,
        method: u16,
        request: &Q,
        deadline: u64,
    ) -> Result<R, CallError> {
        let bytes = encode(transport, request).ok_or(CallError::RequestTooLong)?;
        let message = Message { label: Label::new(method, bytes), words: [0; MESSAGE_WORDS] };
        let reply = transport.call(message, deadline)?;
        decode(transport, checked_reply(reply.label, method)?).ok_or(CallError::ReplyMalformed)
    }

    /// The server's side: decodes the request, asks `handler`, encodes its reply.
    pub fn serve<P: MessagePage, Q: DeserializeOwned, R: Serialize>(
        message: Message,
        page: &mut P,
        handler: impl FnOnce(Q) -> Result<R, Refused>,
    ) -> Message {
        let Some(request) = decode(page, message.label.bytes()) else {
            return failed(message, Status::RequestMalformed);
        };
        let Ok(reply) = handler(request) else { return failed(message, Status::Refused) };
        let Some(bytes) = encode(page, &reply) else { return failed(message, Status::ReplyTooLong) };
        Message { label: Status::Done.label(message.label.method(), bytes), words: [0; MESSAGE_WORDS] }
    }

    // Neither is inlined, so that a page's worth of stack is in use for the copy alone and not while a handler runs.

    #[inline(never)]
    fn encode<P: MessagePage, V: Serialize>(page: &mut P, value: &V) -> Option<u16> {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let encoded = postcard::to_slice(value, &mut buffer).ok()?;
        page.write(encoded);
        u16::try_from(encoded.len()).ok()
    }

    #[inline(never)]
    fn decode<P: MessagePage, V: DeserializeOwned>(page: &P, bytes: usize) -> Option<V> {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let encoded = buffer.get_mut(..bytes)?;
        page.read(encoded);
        match postcard::take_from_bytes(encoded) {
            Ok((value, [])) => Some(value),
            _ => None,
        }
    }
}

/// Methods whose request and reply are fixed layouts in registers.
pub mod hot {
    use super::{
        CallError, FromZeros, Immutable, IntoBytes, Label, MESSAGE_WORDS, Message, MessagePage, Refused,
        Status, Transport, TryFromBytes, checked_reply, failed,
    };

    /// Bytes that the registers carry.
    const BYTES: usize = MESSAGE_WORDS * size_of::<u64>();

    /// The client's side.
    ///
    /// # Errors
    /// See [`CallError`].
    #[inline]
    pub fn call<T: Transport, Q: IntoBytes + Immutable, R: TryFromBytes>(
        transport: &mut T,
        method: u16,
        request: &Q,
        deadline: u64,
    ) -> Result<R, CallError> {
        let message = Message { label: Label::new(method, 0), words: encode(request) };
        let reply = transport.call(message, deadline)?;
        match checked_reply(reply.label, method)? {
            0 => decode(&reply.words).ok_or(CallError::ReplyMalformed),
            _ => Err(CallError::ReplyMalformed),
        }
    }

    /// The server's side: decodes the request, asks `handler`, encodes its reply. The page is not touched.
    #[inline]
    pub fn serve<P: MessagePage, Q: TryFromBytes, R: IntoBytes + Immutable>(
        message: Message,
        _page: &mut P,
        handler: impl FnOnce(Q) -> Result<R, Refused>,
    ) -> Message {
        let request = if message.label.bytes() == 0 { decode(&message.words) } else { None };
        let Some(request) = request else { return failed(message, Status::RequestMalformed) };
        let Ok(reply) = handler(request) else { return failed(message, Status::Refused) };
        Message { label: Status::Done.label(message.label.method(), 0), words: encode(&reply) }
    }

    #[inline]
    fn encode<V: IntoBytes + Immutable>(value: &V) -> [u64; MESSAGE_WORDS] {
        const { assert!(size_of::<V>() <= BYTES, "a hot method's layout is at most 32 bytes") };
        let mut words = <[u64; MESSAGE_WORDS]>::new_zeroed();
        words.as_mut_bytes()[..size_of::<V>()].copy_from_slice(value.as_bytes());
        words
    }

    #[inline]
    fn decode<V: TryFromBytes>(words: &[u64; MESSAGE_WORDS]) -> Option<V> {
        const { assert!(size_of::<V>() <= BYTES, "a hot method's layout is at most 32 bytes") };
        let (value, rest) = words.as_bytes().split_at(size_of::<V>());
        if rest.iter().fold(0, |all, byte| all | byte) != 0 {
            return None;
        }
        V::try_read_from_bytes(value).ok()
    }
}

/// Declares an interface in the module where it stands; see [`interface`](mod@crate::interface).
///
/// ```
/// mod counter {
///     ipc::interface! {
///         /// Counts.
///         pub interface Counter = 200 {
///             /// Adds to the counter; its new value.
///             hot add(u64) -> u64 = 1;
///             /// The counter's value.
///             control value() -> u64 = 2;
///         }
///     }
/// }
/// # struct One(u64);
/// impl counter::Server for One {
///     fn add(&mut self, _: ipc::message::Caller, amount: u64) -> Result<u64, ipc::message::Refused> {
///         self.0 = self.0.checked_add(amount).ok_or(ipc::message::Refused)?;
///         Ok(self.0)
///     }
///     fn value(&mut self, _: ipc::message::Caller) -> Result<u64, ipc::message::Refused> {
///         Ok(self.0)
///     }
/// }
/// ```
#[macro_export]
macro_rules! interface {
    (@request) => { () };
    (@request $request:ty) => { $request };
    (@value) => { () };
    (@value $value:ident $request:ty) => { $value };
    (@reference) => { &() };
    (@reference $value:ident $request:ty) => { $value };
    (
        $(#[$about:meta])*
        $visibility:vis interface $name:ident = $id:literal {
            $(
                $(#[$doc:meta])*
                $kind:ident $method:ident($($request:ty)?) -> $reply:ty = $number:literal;
            )*
        }
    ) => {
        /// This interface's number: the high byte of its methods' numbers.
        $visibility const INTERFACE: u8 = $id;

        const _: () = assert!(
            $crate::interface::are_distinct(&[$($number),*]),
            concat!("two methods of ", stringify!($name), " have the same number"),
        );

        $(#[$about])*
        ///
        /// What a server of it does.
        $visibility trait Server {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// `Refused` when it is not for this caller.
                fn $method(
                    &mut self,
                    caller: $crate::message::Caller
                    $(, request: $request)?
                ) -> ::core::result::Result<$reply, $crate::message::Refused>;
            )*
        }

        /// Has `server` carry out `message` from `caller`, whose page is `page`; the reply.
        $visibility fn dispatch<S: Server + ?Sized, P: $crate::message::MessagePage>(
            server: &mut S,
            caller: $crate::message::Caller,
            message: $crate::message::Message,
            page: &mut P,
        ) -> $crate::message::Message {
            let method = message.label.method();
            $(
                if method == $crate::interface::method_id($id, $number) {
                    return $crate::interface::$kind::serve(
                        message,
                        page,
                        |_request: $crate::interface!(@request $($request)?)| {
                            server.$method(caller $(, $crate::interface!(@value _request $request))?)
                        },
                    );
                }
            )*
            $crate::interface::unknown_method(message)
        }

        #[doc = concat!("A client of `", stringify!($name), "`.")]
        #[derive(Debug)]
        $visibility struct Client<T> {
            transport: T,
            timeout: u64,
        }

        impl<T: $crate::message::Transport> Client<T> {
            /// A client that waits for its replies without end.
            $visibility const fn new(transport: T) -> Self {
                Self { transport, timeout: $crate::abi::NEVER }
            }

            /// Waits `ticks` TSC ticks at most for each reply.
            #[must_use]
            $visibility fn within(mut self, ticks: u64) -> Self {
                self.timeout = ticks;
                self
            }

            /// Goes on with the server's present generation after `CallError::Restarted`.
            ///
            /// # Errors
            /// See `CallError`.
            $visibility fn refresh(&mut self) -> ::core::result::Result<(), $crate::message::CallError> {
                ::core::result::Result::Ok(self.transport.refresh()?)
            }

            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See `CallError`.
                $visibility fn $method(
                    &mut self
                    $(, request: &$request)?
                ) -> ::core::result::Result<$reply, $crate::message::CallError> {
                    let deadline = self.transport.deadline(self.timeout);
                    $crate::interface::$kind::call(
                        &mut self.transport,
                        $crate::interface::method_id($id, $number),
                        $crate::interface!(@reference $(request $request)?),
                        deadline,
                    )
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests;
