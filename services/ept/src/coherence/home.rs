//! The home's half of the protocol: it orders the requests for a page and says who is to do what.
//!
//! One transaction runs for a page at a time. It begins when the home takes a request, and ends with the requester's `Done`,
//! which is sent when nothing that belongs to the transaction is on its way any more. So no message ever meets one of another
//! transaction for the same page, and all races are those of requests that were sent before the sender knew of the
//! transaction in front of them; the home judges a request by what the directory says when its turn comes.
//!
//! A request is named by its requester and the requester's slot. Each has a record here from the start, so there is always
//! room for a request to wait in. Requests for one page wait in the order in which they came, linked through their records.

use alloc::vec::Vec;

use super::environment::Environment;
use super::error::{ConfigError, Error};
use super::homes::Homes;
use super::learn::{self, Wanted};
use super::message::{Access, Kind, Message, Page};
use super::node::{NodeCount, NodeId, NodeSet};
use super::post::Post;
use super::table;
use super::word::{Readers, State, Word};

/// No record.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    /// Nothing is asked for.
    Free,
    /// Waits for the transactions before it.
    Queued,
    /// Under way.
    Active,
    /// Under way, and another node is asked whether it has room.
    Asking,
}

/// A request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Record {
    phase: Phase,
    /// `Read`, `Write` or `Evict`.
    kind: Kind,
    /// Of an eviction: `Read` when it is to end if nobody else has a copy.
    access: Access,
    device: bool,
    /// Of an eviction: which of the other nodes is asked whether it has room, counted from 0.
    asked: u16,
    page: Page,
    number: u32,
    /// The request that came next for this page.
    next: u32,
    /// While it is under way: the request that came last for this page.
    last: u32,
    /// While it is under way: the page's entry as it was.
    before: Word,
    /// While it is under way: the page's entry as it will be.
    after: Word,
}

const _: () = assert!(size_of::<Record>() <= 40);

impl Record {
    const FREE: Self = Self {
        phase: Phase::Free,
        kind: Kind::Read,
        access: Access::Read,
        device: false,
        asked: 0,
        page: Page(0),
        number: 0,
        next: NONE,
        last: NONE,
        before: Word::UNTOUCHED,
        after: Word::UNTOUCHED,
    };
}

/// A node as the home of its pages.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Home {
    homes: Homes,
    slots: u8,
    directory: Vec<Word>,
    records: Vec<Record>,
    /// Nodes that are believed to have room for a page.
    room: NodeSet,
}

