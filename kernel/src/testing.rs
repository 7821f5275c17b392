//! A machine in memory and a small system on it, for the host tests.

extern crate std;

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use ipc::abi::{Handle, MAX_CAPABILITIES, MAX_CORES, Name, PAGE_SIZE, ServiceState, message_page};

use crate::address::{PhysAddr, VirtAddr};
use crate::context::Extended;
use crate::cpu::Core;
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::log_ring::{LogRing, RING_BYTES};
use crate::machine::{Machine, PciAddress, StopKind, Width};
use crate::service::{Mapping, Object, OnRestart, Service, Serving};
use crate::state::State;
use crate::svm::vmcb::Vmcb;
use crate::thread::{Queued, Thread, ThreadState};

pub mod guest;

/// Bytes of the machine's memory.
const MEMORY_BYTES: usize = 32 << 20;

/// A machine that records what was asked of it.
pub struct FakeMachine {
    pub memory: Vec<u8>,
    pub now: u64,
    pub timer: u64,
    pub woken: Vec<usize>,
    pub spaces: Vec<PhysAddr>,
    pub masked: Vec<u32>,
    pub unmasked: Vec<u32>,
    pub ports: Vec<(u16, u32)>,
    pub config: Vec<(u16, u32)>,
    pub stopped: Option<StopKind>,
    pub expelled: Vec<usize>,
    pub machine_checks: u64,
    /// The core that the kernel runs on at this moment, as far as the tests of guests care.
    pub core: usize,
    /// How often it went to guest mode.
    pub guest_entries: u64,
    /// Each core's breakpoint registers and XCR0.
    pub breakpoints: Vec<([u64; 4], u64)>,
    /// What another core makes of a word just after a read of it alone.
    pub before_change: Option<(PhysAddr, u32)>,
}

impl FakeMachine {
    pub fn new() -> Self {
        Self {
            memory: vec![0; MEMORY_BYTES],
            now: 1000,
            timer: u64::MAX,
            woken: Vec::new(),
            spaces: Vec::new(),
            masked: Vec::new(),
            unmasked: Vec::new(),
            ports: Vec::new(),
            config: Vec::new(),
            stopped: None,
            expelled: Vec::new(),
            machine_checks: 0,
            core: 0,
            guest_entries: 0,
            breakpoints: vec![([0; 4], 1); MAX_CORES],
            before_change: None,
        }
    }

    pub fn at(&mut self, address: PhysAddr) -> &mut [u8] {
        &mut self.memory[place(address)..]
    }
}

fn place(address: PhysAddr) -> usize {
    usize::try_from(address.0).unwrap()
}

