//! From the boot module to services that run: every object is made here, once.
//!
//! What the module says is a claim: whatever it names that is not there, or does not fit, is refused with the name of
//! the service or region. Nothing is allocated after [`load`] returns.

use core::fmt;

use heapless::Vec;
use ipc::abi::{
    CapabilityKind, ENTRY_KEPT, ENTRY_WRITABLE, HEAP_BASE, Handle, MAX_CAPABILITIES, MAX_REGIONS,
    MAX_STACK_BYTES, MAX_THREADS_PER_SERVICE, Name, PAGE_SIZE, PRIORITIES, REGION_BASE, START_MAGIC,
    START_PAGE, ServiceState, StartEntry, StartPage, USER_END, message_page, stack_top,
};
use ipc::image::{
    CapabilityDescriptor, DEVICE_WINDOW_BYTES, Image, ImageError, MAX_DEVICES, ObjectDescriptor,
    RegionDescriptor, RegionKind, ServiceDescriptor, SystemDescriptor,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::address::{PhysAddr, VirtAddr};
use crate::elf::{Elf, ElfError, Rights};
use crate::frames::{Frames, NoMemory};
use crate::ids::{CoreId, ServiceId, ThreadId};
use crate::interrupts::InterruptLine;
use crate::lifecycle::{restore, slot_number};
use crate::machine::{InterruptSource, Machine, PciAddress, Trigger};
use crate::service::{Access, Mapping, Object, OnRestart, Service, Serving};
use crate::state::State;
use crate::thread::Thread;

const PAGE: u64 = PAGE_SIZE as u64;
/// DMA regions lie below this, so that a device with 32 address bits reaches them.
const DMA_END: PhysAddr = PhysAddr(1 << 32);
/// Distance between two BARs of a device in its driver's address space.
const BAR_STRIDE: u64 = DEVICE_WINDOW_BYTES / 8;

/// What a page of a service's may be used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PageUse {
    /// Memory, as an ELF segment asks.
    Memory(Rights),
    /// A device's registers: read and written, not cached.
    Device,
}

/// The address spaces of services.
pub trait Spaces {
    /// Makes an address space with nothing but the kernel in it; the address of its root.
    fn create(&mut self, frames: &mut Frames) -> Option<PhysAddr>;
    /// Maps pages; `None` when there is no frame for a table, or something else is mapped there.
    fn map(
        &mut self,
        frames: &mut Frames,
        root: PhysAddr,
        from: VirtAddr,
        to: PhysAddr,
        pages: u64,
        page_use: PageUse,
    ) -> Option<()>;
}

/// A memory BAR of a device.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Which, 0 to 5.
    pub index: u8,
    /// Where it is.
    pub physical: PhysAddr,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A PCI function that the manifest gives to a service, and that is there.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where it is.
    pub address: PciAddress,
    /// Its memory BARs.
    pub bars: Vec<Bar, 6>,
    /// Offset of its MSI-X capability; 0 for none.
    pub msix: u16,
    /// Entries of its MSI-X table.
    pub msix_entries: u16,
}

/// An MSI-X entry to program.
#[derive(Clone, Copy, Debug)]
pub struct MsiRoute {
    /// Whose.
    pub function: PciAddress,
    /// Which entry.
    pub entry: u16,
    /// The vector to send.
    pub vector: u8,
    /// To this core.
    pub core: CoreId,
}

/// An I/O APIC pin to route.
#[derive(Clone, Copy, Debug)]
pub struct PinRoute {
    /// The ISA line that the manifest names.
    pub line: u8,
    /// Global system interrupt.
    pub gsi: u32,
    /// The vector to send.
    pub vector: u8,
    /// To this core.
    pub core: CoreId,
}

/// The interrupts that the chipset has to be told of.
#[derive(Debug, Default)]
pub struct Routes {
    /// MSI-X entries.
    pub msi: Vec<MsiRoute, 64>,
    /// I/O APIC pins.
    pub pins: Vec<PinRoute, 32>,
}

