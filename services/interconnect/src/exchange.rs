//! The measurement of bare exchanges with one node: one request at a time, each answered or given up.

use heapless::Vec;
use ipc::interfaces::interconnect::{Exchange, ExchangeRequest, ExchangeTimes, MAX_EXCHANGES, Shape};
use ipc::wire::MAX_PAYLOAD;

/// Lost exchanges in a row after which the rest is not tried.
const MAX_LOST_IN_A_ROW: u16 = 8;
// The count of the lost ones has room for all that can be lost between two that are answered.
const _: () = assert!(MAX_EXCHANGES as u32 * MAX_LOST_IN_A_ROW as u32 <= u16::MAX as u32);

/// A request that is out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outstanding {
    /// Its sequence number.
    pub sequence: u32,
    /// When it was given to the card, in TSC ticks.
    pub begun: u64,
    /// The seed of the contents that the answer's page, if it has one, must hold.
    pub seed: u64,
}

/// What an answer's page holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contents {
    /// What it should, or the answer needs no page.
    Right,
    /// Something else.
    Wrong,
}

/// The measurement that was begun last.
#[derive(Debug, Default)]
pub struct Measurement {
    request: ExchangeRequest,
    running: bool,
    begun_once: bool,
    outstanding: Option<Outstanding>,
    ticks: Vec<u64, { MAX_EXCHANGES as usize }>,
    lost: u16,
    lost_in_a_row: u16,
    wrong: u16,
}

