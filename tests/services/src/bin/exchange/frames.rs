//! The test: rounds of exchanges with another node, in both directions at once since every node does this.
//!
//! A round has exchanges of every shape one after another, then some with pauses, between which the interconnect
//! sleeps; contents are compared each time. Between rounds a little traffic goes on. The next round begins when
//! that was interrupted: when no answer came for long, or the interconnect was restarted. What the network may
//! do meanwhile is for the scenario to say, and which lines of the log must follow from it.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ipc::interfaces::interconnect::{Counters, Drops, ExchangeRequest, MAX_EXCHANGES, Shape};
use rt::start::Start;

use crate::link::{Attempt, Link};
use crate::{Failure, fail};

/// Exchanges of each shape in a round.
const EXCHANGES: u16 = 400;
/// Exchanges with pauses in a round.
const SPACED: u16 = 30;
/// Pauses, and between two exchanges of the traffic between rounds.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks whether exchanges are over.
const LOOK: Duration = Duration::from_millis(4);
/// Between two attempts when there is no answer.
const RETRY: Duration = Duration::from_millis(100);
/// No answer for so long is an interruption: longer than the interconnect takes to forget a silent node.
const OUTAGE: Duration = Duration::from_secs(6);
/// No answer for so long fails the test.
const PATIENCE: Duration = Duration::from_secs(120);
/// How far exchanges get before the card's rings are overwritten.
const MID_TRAFFIC: Duration = Duration::from_millis(20);

const SHAPES: [Shape; 3] = [Shape::Short, Shape::Page, Shape::Fetch];

struct Frames<'a> {
    start: &'a Start<'a>,
    link: Link,
    /// The other node.
    node: u16,
    exchanges: u64,
    lost: u64,
    interruptions: u32,
}

/// Goes round and round until something is wrong.
pub fn run(start: &Start<'_>, mut link: Link) -> Result<(), Failure> {
    let counters = link.counters()?;
    let peer = link.first_peer()?;
    if start.node() == 0 || u64::from(peer.node) == start.node() || peer.mac == counters.mac {
        fail!("this is node {}, and the other says that it is {}", start.node(), peer.node);
    }
    let mut frames = Frames { start, link, node: peer.node, exchanges: 0, lost: 0, interruptions: 0 };
    let mut round = 0u32;
    loop {
        round += 1;
        let before = frames.interruptions;
        frames.round()?;
        defmt::info!("pass: frames, round {=u32}", round);
        if round == 1 {
            frames.overwrite_rings()?;
        }
        for shape in SHAPES.into_iter().cycle() {
            if frames.interruptions != before {
                break;
            }
            rt::sleep(PAUSE);
            frames.exchange(shape, 1)?;
        }
    }
}

impl Frames<'_> {
    fn round(&mut self) -> Result<(), Failure> {
        for shape in SHAPES {
            self.exchange(shape, EXCHANGES)?;
        }
        let before = self.link.counters()?;
        for shape in SHAPES.into_iter().cycle().take(usize::from(SPACED)) {
            rt::sleep(PAUSE);
            self.exchange(shape, 1)?;
        }
        let after = self.link.counters()?;
        // For most requests and answers that come while all sleep, an interrupt is what wakes the interconnect.
        let interrupts = after.interrupts.saturating_sub(before.interrupts);
        if interrupts < u64::from(SPACED) / 2 {
            fail!("{interrupts} interrupts in {SPACED} exchanges with pauses");
        }
        self.tell(&after, interrupts);
        Ok(())
    }

    /// Logs what happened so far; faults of the network in lines of their own.
    fn tell(&self, counters: &Counters, interrupts: u64) {
        defmt::info!(
            "{=u64} exchanges with node {=u16}, all contents right; {=u64} interrupts in the last {=u16}",
            self.exchanges,
            self.node,
            interrupts,
            SPACED
        );
        if self.lost > 0 {
            defmt::info!("lost and repeated: {=u64} exchanges", self.lost);
        }
        let Drops { short, foreign, malformed, corrupt, unexpected, .. } = counters.dropped;
        if corrupt > 0 {
            defmt::info!("refused as corrupt: {=u64} frames", corrupt);
        }
        if short + foreign + malformed > 0 {
            defmt::info!(
                "refused: {=u64} too short, {=u64} of another type, {=u64} malformed",
                short,
                foreign,
                malformed
            );
        }
        if unexpected > 0 {
            defmt::info!("answers that nobody waited for any more: {=u64}", unexpected);
        }
    }

    /// Exchanges until so many were answered.
    fn exchange(&mut self, shape: Shape, count: u16) -> Result<(), Failure> {
        let mut left = count;
        let mut last_answer = rt::now();
        let mut outage_told = false;
        let clock = self.start.clock();
        while left > 0 {
            let request = ExchangeRequest { node: self.node, shape, count: left };
            match self.link.attempt(&request, LOOK)? {
                Attempt::Measured(times) => {
                    if times.wrong > 0 {
                        fail!("{} of {} answers held wrong contents", times.wrong, times.completed);
                    }
                    self.exchanges += u64::from(times.completed);
                    self.lost += u64::from(times.lost);
                    left -= times.completed.min(left);
                    if times.completed > 0 {
                        last_answer = rt::now();
                    }
                }
                Attempt::NoPeer => rt::sleep(RETRY),
                Attempt::Restarted => {
                    self.restarted();
                    rt::sleep(RETRY);
                }
            }
            let silence = rt::now().saturating_sub(last_answer);
            if silence >= clock.ticks(OUTAGE) && !outage_told {
                outage_told = true;
                self.interruptions += 1;
                defmt::info!("no answer from node {=u16} for {=u64} s", self.node, OUTAGE.as_secs());
            }
            if silence >= clock.ticks(PATIENCE) {
                fail!("no answer from node {} for {} s", self.node, PATIENCE.as_secs());
            }
        }
        Ok(())
    }

    /// Where the manifest gives this service the memory of the card's rings, it overwrites them while exchanges run: as
    /// a card does that has gone wild. The interconnect must notice, and its next life starts the card anew.
    fn overwrite_rings(&mut self) -> Result<(), Failure> {
        let Ok(rings) = self.start.dma_region("rings") else { return Ok(()) };
        let request = ExchangeRequest { node: self.node, shape: Shape::Page, count: MAX_EXCHANGES };
        if self.link.begin(&request)?.is_some() {
            fail!("there is no traffic to overwrite the rings in");
        }
        rt::sleep(MID_TRAFFIC);
        for word in rings.region.words() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        match self.link.finish(LOOK)? {
            Attempt::Restarted => self.restarted(),
            Attempt::Measured(times) => fail!("{} answers later it had not noticed", times.completed),
            Attempt::NoPeer => fail!("the interconnect forgot the other node"),
        }
        Ok(())
    }

    fn restarted(&mut self) {
        self.interruptions += 1;
        defmt::info!("the interconnect was restarted");
    }
}
