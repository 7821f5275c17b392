//! The loop: exits, calls, the console, and the guest's life from start to end.
//!
//! * `span`: the life of a guest that spans nodes.

mod span;

use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt::{self, Write};
use core::num::NonZeroU64;
use core::time::Duration;

use ipc::abi::{Label, NEVER, RECEIVE_MESSAGES, Token};
use ipc::guest::{AtEnd, total_pages, total_vcpus};
use ipc::interfaces::ept;
use ipc::interfaces::vmm::{GuestStatus, INTERFACE, Server, dispatch};
use ipc::message::{Caller, Message, Refused};
use ipc::vcpu::{ExitReason, RESUME_AS_BEFORE};
use rt::capability::{Endpoint, Ports};
use rt::membership;
use rt::page::Page;
use rt::start::Start;
use rt::syscall::{self, Received, StopKind, Width};
use vmm::machine::{Disposition, Machine, Sources};
use vmm::node_clock;

use crate::files::{Files, files};
use crate::link::{Beats, Link};
use crate::node::Node;
use crate::terminal::Terminal;

/// How often a console that took no more bytes is tried again.
const CONSOLE_RETRY: Duration = Duration::from_millis(1);
/// How long the log has to get out before the node is powered off.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The service.
pub struct Program {
    start: &'static Start<'static>,
    node: Option<Node>,
    files: Option<Files>,
    machine: Option<Machine>,
    memory: ept::Client<Endpoint>,
    beats: Beats,
    memory_lost: u64,
    starts: u64,
    last_end: Text,
    /// The console took no more bytes.
    console_waits: bool,
    /// When to look who is there, of a guest that spans nodes.
    look_due: u64,
    /// When something is to be done that no message asks for.
    due: u64,
}

