//! The way to the platforms of the other nodes: messages through the interconnect, and who is there.

use alloc::rc::Rc;
use core::cell::RefCell;
use core::time::Duration;

use ipc::abi::NEVER;
use ipc::guest::{GuestConfig, Shares, share_of};
use ipc::interfaces::interconnect::{Client, Contents, NO_FRAME, Next, Outgoing, Peers, SendAnswer, Time};
use ipc::message::CallError;
use ipc::wire::Class;
use rt::capability::Endpoint;
use rt::membership::{self, Membership};
use rt::start::Start;
use rt::syscall;
use vmm::cluster::message::{Access, Message, Say};
use vmm::cluster::queue::Queue;
use vmm::cluster::{Cluster, Life, Sight};

/// How often messages that were not taken are sent again, if nothing tells when there is room.
const AGAIN: Duration = Duration::from_millis(1);
/// How often to look whether the node is still there that an answer is awaited from.
const LOOK: Duration = Duration::from_millis(100);

/// The service's beats, which go on while it waits for another node.
pub type Beats = Rc<RefCell<Membership<Endpoint>>>;

/// The way to the other nodes' platforms.
pub struct Link {
    interconnect: Client<Endpoint>,
    /// Raised when messages come, when there is room again, and when the view changes.
    bits: u64,
    shares: Shares,
    beats: Beats,
    /// This node's part in the guest's life.
    pub cluster: Cluster,
    /// Messages that came while an answer was awaited.
    inbox: Queue,
    /// Messages that were not taken yet.
    outbox: Queue,
    /// The interconnect may have messages of which it does not tell again.
    undrained: bool,
    /// A frame that came with a message and is none of ours.
    owed: u32,
    /// The number of the last access.
    access: u32,
    /// Messages that are none, of another guest, or not for this node.
    strays: u64,
    /// Messages to nodes that are no members.
    undeliverable: u64,
}

impl Link {
    /// The link of a node of a guest that spans nodes; `None`, with an error in the log, when the image does not let it be.
    pub fn open(start: &Start<'_>, config: &GuestConfig, beats: &Beats) -> Option<Self> {
        let Some((place, _)) = share_of(&config.shares, start.node()) else {
            defmt::error!("no guest: it spans nodes, and this one has no share");
            return None;
        };
        match (start.endpoint("interconnect"), start.incoming("arrived-platform")) {
            (Ok(endpoint), Ok(bits)) => Some(Self {
                interconnect: Client::new(endpoint),
                bits,
                shares: config.shares.clone(),
                beats: beats.clone(),
                cluster: Cluster::new(&config.shares, place, config.patience_s, start.clock()),
                inbox: Queue::new(),
                outbox: Queue::new(),
                undrained: false,
                owed: NO_FRAME,
                access: 0,
                strays: 0,
                undeliverable: 0,
            }),
            (Err(missing), _) | (_, Err(missing)) => {
                defmt::error!("no guest: it spans nodes, and {}", defmt::Display2Format(&missing));
                None
            }
        }
    }

    /// The notification bits that tell of messages.
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// When messages or steps in the guest's life are due: 0 for now.
    pub fn due(&self) -> u64 {
        if self.undrained || !self.inbox.is_empty() || self.cluster.has_actions() {
            0
        } else if self.outbox.is_empty() {
            NEVER
        } else {
            rt::deadline_in(AGAIN)
        }
    }

    /// Counts a message that nobody here takes.
    pub const fn stray(&mut self) {
        self.strays += 1;
    }

    /// Counts of messages that are not as they should be: strays, undeliverable, dropped for want of room.
    pub const fn losses(&self) -> [u64; 3] {
        [self.strays, self.undeliverable, self.inbox.dropped() + self.outbox.dropped()]
    }

    /// Tells the platform of another node, in the guest that runs.
    pub fn send(&mut self, node: u16, say: Say) {
        if let Some(run) = self.cluster.running() {
            self.post(node, Message { run, say });
        }
    }

    /// Sends a message, now or as soon as there is room.
    pub fn post(&mut self, node: u16, message: Message) {
        self.outbox.push(node, message);
        self.flush();
    }

