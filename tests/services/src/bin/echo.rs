//! A service that answers, and takes what comes through a channel.
#![no_std]
#![no_main]

use core::time::Duration;

use ipc::channel::{ChannelError, Consumer, Sleep, Wake};
use ipc::frame::FrameDescriptor;
use ipc::message::{Caller, Message, MessagePage, Refused};
use rt::capability::{DmaRegion, Endpoint, Notification, Region};
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use test_services::echo::{Bytes, INTERFACE, Server, dispatch};
use test_services::frame_byte;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let mut echo = Echo {
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
        stream: Stream::open(start),
        received: [0; 3],
    };
    echo.drain();
    serve(&mut echo)
}

/// The receiving end of the channel, when the manifest has one.
struct Stream {
    consumer: Consumer<Region, FrameDescriptor>,
    producer: Notification,
    frames: DmaRegion,
    bits: u64,
}

impl Stream {
    fn open(start: &Start<'_>) -> Option<Self> {
        let region = start.region("stream").ok()?;
        Some(Self {
            consumer: Consumer::open(region).ok()?,
            producer: start.notification("stream").ok()?,
            frames: start.dma_region("frames").ok()?,
            bits: start.incoming("stream").ok()?,
        })
    }

    fn wake(&self) {
        if let Err(error) = self.producer.raise() {
            defmt::warn!("the producer cannot be woken: {=i64}", error as i64);
        }
    }
}

struct Echo {
    membership: Membership<Endpoint>,
    stream: Option<Stream>,
    received: [u64; 3],
}

impl Echo {
    /// Takes all that is in the channel, until nothing is left and the producer knows to wake this service.
    fn drain(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        loop {
            let mut batch = [FrameDescriptor::default(); 32];
            match stream.consumer.pop_batch(&mut batch) {
                Ok((count, wake)) => {
                    for descriptor in batch.iter().take(count) {
                        self.received[0] += 1;
                        self.received[1] = self.received[1].wrapping_add(descriptor.handle.0);
                        if descriptor.length > 0 && is_right(stream.frames.region, descriptor) {
                            self.received[2] += 1;
                        }
                    }
                    if wake == Wake::Needed {
                        stream.wake();
                    }
                    if count == 0 && matches!(stream.consumer.prepare_to_sleep(), Ok(Sleep::Ready)) {
                        return;
                    }
                }
                Err(ChannelError::PeerRestarted) => stream.wake(),
                Err(_) => panic!("the producer misbehaves"),
            }
        }
    }
}

/// Whether a frame holds what its sender wrote: looked at where it lies.
fn is_right(frames: Region, descriptor: &FrameDescriptor) -> bool {
    let Some(range) = descriptor.range() else { return false };
    let Ok(base) = usize::try_from(descriptor.handle.offset()) else { return false };
    let mut byte = [0];
    range.into_iter().all(|place| {
        frames.read(base + place, &mut byte).is_some() && byte[0] == frame_byte(descriptor.handle, place)
    })
}

impl Server for Echo {
    fn add(&mut self, _: Caller, words: [u64; 4]) -> Result<[u64; 4], Refused> {
        Ok(words.map(|word| word.wrapping_add(1)))
    }

    fn reverse(&mut self, _: Caller, mut bytes: Bytes) -> Result<Bytes, Refused> {
        bytes.reverse();
        Ok(bytes)
    }

    fn pause(&mut self, _: Caller, microseconds: u64) -> Result<u64, Refused> {
        rt::sleep(Duration::from_micros(microseconds));
        Ok(microseconds)
    }

    fn received(&mut self, _: Caller) -> Result<[u64; 3], Refused> {
        Ok(self.received)
    }
}

impl Service for Echo {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(self, caller, message, page)
    }

    fn bits(&self) -> u64 {
        self.stream.as_ref().map_or(0, |stream| stream.bits)
    }

    fn notified(&mut self, _: u64) {
        self.drain();
    }

    fn deadline(&self) -> u64 {
        self.membership.due()
    }

    fn deadline_passed(&mut self, now: u64) {
        membership::keep(&mut self.membership, now);
    }
}
