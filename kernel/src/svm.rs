//! AMD SVM with nested paging: the processor's half of a vCPU (AMD APM 2, chapter 15).
//!
//! This is safe code that works on the control block as plain data; `hw` runs it. What is here has no word of services or
//! threads: it turns an exit into an [`Exit`], and an [`EntryControl`] into what `VMRUN` needs. Intel VMX has the same two
//! halves; there the block is reached by `VMREAD` and `VMWRITE`.

use core::mem::offset_of;

use ipc::abi::UserRegisters;
use ipc::vcpu::{
    ACCESS_DELIVERY, ACCESS_EXECUTE, ACCESS_TABLES, ACCESS_WRITE, BLOCKED_BY_NMI, BLOCKED_BY_SHADOW,
    EntryControl, Event, EventKind, ExitReason, FLUSH_TRANSLATIONS, INTERCEPT_WALKS, Mode, PortAccess,
    SystemState, WINDOW_INTERRUPT, WINDOW_NMI,
};

use crate::address::PhysAddr;

pub mod vmcb;
use vmcb::{Vmcb, code, intercept};

/// What the processor offers, the same on every core of a node (CPUID leaf 0x8000_000a; AMD APM 3, E.4.9).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Features {
    /// An exit stores the address of the next instruction.
    pub next_rip: bool,
    /// An exit stores the bytes of the instruction.
    pub decode_assists: bool,
    /// The guest's translations can be flushed without the node's.
    pub flush_by_asid: bool,
    /// `PAUSE` can be counted.
    pub pause_filter: bool,
    /// The parts of XCR0 that can be kept.
    pub xcr0: u64,
}

/// Why a vCPU left guest mode, as far as the kernel's next step depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// An interrupt, NMI or SMI of the node's, which comes now; or the vCPU can go on at once.
    Nothing,
    /// It spins: let another run.
    Pause,
    /// The node's hardware failed.
    MachineCheck,
    /// Nested paging has no translation, or not for this access.
    Memory {
        /// The guest-physical address.
        address: u64,
        /// `ACCESS_*`.
        access: u64,
    },
    /// A service's business.
    Platform(ExitReason, [u64; 3]),
}

/// EFER.SVME, which must be set in guest mode and which the guest never sees.
const EFER_SVME: u64 = 1 << 12;
/// V_INTR_MASKING: the node's interrupts come whatever the guest's IF says (15.21.1).
const V_INTR_MASKING: u64 = 1 << 24;
pub(crate) const V_IRQ: u64 = 1 << 8;
/// A virtual interrupt that waits, of the highest priority and whatever the guest's TPR. The guest takes it as soon as it
/// can; with [`intercept::VINTR`] that is an exit.
const V_WAITING: u64 = V_IRQ | 0xf << 16 | 1 << 20;
const V_VECTOR_SHIFT: u32 = 32;
/// V_TPR, which the guest moves by CR8.
const V_TPR: u64 = 0xf;
const TLB_FLUSH_ALL: u32 = 1;
const TLB_FLUSH_ASID: u32 = 3;
/// One address space identifier for all vCPUs: a core flushes when it takes up another one, so no more are needed.
const ASID: u32 = 1;
/// Vectors from here on are no exception's (AMD APM 2, 8.2).
const FIRST_NO_EXCEPTION: u8 = 32;
const PAGE_FAULT: u32 = 14;
const MACHINE_CHECK: u32 = 18;
/// `#DB` and `#AC`: a guest could keep the processor delivering either for ever; and `#MC`, which is the node's.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << MACHINE_CHECK;
/// Iterations of `PAUSE` in one go before a vCPU gives way.
const PAUSES: u16 = 3000;
const PAUSE_GAP: u16 = 128;

/// Whether NMIs can come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NmiState {
    Open,
    /// A handler runs; its `IRET` is intercepted.
    Blocked,
    /// The `IRET` at this address comes next; after it NMIs are open.
    Returning(u64),
}

/// A vCPU as the processor runs it.
#[derive(Debug)]
#[repr(C)]
pub struct Svm {
    /// The control block. The first field.
    pub vmcb: Vmcb,
    nmi: NmiState,
    features: Features,
    /// The guest ran since [`Svm::complete`].
    ran: bool,
}