/// What the loader needs to know of the node.
pub struct Platform<'a> {
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// Cores that run.
    pub cores: usize,
    /// The node's number.
    pub node: u64,
    /// Where the boot module lies.
    pub module: PhysAddr,
    /// For each device of the system descriptor, the function found.
    pub devices: &'a Vec<Option<Device>, MAX_DEVICES>,
    /// The global system interrupt and trigger of an ISA line.
    pub isa: &'a dyn Fn(u8) -> (u32, Trigger),
}

/// Why the system is not loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoadError {
    /// The boot module is bad.
    Image(ImageError),
    /// A service's ELF file is bad.
    Elf(Name, ElfError),
    /// There is not enough memory for this service or region.
    NoMemory(Name, NoMemory),
    /// A service's pages cannot be mapped: they overlap, or tables ran out.
    CannotMap(Name),
    /// A number in a service's descriptor is out of its range.
    OutOfRange(Name, &'static str),
    /// A table of the kernel's is full at this service.
    TooMany(Name, &'static str),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Elf(name, error) => write!(f, "service '{name}': {error}"),
            Self::NoMemory(name, error) => write!(f, "'{name}': {error}"),
            Self::CannotMap(name) => write!(f, "service '{name}': its memory overlaps or cannot be mapped"),
            Self::OutOfRange(name, what) => write!(f, "service '{name}': {what} is out of range"),
            Self::TooMany(name, what) => write!(f, "service '{name}': too many {what}"),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<ImageError> for LoadError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// A region with its memory.
struct Region<'a> {
    descriptor: &'a RegionDescriptor,
    physical: PhysAddr,
}

impl Region<'_> {
    fn bytes(&self) -> u64 {
        u64::from(self.descriptor.pages) * PAGE
    }
}

/// Makes every service of the image in `state`, and starts them. Returns the interrupts to route.
///
/// # Errors
/// The [`LoadError`] that names what is wrong; the state is then of no use.
pub fn load<M: Machine, S: Spaces>(
    state: &mut State,
    m: &mut M,
    spaces: &mut S,
    frames: &mut Frames,
    image: &Image<'_>,
    system: &SystemDescriptor,
    platform: &Platform<'_>,
) -> Result<Routes, LoadError> {
    state.node.tsc_hz = platform.tsc_hz;
    state.node.number = platform.node;
    // Ten milliseconds.
    state.turn = platform.tsc_hz / 100;
    let mut regions: Vec<Region<'_>, MAX_REGIONS> = Vec::new();
    for descriptor in &system.regions {
        let name = name_of(&descriptor.name);
        let below = (descriptor.kind == RegionKind::Dma).then_some(DMA_END);
        let physical = take(m, frames, name, u64::from(descriptor.pages), below)?;
        regions.push(Region { descriptor, physical }).map_err(|_| LoadError::TooMany(name, "regions"))?;
    }
    let mut routes = Routes::default();
    let mut loader = Loader { m, spaces, frames, image, platform, regions: &regions, routes: &mut routes };
    for (number, entry) in image.services().enumerate() {
        let descriptor = image.service(entry)?;
        let id = ServiceId::from_index(number);
        let name = name_of(&descriptor.name);
        check(&descriptor, name, platform, system)?;
        let service = loader.service(state, id, name, &descriptor)?;
        state.services.push(service).map_err(|_| LoadError::TooMany(name, "services"))?;
    }
    state.node.frames = frames.total();
    state.node.frames_free = frames.free();
    for index in 0..state.services.len() {
        state.start(m, CoreId(0), ServiceId::from_index(index));
    }
    Ok(routes)
}

