//! Finding the PCI functions that the manifest gives to services. The kernel keeps to itself what would let a driver
//! raise another's interrupts: the MSI-X tables, and the BARs that hold them.

use core::fmt;

use heapless::Vec;
use ipc::image::{DeviceDescriptor, MAX_DEVICES};
use kernel::address::PhysAddr;
use kernel::frames::Frames;
use kernel::load::{Bar, Device, MsiRoute};
use pci::{Address, BarKind, Command, Function, MsiX, MsiXState, Scan, bars, update_command};

use crate::hw::ioapic::RouteError;
use crate::hw::machine::HwMachine;
use crate::hw::msix::MsixTable;
use crate::hw::space::KernelSpace;

/// What was found, in the manifest's order.
pub struct Found {
    /// The functions.
    pub devices: Vec<Option<Device>, MAX_DEVICES>,
    tables: Vec<(Address, MsixTable), MAX_DEVICES>,
}

impl Found {
    /// Programs an entry of a function's MSI-X table.
    pub fn set(&mut self, route: &MsiRoute, apic_id: u32) -> Result<(), RouteError> {
        match self.tables.iter_mut().find(|(function, _)| *function == route.function) {
            Some((_, table)) => table.set(route.entry, route.vector, apic_id),
            None => Err(RouteError::NoSuchLine(u32::from(route.entry))),
        }
    }
}

/// Looks for each device of the manifest. One that is not there, or that is not sound, is told in the log and left out.
pub fn discover(
    machine: &mut HwMachine,
    space: &KernelSpace,
    frames: &mut Frames,
    wanted: &[DeviceDescriptor],
) -> Found {
    let mut found = Found { devices: Vec::new(), tables: Vec::new() };
    for descriptor in wanted {
        let device = find(machine, descriptor)
            .and_then(|function| set_up(machine, space, frames, descriptor, &function, &mut found.tables));
        if device.is_none() {
            defmt::info!("device '{=str}' is not on this node", descriptor.name.as_str());
        }
        // The descriptor's list is no longer than this one.
        let _ = found.devices.push(device);
    }
    found
}

fn find(machine: &mut HwMachine, descriptor: &DeviceDescriptor) -> Option<Function> {
    let config = &mut machine.pci;
    let mut scan = Scan::new();
    let mut passed = 0;
    while let Some(function) = scan.next(config) {
        if function.vendor == descriptor.vendor && descriptor.device_ids.contains(&function.device) {
            if passed == descriptor.skip {
                return Some(function);
            }
            passed += 1;
        }
    }
    None
}

fn told<T, E: fmt::Display>(name: &str, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| defmt::warn!("device '{=str}': {}", name, defmt::Display2Format(&error))).ok()
}

fn set_up(
    machine: &mut HwMachine,
    space: &KernelSpace,
    frames: &mut Frames,
    descriptor: &DeviceDescriptor,
    function: &Function,
    tables: &mut Vec<(Address, MsixTable), MAX_DEVICES>,
) -> Option<Device> {
    let name = descriptor.name.as_str();
    let (config, address) = (&mut machine.pci, function.address);
    let all = told(name, bars(config, function))?;
    let msix = told(name, MsiX::find(config, address))?;
    let mut device = Device { address, bars: Vec::new(), msix: 0, msix_entries: 0 };
    update_command(config, address, Command::NONE, Command::MEMORY.and(Command::BUS_MASTER));
    if let Some(msix) = &msix {
        let at = told(name, msix.table_address(&all))?;
        let table = told(name, MsixTable::map(space, frames, PhysAddr(at), msix.entries))?;
        msix.set_state(config, MsiXState::Enabled);
        tables.push((address, table)).ok()?;
        device.msix = msix.capability();
        device.msix_entries = msix.entries.min(u16::from(descriptor.interrupts));
    }
    for (number, bar) in (0u8..).zip(all.iter()) {
        let Some(bar) = bar else { continue };
        let holds_table = msix.as_ref().is_some_and(|msix| msix.table.bar == number);
        if bar.kind == BarKind::Io || bar.address == 0 || holds_table {
            continue;
        }
        let bar = Bar { index: number, physical: PhysAddr(bar.address), bytes: bar.size };
        // A function has at most six.
        let _ = device.bars.push(bar);
    }
    Some(device)
}
