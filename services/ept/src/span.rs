//! Drives the coherence protocol: the memory of a guest that spans nodes.
//!
//! What the guest sees is shared, what it does not see stays this node's ([`GuestMemory::fault`]). Faults, messages and the
//! passing of time go into [`Coherence`]; what it asks for is carried out here: page operations by the kernel at once,
//! messages by the interconnect, answers to those who wait.
//!
//! Frames: each is the pool's (free, or with a page), the interconnect's (`carried`), on its way there (a page that
//! left, in a message that waits for room), or owed to it. What waits for room counts as free for the protocol and is not:
//! so many frames as can wait are kept out of its account ([`Span::begin`]).
//!
//! * [`begin`]: how it begins.
//! * [`links`]: the interconnect, those who wait, and the clock.
//! * [`hands`]: what the protocol asks for.
//! * [`outbox`]: messages that go out.
//! * [`waiters`]: who waits.
//! * [`foresight`]: what will be needed next.
//! * [`ahead`]: asks for that.
//! * [`sever`]: the platform's way out when a node is lost.
//! * [`report`]: what became of it.

mod ahead;
mod begin;
mod foresight;
mod hands;
pub mod links;
mod outbox;
mod report;
mod sever;
mod waiters;

use alloc::vec::Vec;

use ipc::abi::{NEVER, Token};
use ipc::interfaces::ept::Dropped;
use ipc::interfaces::interconnect::{Incoming, IncomingKind, NO_FRAME, Next};
use ipc::message::{CallError, Message as Answer};

use self::ahead::Ahead;
use self::hands::{Desk, Hands};
use self::links::{Links, Lost, Times};
use self::outbox::Exchange;
use self::waiters::Waiters;
use crate::coherence::environment::{Contents, Failed, Operation, Outcome, Waiter};
use crate::coherence::error::Error;
use crate::coherence::message::{Access, Kind, LONG_BYTES, Message, Page};
use crate::coherence::node::NodeId;
use crate::coherence::profile::Profile;
use crate::coherence::{self, Coherence};
use crate::fault::{self, Fault, Refusal, Source, Trace};
use crate::frames::Frame;
use crate::layout::GuestPage;
use crate::memory::GuestMemory;
use crate::space::{self, Space};

/// Evictions under way at one time.
const EVICTIONS: u8 = 4;
/// Messages taken before the service looks at other things.
const MOST_AT_ONCE: usize = 64;
/// After so many failures in a row of one page operation the memory is lost: about a second.
const MOST_FAILURES: u32 = 1_000;
/// After so many faults in a row for which there was no frame one is refused, which ends the guest.
const MOST_TRIES: u16 = 1_000;

/// What a node has round it while it takes an input.
pub struct Round<'a, S, L> {
    /// The guest's memory.
    pub memory: &'a mut GuestMemory,
    /// The kernel's guest space.
    pub space: &'a mut S,
    /// The rest.
    pub links: &'a mut L,
}

/// A guest's memory that nodes share, on one of them.
#[derive(Debug)]
pub struct Span {
    coherence: Coherence,
    desk: Desk,
    me: NodeId,
    waiters: Waiters,
    ahead: Ahead,
    times: Times,
    profile: Profile,
    /// The interconnect's frames.
    carried: Vec<u32>,
    /// The frame for the one that came with the last message, or [`NO_FRAME`].
    owed: u32,
    /// Failures in a row of the page operation in front.
    failures: u32,
    /// When those that hold pages are looked at.
    next_poll: u64,
    /// When what waits is tried again.
    next_try: u64,
    /// More messages may be there.
    has_more: bool,
    /// What the window waits for.
    stuck: Option<sever::Stuck>,
    /// A node is lost, and the window gets what there is.
    is_severed: bool,
    received: u64,
    dropped: Dropped,
    remote: u64,
    remote_user: u64,
    refused: u64,
    starved: u64,
}