/// Refuses numbers that the kernel would have to trust later.
fn check(
    descriptor: &ServiceDescriptor,
    name: Name,
    platform: &Platform<'_>,
    system: &SystemDescriptor,
) -> Result<(), LoadError> {
    let out = |what| Err(LoadError::OutOfRange(name, what));
    if usize::from(descriptor.priority) >= PRIORITIES {
        return out("its priority");
    }
    if descriptor.threads == 0 || usize::from(descriptor.threads) > MAX_THREADS_PER_SERVICE {
        return out("its number of threads");
    }
    let stack = u64::from(descriptor.stack_bytes);
    if stack == 0 || !stack.is_multiple_of(PAGE) || stack > MAX_STACK_BYTES {
        return out("its stack");
    }
    if !u64::from(descriptor.heap_bytes).is_multiple_of(PAGE) {
        return out("its heap");
    }
    if descriptor.budget_us == 0 || platform.tsc_hz == 0 {
        return out("its budget");
    }
    for capability in &descriptor.capabilities {
        let known = |service: u8| service < system.service_count;
        let good = match capability.object {
            ObjectDescriptor::Endpoint { service } | ObjectDescriptor::Notification { service, .. } => {
                known(service)
            }
            ObjectDescriptor::Region { region, address, .. } => {
                let bytes = system.regions.get(usize::from(region)).map(|r| u64::from(r.pages) * PAGE);
                bytes.and_then(|b| address.checked_add(b)).is_some_and(|end| end <= USER_END)
                    && address >= REGION_BASE
                    && address.is_multiple_of(PAGE)
            }
            ObjectDescriptor::Interrupt { line, .. } => line < 16,
            ObjectDescriptor::Ports { first, count } => count > 0 && first.checked_add(count - 1).is_some(),
            ObjectDescriptor::Device { device, address, .. } => {
                usize::from(device) < system.devices.len()
                    && address >= REGION_BASE
                    && address.is_multiple_of(PAGE)
                    && address.checked_add(DEVICE_WINDOW_BYTES).is_some_and(|end| end <= USER_END)
            }
        };
        if !good {
            return out("one of its capabilities");
        }
    }
    Ok(())
}

struct Loader<'a, 'b, M, S> {
    m: &'a mut M,
    spaces: &'a mut S,
    frames: &'a mut Frames,
    image: &'a Image<'b>,
    platform: &'a Platform<'a>,
    regions: &'a Vec<Region<'a>, MAX_REGIONS>,
    routes: &'a mut Routes,
}

impl<M: Machine, S: Spaces> Loader<'_, '_, M, S> {
    fn service(
        &mut self,
        state: &mut State,
        id: ServiceId,
        name: Name,
        descriptor: &ServiceDescriptor,
    ) -> Result<Service, LoadError> {
        let mut service = Service::absent();
        service.name = name;
        service.state = ServiceState::Ready;
        service.priority = descriptor.priority;
        service.serving = if descriptor.pinned { Serving::Pinned } else { Serving::OnCallersTime };
        service.budget = self.platform.tsc_hz / 1000 * u64::from(descriptor.budget_us) / 1000;
        service.rights = descriptor.rights;
        service.threads = descriptor.threads;
        service.stack_bytes = u64::from(descriptor.stack_bytes);
        service.restart_limit = descriptor.restart_limit;
        service.restart_period_ms = descriptor.restart_period_ms;
        service.beat_ms = descriptor.beat_ms;
        service.root = self.spaces.create(self.frames).ok_or(LoadError::CannotMap(name))?;
        self.elf(&mut service)?;
        if descriptor.heap_bytes > 0 {
            self.zeroed(&mut service, VirtAddr(HEAP_BASE), u64::from(descriptor.heap_bytes))?;
        }
        let core = descriptor.core.map_or(id.index(), usize::from) % self.platform.cores;
        service.first_thread = ThreadId::from_index(state.threads.len());
        for slot in 0..descriptor.threads {
            self.thread(state, &mut service, id, slot, core)?;
        }
        self.start_page(state, &mut service, id, descriptor, CoreId::from_index(core))?;
        Ok(service)
    }

