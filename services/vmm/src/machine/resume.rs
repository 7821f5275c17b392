//! How a vCPU goes on after an exit: what it is told first, and until when it may run.

use ipc::abi::NEVER;
use ipc::vcpu::{
    BLOCKED_BY_NMI, BLOCKED_BY_SHADOW, Event, EventKind, ExitReason, HALT, Mode, WINDOW_INTERRUPT, WINDOW_NMI,
};

use super::{Disposition, End, Host, Machine, Phase};
use crate::boot::processor;
use crate::emulate::{self, Stop, plain_length};
use crate::memory::{GuestPhysAddr, GuestVirtAddr};
use crate::walk::{self, Access, Privilege};

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_RF: u64 = 1 << 16;
const DR6_BS: u64 = 1 << 14;
const DEBUG: u8 = 1;
const EFER_LMA: u64 = 1 << 10;
const SEGMENT_LONG: u32 = 1 << 9;
const PAGE: u64 = ipc::abi::PAGE_SIZE as u64;
/// Bytes of an instruction that are remembered: all of one that [`plain_length`] knows.
const CACHED: usize = 4;
/// How soon a vCPU comes again that has something to take and no window tells when it can: an NMI behind another event or in
/// the handler of another NMI, or an interrupt behind one that is still to be delivered.
const RETRY_MICROSECONDS: u64 = 50;

/// Whether an event is delivered before an exception or NMI can be: all are but interrupts, which wait behind those.
fn goes_first(event: Event) -> bool {
    event.is_some() && event.kind() != Some(EventKind::Interrupt)
}

/// The first of a deadline, if there is one, and another.
fn earlier(deadline: Option<u64>, other: u64) -> Option<u64> {
    Some(deadline.map_or(other, |due| due.min(other)))
}

/// Where instructions lie that exit again and again, in long mode: their guest-physical addresses, by their virtual ones. The
/// bytes there are compared at each use, so that an old entry costs time and never truth.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CodeCache([Code; 8]);

#[derive(Clone, Copy, Debug, Default)]
struct Code {
    rip: u64,
    cr3: u64,
    at: u64,
    bytes: [u8; CACHED],
    /// Of the instruction, which these bytes begin with.
    length: u8,
    /// The exit that it makes; `None` when there is no instruction.
    reason: Option<ExitReason>,
}

impl CodeCache {
    fn entry(&mut self, rip: u64) -> &mut Code {
        // Instructions that exit are rarely neighbours.
        let index = (rip ^ rip >> 3 ^ rip >> 12) & 7;
        &mut self.0[usize::try_from(index).unwrap_or(0)]
    }
}

impl Machine {
    /// The guest's time, which all devices have: ticks since its start.
    pub(super) fn guest_now<H: Host>(&self, host: &H) -> u64 {
        host.now().wrapping_add(self.tsc_offset)
    }

    /// A vCPU's TSC.
    pub(super) fn cpu_now<H: Host>(&self, host: &H, vcpu: usize) -> u64 {
        host.now().wrapping_add(self.cpus.get(vcpu).map_or(0, |cpu| cpu.tsc_offset))
    }

    /// How a vCPU reads instructions and translates addresses, as the guest knows it.
    pub(super) fn mode<H: Host>(&self, host: &mut H, vcpu: usize) -> Mode {
        let mode = host.page(vcpu).mode;
        let walks = self.cpus.get(vcpu).and_then(|cpu| cpu.walks.as_ref());
        walks.map_or(mode, |walks| walks.guest_mode(&mode))
    }