impl Home {
    /// A home of pages that nobody has touched.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn new(me: NodeId, homes: Homes, slots: u8) -> Result<Self, ConfigError> {
        Ok(Self {
            slots,
            directory: table(Word::UNTOUCHED, homes.len(me))?,
            records: table(Record::FREE, usize::from(homes.nodes().get()) * usize::from(slots))?,
            homes,
            room: NodeSet::ALL,
        })
    }

    /// Bytes of the directory: eight for each page of which this node is the home.
    #[must_use]
    pub const fn directory_bytes(&self) -> usize {
        size_of_val(self.directory.as_slice())
    }

    /// Bytes that do not depend on the number of pages.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        size_of_val(self.records.as_slice())
    }

    /// The page's entry; that from before the transaction while one is under way. `None` when the page is not homed here.
    #[must_use]
    pub fn word(&self, page: Page) -> Option<Word> {
        let word = *self.directory.get(self.homes.index(page))?;
        Some(word.record().map_or(word, |record| self.records[record as usize].before))
    }

    /// Whether nobody has ever asked for a page of which this node is the home.
    pub(super) fn is_untouched(&self, page: Page) -> bool {
        self.directory[self.homes.index(page)] == Word::UNTOUCHED
    }

    /// Makes such a page this node's own.
    pub(super) fn claim(&mut self, me: NodeId, page: Page) {
        self.directory[self.homes.index(page)] = Word::UNTOUCHED.held(State::Exclusive, me, Readers::EMPTY);
    }

    /// Whether no request is here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.records.iter().all(|record| record.phase == Phase::Free)
    }

    fn nodes(&self) -> NodeCount {
        self.homes.nodes()
    }

    #[expect(clippy::cast_possible_truncation, reason = "there are at most 2^16 records")]
    const fn record_of(&self, node: NodeId, slot: u8) -> u32 {
        (node.index() * self.slots as usize) as u32 + slot as u32
    }

    #[expect(clippy::cast_possible_truncation, reason = "a record's number over the slots of a node")]
    const fn requester(&self, record: u32) -> (NodeId, u8) {
        (NodeId((record / self.slots as u32) as u8), (record % self.slots as u32) as u8)
    }

    /// Heeds whether a node says that it has room.
    pub const fn heard(&mut self, from: NodeId, message: &Message) {
        if message.room {
            self.room.insert(from);
        } else {
            self.room.remove(from);
        }
    }

    /// Takes a message that is for the home of its page, which this node is. Page, node and slot exist.
    ///
    /// # Errors
    /// [`Error::SlotBusy`], [`Error::NoTransaction`] or [`Error::Unexpected`].
    pub fn receive<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        match message.kind {
            Kind::Read | Kind::Write | Kind::Evict => self.request(post, from, message),
            Kind::Done => self.done(post, from, message),
            Kind::Room | Kind::NoRoom => self.asked(post, from, message),
            _ => Err(Error::Unexpected),
        }
    }

    fn request<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        let number = self.record_of(from, message.slot);
        let record = &mut self.records[number as usize];
        if record.phase != Phase::Free {
            return Err(Error::SlotBusy);
        }
        *record = Record {
            phase: Phase::Queued,
            kind: message.kind,
            access: message.access,
            device: message.device,
            page: message.page,
            number: message.number,
            ..Record::FREE
        };
        let word = self.directory[self.homes.index(message.page)];
        match word.record() {
            Some(active) => {
                let last = core::mem::replace(&mut self.records[active as usize].last, number);
                let before = if last == NONE { active } else { last };
                self.records[before as usize].next = number;
            }
            None => self.begin(post, number, word),
        }
        Ok(())
    }

    /// The record of the transaction that `node` began and the message belongs to.
    fn under_way(&self, node: NodeId, message: Message, phase: Phase) -> Result<u32, Error> {
        let number = self.record_of(node, message.slot);
        let record = self.records[number as usize];
        let is_same = record.number == message.number && record.page == message.page;
        match record.phase {
            Phase::Active | Phase::Asking if is_same => {
                if record.phase == phase {
                    Ok(number)
                } else {
                    Err(Error::Unexpected)
                }
            }
            _ => Err(Error::NoTransaction),
        }
    }

    fn done<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        let number = self.under_way(from, message, Phase::Active)?;
        let record = core::mem::replace(&mut self.records[number as usize], Record::FREE);
        let waiting = record.next != NONE;
        let (before, mut word) = (record.before, record.after);
        if word.state() == State::Exclusive
            && before.state() != State::Dormant
            && before.owner() != word.owner()
        {
            word = learn::moved(word, waiting);
        }
        if waiting {
            let next = &mut self.records[record.next as usize];
            next.last = if record.last == record.next { NONE } else { record.last };
            self.begin(post, record.next, word);
        } else {
            self.directory[self.homes.index(record.page)] = word;
        }
        Ok(())
    }

    /// Begins the transaction of a request; the page's entry is `word`.
    fn begin<E: Environment>(&mut self, post: &mut Post<'_, E>, number: u32, word: Word) {
        let record = &mut self.records[number as usize];
        record.phase = Phase::Active;
        record.before = word;
        record.after = word;
        let record = *record;
        self.directory[self.homes.index(record.page)] = Word::busy(number);
        let after = match record.kind {
            Kind::Evict => self.evict(post, number, word),
            kind => {
                let access = if kind == Kind::Write { Access::Write } else { Access::Read };
                let wanted = Wanted { by: self.requester(number).0, access, device: record.device };
                let (word, access) = learn::request(word, wanted, self.nodes());
                match access {
                    Access::Read => self.read(post, number, word),
                    Access::Write => self.write(post, number, word),
                }
            }
        };
        self.records[number as usize].after = after;
    }

    /// A message of the transaction, to be completed.
    fn about(&self, number: u32, kind: Kind) -> Message {
        let record = &self.records[number as usize];
        let (node, slot) = self.requester(number);
        Message { node, ..Message::new(kind, record.page, slot, record.number) }
    }

    /// A message that gives the requester a right, or lets the owner give it.
    fn grant(&self, number: u32, kind: Kind, access: Access, readers: Readers, word: Word) -> Message {
        let waiting = self.records[number as usize].next != NONE;
        let hold = learn::hold(word, waiting);
        Message { access, readers, hold, ..self.about(number, kind) }
    }

    fn read<E: Environment>(&mut self, post: &mut Post<'_, E>, number: u32, word: Word) -> Word {
        let (nodes, by) = (self.nodes(), self.requester(number).0);
        let (owner, readers) = (word.owner(), word.readers());
        let grant = |home: &Self, kind, access| home.grant(number, kind, access, Readers::EMPTY, word);
        match word.state() {
            State::Dormant => {
                post.send(by, grant(self, Kind::Zero, Access::Read));
                word.with_readers(readers.with(by, nodes))
            }
            State::Shared if owner == by || readers.surely_has(by, nodes) => {
                post.send(by, grant(self, Kind::Keep, Access::Read));
                word
            }
            State::Shared => {
                post.send(owner, grant(self, Kind::Forward, Access::Read));
                word.with_readers(readers.with(by, nodes))
            }
            State::Exclusive if owner == by => {
                post.send(by, grant(self, Kind::Keep, Access::Write));
                word
            }
            State::Exclusive => {
                post.send(owner, grant(self, Kind::Forward, Access::Read));
                word.held(State::Shared, owner, Readers::EMPTY.with(by, nodes))
            }
        }
    }

    fn write<E: Environment>(&mut self, post: &mut Post<'_, E>, number: u32, word: Word) -> Word {
        let (nodes, by) = (self.nodes(), self.requester(number).0);
        let (owner, readers) = (word.owner(), word.readers());
        let (kind, target, sharers) = match word.state() {
            State::Dormant => (Kind::Zero, by, readers),
            State::Shared if owner == by => (Kind::Keep, by, readers),
            State::Shared if readers.surely_has(by, nodes) => (Kind::Keep, by, readers.with(owner, nodes)),
            State::Exclusive if owner == by => (Kind::Keep, by, Readers::EMPTY),
            State::Shared | State::Exclusive => (Kind::Forward, owner, readers),
        };
        // All are told at once. Whoever asked and whoever sends the contents do not acknowledge.
        let mut told = sharers.expand(nodes);
        told.remove(by);
        told.remove(target);
        for reader in told.iter() {
            post.send(reader, self.about(number, Kind::Invalidate));
        }
        let sharers = if told.is_empty() { Readers::EMPTY } else { sharers };
        post.send(target, self.grant(number, kind, Access::Write, sharers, word));
        word.held(State::Exclusive, by, Readers::EMPTY)
    }

    fn evict<E: Environment>(&mut self, post: &mut Post<'_, E>, number: u32, word: Word) -> Word {
        let (nodes, by) = (self.nodes(), self.requester(number).0);
        let (owner, readers) = (word.owner(), word.readers());
        let is_owner = word.state() != State::Dormant && owner == by;
        if !is_owner {
            post.send(by, self.about(number, Kind::Drop));
            return word.with_readers(readers.without(by, nodes));
        }
        if let Some(heir) = readers.any(nodes) {
            post.send(by, self.about(number, Kind::Drop));
            return word.held(State::Shared, heir, readers.without(heir, nodes));
        }
        if self.records[number as usize].access == Access::Read {
            post.send(by, self.about(number, Kind::Stay));
        } else {
            self.ask(post, number, 0);
        }
        word
    }

    /// The node that is asked as number `asked` whether it has room: each of the others in turn, beginning somewhere else for
    /// each page.
    fn candidate(&self, number: u32, asked: u16) -> NodeId {
        let others = u32::from(self.nodes().get()) - 1;
        let start = (self.records[number as usize].page.0 % others + u32::from(asked)) % others;
        self.nodes().wrap(u32::from(self.requester(number).0.0) + 1 + start)
    }

    /// Asks the next node, from number `asked` on: in a first round those that are believed to have room, and when none of them
    /// has, all. Nothing else tells when a silent node has room again.
    fn ask<E: Environment>(&mut self, post: &mut Post<'_, E>, number: u32, asked: u16) {
        let others = self.nodes().get() - 1;
        for asked in asked..2 * others {
            if asked == others {
                self.room = NodeSet::ALL;
            }
            let candidate = self.candidate(number, asked);
            if self.room.contains(candidate) {
                let record = &mut self.records[number as usize];
                record.phase = Phase::Asking;
                record.asked = asked;
                post.send(candidate, self.about(number, Kind::Take));
                return;
            }
        }
        self.records[number as usize].phase = Phase::Active;
        post.send(self.requester(number).0, self.about(number, Kind::Stay));
    }

    /// A node was asked whether it has room for the page of an eviction.
    fn asked<E: Environment>(
        &mut self,
        post: &mut Post<'_, E>,
        from: NodeId,
        message: Message,
    ) -> Result<(), Error> {
        let number = self.under_way(message.node, message, Phase::Asking)?;
        let record = self.records[number as usize];
        if self.candidate(number, record.asked) != from {
            return Err(Error::Unexpected);
        }
        if message.kind == Kind::NoRoom {
            self.room.remove(from);
            self.ask(post, number, record.asked + 1);
            return Ok(());
        }
        // A coarse word may go on counting the new owner among the readers: it is left out wherever they are told.
        let after = record.before.held(State::Shared, from, record.before.readers());
        self.records[number as usize] = Record { phase: Phase::Active, after, ..record };
        let push = Message { node: from, ..self.about(number, Kind::Push) };
        post.send(self.requester(number).0, push);
        Ok(())
    }
}
