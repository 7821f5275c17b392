use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::abi::{Error, Label, NEVER, PAGE_SIZE, Token};
use crate::message::{CallError, Caller, Message, MessagePage, Refused, Status, Transport};

/// An interface with every form a method can have.
mod sample {
    use super::{Pair, Poke, PokeReply};

    crate::interface! {
        /// Tries every form of method.
        pub(super) interface Sample = 77 {
            /// A control method.
            control join(Pair) -> heapless::String<64> = 1;
            /// A control method without a request.
            control count() -> u64 = 2;
            /// A hot method.
            hot poke(Poke) -> PokeReply = 3;
            /// A hot method without a request.
            hot peek() -> u64 = 4;
            /// A method whose reply may not fit a page.
            control fill(u32) -> super::Filler = 255;
        }
    }
}
use sample::Server as _;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Pair {
    left: heapless::String<40>,
    right: heapless::String<40>,
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
struct Poke {
    amount: u64,
    kind: PokeKind,
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u64)]
enum PokeKind {
    Add = 1,
    Remove = 2,
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
struct PokeReply {
    before: u64,
    after: u64,
}

/// As many bytes as it says.
#[derive(Debug, PartialEq)]
struct Filler(usize);

impl Serialize for Filler {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&std::vec![7; self.0])
    }
}

impl<'de> Deserialize<'de> for Filler {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Self(bytes.len()))
    }
}

#[derive(Default)]
struct Store {
    count: u64,
    handled: usize,
}

impl sample::Server for Store {
    fn join(&mut self, caller: Caller, request: Pair) -> Result<heapless::String<64>, Refused> {
        assert_eq!(caller.service, 9);
        self.handled += 1;
        let mut joined = heapless::String::new();
        joined.push_str(&request.left).map_err(|_| Refused)?;
        joined.push_str(&request.right).map_err(|_| Refused)?;
        Ok(joined)
    }

    fn count(&mut self, _: Caller) -> Result<u64, Refused> {
        self.handled += 1;
        Ok(self.count)
    }

    fn poke(&mut self, _: Caller, request: Poke) -> Result<PokeReply, Refused> {
        self.handled += 1;
        let before = self.count;
        self.count = match request.kind {
            PokeKind::Add => before.checked_add(request.amount),
            PokeKind::Remove => before.checked_sub(request.amount),
        }
        .ok_or(Refused)?;
        Ok(PokeReply { before, after: self.count })
    }

    fn peek(&mut self, _: Caller) -> Result<u64, Refused> {
        self.handled += 1;
        Ok(self.count)
    }

    fn fill(&mut self, _: Caller, request: u32) -> Result<Filler, Refused> {
        Ok(Filler(request as usize))
    }
}

/// Two pages and a kernel between them that copies what the label says.
struct Page(Vec<u8>);

impl Page {
    fn new() -> Self {
        Self(std::vec![0xee; PAGE_SIZE])
    }
}

impl MessagePage for Page {
    fn write(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(PAGE_SIZE)];
        self.0[..bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, out: &mut [u8]) {
        let n = out.len().min(PAGE_SIZE);
        out[..n].copy_from_slice(&self.0[..n]);
    }
}

struct Wire {
    mine: Page,
    theirs: Page,
    store: Store,
    deadlines: Vec<u64>,
    failure: Option<Error>,
    tamper: fn(&mut Message, &mut Page),
    page_writes: usize,
}

impl Wire {
    fn new() -> Self {
        Self {
            mine: Page::new(),
            theirs: Page::new(),
            store: Store::default(),
            deadlines: Vec::new(),
            failure: None,
            tamper: |_, _| (),
            page_writes: 0,
        }
    }
}

impl MessagePage for Wire {
    fn write(&mut self, bytes: &[u8]) {
        self.page_writes += 1;
        self.mine.write(bytes);
    }

    fn read(&self, out: &mut [u8]) {
        self.mine.read(out);
    }
}

impl Transport for Wire {
    fn call(&mut self, message: Message, deadline: u64) -> Result<Message, Error> {
        self.deadlines.push(deadline);
        if let Some(error) = self.failure {
            return Err(error);
        }
        let n = message.label.bytes();
        self.theirs.0[..n].copy_from_slice(&self.mine.0[..n]);
        let mut reply = sample::dispatch(&mut self.store, caller(), message, &mut self.theirs);
        let n = reply.label.bytes();
        self.mine.0[..n].copy_from_slice(&self.theirs.0[..n]);
        (self.tamper)(&mut reply, &mut self.mine);
        Ok(reply)
    }

