//! The other side of each measurement: answers calls, notifications and descriptors, and does nothing else.
#![no_std]
#![no_main]

use ipc::abi::{Label, NEVER, RECEIVE_MESSAGES, Token};
use ipc::channel::{ChannelError, Consumer, Sleep, Wake};
use ipc::frame::FrameDescriptor;
use ipc::message::Message;
use rt::capability::{Notification, Region};
use rt::start::Start;
use rt::syscall::{self, Received};

rt::entry!(main);

const NOTHING: Message = Message { label: Label(0), words: [0; 4] };

fn main(start: &'static Start<'static>) -> ! {
    let ping = start.incoming("ping").unwrap_or(0);
    let pong = start.notification("pong").ok();
    let mut stream = Stream::open(start);
    let data = stream.as_ref().map_or(0, |stream| stream.data);
    let (mut token, mut reply) = (Token::NOBODY, NOTHING);
    loop {
        match syscall::receive(token, reply, RECEIVE_MESSAGES | ping | data, NEVER) {
            Ok(Received::Message(from, message)) => (token, reply) = (from, message),
            Ok(Received::Notified(bits)) => {
                token = Token::NOBODY;
                if bits & ping != 0
                    && let Some(pong) = &pong
                {
                    raise(pong);
                }
                if let Some(stream) = &mut stream {
                    stream.drain();
                }
            }
            Err(_) => token = Token::NOBODY,
        }
    }
}

fn raise(notification: &Notification) {
    if let Err(error) = notification.raise() {
        panic!("nobody to tell: {error}");
    }
}

struct Stream {
    consumer: Consumer<Region, FrameDescriptor>,
    producer: Notification,
    frame_back: Notification,
    data: u64,
}

impl Stream {
    fn open(start: &Start<'_>) -> Option<Self> {
        let stream = Self {
            consumer: Consumer::open(start.region("stream").ok()?).ok()?,
            producer: start.notification("stream").ok()?,
            frame_back: start.notification("frame-back").ok()?,
            data: start.incoming("stream").ok()?,
        };
        raise(&stream.producer);
        Some(stream)
    }

    fn drain(&mut self) {
        let mut batch = [FrameDescriptor::default(); 64];
        loop {
            match self.consumer.pop_batch(&mut batch) {
                Ok((0, _)) => {
                    if matches!(self.consumer.prepare_to_sleep(), Ok(Sleep::Ready)) {
                        return;
                    }
                }
                Ok((count, wake)) => {
                    if wake == Wake::Needed {
                        raise(&self.producer);
                    }
                    // A frame that its owner wants back: nothing is done with its contents, whatever their length.
                    let wanted = batch.iter().take(count).filter(|descriptor| descriptor.kind == 1).count();
                    if wanted > 0 {
                        raise(&self.frame_back);
                    }
                }
                Err(ChannelError::PeerRestarted) => raise(&self.producer),
                Err(_) => panic!("the producer misbehaves"),
            }
        }
    }
}
