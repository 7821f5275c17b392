//! Long random runs: guests exit, miss and are interrupted; services serve, park, answer wrongly, change guest memory,
//! start, stop, kick and move vCPUs, fault and restart. The driver compares every entry and exit with its model, and
//! every invariant is checked after each step. In the end every vCPU that is not stopped must get on.

extern crate std;

use std::vec::Vec;

use ipc::abi::{FAULT_BIT, GUEST_ZERO};
use ipc::vcpu::{PRIVATE_START, RESUME_AS_BEFORE};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use zerocopy::IntoBytes;

use super::*;
use crate::state::State;
use crate::testing::guest::{POOL, PRIVATE_PAGES};
use crate::testing::{FakeMachine, THREADS};

/// How often what happened.
#[derive(Debug, Default)]
struct Seen {
    starts: u64,
    stops: u64,
    moves: u64,
    parks: u64,
    late: u64,
    restarts: u64,
    window: u64,
    maps: u64,
}

struct Run {
    n: Node,
    random: ChaCha8Rng,
    seen: Seen,
    cores: u8,
    vcpus: u8,
}

impl Run {
    fn new(seed: u64, cores: u8, vcpus: u8) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { n: Node::running(cores, vcpus), random, seen: Seen::default(), cores, vcpus }
    }

    fn chance(&mut self, of_100: u32) -> bool {
        self.random.random_range(0..100) < of_100
    }

    fn vcpu(&mut self) -> VcpuId {
        VcpuId(self.random.random_range(0..self.vcpus))
    }

    fn guest_page(&mut self) -> u64 {
        match self.random.random_range(0..10) {
            0 => PRIVATE_START / 4096 + self.random.random_range(0..u64::from(PRIVATE_PAGES)),
            // Few pages, so that they are taken away often.
            _ => self.random.random_range(0..24),
        }
    }

    fn event(&mut self) -> Event {
        let vector = self.random.random();
        match self.random.random_range(0..8) {
            0 => Event::interrupt(vector),
            1 => Event::exception(vector & 31, Some(self.random.random())),
            2 => Event::nmi(),
            3 if self.chance(20) => Event(self.random.random()),
            _ => Event::NONE,
        }
    }

    fn interrupt(&mut self, core: CoreId) {
        let event = self.event();
        let service = [MEMORY, PLATFORM, PLATFORM, PLACEMENT][self.random.random_range(0..4)];
        let timer = self.chance(50);
        let raises = self.chance(60);
        if timer {
            self.n.m.now += self.random.random_range(0..5000);
        }
        self.n.interrupted(core, event, |state, m, core| {
            if raises {
                state.raise(m, core, service, 1);
            }
            if timer {
                state.timer(m, core);
            } else {
                state.wake_up(m, core);
            }
        });
    }

    fn guest_step(&mut self, core: CoreId) {
        let page = self.guest_page();
        let (exit_code, info) = match self.random.random_range(0..20) {
            0..4 => return self.interrupt(core),
            4..7 => (code::NESTED_PAGE_FAULT, [self.random.random_range(4..8), page * 4096]),
            7 => (code::NESTED_PAGE_FAULT, [4, HOLE]),
            8 => (code::HLT, [0; 2]),
            9 => (code::PAUSE, [0; 2]),
            10 => (code::VINTR, [0; 2]),
            11 => (code::IRET, [0; 2]),
            12 => (code::NMI, [0; 2]),
            13 => (code::IOIO, self.random.random()),
            14 => (self.random.random_range(0..0x500), self.random.random()),
            _ => (code::CPUID, [0; 2]),
        };
        let event = self.event();
        self.n.run(core, exit_code, info, event);
        self.n.step(core, |state, m, core| state.guest_exit(m, core));
    }

    fn fill_page(&mut self, vcpu: VcpuId) {
        let event = if self.chance(30) { self.n.page(vcpu).control.event } else { self.event() };
        let (now, random) = (self.n.m.now, &mut self.random);
        let mut page = self.n.page(vcpu);
        random.fill(page.registers.as_mut_bytes());
        random.fill(page.system.as_mut_bytes());
        page.system.xcr0 = [1, 3, 7, 0xe7, 2, u64::MAX][random.random_range(0..6)];
        page.system.reset_fpu = random.random_range(0..2);
        let deadlines = [NEVER, NEVER, now + random.random_range(0..30_000), 0];
        page.control = EntryControl {
            event,
            deadline: deadlines[random.random_range(0..4)],
            window: if random.random_bool(0.2) { random.random() } else { 0 },
            activity: u32::from(random.random_bool(0.15)),
            dirty: u32::from(random.random_bool(0.2)),
            intercepts: random.random_range(0..2),
            flush: if random.random_bool(0.1) { FLUSH_TRANSLATIONS } else { 0 },
            blocked: random.random_range(0..4),
        };
        self.n.write(vcpu, |to| *to = page);
    }

    fn platform_step(&mut self, core: CoreId) {
        let parked: Vec<VcpuId> = (0..self.vcpus).map(VcpuId).filter(|&v| self.is_parked(v)).collect();
        if let Some(vcpu) = self.n.serves(core)
            && self.chance(75)
        {
            match self.random.random_range(0..10) {
                0 => {
                    self.seen.parks += 1;
                    self.receive(core, Token::NOBODY.0, 0);
                }
                1 => {
                    self.fill_page(vcpu);
                    let token = self.n.thread(vcpu).token.0;
                    self.n.syscall(core, Syscall::Reply, |r| r.rdi = token);
                }
                _ => {
                    self.fill_page(vcpu);
                    let method = if self.chance(25) { RESUME_AS_BEFORE } else { 0 };
                    self.receive(core, self.n.thread(vcpu).token.0, method);
                }
            }
            return;
        }
        let stopped = (0..self.vcpus).map(VcpuId).find(|&v| self.n.what(v) == ThreadState::Unused);
        if let Some(vcpu) = stopped.filter(|_| self.random.random()) {
            self.seen.starts += u64::from(self.n.vcpu_call(core, Syscall::VcpuStart, vcpu) == 0);
            return;
        }
        let vcpu = self.vcpu();
        match self.random.random_range(0..24) {
            0..4 if !parked.is_empty() => {
                let vcpu = parked[self.random.random_range(0..parked.len())];
                self.fill_page(vcpu);
                let token = self.n.thread(vcpu).token.0;
                self.seen.late += 1;
                self.n.syscall(core, Syscall::Reply, |r| r.rdi = token);
            }
            4..6 => {
                self.seen.starts += u64::from(self.n.vcpu_call(core, Syscall::VcpuStart, vcpu) == 0);
            }
            6 if self.chance(50) => {
                self.seen.stops += u64::from(self.n.vcpu_call(core, Syscall::VcpuStop, vcpu) == 0);
            }
            7..10 => drop(self.n.vcpu_call(core, Syscall::VcpuKick, vcpu)),
            10 => drop(self.n.vcpu_call(core, Syscall::VcpuFetch, vcpu)),
            11 => {
                let home = self.random.random_range(0..self.cores);
                self.n.syscall(core, Syscall::SpawnThread, |r| (r.rdi, r.rdx) = (DATA, home.into()));
            }
            12 | 13 => {
                let (error, page) = (self.random.random_range(4..8), self.guest_page());
                let at = WINDOW_BASE + page * 4096 + 8;
                self.seen.window += 1;
                self.n.step(core, |state, m, core| state.exception(m, core, 14, error, at));
            }
            14 => {
                // A call of its own.
                let to = handle(&self.n.state, PLATFORM, MEMORY.0.into());
                self.n.syscall(core, Syscall::Call, |r| r.rdi = to);
            }
            15 => {
                // Stale and false tokens.
                let token = self.n.thread(vcpu).token.0.wrapping_sub(self.random.random_range(0..2) << 32);
                let method = self.random.random_range(0..2);
                self.receive(core, token, method);
            }
            _ => self.receive(core, Token::NOBODY.0, 0),
        }
    }

    /// Replies and waits: for messages alone some time, or for a notification, too.
    fn receive(&mut self, core: CoreId, token: u64, method: u16) {
        let (mut deadline, mut bits) = (NEVER, 1);
        if self.chance(40) {
            (deadline, bits) = (self.n.m.now + self.random.random_range(0..20_000), 0);
        }
        self.n.syscall(core, Syscall::Receive, |r| {
            (r.rdi, r.rsi) = (token, Label::new(method, 0).0);
            (r.r12, r.r13) = (deadline, RECEIVE_MESSAGES | bits);
        });
    }

    fn is_parked(&self, vcpu: VcpuId) -> bool {
        let thread = self.n.thread(vcpu);
        thread.state == ThreadState::AwaitingReply { server: PLATFORM } && thread.lent_to.is_none()
    }

    fn map(&mut self, core: CoreId, first: u64) {
        let pages = if self.chance(20) { 512 } else { self.random.random_range(1..4) };
        let first = if pages == 512 { first / 512 * 512 } else { first };
        // Often one that fits a large page.
        let (piece, frames) = (self.random.random_range(0..5) * 512, POOL.iter().map(|run| run.pages).sum());
        let index = if self.chance(50) { piece + first % 512 } else { self.random.random_range(0..frames) };
        let zero = if self.chance(20) { GUEST_ZERO } else { 0 };
        let access = self.random.random_range(0..3) | zero;
        let guest = self.n.guest_handle(core);
        self.seen.maps += 1;
        self.n.syscall(core, Syscall::GuestMap, |r| {
            (r.rdi, r.rsi, r.rdx, r.r8, r.r9) = (guest, first, index, pages, access);
        });
    }

    fn memory_step(&mut self, core: CoreId) {
        let id = self.n.current(core).unwrap();
        let asked = self.n.state.thread(id).lender.map(|_| *self.n.registers(id));
        match self.random.random_range(0..10) {
            0..5 => {
                let page = match asked {
                    Some(r) if Label(r.rsi).method() == GUEST_FAULT => r.rdx / 4096,
                    _ => self.guest_page(),
                };
                self.map(core, page);
            }
            _ => {
                let method = u16::from(self.chance(5));
                self.receive(core, asked.map_or(0, |r| r.r15), method);
            }
        }
    }

    /// The memory's owner keeps the token of the call that it serves in a register.
    fn keep_token(&mut self, core: CoreId) {
        let Some(id) = self.n.current(core) else { return };
        let Some(lender) = self.n.state.thread(id).lender else { return };
        let token = self.n.state.thread(lender).token.0;
        self.n.state.thread_mut(id).context.registers.r15 = token;
    }

    fn service_step(&mut self, core: CoreId, service: ServiceId) {
        if service != SUPERVISOR && self.random.random_range(0..400) == 0 {
            self.seen.restarts += 1;
            return self.n.step(core, |state, m, core| state.exception(m, core, 6, 0, 0));
        }
        match service {
            PLATFORM => self.platform_step(core),
            MEMORY => {
                self.keep_token(core);
                self.memory_step(core);
            }
            PLACEMENT if self.chance(30) => {
                let (vcpu, home) = (self.vcpu(), CoreId(self.random.random_range(0..self.cores)));
                let guest = self.n.guest_handle(core);
                let status = self.n.syscall(core, Syscall::VcpuPlace, |r| {
                    (r.rdi, r.rsi, r.rdx) = (guest, vcpu.0.into(), home.0.into());
                });
                self.seen.moves += u64::from(status == 0);
            }
            _ => drop(self.n.syscall(core, Syscall::Receive, |r| r.r13 = RECEIVE_MESSAGES | FAULT_BIT | 1)),
        }
    }

    fn step(&mut self) {
        let core = CoreId(self.random.random_range(0..self.cores));
        self.n.m.now += self.random.random_range(0..2000);
        let mut index = 0;
        while index < self.n.m.woken.len() {
            if self.chance(60) {
                let (event, woken) = (self.event(), self.n.m.woken.swap_remove(index));
                let wake = |state: &mut State, m: &mut FakeMachine, core| state.wake_up(m, core);
                self.n.interrupted(CoreId::from_index(woken), event, wake);
            } else {
                index += 1;
            }
        }
        match self.n.current(core) {
            None => self.interrupt(core),
            Some(_) if self.n.guest(core).is_some() => self.guest_step(core),
            Some(_) if self.chance(5) => self.interrupt(core),
            Some(id) => self.service_step(core, self.n.state.thread(id).service),
        }
    }

    /// What the supervisor does.
    fn restart(&mut self, give_up: bool) {
        for service in [MEMORY, PLATFORM, PLACEMENT] {
            if give_up && service == MEMORY {
                self.control(service, ServiceOperation::GiveUp);
            }
            if !give_up && self.n.state.service(service).state == ServiceState::Down {
                self.n.state.service_mut(service).state = ServiceState::Stopped;
            }
            for operation in [ServiceOperation::Reload, ServiceOperation::Reload, ServiceOperation::Start] {
                self.control(service, operation);
            }
        }
        self.n.state.service_mut(SUPERVISOR).generation = 0;
    }

    fn control(&mut self, service: ServiceId, operation: ServiceOperation) {
        self.n.interrupted(CORE, Event::NONE, |state, m, core| {
            let _ = state.control(m, core, SUPERVISOR, service, operation);
            state.reschedule(m, core);
        });
    }

    /// From now on everybody does what he should: each vCPU that is not stopped must run again.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.restart(false);
        }
        // Whoever of the platform's waits for messages alone is to be called up, too.
        self.n.state.service_mut(PLATFORM).pending = 0;
        for slot in 0..THREADS {
            let thread = self.n.state.thread_mut(ThreadId::new(first(PLATFORM).number() + slot));
            if let ThreadState::Receiving { mask } = &mut thread.state {
                *mask |= 1;
            }
        }
        let entries = |n: &Node, v: VcpuId| n.state.vcpus[v.index()].counters.entries;
        let all = (0..self.vcpus).map(VcpuId);
        let mut waits: Vec<(VcpuId, u64)> = all.map(|v| (v, entries(&self.n, v))).collect();
        for step in 0..4000 {
            self.n.wake();
            let core = CoreId::from_index(step % usize::from(self.cores));
            waits.retain(|&(v, before)| {
                self.n.what(v) != ThreadState::Unused && entries(&self.n, v) == before
            });
            if waits.is_empty() {
                return;
            }
            if step % 64 == 0 {
                for &(vcpu, _) in &waits {
                    let halted = self.n.what(vcpu) == ThreadState::Halted;
                    self.n.interrupted(CORE, Event::NONE, |state, m, core| {
                        if halted {
                            state.kick(m, core, vcpu);
                        }
                        state.raise(m, core, PLATFORM, 1);
                        state.reschedule(m, core);
                    });
                }
            }
            self.n.m.now += self.n.state.turn;
            let Some(id) = self.n.current(core) else {
                self.n.timer(core);
                continue;
            };
            if self.n.guest(core).is_some() {
                self.n.timer(core);
                continue;
            }
            let parked = waits.iter().map(|&(v, _)| v).find(|&v| self.is_parked(v));
            let served = self.n.serves(core);
            let lender = self.n.state.thread(id).lender.map(|l| self.n.state.thread(l).token.0);
            if self.n.state.thread(id).service == PLATFORM
                && let Some(vcpu) = parked.or(served)
            {
                self.n.write(vcpu, |page| {
                    page.control = EntryControl { deadline: NEVER, ..EntryControl::default() }
                });
                let token = self.n.thread(vcpu).token.0;
                self.n.syscall(core, Syscall::Reply, |r| r.rdi = token);
            } else {
                self.n.syscall(core, Syscall::Receive, |r| {
                    (r.rdi, r.r13) = (lender.unwrap_or(0), RECEIVE_MESSAGES | 1);
                });
            }
        }
        for &(vcpu, _) in &waits {
            std::println!("{vcpu:?}: {:?} {:?}", self.n.what(vcpu), self.n.state.vcpus[vcpu.index()].pending);
        }
        panic!("these do not get on");
    }
}

