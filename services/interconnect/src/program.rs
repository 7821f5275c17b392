//! The loop's half of the service: calls, interrupts, deadlines, and the log.

use core::time::Duration;

use interconnect::pace::{Limits, Pace, Pacer};
use interconnect::station::{Event, Station, Timing};
use ipc::interfaces::interconnect::{
    Counters, Exchange, ExchangeAnswer, ExchangeRequest, INTERFACE, Peers, Server, dispatch,
};
use ipc::message::{Caller, Message, MessagePage, Refused};
use ipc::wire::{Identity, MacAddress, NO_NODE};
use rt::capability::Endpoint;
use rt::membership::{Membership, description, keep};
use rt::serve::Service;
use rt::start::Start;
use rt::text::Text;
use rt::time::Clock;

use crate::nic::{self, Nic, Opened};

/// The cluster's number. One wire has one cluster until images name theirs.
const CLUSTER: u16 = 1;
/// The epoch of the membership: none has been agreed on.
const EPOCH: u32 = 0;

/// Between two announcements.
const ANNOUNCE: Duration = Duration::from_millis(500);
/// Silence after which a peer is forgotten.
const PEER_LIFETIME: Duration = Duration::from_secs(3);
/// The least time between two starts of a peer.
const PEER_SETTLE: Duration = Duration::from_millis(100);
/// The wait for an answer.
const PATIENCE: Duration = Duration::from_millis(200);
/// Polling without anything coming, when an answer is waited for.
const POLL: Duration = Duration::from_micros(200);
/// Polling without anything coming, when none is: about what an interrupt and waking up cost.
const LINGER: Duration = Duration::from_micros(20);
/// Polling in all, between two waits: a fifth of the budget.
const AWAKE: Duration = Duration::from_millis(10);
/// A wait that serves only to have waited.
const NAP: Duration = Duration::from_micros(50);
/// A receive that took this long did wait.
const WAITED: Duration = Duration::from_micros(20);
/// Polling before messages are looked at.
const TURN: Duration = Duration::from_micros(300);

/// The service.
pub struct Program {
    clock: Clock,
    membership: Membership<Endpoint>,
    network: Option<Network>,
}

struct Network {
    station: Station<Nic>,
    pacer: Pacer,
    configuration_bits: u64,
    receive_bits: u64,
    link_up: bool,
    waited: u64,
    turn: u64,
    next: Next,
    /// When the loop last went to wait.
    left: u64,
}

/// What the loop does next.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Next {
    /// It looks at the card again at once.
    Again,
    /// It waits for the card's interrupt.
    Interrupt,
    /// It does not look at the card before this time.
    Nap(u64),
}

impl Program {
    /// The service at its start.
    pub fn new(start: &Start<'static>) -> Self {
        let supervisor = match start.endpoint("supervisor") {
            Ok(endpoint) => endpoint,
            Err(missing) => panic!("{missing}"),
        };
        let clock = start.clock();
        let network = match nic::open(start) {
            Ok(Some(opened)) => Some(Network::new(opened, start)),
            Ok(None) => {
                defmt::info!("this node has no network card");
                None
            }
            Err(error) => {
                let text = Text::<160>::of(format_args!("{error}"));
                defmt::error!("the network card is not used: {=str}", text.as_str());
                None
            }
        };
        let description = description(start.name(), env!("CARGO_PKG_VERSION"), Some(INTERFACE));
        Self { clock, membership: Membership::new(supervisor, description, clock), network }
    }
}

impl Service for Program {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        if let Some(network) = &mut self.network {
            network.arrived();
        }
        let reply = dispatch(self, caller, message, page);
        if let Some(network) = &mut self.network {
            network.left = rt::now();
        }
        reply
    }

    fn bits(&self) -> u64 {
        self.network.as_ref().map_or(0, Network::bits)
    }

    fn notified(&mut self, bits: u64) {
        if let Some(network) = &mut self.network {
            network.notified(bits);
        }
    }

    fn deadline(&self) -> u64 {
        self.network
            .as_ref()
            .map_or(self.membership.due(), |network| network.deadline().min(self.membership.due()))
    }

    fn deadline_passed(&mut self, now: u64) {
        keep(&mut self.membership, now);
        if let Some(network) = &mut self.network
            && now >= network.deadline()
        {
            network.work();
        }
    }
}

impl Server for Program {
    fn counters(&mut self, _: Caller) -> Result<Option<Counters>, Refused> {
        Ok(self.network.as_ref().map(|network| network.station.counters()))
    }

    fn peers(&mut self, _: Caller) -> Result<Peers, Refused> {
        let milliseconds = |ticks| self.clock.microseconds(ticks) / 1000;
        Ok(self.network.as_ref().map_or_else(Peers::new, |network| network.station.peers(milliseconds)))
    }

    fn begin_exchange(&mut self, _: Caller, request: ExchangeRequest) -> Result<ExchangeAnswer, Refused> {
        Ok(match &mut self.network {
            Some(network) => network.station.begin_exchange(request),
            None => ExchangeAnswer::NoCard,
        })
    }

    fn exchange(&mut self, _: Caller) -> Result<Exchange, Refused> {
        Ok(self.network.as_ref().map_or(Exchange::None, |network| network.station.exchange()))
    }
}

