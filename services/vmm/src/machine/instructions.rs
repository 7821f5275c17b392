//! What exits by an instruction do.

use ipc::vcpu::{
    ACCESS_DELIVERY, ACCESS_EXECUTE, ACCESS_TABLES, DIRTY_SYSTEM, Event, ExitReason, PortAccess, SystemState,
};

use super::{End, Host, Machine, Phase};
use crate::apic;
use crate::cpuid;
use crate::emulate::{self, Progress, Stop};
use crate::msr::{self, GeneralProtection};
use crate::ports::{PortEffect, Source};
use crate::power::PowerEvent;

const INVALID_OPCODE: u8 = 6;
/// CPUID's leaf of extended state.
const XSAVE_LEAF: u32 = 0xd;
const GENERAL_PROTECTION: u8 = 13;
/// The TSC's deadline and the base of the APIC are the APIC's registers, too.
const APIC_MSRS: core::ops::RangeInclusive<u32> = apic::MSR_FIRST..=apic::MSR_LAST;

#[expect(clippy::cast_possible_truncation, reason = "a register's lower half")]
const fn low(value: u64) -> u32 {
    value as u32
}

impl Machine {
    /// `CPUID`.
    pub(super) fn cpuid<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let page = host.page(vcpu);
        let (leaf, subleaf) = (low(page.registers.rax), low(page.registers.rcx));
        // The kernel knows it; not every processor tells of XSETBV.
        let xcr0 = if leaf == XSAVE_LEAF { Self::fetched(host, vcpu).xcr0 } else { 1 };
        let page = host.page(vcpu);
        let Some(cpu) = self.cpus.get(vcpu) else { return };
        let apic = if cpu.apic.mode() == apic::Mode::Disabled {
            cpuid::Apic::Disabled
        } else {
            cpuid::Apic::Enabled
        };
        let dynamic = cpuid::Dynamic { apic_id: cpu.apic.id(), cr4: page.mode.cr4, xcr0, apic };
        let values = self.cpuid.lookup(leaf, subleaf, &dynamic);
        if self.skip(host, vcpu, ExitReason::Cpuid) {
            let registers = &mut host.page(vcpu).registers;
            [registers.rax, registers.rbx, registers.rcx, registers.rdx] = values.map(u64::from);
        }
    }

    /// `HLT`.
    pub(super) fn halt<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        if self.skip(host, vcpu, ExitReason::Halt)
            && let Some(cpu) = self.cpus.get_mut(vcpu)
        {
            cpu.phase = Phase::Halted;
        }
    }

    /// `XSETBV` (AMD APM 3): what CPUID does not offer is refused, and so are parts without what they build on.
    pub(super) fn set_xcr<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let page = host.page(vcpu);
        let (register, cpl) = (low(page.registers.rcx), page.mode.cpl);
        let value = page.registers.rdx << 32 | page.registers.rax & 0xffff_ffff;
        if register != 0 || cpl != 0 || !self.cpuid.accepts_xcr0(value) {
            return self.inject(host, vcpu, Event::exception(GENERAL_PROTECTION, Some(0)));
        }
        if self.skip(host, vcpu, ExitReason::SetXcr) {
            self.dirty(host, vcpu).xcr0 = value;
        }
    }

    /// `RDMSR` and `WRMSR`.
    pub(super) fn msr<H: Host>(&mut self, host: &mut H, vcpu: usize, reason: ExitReason) {
        let page = host.page(vcpu);
        let register = low(page.registers.rcx);
        let value = page.registers.rdx << 32 | page.registers.rax & 0xffff_ffff;
        let done = if reason == ExitReason::ReadMsr {
            self.read_msr(host, vcpu, register).map(Some)
        } else {
            self.write_msr(host, vcpu, register, value).map(|()| None)
        };
        match done {
            Err(GeneralProtection) => {
                self.inject(host, vcpu, Event::exception(GENERAL_PROTECTION, Some(0)));
            }
            Ok(value) => {
                if self.skip(host, vcpu, reason)
                    && let Some(value) = value
                {
                    let registers = &mut host.page(vcpu).registers;
                    (registers.rax, registers.rdx) = (value & 0xffff_ffff, value >> 32);
                }
            }
        }
    }

    fn is_of_apic(register: u32) -> bool {
        APIC_MSRS.contains(&register) || matches!(register, apic::MSR_TSC_DEADLINE | apic::MSR_APIC_BASE)
    }

    fn read_msr<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        register: u32,
    ) -> Result<u64, GeneralProtection> {
        let now = self.cpu_now(host, vcpu);
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return Err(GeneralProtection) };
        if Self::is_of_apic(register) {
            return cpu.apic.read(register, now);
        }
        let mut system = Self::system_for(host, vcpu, register);
        let processor = msr::Cpu { model: &self.model, system: &mut system, node_tsc: host.now() };
        cpu.msrs.read(register, &processor)
    }

    /// The system state of a vCPU.
    pub(super) fn fetched<H: Host>(host: &mut H, vcpu: usize) -> SystemState {
        if host.page(vcpu).control.dirty & DIRTY_SYSTEM == 0 {
            host.fetch(vcpu);
        }
        host.page(vcpu).system
    }

    /// The system state that was fetched and changed goes back.
    fn store_system<H: Host>(host: &mut H, vcpu: usize, system: SystemState) {
        let page = host.page(vcpu);
        page.system = system;
        page.control.dirty |= DIRTY_SYSTEM;
    }

    /// What there is to know of the system state to access a register.
    fn system_for<H: Host>(host: &mut H, vcpu: usize, register: u32) -> SystemState {
        if msr::needs_system(register) { Self::fetched(host, vcpu) } else { host.page(vcpu).system }
    }

    fn write_other_msr<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        register: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let mut system = Self::system_for(host, vcpu, register);
        let before = system.tsc_offset;
        let node_tsc = host.now();
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return Err(GeneralProtection) };
        let mut processor = msr::Cpu { model: &self.model, system: &mut system, node_tsc };
        let effect = cpu.msrs.write(register, value, &mut processor)?;
        let skew = cpu.msrs.tsc_adjust();
        match effect {
            msr::Effect::None => {}
            msr::Effect::System => {
                Self::store_system(host, vcpu, system);
                self.control_changed(host, vcpu);
            }
            msr::Effect::Tsc => {
                let offset = system.tsc_offset;
                Self::store_system(host, vcpu, system);
                if let Some(cpu) = self.cpus.get_mut(vcpu) {
                    cpu.tsc_offset = offset;
                    cpu.apic.tsc_changed(node_tsc.wrapping_add(before), node_tsc.wrapping_add(offset));
                    if let Some(at) = cpu.msrs.system_time() {
                        // As where it was asked for: a page that is nowhere is nobody's.
                        let _ = self.clock.publish(host, at, skew);
                    }
                }
            }
            msr::Effect::SystemTime(at) => {
                if let Some(at) = at {
                    self.clock.publish(host, at, skew).map_err(|_| GeneralProtection)?;
                }
            }
            msr::Effect::WallClock(at) => {
                self.clock.publish_wall(host, at).map_err(|_| GeneralProtection)?;
            }
        }
        Ok(())
    }

    fn write_msr<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        register: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let now = self.cpu_now(host, vcpu);
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return Err(GeneralProtection) };
        if !Self::is_of_apic(register) {
            return self.write_other_msr(host, vcpu, register, value);
        }
        let effect = cpu.apic.write(register, value, now)?;
        if let Some(pace) = cpu.pace.as_mut().filter(|_| apic::sets_timer(register)) {
            pace.is_set(now, self.timebase.tsc_hz());
        }
        match effect {
            apic::Effect::None => {}
            apic::Effect::Send(interrupt) => self.deliver(host, interrupt, Some(vcpu), Some(vcpu)),
            apic::Effect::EndOfInterrupt(vector) => {
                self.end_of_interrupt(host, vector, Some(vcpu));
            }
        }
        Ok(())
    }

    /// `IN`, `OUT`, `INS`, `OUTS`.
    pub(super) fn port<H: Host>(&mut self, host: &mut H, vcpu: usize, access: PortAccess, next: u64) {
        if access.has(PortAccess::STRING) {
            return self.string_port(host, vcpu, access);
        }
        let (port, bytes) = (access.port(), usize::from(access.bytes()));
        let mask = u64::MAX >> (64 - 8 * bytes.clamp(1, 4));
        if access.has(PortAccess::IN) {
            let value = u64::from(self.port_read(host, vcpu, port, bytes)) & mask;
            let registers = &mut host.page(vcpu).registers;
            // A read of four bytes clears the upper half, as every write of a 32-bit register does.
            registers.rax = if bytes == 4 { value } else { registers.rax & !mask | value };
        } else {
            let value = low(host.page(vcpu).registers.rax & mask);
            self.port_write(host, vcpu, port, bytes, value);
        }
        host.page(vcpu).registers.rip = next;
        self.completed(host, vcpu);
    }

    fn string_port<H: Host>(&mut self, host: &mut H, vcpu: usize, access: PortAccess) {
        self.emulate(host, vcpu, |state, view| emulate::emulate_string_io(state, view, access));
    }

    /// An access to memory that is not there.
    pub(super) fn device_memory<H: Host>(&mut self, host: &mut H, vcpu: usize, address: u64, access: u64) {
        if access & ACCESS_TABLES != 0 {
            return self.end_with(host, vcpu, End::TablesNotMemory(address));
        }
        if access & ACCESS_DELIVERY != 0 {
            return self.end_with(host, vcpu, End::DeliveryNotMemory(address));
        }
        if access & ACCESS_EXECUTE != 0 {
            return self.end_with(host, vcpu, End::CodeNotMemory(address));
        }
        self.emulate(host, vcpu, |state, view| emulate::emulate_memory(state, view));
    }

    fn emulate<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        act: impl FnOnce(&mut emulate::Vcpu<'_>, &mut super::view::View<'_, H>) -> Result<Progress, Stop>,
    ) {
        let mut page = *host.page(vcpu);
        page.mode = self.mode(host, vcpu);
        let (mode, rflags) = (page.mode, page.registers.rflags);
        let mut view = self.view(host, vcpu, mode, rflags);
        let result = act(&mut emulate::Vcpu::of(&mut page), &mut view);
        host.page(vcpu).registers = page.registers;
        match result {
            Ok(Progress::Done) => self.completed(host, vcpu),
            Ok(Progress::Again) => {}
            Err(stop) => self.stopped(host, vcpu, stop),
        }
    }

    pub(super) fn port_read<H: Host>(&mut self, host: &mut H, vcpu: usize, port: u16, bytes: usize) -> u32 {
        let bytes = u8::try_from(bytes).unwrap_or(1);
        if self.has_devices() {
            self.read_port(host, Some(vcpu), port, bytes)
        } else {
            Self::ask_port(host, port, bytes, None)
        }
    }

    pub(super) fn port_write<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        port: u16,
        bytes: usize,
        value: u32,
    ) {
        let bytes = u8::try_from(bytes).unwrap_or(1);
        if self.has_devices() {
            self.write_port(host, Some(vcpu), port, bytes, value);
        } else {
            Self::ask_port(host, port, bytes, Some(value));
        }
    }

    /// Reads a port of a device that is here. `current` is the vCPU whose exit this is, if it is one.
    pub(super) fn read_port<H: Host>(
        &mut self,
        host: &mut H,
        current: Option<usize>,
        port: u16,
        bytes: u8,
    ) -> u32 {
        let now = self.guest_now(host);
        let value = self.ports.read(port, bytes, now);
        self.device_changed(host, current, port);
        value
    }

    /// Writes it.
    pub(super) fn write_port<H: Host>(
        &mut self,
        host: &mut H,
        current: Option<usize>,
        port: u16,
        bytes: u8,
        value: u32,
    ) {
        let now = self.guest_now(host);
        let end = match self.ports.write(port, bytes, value, now) {
            PortEffect::None => None,
            PortEffect::Output => {
                self.drain(host);
                None
            }
            PortEffect::Power(PowerEvent::Off) => Some(End::PoweredOff),
            PortEffect::Power(PowerEvent::Reset) => Some(End::Reset),
        };
        if let Some(end) = end {
            self.end_with(host, current.unwrap_or(0), end);
        }
        self.device_changed(host, current, port);
    }

    /// A device may have changed its line, and when it changes it next by itself: the first vCPU comes then.
    fn device_changed<H: Host>(&mut self, host: &mut H, current: Option<usize>, port: u16) {
        if Source::at(port).is_none() {
            return;
        }
        self.update_lines(host, current);
        let now = self.guest_now(host);
        if current != Some(0) && self.ports.next_event(now) != self.device_event {
            host.kick(0);
        }
    }

    /// An instruction that the guest must not have: as if the processor did not know it.
    pub(super) fn forbidden<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        self.inject(host, vcpu, Event::exception(INVALID_OPCODE, None));
    }

    /// `VMCALL`, `VMMCALL`: no calls are offered. KVM's convention for one that is unknown is -ENOSYS, and -EPERM outside of
    /// ring 0.
    pub(super) fn hypercall<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        const ENOSYS: i64 = 1000;
        const EPERM: i64 = 1;
        if self.skip(host, vcpu, ExitReason::Hypercall) {
            let page = host.page(vcpu);
            let error = if page.mode.cpl == 0 { ENOSYS } else { EPERM };
            page.registers.rax = error.wrapping_neg().cast_unsigned();
        }
    }

    /// An exception that is intercepted: those that the processor could deliver without end go to the guest.
    pub(super) fn exception<H: Host>(&mut self, host: &mut H, vcpu: usize, vector: u64, code: u64) {
        let vector = u8::try_from(vector).unwrap_or(INVALID_OPCODE);
        // #DF, #TS, #NP, #SS, #GP, #PF and #AC have error codes.
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let event = Event::exception(vector, has_code.then_some(low(code)));
        host.page(vcpu).control.event = event;
    }
}
