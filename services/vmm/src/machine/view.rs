//! Guest memory and devices as an emulated instruction sees them.

use ipc::vcpu::{Mode, Segment, SystemState};

use super::{Host, Machine};
use crate::emulate::{self, SegmentRegister, TranslationError};
use crate::memory::{GuestPhysAddr, GuestVirtAddr, NotMemory};
use crate::walk::{self, Privilege, WalkError};

/// The I/O APIC's registers; they repeat in the rest of its page.
const IO_APIC: core::ops::Range<u64> = 0xfec0_0000..0xfec0_1000;

/// The register at an address in it.
fn register_of(at: GuestPhysAddr) -> u8 {
    at.0.to_le_bytes()[0]
}

/// What one instruction of a vCPU sees.
pub(super) struct View<'a, H> {
    machine: &'a mut Machine,
    host: &'a mut H,
    vcpu: usize,
    mode: Mode,
    rflags: u64,
    system: Option<SystemState>,
}

impl Machine {
    /// The view of a vCPU in a mode.
    pub(super) fn view<'a, H: Host>(
        &'a mut self,
        host: &'a mut H,
        vcpu: usize,
        mode: Mode,
        rflags: u64,
    ) -> View<'a, H> {
        View { machine: self, host, vcpu, mode, rflags, system: None }
    }
}

impl<H: Host> emulate::CodeMemory for View<'_, H> {
    fn translate(
        &mut self,
        at: GuestVirtAddr,
        access: emulate::Access,
    ) -> Result<GuestPhysAddr, TranslationError> {
        let privilege = Privilege::explicit(&self.mode, self.rflags);
        match walk::translate(self.host, self.machine.processor, &self.mode, privilege, at, access) {
            Ok(translation) => Ok(translation.address),
            Err(WalkError::PageFault { error_code }) => Err(TranslationError::PageFault(error_code)),
            Err(WalkError::NotMemory(at)) => Err(TranslationError::NotMemory(NotMemory(at))),
            Err(WalkError::Contended) => Err(TranslationError::Contended),
            Err(WalkError::FiveLevels) => Err(TranslationError::NotMemory(NotMemory(GuestPhysAddr(at.0)))),
        }
    }

    fn fetch(&mut self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        self.host.read(at, into)
    }
}

impl<H: Host> emulate::Platform for View<'_, H> {
    fn segment(&mut self, register: SegmentRegister) -> Segment {
        let (host, vcpu) = (&mut *self.host, self.vcpu);
        let system = self.system.get_or_insert_with(|| Machine::fetched(host, vcpu));
        match register {
            SegmentRegister::Es => system.es,
            SegmentRegister::Cs => system.cs,
            SegmentRegister::Ss => system.ss,
            SegmentRegister::Ds => system.ds,
            SegmentRegister::Fs => system.fs,
            SegmentRegister::Gs => system.gs,
        }
    }

    fn read(&mut self, at: GuestPhysAddr, into: &mut [u8]) {
        if IO_APIC.contains(&at.0) {
            let register = register_of(at);
            let value = self.machine.io_apic_read(self.host, register).to_le_bytes();
            let known = value.iter().chain(core::iter::repeat(&0));
            into.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
        } else if self.host.read(at, into).is_err() {
            into.fill(0xff);
        }
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) {
        if IO_APIC.contains(&at.0) {
            let mut value = [0; 4];
            value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            let value = u32::from_le_bytes(value);
            self.machine.io_apic_write(self.host, self.vcpu, register_of(at), value, bytes.len());
        } else {
            // What is nowhere loses writes.
            let _ = self.host.write(at, bytes);
        }
    }

    fn port_in(&mut self, port: u16, into: &mut [u8]) {
        let value = self.machine.port_read(self.host, self.vcpu, port, into.len());
        into.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn port_out(&mut self, port: u16, bytes: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.machine.port_write(self.host, self.vcpu, port, bytes.len(), u32::from_le_bytes(value));
    }
}
