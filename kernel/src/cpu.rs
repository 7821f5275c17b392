//! A core as the kernel schedules it: what runs, what waits for it, when its timer is due.

use ipc::abi::{NEVER, PRIORITIES};

use crate::address::PhysAddr;
use crate::ids::{ThreadId, VcpuId};
use crate::thread::{Queued, Thread};

const _: () = assert!(PRIORITIES <= 16, "a run queue keeps a 16-bit set");

/// The scheduling contexts that are ready on one core, by priority, first come first served within one. The links
/// are in the threads.
#[derive(Clone, Copy, Debug)]
pub struct RunQueue {
    occupied: u16,
    heads: [Option<ThreadId>; PRIORITIES],
    tails: [Option<ThreadId>; PRIORITIES],
}

/// At which end of its priority a scheduling context is queued.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Before the others: it was interrupted and has not used up its turn.
    Front,
    /// After the others.
    Back,
}

impl RunQueue {
    /// An empty queue.
    #[must_use]
    pub const fn empty() -> Self {
        Self { occupied: 0, heads: [None; PRIORITIES], tails: [None; PRIORITIES] }
    }

    /// The most urgent priority that is queued.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a bit's number in 16 bits")]
    pub const fn best_priority(&self) -> Option<u8> {
        let first = self.occupied.trailing_zeros() as u8;
        if self.occupied == 0 { None } else { Some(first) }
    }

    /// The first of the most urgent.
    #[must_use]
    pub fn first(&self) -> Option<ThreadId> {
        self.best_priority().and_then(|p| self.heads[usize::from(p)])
    }

    /// Queues a scheduling context that is not queued.
    pub fn insert(&mut self, threads: &mut [Thread], id: ThreadId, end: End) {
        let priority = usize::from(threads[id.index()].priority) % PRIORITIES;
        debug_assert_eq!(threads[id.index()].links.queued, Queued::No);
        let (head, tail) = (&mut self.heads[priority], &mut self.tails[priority]);
        let links = &mut threads[id.index()].links;
        links.queued = Queued::Yes;
        match end {
            End::Front => {
                (links.previous, links.next) = (None, *head);
                match *head {
                    Some(old) => threads[old.index()].links.previous = Some(id),
                    None => *tail = Some(id),
                }
                *head = Some(id);
            }
            End::Back => {
                (links.previous, links.next) = (*tail, None);
                match *tail {
                    Some(old) => threads[old.index()].links.next = Some(id),
                    None => *head = Some(id),
                }
                *tail = Some(id);
            }
        }
        self.occupied |= 1 << priority;
    }

    /// Takes a scheduling context out, if it is queued.
    pub fn remove(&mut self, threads: &mut [Thread], id: ThreadId) {
        let priority = usize::from(threads[id.index()].priority) % PRIORITIES;
        let links = core::mem::take(&mut threads[id.index()].links);
        if links.queued == Queued::No {
            return;
        }
        match links.previous {
            Some(previous) => threads[previous.index()].links.next = links.next,
            None => self.heads[priority] = links.next,
        }
        match links.next {
            Some(next) => threads[next.index()].links.previous = links.previous,
            None => self.tails[priority] = links.previous,
        }
        if self.heads[priority].is_none() {
            self.occupied &= !(1 << priority);
        }
    }
}

/// One core.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    /// The thread that runs; `None` when idle.
    pub current: Option<ThreadId>,
    /// The root of the page tables that are loaded; zero while these are the kernel's own.
    pub space: PhysAddr,
    /// What is ready.
    pub queue: RunQueue,
    /// The vCPU whose [`crate::context::Extended`] state this core has.
    pub extended: Option<VcpuId>,
    /// The vCPU whose translations this core's TLB may have, and the generation of guest memory they are of.
    pub translations: Option<(VcpuId, u64)>,
    /// The generation of guest memory that the window was last flushed at.
    pub window_generation: u64,
    /// Since when time was not charged.
    pub since: u64,
    /// `switches` then.
    pub switches_since: u64,
    /// When the current turn of round robin ends.
    pub turn_end: u64,
    /// Nothing on this core is due before this.
    pub next_deadline: u64,
    /// What the timer is set to.
    pub armed: u64,
    /// Ticks busy.
    pub busy: u64,
    /// Ticks idle.
    pub idle: u64,
    /// Thread switches.
    pub switches: u64,
    /// Interrupts taken.
    pub interrupts: u64,
}

impl Core {
    /// A core that idles.
    #[must_use]
    pub const fn idle() -> Self {
        Self {
            current: None,
            space: PhysAddr(0),
            queue: RunQueue::empty(),
            extended: None,
            translations: None,
            window_generation: 0,
            since: 0,
            switches_since: 0,
            turn_end: 0,
            next_deadline: NEVER,
            armed: NEVER,
            busy: 0,
            idle: 0,
            switches: 0,
            interrupts: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::VecDeque;
    use std::vec::Vec;

    use rand::Rng;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    use super::*;
    use ipc::abi::MAX_THREADS;

    #[test]
    fn a_queue_behaves_as_sixteen_deques() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut threads: Vec<Thread> =
            (0..MAX_THREADS).map(|i| Thread::unused(ThreadId::from_index(i))).collect();
        for thread in &mut threads {
            thread.priority = random.random_range(0..16);
        }
        let mut queue = RunQueue::empty();
        let mut model: Vec<VecDeque<ThreadId>> = (0..16).map(|_| VecDeque::new()).collect();
        for _ in 0..100_000 {
            let id = ThreadId::from_index(random.random_range(0..MAX_THREADS));
            let line = &mut model[usize::from(threads[id.index()].priority)];
            if threads[id.index()].links.queued == Queued::Yes || random.random_bool(0.1) {
                line.retain(|&other| other != id);
                queue.remove(&mut threads, id);
            } else if random.random_bool(0.5) {
                line.push_front(id);
                queue.insert(&mut threads, id, End::Front);
            } else {
                line.push_back(id);
                queue.insert(&mut threads, id, End::Back);
            }
            assert_eq!(queue.first(), model.iter().find_map(|line| line.front().copied()));
        }
    }
}