impl Svm {
    /// One that was never run.
    #[must_use]
    pub const fn new() -> Self {
        let features = Features {
            next_rip: false,
            decode_assists: false,
            flush_by_asid: false,
            pause_filter: false,
            xcr0: 1,
        };
        Self { vmcb: Vmcb::zero(), nmi: NmiState::Open, features, ran: false }
    }

    /// Makes it one that was never run, with everything intercepted that must be. `iopm` and `msrpm` are the permission
    /// maps, `nested` is the root of the nested table.
    pub fn reset(&mut self, features: Features, iopm: PhysAddr, msrpm: PhysAddr, nested: PhysAddr) {
        self.vmcb = Vmcb::zero();
        (self.nmi, self.features, self.ran) = (NmiState::Open, features, false);
        let control = &mut self.vmcb.control;
        control.intercept_exceptions = EXCEPTIONS;
        let first = intercept::INTR
            | intercept::NMI
            | intercept::SMI
            | intercept::INIT
            | intercept::RDPMC
            | intercept::CPUID
            | intercept::RSM
            | intercept::INVD
            | intercept::HLT
            | intercept::INVLPGA
            | intercept::IOIO
            | intercept::MSR
            | intercept::TASK_SWITCH
            | intercept::FERR_FREEZE
            | intercept::SHUTDOWN;
        let pause = if features.pause_filter { intercept::PAUSE } else { 0 };
        control.intercepts = [first | pause, intercept::SECOND_WORD, intercept::THIRD_WORD];
        (control.pause_filter_count, control.pause_filter_threshold) = (PAUSES, PAUSE_GAP);
        (control.iopm, control.msrpm) = (iopm.0, msrpm.0);
        control.asid = ASID;
        control.virtual_interrupt = V_INTR_MASKING;
        (control.nested_paging, control.nested_cr3) = (1, nested.0);
        self.vmcb.save.efer = EFER_SVME;
    }

    /// What the exit that just was means.
    pub fn exit(&mut self) -> Exit {
        self.complete();
        let control = &self.vmcb.control;
        let [info1, info2] = control.exit_info;
        let plain = |reason| Exit::Platform(reason, [0; 3]);
        match control.exit_code {
            code::INTR | code::NMI | code::SMI | code::INIT => Exit::Nothing,
            code::NESTED_PAGE_FAULT => {
                let write = if info1 >> 1 & 1 != 0 { ACCESS_WRITE } else { 0 };
                let execute = if info1 >> 4 & 1 != 0 { ACCESS_EXECUTE } else { 0 };
                // Whatever the next entry delivers: what an instruction raises, it raises again.
                let delivery = if Event(control.exit_interrupt).is_some() { ACCESS_DELIVERY } else { 0 };
                let tables = if info1 >> 33 & 1 != 0 { ACCESS_TABLES } else { 0 };
                Exit::Memory { address: info2, access: write | execute | delivery | tables }
            }
            code::CPUID => plain(ExitReason::Cpuid),
            code::HLT => plain(ExitReason::Halt),
            code::MSR if info1 & 1 == 0 => plain(ExitReason::ReadMsr),
            code::MSR => plain(ExitReason::WriteMsr),
            code::IOIO => Exit::Platform(ExitReason::Port, [port_access(info1).0, info2, 0]),
            code::VINTR => {
                if self.has_window() {
                    self.clear_virtual_interrupt();
                }
                plain(ExitReason::InterruptWindow)
            }
            code::IRET => self.nmi_handler_returns(),
            code::PAUSE => Exit::Pause,
            code::XSETBV => plain(ExitReason::SetXcr),
            code::VMMCALL => plain(ExitReason::Hypercall),
            code::WBINVD | code::INVD => plain(ExitReason::Caches),
            code::SHUTDOWN => plain(ExitReason::Shutdown),
            code::INVALID | code::INVALID_LOW => {
                Exit::Platform(ExitReason::InvalidState, [code::INVALID, 0, 0])
            }
            code::TASK_SWITCH => Exit::Platform(ExitReason::TaskSwitch, [info1, info2, 0]),
            code::CR3_READ | code::CR4_READ => plain(ExitReason::ReadControl),
            exit @ code::CR0_WRITE..=code::CR15_WRITE => {
                Exit::Platform(ExitReason::WriteControl, [exit - code::CR0_WRITE, 0, 0])
            }
            code::INVLPG => plain(ExitReason::InvalidatePage),
            code::INVPCID => plain(ExitReason::InvalidateContext),
            exit @ code::EXCEPTION..=code::LAST_EXCEPTION => {
                let vector = exit - code::EXCEPTION;
                if vector == u64::from(MACHINE_CHECK) {
                    Exit::MachineCheck
                } else {
                    Exit::Platform(ExitReason::Exception, [vector, info1 & 0xffff_ffff, info2])
                }
            }
            code::RDPMC
            | code::RSM
            | code::INVLPGA
            | code::FERR_FREEZE
            | code::VMRUN..=code::ICEBP
            | code::WBINVD..=code::RDPRU
            | code::INVLPGB..=code::TLBSYNC => plain(ExitReason::Forbidden),
            exit => Exit::Platform(ExitReason::Unknown, [exit, info1, info2]),
        }
    }

