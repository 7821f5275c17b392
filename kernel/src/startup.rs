//! From the boot loader to running services, once, on the first core.
//!
//! The order matters in three places. The boot information and ACPI's tables are read before the final address space
//! hides them. What the kernel maps is complete (devices included) before the first service shares the kernel's half.
//! The other cores run, idle, before the services are made, because services are spread over the cores that came.

use core::fmt;

use ipc::image::Image;
use ipc::vcpu::WINDOW_BASE;
use kernel::acpi::Acpi;
use kernel::acpi::fadt::Register;
use kernel::address::{FrameNumber, PhysAddr, VirtAddr};
use kernel::boot::BootInformation;
use kernel::cpu::Core;
use kernel::frames::Frames;
use kernel::ids::CoreId;
use kernel::load::{Platform, Routes, Spaces, load};
use kernel::log_ring::{LogRing, RING_BYTES};
use kernel::machine::Machine;
use kernel::memory_map::MemoryMap;
use kernel::paging::host::{HostAttributes, HostFormat};
use kernel::paging::{PageSize, PageTable};
use kernel::{multiboot2, pvh};

use crate::discover::{Found, discover};
use crate::hw::boot::{Handover, Protocol};
use crate::hw::direct::{Tables, boot_module};
use crate::hw::instructions::read_tsc;
use crate::hw::machine::HwMachine;
use crate::hw::panic::refuse;
use crate::hw::percpu::{PerCpu, apic_id_of};
use crate::hw::smp::TrampolinePage;
use crate::hw::space::KernelSpace;
use crate::hw::{apic, boot, clock, smp, space, svm};
use crate::{KERNEL, Kernel, go_on, klog, print};

const PAGE: u64 = ipc::abi::PAGE_SIZE as u64;
/// What real mode reaches, less what firmware likes to keep at its end.
const TRAMPOLINE_END: u64 = 0x9_f000;

/// Boots, and leaves to the first service. What stands in its way is told on the console.
pub fn start(handover: Handover, core: &'static mut PerCpu) -> ! {
    let entered = read_tsc();
    let information = read_information(&handover);
    let acpi = or_refuse("ACPI", Acpi::read(&handover.memory, &information.rsdp));
    let Some((module_at, module_bytes)) = information.module else {
        refuse(format_args!("no boot module: the boot loader must load the image beside the kernel"))
    };
    let (free, trampoline) = free_memory(&information, module_at, module_bytes);
    let mut frames = Frames::new(&free);
    let processors = &acpi.madt.processors;
    let built = KernelSpace::build(&mut frames, &information.memory, processors.len().max(1));
    let kernel_space = or_refuse("the kernel's address space", built);
    kernel_space.activate(handover.memory, core);
    let timer = match acpi.fixed.timer {
        Some(Register::Port(port)) => Some(port),
        _ => None,
    };
    let Some(frequencies) = clock::measure(timer) else {
        refuse(format_args!("no clock tells how fast the processor's is"))
    };
    apic::set_frequencies(frequencies);
    let mut machine = or_refuse(
        "the chipset's registers",
        HwMachine::new(&acpi, &kernel_space, &mut frames, frequencies.tsc_hz),
    );
    let Some(module) = boot_module(&information.memory, module_at, module_bytes) else {
        refuse(format_args!("the boot module lies outside usable memory"))
    };
    let parsed = Image::parse(module).and_then(|image| Ok((image, image.system()?)));
    let (image, system) = or_refuse("the image", parsed);
    let mut found = discover(&mut machine, &kernel_space, &mut frames, &system.devices);
    let finished = kernel_space.finish();
    let virtualization = or_refuse("the cores' areas", svm::prepare(&mut frames, processors.len().max(1)));
    svm::enable(core);
    let cores = match trampoline {
        Some(page) => smp::start(processors, page, frequencies.tsc_hz),
        None => 1,
    };
    let platform = Platform {
        tsc_hz: frequencies.tsc_hz,
        cores,
        node: node_number(&information.command_line),
        module: module_at,
        virtualization,
        devices: &found.devices,
        isa: &|line| {
            let line = acpi.madt.isa(line);
            (line.gsi, line.signal.trigger)
        },
    };
    let mut kernel = KERNEL.lock();
    let Kernel { state, machine: place } = &mut *kernel;
    let now = machine.now();
    for _ in 0..cores {
        let ring = or_refuse("a core's log", frames.allocate(RING_BYTES / PAGE, 1, None));
        let ring = LogRing::new(ring.start());
        // There are at most as many cores as places.
        let _ = state.logs.push(ring);
        let _ = state.cores.push(Core { since: now, ..Core::idle() });
    }
    let mut spaces = ServiceSpaces(finished);
    let loaded = load(state, &mut machine, &mut spaces, &mut frames, &image, &system, &platform);
    let routes = or_refuse("the image", loaded);
    route(&mut machine, &acpi, &mut found, &routes);
    // The log's reader takes the rate of its time stamps from this line.
    defmt::println!("tsc_hz={=u64}", frequencies.tsc_hz);
    defmt::info!(
        "image '{=str}': {=usize} services on {=usize} cores; {=u64} of {=u64} frames free",
        system.name.as_str(),
        state.services.len(),
        cores,
        state.node.frames_free,
        state.node.frames
    );
    if system.guest.is_some() && state.guest.is_none() {
        print!(
            "unum: this processor has no AMD SVM with nested paging, or firmware locked it: no guest can run here"
        );
    }
    print!("unum: {} services on {cores} cores", state.services.len());
    let first = CoreId(0);
    klog::flush(state, &mut machine, first);
    (state.node.entered, state.node.left) = (entered, machine.now());
    state.wake_up(&mut machine, first);
    state.settle(&mut machine, first);
    *place = machine;
    go_on(core, &mut kernel, first);
    drop(kernel);
    boot::leave(core)
}