    fn refresh(&mut self) -> Result<(), Error> {
        self.failure.take();
        Ok(())
    }

    fn now(&self) -> u64 {
        1000
    }
}

fn caller() -> Caller {
    Caller::of(Token::new(3, 9, 1))
}

fn pair(left: &str, right: &str) -> Pair {
    Pair { left: left.try_into().unwrap(), right: right.try_into().unwrap() }
}

#[test]
fn both_kinds_go_there_and_back() {
    let mut wire = Wire::new();
    let mut client = sample::Client::new(&mut wire).within(50);
    assert_eq!(client.join(&pair("out of many", ", one")).unwrap(), "out of many, one");
    assert_eq!(client.poke(&Poke { amount: 5, kind: PokeKind::Add }), Ok(PokeReply { before: 0, after: 5 }));
    assert_eq!(client.count(), Ok(5));
    assert_eq!(client.peek(), Ok(5));
    assert_eq!(wire.deadlines, [1050; 4]);
    assert_eq!(wire.page_writes, 2, "a hot method touches no page");
}

#[test]
fn a_client_waits_without_end_unless_told() {
    let mut wire = Wire::new();
    sample::Client::new(&mut wire).peek().unwrap();
    sample::Client::new(&mut wire).within(u64::MAX - 1).peek().unwrap();
    assert_eq!(wire.deadlines, [NEVER, NEVER]);
}

#[test]
fn each_failure_is_told_apart() {
    let mut wire = Wire::new();
    let long = "0123456789012345678901234567890123456789";
    assert_eq!(sample::Client::new(&mut wire).join(&pair(long, long)), Err(CallError::Refused));
    let remove = Poke { amount: 1, kind: PokeKind::Remove };
    assert_eq!(sample::Client::new(&mut wire).poke(&remove), Err(CallError::Refused));
    assert_eq!(sample::Client::new(&mut wire).fill(&4094), Ok(Filler(4094)));
    assert_eq!(sample::Client::new(&mut wire).fill(&4095), Err(CallError::ReplyTooLong));
    for (error, told) in [
        (Error::Restarted, CallError::Restarted),
        (Error::TimedOut, CallError::TimedOut),
        (Error::Down, CallError::Down),
        (Error::BadHandle, CallError::Kernel(Error::BadHandle)),
    ] {
        wire.failure = Some(error);
        assert_eq!(sample::Client::new(&mut wire).count(), Err(told));
        assert_eq!(sample::Client::new(&mut wire).peek(), Err(told));
    }
    sample::Client::new(&mut wire).refresh().unwrap();
    assert_eq!(sample::Client::new(&mut wire).count(), Ok(0));
}

#[test]
fn a_request_that_fits_no_page_is_not_sent() {
    let mut wire = Wire::new();
    let result: Result<(), _> = super::control::call(&mut wire, 0x4d02, &Filler(5000), NEVER);
    assert_eq!(result, Err(CallError::RequestTooLong));
    assert!(wire.deadlines.is_empty());
}

#[test]
fn a_server_that_lies_is_found_out() {
    let lies: [fn(&mut Message, &mut Page); 6] = [
        |reply, _| reply.label = Label::default(),
        |reply, _| reply.label = Status::Done.label(reply.label.method() ^ 1, 0),
        |reply, _| reply.label = Label(reply.label.0 | 0xff << 32),
        |reply, _| reply.label = Status::Done.label(reply.label.method(), 4097),
        |reply, _| reply.label = Status::Done.label(reply.label.method(), u16::MAX),
        // One byte more than the value has.
        |reply, _| reply.label = Status::Done.label(reply.label.method(), 2),
    ];
    for lie in lies {
        let mut wire = Wire { tamper: lie, ..Wire::new() };
        assert_eq!(sample::Client::new(&mut wire).count(), Err(CallError::ReplyMalformed));
        assert_eq!(sample::Client::new(&mut wire).peek(), Err(CallError::ReplyMalformed));
    }
    // A number that ends in the middle, and one too long for 64 bits.
    let mut wire = Wire { tamper: |_, page| page.0[0] = 0x80, ..Wire::new() };
    assert_eq!(sample::Client::new(&mut wire).count(), Err(CallError::ReplyMalformed));
    let mut wire = Wire { tamper: |reply, _| reply.words[3] = 1, ..Wire::new() };
    assert_eq!(sample::Client::new(&mut wire).peek(), Err(CallError::ReplyMalformed));
}

