//! A guest in the system of the tests, and a driver that plays its processors and its services.
//!
//! The driver knows what each vCPU must find at its next entry (registers, event, the state that stays in a core, what
//! its TLB may hold) and what each exit must tell, and compares after every step of the kernel.

extern crate std;

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use ipc::abi::{Label, MAX_CORES, MAX_MESSAGE_BYTES, NEVER, RECEIVE_MESSAGES, Syscall, Token, UserRegisters};
use ipc::vcpu::{DIRTY_SYSTEM, Event, EventKind, FLUSH_TRANSLATIONS, RESUME_AS_BEFORE, VcpuPage};
use rand::RngCore;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use zerocopy::{FromBytes, IntoBytes};

use super::{FakeMachine, THREADS, handle, system};
use crate::address::{FrameNumber, GuestPhysAddr, PhysAddr};
use crate::frames::FrameRange;
use crate::guest::{Guest, TableStock, Tables, ranges, tables_needed};
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::paging::PageTable;
use crate::service::Object;
use crate::state::State;
use crate::svm::{Features, V_IRQ, vmcb::code, vmcb::intercept};
use crate::thread::{Maker, Queued, Thread, ThreadState};
use crate::vcpu::{Pending, Vcpu};

/// Who owns the guest's memory: more urgent than the platform, which can call it.
pub const MEMORY: ServiceId = ServiceId(1);
/// Who gets the exits.
pub const PLATFORM: ServiceId = ServiceId(2);
/// Who places the vCPUs.
pub const PLACEMENT: ServiceId = ServiceId(3);
/// Services in all.
const SERVICES: u8 = 4;
/// Where the three have the guest's capability.
pub const GUEST_SLOT: u16 = 44;
/// Pages of the guest's memory.
pub const PAGES: u64 = 2048;
/// Pages of its private memory.
pub const PRIVATE_PAGES: u32 = 16;
/// The guest's pool.
pub const POOL: [FrameRange; 2] = [
    FrameRange { first: FrameNumber(0x800), pages: 512 },
    FrameRange { first: FrameNumber(0x1000), pages: 2048 },
];
/// Where the nested tables are.
pub const TABLES: FrameNumber = FrameNumber(0x400);
/// Where the state pages are.
const STATE_PAGES: PhysAddr = PhysAddr(0x60_0000);
/// The priority of vCPUs.
const PRIORITY: u8 = 8;
const FEATURES: Features =
    Features { next_rip: true, decode_assists: true, flush_by_asid: true, pause_filter: true, xcr0: 0xe7 };

/// What a vCPU must find and tell.
#[derive(Clone, Debug)]
struct Expected {
    registers: UserRegisters,
    /// An exception, NMI or software interrupt to deliver.
    event: Event,
    /// An interrupt to deliver after it.
    interrupt: Event,
    breakpoints: [u64; 4],
    xcr0: u64,
    /// Its service asked for a flush, or it starts anew.
    flush: bool,
    /// How often it ran: translations from before its latest run may be wrong on any other core.
    runs: u64,
    exits: u64,
}

impl Expected {
    const fn at_start(runs: u64, exits: u64) -> Self {
        let (registers, event, interrupt) = (UserRegisters::ZERO, Event::NONE, Event::NONE);
        Self { registers, event, interrupt, breakpoints: [0; 4], xcr0: 1, flush: true, runs, exits }
    }

    const fn first_event(&self) -> Event {
        if self.event.is_some() { self.event } else { self.interrupt }
    }

    fn deliver(&mut self, event: Event) {
        match event.kind() {
            Some(EventKind::Interrupt) => self.interrupt = Event::interrupt(event.vector()),
            Some(_) => self.event = event,
            None => {}
        }
    }
}

/// What a core's TLB holds.
#[derive(Clone, Copy, Debug, Default)]
struct Tlb {
    /// The generation of guest memory that the window's translations are of.
    window: u64,
    /// The vCPU, its run, and the generation, that the guest's translations are of.
    guest: Option<(VcpuId, u64, u64)>,
}

/// The system, its machine and its guest.
pub struct Node {
    pub state: Box<State>,
    pub m: FakeMachine,
    expected: Vec<Expected>,
    tlbs: Vec<Tlb>,
    random: ChaCha8Rng,
}

