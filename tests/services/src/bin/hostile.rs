//! A service that abuses every system call. It holds few rights; the kernel must answer each call with a defined status,
//! and nobody else may notice.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "asks the kernel for what no safe function would")]

use ipc::abi::{Error, Handle, Label, MAX_CAPABILITIES, NEVER, RECEIVE_MESSAGES, Syscall, Token};
use rt::start::Start;
use rt::syscall::{Arguments, Results};
use test_services::random::Random;

rt::entry!(main);

/// Random calls in the last round.
const CALLS: u64 = 100_000;
/// The seed of that round.
const SEED: u64 = 0x6869_6768_6c61_6e64;
/// Calls and notifications of each flood.
const FLOOD: u64 = 20_000;

/// Addresses that no system call may use for this service.
const BAD_POINTERS: [u64; 12] = [
    0,
    1,
    4095,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0xffff_7fff_ffff_ffff,
    0xffff_8000_0000_0000,
    0xffff_8000_0010_0000,
    0xffff_ffff_8010_0000,
    0xffff_ffff_ffff_f000,
    u64::MAX - 7,
    u64::MAX,
];

fn main(start: &'static Start<'static>) -> ! {
    bad_pointers();
    bad_handles(start);
    floods(start);
    let answered = random_calls(start);
    defmt::info!("hostile: {=u64} random calls, each with a defined answer", answered);
    match start.notification("hostile-done") {
        Ok(done) => drop(done.raise()),
        Err(missing) => panic!("{missing}"),
    }
    loop {
        rt::sleep(core::time::Duration::from_secs(3600));
    }
}

/// Any system call with any arguments; a status that is neither an outcome nor an error is the kernel's defect.
fn ask(number: u64, arguments: Arguments) -> Results {
    // SAFETY: the pointers passed are ones that the kernel must refuse, or of constants of this service that nothing
    // writes; a thread is never started at an address that it accepts.
    let results = unsafe { rt::syscall::raw(number, arguments) };
    assert!(
        results.status <= 1 || Error::from_status(results.status).is_some(),
        "system call {number} ended with the undefined status {:#x}",
        results.status
    );
    results
}

#[track_caller]
fn expect(call: Syscall, arguments: Arguments, error: Error) {
    let results = ask(call as u64, arguments);
    let got = Error::from_status(results.status);
    assert!(got == Some(error), "{call:?} {arguments:?}: {got:?}, not {error:?}");
}

fn with(rdi: u64, rsi: u64, words: [u64; 4]) -> Arguments {
    Arguments { rdi, rsi, words, deadline: 0, mask: 0 }
}

fn bad_pointers() {
    for pointer in BAD_POINTERS {
        expect(Syscall::Log, with(pointer, 16, [0; 4]), Error::BadPointer);
        expect(Syscall::Log, with(pointer, u64::MAX, [0; 4]), Error::Malformed);
        expect(Syscall::SpawnThread, with(pointer, 0, [0; 4]), Error::BadPointer);
        expect(Syscall::FutexWait, with(pointer & !3, 0, [0; 4]), Error::BadPointer);
        expect(Syscall::FutexWait, with(pointer | 1, 0, [0; 4]), Error::BadPointer);
        let woken = ask(Syscall::FutexWake as u64, with(pointer, u64::MAX, [0; 4]));
        assert!(woken.status == 0 && woken.rdi == 0, "a futex woke somebody elsewhere");
    }
    // Starts in this service's memory and ends outside.
    let last = ipc::abi::START_PAGE + 4096 - 8;
    expect(Syscall::Log, with(last, 16, [0; 4]), Error::BadPointer);
    // Straddles the end of a stack into the guard below it.
    let stack_guard = ipc::abi::message_page(0) + 4096 - 8;
    expect(Syscall::Log, with(stack_guard, 16, [0; 4]), Error::BadPointer);
    // Another service's memory lies elsewhere: the same virtual address is this one's own or nothing.
    expect(Syscall::Log, with(ipc::abi::message_page(15), 16, [0; 4]), Error::BadPointer);
}

