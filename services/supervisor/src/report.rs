//! What the supervisor writes to the log.
//!
//! A fault is up to four records at error level, in this order:
//!
//! 1. `service NAME (number N, generation G) stopped: CAUSE ...`
//! 2. `  registers ...`
//! 3. `  it said: TEXT`, when it panicked;
//! 4. `  its last COUNT log records: service N, ticks FIRST to LAST`, when it has logged. These records are
//!    frames that only that service's ELF file decodes, so they are named and not repeated: whoever shows the
//!    log prints the records of that service in that range of time beneath this line.

use heapless::Vec;
use ipc::abi::{Error, FaultCause, FaultReport, MAX_CORES, MAX_MESSAGE_BYTES};
use ipc::interfaces::supervisor::Description;
use ipc::message::MessagePage;
use rt::page::Page;
use rt::syscall;
use rt::text::Text;
use supervisor::policy::{Action, Policy};
use supervisor::trail::{LastRecords, Trails};

/// How much of one core's log one fault makes the supervisor read, in message pages: all of the kernel's
/// ring, and some that is written meanwhile.
const MOST_READS: usize = 20;

/// Reports faults.
pub(crate) struct Reporter {
    trails: Trails,
    cursors: Vec<u64, MAX_CORES>,
}

impl Reporter {
    pub(crate) fn new(cores: u32) -> Self {
        let mut cursors = Vec::new();
        // A node has no more cores.
        let _ = cursors.resize(usize::try_from(cores).unwrap_or(0).min(MAX_CORES), 0);
        Self { trails: Trails::new(), cursors }
    }

    /// Logs a fault.
    pub(crate) fn fault(&mut self, policy: &Policy, fault: &FaultReport) {
        let number = fault.service as usize;
        let name = name(policy, number);
        let last = self.last_records(number);
        let generation = fault.generation;
        let service = fault.service;
        let thread = fault.thread;
        let rip = fault.registers.rip;
        match FaultCause::from_number(fault.cause) {
            Some(FaultCause::PageFault) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: page fault at {=u64:#x} (error {=u64:#x}), thread {=u32}, rip {=u64:#x}",
                name,
                service,
                generation,
                fault.address,
                fault.error_code,
                thread,
                rip
            ),
            Some(FaultCause::StackOverflow) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: stack overflow at {=u64:#x}, thread {=u32}, rip {=u64:#x}",
                name,
                service,
                generation,
                fault.address,
                thread,
                rip
            ),
            Some(FaultCause::Panic) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: panic, thread {=u32}, rip {=u64:#x}",
                name,
                service,
                generation,
                thread,
                rip
            ),
            Some(FaultCause::Budget) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: ran longer than its budget, thread {=u32}, rip {=u64:#x}",
                name,
                service,
                generation,
                thread,
                rip
            ),
            Some(FaultCause::Exit) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: its first thread ended with {=u64}",
                name,
                service,
                generation,
                fault.error_code
            ),
            Some(FaultCause::Stopped) => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: by the supervisor, rip {=u64:#x}",
                name,
                service,
                generation,
                rip
            ),
            Some(FaultCause::Exception) | None => defmt::error!(
                "service {=str} (number {=u32}, generation {=u64}) stopped: exception {=u64} (error {=u64:#x}), thread {=u32}, rip {=u64:#x}",
                name,
                service,
                generation,
                fault.vector,
                fault.error_code,
                thread,
                rip
            ),
        }
        registers(fault);
        let text = usize::try_from(fault.text_bytes).ok().and_then(|length| fault.text.get(..length));
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            defmt::error!("  it said: {=str}", Text::<{ ipc::abi::MAX_PANIC_BYTES }>::lossy(text).as_str());
        }
        if let Some(LastRecords { count, first, last }) = last {
            defmt::error!(
                "  its last {=u32} log records: service {=u32}, ticks {=u64} to {=u64}",
                count,
                service,
                first,
                last
            );
        }
    }

    /// Reads on in the log of each core.
    fn last_records(&mut self, service: usize) -> Option<LastRecords> {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        for (core, cursor) in self.cursors.iter_mut().enumerate() {
            for _ in 0..MOST_READS {
                let Ok(slice) = syscall::log_read(core as u64, *cursor) else { break };
                *cursor = slice.cursor;
                let Some(bytes) = buffer.get_mut(..slice.bytes).filter(|bytes| !bytes.is_empty()) else {
                    break;
                };
                Page.read(bytes);
                self.trails.read(bytes);
            }
        }
        self.trails.last(service)
    }
}

fn registers(fault: &FaultReport) {
    let r = &fault.registers;
    defmt::error!(
        "  registers: rax {=u64:#x} rbx {=u64:#x} rcx {=u64:#x} rdx {=u64:#x} rsi {=u64:#x} rdi {=u64:#x} rbp {=u64:#x} rsp {=u64:#x} r8 {=u64:#x} r9 {=u64:#x} r10 {=u64:#x} r11 {=u64:#x} r12 {=u64:#x} r13 {=u64:#x} r14 {=u64:#x} r15 {=u64:#x} rflags {=u64:#x}",
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.rsp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rflags
    );
}

fn name(policy: &Policy, service: usize) -> &str {
    policy.services().get(service).map_or("?", |watched| watched.terms.name.as_str())
}

/// Logs an action on a service, and the error that it ended with.
pub(crate) fn action(policy: &Policy, action: Action, error: Option<Error>) {
    let (Action::Stop(number) | Action::Reload(number) | Action::Start(number) | Action::GiveUp(number)) =
        action;
    let Some(watched) = policy.services().get(usize::from(number)) else { return };
    let name = watched.terms.name.as_str();
    let generation = watched.generation;
    if let Some(error) = error {
        let text = Text::<64>::of(format_args!("{error}"));
        defmt::error!(
            "service {=str}: the kernel refused to stop, reload or start it: {=str}",
            name,
            text.as_str()
        );
        return;
    }
    match action {
        Action::Stop(_) if watched.last_beat.is_none() => {
            defmt::warn!("service {=str} did not register in time: stopping it", name);
        }
        Action::Stop(_) => defmt::warn!("service {=str} stopped beating: stopping it", name),
        Action::Reload(_) => {}
        Action::Start(_) => defmt::warn!("service {=str} restarted (generation {=u32})", name, generation),
        Action::GiveUp(_) => defmt::error!("service {=str} stays down: past its restart limit", name),
    }
}

/// Logs a registration.
pub(crate) fn registered(policy: &Policy, service: usize, description: &Description) {
    let generation = policy.services().get(service).map_or(0, |watched| watched.generation);
    defmt::info!(
        "service {=str} {=str} registered (number {=usize}, generation {=u32})",
        description.name.as_str(),
        description.version.as_str(),
        service,
        generation
    );
}
