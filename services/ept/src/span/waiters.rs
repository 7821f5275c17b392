//! Who waits for a page, and who has not used the one that it got yet.

use ipc::abi::Token;
use ipc::vcpu::MAX_VCPUS;

use super::links::{Links, Times};
use crate::coherence::environment::Waiter;

/// Where a waiter is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It needs nothing.
    Idle,
    /// Its fault is not answered.
    Waiting,
    /// It was answered at this time, and may not have used the page yet. `in_guest_mode` says whether the vCPU was seen there.
    Granted { at: u64, in_guest_mode: bool },
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    state: State,
    token: Token,
    /// Of the registers at its last fault.
    fingerprint: u32,
    /// Its faults in a row for which there was no frame.
    starved: u16,
}

/// The vCPUs of this node, and after them its platform's window.
#[derive(Debug)]
pub(super) struct Waiters {
    waits: [Wait; MAX_VCPUS + 1],
    vcpus: u8,
}

impl Waiters {
    pub fn new(vcpus: u8) -> Self {
        let idle = Wait { state: State::Idle, token: Token::NOBODY, fingerprint: 0, starved: 0 };
        Self { waits: [idle; MAX_VCPUS + 1], vcpus }
    }

    /// The vCPU of this number; `None` when there is none.
    pub fn vcpu(&self, number: u64) -> Option<Waiter> {
        u8::try_from(number).ok().filter(|number| *number < self.vcpus).map(Waiter)
    }

    /// The window.
    pub const fn window(&self) -> Waiter {
        Waiter(self.vcpus)
    }

    fn wait(&mut self, waiter: Waiter) -> &mut Wait {
        &mut self.waits[usize::from(waiter.0.min(self.vcpus))]
    }

    /// A waiter faults with these registers: whether it has used the page of its last fault.
    pub fn has_gone_on(&mut self, waiter: Waiter, fingerprint: u32, now: u64, times: &Times) -> bool {
        let is_window = waiter == self.window();
        let wait = self.wait(waiter);
        match wait.state {
            State::Idle | State::Waiting => false,
            State::Granted { at, .. } if is_window => now >= at.saturating_add(times.window),
            State::Granted { .. } => wait.fingerprint != fingerprint,
        }
    }

    /// A waiter's fault begins.
    pub fn begin(&mut self, waiter: Waiter, token: Token, fingerprint: u32) {
        let wait = self.wait(waiter);
        *wait = Wait { state: State::Waiting, token, fingerprint, starved: wait.starved };
    }

    /// A waiter's fault is answered; whom the answer goes to.
    pub fn end(&mut self, waiter: Waiter, now: u64) -> Token {
        let wait = self.wait(waiter);
        wait.state = State::Granted { at: now, in_guest_mode: false };
        core::mem::replace(&mut wait.token, Token::NOBODY)
    }

    /// There was no frame for a waiter's fault, or there was: how many of its faults in a row had none.
    pub fn starved(&mut self, waiter: Waiter, is_starved: bool) -> u16 {
        let wait = self.wait(waiter);
        wait.starved = if is_starved { wait.starved.saturating_add(1) } else { 0 };
        wait.starved
    }

    /// Those of `some` (a bit for each) that have used the page that they were granted, as far as can be seen now.
    ///
    /// A vCPU whose registers are others has. One that is in guest mode at two looks has too: the kernel does not see its
    /// registers then, but what it got the page for is the first thing that it does there.
    pub fn gone_on<L: Links>(&mut self, some: u128, links: &mut L, now: u64, times: &Times) -> u128 {
        let mut gone = 0;
        for number in 0..=self.vcpus {
            let wait = &mut self.waits[usize::from(number)];
            let State::Granted { at, in_guest_mode } = wait.state else { continue };
            if some >> number & 1 == 0 {
                continue;
            }
            let has_gone_on = if number == self.vcpus {
                now >= at.saturating_add(times.window)
            } else if let Some(progress) = links.progress(number) {
                wait.state = State::Granted { at, in_guest_mode: progress.in_guest_mode };
                progress.fingerprint != wait.fingerprint || in_guest_mode && progress.in_guest_mode
            } else {
                false
            };
            if has_gone_on {
                wait.state = State::Idle;
                gone |= 1 << number;
            }
        }
        gone
    }

    /// The tokens of all that wait; nobody does after that.
    pub fn take_all(&mut self) -> impl Iterator<Item = Token> {
        self.waits.iter_mut().filter(|wait| wait.state == State::Waiting).map(|wait| {
            wait.state = State::Idle;
            core::mem::replace(&mut wait.token, Token::NOBODY)
        })
    }
}