impl Span {
    /// Takes a fault of the guest's; `None` when it is answered later.
    ///
    /// # Errors
    /// [`Lost`]: the memory can be used no more.
    pub fn fault<S: Space, L: Links>(
        &mut self,
        round: &mut Round<'_, S, L>,
        fault: Fault,
        trace: Trace,
        token: Token,
    ) -> Result<Option<Result<(), Refusal>>, Lost> {
        let Some(page) = round.memory.shared_page(GuestPage::of(fault.address)) else {
            return Ok(Some(round.memory.fault(round.space, fault)));
        };
        let waiter = match fault.source {
            Source::Vcpu(number) => self.waiters.vcpu(number),
            Source::Window => Some(self.waiters.window()),
        };
        let Some(waiter) = waiter else { return Ok(Some(Err(Refusal::Outside))) };
        if fault.source == Source::Window
            && let Some(answer) = self.severed(round, page)
        {
            return Ok(Some(answer));
        }
        let now = round.links.now();
        if self.coherence.is_waiting(waiter) {
            // It was stopped while it waited, and started again. It will be told to try again.
            self.waiters.begin(waiter, token, trace.fingerprint);
            return Ok(None);
        }
        if self.waiters.has_gone_on(waiter, trace.fingerprint, now, &self.times) {
            self.retire(round, waiter, now);
        }
        self.waiters.begin(waiter, token, trace.fingerprint);
        let access = match fault.access {
            space::Access::Read => Access::Read,
            space::Access::ReadWrite => Access::Write,
        };
        let is_claimed = access == Access::Write && self.claim(round, waiter, page, now);
        if !is_claimed {
            let device = fault.source == Source::Window;
            let fault = coherence::fault::Fault { waiter, page, access, device };
            let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
            if self.coherence.fault(hands, now, &fault).is_err() {
                // Page and waiter exist, and it does not wait.
                return Ok(Some(Err(Refusal::Outside)));
            }
        }
        self.carry_out(round, now)?;
        let answered = self.desk.resumed.iter().position(|(other, _)| *other == waiter);
        let answer = match answered.and_then(|place| self.desk.resumed.remove(place)) {
            Some((_, outcome)) => Some(self.answer(waiter, outcome, now).1),
            None if is_claimed => Some(self.answer(waiter, Outcome::Granted, now).1),
            None => {
                self.remote += 1;
                if waiter == self.waiters.window() {
                    self.window_waits(page, now);
                } else if trace.instruction >> 63 == 0 {
                    self.remote_user += 1;
                }
                self.profile.add(page, trace.instruction);
                self.look_ahead(round, waiter, (page, access), now);
                self.carry_out(round, now)?;
                None
            }
        };
        self.tell(round, now)?;
        Ok(answer)
    }

    /// Makes a page that nobody has touched this node's own, and some round it, when this node is their home. Without that the
    /// fault goes its usual way.
    fn claim<S: Space, L>(
        &mut self,
        round: &mut Round<'_, S, L>,
        waiter: Waiter,
        page: Page,
        now: u64,
    ) -> bool {
        let free = self.coherence.free_frames();
        if free == 0 || !self.coherence.is_untouched(page) {
            return false;
        }
        let group = round.memory.group(page, free, |page| self.coherence.is_untouched(page));
        let Ok(group) = round.memory.materialise_group(round.space, page, group) else { return false };
        let pages = group.first.0..group.first.0 + u32::from(group.count);
        let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
        let claimed = self.coherence.claim(hands, now, waiter, page, pages);
        debug_assert_eq!(claimed, Ok(()));
        claimed.is_ok()
    }

    fn retire<S, L>(&mut self, round: &mut Round<'_, S, L>, waiter: Waiter, now: u64) {
        let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
        let retired = self.coherence.retired(hands, now, waiter);
        debug_assert_eq!(retired, Ok(()));
    }