impl Program {
    /// The service as it starts; the guest starts with [`Program::run`].
    ///
    /// # Panics
    /// When the manifest does not let it call the service of guest memory.
    pub fn new(start: &'static Start<'static>) -> Self {
        let memory = match start.endpoint("ept") {
            Ok(endpoint) => ept::Client::new(endpoint),
            Err(missing) => panic!("{missing}"),
        };
        let files = match files(start) {
            Ok(files) => Some(files),
            Err(error) => {
                defmt::error!("no guest: {}", defmt::Display2Format(&error));
                None
            }
        };
        let beats = Rc::new(RefCell::new(membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE))));
        let node = Self::node(start, files.as_ref(), &beats);
        Self {
            start,
            node,
            files,
            machine: None,
            memory,
            beats,
            memory_lost: start.incoming("memory-lost").unwrap_or(0),
            starts: 0,
            last_end: Text::new(),
            console_waits: false,
            look_due: NEVER,
            due: 0,
        }
    }

    /// The node, if it can run the guest or its part of it.
    fn node(start: &Start<'_>, files: Option<&Files>, beats: &Beats) -> Option<Node> {
        let Ok(guest) = start.guest() else {
            defmt::warn!("no guest can run on this node: its processor has no AMD SVM with nested paging");
            return None;
        };
        let spanning = files.map(|files| &files.config).filter(|config| config.shares.len() > 1);
        let link = match spanning {
            Some(config) => Some(Link::open(start, config, beats)?),
            None => None,
        };
        let has_console = link.as_ref().is_none_or(|link| link.cluster.is_first());
        let terminal = if has_console { Terminal::open(start) } else { Terminal::none() };
        Node::take(guest, terminal, link, beats)
    }

    /// Serves for ever.
    pub fn run(mut self) -> ! {
        if self.spans() {
            self.begin_spanning();
        } else if self.start.generation() > 0 && self.node.is_some() {
            // The guest of the life before is gone with it.
            self.over("crashed: its platform failed and was restarted");
        } else {
            self.start_guest();
        }
        let own = self.start.service() as usize;
        let of_node = |node: &Node| node.terminal.bits() | node.link.as_ref().map_or(0, |link| link.bits());
        let bits = self.memory_lost | self.node.as_ref().map_or(0, of_node);
        let mut reply = (Token::NOBODY, Message::default());
        loop {
            let received = syscall::receive(reply.0, reply.1, RECEIVE_MESSAGES | bits, self.due);
            reply = (Token::NOBODY, Message::default());
            match received {
                Ok(Received::Message(token, message)) if token.service() == own => {
                    if let Some(answer) = self.exit(token, &message) {
                        reply = (token, answer);
                    }
                }
                Ok(Received::Message(token, message)) => {
                    reply = (token, dispatch(&mut self, Caller::of(token), message, &mut Page));
                }
                Ok(Received::Notified(bits)) => self.notified(bits),
                // The deadline.
                Err(_) => {}
            }
            // Looked at each time: a flood of exits must not keep what is due from being done.
            if rt::now() >= self.due {
                if reply.0 != Token::NOBODY {
                    // One that was stopped meanwhile has no use for it.
                    let _ = syscall::reply(reply.0, reply.1);
                    reply = (Token::NOBODY, Message::default());
                }
                if self.console_waits {
                    self.console_ready();
                }
                self.attend_nodes();
                membership::keep(&mut self.beats.borrow_mut(), rt::now());
                self.due = self.deadline();
            }
        }
    }

    fn deadline(&self) -> u64 {
        let retry = if self.console_waits { rt::deadline_in(CONSOLE_RETRY) } else { NEVER };
        self.beats.borrow().due().min(retry).min(self.look_due).min(self.messages_due())
    }

    /// An exit of a vCPU; its answer, when it is answered now.
    #[inline]
    fn exit(&mut self, token: Token, message: &Message) -> Option<Message> {
        let [vcpu, first, second, third] = message.words;
        let (Some(node), Some(machine)) = (&mut self.node, &mut self.machine) else { return None };
        let reason = ExitReason::from_number(message.label.method())?;
        // The kernel numbers them.
        let vcpu = usize::try_from(vcpu).unwrap_or(0);
        let disposition = machine.exit(node, vcpu, reason, [first, second, third]);
        if node.unfinished {
            self.finish_soon();
        }
        match disposition {
            Disposition::Resume => Some(Message::default()),
            Disposition::ResumeAsBefore => {
                Some(Message { label: Label::new(RESUME_AS_BEFORE, 0), ..Message::default() })
            }
            Disposition::Park => {
                self.node.as_mut()?.park(vcpu, token);
                None
            }
            Disposition::Ended => {
                self.ended();
                None
            }
        }
    }

    /// An exit left something to do: it is done after the exit is answered.
    #[cold]
    fn finish_soon(&mut self) {
        let Some(node) = &mut self.node else { return };
        node.unfinished = false;
        if node.terminal.waits() && !self.console_waits {
            self.console_waits = true;
            self.due = self.due.min(rt::deadline_in(CONSOLE_RETRY));
        }
        self.due = self.due.min(self.messages_due());
    }

    fn notified(&mut self, bits: u64) {
        self.notified_by_nodes(bits);
        if bits & self.memory_lost != 0 {
            if let (Some(node), Some(machine)) = (&mut self.node, &mut self.machine) {
                machine.memory_lost(node);
                self.ended();
            } else {
                self.memory_lost_early();
            }
        }
        let Some(node) = &mut self.node else { return };
        if bits & node.terminal.bits() == 0 {
            return;
        }
        let mut bytes = [0; 64];
        loop {
            let count = node.terminal.read(&mut bytes);
            let (Some(machine), Some(input)) = (&mut self.machine, bytes.get(..count)) else { return };
            if input.is_empty() {
                return;
            }
            machine.input(node, input);
        }
    }

    fn console_ready(&mut self) {
        let Some(node) = &mut self.node else { return };
        node.terminal.flush();
        self.console_waits = match &mut self.machine {
            Some(machine) => machine.console_ready(node),
            None => false,
        } || node.terminal.waits();
    }

    /// Starts the guest; whether it runs now.
    fn start_guest(&mut self) -> bool {
        if self.spans() {
            return self.start_spanning();
        }
        let (Some(node), Some(files), None) = (&mut self.node, &self.files, &self.machine) else {
            return false;
        };
        let Some(tsc_hz) = NonZeroU64::new(self.start.clock().hz()) else { return false };
        let sources = Sources {
            config: &files.config,
            kernel: files.kernel,
            initrd: files.initrd,
            cpuid: rt::processor::cpuid,
            tsc_hz,
            unix_seconds: unix_seconds(self.start),
            private_pages: node.guest().private_pages,
            place: 0,
            tsc_offset: None,
        };
        self.starts += 1;
        match Machine::new(node, &sources) {
            Ok(machine) => {
                let started = node.start();
                defmt::info!(
                    "guest started: {=u32} vCPUs, {=u64} MiB",
                    total_vcpus(&files.config.shares),
                    total_pages(&files.config.shares) / 256
                );
                self.machine = started.then_some(machine);
                if !started {
                    self.over("crashed: its vCPUs do not start");
                }
            }
            Err(error) => self.over(&text(format_args!("refused: {error}"))),
        }
        self.machine.is_some()
    }

    /// The guest has ended by itself: tells how, and goes on as the configuration says.
    fn ended(&mut self) {
        if self.spans() {
            return self.ended_spanning();
        }
        let Some(machine) = self.machine.take() else { return };
        if let Some(node) = &mut self.node {
            node.stop();
        }
        let Some(report) = machine.end() else { return };
        let end = text(format_args!("{}", report.end));
        if end.starts_with("crashed") {
            crate::report::tell(report, machine.console());
        }
        self.over(&end);
    }

    /// There is no guest any more: its memory goes back.
    fn over(&mut self, end: &str) {
        self.release();
        defmt::info!("guest ended: {=str}", end);
        self.last_end = text(format_args!("{end}"));
        let again = match self.files.as_ref().map(|files| files.config.at_end) {
            Some(AtEnd::Stay) => return,
            Some(AtEnd::Again(times)) => self.starts < u64::from(times) && self.start.generation() == 0,
            Some(AtEnd::PowerOff) | None => false,
        };
        if again {
            self.start_guest();
            return;
        }
        power_off();
    }

    /// Gives the guest's memory back.
    fn release(&mut self) {
        loop {
            match self.memory.release() {
                // It can take long.
                Ok(false) => membership::keep(&mut self.beats.borrow_mut(), rt::now()),
                Ok(true) => break,
                Err(error) => {
                    defmt::warn!("guest memory: {}", defmt::Display2Format(&error));
                    let _ = self.memory.refresh();
                    break;
                }
            }
        }
        if let Ok(Some(counters)) = self.memory.counters() {
            defmt::info!(
                "guest memory: {=u64} of {=u64} frames in use, {=u64} faults of vCPUs and window",
                counters.frames.used,
                counters.frames.total,
                counters.faults.read_dormant + counters.faults.write_dormant + counters.faults.upgrade
            );
        }
    }

    fn status_now(&self) -> GuestStatus {
        GuestStatus { running: self.machine.is_some(), starts: self.starts, last_end: self.last_end.clone() }
    }
}

