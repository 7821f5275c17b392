//! Measures what the kernel's mechanisms cost, and logs each figure as a line that `cargo xtask bench` reads.
//!
//! Under QEMU's instruction counter a TSC tick is an instruction, of all cores together. Each figure is the smallest
//! of many batches, so that a timer or the log, which come in between now and then, do not count.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a loop whose instructions are counted")]

use core::arch::asm;
use core::time::Duration;

use ipc::abi::{Handle, Inspect, Label, NEVER};
use ipc::channel::{ChannelError, Producer, Sleep, Wake};
use ipc::frame::{FrameDescriptor, FrameHandle};
use ipc::interfaces::supervisor;
use ipc::message::Message;
use rt::capability::{Notification, Region};
use rt::start::Start;
use rt::syscall;

rt::entry!(main);

/// Batches of each figure.
const BATCHES: u32 = 50;
/// Operations of a batch.
const OPERATIONS: u32 = 200;
/// Descriptors of a batch of the channel's.
const DESCRIPTORS: u32 = 4096;

/// What was asked for and is there, or the end: a benchmark without its manifest measures nothing.
fn needed<T, E: core::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

fn main(start: &'static Start<'static>) -> ! {
    let mut supervisor = supervisor::Client::new(needed(start.endpoint("supervisor")));
    while !supervisor.node_state().is_ok_and(|state| state.up + 4 >= state.total) {
        rt::sleep(Duration::from_millis(10));
    }
    boot();
    kernel_entry(start);
    kernel_part(start);
    call("call-same-core", needed(start.endpoint("near")).handle(), 0);
    call("call-same-core-64-bytes", needed(start.endpoint("near")).handle(), 64);
    call("call-same-core-4096-bytes", needed(start.endpoint("near")).handle(), 4096);
    call("call-other-core", needed(start.endpoint("far")).handle(), 0);
    notification(start);
    channel(start);
    defmt::info!("bench done");
    loop {
        rt::sleep(Duration::from_secs(3600));
    }
}

fn log(name: &str, ticks: u64, operations: u32) {
    let tenths = ticks * 10 / u64::from(operations.max(1));
    defmt::info!("bench {=str} {=u64}.{=u64} instructions", name, tenths / 10, tenths % 10);
}

/// The fewest ticks that a batch took.
fn fewest(mut batch: impl FnMut()) -> u64 {
    let mut fewest = u64::MAX;
    for _ in 0..BATCHES {
        let before = rt::now();
        batch();
        fewest = fewest.min(rt::now() - before);
    }
    fewest
}

/// From the kernel's entry to its leaving to the first service.
fn boot() {
    let [entered, left, ..] = needed(syscall::inspect(Inspect::Boot, 0));
    log("boot-kernel", left - entered, 1);
}

/// A system call that does next to nothing, for comparison: there and back with one look at a handle.
fn kernel_entry(start: &Start<'_>) {
    let handle = needed(start.endpoint("near")).handle();
    let ticks = fewest(|| {
        for _ in 0..OPERATIONS {
            let _ = syscall::refresh(handle);
        }
    });
    log("system-call", ticks, OPERATIONS);
}

/// A call and its reply between two loops whose instructions are counted: what is left is the kernel's, both ways.
fn kernel_part(start: &Start<'_>) {
    let endpoint = needed(start.endpoint("raw")).handle();
    let ticks = fewest(|| raw_calls(endpoint, OPERATIONS));
    log("call-in-the-kernel", ticks - u64::from(OPERATIONS) * CALLER_AND_SERVER, OPERATIONS);
}

/// Instructions of a turn of the loop here (4) and of the one in `bench_raw.rs` (3), their system calls included.
const CALLER_AND_SERVER: u64 = 4 + 3;

fn raw_calls(endpoint: Handle, count: u32) {
    // SAFETY: a call without bytes in its label, whose registers are declared; the reply leaves RDI, R12 and R13 alone.
    unsafe {
        asm!(
            "2: xor eax, eax",
            "syscall",
            "dec r15",
            "jnz 2b",
            inout("r15") u64::from(count) => _,
            in("rdi") endpoint.0,
            in("rsi") Label::new(1, 0).0,
            in("r12") NEVER,
            in("r13") 0u64,
            out("rax") _, out("rdx") _,
            clobber_abi("sysv64"),
            options(nostack),
        );
    }
}

fn call(name: &str, endpoint: Handle, bytes: u16) {
    let message = Message { label: Label::new(1, bytes), words: [1, 2, 3, 4] };
    let ticks = fewest(|| {
        for _ in 0..OPERATIONS {
            let reply = needed(syscall::call(endpoint, message, NEVER));
            assert!(reply.words == message.words, "the answer of {name} is wrong");
        }
    });
    log(name, ticks, OPERATIONS);
}

/// A notification to a service that waits for it on the same core, runs at once, and raises one back.
fn notification(start: &Start<'_>) {
    let there = needed(start.notification("ping"));
    let back = needed(start.incoming("pong"));
    let ticks = fewest(|| {
        for _ in 0..OPERATIONS {
            needed(there.raise());
            needed(syscall::wait(back, NEVER));
        }
    });
    log("notification", ticks, 2 * OPERATIONS);
}

struct Channel {
    producer: Producer<Region, FrameDescriptor>,
    consumer: Notification,
    room: u64,
}

impl Channel {
    fn open(start: &Start<'_>) -> Self {
        let Ok(producer) = Producer::open(needed(start.region("stream"))) else {
            panic!("the channel's region is too small")
        };
        let channel = Self {
            producer,
            consumer: needed(start.notification("stream")),
            room: needed(start.incoming("stream")),
        };
        needed(channel.consumer.raise());
        channel
    }

    fn wake(&self, wake: Wake) {
        if wake == Wake::Needed {
            needed(self.consumer.raise());
        }
    }

    /// Sends all the descriptors, and sleeps while there is no room.
    fn send(&mut self, descriptors: &[FrameDescriptor]) {
        let mut left = descriptors;
        while !left.is_empty() {
            match self.producer.push_batch(left) {
                Ok((sent, wake)) => {
                    self.wake(wake);
                    left = left.get(sent..).unwrap_or(&[]);
                    if sent == 0 && matches!(self.producer.prepare_to_sleep(), Ok(Sleep::Ready)) {
                        needed(syscall::wait(self.room, NEVER));
                    }
                }
                Err(ChannelError::PeerRestarted) => needed(self.consumer.raise()),
                Err(_) => panic!("the consumer misbehaves"),
            }
        }
    }
}

/// Descriptors through a channel to a service on the same core; then single frames, handed over and acknowledged.
fn channel(start: &Start<'_>) {
    let mut channel = Channel::open(start);
    let batch = [FrameDescriptor::default(); 64];
    // The first ones let both sides find each other.
    channel.send(&batch);
    let ticks = fewest(|| {
        for _ in 0..DESCRIPTORS / 64 {
            channel.send(&batch);
        }
    });
    log("channel-per-descriptor", ticks, DESCRIPTORS);
    let given_back = needed(start.incoming("frame-back"));
    for (name, length) in
        [("frame-handed-over-64", 64), ("frame-handed-over-1024", 1024), ("frame-handed-over-4096", 4096)]
    {
        let descriptor = FrameDescriptor {
            handle: FrameHandle::new(0, 3, 1),
            length,
            kind: 1,
            ..FrameDescriptor::default()
        };
        let ticks = fewest(|| {
            for _ in 0..OPERATIONS {
                channel.send(&[descriptor]);
                needed(syscall::wait(given_back, NEVER));
            }
        });
        log(name, ticks, OPERATIONS);
    }
}