    /// Goes past the instruction that made this exit. `false`: it is not there any more, or it got an exception.
    #[inline]
    pub(super) fn skip<H: Host>(&mut self, host: &mut H, vcpu: usize, reason: ExitReason) -> bool {
        let page = host.page(vcpu);
        if page.instruction_length != 0 {
            let length = page.instruction_length;
            self.advance(host, vcpu, length);
            return true;
        }
        let (rip, mode) = (page.registers.rip, page.mode);
        let long = mode.efer & EFER_LMA != 0 && mode.cs_attributes & SEGMENT_LONG != 0;
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            let code = *cpu.code.entry(rip);
            let mut bytes = [0; CACHED];
            if long
                && code.reason == Some(reason)
                && code.rip == rip
                && code.cr3 == mode.cr3
                && host.read(GuestPhysAddr(code.at), &mut bytes).is_ok()
                && bytes == code.bytes
            {
                host.page(vcpu).registers.rip = rip.wrapping_add(u64::from(code.length));
                self.completed(host, vcpu);
                return true;
            }
        }
        self.skip_slowly(host, vcpu, reason, long)
    }

    #[cold]
    fn skip_slowly<H: Host>(&mut self, host: &mut H, vcpu: usize, reason: ExitReason, long: bool) -> bool {
        let mut page = *host.page(vcpu);
        let (rip, cr3) = (page.registers.rip, page.mode.cr3);
        page.mode = self.mode(host, vcpu);
        let mut view = self.view(host, vcpu, page.mode, page.registers.rflags);
        match emulate::length_of(reason, &emulate::Vcpu::of(&mut page), &mut view) {
            Ok(length) => {
                if long && usize::from(length) <= CACHED && rip % PAGE <= PAGE - CACHED as u64 {
                    let privilege = Privilege::explicit(&page.mode, page.registers.rflags);
                    let (processor, at) = (self.processor, GuestVirtAddr(rip));
                    let translation =
                        walk::translate(host, processor, &page.mode, privilege, at, Access::Execute);
                    let mut bytes = [0; CACHED];
                    if let (Ok(translation), Some(cpu)) = (translation, self.cpus.get_mut(vcpu))
                        && host.read(translation.address, &mut bytes).is_ok()
                        && plain_length(reason, &bytes) == Some(length)
                    {
                        *cpu.code.entry(rip) =
                            Code { rip, cr3, at: translation.address.0, bytes, length, reason: Some(reason) };
                    }
                }
                self.advance(host, vcpu, u64::from(length));
                true
            }
            Err(stop) => {
                self.stopped(host, vcpu, stop);
                false
            }
        }
    }

    /// Goes past an instruction of so many bytes; what its completion brings comes with it.
    pub(super) fn advance<H: Host>(&mut self, host: &mut H, vcpu: usize, bytes: u64) {
        let page = host.page(vcpu);
        let mode = page.mode;
        let next = page.registers.rip.wrapping_add(bytes);
        let long = mode.efer & EFER_LMA != 0 && mode.cs_attributes & SEGMENT_LONG != 0;
        page.registers.rip = if long { next } else { next & 0xffff_ffff };
        self.completed(host, vcpu);
    }

    /// An instruction is complete: the shadow of the one before it ends, and a debugger that steps gets its exception.
    pub(super) fn completed<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let page = host.page(vcpu);
        page.control.blocked &= !BLOCKED_BY_SHADOW;
        page.registers.rflags &= !RFLAGS_RF;
        if page.registers.rflags & RFLAGS_TF != 0 {
            self.dirty(host, vcpu).dr6 |= DR6_BS;
            self.inject(host, vcpu, Event::exception(DEBUG, None));
        }
    }

    /// Gives the vCPU an event, unless one is being delivered already. An interrupt that waits comes after it.
    pub(super) fn inject<H: Host>(&mut self, host: &mut H, vcpu: usize, event: Event) {
        let control = &mut host.page(vcpu).control;
        if !goes_first(control.event) {
            control.event = event;
        }
    }

    /// Gives the vCPU what an emulation ended with.
    pub(super) fn stopped<H: Host>(&mut self, host: &mut H, vcpu: usize, stop: Stop) {
        match stop {
            Stop::Fault(fault) => {
                if let Some(address) = fault.address {
                    self.dirty(host, vcpu).cr2 = address.0;
                }
                self.inject(host, vcpu, fault.event);
            }
            // It executes what is there now.
            Stop::Changed => {}
            Stop::Unsupported(encoding) => self.end_with(host, vcpu, End::Unsupported(encoding)),
        }
    }

    /// The end of an exit that touched nothing but the vCPU's registers, where all is as at its last entry: `false` when it
    /// is not, and [`Machine::resume`] has to say how the vCPU goes on.
    #[inline]
    pub(super) fn goes_on<H: Host>(&mut self, host: &mut H, vcpu: usize) -> bool {
        let Some(cpu) = self.cpus.get(vcpu) else { return false };
        let control = &host.page(vcpu).control;
        let news = control.event.is_some()
            || cpu.phase != Phase::Running
            || cpu.init_pending
            || cpu.nmi_pending
            || cpu.apic.deliverable().is_some()
            || self.end.is_some();
        !news
    }

    /// The end of an exit: says how the vCPU goes on.
    #[inline]
    pub(super) fn resume<H: Host>(&mut self, host: &mut H, vcpu: usize) -> Disposition {
        if self.end.is_some() {
            return Disposition::Ended;
        }
        let now = self.guest_now(host);
        let mut device_event = None;
        if vcpu == 0 {
            self.device_event = self.ports.next_event(now);
            device_event = self.device_event.map(|due| due.wrapping_sub(self.tsc_offset));
        }
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return Disposition::Ended };
        if cpu.init_pending || cpu.phase == Phase::WaitsForStartUp {
            return self.park(host, vcpu);
        }
        let (node_now, offset) = (now.wrapping_sub(self.tsc_offset), cpu.tsc_offset);
        let now = node_now.wrapping_add(offset);
        let due = |cpu: &super::Cpu| {
            let due = cpu.apic.next_due()?;
            Some(cpu.pace.map_or(due, |pace| pace.defer(due)))
        };
        if due(cpu).is_some_and(|due| due <= now) {
            cpu.apic.expire(now);
            if let Some(pace) = &mut cpu.pace {
                pace.comes(now);
            }
        }
        let page = host.page(vcpu);
        let takes = page.registers.rflags & RFLAGS_IF != 0;
        let control = &mut page.control;
        // In the node's time, like all deadlines from here on.
        let mut deadline = due(cpu).map(|due| due.wrapping_sub(offset));
        if let Some(event) = device_event {
            deadline = earlier(deadline, event);
        }
        let timebase = self.timebase;
        let retry = || node_now.saturating_add(timebase.ticks_at(RETRY_MICROSECONDS, 1_000_000));
        // An interrupt that waits wakes nobody who does not take it.
        let mut wakes = goes_first(control.event) || control.event.is_some() && takes;
        if cpu.nmi_pending {
            if goes_first(control.event) || control.blocked & (BLOCKED_BY_SHADOW | BLOCKED_BY_NMI) != 0 {
                control.window |= WINDOW_NMI;
                deadline = earlier(deadline, retry());
            } else {
                cpu.nmi_pending = false;
                control.event = Event::nmi();
                wakes = true;
            }
        }
        if cpu.apic.deliverable().is_some() {
            if takes && !control.event.is_some() && control.blocked & BLOCKED_BY_SHADOW == 0 {
                if let Some(vector) = cpu.apic.acknowledge() {
                    control.event = Event::interrupt(vector);
                    wakes = true;
                }
            } else if control.event.kind() == Some(EventKind::Interrupt) {
                // One that was interrupted comes first, and leaves no window to ask for.
                deadline = earlier(deadline, retry());
            } else {
                control.window |= WINDOW_INTERRUPT;
                wakes |= takes;
            }
        }
        if cpu.phase == Phase::Halted {
            if wakes {
                cpu.phase = Phase::Running;
            } else {
                control.window = 0;
                control.activity = HALT;
            }
        }
        control.deadline = deadline.map_or(NEVER, |due| due.min(NEVER - 1));
        if control.activity == HALT && !takes && !cpu.nmi_pending && self.all_halted(host, vcpu) {
            return Disposition::Ended;
        }
        Disposition::Resume
    }

    /// A vCPU got an INIT: it waits for a start-up interrupt, if that did not come already.
    fn park<H: Host>(&mut self, host: &mut H, vcpu: usize) -> Disposition {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return Disposition::Ended };
        if core::mem::take(&mut cpu.init_pending) {
            cpu.apic.init_reset();
            cpu.phase = Phase::WaitsForStartUp;
        }
        cpu.nmi_pending = false;
        match cpu.start_up.take() {
            Some(vector) => {
                self.start_up(host, vcpu, vector);
                Disposition::Resume
            }
            None => {
                cpu.parked = true;
                Disposition::Park
            }
        }
    }

    /// A vCPU begins in real mode, at the page that the start-up interrupt named.
    pub(super) fn start_up<H: Host>(&mut self, host: &mut H, vcpu: usize, vector: u8) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
        (cpu.parked, cpu.phase) = (false, Phase::Running);
        host.fetch(vcpu);
        let mut state = processor::init(&host.page(vcpu).system, self.signature());
        processor::start_up(&mut state, vector);
        self.begin(host, vcpu, &state);
    }

    /// Whether nothing can wake any vCPU again: then the guest is over. Nobody knows that of a guest that spans nodes, whose
    /// interrupts may be on their way.
    fn all_halted<H: Host>(&mut self, host: &mut H, vcpu: usize) -> bool {
        let dead = |(index, cpu): (usize, &super::Cpu)| match cpu.phase {
            Phase::WaitsForStartUp => true,
            Phase::Running => false,
            Phase::Halted => {
                let takes = host.page(index).registers.rflags & RFLAGS_IF != 0;
                index == vcpu || !takes && !cpu.nmi_pending && cpu.start_up.is_none()
            }
        };
        let all = self.shares.len() <= 1 && self.cpus.iter().enumerate().all(dead);
        if all {
            self.end_with(host, vcpu, End::HaltedForEver);
        }
        all
    }
}