    /// Sends what was not taken.
    pub fn flush(&mut self) {
        let Self { interconnect, outbox, undeliverable, .. } = self;
        outbox.offer(|node, message| {
            let outgoing = Outgoing {
                message: message.encode(),
                frame: NO_FRAME,
                node,
                class: Class::Platform,
                contents: Contents::None,
            };
            match interconnect.send(&outgoing).map(|sent| sent.answer) {
                Ok(SendAnswer::Taken) => true,
                Ok(SendAnswer::Full) => false,
                Ok(SendAnswer::NoCard | SendAnswer::NoSuchMember | SendAnswer::BadFrame) => {
                    *undeliverable += 1;
                    true
                }
                Err(error) => {
                    // Its channels are gone with it; that nodes are lost by that is seen elsewhere.
                    *undeliverable += 1;
                    renew(interconnect, error);
                    true
                }
            }
        });
    }

    /// The next message, from which node.
    pub fn take(&mut self) -> Option<(u16, Message)> {
        let message = self.inbox.pop().or_else(|| self.receive());
        self.undrained = message.is_some();
        message
    }

    fn receive(&mut self) -> Option<(u16, Message)> {
        loop {
            let next = Next { frame: self.owed, reserved: 0 };
            let incoming = match self.interconnect.receive(&next) {
                Ok(incoming) => incoming,
                Err(error) => {
                    renew(&mut self.interconnect, error);
                    return None;
                }
            };
            self.owed = incoming.frame;
            if !incoming.kind.is_message() {
                return None;
            }
            match Message::decode(&incoming.message) {
                Some(message) => return Some((incoming.node, message)),
                None => self.strays += 1,
            }
        }
    }

    /// Has the first node's devices do an access, and waits for what it gives: all ones when the guest ends before that.
    ///
    /// The first node never waits for another one, so it answers at some time, or is lost.
    pub fn ask(&mut self, access: Access) -> u32 {
        let (Some(run), Some(first)) = (self.cluster.running(), self.shares.first()) else { return u32::MAX };
        let first = first.node;
        self.access = self.access.wrapping_add(1);
        let id = self.access;
        // Of what comes behind the answer nobody tells when this has taken the notification.
        self.undrained = true;
        self.post(first, Message { run, say: Say::Access { id, access } });
        let mut look = rt::deadline_in(LOOK);
        while self.cluster.running() == Some(run) {
            while let Some((node, message)) = self.receive() {
                match message.say {
                    Say::Answer { id: of, value } => {
                        if (of, node, message.run) == (id, first, run) {
                            return value;
                        }
                        self.strays += 1;
                    }
                    Say::Signal(_) | Say::Access { .. } | Say::EndOfInterrupt { .. } => {
                        self.inbox.push(node, message);
                    }
                    _ => {
                        if !self.cluster.receive(rt::now(), node, &message) {
                            self.strays += 1;
                        }
                    }
                }
            }
            if rt::now() >= look {
                self.look();
                look = rt::deadline_in(LOOK);
            }
            self.flush();
            let mut beats = self.beats.borrow_mut();
            membership::keep(&mut beats, rt::now());
            let again = if self.outbox.is_empty() { NEVER } else { rt::deadline_in(AGAIN) };
            let deadline = look.min(beats.due()).min(again);
            drop(beats);
            // Told or not, messages are looked for.
            let _ = syscall::wait(self.bits, deadline);
        }
        u32::MAX
    }

    /// Looks who is there.
    pub fn look(&mut self) {
        let view = match self.interconnect.view() {
            Ok(view) => view.unwrap_or_default(),
            Err(error) => {
                renew(&mut self.interconnect, error);
                Default::default()
            }
        };
        let peers = self.interconnect.peers().unwrap_or_else(|_| Peers::new());
        let life = |node: u16| {
            if node == view.node {
                let own = Life { incarnation: view.incarnation, silent_ms: 0 };
                return view.members.contains(&node).then_some(own);
            }
            let peer = peers.iter().find(|peer| peer.node == node && peer.is_member)?;
            Some(Life { incarnation: peer.incarnation, silent_ms: peer.silent_ms })
        };
        let sight = Sight {
            lives: self.shares.iter().map(|share| life(share.node)).collect(),
            may_act: view.may_act,
            knows_time: view.clock_error_ns.is_some(),
        };
        self.cluster.see(rt::now(), sight);
    }

    /// The cluster's time, if it is known.
    pub fn time(&mut self) -> Option<Time> {
        self.interconnect.time().ok().flatten()
    }
}

/// Has the next call reach the interconnect when it was restarted.
fn renew(interconnect: &mut Client<Endpoint>, error: CallError) {
    defmt::warn!("interconnect: {}", defmt::Display2Format(&error));
    // When that fails, so does the next call.
    let _ = interconnect.refresh();
}