fn bad_handles(start: &Start<'_>) {
    let count = start.entries().len() as u64;
    let forged =
        [count, count + 1, MAX_CAPABILITIES as u64, 0xffff, 1 << 48, u64::MAX, 0x8000_0000_0000_0000];
    let calls = [
        Syscall::Call,
        Syscall::Notify,
        Syscall::AcknowledgeInterrupt,
        Syscall::DmaAddress,
        Syscall::PortRead,
        Syscall::PortWrite,
        Syscall::PortWriteBytes,
        Syscall::ConfigRead,
        Syscall::ConfigWrite,
        Syscall::Refresh,
        Syscall::GuestMap,
        Syscall::VcpuStart,
        Syscall::VcpuStop,
        Syscall::VcpuKick,
        Syscall::VcpuFetch,
        Syscall::VcpuPlace,
        Syscall::GuestProgress,
    ];
    for call in calls {
        for handle in forged {
            expect(call, with(handle, 0, [1, 0, 0, 0]), Error::BadHandle);
        }
    }
    for entry in start.entries() {
        let handle = Handle(entry.handle);
        let slot = u16::try_from(handle.slot()).unwrap_or(0);
        for generation in [handle.generation().wrapping_add(1), handle.generation().wrapping_sub(1), u32::MAX]
        {
            let stale = Handle::new(slot, generation);
            expect(Syscall::Notify, with(stale.0, 0, [0; 4]), Error::Restarted);
            expect(Syscall::Call, with(stale.0, 0, [0; 4]), Error::Restarted);
        }
    }
    for token in [Token::new(0, 0, 0), Token::new(5, 1, 0), Token::new(200, 40, 7), Token(u64::MAX), Token(1)]
    {
        expect(Syscall::Reply, with(token.0, 0, [0; 4]), Error::Stale);
    }
    let too_long = Label::new(1, 4097).0;
    expect(Syscall::Receive, with(1, too_long, [0; 4]), Error::Malformed);
    expect(Syscall::Reply, with(1, too_long, [0; 4]), Error::Malformed);
    for call in [Syscall::Inspect, Syscall::NextFault, Syscall::Control, Syscall::LogRead, Syscall::StopNode]
    {
        for argument in [0, 1, u64::MAX] {
            expect(call, with(argument, argument, [0; 4]), Error::Refused);
        }
    }
    for number in [Syscall::COUNT, Syscall::COUNT + 1, 255, 1 << 32, u64::MAX] {
        let status = ask(number, with(0, 0, [0; 4])).status;
        assert!(Error::from_status(status) == Some(Error::BadCall), "system call {number} exists");
    }
}

fn floods(start: &Start<'_>) {
    let endpoint = match start.endpoint("echo") {
        Ok(endpoint) => endpoint.handle().0,
        Err(missing) => panic!("{missing}"),
    };
    let notification = match start.notification("flood") {
        Ok(notification) => notification.handle().0,
        Err(missing) => panic!("{missing}"),
    };
    for number in 0..FLOOD {
        // Methods that do not exist, and lengths with nothing behind them.
        let label = Label::new(0x4000, u16::try_from(number % 4097).unwrap_or(0));
        let call = Arguments { rsi: label.0, deadline: NEVER, ..with(endpoint, 0, [number; 4]) };
        let status = ask(Syscall::Call as u64, call).status;
        assert!(status == 0, "call {number} of the flood: {:?}", Error::from_status(status));
        let status = ask(Syscall::Notify as u64, with(notification, 0, [0; 4])).status;
        assert!(status == 0, "notification {number} of the flood: {:?}", Error::from_status(status));
    }
}

fn random_calls(start: &Start<'_>) -> u64 {
    let mut random = Random::new(SEED);
    let mut answered = 0;
    while answered < CALLS {
        let number = match random.below(16) {
            0 => random.number(),
            _ => random.below(Syscall::COUNT),
        };
        // These end this service as they should, and with it the test.
        if number == Syscall::ExitThread as u64 || number == Syscall::Panic as u64 {
            continue;
        }
        let mut value = |kind: u64| match kind {
            0 => random.below(80),
            1 => random.of(&BAD_POINTERS),
            2 => 1 << random.below(64),
            3 => {
                let index = usize::try_from(random.below(start.entries().len() as u64 + 1)).unwrap_or(0);
                start
                    .entries()
                    .get(index)
                    .map_or(0, |entry| entry.handle ^ (random.below(8) / 7) << random.below(48))
            }
            _ => random.number(),
        };
        let any = |value: &mut dyn FnMut(u64) -> u64, choice: u64| value(choice % 5);
        let choices = Random::new(answered).number();
        let pick = |place: u32| choices >> (place * 8) & 0xff;
        let rdi = any(&mut value, pick(0));
        let rsi = any(&mut value, pick(1));
        let words = [2, 3, 4, 5].map(|place| any(&mut value, pick(place)));
        let mask = any(&mut value, pick(6)) | RECEIVE_MESSAGES;
        // A little patience at most: nobody has to answer.
        let deadline = if pick(7) < 250 { 0 } else { rt::now() + 20_000 };
        // A thread at an address that the kernel accepts would run whatever is there.
        let rdi = if number == Syscall::SpawnThread as u64 { rdi | 1 << 63 } else { rdi };
        ask(number, Arguments { rdi, rsi, words, deadline, mask });
        answered += 1;
    }
    answered
}
