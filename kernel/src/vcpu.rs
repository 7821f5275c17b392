//! Virtual processors.
//!
//! A vCPU is a thread whose way out of the kernel is guest mode. Its exits, and its misses in guest memory, are calls that
//! the kernel makes for it ([`Maker`]): on its time, over the way that every call takes, and it goes on when the reply
//! comes. What it has to tell first, before it may run (that it was kicked, say), is [`Vcpu::pending`]; [`State::settle`]
//! makes a call of that.
//!
//! The registers that `VMRUN` does not switch are of three kinds: the general ones are in the state page whenever the guest
//! does not run, so what its service writes there counts at the next entry, whatever that is; the FPU's and SSE's go to the
//! thread's context at each exit; the rest ([`Extended`]) stays in the core while only services run there, and is saved
//! before another scheduling context runs or the core idles. So a vCPU that does not run is whole in memory.

mod control;

use core::mem::offset_of;

use ipc::abi::{Label, NEVER, PAGE_SIZE, ServiceState, UserRegisters};
use ipc::vcpu::{
    DIRTY_SYSTEM, EntryControl, ExitReason, FAULT_OF_WINDOW, GUEST_FAULT, HALT, RESUME_AS_BEFORE,
    SystemState, VcpuPage, exit_label,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::address::{GuestPhysAddr, PhysAddr};
use crate::context::{Extended, FpuState};
use crate::cpu::{Core, End};
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::machine::Machine;
use crate::service::Serving;
use crate::state::State;
use crate::svm::{Exit, Svm};
use crate::thread::{Maker, ThreadState};

/// What a vCPU tells its platform before it may run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// [`ExitReason::Started`].
    Started,
    /// [`ExitReason::Kicked`].
    Kicked,
    /// [`ExitReason::NmiWindow`].
    NmiWindow,
    /// [`ExitReason::MemoryLost`], with the address.
    MemoryLost(u64),
}

/// Counters of a vCPU. Times are in TSC ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct VcpuCounters {
    /// Exits that became calls to the platform.
    pub exits: u64,
    /// Misses that became calls to the memory's owner.
    pub faults: u64,
    /// Halts.
    pub halts: u64,
    /// Kicks.
    pub kicks: u64,
    /// Entries to guest mode.
    pub entries: u64,
    /// Time it was ready and another ran.
    pub steal: u64,
}

/// A virtual processor.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Vcpu {
    /// The processor's half. The first field, because it begins with a block that needs a page of its own.
    pub hardware: Svm,
    /// State that stays in the core between exits.
    pub extended: Extended,
    /// Its service chose another XCR0 than the core may have.
    pub xcr0_chosen: bool,
    /// Its thread.
    pub thread: ThreadId,
    /// Its state page.
    pub page: PhysAddr,
    /// What it must tell first.
    pub pending: Pending,
    /// As in [`EntryControl::intercepts`].
    pub intercepts: u32,
    /// As in [`EntryControl::deadline`], of the last one.
    pub deadline: u64,
    /// Since when it is ready and does not run.
    pub ready_since: u64,
    /// Counters.
    pub counters: VcpuCounters,
}

const _: () = assert!(offset_of!(Vcpu, hardware) == 0 && offset_of!(Svm, vmcb) == 0);
const _: () = assert!(size_of::<Vcpu>() == 2 * PAGE_SIZE);

impl Vcpu {
    /// One that is not there.
    #[must_use]
    pub const fn absent() -> Self {
        Self {
            hardware: Svm::new(),
            extended: Extended::INITIAL,
            xcr0_chosen: false,
            thread: ThreadId::new(0),
            page: PhysAddr(0),
            pending: Pending::Nothing,
            intercepts: 0,
            deadline: NEVER,
            ready_since: 0,
            counters: VcpuCounters { exits: 0, faults: 0, halts: 0, kicks: 0, entries: 0, steal: 0 },
        }
    }