    /// Maps memory and notes it among the service's.
    fn add(&mut self, service: &mut Service, mapping: Mapping, page_use: PageUse) -> Result<(), LoadError> {
        let pages = mapping.bytes.div_ceil(PAGE);
        self.spaces
            .map(self.frames, service.root, mapping.start, mapping.physical, pages, page_use)
            .ok_or(LoadError::CannotMap(service.name))?;
        service.mappings.push(mapping).map_err(|_| LoadError::TooMany(service.name, "pieces of memory"))
    }

    /// Gives the service memory that is zero at each start.
    fn zeroed(&mut self, service: &mut Service, start: VirtAddr, bytes: u64) -> Result<PhysAddr, LoadError> {
        let physical = take(self.m, self.frames, service.name, bytes / PAGE, None)?;
        let on_restart = OnRestart::Restore { source: PhysAddr(0), source_bytes: 0 };
        let mapping = Mapping { start, bytes, physical, access: Access::ReadWrite, on_restart };
        self.add(service, mapping, PageUse::Memory(Rights::ReadWrite))?;
        Ok(physical)
    }

    fn elf(&mut self, service: &mut Service) -> Result<(), LoadError> {
        let file = self.image.elf(service.name)?;
        let file_at = self.platform.module.0 + self.image.offset_of(file) as u64;
        let elf = Elf::parse(file).map_err(|error| LoadError::Elf(service.name, error))?;
        service.entry = elf.entry();
        for segment in elf.segments() {
            let bytes = segment.pages() * PAGE;
            let physical = take(self.m, self.frames, service.name, segment.pages(), None)?;
            let source = PhysAddr(file_at + segment.file.start as u64);
            let source_bytes = segment.file.len() as u64;
            restore(self.m, source, source_bytes, physical, bytes);
            let (access, on_restart) = match segment.rights {
                Rights::ReadWrite => (Access::ReadWrite, OnRestart::Restore { source, source_bytes }),
                Rights::Read | Rights::ReadExecute => (Access::ReadOnly, OnRestart::Keep),
            };
            let mapping = Mapping { start: segment.address, bytes, physical, access, on_restart };
            self.add(service, mapping, PageUse::Memory(segment.rights))?;
        }
        Ok(())
    }

    fn thread(
        &mut self,
        state: &mut State,
        service: &mut Service,
        id: ServiceId,
        slot: u8,
        core: usize,
    ) -> Result<(), LoadError> {
        let thread_id = ThreadId::from_index(state.threads.len());
        let mut thread = Thread::unused(thread_id);
        thread.place(thread_id, id, slot);
        thread.root = service.root;
        thread.priority = service.priority;
        thread.core = CoreId::from_index(core);
        let page = VirtAddr(message_page(usize::from(slot)));
        thread.message_page = self.zeroed(service, page, PAGE)?;
        let stack = VirtAddr(stack_top(usize::from(slot)) - service.stack_bytes);
        self.zeroed(service, stack, service.stack_bytes)?;
        state.threads.push(thread).map_err(|_| LoadError::TooMany(service.name, "threads"))
    }

    fn start_page(
        &mut self,
        state: &mut State,
        service: &mut Service,
        id: ServiceId,
        descriptor: &ServiceDescriptor,
        core: CoreId,
    ) -> Result<(), LoadError> {
        let mut page = StartPage {
            magic: START_MAGIC,
            service: u32::from(id.0),
            threads: u32::from(service.threads),
            name: service.name,
            tsc_hz: self.platform.tsc_hz,
            // At most MAX_CORES.
            cores: u32::try_from(self.platform.cores).unwrap_or(1),
            heap_bytes: u64::from(descriptor.heap_bytes),
            node: self.platform.node,
            ..StartPage::new_zeroed()
        };
        for capability in &descriptor.capabilities {
            self.capability(state, service, id, capability, core, &mut page)?;
        }
        service.start_page = take(self.m, self.frames, service.name, 1, None)?;
        self.m.write(service.start_page, page.as_bytes());
        let mapping = Mapping {
            start: VirtAddr(START_PAGE),
            bytes: PAGE,
            physical: service.start_page,
            access: Access::ReadOnly,
            on_restart: OnRestart::Keep,
        };
        self.add(service, mapping, PageUse::Memory(Rights::Read))
    }

