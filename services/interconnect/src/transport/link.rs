//! One life of a peer: its classes, its round-trip time, its counters.

use core::array;

use ipc::wire::{CLASSES, Class, Fragment, Parsed};

use super::receiver::{Arrived, Partial, Receiver, Refused};
use super::rtt::RttEstimator;
use super::sender::{Acknowledgement, Due, Sender};
use super::{Limits, Rejected};
use crate::PAGE;
use crate::membership::Member;
use crate::sink::{Delivery, Outcome, Output, Receipt, Sink};
use crate::statistics::{ClassCounters, Histogram, Totals};

/// Whether the peer is a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    Member,
    /// It was one; the card still reads frames that were for it.
    Former,
}

/// One class of a link.
#[derive(Debug)]
pub(super) struct Lane<F> {
    pub sender: Sender<F>,
    pub receiver: Receiver<F>,
    pub counters: ClassCounters,
    /// Whether somebody was told that there is no room.
    pub refused: bool,
    /// Whether the peer is to be asked for credit.
    pub probe: bool,
}

/// One life of a peer.
#[derive(Debug)]
pub(super) struct Link<F> {
    pub life: Member,
    pub generation: u32,
    pub standing: Standing,
    pub rtt: RttEstimator,
    pub round_trips: Histogram,
    pub lanes: [Lane<F>; CLASSES],
}

impl<F: Copy> Link<F> {
    pub fn new(life: Member, generation: u32, limits: &Limits) -> Self {
        let lane = |class: usize| Lane {
            sender: Sender::new(),
            receiver: Receiver::new(limits.windows.get(class).copied().unwrap_or(0)),
            counters: ClassCounters::default(),
            refused: false,
            probe: false,
        };
        Self {
            life,
            generation,
            standing: Standing::Member,
            rtt: RttEstimator::new(limits.rto),
            round_trips: Histogram::new(),
            lanes: array::from_fn(lane),
        }
    }

    pub fn is_member(&self) -> bool {
        self.standing == Standing::Member
    }

    /// The lane of a class.
    pub fn lane(&mut self, class: Class) -> &mut Lane<F> {
        let [control, platform, request, page] = &mut self.lanes;
        match class {
            Class::Control => control,
            Class::Platform => platform,
            Class::Request => request,
            Class::Page => page,
        }
    }

    /// Takes what the peer says of a class; frames that are done go to the sink.
    pub fn acknowledge(
        &mut self,
        class: Class,
        ack: Acknowledgement,
        now: u64,
        sink: &mut impl Sink<F>,
    ) -> Result<(), Rejected> {
        let lane = self.lane(class);
        let Ok(sample) = lane.sender.acknowledge(ack, now) else {
            lane.counters.unexpected += 1;
            return Err(Rejected::Unexpected);
        };
        if let Some(sample) = sample {
            self.rtt.sample(sample);
            self.round_trips.record(sample);
        }
        self.release(class, Outcome::Acknowledged, sink);
        Ok(())
    }

    /// Tells of frames that are the caller's again, and of room.
    pub fn release(&mut self, class: Class, outcome: Outcome, sink: &mut impl Sink<F>) {
        let node = self.life.node;
        let lane = self.lane(class);
        while let Some(frame) = lane.sender.pop_done() {
            sink.put(Output::Done { node, class, frame, outcome });
        }
        if lane.refused && lane.sender.room() != 0 && outcome == Outcome::Acknowledged {
            lane.refused = false;
            sink.put(Output::Writable { node, class });
        }
    }

    /// Takes a frame with data, and delivers what is now in order. `waiting` counts the page frames that
    /// wait for one before them, those of all links.
    pub fn receive(
        &mut self,
        parsed: &Parsed,
        frame: F,
        now: u64,
        limits: &Limits,
        waiting: &mut usize,
        sink: &mut impl Sink<F>,
    ) -> Result<(), Rejected> {
        let class = parsed.class;
        let may_wait = *waiting < limits.waiting_frames;
        let bytes = u16::try_from(parsed.payload_bytes).unwrap_or(PAGE);
        let contents = if bytes == 0 { None } else { Some((frame, bytes)) };
        let arrived = Arrived { message: parsed.header.message, contents, fragment: parsed.fragment };
        let sequence = parsed.header.sequence.get();
        let lane = self.lane(class);
        if let Err(refused) = lane.receiver.take(sequence, arrived, may_wait, now, limits.acknowledge_delay) {
            *match refused {
                Refused::Repeated => &mut lane.counters.repeated,
                Refused::BeyondCredit => &mut lane.counters.beyond_credit,
                Refused::NoRoom => &mut lane.counters.no_room,
            } += 1;
            return Err(Rejected::Counted);
        }
        lane.counters.received_frames += 1;
        lane.counters.received_bytes += u64::from(bytes);
        match contents {
            Some(_) => *waiting += 1,
            None => sink.put(Output::Recycle(frame)),
        }
        while let Some(arrived) = self.lane(class).receiver.pop() {
            *waiting -= usize::from(arrived.contents.is_some());
            self.deliver(class, arrived, now, sink);
        }
        Ok(())
    }