impl Node {
    /// All services run and wait for messages but the platform, which is current on core 0. The vCPUs are stopped.
    pub fn new(cores: u8, vcpus: u8) -> Self {
        let (mut state, mut m) = system(SERVICES, cores);
        let ranges = ranges(PAGES, PRIVATE_PAGES);
        let mut stock = TableStock::new(FrameRange { first: TABLES, pages: tables_needed(&ranges) });
        let memory = &mut Tables { m: &mut m, stock: &mut stock };
        let nested = PageTable::new(memory).unwrap();
        nested.second_table(memory, GuestPhysAddr(0)).unwrap();
        let root = state.service(PLATFORM).root;
        for number in 0..vcpus {
            let id = ThreadId::from_index(state.threads.len());
            let mut thread = Thread::unused(id);
            thread.place(id, PLATFORM, number);
            (thread.slot_bit, thread.root, thread.priority) = (0, root, PRIORITY);
            (thread.core, thread.vcpu) = (CoreId(number % cores), Some(VcpuId(number)));
            thread.message_page = PhysAddr(STATE_PAGES.0 + u64::from(number) * 4096);
            let vcpu = state.vcpus.push_with(|| ()).unwrap();
            (vcpu.thread, vcpu.page) = (id, thread.message_page);
            assert!(state.threads.push(thread).is_ok());
        }
        for service in [MEMORY, PLATFORM, PLACEMENT] {
            state.service_mut(service).capabilities[usize::from(GUEST_SLOT)] = Object::Guest;
        }
        state.guest = Some(Guest {
            platform: PLATFORM,
            memory: MEMORY,
            placement: PLACEMENT,
            ranges,
            pool: POOL.into_iter().collect(),
            nested,
            stock,
            generation: 0,
            spans: false,
            features: FEATURES,
            permission_maps: [PhysAddr(0x2000), PhysAddr(0x5000)],
        });
        let expected = vec![Expected::at_start(0, 0); usize::from(vcpus)];
        let random = ChaCha8Rng::seed_from_u64(u64::from(cores) << 8 | u64::from(vcpus));
        let mut node = Self { state, m, expected, tlbs: vec![Tlb::default(); MAX_CORES], random };
        for core in (0..cores).map(CoreId) {
            while node.current(core).is_some() {
                node.receive(core);
            }
        }
        for slot in 0..THREADS {
            node.state.thread_mut(ThreadId::new(first(PLATFORM).number() + slot)).core = CoreId(0);
        }
        node.step(CoreId(0), |state, m, core| {
            state.raise(m, core, PLATFORM, 1);
            state.reschedule(m, core);
        });
        assert_eq!(node.current(CoreId(0)), Some(first(PLATFORM)));
        node
    }

    /// One in which the vCPUs run what their service gave them at their start, each on its core.
    pub fn running(cores: u8, vcpus: u8) -> Self {
        let mut node = Self::new(cores, vcpus);
        for vcpu in (0..vcpus).map(VcpuId) {
            assert_eq!(node.vcpu_call(CoreId(0), Syscall::VcpuStart, vcpu), 0);
        }
        node.receive(CoreId(0));
        let mut waiting = vcpus;
        while waiting > 0 {
            node.wake();
            for core in (0..cores).map(CoreId) {
                if let Some(vcpu) = node.serves(core) {
                    node.write(vcpu, |page| page.registers.rip = 0x1000 * (u64::from(vcpu.0) + 1));
                    node.reply(core, vcpu);
                    waiting -= 1;
                } else if node.guest(core).is_some() {
                    // Its turn is over: the next starts.
                    node.m.now += node.state.turn;
                    node.timer(core);
                }
            }
        }
        node
    }

    /// What runs on a core.
    pub fn current(&self, core: CoreId) -> Option<ThreadId> {
        self.state.cores[core.index()].current
    }

    /// The vCPU that runs on a core.
    pub fn guest(&self, core: CoreId) -> Option<VcpuId> {
        self.state.thread(self.current(core)?).vcpu
    }

    /// The vCPU whose exit the service's thread that runs on a core serves, on its time.
    pub fn serves(&self, core: CoreId) -> Option<VcpuId> {
        let lender = self.state.thread(self.state.thread(self.current(core)?).lender?);
        lender.vcpu.filter(|_| lender.maker == Maker::Exit)
    }

