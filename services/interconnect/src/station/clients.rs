//! The guest's services as clients: what came for them, and when they are told.

use alloc::collections::VecDeque;

use ipc::wire::{CLASSES, Class};

use super::port::PageName;
use crate::PAGE;
use crate::membership::Event;
use crate::sink::Delivery;

/// Who sends and receives messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Client {
    /// The guest's platform: the class [`Class::Platform`].
    Platform,
    /// The owner of the guest's memory: all other classes.
    Memory,
}

impl Client {
    /// Whose the messages of a class are.
    #[must_use]
    pub const fn of(class: Class) -> Self {
        match class {
            Class::Platform => Self::Platform,
            Class::Control | Class::Request | Class::Page => Self::Memory,
        }
    }
}

/// Who is to be told that there is something to ask for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Alerts {
    /// The guest's platform.
    pub platform: bool,
    /// The owner of the guest's memory.
    pub memory: bool,
}

/// Whether the memory's owner waits for an answer, so that it is worth polling for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asking {
    /// It does not, as far as can be told.
    Nothing,
    /// It has just asked.
    Begun,
    /// It has asked before.
    Waiting,
}

/// Messages that came and that nobody has taken yet: no more than there is credit for.
pub(super) struct Queues {
    /// Whether there are clients.
    is_open: bool,
    classes: [VecDeque<Delivery<PageName>>; CLASSES],
    /// Messages that no sender of ours sends, and those that are for nobody.
    unfit: VecDeque<Delivery<PageName>>,
    alerts: Alerts,
    pub asking: Asking,
}

impl Queues {
    pub fn new(is_open: bool) -> Self {
        Self {
            is_open,
            classes: [const { VecDeque::new() }; CLASSES],
            unfit: VecDeque::new(),
            alerts: Alerts::default(),
            asking: Asking::Nothing,
        }
    }

    /// Takes a message that came.
    pub fn push(&mut self, delivery: Delivery<PageName>) {
        let Delivery { class, contents, .. } = delivery;
        let fits = contents.is_none_or(|(_, bytes)| bytes == PAGE && class != Class::Platform);
        if !fits || !self.is_open {
            return self.unfit.push_back(delivery);
        }
        let client = Client::of(class);
        if !self.has(client) {
            self.alert(client);
        }
        if matches!(class, Class::Control | Class::Page) {
            self.asking = Asking::Nothing;
        }
        if let Some(queue) = self.classes.get_mut(class as usize) {
            queue.push_back(delivery);
        }
    }

    fn of(&self, client: Client) -> impl Iterator<Item = &VecDeque<Delivery<PageName>>> {
        self.classes
            .iter()
            .zip(Class::ALL)
            .filter(move |(_, class)| Client::of(*class) == client)
            .map(|(q, _)| q)
    }

    /// Whether there is a message for a client.
    pub fn has(&self, client: Client) -> bool {
        !self.of(client).all(VecDeque::is_empty)
    }

    /// The next message for a client, the most urgent first.
    pub fn pop(&mut self, client: Client) -> Option<Delivery<PageName>> {
        let queues = self.classes.iter_mut().zip(Class::ALL);
        queues.filter(|(_, class)| Client::of(*class) == client).find_map(|(queue, _)| queue.pop_front())
    }

    /// The next message that is to be dropped.
    pub fn pop_unfit(&mut self) -> Option<Delivery<PageName>> {
        self.unfit.pop_front()
    }

    /// Has a client told.
    pub const fn alert(&mut self, client: Client) {
        *match client {
            Client::Platform => &mut self.alerts.platform,
            Client::Memory => &mut self.alerts.memory,
        } = true;
    }

    /// Notes that there is room again for messages of a class.
    pub const fn has_room(&mut self, class: Class) {
        self.alert(Client::of(class));
    }

    /// Notes what happened to the membership.
    pub const fn heard(&mut self, event: Event) {
        if matches!(
            event,
            Event::Installed(_) | Event::Expelled(_) | Event::Left | Event::Quorum | Event::QuorumLost
        ) {
            self.alerts = Alerts { platform: true, memory: true };
        }
    }

    /// Who is to be told; nobody any more then.
    pub fn alerts(&mut self) -> Alerts {
        if self.is_open { core::mem::take(&mut self.alerts) } else { Alerts::default() }
    }

    /// Whether somebody is to be told.
    pub const fn has_alerts(&self) -> bool {
        self.is_open && (self.alerts.platform || self.alerts.memory)
    }
}

#[cfg(test)]
impl Queues {
    /// The page frames of what came.
    pub fn frames(&self) -> impl Iterator<Item = u32> {
        let all = self.classes.iter().chain([&self.unfit]).flatten();
        all.filter_map(|delivery| delivery.contents).map(|(frame, _)| frame.number)
    }
}
