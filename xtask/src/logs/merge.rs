//! Brings what arrives from several nodes and cores into the order of time.
//!
//! What arrives is held for a short window, then goes out with everything that is older, so that a line is late by at
//! most the window and a node whose clock is far behind holds up nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Things that wait for their turn.
#[derive(Debug)]
pub struct Merger<T> {
    window: Duration,
    /// By time, then by arrival.
    waiting: BTreeMap<(u64, u64), (Instant, T)>,
    arrivals: u64,
}

impl<T> Merger<T> {
    /// A merger that holds what arrives for `window`.
    pub fn new(window: Duration) -> Self {
        Self { window, waiting: BTreeMap::new(), arrivals: 0 }
    }

    /// Takes what arrives at `now` and says of itself that it is of `time`.
    pub fn push(&mut self, time: u64, now: Instant, thing: T) {
        self.waiting.insert((time, self.arrivals), (now, thing));
        self.arrivals += 1;
    }

    /// What has its turn at `now`, in order.
    pub fn due(&mut self, now: Instant) -> Vec<T> {
        let expired = |arrival: &Instant| now.saturating_duration_since(*arrival) >= self.window;
        let last = self.waiting.iter().rev().find(|(_, (arrival, _))| expired(arrival));
        let Some((&(time, arrival), _)) = last else { return Vec::new() };
        let later = self.waiting.split_off(&(time, arrival + 1));
        std::mem::replace(&mut self.waiting, later).into_values().map(|(_, thing)| thing).collect()
    }

    /// All that waits, in order.
    pub fn rest(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, thing)| thing).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(100);

    #[test]
    fn what_waited_goes_out_with_what_is_older() {
        let start = Instant::now();
        let mut merger = Merger::new(WINDOW);
        merger.push(50, start, "b");
        merger.push(90, start + WINDOW / 2, "later");
        merger.push(40, start + WINDOW / 2, "a");
        merger.push(50, start + WINDOW / 2, "c");
        assert!(merger.due(start + WINDOW / 2).is_empty());
        assert_eq!(merger.due(start + WINDOW), ["a", "b"]);
        assert_eq!(merger.rest(), ["c", "later"]);
    }

    #[test]
    fn a_clock_far_behind_holds_up_nobody() {
        let start = Instant::now();
        let mut merger = Merger::new(WINDOW);
        merger.push(1_000_000, start, 0);
        for step in 1..=10 {
            merger.push(u64::from(step), start + WINDOW / 10 * step, step);
        }
        assert_eq!(merger.due(start + WINDOW).last(), Some(&0));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_equal_times_keep_their_order(times in proptest::collection::vec(0_u64..20, 0..60), pause in 0_u32..40) {
            let start = Instant::now();
            let mut merger = Merger::new(WINDOW);
            let mut out = Vec::new();
            for (number, &time) in (0_u32..).zip(&times) {
                let now = start + Duration::from_millis(u64::from(number * pause));
                merger.push(time, now, (time, number));
                let due = merger.due(now);
                prop_assert!(due.is_sorted());
                out.extend(due);
            }
            let rest = merger.rest();
            prop_assert!(rest.is_sorted());
            out.extend(rest);
            out.sort_by_key(|(_, number)| *number);
            prop_assert_eq!(out.iter().map(|(time, _)| *time).collect::<Vec<_>>(), times);
        }
    }
}
