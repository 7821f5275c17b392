//! From an interrupt message to the vCPUs that it reaches.

use super::{Host, Machine, Phase};
use crate::interrupt::{DeliveryMode, Interrupt};
use crate::ioapic::{Line, Messages};
use crate::ports::Source;

impl Machine {
    /// Delivers a message. `current` is the vCPU whose exit this is, if it is one: it need not be told to look.
    pub(super) fn deliver<H: Host>(
        &mut self,
        host: &mut H,
        interrupt: Interrupt,
        sender: Option<usize>,
        current: Option<usize>,
    ) {
        let (cpus, first, mine) =
            (&self.cpus, self.first_vcpu, self.first_vcpu..self.first_vcpu + self.cpus.len());
        let priority = |vcpu: usize| match cpus.get(vcpu.wrapping_sub(first)) {
            Some(cpu) => cpu.apic.arbitration_priority(),
            // Another node's priorities are not known here: each is taken for one that does nothing and takes interrupts.
            None => Some(0),
        };
        for vcpu in self.processors.resolve(&interrupt, sender.map(|vcpu| vcpu + first), priority) {
            if !mine.contains(&vcpu) {
                self.signal_elsewhere(host, vcpu, &interrupt);
                continue;
            }
            let vcpu = vcpu - first;
            if self.signal(host, vcpu, &interrupt) && current != Some(vcpu) {
                host.kick(vcpu);
            }
        }
    }

    /// Tells one vCPU; whether it has to look.
    pub(super) fn signal<H: Host>(&mut self, host: &mut H, vcpu: usize, interrupt: &Interrupt) -> bool {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return false };
        match interrupt.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                cpu.apic.accept(interrupt.vector, interrupt.trigger) && cpu.phase != Phase::WaitsForStartUp
            }
            DeliveryMode::Nmi => {
                cpu.nmi_pending = true;
                cpu.phase != Phase::WaitsForStartUp
            }
            DeliveryMode::Init => {
                // One that waits already begins its wait anew.
                cpu.init_pending = cpu.phase != Phase::WaitsForStartUp;
                cpu.start_up = None;
                cpu.init_pending
            }
            DeliveryMode::StartUp => {
                if cpu.parked {
                    self.start_up(host, vcpu, interrupt.vector);
                    host.unpark(vcpu);
                } else if cpu.init_pending || cpu.phase == Phase::WaitsForStartUp {
                    // One that waits and is not parked has not come to its wait yet.
                    cpu.start_up = Some(interrupt.vector);
                }
                // Others ignore it (Intel SDM 3A, 9.4.3).
                false
            }
            // There is no system management mode, and no legacy interrupt controller.
            DeliveryMode::Smi | DeliveryMode::ExtInt => false,
        }
    }

    pub(super) fn deliver_all<H: Host>(&mut self, host: &mut H, messages: Messages, current: Option<usize>) {
        for message in messages {
            self.deliver(host, message, None, current);
        }
    }

    /// Carries the devices' lines to the I/O APIC.
    pub(super) fn update_lines<H: Host>(&mut self, host: &mut H, current: Option<usize>) {
        let now = self.guest_now(host);
        for source in Source::ALL {
            let asserted = self.ports.interrupt(source, now);
            let line = if asserted { Line::Asserted } else { Line::Deasserted };
            if let Some(message) = self.io_apic.set_line(source.gsi() as usize, line) {
                self.deliver(host, message, None, current);
            }
        }
    }
}