    /// A vCPU's thread.
    pub fn thread(&self, vcpu: VcpuId) -> &Thread {
        self.state.thread(self.id(vcpu))
    }

    /// The number of a vCPU's thread.
    pub fn id(&self, vcpu: VcpuId) -> ThreadId {
        self.state.vcpus[vcpu.index()].thread
    }

    /// What a vCPU does.
    pub fn what(&self, vcpu: VcpuId) -> ThreadState {
        self.thread(vcpu).state
    }

    /// A service's thread's registers.
    pub fn registers(&self, id: ThreadId) -> &UserRegisters {
        &self.state.thread(id).context.registers
    }

    /// A vCPU's state page.
    pub fn page(&mut self, vcpu: VcpuId) -> VcpuPage {
        VcpuPage::read_from_prefix(self.m.at(self.state.vcpus[vcpu.index()].page)).unwrap().0
    }

    /// Changes a vCPU's state page.
    pub fn write(&mut self, vcpu: VcpuId, change: impl FnOnce(&mut VcpuPage)) {
        let mut page = self.page(vcpu);
        change(&mut page);
        let at = self.state.vcpus[vcpu.index()].page;
        self.m.at(at)[..size_of::<VcpuPage>()].copy_from_slice(page.as_bytes());
    }

    /// A step of the kernel on a core, as the program does it.
    pub fn step(&mut self, core: CoreId, act: impl FnOnce(&mut State, &mut FakeMachine, CoreId)) {
        self.verified(core, |state, m| {
            act(state, m, core);
            state.settle(m, core);
        });
    }

    fn verified(&mut self, core: CoreId, act: impl FnOnce(&mut State, &mut FakeMachine)) {
        self.m.now += 100;
        self.m.core = core.index();
        let (entries, spaces, expelled) = (self.m.guest_entries, self.m.spaces.len(), self.m.expelled.len());
        let generation = self.generation();
        let used = self.users(core);
        act(&mut self.state, &mut self.m);
        super::check(&self.state);
        if self.generation() != generation {
            assert_eq!(self.m.expelled[expelled..], used, "who may use what is gone");
        } else {
            assert_eq!(self.m.expelled.len(), expelled);
        }
        if self.m.spaces.len() != spaces {
            self.tlbs[core.index()].window = self.generation();
        }
        self.verify_exits();
        let guest = self.guest(core);
        assert_eq!(self.m.guest_entries - entries, u64::from(guest.is_some()), "entries on {core:?}");
        if let Some(vcpu) = guest {
            self.verify_entry(core, vcpu);
        } else if self.current(core).is_some_and(|id| self.state.thread(id).service == PLATFORM) {
            assert_eq!(self.tlbs[core.index()].window, self.generation(), "a stale window");
        }
        let here = &self.state.cores[core.index()];
        self.verify_wakes();
        // Only until it looks, when another core took the vCPU's context back.
        if let Some(vcpu) = here.extended.filter(|_| !self.m.woken.contains(&core.index())) {
            let on = here.current.map(|id| self.state.thread(id).on);
            assert_eq!(on, Some(self.id(vcpu)), "{vcpu:?} left state in {core:?}, where others run");
        }
    }

    /// A core that has something to do was told, if it did not see it itself.
    fn verify_wakes(&self) {
        for (index, core) in self.state.cores.iter().enumerate() {
            let told = self.m.woken.contains(&index);
            assert!(told || core.current.is_some() || core.queue.first().is_none(), "core {index} idles");
            if let Some(vcpu) = self.guest(CoreId::from_index(index)) {
                let tells = self.state.vcpus[vcpu.index()].pending != Pending::Nothing;
                assert!(told || !tells, "{vcpu:?} runs and has something to tell");
                assert!(told || self.what(vcpu) == ThreadState::Ready, "{vcpu:?} runs and should not");
            }
        }
    }

    /// The other cores that may use a translation of guest memory.
    fn users(&self, core: CoreId) -> Vec<usize> {
        let root = self.state.service(PLATFORM).root;
        let uses = |c: &usize| {
            let there = self.current(CoreId::from_index(*c));
            *c != core.index() && there.is_some_and(|id| self.state.thread(id).root == root)
        };
        (0..self.state.cores.len()).filter(uses).collect()
    }