    /// Takes the messages that came, or most of them, and sends those for which there is room.
    ///
    /// # Errors
    /// [`Lost`]: the memory can be used no more.
    pub fn arrived<S: Space, L: Links>(&mut self, round: &mut Round<'_, S, L>) -> Result<(), Lost> {
        self.has_more = false;
        let mut now = round.links.now();
        for _ in 0..MOST_AT_ONCE {
            // While a page operation cannot be carried out no message is taken.
            if !self.desk.operations.is_empty() {
                return self.tell(round, now);
            }
            let frame = core::mem::replace(&mut self.owed, NO_FRAME);
            let incoming = round.links.receive(Next { frame, reserved: 0 })?;
            if frame != NO_FRAME {
                self.carried.push(frame);
            }
            match incoming.kind {
                IncomingKind::Message | IncomingKind::Last => {}
                IncomingKind::Nothing => return self.tell(round, now),
                IncomingKind::Owed => return Err(Lost::Owed),
            }
            now = round.links.now();
            self.take(round, &incoming, now)?;
            self.carry_out(round, now)?;
            if incoming.kind == IncomingKind::Last {
                return self.tell(round, now);
            }
        }
        self.has_more = true;
        self.tell(round, now)
    }

    fn take<S, L>(&mut self, round: &mut Round<'_, S, L>, incoming: &Incoming, now: u64) -> Result<(), Lost> {
        self.received += 1;
        let frame = if incoming.frame == NO_FRAME { None } else { Some(Frame(incoming.frame)) };
        if let Some(Frame(frame)) = frame {
            self.uncarry(frame)?;
            self.owed = frame;
        }
        if self.is_severed {
            // A page that comes now would take the place of what the window has got.
            return Ok(());
        }
        let Some(from) = self.desk.nodes.iter().position(|node| *node == incoming.node) else {
            self.dropped.stranger += 1;
            return Ok(());
        };
        let from = NodeId(u8::try_from(from).unwrap_or(u8::MAX));
        let Some((message, run)) = incoming.message.split_first_chunk::<LONG_BYTES>() else { return Ok(()) };
        let run = run.first_chunk().map_or(0, |run| u32::from_le_bytes(*run));
        let message = Message::decode(message);
        let Some(message) = message.filter(|message| (message.kind == Kind::Data) == frame.is_some()) else {
            self.coherence.refuse(Error::Malformed);
            return Ok(());
        };
        self.desk.arrived = frame;
        let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
        // What is wrong is counted. It is never full: no operation is under way.
        let _: Result<(), Error> = self.coherence.receive(hands, now, from, run, message);
        self.desk.arrived = None;
        if let Some(Frame(frame)) = self.desk.made_up.take() {
            self.owed = frame;
        }
        if self.desk.is_short { Err(Lost::NoFrame) } else { Ok(()) }
    }

    /// A frame is the interconnect's no more.
    fn uncarry(&mut self, frame: u32) -> Result<(), Lost> {
        let place = self.carried.iter().position(|carried| *carried == frame);
        self.carried.swap_remove(place.ok_or(Lost::ForeignFrame(frame))?);
        Ok(())
    }