impl Machine for FakeMachine {
    fn now(&self) -> u64 {
        self.now
    }
    fn set_timer(&mut self, deadline: u64) {
        self.timer = deadline;
    }
    fn reschedule(&mut self, core: usize) {
        self.woken.push(core);
    }
    fn switch_address_space(&mut self, root: PhysAddr) {
        self.spaces.push(root);
    }
    fn read(&self, from: PhysAddr, into: &mut [u8]) {
        let from = place(from);
        into.copy_from_slice(&self.memory[from..from + into.len()]);
    }
    fn write(&mut self, to: PhysAddr, bytes: &[u8]) {
        self.at(to)[..bytes.len()].copy_from_slice(bytes);
    }
    fn read_u32(&self, from: PhysAddr) -> u32 {
        if let Some((_, value)) = self.before_change.filter(|&(at, _)| at == from) {
            return value;
        }
        let mut bytes = [0; 4];
        self.read(from, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn read_u64(&self, from: PhysAddr) -> u64 {
        let mut bytes = [0; 8];
        self.read(from, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn write_u64(&mut self, to: PhysAddr, value: u64) {
        self.write(to, &value.to_le_bytes());
    }
    fn physical_address(&self, _: &Vmcb) -> PhysAddr {
        PhysAddr(0x1000)
    }
    fn begin_guest(&mut self) {
        self.guest_entries += 1;
    }
    fn expel(&mut self, core: usize) {
        self.expelled.push(core);
    }
    fn save_extended(&mut self, into: &mut Extended) {
        (into.breakpoints, into.xcr0) = self.breakpoints[self.core];
    }
    fn load_extended(&mut self, from: &Extended) {
        self.breakpoints[self.core] = (from.breakpoints, from.xcr0);
    }
    fn machine_check(&mut self) {
        self.machine_checks += 1;
    }
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, bytes: usize) {
        let from = place(from);
        self.memory.copy_within(from..from + bytes, place(to));
    }
    fn zero(&mut self, at: PhysAddr, bytes: usize) {
        self.at(at)[..bytes].fill(0);
    }
    fn mask(&mut self, gsi: u32) {
        self.masked.push(gsi);
    }
    fn unmask(&mut self, gsi: u32) {
        self.unmasked.push(gsi);
    }
    fn port_read(&mut self, port: u16, _: Width) -> u32 {
        u32::from(port) * 3
    }
    fn port_write(&mut self, port: u16, _: Width, value: u32) {
        self.ports.push((port, value));
    }
    fn config_read(&mut self, function: PciAddress, offset: u16, _: Width) -> u32 {
        u32::from(function.id()) << 16 | u32::from(offset)
    }
    fn config_write(&mut self, _: PciAddress, offset: u16, _: Width, value: u32) {
        self.config.push((offset, value));
    }
    fn stop_node(&mut self, kind: StopKind) {
        self.stopped = Some(kind);
    }
}

/// Services of a [`system`], by number. A service can call those with smaller numbers; the handle's slot is the
/// number of the callee. The supervisor is 0.
pub const SUPERVISOR: ServiceId = ServiceId(0);
/// Threads of each service.
pub const THREADS: u8 = 3;
/// Slot of the capability to raise bit 1 of the next service (modulo their number).
pub const NOTIFY_SLOT: u16 = 40;
/// Slot of a port range 0x100 to 0x107.
pub const PORT_SLOT: u16 = 41;
/// Slot of 8 KiB of DMA memory.
pub const DMA_SLOT: u16 = 42;
/// Slot of a PCI function with an MSI-X capability at 0x50.
pub const PCI_SLOT: u16 = 43;
/// Where each service has 64 KiB of memory that a restart restores.
pub const DATA: u64 = 0x40_0000;

/// A system of `services` services on `cores` cores, all started; priorities are the services' numbers.
pub fn system(services: u8, cores: u8) -> (Box<State>, FakeMachine) {
    let mut state = Box::new(State::empty());
    let mut m = FakeMachine::new();
    state.node.tsc_hz = 1_000_000_000;
    state.turn = 10_000;
    let mut next = 0x10_0000;
    let mut take = |bytes: u64| {
        let at = PhysAddr(next);
        next += bytes;
        at
    };
    for _ in 0..cores {
        state.cores.push(Core::idle()).unwrap();
        state.logs.push(LogRing::new(take(RING_BYTES))).unwrap();
    }
    for id in 0..services * THREADS {
        state.threads.push(Thread::unused(ThreadId::new(id))).unwrap();
    }
    for number in 0..services {
        let mut service = Service::absent();
        service.name = Name::new(&std::format!("service-{number}")).unwrap();
        service.state = ServiceState::Ready;
        service.budget = 1_000_000;
        service.rights = if number == 0 { 7 } else { 0 };
        service.first_thread = ThreadId::new(number * THREADS);
        // A supervisor has one thread alone.
        service.threads = if number == 0 { 1 } else { THREADS };
        service.stack_bytes = 4 * PAGE_SIZE as u64;
        service.entry = VirtAddr(DATA);
        service.root = PhysAddr(u64::from(number) + 1);
        service.serving = Serving::OnCallersTime;
        service.start_page = take(PAGE_SIZE as u64);
        service.capabilities = [Object::Empty; MAX_CAPABILITIES];
        for callee in 0..number {
            service.capabilities[usize::from(callee)] = Object::Endpoint(ServiceId(callee));
        }
        let next_service = ServiceId((number + 1) % services);
        service.capabilities[usize::from(NOTIFY_SLOT)] = Object::Notification(next_service, 2);
        service.capabilities[usize::from(PORT_SLOT)] = Object::Ports { first: 0x100, count: 8 };
        service.capabilities[usize::from(DMA_SLOT)] =
            Object::Dma { physical: PhysAddr(0x1234_5000), bytes: 0x2000 };
        service.capabilities[usize::from(PCI_SLOT)] =
            Object::PciFunction { address: PciAddress::from_id(0x18), msix: 0x50 };
        let data = take(0x1_0000);
        let source = take(PAGE_SIZE as u64);
        m.at(source)[..4].copy_from_slice(b"data");
        m.at(data)[..4].copy_from_slice(b"data");
        let mapping = |start, bytes, physical, on_restart| Mapping {
            start: VirtAddr(start),
            bytes,
            physical,
            on_restart,
        };
        let restore = OnRestart::Restore { source, source_bytes: PAGE_SIZE as u64 };
        service.mappings.push(mapping(DATA, 0x1_0000, data, restore)).unwrap();
        for slot in 0..THREADS {
            let id = service.thread(slot);
            let page = take(PAGE_SIZE as u64);
            let kept = OnRestart::Keep;
            let start = message_page(usize::from(slot));
            service.mappings.push(mapping(start, PAGE_SIZE as u64, page, kept)).unwrap();
            let thread = &mut state.threads[id.index()];
            thread.place(id, ServiceId(number), slot);
            thread.message_page = page;
            thread.root = PhysAddr(u64::from(number) + 1);
            thread.priority = number;
            thread.core = CoreId(number % cores);
        }
        state.services.push(service).unwrap();
    }
    for number in 0..services {
        state.start(&mut m, CoreId(0), ServiceId(number));
    }
    for core in 0..cores {
        state.wake_up(&mut m, CoreId(core));
    }
    (state, m)
}

impl State {
    /// A thread.
    pub fn thread(&self, id: ThreadId) -> &Thread {
        &self.threads[id.index()]
    }

    /// A thread, to change.
    pub fn thread_mut(&mut self, id: ThreadId) -> &mut Thread {
        &mut self.threads[id.index()]
    }

    /// A service.
    pub fn service(&self, id: ServiceId) -> &Service {
        &self.services[id.index()]
    }

    /// A service, to change.
    pub fn service_mut(&mut self, id: ServiceId) -> &mut Service {
        &mut self.services[id.index()]
    }
}

/// The current handle of a slot that stands for `callee`.
pub fn handle(state: &State, holder: ServiceId, slot: u16) -> u64 {
    let object = state.service(holder).capabilities[usize::from(slot)];
    Handle::new(slot, state.generation_of(holder, object)).0
}

/// Checks what must hold between any two traps.
#[track_caller]
pub fn check(state: &State) {
    let cores = state.cores.len();
    for (index, thread) in state.threads.iter().enumerate() {
        let id = ThreadId::from_index(index);
        let context = &state.threads[thread.on.index()];
        let current_on: Vec<usize> = (0..cores).filter(|&c| state.cores[c].current == Some(id)).collect();
        assert!(current_on.len() <= 1, "{id:?} runs on two cores");
        if thread.links.queued == Queued::Yes {
            let runs = &state.threads[thread.runs.index()];
            assert_eq!(runs.state, ThreadState::Ready, "context {id:?} is queued, its thread is not ready");
            assert_eq!(runs.on, id, "context {id:?} is queued for a thread on another");
            assert!(
                !(0..cores).any(|c| state.cores[c].current == Some(thread.runs)),
                "{id:?} queued and current"
            );
        }
        if thread.state == ThreadState::Ready {
            assert_eq!(context.runs, id, "{id:?} is ready on a context that runs another");
            let queued = context.links.queued == Queued::Yes;
            assert!(queued != (current_on.len() == 1), "{id:?} is ready: queued {queued}, on {current_on:?}");
        }
        if let Some(lender) = thread.lender {
            assert_eq!(state.threads[lender.index()].lent_to, Some(id), "{id:?}'s lender lent to another");
            assert_eq!(state.threads[lender.index()].on, thread.on, "{id:?} is not on its lender's context");
        } else {
            assert_eq!(thread.on, id, "{id:?} has no lender but is not on its own context");
        }
        if let Some(server) = thread.lent_to {
            assert!(
                matches!(thread.state, ThreadState::AwaitingReply { .. }),
                "{id:?} lent and does not wait"
            );
            assert_eq!(state.threads[server.index()].lender, Some(id));
        }
        let service = state.service(thread.service);
        let in_receivers = service.receivers & thread.slot_bit != 0;
        match thread.state {
            ThreadState::Receiving { mask } => {
                assert_eq!(in_receivers, mask & ipc::abi::RECEIVE_MESSAGES != 0, "{id:?} receives");
                assert_eq!(
                    service.pending & mask & !ipc::abi::RECEIVE_MESSAGES,
                    0,
                    "{id:?} missed a notification"
                );
                assert!(!(in_receivers && service.callers != 0), "{id:?} waits while callers wait for it");
            }
            ThreadState::Sending { server, .. } => {
                assert!(state.service(server).callers & 1 << index != 0);
                assert_ne!(
                    state.service(server).state,
                    ServiceState::Down,
                    "{id:?} waits for a service that is down"
                );
            }
            ThreadState::AwaitingReply { server } => {
                assert_eq!(
                    state.service(server).state,
                    ServiceState::Running,
                    "{id:?} awaits a stopped service"
                );
            }
            ThreadState::Unused | ThreadState::Ready | ThreadState::Halted | ThreadState::Futex { .. } => {
                assert!(!in_receivers)
            }
        }
        let waits =
            thread.vcpu.is_some() || !matches!(thread.state, ThreadState::Unused | ThreadState::Ready);
        assert!(waits || thread.deadline == u64::MAX, "{id:?} does not wait but has a deadline");
        if thread.deadline != u64::MAX {
            let core = &state.cores[thread.deadline_core.index()];
            assert!(
                core.next_deadline <= thread.deadline && core.armed <= thread.deadline,
                "{id:?} is forgotten"
            );
        }
    }
    guest::check(state);
}