    /// A hash of its general registers and RIP, when it is not in guest mode.
    pub(crate) fn fingerprint(&self, m: &impl Machine) -> u32 {
        const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut registers = UserRegisters::ZERO;
        m.read(self.page, registers.as_mut_bytes());
        let [(_, rax), (_, rsp), (_, rip), _] = self.hardware.registers();
        let UserRegisters { rbx, rcx, rdx, rsi, rdi, rbp, .. } = registers;
        let UserRegisters { r8, r9, r10, r11, r12, r13, r14, r15, .. } = registers;
        let all = [rip, rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15];
        let hash = all
            .into_iter()
            .fold(0, |hash: u64, register| (hash.rotate_left(29) ^ register).wrapping_mul(SCATTER));
        u32::try_from(hash >> 32).unwrap_or(0)
    }

    /// Saves what it left in this core. XCR0 is what the guest made of it, unless its service chose another since.
    fn save_extended(&mut self, m: &mut impl Machine) {
        let xcr0 = self.extended.xcr0;
        m.save_extended(&mut self.extended);
        if self.xcr0_chosen {
            self.extended.xcr0 = xcr0;
        }
    }
}

/// Where in a state page.
const fn at(page: PhysAddr, offset: usize) -> PhysAddr {
    PhysAddr(page.0 + offset as u64)
}