impl Server for Program {
    fn start(&mut self, _caller: Caller) -> Result<GuestStatus, Refused> {
        if self.start_guest() { Ok(self.status_now()) } else { Err(Refused) }
    }

    fn stop(&mut self, _caller: Caller) -> Result<GuestStatus, Refused> {
        if self.spans() {
            self.stop_spanning();
        } else if self.machine.take().is_some() {
            if let Some(node) = &mut self.node {
                node.stop();
            }
            self.release();
            self.last_end = text(format_args!("stopped"));
            defmt::info!("guest ended: stopped");
        }
        Ok(self.status_now())
    }

    fn status(&mut self, _caller: Caller) -> Result<GuestStatus, Refused> {
        Ok(self.status_now())
    }
}

/// Powers the node off, when the log is out.
fn power_off() {
    rt::sleep(LAST_WORDS);
    if let Err(error) = syscall::stop_node(StopKind::PowerOff) {
        defmt::error!("the node does not power off: {}", defmt::Display2Format(&error));
    }
}

/// A line of text.
type Text = heapless::String<128>;

/// Text of what is told; what is too long is cut.
fn text(told: fmt::Arguments<'_>) -> Text {
    struct Cut(Text);
    impl Write for Cut {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            part.chars().try_for_each(|character| self.0.push(character).map_err(|_| fmt::Error))
        }
    }
    let mut cut = Cut(Text::new());
    // The error is that it is full.
    let _ = cut.write_fmt(told);
    cut.0
}

/// Seconds since 1970 by the node's clock; 0, with a warning, when it does not tell.
fn unix_seconds(start: &Start<'_>) -> u64 {
    let read = |ports: &Ports, register| {
        // Where the kernel refuses an access, it reads as an empty bus does.
        let selected = ports.write(0, Width::Byte, u32::from(register));
        selected.and_then(|()| ports.read(1, Width::Byte)).map_or(0xff, |value| value.to_le_bytes()[0])
    };
    let ports = start.ports("clock").ok();
    let shown = ports.and_then(|ports| node_clock::unix_seconds(|register| read(&ports, register)));
    shown.unwrap_or_else(|| {
        defmt::warn!("the node's clock shows no time: the guest begins in 1970");
        0
    })
}