    /// When [`Span::work`] is to be called, in TSC ticks.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        let held = self.coherence.deadline().unwrap_or(NEVER);
        let more = if self.has_more { 0 } else { NEVER };
        held.min(self.next_poll).min(self.next_try).min(more).min(self.look_at())
    }

    /// Does what is to be done at this time.
    ///
    /// # Errors
    /// [`Lost`]: the memory can be used no more.
    pub fn work<S: Space, L: Links>(&mut self, round: &mut Round<'_, S, L>, now: u64) -> Result<(), Lost> {
        self.look(round, now)?;
        if now >= self.next_poll {
            self.next_poll = NEVER;
            let gone = self.waiters.gone_on(self.coherence.in_the_way(), round.links, now, &self.times);
            for number in (0..coherence::MAX_WAITERS).filter(|number| gone >> number & 1 == 1) {
                self.retire(round, Waiter(number), now);
            }
        }
        if self.coherence.deadline().is_some_and(|deadline| now >= deadline) {
            let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
            self.coherence.tick(hands, now);
        }
        self.carry_out(round, now)?;
        if self.has_more { self.arrived(round) } else { self.tell(round, now) }
    }

    /// Carries out page operations, and what follows from them.
    fn carry_out<S: Space, L>(&mut self, round: &mut Round<'_, S, L>, now: u64) -> Result<(), Lost> {
        loop {
            self.operate(round, now)?;
            if !self.let_go(round, now) {
                return Ok(());
            }
        }
    }

    fn operate<S: Space, L>(&mut self, round: &mut Round<'_, S, L>, now: u64) -> Result<(), Lost> {
        while let Some(&(ticket, page, operation)) = self.desk.operations.front() {
            let told = match (round.memory.perform(round.space, page, operation), operation) {
                (Ok(()), _) => Ok(()),
                (Err(_), Operation::Map(_, Contents::AsIs | Contents::SharedZeros)) => Err(Failed),
                // What was to be cleared must be before anybody sees it, and what was to disappear, gone.
                (Err(error), _) => {
                    self.failures += 1;
                    self.next_try = now.saturating_add(self.times.again);
                    return if self.failures < MOST_FAILURES { Ok(()) } else { Err(Lost::Operation(error)) };
                }
            };
            self.failures = 0;
            self.desk.operations.pop_front();
            let hands = &mut Hands { memory: round.memory, desk: &mut self.desk };
            let completed = self.coherence.completed(hands, now, ticket, told);
            debug_assert_eq!(completed, Ok(()));
        }
        Ok(())
    }

    /// Sends messages and answers, and sets the next times.
    fn tell<S, L: Links>(&mut self, round: &mut Round<'_, S, L>, now: u64) -> Result<(), Lost> {
        let Self { desk, carried, .. } = self;
        let memory = &mut *round.memory;
        desk.outbox.flush(round.links, |Exchange { given, got }| {
            let place = carried.iter().position(|carried| *carried == got);
            carried[place.ok_or(Lost::ForeignFrame(got))?] = given;
            memory.give_back(Frame(got));
            Ok(())
        })?;
        while let Some((waiter, outcome)) = self.desk.resumed.pop_front() {
            let (token, answer) = self.answer(waiter, outcome, now);
            round.links.reply(token, fault::reply(answer));
        }
        let waits = !self.desk.outbox.is_empty() || !self.desk.operations.is_empty();
        self.next_try = match (waits, self.next_try) {
            (false, _) => NEVER,
            (true, next) if next > now && next != NEVER => next,
            (true, _) => now.saturating_add(self.times.again),
        };
        let is_polled = self.coherence.in_the_way() != 0;
        self.next_poll = match (is_polled, self.next_poll) {
            (false, _) => NEVER,
            (true, NEVER) => now.saturating_add(self.times.poll),
            (true, next) => next,
        };
        Ok(())
    }

    /// The answer to a waiter, and its token.
    fn answer(&mut self, waiter: Waiter, outcome: Outcome, now: u64) -> (Token, Result<(), Refusal>) {
        let starved = self.waiters.starved(waiter, outcome == Outcome::OutOfFrames);
        let answer = match outcome {
            // No node had room for a page of this one's: it tries again, and there may be.
            Outcome::OutOfFrames if starved < MOST_TRIES => {
                self.starved += 1;
                Ok(())
            }
            Outcome::OutOfFrames => Err(Refusal::OutOfMemory),
            Outcome::NotMapped => Err(Refusal::NotMapped),
            Outcome::Granted => Ok(()),
        };
        self.refused += u64::from(answer.is_err());
        if waiter == self.waiters.window() {
            self.stuck = None;
        }
        (self.waiters.end(waiter, now), answer)
    }

    /// The guest's memory is shared no more: those that wait are told so, but for the one with the token `except`. The frame
    /// that the interconnect is owed, or [`NO_FRAME`].
    pub fn end<L: Links>(mut self, links: &mut L, except: Token) -> u32 {
        let stopping: Answer = fault::reply(Err(Refusal::Stopping));
        for token in self.waiters.take_all().filter(|token| *token != except) {
            links.reply(token, stopping);
        }
        self.owed
    }
}

/// Takes messages while no guest shares its memory, and drops them; whether there may be more. `owed` is the frame for the
/// one that came with the last message, or [`NO_FRAME`].
///
/// # Errors
/// Those of the call.
pub fn drop_messages<L: Links>(links: &mut L, owed: &mut u32) -> Result<bool, CallError> {
    for _ in 0..MOST_AT_ONCE {
        let frame = core::mem::replace(owed, NO_FRAME);
        let incoming = links.receive(Next { frame, reserved: 0 })?;
        *owed = incoming.frame;
        if incoming.kind != IncomingKind::Message {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
