//! From the boot module to services that run: every object is made here, once.
//!
//! What the module says is a claim: whatever it names that is not there, or does not fit, is refused with the name of
//! the service or region. Nothing is allocated after [`load`] returns.

use core::fmt;

use heapless::Vec;
use ipc::abi::{
    CapabilityKind, ENTRY_CONSTANT, ENTRY_KEPT, ENTRY_WRITABLE, HEAP_BASE, Handle, MAX_CAPABILITIES,
    MAX_REGIONS, MAX_STACK_BYTES, MAX_THREADS_PER_SERVICE, Name, PAGE_SIZE, PRIORITIES, REGION_BASE,
    START_MAGIC, START_PAGE, ServiceState, StartEntry, StartPage, USER_BITS, USER_END, message_page,
    stack_top,
};
use ipc::guest::{Share, pool_frames, share_of, total_pages, total_vcpus};
use ipc::image::{
    CapabilityDescriptor, DEVICE_WINDOW_BYTES, DeviceDescriptor, GuestDescriptor, Image, ImageError,
    MAX_DEVICES, ObjectDescriptor, RIGHT_SUPERVISE, RegionDescriptor, RegionKind, ServiceDescriptor,
    SystemDescriptor,
};
use ipc::vcpu::{HIGH_MEMORY_START, MAX_VCPUS, PRIVATE_START, VCPU_PAGES};
use zerocopy::{FromZeros, IntoBytes};

use crate::address::{FrameNumber, GuestPhysAddr, PhysAddr, VirtAddr};
use crate::elf::{Elf, ElfError};
use crate::frames::{FrameRange, Frames, NoMemory};
use crate::guest::{Guest, MAX_RUNS, TableStock, Tables, ranges, tables_needed};
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::interrupts::InterruptLine;
use crate::lifecycle::{restore, slot_number};
use crate::machine::{Machine, PciAddress, Trigger};
use crate::paging::PageTable;
use crate::paging::host::{Access, Cache, HostAttributes, Owner};
use crate::paging::npt::NptFormat;
use crate::service::{Mapping, Object, OnRestart, Service, Serving};
use crate::state::State;
use crate::svm::Features;
use crate::thread::Thread;

const PAGE: u64 = PAGE_SIZE as u64;
/// DMA regions lie below this, so that a device with 32 address bits reaches them.
const DMA_END: PhysAddr = PhysAddr(1 << 32);
/// Pages of 4 KiB in one of 2 MiB.
const LARGE_PAGES: u64 = 512;
/// The end of guest-physical memory: what one table below the root translates, which the window shows.
const GUEST_END: u64 = 1 << 39;
/// Distance between two BARs of a device in its driver's address space.
const BAR_STRIDE: u64 = DEVICE_WINDOW_BYTES / 8;

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
        with: HostAttributes,
    ) -> Option<()>;
    /// Makes guest memory, by the second table of its nested tree, a part of an address space.
    fn link_window(&mut self, frames: &mut Frames, root: PhysAddr, table: FrameNumber);
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