    /// Takes over what an exit left of an event's delivery: it is delivered again at the next entry (15.7.2, 15.20).
    pub fn complete(&mut self) {
        if !core::mem::take(&mut self.ran) {
            return;
        }
        let event = Event(self.vmcb.control.exit_interrupt);
        let again = match (event.kind(), event.vector()) {
            // An instruction that raises an event raises it again, because RIP is still its own.
            (Some(EventKind::SoftwareInterrupt), _) | (Some(EventKind::Exception), 3 | 4) => Event::NONE,
            // So QEMU (7.2) calls a virtual interrupt; VMRUN refuses it as an exception (15.20).
            (Some(EventKind::Exception), vector @ FIRST_NO_EXCEPTION..) => Event::interrupt(vector),
            _ => event,
        };
        // An interrupt that was not taken yet stays where it is.
        self.vmcb.control.event = 0;
        self.deliver(again);
        self.vmcb.control.tlb_control = 0;
        if let NmiState::Returning(at) = self.nmi
            && at != self.vmcb.save.rip
        {
            self.nmi = NmiState::Open;
        }
    }

    /// Takes the virtual interrupt back, be it a window or one to take.
    fn clear_virtual_interrupt(&mut self) {
        let control = &mut self.vmcb.control;
        control.intercepts[0] &= !intercept::VINTR;
        control.virtual_interrupt = V_INTR_MASKING | control.virtual_interrupt & V_TPR;
    }

    /// Has the next entry deliver an event, or nothing where it is none. An interrupt comes when the guest can take it, after
    /// an exception or NMI that is delivered first.
    ///
    /// An interrupt goes as a virtual one (15.21.4). QEMU 7.2 can deliver one that is injected (15.20) a second time, when
    /// another core interrupts it in the meantime, and then whatever the guest's IF says.
    fn deliver(&mut self, event: Event) {
        match event.kind() {
            Some(EventKind::Interrupt) => {
                self.clear_virtual_interrupt();
                let vector = u64::from(event.vector()) << V_VECTOR_SHIFT;
                self.vmcb.control.virtual_interrupt |= V_WAITING | vector;
            }
            Some(_) => self.vmcb.control.event = event.0,
            None => {}
        }
    }

    const fn has_window(&self) -> bool {
        self.vmcb.control.intercepts[0] & intercept::VINTR != 0
    }

    /// The event that the next entry delivers first.
    #[must_use]
    pub const fn event(&self) -> Event {
        let control = &self.vmcb.control;
        if control.event == 0 && control.virtual_interrupt & V_IRQ != 0 && !self.has_window() {
            // Eight bits.
            Event::interrupt((control.virtual_interrupt >> V_VECTOR_SHIFT & 0xff) as u8)
        } else {
            Event(control.event)
        }
    }

    /// The handler of an NMI is at its `IRET`, which has not run yet.
    fn nmi_handler_returns(&mut self) -> Exit {
        self.vmcb.control.intercepts[0] &= !intercept::IRET;
        self.nmi = NmiState::Returning(self.vmcb.save.rip);
        Exit::Nothing
    }

    /// Prepares the next `VMRUN`.
    #[inline]
    pub fn enter(&mut self, flush: bool) {
        self.complete();
        if flush {
            let kind = if self.features.flush_by_asid { TLB_FLUSH_ASID } else { TLB_FLUSH_ALL };
            self.vmcb.control.tlb_control = kind;
        }
        self.ran = true;
    }