#[test]
fn a_request_of_another_form_reaches_no_handler() {
    let mut store = Store::default();
    let mut page = Page::new();
    let mut ask = |label: u64, words: [u64; 4], bytes: &[u8]| {
        page.write(bytes);
        let reply = sample::dispatch(&mut store, caller(), Message { label: Label(label), words }, &mut page);
        (Status::of(reply.label).unwrap(), reply.label.method(), store.handled)
    };
    let zero = [0; 4];
    assert_eq!(ask(0x4d05, zero, &[]), (Status::UnknownMethod, 0x4d05, 0));
    assert_eq!(ask(0x4e01, zero, &[]), (Status::UnknownMethod, 0x4e01, 0));
    assert_eq!(ask(0, zero, &[]), (Status::UnknownMethod, 0, 0));
    // Control: too short, too long, longer than a page, a string longer than its bound, not UTF-8.
    assert_eq!(ask(0x4d01, zero, &[]), (Status::RequestMalformed, 0x4d01, 0));
    assert_eq!(ask(0x4d01 | 3 << 16, zero, &[0, 0, 0]), (Status::RequestMalformed, 0x4d01, 0));
    assert_eq!(ask(0x4d01 | 4097 << 16, zero, &[0, 0]), (Status::RequestMalformed, 0x4d01, 0));
    assert_eq!(ask(0x4d01 | 50 << 16, zero, &[41; 50]), (Status::RequestMalformed, 0x4d01, 0));
    assert_eq!(ask(0x4d01 | 3 << 16, zero, &[1, 0xff, 0]), (Status::RequestMalformed, 0x4d01, 0));
    assert_eq!(ask(0x4d02 | 1 << 16, zero, &[0]), (Status::RequestMalformed, 0x4d02, 0));
    // Hot: no such kind, a word too many, bytes in the page.
    assert_eq!(ask(0x4d03, [1, 0, 0, 0], &[]), (Status::RequestMalformed, 0x4d03, 0));
    assert_eq!(ask(0x4d03, [1, 1, 1, 0], &[]), (Status::RequestMalformed, 0x4d03, 0));
    assert_eq!(ask(0x4d03 | 1 << 16, [1, 1, 0, 0], &[]), (Status::RequestMalformed, 0x4d03, 0));
    // And the forms that are right.
    assert_eq!(ask(0x4d03, [1, 1, 0, 0], &[]), (Status::Done, 0x4d03, 1));
    assert_eq!(ask(0x4d01 | 2 << 16, zero, &[0, 0]), (Status::Done, 0x4d01, 2));
}

#[test]
fn any_message_at_all_gets_a_reply() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut store = Store::default();
    let mut page = Page::new();
    let mut done = 0;
    for _ in 0..50_000 {
        let method =
            if random.random_bool(0.9) { 0x4d00 | random.random_range(0..5) } else { random.random() };
        let bytes = if random.random_bool(0.8) { random.random_range(0..8) } else { random.random() };
        let message = Message {
            label: Label(Label::new(method, bytes).0 | u64::from(random.random::<u8>() & 1) << 40),
            words: std::array::from_fn(|_| {
                if random.random() { random.random() } else { random.random_range(0..3) }
            }),
        };
        let contents: [u8; 16] = std::array::from_fn(|_| random.random_range(0..4));
        page.write(&contents);
        let reply = sample::dispatch(&mut store, caller(), message, &mut page);
        assert_eq!(reply.label.method(), method);
        assert!(reply.label.bytes() <= PAGE_SIZE);
        done += usize::from(Status::of(reply.label) == Some(Status::Done));
    }
    assert!(done > 1000, "the right forms occur too: {done}");
    assert!(store.handled >= done);
    assert_eq!(store.peek(caller()), Ok(store.count));
}

#[test]
fn numbers_that_stand_twice_are_seen() {
    assert_eq!(super::method_id(sample::INTERFACE, 3), 0x4d03);
    assert!(super::are_distinct(&[]));
    assert!(super::are_distinct(&[1, 2, 255]));
    assert!(!super::are_distinct(&[1, 2, 1]));
}
