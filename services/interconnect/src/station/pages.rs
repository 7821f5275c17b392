//! Where the station's page frames go.

use super::{Ready, Station};
use crate::card::Card;

/// Page frames that are kept for sending when others are posted.
const RESERVE: usize = 8;
/// What fills the page of a first exchange.
const PATTERN: u64 = 0x5555_aaaa_3333_cccc;

impl<C: Card> Station<C> {
    /// The page that came last, or else a fresh one.
    pub(super) fn page_to_send(&mut self, bytes: u16) -> Option<Ready<C::Frame>> {
        match self.ready.take() {
            Some(ready) if ready.bytes == bytes => Some(ready),
            other => {
                if let Some(other) = other {
                    self.keep(other.frame);
                }
                let mut frame = self.spare.pop()?;
                self.card.fill(&mut frame, PATTERN);
                let checksum = self.card.checksum(&frame, bytes);
                Some(Ready { frame, bytes, checksum })
            }
        }
    }

    /// Posts a page frame for reception, or keeps it when the card has enough.
    pub(super) fn give_back(&mut self, frame: C::Frame) {
        match self.card.post_receive(frame) {
            Ok(()) => self.posted = true,
            Err(rejected) => {
                if let Some(frame) = rejected.frame {
                    self.keep(frame);
                }
            }
        }
    }

    /// Posts spare page frames, but for a reserve, and tells the card of all that were posted.
    pub(super) fn refill(&mut self) {
        while self.spare.len() > RESERVE {
            let Some(frame) = self.spare.pop() else { break };
            if let Err(rejected) = self.card.post_receive(frame) {
                if let Some(frame) = rejected.frame {
                    self.keep(frame);
                }
                break;
            }
            self.posted = true;
        }
        if self.posted {
            self.posted = false;
            self.card.notify_receive();
        }
    }

    pub(super) fn keep(&mut self, frame: C::Frame) {
        // There is room: a station has `MAX_FRAMES` at most.
        let _ = self.spare.push(frame);
    }
}