/// What a guest needs of the processor.
#[derive(Clone, Copy, Debug)]
pub struct Virtualization {
    /// What it offers.
    pub features: Features,
    /// The permission maps of ports and of model-specific registers.
    pub permission_maps: [PhysAddr; 2],
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
    /// What a guest needs of the processor; `None` when this node cannot run one.
    pub virtualization: Option<Virtualization>,
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
    /// The boot loader put the module not at a page's start.
    Unaligned,
    /// A table of the kernel's is full at this service.
    TooMany(Name, &'static str),
    /// The node gives so much to the guest that less is left than it keeps: pages given, kept, and left.
    KeepsTooLittle([u64; 3]),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Elf(name, error) => write!(f, "service '{name}': {error}"),
            Self::NoMemory(name, error) => write!(f, "'{name}': {error}"),
            Self::CannotMap(name) => write!(f, "service '{name}': its memory overlaps or cannot be mapped"),
            Self::OutOfRange(name, what) => write!(f, "service '{name}': {what} is out of range"),
            Self::Unaligned => f.write_str("the boot loader did not load the module at a page's start"),
            Self::TooMany(name, what) => write!(f, "service '{name}': too many {what}"),
            Self::KeepsTooLittle([given, kept, left]) => {
                let [given, kept, left] = [given, kept, left].map(|pages| pages / 256);
                write!(
                    f,
                    "the node gives {given} MiB to the guest and must keep {kept} MiB, but {left} MiB are left"
                )
            }
        }
    }
}

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
    // Two milliseconds.
    state.turn = platform.tsc_hz / 500;
    let guest = system.guest.as_ref();
    let mut guest_platform = name_of(&system.name);
    if let Some(guest) = guest {
        if let Some(entry) = image.services().nth(usize::from(guest.platform)) {
            guest_platform = entry.name;
        }
        check_guest(guest, image.services().count())
            .map_err(|what| LoadError::OutOfRange(guest_platform, what))?;
    }
    let mut regions: Vec<Region<'_>, MAX_REGIONS> = Vec::new();
    for descriptor in &system.regions {
        let name = name_of(&descriptor.name);
        let below = (descriptor.kind == RegionKind::Dma).then_some(DMA_END);
        let physical = match descriptor.kind {
            RegionKind::Blob => blob(image, platform, name, descriptor.pages)?,
            _ => take(m, frames, name, u64::from(descriptor.pages), below)?,
        };
        regions.push(Region { descriptor, physical }).map_err(|_| LoadError::TooMany(name, "regions"))?;
    }
    let (routes, regions) = (Routes::default(), &regions);
    let share = guest.and_then(|guest| Some((guest, *share_of(&guest.shares, platform.node)?.1)));
    let guest =
        platform.virtualization.and_then(|with| share.map(|(guest, share)| Lot { guest, share, with }));
    let pool = match &guest {
        Some(lot) => pool(frames, guest_platform, lot.pool_frames())?,
        None => Vec::new(),
    };
    let mut loader = Loader { state, m, spaces, frames, image, platform, regions, guest, pool, routes };
    for entry in image.services() {
        let descriptor = image.service(entry)?;
        let name = name_of(&descriptor.name);
        check(&descriptor, name, platform, system)?;
        loader.service(name, &descriptor)?;
    }
    loader.make_guest()?;
    let routes = loader.routes;
    state.node.frames = frames.total();
    state.node.frames_free = frames.free();
    for index in 0..state.services.len() {
        state.start(m, CoreId(0), ServiceId::from_index(index));
    }
    Ok(routes)
}

