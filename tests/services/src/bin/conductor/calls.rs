//! Calls: in registers, through the message page, with every error that an endpoint can give.

use core::time::Duration;

use ipc::abi::{Error, Handle, Label, NEVER};
use ipc::message::{CallError, Message};
use rt::start::Start;
use test_services::echo::{Bytes, Client};

use crate::{Outcome, endpoint, ensure, fail};

/// Calls with words, with long messages of many lengths, with a deadline that passes, and malformed ones.
pub fn run(start: &Start<'_>) -> Outcome {
    let echo = endpoint(start, "echo")?;
    let handle = echo.handle();
    let mut client = Client::new(echo);
    for number in 0..10_000u64 {
        let sent = [number, u64::MAX - number, number << 32, 7];
        let got = client.add(&sent);
        ensure!(got == Ok(sent.map(|word| word.wrapping_add(1))), "call {number}: {got:?}");
    }
    long_messages(&mut client)?;
    let mut hasty = Client::new(endpoint(start, "echo")?).within(rt::clock().milliseconds_to_ticks(5));
    let got = hasty.pause(&50_000);
    ensure!(got == Err(CallError::TimedOut), "a call past its deadline: {got:?}");
    // The server is still at it; the next call waits for it and gets its own answer.
    let got = client.add(&[9; 4]);
    ensure!(got == Ok([10; 4]), "the call after one that timed out: {got:?}");
    let raw =
        |handle: Handle, label: Label| rt::syscall::call(handle, Message { label, words: [0; 4] }, NEVER);
    let long = raw(handle, Label::new(0xc801, 4097));
    ensure!(long == Err(Error::Malformed), "a message that is too long: {long:?}");
    let stale = raw(Handle(handle.0 ^ 1 << 16), Label::new(0xc801, 0));
    ensure!(stale == Err(Error::Restarted), "a handle of another generation: {stale:?}");
    let none = raw(Handle(60), Label::new(0xc801, 0));
    ensure!(none == Err(Error::BadHandle), "a handle of nothing: {none:?}");
    match raw(handle, Label::new(0xc87f, 0)).map(|reply| ipc::message::Status::of(reply.label)) {
        Ok(Some(ipc::message::Status::UnknownMethod)) => {}
        other => fail!("a method that does not exist: {other:?}"),
    }
    match raw(handle, Label::new(0xc802, 5)).map(|reply| ipc::message::Status::of(reply.label)) {
        Ok(Some(ipc::message::Status::RequestMalformed)) => {}
        other => fail!("a request that is no encoding: {other:?}"),
    }
    rt::sleep(Duration::from_millis(1));
    Ok(())
}

fn long_messages(client: &mut Client<rt::capability::Endpoint>) -> Outcome {
    for length in [0usize, 1, 7, 8, 63, 64, 65, 511, 1000, 2048, 2999, 3000] {
        let mut sent = Bytes::new();
        for place in 0..length {
            let [low, ..] = (place * 31 + length).to_le_bytes();
            ensure!(sent.push(low).is_ok(), "3,000 bytes fit");
        }
        let mut expected = sent.clone();
        expected.reverse();
        match client.reverse(&sent) {
            Ok(got) => ensure!(got == expected, "a message of {length} bytes came back wrong"),
            Err(error) => fail!("a message of {length} bytes: {error}"),
        }
    }
    Ok(())
}
