//! The exits that the walk cache asks for: page faults, control registers, invalidations.

use ipc::vcpu::{DIRTY_SYSTEM, Event, FLUSH_TRANSLATIONS, Mode};

use super::{End, Host, Machine};
use crate::emulate::{self, Control, ControlInstruction};
use crate::memory::{GuestVirtAddr, NotMemory};
use crate::walk::control::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PCIDE, EFER_LMA};
use crate::walk_cache::{ContextError, Outcome, Update};

const CR0_PE: u64 = 1;
const CR0_TS: u64 = 1 << 3;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// CR0's bits that exist (AMD APM 2, 3.1.1), of which ET is always set.
const CR0_KNOWN: u64 = 0xe005_003f;
const CR0_ET: u64 = 1 << 4;
/// CR4's bits that may be set: all that CPUID shows, and no five levels, SMX, VMX, protection keys or shadow stacks.
const CR4_KNOWN: u64 = 0x0037_0fff;
const EFER_LME: u64 = 1 << 8;
const CR3_NO_FLUSH: u64 = 1 << 63;
const PAGE_FAULT: u8 = 14;
const GENERAL_PROTECTION: u8 = 13;

impl Machine {
    /// A page fault that was intercepted.
    pub(super) fn page_fault<H: Host>(&mut self, host: &mut H, vcpu: usize, error_code: u64, address: u64) {
        let page = host.page(vcpu);
        let (mode, rflags, at) = (page.mode, page.registers.rflags, GuestVirtAddr(address));
        // The upper half is the processor's own, about the nested walk.
        let code = u32::try_from(error_code & 0xffff).unwrap_or(0);
        let walks = self.cpus.get_mut(vcpu).and_then(|cpu| cpu.walks.as_mut());
        let Some(walks) = walks else {
            return self.inject_page_fault(host, vcpu, code, address);
        };
        match walks.page_fault(host, &mode, rflags, at, code) {
            Ok((outcome, update)) => {
                self.apply(host, vcpu, update);
                if let Outcome::Reflect { error_code } = outcome {
                    self.inject_page_fault(host, vcpu, error_code, address);
                }
            }
            Err(NotMemory(at)) => self.end_with(host, vcpu, End::TablesNotMemory(at.0)),
        }
    }

    fn inject_page_fault<H: Host>(&mut self, host: &mut H, vcpu: usize, error_code: u32, address: u64) {
        self.dirty(host, vcpu).cr2 = address;
        // One that comes in the middle of another event's delivery takes its place; the processor makes a double fault of
        // two page faults in a row itself.
        host.page(vcpu).control.event = Event::exception(PAGE_FAULT, Some(error_code));
    }

    /// Gives the vCPU what the cache says.
    fn apply<H: Host>(&mut self, host: &mut H, vcpu: usize, update: Update) {
        if update.flush {
            host.page(vcpu).control.flush = FLUSH_TRANSLATIONS;
        }
        if let Some(cr3) = update.cr3 {
            self.dirty(host, vcpu).cr3 = cr3;
        }
    }