/// Where a blob lies in the module.
fn blob(image: &Image<'_>, platform: &Platform<'_>, name: Name, pages: u32) -> Result<PhysAddr, LoadError> {
    let contents = image.blob(name)?;
    if contents.len() as u64 != u64::from(pages) * PAGE {
        return Err(LoadError::OutOfRange(name, "a blob's size"));
    }
    let at = PhysAddr(platform.module.0 + image.offset_of(contents) as u64);
    if at.0.is_multiple_of(PAGE) { Ok(at) } else { Err(LoadError::Unaligned) }
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
    // It must be off every core once it stopped, because the kernel restarts it at once.
    if descriptor.rights & RIGHT_SUPERVISE != 0 && descriptor.threads != 1 {
        return out("a supervisor's number of threads");
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
        let free = |bits: u64| bits != 0 && bits & !USER_BITS == 0;
        let good = match capability.object {
            ObjectDescriptor::Endpoint { service } => known(service),
            ObjectDescriptor::Notification { service, bits } => known(service) && free(bits),
            ObjectDescriptor::Region { region, address, .. } => {
                let bytes = system.regions.get(usize::from(region)).map(|r| u64::from(r.pages) * PAGE);
                bytes.and_then(|b| address.checked_add(b)).is_some_and(|end| end <= USER_END)
                    && address >= REGION_BASE
                    && address.is_multiple_of(PAGE)
            }
            ObjectDescriptor::Guest => system.guest.is_some(),
            ObjectDescriptor::GuestFrames { address } => {
                system.guest.is_some() && address >= REGION_BASE && address.is_multiple_of(PAGE)
            }
            ObjectDescriptor::Interrupt { line, bits } => line < 16 && free(bits),
            ObjectDescriptor::Ports { first, count } => count > 0 && first.checked_add(count - 1).is_some(),
            ObjectDescriptor::Device { device, address, first_bit } => {
                let end = |d: &DeviceDescriptor| u32::from(first_bit) + u32::from(d.interrupts);
                let found = system.devices.get(usize::from(device));
                found.is_some_and(|d| end(d) <= USER_BITS.count_ones())
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

/// Says which of a guest's numbers is out of range.
fn check_guest(guest: &GuestDescriptor, services: usize) -> Result<(), &'static str> {
    let GuestDescriptor { platform, memory, placement, carrier, shares, private_pages, priority, .. } = guest;
    let servers = [*platform, *memory, *placement].into_iter().chain(*carrier);
    if servers.into_iter().any(|service| usize::from(service) >= services) {
        return Err("a service of its guest's");
    }
    let private_end = PRIVATE_START / PAGE + u64::from(*private_pages);
    let pages = total_pages(shares);
    let has_memory = shares.iter().all(|share| share.pages != 0);
    let most = (PRIVATE_START - HIGH_MEMORY_START) / PAGE;
    if !has_memory || pages == 0 || pages > most || private_end > GUEST_END / PAGE {
        return Err("its guest's memory");
    }
    let vcpus = total_vcpus(shares);
    if shares.iter().any(|share| share.vcpus == 0) || vcpus as usize > MAX_VCPUS {
        return Err("its guest's number of vCPUs");
    }
    if carrier.is_some() != (shares.len() > 1) {
        return Err("its guest's carrier");
    }
    if usize::from(*priority) >= PRIORITIES { Err("its guest's priority") } else { Ok(()) }
}

/// A guest, and what this node has of it.
struct Lot<'a> {
    guest: &'a GuestDescriptor,
    share: Share,
    with: Virtualization,
}

impl Lot<'_> {
    /// Frames of the pool, up to whole 2 MiB.
    fn pool_frames(&self) -> u64 {
        let Self { guest, share, .. } = self;
        pool_frames(share.pages, guest.private_pages, guest.shares.len()).next_multiple_of(LARGE_PAGES)
    }
}

struct Loader<'a, 'b, M, S> {
    state: &'a mut State,
    m: &'a mut M,
    spaces: &'a mut S,
    frames: &'a mut Frames,
    image: &'a Image<'b>,
    platform: &'a Platform<'a>,
    regions: &'a Vec<Region<'a>, MAX_REGIONS>,
    guest: Option<Lot<'a>>,
    /// The frames that the guest's pages can have.
    pool: Vec<FrameRange, MAX_RUNS>,
    routes: Routes,
}

/// A service that is being made.
struct Draft {
    service: Service,
    id: ServiceId,
    /// The home of its threads and interrupts.
    core: CoreId,
    priority: u8,
    page: StartPage,
}

impl Draft {
    /// Fills the next slot of the capability table, and the start page's entry for it.
    fn grant(&mut self, object: Object, entry: StartEntry) -> Result<(), LoadError> {
        let slot = self.page.entry_count as usize;
        if slot >= MAX_CAPABILITIES {
            return Err(LoadError::TooMany(self.service.name, "capabilities"));
        }
        self.service.capabilities[slot] = object;
        // The generation comes with the start.
        self.page.entries[slot] = StartEntry { handle: Handle::new(slot_number(slot), 0).0, ..entry };
        self.page.entry_count += 1;
        Ok(())
    }
}

impl<M: Machine, S: Spaces> Loader<'_, '_, M, S> {
    fn service(&mut self, name: Name, descriptor: &ServiceDescriptor) -> Result<(), LoadError> {
        let Platform { tsc_hz, cores, node, .. } = *self.platform;
        let id = ServiceId::from_index(self.state.services.len());
        let core = CoreId::from_index(descriptor.core.map_or(id.index(), usize::from) % cores);
        let mut service = Service::absent();
        service.name = name;
        service.state = ServiceState::Ready;
        service.serving = if descriptor.pinned { Serving::Pinned } else { Serving::OnCallersTime };
        service.budget = tsc_hz / 1000 * u64::from(descriptor.budget_us) / 1000;
        service.rights = descriptor.rights;
        service.first_thread = ThreadId::from_index(self.state.threads.len());
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
        let page = StartPage {
            magic: START_MAGIC,
            service: u32::from(id.0),
            threads: u32::from(service.threads),
            name,
            tsc_hz,
            // At most MAX_CORES.
            cores: u32::try_from(cores).unwrap_or(1),
            heap_bytes: u64::from(descriptor.heap_bytes),
            node,
            image: self.image.checksum(),
            ..StartPage::new_zeroed()
        };
        let mut draft = Draft { service, id, core, priority: descriptor.priority, page };
        for slot in 0..descriptor.threads {
            self.thread(&mut draft, slot)?;
        }
        for capability in &descriptor.capabilities {
            self.capability(&mut draft, capability)?;
        }
        let Draft { mut service, page, .. } = draft;
        let physical = take(self.m, self.frames, name, 1, None)?;
        self.m.write(physical, page.as_bytes());
        service.start_page = physical;
        let mapping =
            Mapping { start: VirtAddr(START_PAGE), bytes: PAGE, physical, on_restart: OnRestart::Keep };
        self.add(&mut service, mapping, user(Access::Read))?;
        self.state.services.push(service).map_err(|_| LoadError::TooMany(name, "services"))
    }

    /// Maps memory and notes it among the service's.
    fn add(&mut self, service: &mut Service, memory: Mapping, with: HostAttributes) -> Result<(), LoadError> {
        self.map(service, memory.start, memory.physical, memory.bytes, with)?;
        service.mappings.push(memory).map_err(|_| LoadError::TooMany(service.name, "pieces of memory"))
    }

    fn map(
        &mut self,
        service: &Service,
        from: VirtAddr,
        to: PhysAddr,
        bytes: u64,
        with: HostAttributes,
    ) -> Result<(), LoadError> {
        let mapped = self.spaces.map(self.frames, service.root, from, to, bytes.div_ceil(PAGE), with);
        mapped.ok_or(LoadError::CannotMap(service.name))
    }

    /// Gives the service memory that is zero at each start.
    fn zeroed(&mut self, service: &mut Service, start: VirtAddr, bytes: u64) -> Result<PhysAddr, LoadError> {
        let physical = take(self.m, self.frames, service.name, bytes / PAGE, None)?;
        let mapping = Mapping { start, bytes, physical, on_restart: OnRestart::ZEROS };
        self.add(service, mapping, user(Access::ReadWrite))?;
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
            let on_restart = match segment.access {
                Access::ReadWrite => OnRestart::Restore { source, source_bytes },
                Access::Read | Access::ReadExecute => OnRestart::Keep,
            };
            let mapping = Mapping { start: segment.address, bytes, physical, on_restart };
            self.add(service, mapping, user(segment.access))?;
        }
        Ok(())
    }

    fn thread(&mut self, draft: &mut Draft, slot: u8) -> Result<(), LoadError> {
        let Draft { service, id, core, priority, .. } = draft;
        let thread_id = ThreadId::from_index(self.state.threads.len());
        let mut thread = Thread::unused(thread_id);
        thread.place(thread_id, *id, slot);
        thread.root = service.root;
        thread.priority = *priority;
        thread.core = *core;
        let page = VirtAddr(message_page(usize::from(slot)));
        thread.message_page = self.zeroed(service, page, PAGE)?;
        let stack = VirtAddr(stack_top(usize::from(slot)) - service.stack_bytes);
        self.zeroed(service, stack, service.stack_bytes)?;
        self.state.threads.push(thread).map_err(|_| LoadError::TooMany(service.name, "threads"))
    }

    fn capability(&mut self, draft: &mut Draft, capability: &CapabilityDescriptor) -> Result<(), LoadError> {
        let name = name_of(&capability.name);
        let entry = |kind: CapabilityKind| StartEntry { name, kind: kind as u16, ..StartEntry::new_zeroed() };
        match capability.object {
            ObjectDescriptor::Endpoint { service: target } => {
                let entry = StartEntry { length: u64::from(target), ..entry(CapabilityKind::Endpoint) };
                draft.grant(Object::Endpoint(ServiceId(target)), entry)
            }
            ObjectDescriptor::Notification { service: target, bits } => {
                let entry =
                    StartEntry { length: u64::from(target), bits, ..entry(CapabilityKind::Notification) };
                draft.grant(Object::Notification(ServiceId(target), bits), entry)
            }
            ObjectDescriptor::Region { region, address, writable } => {
                let Some(region) = self.regions.get(usize::from(region)) else {
                    return Err(LoadError::OutOfRange(draft.service.name, "a region"));
                };
                self.region(draft, entry(CapabilityKind::Region), region, address, writable)
            }
            ObjectDescriptor::Interrupt { line, bits } => {
                let (gsi, trigger) = (self.platform.isa)(line);
                let masked = (trigger == Trigger::Level).then_some(gsi);
                let vector = self.interrupt(draft, masked, bits, entry(CapabilityKind::Interrupt))?;
                let route = PinRoute { line, gsi, vector, core: draft.core };
                self.routes.pins.push(route).map_err(|_| LoadError::TooMany(draft.service.name, "interrupts"))
            }
            ObjectDescriptor::Guest => {
                let Some(lot @ Lot { guest, share, .. }) = &self.guest else { return Ok(()) };
                let nodes = u8::try_from(guest.shares.len()).unwrap_or(u8::MAX);
                let private = u64::from(guest.private_pages) << 32;
                let bits = u64::from(u16::from_le_bytes([share.vcpus, nodes])) | private;
                let (address, length) = (lot.pool_frames(), total_pages(&guest.shares));
                let index = u16::from_le_bytes([guest.platform, guest.memory]);
                let entry = StartEntry { address, length, bits, index, ..entry(CapabilityKind::Guest) };
                draft.grant(Object::Guest, entry)
            }
            ObjectDescriptor::GuestFrames { address } => {
                let mut address = address;
                for (run, index) in self.pool.clone().into_iter().zip(0..) {
                    let (physical, bytes) = (run.start(), run.bytes());
                    let mapping =
                        Mapping { start: VirtAddr(address), bytes, physical, on_restart: OnRestart::Keep };
                    self.add(&mut draft.service, mapping, user(Access::ReadWrite))?;
                    let entry = entry(CapabilityKind::DmaRegion);
                    let (bits, flags) = (physical.0, ENTRY_WRITABLE);
                    let entry = StartEntry { index, address, length: bytes, bits, flags, ..entry };
                    draft.grant(Object::Dma { physical, bytes }, entry)?;
                    address += bytes;
                }
                Ok(())
            }
            ObjectDescriptor::Ports { first, count } => {
                let (address, length) = (u64::from(first), u64::from(count));
                let entry = StartEntry { address, length, ..entry(CapabilityKind::Ports) };
                draft.grant(Object::Ports { first, count }, entry)
            }
            ObjectDescriptor::Device { device, address, first_bit } => {
                let found = self.platform.devices.get(usize::from(device)).and_then(Option::as_ref);
                let Some(found) = found else { return Ok(()) };
                let function = Object::PciFunction { address: found.address, msix: found.msix };
                let at = u64::from(found.address.id());
                let config = StartEntry { address: at, ..entry(CapabilityKind::PciFunction) };
                draft.grant(function, config)?;
                for bar in &found.bars {
                    let start = address + u64::from(bar.index) * BAR_STRIDE;
                    self.bar(draft, entry(CapabilityKind::DeviceMemory), bar, start)?;
                }
                for index in 0..found.msix_entries {
                    let bits = 1u64.checked_shl(u32::from(first_bit) + u32::from(index)).unwrap_or(0);
                    let entry = StartEntry { index, ..entry(CapabilityKind::Interrupt) };
                    let vector = self.interrupt(draft, None, bits, entry)?;
                    let route = MsiRoute { function: found.address, entry: index, vector, core: draft.core };
                    self.routes
                        .msi
                        .push(route)
                        .map_err(|_| LoadError::TooMany(draft.service.name, "interrupts"))?;
                }
                Ok(())
            }
        }
    }

    fn region(
        &mut self,
        draft: &mut Draft,
        entry: StartEntry,
        region: &Region<'_>,
        address: u64,
        writable: bool,
    ) -> Result<(), LoadError> {
        let Region { descriptor: RegionDescriptor { kind, .. }, physical } = *region;
        let (access, writable) =
            if writable { (Access::ReadWrite, ENTRY_WRITABLE) } else { (Access::Read, 0) };
        let (on_restart, kept) = match kind {
            RegionKind::Private => (OnRestart::ZEROS, 0),
            RegionKind::Kept => (OnRestart::Keep, ENTRY_KEPT),
            RegionKind::Shared | RegionKind::Dma => (OnRestart::Keep, 0),
            RegionKind::Blob => (OnRestart::Keep, ENTRY_CONSTANT),
        };
        if *kind == RegionKind::Blob && writable != 0 {
            return Err(LoadError::OutOfRange(draft.service.name, "the right to write a blob"));
        }
        let bytes = region.bytes();
        let mapping = Mapping { start: VirtAddr(address), bytes, physical, on_restart };
        self.add(&mut draft.service, mapping, user(access))?;
        let entry = StartEntry { address, length: bytes, flags: writable | kept, ..entry };
        if *kind == RegionKind::Dma {
            let entry = StartEntry { kind: CapabilityKind::DmaRegion as u16, bits: physical.0, ..entry };
            draft.grant(Object::Dma { physical, bytes }, entry)
        } else {
            draft.grant(Object::Region, entry)
        }
    }

    fn bar(&mut self, draft: &mut Draft, entry: StartEntry, bar: &Bar, at: u64) -> Result<(), LoadError> {
        let Bar { index, physical, bytes } = *bar;
        // A BAR smaller than a page shares its page with others: not to be given away.
        if !(PAGE..=BAR_STRIDE).contains(&bytes) || !physical.0.is_multiple_of(PAGE) {
            return Ok(());
        }
        let uncached = HostAttributes { cache: Cache::Uncached, ..user(Access::ReadWrite) };
        self.map(&draft.service, VirtAddr(at), physical, bytes, uncached)?;
        let (index, flags) = (u16::from(index), ENTRY_WRITABLE);
        let entry = StartEntry { index, address: at, length: bytes, bits: physical.0, flags, ..entry };
        draft.grant(Object::Region, entry)
    }

    /// Gives the service an interrupt; its vector.
    fn interrupt(
        &mut self,
        draft: &mut Draft,
        masked: Option<u32>,
        bits: u64,
        entry: StartEntry,
    ) -> Result<u8, LoadError> {
        let line = InterruptLine { masked, service: draft.id, bits };
        let too_many = LoadError::TooMany(draft.service.name, "interrupts");
        let (index, vector) = self.state.interrupts.add(line).ok_or(too_many)?;
        draft.grant(Object::Interrupt(index), StartEntry { bits, ..entry })?;
        Ok(vector)
    }
}

