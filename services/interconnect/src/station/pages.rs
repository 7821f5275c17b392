//! Where the station's page frames go.

use ipc::wire::MAX_PAYLOAD;

use super::{Outgoing, Station};
use crate::card::Card;

/// Page frames that are kept for sending when others are posted.
const RESERVE: usize = 8;
/// Bytes of a page.
const PAGE: u16 = 4096;
const _: () = assert!(PAGE as usize == MAX_PAYLOAD);

impl<C: Card> Station<C> {
    /// A page of test contents that is to go out.
    pub(super) fn written(&mut self, mut frame: C::Frame, seed: u64) -> Outgoing<C::Frame> {
        self.card.fill(&mut frame, seed);
        let checksum = self.card.checksum(&frame, PAGE);
        Outgoing { frame, bytes: PAGE, checksum }
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