    /// Fills the next slot of the capability table, and the start page's entry for it.
    fn grant(
        service: &mut Service,
        page: &mut StartPage,
        object: Object,
        entry: StartEntry,
    ) -> Result<(), LoadError> {
        let slot = page.entry_count as usize;
        if slot >= MAX_CAPABILITIES {
            return Err(LoadError::TooMany(service.name, "capabilities"));
        }
        service.capabilities[slot] = object;
        // The generation comes with the start.
        page.entries[slot] = StartEntry { handle: Handle::new(slot_number(slot), 0).0, ..entry };
        page.entry_count += 1;
        Ok(())
    }

    fn capability(
        &mut self,
        state: &mut State,
        service: &mut Service,
        id: ServiceId,
        capability: &CapabilityDescriptor,
        core: CoreId,
        page: &mut StartPage,
    ) -> Result<(), LoadError> {
        let name = name_of(&capability.name);
        let entry = |kind: CapabilityKind| StartEntry { name, kind: kind as u16, ..StartEntry::new_zeroed() };
        match capability.object {
            ObjectDescriptor::Endpoint { service: target } => {
                let entry = StartEntry { length: u64::from(target), ..entry(CapabilityKind::Endpoint) };
                Self::grant(service, page, Object::Endpoint(ServiceId(target)), entry)
            }
            ObjectDescriptor::Notification { service: target, bits } => {
                let entry =
                    StartEntry { length: u64::from(target), bits, ..entry(CapabilityKind::Notification) };
                Self::grant(service, page, Object::Notification(ServiceId(target), bits), entry)
            }
            ObjectDescriptor::Region { region, address, writable } => {
                let Some(region) = self.regions.get(usize::from(region)) else {
                    return Err(LoadError::OutOfRange(service.name, "a region"));
                };
                self.region(service, page, entry(CapabilityKind::Region), region, address, writable)
            }
            ObjectDescriptor::Interrupt { line, bits } => {
                let (gsi, level) = (self.platform.isa)(line);
                let source = InterruptSource::IoApic { gsi, level };
                let (index, vector) = interrupt(state, service.name, source, id, bits)?;
                let route = PinRoute { line, gsi, vector, core };
                self.routes.pins.push(route).map_err(|_| LoadError::TooMany(service.name, "interrupts"))?;
                let entry = StartEntry { bits, ..entry(CapabilityKind::Interrupt) };
                Self::grant(service, page, Object::Interrupt(index), entry)
            }
            ObjectDescriptor::Ports { first, count } => {
                let entry = StartEntry {
                    address: u64::from(first),
                    length: u64::from(count),
                    ..entry(CapabilityKind::Ports)
                };
                Self::grant(service, page, Object::Ports { first, count }, entry)
            }
            ObjectDescriptor::Device { device, address, first_bit } => {
                let found = self.platform.devices.get(usize::from(device)).and_then(Option::as_ref);
                let Some(found) = found else { return Ok(()) };
                let function = Object::PciFunction { address: found.address, msix: found.msix };
                let at = u64::from(found.address.0);
                let config = StartEntry { address: at, ..entry(CapabilityKind::PciFunction) };
                Self::grant(service, page, function, config)?;
                for bar in &found.bars {
                    let start = address + u64::from(bar.index) * BAR_STRIDE;
                    let memory = entry(CapabilityKind::DeviceMemory);
                    self.bar(service, page, memory, bar, start)?;
                }
                for entry_index in 0..found.msix_entries {
                    let bits = 1u64.checked_shl(u32::from(first_bit) + u32::from(entry_index)).unwrap_or(0);
                    let (index, vector) = interrupt(state, service.name, InterruptSource::MsiX, id, bits)?;
                    let route = MsiRoute { function: found.address, entry: entry_index, vector, core };
                    self.routes
                        .msi
                        .push(route)
                        .map_err(|_| LoadError::TooMany(service.name, "interrupts"))?;
                    let entry = StartEntry { index: entry_index, bits, ..entry(CapabilityKind::Interrupt) };
                    Self::grant(service, page, Object::Interrupt(index), entry)?;
                }
                Ok(())
            }
        }
    }