fn random_run(seed: u64, cores: u8, vcpus: u8, steps: u32) {
    let mut run = Run::new(seed, cores, vcpus);
    for step in 0..steps {
        run.step();
        if run.random.random_range(0..60) == 0 {
            let give_up = run.chance(3);
            run.restart(give_up);
        }
        if step % 10_000 == 9_999 {
            run.settle();
        }
    }
    let Seen { starts, stops, moves, parks, late, restarts, window, maps } = run.seen;
    let counts = [starts, stops, parks, late, restarts, window, maps];
    assert!(counts.iter().all(|&count| count > 20) && (cores == 1 || moves > 20), "{:?}", run.seen);
    let sum = |count: fn(&crate::vcpu::VcpuCounters) -> u64| {
        run.n.state.vcpus.iter().map(|vcpu| count(&vcpu.counters)).sum::<u64>()
    };
    let counted =
        [sum(|c| c.exits), sum(|c| c.faults), sum(|c| c.halts), sum(|c| c.kicks), sum(|c| c.entries)];
    assert!(counted.iter().all(|&count| count > u64::from(steps) / 500), "{counted:?}");
    assert!(run.n.state.calls.stale > 0 && run.n.state.guest.as_ref().unwrap().generation > 100);
}

#[test]
fn random_runs_keep_every_invariant_and_lose_nothing() {
    for (seed, cores, vcpus) in [(1, 1, 1), (2, 1, 3), (3, 2, 2), (4, 2, 4), (5, 3, 4), (6, 4, 2), (7, 8, 16)]
    {
        random_run(seed, cores, vcpus, 100_000);
    }
}
