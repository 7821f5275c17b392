//! What the platforms of a guest that spans nodes ask of each other: interrupts for vCPUs elsewhere, and accesses to devices,
//! which the first node alone has.

use super::{Host, Machine};
use crate::cluster::message::{Access, Say, Signal, Space};
use crate::cluster::vcpu_at;
use crate::interrupt::{Destination, Interrupt};
use crate::ports;

impl Machine {
    /// Whether this is the node that has the devices.
    pub(super) const fn has_devices(&self) -> bool {
        self.place == 0
    }

    /// The number among all of the guest's of a vCPU of this node.
    #[must_use]
    pub const fn number_of(&self, vcpu: usize) -> usize {
        self.first_vcpu + vcpu
    }

    fn first_node(&self) -> u16 {
        self.shares.first().map_or(0, |share| share.node)
    }

    /// Tells a vCPU of another node, by its number among all.
    #[cold]
    pub(super) fn signal_elsewhere<H: Host>(&self, host: &mut H, vcpu: usize, interrupt: &Interrupt) {
        let share = vcpu_at(&self.shares, vcpu).and_then(|(place, _)| self.shares.get(place));
        if let (Some(share), Ok(vcpu)) = (share, u8::try_from(vcpu)) {
            host.send(share.node, Say::Signal(Signal::of(interrupt, vcpu)));
        }
    }

    /// The end of an interrupt whose source is served until it is quiet.
    pub(super) fn end_of_interrupt<H: Host>(&mut self, host: &mut H, vector: u8, current: Option<usize>) {
        if self.has_devices() {
            let messages = self.io_apic.end_of_interrupt(vector);
            self.deliver_all(host, messages, current);
        } else {
            host.send(self.first_node(), Say::EndOfInterrupt { vector });
        }
    }

    /// An access to a port of the first node's.
    #[cold]
    pub(super) fn ask_port<H: Host>(host: &mut H, port: u16, bytes: u8, write: Option<u32>) -> u32 {
        if ports::answers(port, bytes) {
            host.ask(Access { space: Space::Ports, address: port, bytes, write })
        } else {
            u32::MAX
        }
    }

    pub(super) fn io_apic_read<H: Host>(&mut self, host: &mut H, register: u8) -> u32 {
        if self.has_devices() {
            self.io_apic.read(register.into())
        } else {
            host.ask(Access { space: Space::IoApic, address: register.into(), bytes: 4, write: None })
        }
    }

    pub(super) fn io_apic_write<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        register: u8,
        value: u32,
        bytes: usize,
    ) {
        if self.has_devices() {
            let messages = self.io_apic.write(register.into(), value, bytes);
            self.deliver_all(host, messages, Some(vcpu));
        } else {
            // What is longer than a register is as long as the longest.
            let bytes = u8::try_from(bytes).map_or(15, |bytes| bytes.clamp(1, 15));
            let write = Some(value);
            host.ask(Access { space: Space::IoApic, address: register.into(), bytes, write });
        }
    }

    /// Does what the platform of another node asks for; `false` when that is nothing that this one could. The guest may be
    /// over afterwards.
    pub fn receive<H: Host>(&mut self, host: &mut H, from: u16, say: &Say) -> bool {
        match *say {
            Say::Signal(signal) => self.signalled(host, signal),
            Say::EndOfInterrupt { vector } if self.has_devices() => {
                self.end_of_interrupt(host, vector, None);
                true
            }
            Say::Access { id, access } if self.has_devices() => {
                let value = self.accessed(host, access);
                host.send(from, Say::Answer { id, value });
                true
            }
            _ => false,
        }
    }

    /// A vCPU here gets an interrupt from elsewhere.
    fn signalled<H: Host>(&mut self, host: &mut H, signal: Signal) -> bool {
        let Signal { vcpu, delivery, vector, trigger } = signal;
        let local = usize::from(vcpu).checked_sub(self.first_vcpu);
        let Some(vcpu) = local.filter(|&vcpu| vcpu < self.cpus.len()) else { return false };
        let interrupt = Interrupt { destination: Destination::Myself, delivery, vector, trigger };
        if self.signal(host, vcpu, &interrupt) {
            host.kick(vcpu);
        }
        true
    }

    /// A vCPU elsewhere accesses a device. There is no current vCPU: the first one comes when it is to look.
    fn accessed<H: Host>(&mut self, host: &mut H, access: Access) -> u32 {
        let Access { space, address, bytes, write } = access;
        match (space, write) {
            (Space::Ports, None) => self.read_port(host, None, address, bytes.min(4)),
            (Space::Ports, Some(value)) => {
                self.write_port(host, None, address, bytes.min(4), value);
                0
            }
            (Space::IoApic, None) => self.io_apic.read(u64::from(address & 0xff)),
            (Space::IoApic, Some(value)) => {
                let messages = self.io_apic.write(u64::from(address & 0xff), value, bytes.into());
                self.deliver_all(host, messages, None);
                0
            }
        }
    }
}
