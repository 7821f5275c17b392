//! Messages that go out, and those that wait because the interconnect had no room.

use alloc::collections::VecDeque;

use ipc::interfaces::ept::Messages;
use ipc::interfaces::interconnect::{Contents, NO_FRAME, Outgoing, SendAnswer};
use ipc::wire::Class;

use super::links::{Links, Lost};
use crate::frames::Frame;

/// The frame that went out and the one in exchange.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Exchange {
    /// Which went.
    pub given: u32,
    /// Which came.
    pub got: u32,
}

/// Messages in the order in which they go.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    letters: VecDeque<Outgoing>,
    /// Messages that went.
    pub sent: Messages,
    /// Times that there was no room.
    pub full: u64,
}

impl Outbox {
    /// Puts a message at the end. The page that goes with it stays this node's until [`Outbox::give`] says otherwise.
    pub fn push(&mut self, letter: Outgoing) {
        self.letters.push_back(letter);
    }

    /// The page in the frame does not stay here: it goes with the latest message that has it. Whether there is one.
    pub fn give(&mut self, frame: Frame) -> bool {
        let letter = self.letters.iter_mut().rev().find(|letter| letter.frame == frame.0);
        match letter {
            Some(letter) => {
                letter.contents = Contents::Given;
                true
            }
            None => false,
        }
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Sends what there is room for; `exchanged` hears of frames. What goes to one node in one class keeps its order.
    ///
    /// # Errors
    /// [`Lost`] when a message cannot be sent at all.
    pub fn flush<L: Links>(
        &mut self,
        links: &mut L,
        mut exchanged: impl FnMut(Exchange) -> Result<(), Lost>,
    ) -> Result<(), Lost> {
        // Where a message waits, those behind it do too. A bit for each node and class: what shares a bit waits in vain at
        // worst.
        let mut waiting = 0_u128;
        for _ in 0..self.letters.len() {
            let Some(letter) = self.letters.pop_front() else { return Ok(()) };
            let way = 1 << ((usize::from(letter.node) * 4 + letter.class as usize) % 128);
            if waiting & way != 0 {
                self.letters.push_back(letter);
                continue;
            }
            let sent = links.send(&letter)?;
            match sent.answer {
                SendAnswer::Taken => {
                    *match letter.class {
                        Class::Control | Class::Platform => &mut self.sent.control,
                        Class::Request => &mut self.sent.request,
                        Class::Page => &mut self.sent.page,
                    } += 1;
                    if letter.contents == Contents::Given {
                        exchanged(Exchange { given: letter.frame, got: sent.frame })?;
                    }
                }
                SendAnswer::Full => {
                    waiting |= way;
                    self.full += 1;
                    self.letters.push_back(letter);
                }
                answer => return Err(Lost::NotSent(letter.node, answer)),
            }
        }
        Ok(())
    }

    /// Frames that wait to be given.
    #[cfg(test)]
    pub fn given(&self) -> impl Iterator<Item = u32> {
        self.letters.iter().filter(|letter| letter.contents == Contents::Given).map(|letter| letter.frame)
    }
}

/// No message has this frame.
const _: () = assert!(NO_FRAME > crate::frames::MAX_FRAMES);
