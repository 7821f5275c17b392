//! The loop's half of the service: calls, interrupts, deadlines, and the log.

use core::time::Duration;

use interconnect::pace::{Limits, Pace, Pacer};
use interconnect::station::{Client, Station};
use ipc::interfaces::interconnect::{
    Counters, Exchange, ExchangeAnswer, ExchangeRequest, Frames, INTERFACE, Incoming, IncomingKind, NO_FRAME,
    Next as NextFrame, Outgoing, Peers, SendAnswer, Sent, Server, Time, View, dispatch,
};
use ipc::message::{Caller, Message, MessagePage, Refused};
use ipc::wire::{Class, MESSAGE_BYTES};
use rt::capability::Endpoint;
use rt::membership::{Membership, description, keep};
use rt::serve::Service;
use rt::start::Start;
use rt::text::Text;
use rt::time::Clock;

use crate::guest::Clients;
use crate::nic::{self, Nic, Opened};
use crate::settings::{SUMMARY, config};
use crate::tell::{report, tell_summary, tell_view, text, up_or_down};

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
/// How long others may run before an answer to a client is polled for: the client above all, which on a node with one core
/// cannot go on while this service polls.
const BREATH: Duration = Duration::from_micros(20);
/// Polling before messages are looked at.
const TURN: Duration = Duration::from_micros(300);

/// The service.
pub struct Program {
    clock: Clock,
    membership: Membership<Endpoint>,
    network: Option<Network>,
    clients: Option<Clients>,
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
    /// When it looks at the card although no interrupt came, because a client waits for an answer.
    look: u64,
    breath: u64,
    /// When the loop last went to wait.
    left: u64,
    clock: Clock,
    /// The life and the epoch that the log last told of.
    told: (u16, u32),
    next_summary: u64,
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
        let mut is_carrier = true;
        let network = match nic::open(start) {
            Ok(Some(opened)) => {
                is_carrier = opened.pool.is_guests;
                Some(Network::new(opened, start))
            }
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
        let membership = Membership::new(supervisor, description, clock);
        let clients = Clients::of(start).filter(|_| is_carrier);
        if !is_carrier && nic::spanning(start).is_some() {
            defmt::error!(
                "this service does not know which frames were its own before it was restarted: the guest's pages are \
                 carried no more before the node is"
            );
        }
        Self { clock, membership, network, clients }
    }
}

impl Service for Program {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        if let Some(network) = &mut self.network {
            network.arrived();
        }
        let reply = dispatch(self, caller, message, page);
        if let Some(network) = &mut self.network {
            network.answered(self.clients.as_ref());
        }
        reply
    }

    fn bits(&self) -> u64 {
        self.network.as_ref().map_or(0, Network::bits)
    }

    fn notified(&mut self, bits: u64) {
        if let Some(network) = &mut self.network {
            network.notified(bits, self.clients.as_ref());
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
            network.work(self.clients.as_ref());
        }
    }
}

impl Server for Program {
    fn counters(&mut self, _: Caller) -> Result<Option<Counters>, Refused> {
        Ok(self.network.as_ref().map(Network::counters))
    }

    fn peers(&mut self, _: Caller) -> Result<Peers, Refused> {
        let milliseconds = |ticks| self.clock.microseconds(ticks) / 1000;
        Ok(self.network.as_ref().map_or_else(Peers::new, |network| network.station.peers(milliseconds)))
    }

    fn view(&mut self, _: Caller) -> Result<Option<View>, Refused> {
        Ok(self.network.as_ref().map(Network::view))
    }

    fn time(&mut self, _: Caller) -> Result<Option<Time>, Refused> {
        Ok(self.network.as_ref().and_then(|network| network.station.time()))
    }

    fn frames(&mut self, caller: Caller) -> Result<Frames, Refused> {
        let Some(clients) = &self.clients else { return Ok(Frames::new()) };
        match (clients.find(caller), &mut self.network) {
            (Some(Client::Memory), Some(network)) => Ok(network.station.frames()),
            (Some(Client::Memory), None) => Ok(Frames::new()),
            _ => Err(Refused),
        }
    }

    fn send(&mut self, caller: Caller, outgoing: Outgoing) -> Result<Sent, Refused> {
        let client = self.client(caller)?;
        let Some(network) = &mut self.network else {
            return Ok(Sent { answer: SendAnswer::NoCard, frame: NO_FRAME });
        };
        network.station.send(client, outgoing).ok_or(Refused)
    }

