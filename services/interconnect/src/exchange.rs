//! The measurement of bare exchanges with one node: one request at a time, each answered or given up.

use heapless::Vec;
use ipc::interfaces::interconnect::{Exchange, ExchangeRequest, ExchangeTimes, MAX_EXCHANGES};

/// Lost exchanges in a row after which the rest is not tried.
const MAX_LOST_IN_A_ROW: u16 = 8;

/// A request that is out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Outstanding {
    sequence: u32,
    begun: u64,
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
}

impl Measurement {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            request: ExchangeRequest { node: 0, payload_bytes: 0, count: 0 },
            running: false,
            begun_once: false,
            outstanding: None,
            ticks: Vec::new(),
            lost: 0,
            lost_in_a_row: 0,
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

    /// Notes that the request with this sequence number was given to the card at `begun`.
    pub fn sent(&mut self, sequence: u32, begun: u64) {
        self.outstanding = Some(Outstanding { sequence, begun });
    }

    /// Notes that a request could not be sent.
    pub fn not_sent(&mut self) {
        self.lose();
    }

    /// Takes an answer from a node; `false` when it answers nothing that is waited for.
    pub fn answered(&mut self, node: u16, sequence: u32, payload_bytes: usize, now: u64) -> bool {
        let Some(Outstanding { sequence: expected, begun }) = self.outstanding else { return false };
        if node != self.request.node
            || sequence != expected
            || payload_bytes != usize::from(self.request.payload_bytes)
        {
            return false;
        }
        self.outstanding = None;
        self.lost_in_a_row = 0;
        // There is room: `count` is at most the capacity, and the measurement ends with it.
        let _ = self.ticks.push(now.saturating_sub(begun));
        self.finish_if_over();
        true
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
        let over = self.ticks.len() + usize::from(self.lost);
        if over >= usize::from(self.request.count) || self.lost_in_a_row >= MAX_LOST_IN_A_ROW {
            self.running = false;
            self.ticks.sort_unstable();
        }
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> Exchange {
        let completed = u16::try_from(self.ticks.len()).unwrap_or(u16::MAX);
        if self.running {
            return Exchange::Running(completed.saturating_add(self.lost));
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

    const REQUEST: ExchangeRequest = ExchangeRequest { node: 3, payload_bytes: 4096, count: 100 };

    #[test]
    fn times_are_ranked() {
        let mut measurement = Measurement::new();
        assert_eq!(measurement.state(), Exchange::None);
        measurement.begin(REQUEST);
        // 1 to 100 ticks, in an order that is not theirs.
        for i in 0..100u32 {
            assert_eq!(measurement.state(), Exchange::Running(u16::try_from(i).unwrap()));
            assert_eq!(measurement.wants(), Some(REQUEST));
            measurement.sent(i, 1000);
            assert!(measurement.is_expecting() && measurement.wants().is_none());
            assert!(measurement.answered(3, i, 4096, 1001 + u64::from(i * 37 % 100)));
        }
        assert!(!measurement.is_running());
        assert_eq!(measurement.wants(), None);
        let expected = ExchangeTimes {
            request: REQUEST,
            completed: 100,
            lost: 0,
            least_ticks: 1,
            median_ticks: 50,
            percentile_99_ticks: 99,
            most_ticks: 100,
        };
        assert_eq!(measurement.state(), Exchange::Done(expected));
    }

    #[test]
    fn only_the_awaited_answer_counts() {
        let mut measurement = Measurement::new();
        assert!(!measurement.answered(3, 0, 4096, 5));
        measurement.begin(REQUEST);
        assert!(!measurement.answered(3, 0, 4096, 5));
        measurement.sent(7, 10);
        assert!(!measurement.answered(4, 7, 4096, 20));
        assert!(!measurement.answered(3, 6, 4096, 20));
        assert!(!measurement.answered(3, 7, 0, 20));
        assert!(measurement.answered(3, 7, 4096, 20));
        assert!(!measurement.answered(3, 7, 4096, 20));
    }

    #[test]
    fn a_silent_peer_ends_it() {
        let mut measurement = Measurement::new();
        measurement.begin(REQUEST);
        for i in 0..8 {
            measurement.sent(i, 100);
            assert_eq!(measurement.deadline(50), Some(150));
            measurement.give_up(149, 50);
            assert!(measurement.is_expecting());
            measurement.give_up(150, 50);
            assert!(!measurement.is_expecting());
        }
        let Exchange::Done(times) = measurement.state() else { panic!("still runs") };
        assert_eq!((times.completed, times.lost, times.least_ticks, times.most_ticks), (0, 8, 0, 0));
        // A late answer changes nothing.
        assert!(!measurement.answered(3, 7, 4096, 200));
    }

    #[test]
    fn some_losses_do_not_end_it() {
        let mut measurement = Measurement::new();
        measurement.begin(ExchangeRequest { count: 10, ..REQUEST });
        for i in 0..10 {
            measurement.sent(i, 0);
            if i % 2 == 0 {
                measurement.give_up(u64::MAX, 50)
            } else {
                assert!(measurement.answered(3, i, 4096, 9))
            }
        }
        let Exchange::Done(times) = measurement.state() else { panic!("still runs") };
        assert_eq!((times.completed, times.lost, times.median_ticks), (5, 5, 9));
    }
}