impl<M: Machine, S: Spaces> Loader<'_, '_, M, S> {
    /// Makes the guest, if this node has part in one: its memory, dormant, and its vCPUs, stopped.
    fn make_guest(&mut self) -> Result<(), LoadError> {
        let Some(Lot { guest, share, with }) = self.guest.take() else { return Ok(()) };
        let platform = ServiceId(guest.platform);
        let name = self.state.services[platform.index()].name;
        let ranges = ranges(total_pages(&guest.shares), guest.private_pages);
        let tables = tables_needed(&ranges);
        let at = take(self.m, self.frames, name, tables, None)?;
        let mut stock = TableStock::new(FrameRange { first: FrameNumber::containing(at), pages: tables });
        let memory = &mut Tables { m: &mut *self.m, stock: &mut stock };
        let no_tables = LoadError::CannotMap(name);
        let nested = PageTable::<NptFormat>::new(memory).ok_or(no_tables)?;
        let second = nested.second_table(memory, GuestPhysAddr(0)).ok_or(no_tables)?;
        let root = self.state.services[platform.index()].root;
        self.spaces.link_window(self.frames, root, second);
        let pages = take(self.m, self.frames, name, u64::from(share.vcpus), None)?;
        let bytes = u64::from(share.vcpus) * PAGE;
        let mapping =
            Mapping { start: VirtAddr(VCPU_PAGES), bytes, physical: pages, on_restart: OnRestart::ZEROS };
        let mapped =
            self.spaces.map(self.frames, root, mapping.start, pages, bytes / PAGE, user(Access::ReadWrite));
        mapped.ok_or(no_tables)?;
        let mappings = &mut self.state.services[platform.index()].mappings;
        mappings.push(mapping).map_err(|_| LoadError::TooMany(name, "pieces of memory"))?;
        for number in 0..share.vcpus {
            let id = ThreadId::from_index(self.state.threads.len());
            let mut thread = Thread::unused(id);
            thread.place(id, platform, 0);
            (thread.slot, thread.slot_bit) = (number, 0);
            (thread.root, thread.priority) = (root, guest.priority);
            thread.core = CoreId::from_index(usize::from(number) % self.platform.cores);
            thread.vcpu = Some(VcpuId(number));
            thread.message_page = PhysAddr(pages.0 + u64::from(number) * PAGE);
            let vcpu = &mut self.state.vcpus.push_with(|| LoadError::TooMany(name, "vCPUs"))?;
            (vcpu.thread, vcpu.page) = (id, thread.message_page);
            self.state.threads.push(thread).map_err(|_| LoadError::TooMany(name, "vCPUs"))?;
        }
        let left = self.frames.free();
        if left < guest.keep_pages {
            return Err(LoadError::KeepsTooLittle([share.pages, guest.keep_pages, left]));
        }
        let pool = core::mem::take(&mut self.pool);
        let permission_maps = with.permission_maps;
        self.state.guest = Some(Guest {
            platform,
            memory: ServiceId(guest.memory),
            placement: ServiceId(guest.placement),
            ranges,
            pool,
            nested,
            stock,
            generation: 0,
            spans: guest.carrier.is_some(),
            features: with.features,
            permission_maps,
        });
        Ok(())
    }
}

/// Takes frames for the guest's pages, in as few pieces as there are, each of whole 2 MiB.
fn pool(frames: &mut Frames, name: Name, count: u64) -> Result<Vec<FrameRange, MAX_RUNS>, LoadError> {
    let mut pool = Vec::new();
    let (mut left, mut piece) = (count, count);
    while left > 0 {
        piece = piece.min(left);
        match frames.allocate(piece, LARGE_PAGES, None) {
            Ok(run) => {
                left -= piece;
                pool.push(run).map_err(|_| LoadError::TooMany(name, "pieces of guest memory"))?;
            }
            Err(error) if piece <= LARGE_PAGES => return Err(LoadError::NoMemory(name, error)),
            Err(_) => piece = (piece / 2).next_multiple_of(LARGE_PAGES),
        }
    }
    Ok(pool)
}

/// How a service's memory is mapped.
const fn user(access: Access) -> HostAttributes {
    HostAttributes { access, owner: Owner::User, cache: Cache::WriteBack }
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
