//! A model of the kernel's cores and vCPUs, and the scheduler on top of it.
//!
//! It has what makes the real counters hard to read: run time is charged at the end of a turn, steal at the end of a wait,
//! and services take the cores now and then. A step is a millisecond, a tick a microsecond.

mod tests;

use core::cell::RefCell;
use std::collections::VecDeque;
use std::vec::Vec;

use ipc::abi::{Error, Inspect, VcpuActivity};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rt::inspector::Inspector;
use rt::time::Clock;

use crate::placement::Move;
use crate::{Placer, Scheduler};

const STEP: u64 = 1_000;
const TURN: u64 = 10_000;

/// What a vCPU does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// It never waits.
    Always,
    /// Turns of running and of waiting, each of up to twice so many milliseconds.
    Phases { run: u64, wait: u64 },
}

#[derive(Debug)]
struct Vcpu {
    work: Work,
    home: usize,
    state: State,
    /// Run time as charged, and the time that is not charged yet.
    run: u64,
    open: u64,
    steal: u64,
    halts: u64,
    moves: Vec<(u64, usize)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Halted { until: u64 },
    Queued { since: u64, left: u64 },
    Runs { left: u64 },
}

#[derive(Debug, Default)]
struct Core {
    queue: VecDeque<usize>,
    current: Option<usize>,
    turn_end: u64,
    busy: u64,
    /// Of how many steps in a thousand services take one.
    services: u64,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    now: u64,
    vcpus: Vec<Vcpu>,
    cores: Vec<Core>,
    random: ChaCha8Rng,
}

impl Node {
    fn wake(&mut self, vcpu: usize) {
        let left = match self.vcpus[vcpu].work {
            Work::Always => u64::MAX,
            Work::Phases { run, .. } => self.random.random_range(1..=2 * run) * 1_000,
        };
        self.vcpus[vcpu].state = State::Queued { since: self.now, left };
        self.cores[self.vcpus[vcpu].home].queue.push_back(vcpu);
    }

    fn leave(&mut self, core: usize) -> Option<(usize, u64)> {
        let vcpu = self.cores[core].current.take()?;
        let this = &mut self.vcpus[vcpu];
        this.run += core::mem::take(&mut this.open);
        let State::Runs { left } = this.state else { panic!("{this:?} is current") };
        this.state = State::Queued { since: self.now, left };
        Some((vcpu, left))
    }

    fn step(&mut self) {
        for vcpu in 0..self.vcpus.len() {
            if matches!(self.vcpus[vcpu].state, State::Halted { until } if until <= self.now) {
                self.wake(vcpu);
            }
        }
        for core in 0..self.cores.len() {
            if self.random.random_range(0..1_000) < self.cores[core].services {
                if let Some((vcpu, _)) = self.leave(core) {
                    self.cores[core].queue.push_front(vcpu);
                }
                self.cores[core].busy += STEP;
            } else {
                self.run(core);
            }
        }
        self.now += STEP;
    }

    fn run(&mut self, core: usize) {
        if self.now >= self.cores[core].turn_end
            && let Some((vcpu, _)) = self.leave(core)
        {
            self.cores[core].queue.push_back(vcpu);
        }
        if self.cores[core].current.is_none()
            && let Some(vcpu) = self.cores[core].queue.pop_front()
        {
            let this = &mut self.vcpus[vcpu];
            let State::Queued { since, left } = this.state else { panic!("{this:?} is queued") };
            this.steal += self.now - since;
            this.state = State::Runs { left };
            self.cores[core].current = Some(vcpu);
            self.cores[core].turn_end = self.now + TURN;
        }
        let Some(vcpu) = self.cores[core].current else { return };
        self.cores[core].busy += STEP;
        let this = &mut self.vcpus[vcpu];
        this.open += STEP;
        let State::Runs { left } = &mut this.state else { panic!("{this:?} is current") };
        *left -= STEP;
        if *left == 0 {
            self.leave(core);
            let Work::Phases { wait, .. } = self.vcpus[vcpu].work else { panic!("it never waits") };
            let until = self.now + STEP + self.random.random_range(1..=2 * wait) * 1_000;
            self.vcpus[vcpu].state = State::Halted { until };
            self.vcpus[vcpu].halts += 1;
        }
    }

    fn place(&mut self, Move { vcpu, core }: Move) {
        let old = core::mem::replace(&mut self.vcpus[vcpu].home, core);
        assert_ne!(old, core, "a move to where it is");
        self.vcpus[vcpu].moves.push((self.now, core));
        if self.cores[old].current == Some(vcpu) {
            self.leave(old);
        }
        if let State::Queued { since, .. } = &mut self.vcpus[vcpu].state {
            *since = self.now;
            self.cores[old].queue.retain(|&queued| queued != vcpu);
            self.cores[core].queue.push_back(vcpu);
        }
    }
}

/// The node as the scheduler sees it.
#[derive(Debug)]
pub struct View<'a>(&'a RefCell<Node>);

