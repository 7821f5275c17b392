//! When to poll the card and when to sleep.
//!
//! An answer that is waited for is polled for, because an interrupt would cost more than the wait; but not for longer
//! than such an answer usually takes, and not so long that the thread comes near its budget, which counts the time
//! since it last really waited. After traffic the card is polled a little longer, because frames come in bursts: the
//! longest wait that costs no more than the interrupt it may save (Karlin, Li, Manasse and Owicki, "Empirical Studies
//! of Competitive Spinning for a Shared-Memory Multiprocessor", SOSP 1991).

/// What to do now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// Look at the card again.
    Poll,
    /// Wait for an interrupt, a message or the next deadline.
    Sleep,
    /// Wait, whatever comes from the card, until this time in TSC ticks.
    Nap(u64),
}

/// Decides over [`Pace`].
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    limits: Limits,
    /// Since when the thread has not really waited.
    awake_since: u64,
    /// When something last came.
    last_progress: u64,
}

/// How long is too long, in TSC ticks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Polling without anything coming, when an answer is waited for.
    pub poll: u64,
    /// Polling without anything coming, when none is.
    pub linger: u64,
    /// Polling in all, between two waits.
    pub awake: u64,
    /// A wait that serves only to have waited.
    pub nap: u64,
}

impl Pacer {
    /// A pacer at `now`, which begins awake.
    #[must_use]
    pub const fn new(limits: Limits, now: u64) -> Self {
        Self { limits, awake_since: now, last_progress: now }
    }

    /// Notes that something came, or went out to be answered.
    pub fn progress(&mut self, now: u64) {
        self.last_progress = now;
    }

    /// Notes that the thread comes out of a real wait.
    pub fn woke(&mut self, now: u64) {
        self.awake_since = now;
        self.last_progress = now;
    }

    /// What to do now, when an answer is waited for or not.
    #[must_use]
    pub fn decide(&self, now: u64, expecting: bool) -> Pace {
        if now.saturating_sub(self.awake_since) >= self.limits.awake {
            return Pace::Nap(now.saturating_add(self.limits.nap));
        }
        let patience = if expecting { self.limits.poll } else { self.limits.linger };
        if now.saturating_sub(self.last_progress) < patience {
            return Pace::Poll;
        }
        Pace::Sleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { poll: 10, linger: 4, awake: 100, nap: 3 };

    #[test]
    fn it_polls_for_what_is_expected_and_a_little_after_traffic_and_not_for_long() {
        let mut pacer = Pacer::new(LIMITS, 0);
        assert_eq!(pacer.decide(3, false), Pace::Poll);
        assert_eq!(pacer.decide(4, false), Pace::Sleep);
        assert_eq!(pacer.decide(9, true), Pace::Poll);
        assert_eq!(pacer.decide(10, true), Pace::Sleep);
        pacer.progress(10);
        assert_eq!(pacer.decide(19, true), Pace::Poll);
        pacer.woke(50);
        assert_eq!(pacer.decide(59, true), Pace::Poll);
    }

    #[test]
    fn an_endless_stream_of_frames_does_not_keep_it_awake() {
        let mut pacer = Pacer::new(LIMITS, 0);
        let mut naps = 0;
        let mut longest = 0;
        let mut waited = 0;
        for now in 0..1000 {
            pacer.progress(now);
            if let Pace::Nap(until) = pacer.decide(now, true) {
                assert_eq!(until, now + 3);
                longest = longest.max(now - waited);
                waited = until;
                pacer.woke(until);
                naps += 1;
            }
        }
        assert!(naps >= 9 && longest <= 100, "{naps} naps, {longest} ticks awake");
    }
}