    fn receive(&mut self, caller: Caller, next: NextFrame) -> Result<Incoming, Refused> {
        let client = self.client(caller)?;
        let Some(network) = &mut self.network else {
            let (class, kind) = (Class::Control, IncomingKind::Nothing);
            return Ok(Incoming { message: [0; MESSAGE_BYTES], frame: NO_FRAME, node: 0, class, kind });
        };
        network.station.receive(client, next).ok_or(Refused)
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

impl Program {
    /// Which of the guest's services calls.
    fn client(&self, caller: Caller) -> Result<Client, Refused> {
        self.clients.as_ref().and_then(|clients| clients.find(caller)).ok_or(Refused)
    }
}

impl Network {
    fn new(opened: Opened, start: &Start<'static>) -> Self {
        use interconnect::card::Card;

        let Opened { nic, pool, configuration, receive } = opened;
        let clock = start.clock();
        let ticks = |duration| clock.ticks(duration);
        let now = rt::now();
        let config = config(start, nic.mac(), nic.mtu(), now);
        let link_up = nic.link_is_up();
        defmt::info!(
            "this is node {=u16}, at {=str}, MTU {=u16} (0: unknown), link {=str}",
            config.life.node,
            text(nic.mac()).as_str(),
            nic.mtu().unwrap_or(0),
            up_or_down(link_up)
        );
        let limits =
            Limits { poll: ticks(POLL), linger: ticks(LINGER), awake: ticks(AWAKE), nap: ticks(NAP) };
        Self {
            station: Station::new(nic, config, ticks(PATIENCE), pool),
            pacer: Pacer::new(limits, now),
            configuration_bits: configuration.bits,
            receive_bits: receive.bits,
            link_up,
            waited: ticks(WAITED),
            turn: ticks(TURN),
            next: Next::Again,
            look: u64::MAX,
            breath: ticks(BREATH),
            left: now,
            clock,
            told: (0, 0),
            next_summary: now.saturating_add(ticks(SUMMARY)),
        }
    }

    fn view(&self) -> View {
        self.station.view(|ticks| self.nanoseconds(ticks))
    }

    fn counters(&self) -> Counters {
        self.station.counters(|ticks| self.nanoseconds(ticks))
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        self.clock.duration(ticks).as_nanos().try_into().unwrap_or(u64::MAX)
    }

    /// Logs the view when it is another, and all in sum once in a while.
    fn tell(&mut self, now: u64) {
        let identity = self.station.node().identity();
        if self.told != (identity.incarnation, identity.epoch) {
            self.told = (identity.incarnation, identity.epoch);
            tell_view(&self.view());
        }
        if now >= self.next_summary {
            self.next_summary = now.saturating_add(self.clock.ticks(SUMMARY));
            tell_summary(&self.view(), &self.counters());
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
            Next::Interrupt => self.station.deadline().min(self.next_summary).min(self.look),
        }
    }

    fn notified(&mut self, bits: u64, clients: Option<&Clients>) {
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
        self.work(clients);
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

    /// After a call: sends what it made ready. The caller goes on before an answer is polled for.
    fn answered(&mut self, clients: Option<&Clients>) {
        let now = rt::now();
        if now >= self.station.deadline() {
            self.station.tick(&mut report);
        }
        self.tell_clients(clients);
        if self.station.has_asked() {
            self.pacer.progress(now);
            self.look = now.saturating_add(self.breath);
        }
        self.left = rt::now();
    }

    /// Tells the guest's services of what came; whether there was something.
    fn tell_clients(&mut self, clients: Option<&Clients>) -> bool {
        let Some(clients) = clients.filter(|_| self.station.has_alerts()) else { return false };
        clients.tell(self.station.alerts());
        true
    }

    /// Takes what came and does what is due, until there is nothing to wait for actively, somebody was told of something and
    /// must come to run, or a turn is over.
    fn work(&mut self, clients: Option<&Clients>) {
        let begun = self.arrived();
        self.look = u64::MAX;
        self.station.card().disable_interrupts();
        let mut told = false;
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
            told |= self.tell_clients(clients);
            let pace = self.pacer.decide(now, self.station.is_expecting());
            if let Pace::Nap(until) = pace {
                break Next::Nap(until);
            }
            if told || (pace == Pace::Sleep && !came) {
                if self.station.card().enable_interrupts() {
                    break Next::Interrupt;
                }
                self.station.card().disable_interrupts();
            }
            if now.saturating_sub(begun) >= self.turn {
                break Next::Again;
            }
            core::hint::spin_loop();
        };
        if self.next == Next::Interrupt && self.station.is_asking() {
            if told {
                self.look = rt::now().saturating_add(self.breath);
            } else {
                // The answer takes longer than anybody should poll for it.
                self.station.ask_no_more();
            }
        }
        self.tell(rt::now());
        self.left = rt::now();
    }
}