    /// The system state of a vCPU, to change.
    pub(super) fn dirty<'a, H: Host>(&self, host: &'a mut H, vcpu: usize) -> &'a mut ipc::vcpu::SystemState {
        Self::fetched(host, vcpu);
        let page = host.page(vcpu);
        page.control.dirty |= DIRTY_SYSTEM;
        &mut page.system
    }

    /// A control register or an invalidation.
    pub(super) fn control<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let mut page = *host.page(vcpu);
        page.mode = self.mode(host, vcpu);
        let rflags = page.registers.rflags;
        let mode = page.mode;
        let mut view = self.view(host, vcpu, mode, rflags);
        let mut state = emulate::Vcpu::of(&mut page);
        let decoded = emulate::decode_control(&mut state, &mut view);
        let ControlInstruction { control, length } = match decoded {
            Ok(instruction) => instruction,
            Err(stop) => return self.stopped(host, vcpu, stop),
        };
        let done = match control {
            Control::Write { register: 0, value } => self.write_cr0(host, vcpu, &mode, value),
            Control::Write { register: 3, value } => self.write_cr3(host, vcpu, &mode, value),
            Control::Write { register: 4, value } => self.write_cr4(host, vcpu, &mode, value),
            Control::ClearTaskSwitched => self.write_cr0(host, vcpu, &mode, mode.cr0 & !CR0_TS),
            Control::LoadMachineStatus(word) => {
                // It cannot clear PE (AMD APM 3, LMSW).
                let low = u64::from(word) & 0xf | mode.cr0 & CR0_PE;
                self.write_cr0(host, vcpu, &mode, mode.cr0 & !0xf | low)
            }
            Control::Read { register: register @ (3 | 4), destination } => {
                let mut view = self.view(host, vcpu, mode, rflags);
                let value = if register == 3 { mode.cr3 } else { mode.cr4 };
                destination.store(&mut state, &mut view, value);
                host.page(vcpu).registers = page.registers;
                Ok(())
            }
            Control::InvalidatePage(at) => self.walks(vcpu, host, |walks, host| {
                walks.invalidate_page(host, at).map_err(ContextError::NotMemory)
            }),
            Control::InvalidateContext { kind, descriptor } => {
                self.walks(vcpu, host, |walks, host| walks.invalidate_context(host, kind, descriptor))
            }
            // Not what exited: another processor changed the code, and the vCPU executes what is there now.
            _ => return,
        };
        match done {
            Ok(()) => self.advance(host, vcpu, u64::from(length)),
            Err(ContextError::GeneralProtection) => {
                self.inject(host, vcpu, Event::exception(GENERAL_PROTECTION, Some(0)));
            }
            Err(ContextError::NotMemory(NotMemory(at))) => {
                self.end_with(host, vcpu, End::TablesNotMemory(at.0));
            }
        }
    }

    /// Asks the cache, and applies what it says.
    fn walks<H: Host>(
        &mut self,
        vcpu: usize,
        host: &mut H,
        ask: impl FnOnce(&mut crate::walk_cache::WalkCache, &mut H) -> Result<Update, ContextError>,
    ) -> Result<(), ContextError> {
        if let Some(walks) = self.cpus.get_mut(vcpu).and_then(|cpu| cpu.walks.as_mut()) {
            let update = ask(walks, host)?;
            self.apply(host, vcpu, update);
        }
        Ok(())
    }

    /// `MOV` to CR0 (AMD APM 2, 3.1.1 and 14.6).
    fn write_cr0<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        mode: &Mode,
        value: u64,
    ) -> Result<(), ContextError> {
        let value = value & CR0_KNOWN | value & !0xffff_ffff | CR0_ET;
        let turns_on = value & !mode.cr0 & CR0_PG != 0;
        let turns_off = mode.cr0 & !value & CR0_PG != 0;
        let long = mode.efer & EFER_LME != 0;
        let in_64_bit_code = mode.efer & EFER_LMA != 0 && mode.cs_attributes & 1 << 9 != 0;
        if value >> 32 != 0
            || value & (CR0_PG | CR0_PE) == CR0_PG
            || value & (CR0_NW | CR0_CD) == CR0_NW
            || turns_on && long && mode.cr4 & CR4_PAE == 0
            || turns_off && (in_64_bit_code || mode.cr4 & CR4_PCIDE != 0)
        {
            return Err(ContextError::GeneralProtection);
        }
        let system = self.dirty(host, vcpu);
        system.cr0 = value;
        if turns_on && long {
            system.efer |= EFER_LMA;
        } else if turns_off {
            system.efer &= !EFER_LMA;
        }
        let mode = Mode { cr0: value, efer: system.efer, ..*mode };
        self.walks(vcpu, host, |walks, host| {
            walks.write_control(host, &mode).map_err(ContextError::NotMemory)
        })
    }

    fn write_cr3<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        mode: &Mode,
        value: u64,
    ) -> Result<(), ContextError> {
        let no_flush = if mode.cr4 & CR4_PCIDE != 0 { CR3_NO_FLUSH } else { 0 };
        let reserved = u64::MAX.checked_shl(u32::from(self.processor.physical_bits)).unwrap_or(0) & !no_flush;
        if mode.efer & EFER_LMA != 0 && value & reserved != 0 {
            return Err(ContextError::GeneralProtection);
        }
        self.walks(vcpu, host, |walks, host| walks.write_cr3(host, value).map_err(ContextError::NotMemory))
    }

    fn write_cr4<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        mode: &Mode,
        value: u64,
    ) -> Result<(), ContextError> {
        let long = mode.efer & EFER_LMA != 0;
        let sets_pcids = value & !mode.cr4 & CR4_PCIDE != 0;
        if value & !CR4_KNOWN != 0
            || long && value & CR4_PAE == 0
            || (value ^ mode.cr4) & CR4_LA57 != 0
            || sets_pcids && (!long || mode.cr3 & 0xfff != 0)
        {
            return Err(ContextError::GeneralProtection);
        }
        let walks = self.cpus.get(vcpu).and_then(|cpu| cpu.walks.as_ref());
        let hardware = walks.map_or(value, |walks| walks.hardware_cr4(value));
        self.dirty(host, vcpu).cr4 = hardware;
        let mode = Mode { cr4: value, ..*mode };
        self.walks(vcpu, host, |walks, host| {
            walks.write_control(host, &mode).map_err(ContextError::NotMemory)
        })
    }

    /// EFER may have changed.
    pub(super) fn control_changed<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let efer = host.page(vcpu).system.efer;
        let mode = Mode { efer, ..self.mode(host, vcpu) };
        let done = self.walks(vcpu, host, |walks, host| {
            walks.write_control(host, &mode).map_err(ContextError::NotMemory)
        });
        if let Err(ContextError::NotMemory(NotMemory(at))) = done {
            self.end_with(host, vcpu, End::TablesNotMemory(at.0));
        }
    }

    /// Makes the cache of a vCPU fit a state that was loaded whole.
    pub(super) fn reload_walks<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        let system = host.page(vcpu).system;
        let mode = Mode {
            cr0: system.cr0,
            cr3: system.cr3,
            cr4: system.cr4,
            efer: system.efer,
            cs_base: system.cs.base,
            cs_attributes: u32::from(system.cs.attributes),
            cpl: 0,
        };
        let done =
            self.walks(vcpu, host, |walks, host| walks.load(host, &mode).map_err(ContextError::NotMemory));
        if let Err(ContextError::NotMemory(NotMemory(at))) = done {
            self.end_with(host, vcpu, End::TablesNotMemory(at.0));
        }
    }
}