    fn region(
        &mut self,
        service: &mut Service,
        page: &mut StartPage,
        entry: StartEntry,
        region: &Region<'_>,
        address: u64,
        writable: bool,
    ) -> Result<(), LoadError> {
        let (access, rights, writable) = if writable {
            (Access::ReadWrite, Rights::ReadWrite, ENTRY_WRITABLE)
        } else {
            (Access::ReadOnly, Rights::Read, 0)
        };
        let zeros = OnRestart::Restore { source: PhysAddr(0), source_bytes: 0 };
        let (on_restart, kept) = match region.descriptor.kind {
            RegionKind::Private => (zeros, 0),
            RegionKind::Kept => (OnRestart::Keep, ENTRY_KEPT),
            RegionKind::Shared | RegionKind::Dma => (OnRestart::Keep, 0),
        };
        let bytes = region.bytes();
        let start = VirtAddr(address);
        let mapping = Mapping { start, bytes, physical: region.physical, access, on_restart };
        self.add(service, mapping, PageUse::Memory(rights))?;
        let entry = StartEntry { address, length: bytes, flags: writable | kept, ..entry };
        if region.descriptor.kind == RegionKind::Dma {
            let entry =
                StartEntry { kind: CapabilityKind::DmaRegion as u16, bits: region.physical.0, ..entry };
            Self::grant(service, page, Object::Dma { physical: region.physical, bytes }, entry)
        } else {
            Self::grant(service, page, Object::Region, entry)
        }
    }

    fn bar(
        &mut self,
        service: &mut Service,
        page: &mut StartPage,
        entry: StartEntry,
        bar: &Bar,
        start: u64,
    ) -> Result<(), LoadError> {
        // A BAR smaller than a page shares its page with others: not to be given away.
        if bar.bytes < PAGE || bar.bytes > BAR_STRIDE || !bar.physical.0.is_multiple_of(PAGE) {
            return Ok(());
        }
        let pages = bar.bytes / PAGE;
        self.spaces
            .map(self.frames, service.root, VirtAddr(start), bar.physical, pages, PageUse::Device)
            .ok_or(LoadError::CannotMap(service.name))?;
        let entry = StartEntry {
            index: u16::from(bar.index),
            address: start,
            length: bar.bytes,
            bits: bar.physical.0,
            flags: ENTRY_WRITABLE,
            ..entry
        };
        Self::grant(service, page, Object::Region, entry)
    }
}

fn interrupt(
    state: &mut State,
    name: Name,
    source: InterruptSource,
    service: ServiceId,
    bits: u64,
) -> Result<(u8, u8), LoadError> {
    state
        .interrupts
        .add(InterruptLine { source, service, bits })
        .ok_or(LoadError::TooMany(name, "interrupts"))
}

/// Takes contiguous frames and clears them.
fn take<M: Machine>(
    m: &mut M,
    frames: &mut Frames,
    name: Name,
    pages: u64,
    below: Option<PhysAddr>,
) -> Result<PhysAddr, LoadError> {
    let range = frames.allocate(pages, 1, below).map_err(|error| LoadError::NoMemory(name, error))?;
    m.zero(range.start(), usize::try_from(range.bytes()).unwrap_or(0));
    Ok(range.start())
}

/// A descriptor's name; the image format bounds it.
fn name_of(text: &str) -> Name {
    Name::new(text).unwrap_or(Name([0; ipc::abi::MAX_NAME_BYTES]))
}