    fn generation(&self) -> u64 {
        self.state.guest.as_ref().unwrap().generation
    }

    fn verify_exits(&mut self) {
        for vcpu in (0..self.expected.len()).map(VcpuId::from_index) {
            let exits = self.state.vcpus[vcpu.index()].counters.exits;
            if core::mem::replace(&mut self.expected[vcpu.index()].exits, exits) != exits {
                let page = self.page(vcpu);
                let expected = &self.expected[vcpu.index()];
                assert_eq!(page.control.event, expected.first_event(), "the event that {vcpu:?} tells");
                assert_eq!(page.registers.as_bytes(), expected.registers.as_bytes());
                assert_eq!((page.control.deadline, page.control.dirty), (NEVER, 0));
            }
        }
    }

    fn verify_entry(&mut self, core: CoreId, vcpu: VcpuId) {
        assert_eq!(self.what(vcpu), ThreadState::Ready, "{vcpu:?} runs");
        let generation = self.generation();
        let mut whole = self.page(vcpu).registers;
        let expected = &mut self.expected[vcpu.index()];
        let Vcpu { hardware, pending, .. } = &self.state.vcpus[vcpu.index()];
        assert_eq!(*pending, Pending::Nothing);
        for (place, value) in hardware.registers() {
            whole.as_mut_bytes()[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(whole.as_bytes(), expected.registers.as_bytes(), "{vcpu:?}'s registers");
        assert_eq!(hardware.event(), expected.first_event(), "{vcpu:?}'s event");
        let at_once = Event(hardware.vmcb.control.event);
        assert_ne!(at_once.kind(), Some(EventKind::Interrupt), "an interrupt is injected");
        let extended = (expected.breakpoints, expected.xcr0);
        assert_eq!(self.m.breakpoints[core.index()], extended, "{vcpu:?}'s state in {core:?}");
        let tlb = &mut self.tlbs[core.index()].guest;
        let flushes = hardware.vmcb.control.tlb_control != 0;
        assert!(flushes || *tlb == Some((vcpu, expected.runs, generation)), "{vcpu:?} must flush {core:?}");
        assert!(flushes || !expected.flush, "{vcpu:?} was to flush");
        expected.flush = false;
        expected.runs += 1;
        *tlb = Some((vcpu, expected.runs, generation));
    }

    /// The guest on a core runs, changes its registers and leaves. `interrupted`: an event whose delivery that ended.
    pub fn run(&mut self, core: CoreId, exit_code: u64, exit_info: [u64; 2], interrupted: Event) {
        let vcpu = self.guest(core).expect("a guest runs here");
        let mut registers = UserRegisters::ZERO;
        self.random.fill_bytes(registers.as_mut_bytes());
        self.write(vcpu, |page| page.registers = registers);
        let expected = &mut self.expected[vcpu.index()];
        self.random.fill_bytes(expected.breakpoints.as_mut_bytes());
        // Not every processor tells of XSETBV.
        if let Some(&xcr0) = [1, 3, 7, 0xe7].get(self.random.next_u32() as usize % 16) {
            expected.xcr0 = xcr0;
        }
        self.m.breakpoints[core.index()] = (expected.breakpoints, expected.xcr0);
        expected.registers = registers;
        let hardware = &mut self.state.vcpus[vcpu.index()].hardware;
        hardware.load_registers(|place| {
            u64::from_le_bytes(registers.as_bytes()[place..place + 8].try_into().unwrap())
        });
        let control = &mut hardware.vmcb.control;
        (control.exit_code, control.exit_info, control.exit_interrupt) =
            (exit_code, exit_info, interrupted.0);
        control.event = 0;
        // The guest takes an interrupt that waits, or cannot yet.
        if self.random.next_u32().is_multiple_of(2) && control.intercepts[0] & intercept::VINTR == 0 {
            control.virtual_interrupt &= !V_IRQ;
            expected.interrupt = Event::NONE;
        }
        expected.event = Event::NONE;
        match (interrupted.kind(), interrupted.vector()) {
            (Some(EventKind::SoftwareInterrupt), _) | (Some(EventKind::Exception), 3 | 4) => {}
            // A virtual interrupt, as QEMU tells of it.
            (Some(EventKind::Exception), vector @ 32..) => expected.deliver(Event::interrupt(vector)),
            _ => expected.deliver(interrupted),
        }
    }

    /// The guest on a core exits.
    pub fn exit(&mut self, core: CoreId, exit_code: u64, exit_info: [u64; 2]) {
        self.run(core, exit_code, exit_info, Event::NONE);
        self.step(core, |state, m, core| state.guest_exit(m, core));
    }

    /// The guest on a core, if one runs there, leaves for an interrupt, which is taken.
    pub fn interrupted(
        &mut self,
        core: CoreId,
        event: Event,
        act: impl FnOnce(&mut State, &mut FakeMachine, CoreId),
    ) {
        if self.guest(core).is_some() {
            self.run(core, code::INTR, [0; 2], event);
        }
        self.step(core, act);
    }

    /// The timer of a core comes.
    pub fn timer(&mut self, core: CoreId) {
        self.interrupted(core, Event::NONE, |state, m, core| state.timer(m, core));
    }

    /// The interrupts that were sent between cores come.
    pub fn wake(&mut self) {
        while let Some(core) = self.m.woken.pop() {
            let wake_up = |state: &mut State, m: &mut FakeMachine, core| state.wake_up(m, core);
            self.interrupted(CoreId::from_index(core), Event::NONE, wake_up);
        }
    }

    /// The current thread of a core makes a system call; its status as far as it is known.
    pub fn syscall(&mut self, core: CoreId, call: Syscall, set: impl FnOnce(&mut UserRegisters)) -> u64 {
        let id = self.current(core).expect("a service runs here");
        let registers = &mut self.state.thread_mut(id).context.registers;
        (registers.r12, registers.r13) = (NEVER, RECEIVE_MESSAGES | 1);
        (registers.rdi, registers.rsi) = (0, 0);
        set(registers);
        registers.rax = call as u64;
        self.prepared_syscall(core);
        self.state.thread(id).context.registers.rax
    }

    /// The system call that the current thread's registers say.
    pub fn prepared_syscall(&mut self, core: CoreId) {
        let id = self.current(core).expect("a service runs here");
        let r = *self.registers(id);
        let service = self.state.thread(id).service;
        if self.state.thread(id).state == ThreadState::Ready {
            let replies = [Syscall::Receive as u64, Syscall::Reply as u64].contains(&r.rax);
            if replies && Label(r.rsi).bytes() <= MAX_MESSAGE_BYTES {
                self.expect_reply(Token(r.rdi), service, Label(r.rsi));
            }
            if r.rax == Syscall::VcpuStart as u64 {
                self.expect_start(id, r.rdi, r.rsi);
            }
        }
        self.verified(core, |state, m| {
            state.syscall(m, core);
        });
    }

    /// What a reply loads, if it is one to an exit.
    fn expect_reply(&mut self, token: Token, service: ServiceId, label: Label) {
        let waits = |t: &Thread| {
            let awaits = t.state == ThreadState::AwaitingReply { server: service };
            t.token == token && awaits && t.maker == Maker::Exit
        };
        let Some(vcpu) = self.state.threads.iter().find(|t| waits(t)).and_then(|t| t.vcpu) else { return };
        let page = self.page(vcpu);
        let Vcpu { hardware, extended, .. } = &self.state.vcpus[vcpu.index()];
        let expected = &mut self.expected[vcpu.index()];
        let event = page.control.event;
        expected.registers = page.registers;
        if label.method() == RESUME_AS_BEFORE {
            return;
        }
        if !event.is_some() && !expected.event.is_some() {
            expected.interrupt = Event::NONE;
        }
        expected.event = Event::NONE;
        expected.deliver(event);
        expected.flush |= page.control.flush & FLUSH_TRANSLATIONS != 0;
        if page.control.dirty & DIRTY_SYSTEM != 0 {
            expected.flush = true;
            let xcr0 = hardware.legal_xcr0(page.system.xcr0);
            // Given back as it was told it is no choice: the guest may have set it since.
            if extended.xcr0 != xcr0 || page.system.reset_fpu != 0 {
                expected.xcr0 = xcr0;
            }
            if page.system.reset_fpu != 0 {
                expected.breakpoints = [0; 4];
            }
        }
    }

    fn expect_start(&mut self, id: ThreadId, handle: u64, number: u64) {
        let service = self.state.thread(id).service;
        let held = self.state.resolve(service, ipc::abi::Handle(handle)) == Ok(Object::Guest);
        let Some(vcpu) = self.state.known_vcpu(number).ok().filter(|_| held && service == PLATFORM) else {
            return;
        };
        if self.what(vcpu) == ThreadState::Unused && self.state.core_running(self.id(vcpu)).is_none() {
            let Expected { runs, exits, .. } = self.expected[vcpu.index()];
            self.expected[vcpu.index()] = Expected::at_start(runs + 1, exits);
        }
    }

    /// The current thread waits for a message or bit 0.
    pub fn receive(&mut self, core: CoreId) {
        self.syscall(core, Syscall::Receive, |_| {});
    }

    /// The current thread replies to a vCPU's call, and waits for the next message.
    pub fn reply(&mut self, core: CoreId, vcpu: VcpuId) {
        let token = self.thread(vcpu).token.0;
        self.syscall(core, Syscall::Receive, |r| r.rdi = token);
    }

    /// The current thread calls for a vCPU.
    pub fn vcpu_call(&mut self, core: CoreId, call: Syscall, vcpu: VcpuId) -> u64 {
        let guest = self.guest_handle(core);
        self.syscall(core, call, |r| (r.rdi, r.rsi) = (guest, u64::from(vcpu.0)))
    }

    /// The current thread's handle of the guest.
    pub fn guest_handle(&self, core: CoreId) -> u64 {
        handle(&self.state, self.state.thread(self.current(core).unwrap()).service, GUEST_SLOT)
    }
}

/// A service's first thread.
pub fn first(service: ServiceId) -> ThreadId {
    ThreadId::new(service.0 * THREADS)
}

/// Checks what must hold of vCPUs between any two traps.
#[track_caller]
pub fn check(state: &State) {
    let guest = state.guest.as_ref();
    for thread in state.threads.iter() {
        let server = match thread.state {
            ThreadState::Sending { server, .. } | ThreadState::AwaitingReply { server } => Some(server),
            _ => None,
        };
        match thread.maker {
            Maker::Thread => assert!(thread.vcpu.is_none() || server.is_none(), "a vCPU called by itself"),
            Maker::Exit => {
                assert!(thread.vcpu.is_some() && server == guest.map(|guest| guest.platform));
            }
            Maker::Fault => {
                assert!(server == guest.map(|guest| guest.memory));
                assert!(thread.vcpu.is_some() || Some(thread.service) == guest.map(|guest| guest.platform));
            }
        }
        assert!(thread.vcpu.is_some() || thread.state != ThreadState::Halted);
        assert!(thread.vcpu.is_none() || thread.lender.is_none());
    }
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        let (id, thread) = (VcpuId::from_index(index), state.thread(vcpu.thread));
        assert_eq!(thread.vcpu, Some(id));
        if matches!(thread.state, ThreadState::Unused | ThreadState::Halted) {
            assert_eq!(vcpu.pending, Pending::Nothing, "{id:?} does nothing and has something to tell");
        }
        let with = |has: &dyn Fn(&crate::cpu::Core) -> bool| {
            let cores = state.cores.iter().enumerate().filter(|(_, core)| has(core));
            cores.map(|(index, _)| index).collect::<Vec<_>>()
        };
        assert!(with(&|core| core.translations.is_some_and(|(of, _)| of == id)).len() <= 1);
        let loaded = with(&|core| core.extended == Some(id));
        assert!(loaded.len() <= 1, "the state of {id:?} is in two cores");
        if let [there] = loaded[..] {
            let on = |core: &crate::cpu::Core| core.current.map(|t| state.thread(t).on) == Some(vcpu.thread);
            let elsewhere = with(&on).into_iter().any(|core| core != there);
            assert!(!elsewhere, "{id:?} runs on another core than its state is in");
            if thread.links.queued == Queued::Yes {
                assert_eq!(thread.core.index(), there, "{id:?} waits for another core than its state is in");
            }
        }
    }
}