/// What was done, or the end of the boot.
fn or_refuse<T, E: fmt::Display>(what: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => refuse(format_args!("{what}: {error}")),
    }
}

fn read_information(handover: &Handover) -> BootInformation {
    let parsed = match handover.protocol {
        Protocol::Pvh => pvh::parse(&handover.memory, handover.information),
        Protocol::Multiboot2 => multiboot2::parse(&handover.memory, handover.information),
    };
    or_refuse("the boot loader's information", parsed)
}

/// The memory that is nobody's yet, and the page for the other cores' first steps.
fn free_memory(
    information: &BootInformation,
    module_at: PhysAddr,
    module_bytes: u64,
) -> (MemoryMap, Option<TrampolinePage>) {
    let mut free = information.memory.clone();
    let (image_at, image_bytes) = space::image();
    let mut exclude = |at, bytes| or_refuse("the memory map", free.exclude(at, bytes));
    exclude(image_at, image_bytes);
    exclude(module_at, module_bytes);
    let low =
        free.usable().filter(|range| range.end.0 > 2 * PAGE && range.start.0 + PAGE < TRAMPOLINE_END).last();
    let page = low.map(|range| PhysAddr((range.end.0.min(TRAMPOLINE_END) - PAGE) & !(PAGE - 1)));
    (free, page.and_then(TrampolinePage::new))
}

/// The node's number: `node=N` on the command line, else 0.
fn node_number(command_line: &str) -> u64 {
    let words = command_line.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix("node=")).find_map(|number| number.parse().ok()).unwrap_or(0)
}

/// Tells the chipset where the services' interrupts go.
fn route(machine: &mut HwMachine, acpi: &Acpi, found: &mut Found, routes: &Routes) {
    for pin in &routes.pins {
        let signal = acpi.madt.isa(pin.line).signal;
        let Some(apic_id) = apic_id_of(pin.core.index()) else { continue };
        match machine.io_apics.route(pin.gsi, signal, pin.vector, apic_id) {
            Ok(()) => machine.io_apics.unmask(pin.gsi),
            Err(error) => defmt::warn!("ISA line {=u8}: {}", pin.line, defmt::Display2Format(&error)),
        }
    }
    for entry in &routes.msi {
        let Some(apic_id) = apic_id_of(entry.core.index()) else { continue };
        if let Err(error) = found.set(entry, apic_id) {
            defmt::warn!("MSI-X entry {=u16}: {}", entry.entry, defmt::Display2Format(&error));
        }
    }
}

/// Services' address spaces, beside the kernel's finished half.
struct ServiceSpaces(PageTable<HostFormat>);

impl Spaces for ServiceSpaces {
    fn create(&mut self, frames: &mut Frames) -> Option<PhysAddr> {
        let tables = &mut Tables { frames, below: None };
        let table = PageTable::new(tables)?;
        table.share_upper_half(tables, &self.0);
        Some(table.root().start())
    }

    fn map(
        &mut self,
        frames: &mut Frames,
        root: PhysAddr,
        from: VirtAddr,
        to: PhysAddr,
        pages: u64,
        with: HostAttributes,
    ) -> Option<()> {
        let table = PageTable::<HostFormat>::from_root(FrameNumber::containing(root));
        let mut tables = Tables { frames, below: None };
        table.map(&mut tables, from, FrameNumber::containing(to), pages, with, PageSize::Large).ok()
    }

    fn link_window(&mut self, frames: &mut Frames, root: PhysAddr, second: FrameNumber) {
        let table = PageTable::<HostFormat>::from_root(FrameNumber::containing(root));
        table.link_window(&mut Tables { frames, below: None }, VirtAddr(WINDOW_BASE), second);
    }
}