impl State {
    /// The vCPU on this core left guest mode.
    pub fn guest_exit<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        let Some((id, vcpu)) = self.current_vcpu(core) else { return };
        // Another core may have stopped it.
        if self.threads[id.index()].state != ThreadState::Ready {
            self.reschedule(m, core);
            return;
        }
        let (reason, words) = match self.vcpus[vcpu.index()].hardware.exit() {
            Exit::Nothing => return,
            Exit::Pause => {
                self.charge(m.now(), core);
                self.cores[core.index()].current = None;
                self.enqueue(m, core, id, End::Back);
                return self.reschedule(m, core);
            }
            Exit::MachineCheck => return m.machine_check(),
            Exit::Memory { address, access } => {
                let page = address / PAGE_SIZE as u64;
                if self.guest.as_ref().is_some_and(|guest| guest.has_pages(page, 1)) {
                    return self.fault_call(m, core, id, GuestPhysAddr(address), access, Some(vcpu));
                }
                (ExitReason::Memory, [address, access, 0])
            }
            Exit::Platform(reason, words) => (reason, words),
        };
        self.exit_call(m, core, vcpu, reason, words);
    }

    fn current_vcpu(&self, core: CoreId) -> Option<(ThreadId, VcpuId)> {
        let id = self.cores[core.index()].current?;
        Some((id, self.threads[id.index()].vcpu?))
    }

    /// The last step before a core leaves the kernel: a vCPU that must tell something calls, and one that may run is made
    /// ready to; whoever runs in the platform's service sees no stale page in the window.
    #[inline(always)]
    pub fn settle<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        if self.guest.is_none() {
            return;
        }
        while let Some((_, vcpu)) = self.current_vcpu(core) {
            if self.vcpus[vcpu.index()].pending == Pending::Nothing {
                return self.enter_guest(m, core, vcpu);
            }
            self.tell(m, core, vcpu);
        }
        let generation = self.guest.as_ref().map_or(0, |guest| guest.generation);
        let this = &mut self.cores[core.index()];
        if this.current.is_some() && this.window_generation != generation {
            this.window_generation = generation;
            m.switch_address_space(this.space);
        }
    }

    /// The vCPU that is current here tells what it has to.
    #[cold]
    fn tell<M: Machine>(&mut self, m: &mut M, core: CoreId, vcpu: VcpuId) {
        let pending = &mut self.vcpus[vcpu.index()].pending;
        let (reason, word) = match core::mem::replace(pending, Pending::Nothing) {
            Pending::Nothing => return,
            Pending::Started => (ExitReason::Started, 0),
            Pending::Kicked => (ExitReason::Kicked, 0),
            Pending::NmiWindow => (ExitReason::NmiWindow, 0),
            Pending::MemoryLost(address) => (ExitReason::MemoryLost, address),
        };
        self.exit_call(m, core, vcpu, reason, [word, 0, 0]);
    }

    /// Makes everything ready for the way out to guest mode.
    #[inline(always)]
    fn enter_guest<M: Machine>(&mut self, m: &mut M, core: CoreId, vcpu: VcpuId) {
        let generation = self.guest.as_ref().map_or(0, |guest| guest.generation);
        let (this, here) = (&mut self.vcpus[vcpu.index()], &mut self.cores[core.index()]);
        if here.extended != Some(vcpu) || this.xcr0_chosen {
            // What another left was saved when its scheduling context left the core.
            if here.extended.is_some() {
                this.save_extended(m);
            }
            (here.extended, this.xcr0_chosen) = (Some(vcpu), false);
            m.load_extended(&this.extended);
        }
        let known = here.translations == Some((vcpu, generation));
        if !known {
            // What others have of it is wrong once it has run here.
            self.forget_translations(vcpu);
            self.cores[core.index()].translations = Some((vcpu, generation));
        }
        let this = &mut self.vcpus[vcpu.index()];
        this.hardware.enter(!known);
        this.counters.entries += 1;
        m.begin_guest();
    }

    fn forget_translations(&mut self, vcpu: VcpuId) {
        let of = |core: &&mut Core| core.translations.is_some_and(|(id, _)| id == vcpu);
        self.cores.iter_mut().filter(of).for_each(|core| core.translations = None);
    }

    /// Makes what a vCPU left in a core worth nothing.
    fn forget_extended(&mut self, vcpu: VcpuId) {
        let of = |core: &&mut Core| core.extended == Some(vcpu);
        self.cores.iter_mut().filter(of).for_each(|core| core.extended = None);
    }

    /// Saves what a vCPU left in this core, when its scheduling context is not the one that goes on here.
    pub(crate) fn save_extended<M: Machine>(&mut self, m: &mut M, core: CoreId) {
        let here = &mut self.cores[core.index()];
        let Some(owner) = here.extended else { return };
        let context = self.vcpus[owner.index()].thread;
        if here.current.is_none_or(|id| self.threads[id.index()].on != context) {
            here.extended = None;
            self.vcpus[owner.index()].save_extended(m);
        }
    }

    /// The vCPU that is current here calls its platform.
    #[inline(always)]
    fn exit_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        vcpu: VcpuId,
        reason: ExitReason,
        words: [u64; 3],
    ) {
        let Some(platform) = self.guest.as_ref().map(|guest| guest.platform) else { return };
        let Vcpu { hardware, thread: id, page, intercepts, counters, extended, .. } =
            &mut self.vcpus[vcpu.index()];
        counters.exits += 1;
        // One that the node's interrupt ended has not been looked at.
        hardware.complete();
        let thread = &mut self.threads[id.index()];
        thread.deadline = NEVER;
        for (place, value) in hardware.registers() {
            m.write_u64(at(*page, place), value);
        }
        m.write(at(*page, offset_of!(VcpuPage, control)), hardware.control(*intercepts).as_bytes());
        m.write(at(*page, offset_of!(VcpuPage, mode)), hardware.mode().as_bytes());
        let (length, fetched, bytes) = hardware.instruction();
        m.write_u64(at(*page, offset_of!(VcpuPage, instruction_length)), length);
        if fetched != 0 {
            m.write(at(*page, offset_of!(VcpuPage, instruction)), &bytes);
        }
        m.write(at(*page, offset_of!(VcpuPage, instruction_bytes)), &[fetched]);
        if reason == ExitReason::Started {
            let state = hardware.system(extended.xcr0);
            m.write(at(*page, offset_of!(VcpuPage, system)), state.as_bytes());
        }
        let [first, second, third] = words;
        let id = *id;
        let words = [u64::from(vcpu.0), first, second, third];
        self.kernel_call(m, core, id, platform, Maker::Exit, exit_label(reason), words);
    }

    /// The thread that is current here, a vCPU's or one of the platform's service, asks for a page of guest memory.
    pub(crate) fn fault_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        address: GuestPhysAddr,
        access: u64,
        vcpu: Option<VcpuId>,
    ) {
        let Some((owner, spans)) = self.guest.as_ref().map(|guest| (guest.memory, guest.spans)) else {
            return;
        };
        let mut words = [address.0, access, FAULT_OF_WINDOW, 0];
        if let Some(vcpu) = vcpu {
            let this = &mut self.vcpus[vcpu.index()];
            this.counters.faults += 1;
            (words[2], words[3]) = (u64::from(vcpu.0), this.hardware.vmcb.save.rip);
            if spans {
                words[1] |= u64::from(this.fingerprint(m)) << 32;
            }
        }
        self.kernel_call(m, core, id, owner, Maker::Fault, Label::new(GUEST_FAULT, 0), words);
    }

    /// A call of the kernel's for the current thread of this core. The server runs now if it can, on the caller's time.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a whole message")]
    fn kernel_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        target: ServiceId,
        maker: Maker,
        label: Label,
        words: [u64; 4],
    ) {
        let caller = &mut self.threads[id.index()];
        caller.token = caller.token.next();
        (caller.maker, caller.kernel_message) = (maker, (label, words));
        let server = &mut self.services[target.index()];
        if server.receivers != 0 && server.serving == Serving::OnCallersTime {
            let thread = server.take_receiver();
            self.threads[id.index()].state = ThreadState::AwaitingReply { server: target };
            self.threads[id.index()].activation = 0;
            self.lend(id, thread);
            self.deliver(m, id, thread);
            let root = self.threads[thread.index()].root;
            self.pass_on(m, core, thread, root);
        } else if server.state == ServiceState::Down {
            self.threads[id.index()].maker = Maker::Thread;
            self.memory_lost(m, core, id, words[0]);
            self.reschedule(m, core);
        } else {
            self.queue_call(m, core, id, target);
            self.reschedule(m, core);
        }
    }

    /// Goes on with another thread on the same scheduling context, whose service may be the same.
    fn pass_on<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, root: PhysAddr) {
        if self.cores[core.index()].space == root {
            let this = &mut self.cores[core.index()];
            this.current = Some(id);
            this.switches += 1;
        } else {
            self.hand_over(m, core, id, root);
        }
    }

    /// The fast way of a receive, when the call that it replies to was the kernel's: nothing has changed when `None`.
    #[cold]
    #[inline(never)]
    pub(crate) fn fast_resume<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        caller: ThreadId,
    ) -> Option<ThreadId> {
        let server = &self.threads[id.index()];
        let registers = &server.context.registers;
        let (mask, deadline, label) = (registers.r13, registers.r12, Label(registers.rsi));
        let (slot_bit, service) = (server.slot_bit, server.service);
        let waiting = &self.threads[caller.index()];
        let as_before = waiting.maker == Maker::Exit && label.method() == RESUME_AS_BEFORE;
        if label.method() != 0 && !as_before {
            return None;
        }
        let vcpu = waiting.vcpu;
        if let Some(vcpu) = vcpu {
            let this = &self.vcpus[vcpu.index()];
            let activity = offset_of!(VcpuPage, control) + offset_of!(EntryControl, activity);
            let halts =
                !as_before && waiting.maker == Maker::Exit && m.read_u32(at(this.page, activity)) & HALT != 0;
            let over = self.cores[core.index()].turn_end == 0;
            if halts || over || this.pending != Pending::Nothing {
                return None;
            }
        }
        self.services[service.index()].receivers |= slot_bit;
        let [to, from] = self.threads.pair_mut(caller.index(), id.index())?;
        from.state = ThreadState::Receiving { mask };
        from.activation = 0;
        from.lender = None;
        let context = core::mem::replace(&mut from.on, id);
        to.lent_to = None;
        let root = to.root;
        self.threads[context.index()].runs = caller;
        self.watch(m, core, id, deadline);
        self.pass_on(m, core, caller, root);
        self.end_kernel_call(m, core, caller, label);
        if self.threads[caller.index()].state != ThreadState::Ready {
            // The page says otherwise now: another thread of the service writes to it.
            self.leave_core(m.now(), core);
            self.reschedule(m, core);
        }
        self.settle(m, core);
        self.cores[core.index()].current
    }

    /// The reply to a call of the kernel's came. The caller is ready again, or halted.
    #[inline(always)]
    pub(crate) fn end_kernel_call<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        label: Label,
    ) {
        let thread = &mut self.threads[id.index()];
        let maker = core::mem::replace(&mut thread.maker, Maker::Thread);
        let (vcpu, (_, [address, ..])) = (thread.vcpu, thread.kernel_message);
        let lost = maker == Maker::Fault && label.method() != 0;
        if lost && vcpu.is_none() {
            // The end of its service: it does not become ready.
            return self.memory_lost(m, core, id, address);
        }
        thread.state = ThreadState::Ready;
        match vcpu {
            Some(vcpu) if maker == Maker::Exit && label.method() == RESUME_AS_BEFORE => {
                let Vcpu { hardware, page, deadline, .. } = &mut self.vcpus[vcpu.index()];
                hardware.load_registers(|place| m.read_u64(at(*page, place)));
                hardware.end_shadow();
                let deadline = *deadline;
                self.watch(m, core, id, deadline);
            }
            Some(vcpu) if maker == Maker::Exit => self.load_page(m, core, id, vcpu),
            Some(_) if lost => self.memory_lost(m, core, id, address),
            _ => {}
        }
    }

    /// Takes over what the platform left in a vCPU's state page. All of it is a claim: what the processor does not check
    /// at `VMRUN` is the guest's alone.
    #[inline(always)]
    fn load_page<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, vcpu: VcpuId) {
        let Vcpu { hardware, page, pending, intercepts, deadline, counters, extended, xcr0_chosen, .. } =
            &mut self.vcpus[vcpu.index()];
        let thread = &mut self.threads[id.index()];
        hardware.load_registers(|place| m.read_u64(at(*page, place)));
        let mut control = EntryControl::new_zeroed();
        m.read(at(*page, offset_of!(VcpuPage, control)), control.as_mut_bytes());
        hardware.load_control(&control);
        (*intercepts, *deadline) = (control.intercepts, control.deadline);
        let mut reset = false;
        if control.dirty & DIRTY_SYSTEM != 0 {
            let mut state = SystemState::new_zeroed();
            m.read(at(*page, offset_of!(VcpuPage, system)), state.as_mut_bytes());
            hardware.load_system(&state);
            let xcr0 = hardware.legal_xcr0(state.xcr0);
            if xcr0 != extended.xcr0 {
                // The entry loads it into the core.
                (extended.xcr0, *xcr0_chosen) = (xcr0, true);
            }
            if state.reset_fpu != 0 {
                *extended = Extended { xcr0: extended.xcr0, ..Extended::INITIAL };
                thread.context.fpu = FpuState::INITIAL;
                reset = true;
            }
        }
        if *pending == Pending::Nothing && hardware.nmi_window(&control) {
            *pending = Pending::NmiWindow;
        }
        let halts = control.activity & HALT != 0 && *pending == Pending::Nothing;
        if halts {
            thread.state = ThreadState::Halted;
            counters.halts += 1;
        }
        thread.deadline = NEVER;
        if reset {
            self.forget_extended(vcpu);
        }
        self.watch(m, core, id, control.deadline);
    }
}