    /// Delivers what is in order, or adds it to the page that it is a fragment of.
    fn deliver(&mut self, class: Class, arrived: Arrived<F>, now: u64, sink: &mut impl Sink<F>) {
        let (node, receipt) = (self.life.node, Receipt { generation: self.generation, class });
        let Arrived { message, contents, fragment } = arrived;
        let lane = self.lane(class);
        let contents = match (lane.receiver.partial.take(), contents) {
            (None, contents) if fragment == Fragment::WHOLE => contents,
            (None, Some((frame, bytes))) if fragment.index == 0 => {
                lane.receiver.partial = Some(Partial { frame, bytes, next: 1 });
                lane.receiver.consumed(1, now);
                return;
            }
            (Some(partial), Some((frame, bytes)))
                if fragment.index == partial.next && partial.bytes.saturating_add(bytes) <= PAGE =>
            {
                sink.append(frame, partial.frame, partial.bytes, bytes);
                sink.put(Output::Recycle(frame));
                let bytes = partial.bytes + bytes;
                if !fragment.last {
                    lane.receiver.partial = Some(Partial { bytes, next: partial.next + 1, ..partial });
                    lane.receiver.consumed(1, now);
                    return;
                }
                Some((partial.frame, bytes))
            }
            (partial, contents) => {
                // No sender of ours does that. What there is of the page is worth nothing.
                lane.counters.unexpected += 1;
                lane.receiver.consumed(1, now);
                let frames = partial.map(|partial| partial.frame).into_iter().chain(contents.map(|(f, _)| f));
                frames.for_each(|frame| sink.put(Output::Recycle(frame)));
                return;
            }
        };
        sink.put(Output::Deliver(Delivery { node, class, message, contents, receipt }));
    }

    /// Gives up the messages of a class of which nothing was transmitted yet.
    pub fn withdraw(&mut self, class: Class, sink: &mut impl Sink<F>) {
        let node = self.life.node;
        while let Some(part) = self.lane(class).sender.withdraw() {
            if let Some(frame) = part {
                sink.put(Output::Done { node, class, frame, outcome: Outcome::Abandoned });
            }
        }
        self.release(class, Outcome::Acknowledged, sink);
    }

    /// Looks at the clock.
    pub fn expire(&mut self, now: u64) {
        for lane in &mut self.lanes {
            lane.probe |= lane.sender.expire(now, &self.rtt) == Due::Probe;
        }
    }

    /// Ends the link: what waits here goes back, what was to be sent is done.
    pub fn close(&mut self, waiting: &mut usize, sink: &mut impl Sink<F>) {
        self.standing = Standing::Former;
        for class in Class::ALL {
            let lane = self.lane(class);
            let partial = lane.receiver.partial.take();
            if let Some(partial) = partial {
                sink.put(Output::Recycle(partial.frame));
            }
            while let Some(frame) = lane.receiver.discard() {
                *waiting -= 1;
                sink.put(Output::Recycle(frame));
            }
            lane.sender.abandon();
            self.release(class, Outcome::Abandoned, sink);
        }
    }

    /// Adds what passed on it.
    pub fn add_to(&self, totals: &mut Totals) {
        for (fast, timeout) in self.lanes.iter().map(|lane| lane.sender.retransmissions()) {
            totals.retransmissions += fast + timeout;
        }
        totals.round_trips.add(&self.round_trips);
    }

    /// Whether nothing is left of it.
    pub fn is_over(&self) -> bool {
        !self.is_member() && self.lanes.iter().all(|lane| lane.sender.is_empty())
    }

    /// When something is due for it, if ever.
    pub fn deadline(&self) -> Option<u64> {
        let of_lane = |lane: &Lane<F>| {
            let times = [lane.sender.deadline(&self.rtt), lane.receiver.acknowledge_at()];
            times.into_iter().flatten().min()
        };
        self.lanes.iter().filter_map(of_lane).min().filter(|_| self.is_member())
    }
}
