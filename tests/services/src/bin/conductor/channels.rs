//! A channel between two services, with page frames named in its descriptors and left where they are.

use core::time::Duration;

use ipc::channel::{ChannelError, Producer, Sleep, Wake};
use ipc::frame::{FrameDescriptor, FrameHandle};
use rt::capability::{Notification, Region};
use rt::start::Start;
use rt::text::Text;
use test_services::echo::Client;
use test_services::frame_byte;

use crate::{Failure, Outcome, endpoint, ensure, fail, until};

/// Descriptors sent.
const COUNT: u32 = 50_000;
/// Each so many of these names a frame with contents.
const FRAME_EVERY: u32 = 1_000;

struct Sender {
    producer: Producer<Region, FrameDescriptor>,
    consumer: Notification,
    bits: u64,
}

fn missing(missing: rt::start::Missing) -> Failure {
    Text::of(format_args!("{missing}"))
}

impl Sender {
    fn wake(&self) -> Outcome {
        self.consumer.raise().map_err(|error| Text::of(format_args!("the consumer cannot be woken: {error}")))
    }

    /// Sends one descriptor; sleeps while there is no room.
    fn send(&mut self, descriptor: &FrameDescriptor) -> Outcome {
        loop {
            match self.producer.push(descriptor) {
                Ok(Wake::Needed) => return self.wake(),
                Ok(Wake::NotNeeded) => return Ok(()),
                Err(ChannelError::Full) => {
                    if matches!(self.producer.prepare_to_sleep(), Ok(Sleep::Ready)) {
                        // A lost wake-up would end as a failure here, not in a hang.
                        let slept = rt::syscall::wait(self.bits, rt::deadline_in(Duration::from_secs(20)));
                        ensure!(slept.is_ok(), "the consumer does not make room: {slept:?}");
                    }
                }
                Err(ChannelError::PeerRestarted) => self.wake()?,
                Err(error) => fail!("the channel: {error:?}"),
            }
        }
    }
}

/// Sends descriptors, some of frames with contents, and compares with what the consumer counts.
pub fn run(start: &Start<'_>) -> Outcome {
    let Ok(region) = start.region("stream") else { return Ok(()) };
    let frames = start.dma_region("frames").map_err(missing)?;
    let mut sender = Sender {
        producer: Producer::open(region).map_err(|error| Text::of(format_args!("{error:?}")))?,
        consumer: start.notification("stream").map_err(missing)?,
        bits: start.incoming("stream").map_err(missing)?,
    };
    sender.wake()?;
    let count = u32::try_from(frames.region.bytes / 4096).unwrap_or(0);
    ensure!(count > 0, "the pool is empty");
    let mut echo = Client::new(endpoint(start, "echo")?);
    let (mut sum, mut with_contents) = (0u64, 0);
    for number in 0..COUNT {
        let handle = FrameHandle::new(0, number / FRAME_EVERY % count, number);
        let contents = number % FRAME_EVERY == 0;
        if contents {
            fill(frames.region, handle)?;
            with_contents += 1;
        }
        let length = if contents { 4096 } else { 0 };
        sender.send(&FrameDescriptor { handle, length, ..FrameDescriptor::default() })?;
        sum = sum.wrapping_add(handle.0);
    }
    until(60, "the channel", || match echo.received() {
        Ok(received) => Ok(received[0] >= u64::from(COUNT)),
        Err(error) => fail!("echo: {error}"),
    })?;
    let received = echo.received();
    ensure!(received == Ok([u64::from(COUNT), sum, with_contents]), "received {received:?}, sent {sum}");
    let outside = rt::syscall::dma_address(frames.handle, frames.region.bytes);
    ensure!(outside.is_err(), "an address past the pool's end: {outside:?}");
    let first = rt::syscall::dma_address(frames.handle, 0);
    ensure!(first == Ok(frames.physical), "the pool's address: {first:?}");
    Ok(())
}

fn fill(frames: Region, handle: FrameHandle) -> Outcome {
    let base = usize::try_from(handle.offset()).unwrap_or(usize::MAX);
    let mut bytes = [0; 4096];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = frame_byte(handle, place);
    }
    ensure!(frames.write(base, &bytes).is_some(), "a frame lies outside its pool");
    Ok(())
}
