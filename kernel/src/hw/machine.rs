//! [`Machine`] for real.
#![expect(unsafe_code, reason = "physical memory through the direct map")]

use core::sync::atomic::{AtomicBool, Ordering};

use kernel::acpi::Acpi;
use kernel::address::PhysAddr;
use kernel::context::Extended;
use kernel::frames::Frames;
use kernel::machine::{Machine, PciAddress, StopKind, Width};
use kernel::svm::vmcb::Vmcb;
use pci::ConfigAccess;

use super::direct::pointer;
use super::instructions::{read_tsc, write_cr3};
use super::ioapic::IoApics;
use super::pci::{ConfigSpace, memory_of};
use super::power::Power;
use super::space::{KernelSpace, SpaceError};
use super::{apic, extended, ioapic, percpu, ports, space};

/// The chipset; the processor is whichever this runs on. There is one, behind the kernel lock.
#[derive(Debug)]
pub struct HwMachine {
    /// Interrupt lines.
    pub io_apics: IoApics,
    /// PCI configuration.
    pub pci: ConfigSpace,
    /// The way out.
    pub power: Power,
}

/// Whether there is one already.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl HwMachine {
    /// Before the chipset is taken over: without any of its parts.
    #[must_use]
    pub const fn absent() -> Self {
        Self { io_apics: IoApics::absent(), pci: ConfigSpace::absent(), power: Power::absent() }
    }

    /// Takes over the chipset: maps the registers of I/O APICs, PCI configuration space and power control, and masks
    /// every interrupt line.
    ///
    /// # Errors
    /// What [`KernelSpace::map_device`] refuses.
    ///
    /// # Panics
    /// When there is a machine already.
    pub fn new(
        acpi: &Acpi,
        space: &KernelSpace,
        frames: &mut Frames,
        tsc_hz: u64,
    ) -> Result<Self, SpaceError> {
        assert!(!TAKEN.swap(true, Ordering::Relaxed), "the chipset was taken over before");
        for io_apic in &acpi.madt.io_apics {
            space.map_device(frames, io_apic.address, ioapic::REGISTER_BYTES)?;
        }
        for segment in &acpi.ecam {
            let memory = memory_of(segment);
            space.map_device(frames, PhysAddr(memory.start), memory.end - memory.start)?;
        }
        let power = Power::new(acpi, tsc_hz);
        for register in power.registers() {
            space.map_device(frames, register, 2)?;
        }
        // SAFETY: the registers were mapped just now, and nobody else has been here.
        let io_apics = unsafe { IoApics::new(&acpi.madt.io_apics) };
        // SAFETY: as above.
        let pci = unsafe { ConfigSpace::new(&acpi.ecam) };
        Ok(Self { io_apics, pci, power })
    }
}

impl Machine for HwMachine {
    #[inline]
    fn now(&self) -> u64 {
        read_tsc()
    }

    fn set_timer(&mut self, deadline: u64) {
        apic::set_timer(deadline);
    }

    fn reschedule(&mut self, core: usize) {
        if let Some(apic_id) = percpu::apic_id_of(core) {
            apic::send(apic_id, apic::RESCHEDULE_VECTOR);
        }
    }

    #[inline]
    fn switch_address_space(&mut self, root: PhysAddr) {
        // SAFETY: the logic passes roots of services alone, whose upper half is the kernel's.
        unsafe { write_cr3(root.0) };
    }

    #[inline]
    fn read(&self, from: PhysAddr, into: &mut [u8]) {
        // SAFETY: the logic reads memory that it allocated; a service that writes there at the same time gets bytes of
        // either value, and nothing is made of them but bytes.
        unsafe { into.as_mut_ptr().copy_from_nonoverlapping(pointer(from), into.len()) };
    }

    #[inline]
    fn write(&mut self, to: PhysAddr, bytes: &[u8]) {
        // SAFETY: the logic writes memory that it allocated, none of which holds a Rust object.
        unsafe { pointer::<u8>(to).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    #[inline]
    fn read_u32(&self, from: PhysAddr) -> u32 {
        // SAFETY: the logic reads memory that it allocated, aligned.
        unsafe { pointer::<u32>(from).read_volatile() }
    }

    #[inline]
    fn read_u64(&self, from: PhysAddr) -> u64 {
        // SAFETY: the logic reads memory that it allocated, aligned.
        unsafe { pointer::<u64>(from).read_volatile() }
    }

    #[inline]
    fn write_u64(&mut self, to: PhysAddr, value: u64) {
        // SAFETY: the logic writes memory that it allocated, aligned, none of which holds a Rust object.
        unsafe { pointer::<u64>(to).write_volatile(value) };
    }

    #[inline]
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, bytes: usize) {
        // SAFETY: both are memory that the logic allocated, and they do not overlap.
        unsafe { pointer::<u8>(to).copy_from_nonoverlapping(pointer(from), bytes) };
    }

    fn zero(&mut self, at: PhysAddr, bytes: usize) {
        // SAFETY: the logic zeroes memory that it allocated.
        unsafe { pointer::<u8>(at).write_bytes(0, bytes) };
    }

    fn mask(&mut self, gsi: u32) {
        self.io_apics.mask(gsi);
    }

    fn unmask(&mut self, gsi: u32) {
        self.io_apics.unmask(gsi);
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        ports::read(port, width)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        ports::write(port, width, value);
    }

    fn config_read(&mut self, function: PciAddress, offset: u16, width: Width) -> u32 {
        self.pci.read(function, offset, width)
    }

    fn config_write(&mut self, function: PciAddress, offset: u16, width: Width, value: u32) {
        self.pci.write(function, offset, width, value);
    }

    fn physical_address(&self, block: &Vmcb) -> PhysAddr {
        space::physical_of(core::ptr::from_ref(block).cast())
    }

    #[inline]
    fn begin_guest(&mut self) {
        percpu::status().begin_guest();
    }

    fn expel(&mut self, core: usize) {
        percpu::expel(core, || self.reschedule(core));
    }

    fn save_extended(&mut self, into: &mut Extended) {
        extended::save(into);
    }

    fn load_extended(&mut self, from: &Extended) {
        extended::load(from);
    }

    fn machine_check(&mut self) {
        panic!("machine check while a vCPU ran");
    }

    fn stop_node(&mut self, kind: StopKind) {
        match kind {
            StopKind::PowerOff => self.power.off(),
            StopKind::Reset => self.power.reset(),
        }
    }
}