    /// The registers that the control block has, each with its place among all of them.
    #[must_use]
    pub const fn registers(&self) -> [(usize, u64); 4] {
        let save = &self.vmcb.save;
        let [rax, rsp, rip, rflags] = Self::REGISTERS;
        [(rax, save.rax), (rsp, save.rsp), (rip, save.rip), (rflags, save.rflags)]
    }

    /// Takes them from where they are among all of them.
    #[inline]
    pub fn load_registers(&mut self, at: impl Fn(usize) -> u64) {
        let save = &mut self.vmcb.save;
        [save.rax, save.rsp, save.rip, save.rflags] = Self::REGISTERS.map(at);
    }

    const REGISTERS: [usize; 4] = [
        offset_of!(UserRegisters, rax),
        offset_of!(UserRegisters, rsp),
        offset_of!(UserRegisters, rip),
        offset_of!(UserRegisters, rflags),
    ];

    /// The instruction in the shadow of `STI` or `MOV SS` is done.
    pub const fn end_shadow(&mut self) {
        self.vmcb.control.interrupt_shadow = 0;
    }

    /// What is told at an exit.
    #[must_use]
    pub const fn control(&self, intercepts: u32) -> EntryControl {
        let shadow = if self.vmcb.control.interrupt_shadow & 1 != 0 { BLOCKED_BY_SHADOW } else { 0 };
        let nmi = if matches!(self.nmi, NmiState::Open) { 0 } else { BLOCKED_BY_NMI };
        EntryControl {
            event: self.event(),
            deadline: ipc::abi::NEVER,
            window: 0,
            activity: 0,
            dirty: 0,
            intercepts,
            flush: 0,
            blocked: shadow | nmi,
        }
    }

    /// See [`Mode`].
    #[must_use]
    pub fn mode(&self) -> Mode {
        let save = &self.vmcb.save;
        Mode {
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer & !EFER_SVME,
            cs_base: save.cs.base,
            cs_attributes: u32::from(save.cs.attributes),
            cpl: u32::from(save.cpl),
        }
    }

    /// The instruction's length and bytes, where the processor tells them.
    #[must_use]
    pub fn instruction(&self) -> (u64, u8, [u8; 15]) {
        let Vmcb { control, save } = &self.vmcb;
        let length = control.next_rip.wrapping_sub(save.rip);
        let length = if self.features.next_rip && length <= 15 { length } else { 0 };
        let fetched = if self.features.decode_assists { control.fetched.min(15) } else { 0 };
        (length, fetched, control.instruction)
    }

    /// Does what a service asked for at its reply. Whatever it asks is its guest's to suffer: `VMRUN` checks the state.
    #[inline(always)]
    pub fn load_control(&mut self, control: &EntryControl) {
        let event = control.event;
        let told = self.event();
        // An interrupt that an exception or NMI goes before stays; one that was told of is taken back by no event.
        let taken_back = !event.is_some() && told.kind() == Some(EventKind::Interrupt);
        if self.has_window() || taken_back {
            self.clear_virtual_interrupt();
        }
        self.vmcb.control.event = 0;
        self.deliver(event);
        let block = &mut self.vmcb.control;
        block.interrupt_shadow = u64::from(control.blocked & BLOCKED_BY_SHADOW != 0);
        let (nmi, blocked) = (event.kind() == Some(EventKind::Nmi), control.blocked & BLOCKED_BY_NMI != 0);
        if nmi || blocked && self.nmi == NmiState::Open {
            self.nmi = NmiState::Blocked;
            block.intercepts[0] |= intercept::IRET;
        } else if !blocked {
            self.nmi = NmiState::Open;
            block.intercepts[0] &= !intercept::IRET;
        }
        // An interrupt that is to be delivered needs what the window is made of.
        if control.window & WINDOW_INTERRUPT != 0 && block.virtual_interrupt & V_IRQ == 0 {
            block.virtual_interrupt |= V_WAITING;
            block.intercepts[0] |= intercept::VINTR;
        }
        if control.flush & FLUSH_TRANSLATIONS != 0 {
            block.tlb_control = TLB_FLUSH_ALL;
        }
        let walks = control.intercepts & INTERCEPT_WALKS != 0;
        if walks == (block.intercept_cr_reads != 0) {
            return;
        }
        let set = |bits: &mut u32, bit: u32| if walks { *bits |= bit } else { *bits &= !bit };
        set(&mut block.intercept_exceptions, 1 << PAGE_FAULT);
        set(&mut block.intercepts[0], intercept::INVLPG);
        set(&mut block.intercepts[2], intercept::INVPCID);
        (block.intercept_cr_reads, block.intercept_cr_writes) =
            if walks { (1 << 3 | 1 << 4, 1 | 1 << 3 | 1 << 4) } else { (0, 0) };
    }