impl Network {
    fn new(opened: Opened, start: &Start<'static>) -> Self {
        use interconnect::card::Card;

        let Opened { nic, frames, configuration, receive } = opened;
        let clock = start.clock();
        let ticks = |duration| clock.ticks(duration);
        let now = rt::now();
        let identity = identity(start, nic.mac(), now);
        let link_up = nic.link_is_up();
        defmt::info!(
            "this is node {=u16}, at {=str}, MTU {=u16} (0: unknown), link {=str}",
            identity.node,
            text(nic.mac()).as_str(),
            nic.mtu().unwrap_or(0),
            up_or_down(link_up)
        );
        let timing = Timing {
            announce: ticks(ANNOUNCE),
            peer_lifetime: ticks(PEER_LIFETIME),
            peer_settle: ticks(PEER_SETTLE),
            patience: ticks(PATIENCE),
        };
        let limits =
            Limits { poll: ticks(POLL), linger: ticks(LINGER), awake: ticks(AWAKE), nap: ticks(NAP) };
        Self {
            station: Station::new(nic, identity, timing, frames),
            pacer: Pacer::new(limits, now),
            configuration_bits: configuration.bits,
            receive_bits: receive.bits,
            link_up,
            waited: ticks(WAITED),
            turn: ticks(TURN),
            next: Next::Again,
            left: now,
        }
    }

    fn bits(&self) -> u64 {
        match self.next {
            // An interrupt that stands would end the nap before it has begun.
            Next::Nap(_) => 0,
            Next::Again | Next::Interrupt => self.configuration_bits | self.receive_bits,
        }
    }

    fn deadline(&self) -> u64 {
        match self.next {
            Next::Nap(until) => until,
            Next::Again => 0,
            Next::Interrupt if self.station.can_advance() => 0,
            Next::Interrupt => self.station.deadline(),
        }
    }

    fn notified(&mut self, bits: u64) {
        use interconnect::card::Card;

        if bits & self.configuration_bits != 0 {
            if let Err(error) = self.station.card().check_health() {
                panic!("{error}");
            }
            let link_up = self.station.card().link_is_up();
            if link_up != self.link_up {
                self.link_up = link_up;
                defmt::warn!("the link is {=str}", up_or_down(link_up));
            }
        }
        if bits & self.receive_bits != 0 {
            self.station.interrupted();
        }
        self.work();
    }

    /// Notes that the loop comes back from its wait; the time.
    fn arrived(&mut self) -> u64 {
        let now = rt::now();
        // One that ended at once was none: the kernel goes on counting the budget.
        if now.saturating_sub(self.left) >= self.waited {
            self.pacer.woke(now);
        }
        now
    }

    /// Takes what came and does what is due, until there is nothing to wait for actively or a turn is over.
    fn work(&mut self) {
        let begun = self.arrived();
        self.station.card().disable_interrupts();
        self.next = loop {
            // A card that misbehaves is reset by the next life of this service, if the supervisor grants one.
            let came = match self.station.poll(&mut report) {
                Ok(count) => count != 0,
                Err(error) => panic!("{error}"),
            };
            let now = rt::now();
            if now >= self.station.deadline() {
                self.station.tick(&mut report);
            }
            if self.station.advance() || came {
                self.pacer.progress(now);
            }
            let over = now.saturating_sub(begun) >= self.turn;
            match self.pacer.decide(now, self.station.is_expecting()) {
                Pace::Nap(until) => break Next::Nap(until),
                Pace::Poll | Pace::Sleep if over => break Next::Again,
                Pace::Poll => core::hint::spin_loop(),
                Pace::Sleep if came => {}
                Pace::Sleep => {
                    if self.station.card().enable_interrupts() {
                        break Next::Interrupt;
                    }
                    self.station.card().disable_interrupts();
                }
            }
        };
        self.left = rt::now();
    }
}

/// Who this node is: by the number it was given, or else one from its card's address, which is as good as long as no
/// membership is agreed on. The start's time and count tell this life from the last.
fn identity(start: &Start<'_>, mac: MacAddress, now: u64) -> Identity {
    let given = u16::try_from(start.node()).ok().filter(|&node| node != 0 && node != NO_NODE);
    let [.., high, low] = mac.0;
    let node = given.unwrap_or_else(|| u16::from_be_bytes([high, low]).min(NO_NODE - 1));
    let [_, b0, b1, ..] = now.wrapping_add(start.generation() << 8).to_le_bytes();
    Identity { cluster: CLUSTER, epoch: EPOCH, node, incarnation: u16::from_le_bytes([b0, b1]) }
}

fn text(mac: MacAddress) -> Text<17> {
    Text::of(format_args!("{mac}"))
}

const fn up_or_down(link_up: bool) -> &'static str {
    if link_up { "up" } else { "down" }
}

/// Logs what happened.
fn report(event: Event) {
    match event {
        Event::PeerFound(node, mac) => {
            defmt::info!("node {=u16} is there, at {=str}", node, text(mac).as_str());
        }
        Event::PeerRestarted(node, mac) => {
            defmt::warn!("node {=u16} at {=str} was started again", node, text(mac).as_str());
        }
        Event::PeerLost(node, mac) => {
            defmt::warn!("node {=u16} at {=str} has fallen silent", node, text(mac).as_str());
        }
        Event::DuplicateNode(node, known, other) => defmt::error!(
            "node {=u16} is at {=str}, and {=str} claims to be it: not heeded",
            node,
            text(known).as_str(),
            text(other).as_str()
        ),
        Event::OwnNumberTaken(mac) => {
            defmt::error!("{=str} claims this node's number: not heeded", text(mac).as_str());
        }
        Event::TooManyPeers(node) => defmt::error!("no room for node {=u16}: not heeded", node),
    }
}