impl Inspector for View<'_> {
    fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
        let node = self.0.borrow();
        let index = usize::try_from(index).map_err(|_| Error::NoSuchItem)?;
        if item == Inspect::Core {
            let core = node.cores.get(index).ok_or(Error::NoSuchItem)?;
            return Ok([core.busy, node.now - core.busy, 0, 0]);
        }
        let vcpu = node.vcpus.get(index).ok_or(Error::NoSuchItem)?;
        let activity = match vcpu.state {
            State::Halted { .. } => VcpuActivity::Halted,
            _ => VcpuActivity::Running,
        };
        match item {
            Inspect::Vcpu => {
                Ok([vcpu.run, 0, 0, vcpu.home as u64 | (activity as u64) << 16 | vcpu.halts << 32])
            }
            Inspect::VcpuTime => Ok([vcpu.steal, 0, 0, 0]),
            _ => Err(Error::Refused),
        }
    }
}

impl Placer for View<'_> {
    fn place(&mut self, to: Move) {
        self.0.borrow_mut().place(to);
    }
}

/// What a stretch of time brought.
#[derive(Debug)]
pub struct Outcome {
    /// What part of the time each vCPU ran, in percent.
    pub percent: Vec<f64>,
    /// Moves of each vCPU: when, and where to.
    pub moves: Vec<Vec<(u64, usize)>>,
    /// The scheduler's looks.
    pub looks: usize,
    seconds: f64,
}

impl Outcome {
    /// Jain's index of fairness: 1 when all had the same, 1 of n when one had all.
    pub fn fairness(&self) -> f64 {
        let sum: f64 = self.percent.iter().sum();
        let squares: f64 = self.percent.iter().map(|percent| percent * percent).sum();
        sum * sum / (self.percent.len() as f64 * squares)
    }

    /// Moves in a second.
    pub fn moves_per_second(&self) -> f64 {
        self.moves.iter().map(Vec::len).sum::<usize>() as f64 / self.seconds
    }

    /// The work of all, in percent of one core.
    pub fn work(&self) -> f64 {
        self.percent.iter().sum()
    }
}

/// Runs a node: `settle` seconds first that do not count, then so many that do.
pub struct Run {
    pub works: Vec<Work>,
    /// Each core's services, in permille of its time.
    pub services: Vec<u64>,
    /// Where the vCPUs begin; none for one after another, as the kernel has it.
    pub homes: Vec<usize>,
    pub seed: u64,
    pub settle: u64,
    pub seconds: u64,
}

impl Run {
    /// vCPUs of some works on cores that have nothing else to do.
    pub fn new(works: impl IntoIterator<Item = Work>, cores: usize) -> Self {
        let works = works.into_iter().collect();
        Self { works, services: [0].repeat(cores), homes: Vec::new(), seed: 1, settle: 3, seconds: 10 }
    }

    /// With the scheduler, or with vCPUs that stay where they begin.
    pub fn outcome(&self, placed: Placed) -> Outcome {
        let cores = self.services.len();
        let home = |vcpu| self.homes.get(vcpu).copied().unwrap_or(vcpu % cores);
        let vcpu = |(vcpu, &work)| Vcpu {
            work,
            home: home(vcpu),
            state: State::Halted { until: 0 },
            run: 0,
            open: 0,
            steal: 0,
            halts: 0,
            moves: Vec::new(),
        };
        let node = RefCell::new(Node {
            now: 0,
            vcpus: self.works.iter().enumerate().map(vcpu).collect(),
            cores: self.services.iter().map(|&services| Core { services, ..Core::default() }).collect(),
            random: ChaCha8Rng::seed_from_u64(self.seed),
        });
        let mut scheduler = Scheduler::new(View(&node), Some(View(&node)), Clock::new(1_000_000));
        let mut looks = 0;
        let mut begin = Vec::new();
        for step in 0..(self.settle + self.seconds) * 1_000 {
            if step == self.settle * 1_000 {
                looks = 0;
                let vcpus = &mut node.borrow_mut().vcpus;
                begin = vcpus.iter().map(|vcpu| vcpu.run + vcpu.open).collect();
                vcpus.iter_mut().for_each(|vcpu| vcpu.moves.clear());
            }
            let now = node.borrow().now;
            if placed == Placed::ByScheduler && now >= scheduler.next_look() {
                scheduler.look(now);
                looks += 1;
            }
            node.borrow_mut().step();
        }
        drop(scheduler);
        let node = node.into_inner();
        let ran = node.vcpus.iter().zip(begin).map(|(vcpu, begin)| vcpu.run + vcpu.open - begin);
        Outcome {
            percent: ran.map(|ran| ran as f64 / (self.seconds as f64 * 10_000.0)).collect(),
            moves: node.vcpus.into_iter().map(|vcpu| vcpu.moves).collect(),
            looks,
            seconds: self.seconds as f64,
        }
    }
}

/// Who places the vCPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placed {
    /// The scheduler.
    ByScheduler,
    /// Nobody, after the start.
    Never,
}