    /// Whether an NMI could be taken now, when [`WINDOW_NMI`] asks for it: nothing goes before it and nothing blocks it.
    #[must_use]
    pub const fn nmi_window(&self, control: &EntryControl) -> bool {
        let block = &self.vmcb.control;
        let open = matches!(self.nmi, NmiState::Open) && block.event == 0 && block.interrupt_shadow & 1 == 0;
        control.window & WINDOW_NMI != 0 && open
    }

    /// The whole state.
    #[must_use]
    pub fn system(&self, xcr0: u64) -> SystemState {
        let Vmcb { control, save } = &self.vmcb;
        SystemState {
            es: save.es,
            cs: save.cs,
            ss: save.ss,
            ds: save.ds,
            fs: save.fs,
            gs: save.gs,
            ldtr: save.ldtr,
            tr: save.tr,
            gdtr: save.gdtr,
            idtr: save.idtr,
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer & !EFER_SVME,
            dr6: save.dr6,
            dr7: save.dr7,
            pat: save.pat,
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            sfmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter_cs: save.sysenter_cs,
            sysenter_esp: save.sysenter_esp,
            sysenter_eip: save.sysenter_eip,
            xcr0,
            tsc_offset: control.tsc_offset,
            cpl: u64::from(save.cpl),
            reset_fpu: 0,
        }
    }

    /// The other way. The processor's translations are flushed, because anything may have changed.
    pub fn load_system(&mut self, state: &SystemState) {
        let Vmcb { control, save } = &mut self.vmcb;
        (save.es, save.cs, save.ss, save.ds) = (state.es, state.cs, state.ss, state.ds);
        (save.fs, save.gs, save.ldtr, save.tr) = (state.fs, state.gs, state.ldtr, state.tr);
        (save.gdtr, save.idtr) = (state.gdtr, state.idtr);
        (save.cr0, save.cr2, save.cr3, save.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        save.efer = state.efer | EFER_SVME;
        (save.dr6, save.dr7, save.pat) = (state.dr6, state.dr7, state.pat);
        (save.star, save.lstar, save.cstar, save.sfmask) =
            (state.star, state.lstar, state.cstar, state.sfmask);
        save.kernel_gs_base = state.kernel_gs_base;
        (save.sysenter_cs, save.sysenter_esp, save.sysenter_eip) =
            (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip);
        control.tsc_offset = state.tsc_offset;
        save.cpl = (state.cpl & 3) as u8;
        control.tlb_control = TLB_FLUSH_ALL;
    }

    /// What XCR0 becomes when a service asks for `wanted`: that, if the processor takes it and the kernel can keep it;
    /// else x87 alone (AMD APM 2, 11.5.2).
    #[must_use]
    pub const fn legal_xcr0(&self, wanted: u64) -> u64 {
        const X87: u64 = 1;
        const SSE: u64 = 2;
        const AVX: u64 = 4;
        const AVX512: u64 = 7 << 5;
        let known = wanted & !self.features.xcr0 == 0 && wanted & X87 != 0;
        let avx = wanted & AVX == 0 || wanted & SSE != 0;
        let avx512 = wanted & AVX512 == 0 || wanted & AVX512 == AVX512 && wanted & AVX != 0;
        if known && avx && avx512 { wanted } else { X87 }
    }
}

impl Default for Svm {
    fn default() -> Self {
        Self::new()
    }
}

/// EXITINFO1 of an I/O intercept (15.10.2).
const fn port_access(info: u64) -> PortAccess {
    let input = if info & 1 != 0 { PortAccess::IN } else { 0 };
    let string = if info & 1 << 2 != 0 { PortAccess::STRING } else { 0 };
    let repeated = if info & 1 << 3 != 0 { PortAccess::REPEATED } else { 0 };
    // Bits 4, 5 and 6: 1, 2 or 4 bytes.
    let bytes = (info >> 4 & 7) as u8;
    PortAccess::new((info >> 16 & 0xffff) as u16, bytes, input | string | repeated)
}

#[cfg(test)]
mod tests;