impl Measurement {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            request: ExchangeRequest { node: 0, shape: Shape::Short, count: 0 },
            running: false,
            begun_once: false,
            outstanding: None,
            ticks: Vec::new(),
            lost: 0,
            lost_in_a_row: 0,
            wrong: 0,
        }
    }

    /// Begins a measurement whose ranges were checked; the former one is forgotten.
    pub fn begin(&mut self, request: ExchangeRequest) {
        *self = Self { request, running: true, begun_once: true, ..Self::new() };
    }

    /// Whether one runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// Whether an answer is waited for.
    #[must_use]
    pub const fn is_expecting(&self) -> bool {
        self.outstanding.is_some()
    }

    /// What to send next, when the measurement runs and no answer is waited for.
    #[must_use]
    pub fn wants(&self) -> Option<ExchangeRequest> {
        (self.running && self.outstanding.is_none()).then_some(self.request)
    }

    /// Notes that a request was given to the card.
    pub fn sent(&mut self, outstanding: Outstanding) {
        self.outstanding = Some(outstanding);
    }

    /// Notes that a request could not be sent.
    pub fn not_sent(&mut self) {
        self.lose();
    }

    /// The request that an answer from a node answers; `None` when it answers nothing that is waited for.
    #[must_use]
    pub fn awaited(&self, node: u16, sequence: u32, payload_bytes: usize) -> Option<Outstanding> {
        let expected_bytes = match self.request.shape {
            Shape::Short => 0,
            Shape::Page | Shape::Fetch => MAX_PAYLOAD,
        };
        self.outstanding.filter(|outstanding| {
            node == self.request.node && sequence == outstanding.sequence && payload_bytes == expected_bytes
        })
    }

    /// Takes the answer that is waited for, which came after so many ticks.
    pub fn answered(&mut self, ticks: u64, contents: Contents) {
        self.outstanding = None;
        self.lost_in_a_row = 0;
        if contents == Contents::Wrong {
            self.wrong += 1;
        }
        // There is room: `count` is at most the capacity, and the measurement ends with it.
        let _ = self.ticks.push(ticks);
        self.finish_if_over();
    }

    /// When the wait for an answer is over, if one is waited for.
    #[must_use]
    pub fn deadline(&self, patience: u64) -> Option<u64> {
        self.outstanding.map(|outstanding| outstanding.begun.saturating_add(patience))
    }

    /// Gives up an answer that has not come within `patience` ticks.
    pub fn give_up(&mut self, now: u64, patience: u64) {
        if self.deadline(patience).is_some_and(|deadline| now >= deadline) {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.outstanding = None;
        self.lost += 1;
        self.lost_in_a_row += 1;
        self.finish_if_over();
    }

    fn finish_if_over(&mut self) {
        let complete = self.ticks.len() >= usize::from(self.request.count);
        if complete || self.lost_in_a_row >= MAX_LOST_IN_A_ROW {
            self.running = false;
            self.ticks.sort_unstable();
        }
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> Exchange {
        let completed = u16::try_from(self.ticks.len()).unwrap_or(u16::MAX);
        if self.running {
            return Exchange::Running(completed);
        }
        if !self.begun_once {
            return Exchange::None;
        }
        let at = |permille: usize| {
            // The smallest value that so many of the values do not exceed.
            let rank = (self.ticks.len() * permille).div_ceil(1000).max(1);
            self.ticks.get(rank - 1).copied().unwrap_or(0)
        };
        Exchange::Done(ExchangeTimes {
            request: self.request,
            completed,
            lost: self.lost,
            wrong: self.wrong,
            least_ticks: at(0),
            median_ticks: at(500),
            percentile_99_ticks: at(990),
            most_ticks: at(1000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: ExchangeRequest = ExchangeRequest { node: 3, shape: Shape::Page, count: 100 };

    fn send(measurement: &mut Measurement, sequence: u32, begun: u64) {
        measurement.sent(Outstanding { sequence, begun, seed: 0 });
    }

    fn done(measurement: &Measurement) -> ExchangeTimes {
        let Exchange::Done(times) = measurement.state() else { panic!("still runs") };
        times
    }

    #[test]
    fn times_are_ranked() {
        let mut measurement = Measurement::new();
        assert_eq!(measurement.state(), Exchange::None);
        measurement.begin(REQUEST);
        // 1 to 100 ticks, in an order that is not theirs.
        for i in 0..100u32 {
            assert_eq!(measurement.state(), Exchange::Running(u16::try_from(i).unwrap()));
            assert_eq!(measurement.wants(), Some(REQUEST));
            send(&mut measurement, i, 1000);
            assert!(measurement.is_expecting() && measurement.wants().is_none());
            let contents = if i == 9 { Contents::Wrong } else { Contents::Right };
            measurement.answered(1 + u64::from(i * 37 % 100), contents);
        }
        assert!(!measurement.is_running());
        assert_eq!(measurement.wants(), None);
        let expected = ExchangeTimes {
            request: REQUEST,
            completed: 100,
            lost: 0,
            wrong: 1,
            least_ticks: 1,
            median_ticks: 50,
            percentile_99_ticks: 99,
            most_ticks: 100,
        };
        assert_eq!(measurement.state(), Exchange::Done(expected));
    }

    #[test]
    fn only_the_answer_to_what_is_out_is_awaited() {
        for (shape, bytes, other) in
            [(Shape::Short, 0, 4096), (Shape::Page, 4096, 0), (Shape::Fetch, 4096, 8)]
        {
            let mut measurement = Measurement::new();
            assert_eq!(measurement.awaited(3, 0, bytes), None);
            measurement.begin(ExchangeRequest { shape, ..REQUEST });
            assert_eq!(measurement.awaited(3, 0, bytes), None);
            let outstanding = Outstanding { sequence: 7, begun: 10, seed: 99 };
            measurement.sent(outstanding);
            assert_eq!(measurement.awaited(4, 7, bytes), None);
            assert_eq!(measurement.awaited(3, 6, bytes), None);
            assert_eq!(measurement.awaited(3, 7, other), None);
            assert_eq!(measurement.awaited(3, 7, bytes), Some(outstanding));
            measurement.answered(10, Contents::Right);
            assert_eq!(measurement.awaited(3, 7, bytes), None);
        }
    }

    #[test]
    fn a_silent_peer_ends_it() {
        let mut measurement = Measurement::new();
        measurement.begin(REQUEST);
        for i in 0..8 {
            send(&mut measurement, i, 100);
            assert_eq!(measurement.deadline(50), Some(150));
            measurement.give_up(149, 50);
            assert!(measurement.is_expecting());
            measurement.give_up(150, 50);
            assert!(!measurement.is_expecting());
        }
        let times = done(&measurement);
        assert_eq!((times.completed, times.lost, times.least_ticks, times.most_ticks), (0, 8, 0, 0));
        // A late answer changes nothing.
        assert_eq!(measurement.awaited(3, 7, 4096), None);
    }

    #[test]
    fn what_is_lost_is_made_up_for() {
        let mut measurement = Measurement::new();
        measurement.begin(ExchangeRequest { count: 10, ..REQUEST });
        let mut sent = 0;
        while measurement.wants().is_some() {
            send(&mut measurement, sent, 0);
            // Seven of eight are lost: one fewer than would end it.
            if sent % 8 < 7 {
                measurement.give_up(u64::MAX, 50)
            } else {
                measurement.answered(9, Contents::Right)
            }
            sent += 1;
        }
        let times = done(&measurement);
        assert_eq!((sent, times.completed, times.lost, times.wrong, times.median_ticks), (80, 10, 70, 0, 9));
    }
}
