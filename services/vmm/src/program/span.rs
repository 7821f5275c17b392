//! The life of a guest that spans nodes: what [`vmm::cluster`] says is done here.

use core::fmt;
use core::num::NonZeroU64;

use ipc::abi::NEVER;
use ipc::guest::{AtEnd, MAX_NODES, Share, total_pages, total_vcpus};
use ipc::interfaces::ept::Begin;
use vmm::cluster::ending::{Ending, Refusal};
use vmm::cluster::message::{Go, Message, Say};
use vmm::cluster::{Action, Places, first_vcpu};
use vmm::machine::{End, Machine, Sources};

use super::{Program, power_off, text, unix_seconds};
use crate::link::Link;

/// Messages of other nodes that are handled in one go: a flood of them must not keep vCPUs and beats waiting.
const BATCH: usize = 64;

impl Program {
    /// Whether the guest spans nodes, and this is one of them.
    pub(super) fn spans(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.link.is_some())
    }

    fn link(&mut self) -> Option<&mut Link> {
        self.node.as_mut()?.link.as_deref_mut()
    }

    /// When messages from and to other nodes are due.
    pub(super) fn messages_due(&self) -> u64 {
        let link = self.node.as_ref().and_then(|node| node.link.as_deref());
        link.map_or(NEVER, Link::due)
    }

    /// The service begins.
    pub(super) fn begin_spanning(&mut self) {
        if self.start.generation() == 0 {
            // Only the first node's does something.
            self.start_spanning();
            return;
        }
        // The guest of the life before is gone with it.
        let last = self.is_last();
        if let Some(link) = self.link() {
            link.cluster.restarted(rt::now(), last);
        }
        self.act();
    }

    /// Whether nodes are powered off when this start's guest is over.
    fn is_last(&self) -> bool {
        match self.files.as_ref().map(|files| files.config.at_end) {
            Some(AtEnd::Stay) => false,
            Some(AtEnd::Again(times)) => self.starts >= u64::from(times) || self.start.generation() > 0,
            Some(AtEnd::PowerOff) | None => true,
        }
    }

    /// Begins to look for the other nodes; whether it does now.
    pub(super) fn start_spanning(&mut self) -> bool {
        self.starts += 1;
        let (now, last) = (rt::now(), self.is_last());
        // Bits 16 to 47 of the time: another number each time, and after each start of the node most likely, too.
        let [_, _, a, b, c, d, ..] = now.to_le_bytes();
        let run = u32::from_le_bytes([a, b, c, d]);
        let starts = self.link().is_some_and(|link| link.cluster.start(now, run, last));
        if starts {
            self.look();
        } else {
            self.starts -= 1;
        }
        starts
    }

    /// Stops the guest, on all nodes.
    pub(super) fn stop_spanning(&mut self) {
        if let Some(link) = self.link() {
            link.cluster.end(rt::now(), Ending::Stopped);
        }
        self.act();
    }

    /// The guest has ended on a vCPU of this node.
    pub(super) fn ended_spanning(&mut self) {
        let Some(report) = self.machine.as_ref().and_then(Machine::end).copied() else { return };
        if let End::MemoryLost(_) = report.end {
            // A node that is gone takes memory along, and is the better reason.
            self.look();
        }
        let Some(machine) = &self.machine else { return };
        if text(format_args!("{}", report.end)).starts_with("crashed") {
            crate::report::tell(&report, machine.console());
        }
        // A guest has no more vCPUs than fit.
        let vcpu = u8::try_from(machine.number_of(report.vcpu)).unwrap_or(u8::MAX);
        if let Some(link) = self.link() {
            link.cluster.end(rt::now(), Ending::Guest { end: report.end, vcpu });
        }
        self.act();
    }

    /// The guest's memory was lost before there was a machine.
    pub(super) fn memory_lost_early(&mut self) {
        self.look();
        let Some(place) = self.link().map(|link| link.cluster.place()) else { return };
        let Some(files) = &self.files else { return };
        let vcpu = u8::try_from(first_vcpu(&files.config.shares, place)).unwrap_or(u8::MAX);
        if let Some(link) = self.link()
            && link.cluster.has_memory()
        {
            let ending = Ending::Guest { end: End::MemoryLost(0), vcpu };
            link.cluster.end(rt::now(), ending);
        }
        self.act();
    }

    /// What is due of the other nodes.
    pub(super) fn attend_nodes(&mut self) {
        if !self.spans() {
            return;
        }
        self.take_messages();
        if rt::now() >= self.look_due {
            self.look();
        } else {
            self.act();
        }
    }

    /// Notification bits came, of the interconnect or another's.
    pub(super) fn notified_by_nodes(&mut self, bits: u64) {
        if self.link().is_some_and(|link| bits & link.bits() != 0) && self.take_messages() == 0 {
            // There is room again, or the view is another.
            self.look();
        }
    }

    /// Handles messages that came; how many.
    fn take_messages(&mut self) -> usize {
        let mut count = 0;
        if let Some(link) = self.link() {
            link.flush();
        }
        while let Some((from, message)) = self.link().and_then(Link::take) {
            self.told(from, &message);
            count += 1;
            if count == BATCH {
                break;
            }
        }
        self.due = self.due.min(self.messages_due());
        count
    }

    /// Another node's platform says something.
    fn told(&mut self, from: u16, message: &Message) {
        let is_taken = match message.say {
            Say::Signal(_) | Say::Access { .. } | Say::EndOfInterrupt { .. } => {
                self.told_machine(from, message)
            }
            // Answers are awaited where they are asked for.
            Say::Answer { .. } => false,
            say => {
                if say == Say::Prepare {
                    self.look();
                }
                let link = self.link();
                let is_taken = link.is_some_and(|link| link.cluster.receive(rt::now(), from, message));
                self.act();
                is_taken
            }
        };
        if !is_taken && let Some(link) = self.link() {
            link.stray();
        }
    }

    /// Something for the guest that runs.
    fn told_machine(&mut self, from: u16, message: &Message) -> bool {
        let running = self.link().and_then(|link| link.cluster.running());
        let (Some(node), Some(machine)) = (&mut self.node, &mut self.machine) else { return false };
        if running != Some(message.run) {
            return false;
        }
        let is_taken = machine.receive(node, from, &message.say);
        if machine.end().is_some() {
            self.ended();
        } else {
            self.finish_soon();
        }
        is_taken
    }

    /// Looks who is there.
    fn look(&mut self) {
        if let Some(link) = self.link() {
            link.look();
        }
        self.look_due = NEVER;
        self.act();
    }

    /// Does what is to be done next in the guest's life.
    fn act(&mut self) {
        while let Some(action) = self.link().and_then(|link| link.cluster.next_action()) {
            match action {
                Action::Send(node, message) => {
                    if let Some(link) = self.link() {
                        link.post(node, message);
                    }
                }
                Action::Waits(places) => self.tell_waits(places),
                Action::Begin(run) => self.begin(run),
                Action::Load => self.load(),
                Action::Run(go) => self.run_part(go),
                Action::Halt => {
                    if self.machine.take().is_some()
                        && let Some(node) = &mut self.node
                    {
                        node.stop();
                    }
                }
                Action::Release => self.release(),
                Action::Over { ending, power_off } => self.over_spanning(ending, power_off),
            }
        }
        // The next look comes no later than what is awaited now wants it.
        let period = self.link().map_or(NEVER, |link| link.cluster.period());
        self.look_due =
            if period == NEVER { NEVER } else { self.look_due.min(rt::now().saturating_add(period)) };
        self.due = self.due.min(self.look_due);
    }

    fn tell_waits(&self, places: Places) {
        let Some(files) = &self.files else { return };
        let shares = places.iter().filter_map(|place| files.config.shares.get(place));
        let nodes = text(format_args!("{}", Nodes(shares.map(|share| share.node).collect())));
        let nodes = if nodes.is_empty() { "the cluster" } else { nodes.as_str() };
        defmt::info!("waits for {=str}, at most {=u16} s", nodes, files.config.patience_s);
    }

    /// The service of memory begins.
    fn begin(&mut self, run: u32) {
        let Some(files) = &self.files else { return };
        let begun = self.memory.begin(&Begin { run, shares: files.config.shares.clone() });
        let has = begun.unwrap_or_else(|error| {
            defmt::warn!("guest memory: {}", defmt::Display2Format(&error));
            let _ = self.memory.refresh();
            false
        });
        if let Some(link) = self.link() {
            link.cluster.begun(rt::now(), has);
        }
    }

    /// The first node makes its machine, and loads the guest's memory.
    fn load(&mut self) {
        let Some(time) = self.link().and_then(Link::time) else { return self.refuse(Refusal::Time) };
        let go = Go {
            // The guest's time begins now.
            start: time.cluster,
            unix_seconds: u32::try_from(unix_seconds(self.start)).unwrap_or(u32::MAX),
            // No processor has 4 THz.
            tsc_khz: u32::try_from(self.start.clock().hz() / 1000).unwrap_or(u32::MAX),
        };
        if self.make(go)
            && let Some(link) = self.link()
        {
            link.cluster.loaded(go);
        }
    }

    /// Starts this node's vCPUs.
    fn run_part(&mut self, go: Go) {
        if self.machine.is_none() && !self.make(go) {
            return;
        }
        let (Some(node), Some(files)) = (&mut self.node, &self.files) else { return };
        if !node.start() {
            return self.refuse(Refusal::Vcpus);
        }
        let shares = &files.config.shares;
        if node.link.as_ref().is_some_and(|link| link.cluster.is_first()) {
            defmt::info!(
                "guest started: {=u32} vCPUs and {=u64} MiB of {=usize} nodes: {=str}",
                total_vcpus(shares),
                total_pages(shares) / 256,
                shares.len(),
                text(format_args!("{}", Parts(shares))).as_str()
            );
        } else {
            self.starts += 1;
            defmt::info!("this node's part of the guest started: {=u8} vCPUs", node.guest().vcpus);
        }
    }

    /// Makes this node's part of the machine.
    fn make(&mut self, go: Go) -> bool {
        let told = self.link().and_then(|link| Some((link.time()?, link.cluster.place())));
        let (Some(node), Some(files)) = (&mut self.node, &self.files) else { return false };
        let (Some((time, place)), Some(tsc_hz)) = (told, NonZeroU64::new(u64::from(go.tsc_khz) * 1000))
        else {
            self.refuse(Refusal::Time);
            return false;
        };
        let sources = Sources {
            config: &files.config,
            kernel: files.kernel,
            initrd: files.initrd,
            cpuid: rt::processor::cpuid,
            tsc_hz,
            unix_seconds: go.unix_seconds.into(),
            private_pages: node.guest().private_pages,
            place,
            tsc_offset: Some(time.cluster.wrapping_sub(time.local).wrapping_sub(go.start)),
        };
        match Machine::new(node, &sources) {
            Ok(machine) => {
                self.machine = Some(machine);
                true
            }
            Err(error) => {
                defmt::error!("this node's part of the guest: {}", defmt::Display2Format(&error));
                self.refuse(Refusal::Machine);
                false
            }
        }
    }

    /// This node cannot take part.
    fn refuse(&mut self, why: Refusal) {
        let node = u16::try_from(self.start.node()).unwrap_or(0);
        if let Some(link) = self.link() {
            link.cluster.end(rt::now(), Ending::Refused { node, why });
        }
    }

    /// There is no guest any more.
    fn over_spanning(&mut self, ending: Ending, powers_off: bool) {
        if let Some([strays, undeliverable, dropped]) = self.link().map(|link| link.losses())
            && strays + undeliverable + dropped > 0
        {
            defmt::info!(
                "between platforms so far: {=u64} stray messages, {=u64} to nobody, {=u64} dropped",
                strays,
                undeliverable,
                dropped
            );
        }
        let Some(files) = &self.files else { return };
        let end = text(format_args!("{}", ending.told(&files.config.shares, files.config.patience_s)));
        defmt::info!("guest ended: {=str}", end.as_str());
        self.last_end = end;
        if powers_off {
            power_off();
        } else if matches!(files.config.at_end, AtEnd::Again(_)) && ending != Ending::Stopped {
            // Only the first node's does something.
            self.start_spanning();
        }
    }
}

/// `node 2`, or `nodes 2 and 3`.
struct Nodes(heapless::Vec<u16, MAX_NODES>);

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            [node] => write!(f, "node {node}"),
            [first, middle @ .., last] => {
                write!(f, "nodes {first}")?;
                middle.iter().try_for_each(|node| write!(f, ", {node}"))?;
                write!(f, " and {last}")
            }
        }
    }
}

/// `node 1: 2 vCPUs 256 MiB, node 2: ...`.
struct Parts<'a>(&'a [Share]);

impl fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Share { node, vcpus, pages }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}node {node}: {vcpus} vCPUs {} MiB", pages / 256)?;
        }
        Ok(())
    }
}
