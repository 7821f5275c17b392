//! What services do with vCPUs: start, stop, kick, fetch the state of, and place them.

use core::mem::offset_of;

use ipc::abi::{Error, NEVER, Outcome, UserRegisters, VcpuActivity};
use ipc::vcpu::{Progress, VcpuPage};
use zerocopy::IntoBytes;

use super::{Pending, at};
use crate::context::{Extended, FpuState, Return, UserContext};
use crate::cpu::End;
use crate::ids::{CoreId, ThreadId, VcpuId};
use crate::machine::Machine;
use crate::state::State;
use crate::syscall::Request;
use crate::thread::{Maker, Queued, ThreadState};

impl State {
    /// Makes a vCPU come to its platform.
    pub(crate) fn kick<M: Machine>(&mut self, m: &mut M, core: CoreId, vcpu: VcpuId) {
        let this = &mut self.vcpus[vcpu.index()];
        let id = this.thread;
        let state = self.threads[id.index()].state;
        if state == ThreadState::Unused {
            return;
        }
        this.counters.kicks += 1;
        if this.pending == Pending::Nothing {
            this.pending = Pending::Kicked;
        }
        match state {
            ThreadState::Halted => {
                self.make_ready(m, core, id, 0);
                self.put_first(m, core, id);
            }
            ThreadState::Ready => match self.core_running(id) {
                Some(there) if there != core => m.reschedule(there.index()),
                Some(_) => {}
                None => self.put_first(m, core, id),
            },
            _ => {}
        }
    }

    /// A vCPU that is kicked while it waits for its core comes next there, and the turn of the one that runs is over:
    /// mostly that one waits for the other, by spinning, to take an interrupt.
    fn put_first<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId) {
        if self.threads[id.index()].links.queued == Queued::No {
            return;
        }
        let home = self.threads[id.index()].core;
        let there = &mut self.cores[home.index()];
        there.turn_end = 0;
        there.queue.remove(self.threads.places_mut(), id);
        there.queue.insert(self.threads.places_mut(), id, End::Front);
        if home != core {
            m.reschedule(home.index());
        }
    }

    /// [`ipc::abi::Syscall::VcpuStart`].
    pub(crate) fn vcpu_start(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let guest = self.guest_of(request, |guest| guest.platform)?;
        let (features, [iopm, msrpm], nested) = (guest.features, guest.permission_maps, guest.nested.root());
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        let this = &mut self.vcpus[vcpu.index()];
        let id = this.thread;
        // One that was stopped on another core may still be leaving it.
        if self.threads[id.index()].state != ThreadState::Unused || self.core_running(id).is_some() {
            return Err(Error::Again);
        }
        let this = &mut self.vcpus[vcpu.index()];
        this.hardware.reset(features, iopm, msrpm, nested.start());
        (this.extended, this.xcr0_chosen) = (Extended::INITIAL, false);
        (this.pending, this.intercepts, this.deadline) = (Pending::Started, 0, NEVER);
        self.threads[id.index()].context = UserContext {
            registers: UserRegisters::ZERO,
            resume: Return::Guest,
            control_block: m.physical_address(&this.hardware.vmcb).0,
            state_page: this.page.0,
            fpu: FpuState::INITIAL,
        };
        m.write(this.page, UserRegisters::ZERO.as_bytes());
        self.threads[id.index()].maker = Maker::Thread;
        self.make_ready(m, request.core, id, Outcome::Message as u64);
        self.reschedule(m, request.core);
        Ok(())
    }

    /// [`ipc::abi::Syscall::VcpuStop`].
    pub(crate) fn vcpu_stop(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        self.guest_of(request, |guest| guest.platform)?;
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        self.stop_vcpu(m, request.core, vcpu);
        self.reschedule(m, request.core);
        Ok(())
    }

    /// Ends a vCPU wherever it is.
    pub(crate) fn stop_vcpu<M: Machine>(&mut self, m: &mut M, core: CoreId, vcpu: VcpuId) {
        let id = self.vcpus[vcpu.index()].thread;
        self.stop_thread(m, core, id);
        self.vcpus[vcpu.index()].pending = Pending::Nothing;
        self.forget_extended(vcpu);
        self.forget_translations(vcpu);
    }

    /// [`ipc::abi::Syscall::VcpuKick`].
    pub(crate) fn vcpu_kick(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        self.guest_of(request, |guest| guest.platform)?;
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        self.kick(m, request.core, vcpu);
        self.reschedule(m, request.core);
        Ok(())
    }

    /// [`ipc::abi::Syscall::VcpuFetch`].
    pub(crate) fn vcpu_fetch(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        self.guest_of(request, |guest| guest.platform)?;
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        let this = &mut self.vcpus[vcpu.index()];
        let thread = &self.threads[this.thread.index()];
        if thread.maker != Maker::Exit || !matches!(thread.state, ThreadState::AwaitingReply { .. }) {
            return Err(Error::Again);
        }
        if self.cores[request.core.index()].extended == Some(vcpu) {
            // The core has the latest; it goes on having it.
            this.save_extended(m);
        }
        let state = this.hardware.system(this.extended.xcr0);
        m.write(at(this.page, offset_of!(VcpuPage, system)), state.as_bytes());
        Ok(())
    }

    /// [`ipc::abi::Syscall::VcpuPlace`].
    pub(crate) fn vcpu_place(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        self.guest_of(request, |guest| guest.placement)?;
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        let home = usize::try_from(request.registers.rdx).ok().filter(|&home| home < self.cores.len());
        let home = CoreId::from_index(home.ok_or(Error::NoSuchItem)?);
        // The scheduling context has the thread's number; what runs on it may be a service's thread.
        let id = self.vcpus[vcpu.index()].thread;
        let old = core::mem::replace(&mut self.threads[id.index()].core, home);
        if old == home {
            return Ok(());
        }
        let runs = self.threads[id.index()].runs;
        if self.threads[id.index()].links.queued == Queued::Yes {
            self.cores[old.index()].queue.remove(self.threads.places_mut(), id);
            self.enqueue(m, request.core, runs, End::Back);
        } else if let Some(there) = self.core_running(runs).filter(|&there| there != request.core) {
            // It moves when that core looks.
            m.reschedule(there.index());
        }
        self.reschedule(m, request.core);
        if self.threads[id.index()].core == home { Ok(()) } else { Err(Error::Again) }
    }

    /// [`ipc::abi::Syscall::GuestProgress`].
    pub(crate) fn guest_progress(&mut self, m: &mut impl Machine, request: &Request) -> Result<u64, Error> {
        self.guest_of(request, |guest| guest.memory)?;
        let vcpu = self.known_vcpu(request.registers.rsi)?;
        let this = &self.vcpus[vcpu.index()];
        let in_guest_mode = self.core_running(this.thread).is_some();
        Ok(Progress { fingerprint: this.fingerprint(m), in_guest_mode }.to_bits())
    }

    /// What a vCPU does.
    pub(crate) fn activity(&self, vcpu: VcpuId) -> VcpuActivity {
        match self.threads[self.vcpus[vcpu.index()].thread.index()].state {
            ThreadState::Unused => VcpuActivity::Stopped,
            ThreadState::Ready => VcpuActivity::Running,
            ThreadState::Halted => VcpuActivity::Halted,
            _ => VcpuActivity::AtExit,
        }
    }
}
