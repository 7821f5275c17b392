//! Tests of the loader: a small image becomes services that run, and every claim in it that is false is refused.

extern crate std;

use std::boxed::Box;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use ipc::abi::{
    CapabilityKind, FAULT_BIT, Name, RECEIVE_MESSAGES, REGION_BASE, START_MAGIC, START_PAGE, StartPage,
    message_page,
};
use ipc::guest::{Share, Shares};
use ipc::image::{
    CapabilityDescriptor, DeviceDescriptor, Entry, EntryKind, GuestDescriptor, Header, Image, MAGIC,
    ObjectDescriptor, RegionDescriptor, RegionKind, ServiceDescriptor, SystemDescriptor,
};
use ipc::vcpu::{PRIVATE_START, VCPU_PAGES};
use zerocopy::{FromBytes, IntoBytes};

use crate::address::{FrameNumber, PhysAddr, VirtAddr};
use crate::cpu::Core;
use crate::frames::Frames;
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::load::{Bar, Device, LoadError, Platform, Routes, Spaces, Virtualization, load};
use crate::machine::{Machine, PciAddress, Trigger};
use crate::memory_map::{Kind, MemoryMap};
use crate::paging::host::{Access, Cache, HostAttributes, Owner};
use crate::service::Object;
use crate::state::State;
use crate::svm::Features;
use crate::testing::{self, FakeMachine};
use crate::thread::ThreadState;

/// Where the module lies in the fake machine, below the frames that the loader takes.
const MODULE: u64 = 0x8_0000;

#[derive(Default)]
struct FakeSpaces {
    roots: u64,
    mapped: Vec<(PhysAddr, u64, u64, HostAttributes)>,
    windows: Vec<(PhysAddr, FrameNumber)>,
}

impl Spaces for FakeSpaces {
    fn create(&mut self, _: &mut Frames) -> Option<PhysAddr> {
        self.roots += 1;
        Some(PhysAddr(self.roots))
    }

    fn map(
        &mut self,
        _: &mut Frames,
        root: PhysAddr,
        from: VirtAddr,
        _: PhysAddr,
        pages: u64,
        with: HostAttributes,
    ) -> Option<()> {
        let end = from.0 + pages * 4096;
        if self.mapped.iter().any(|&(r, start, stop, _)| r == root && start < end && from.0 < stop) {
            return None;
        }
        self.mapped.push((root, from.0, end, with));
        Some(())
    }

    fn link_window(&mut self, _: &mut Frames, root: PhysAddr, table: FrameNumber) {
        self.windows.push((root, table));
    }
}

/// An ELF file with a code segment and a data segment of 2 pages, of which the file fills 5 bytes.
fn elf() -> Vec<u8> {
    let mut file = vec![0; 0x2005];
    file[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &0x40_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let segments = [(5u32, 0x1000u64, 0x40_0000u64, 16u64, 16u64), (6, 0x2000, 0x40_1000, 5, 0x2000)];
    for (index, (flags, offset, address, file_bytes, memory_bytes)) in segments.into_iter().enumerate() {
        let at = 64 + 56 * index;
        put(at, &1u32.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        for (field, value) in
            [offset, address, address, file_bytes, memory_bytes, 0x1000].into_iter().enumerate()
        {
            put(at + 8 + 8 * field, &value.to_le_bytes());
        }
    }
    put(0x1000, b"program program!");
    put(0x2000, b"hello");
    file
}

fn service(name: &str, capabilities: &[(&str, ObjectDescriptor)]) -> ServiceDescriptor {
    ServiceDescriptor {
        name: name.try_into().unwrap(),
        priority: 3,
        budget_us: 1000,
        threads: 2,
        stack_bytes: 0x2000,
        heap_bytes: 0x3000,
        core: Some(1),
        pinned: false,
        restart_limit: 5,
        restart_period_ms: 1000,
        beat_ms: 500,
        rights: 0,
        capabilities: capabilities
            .iter()
            .map(|&(name, object)| CapabilityDescriptor { name: name.try_into().unwrap(), object })
            .collect(),
    }
}

fn system(services: u8) -> SystemDescriptor {
    let region = |name: &str, kind| RegionDescriptor { name: name.try_into().unwrap(), pages: 2, kind };
    SystemDescriptor {
        name: "test".try_into().unwrap(),
        service_count: services,
        regions: [region("kept", RegionKind::Kept), region("frames", RegionKind::Dma)].into_iter().collect(),
        devices: [DeviceDescriptor {
            name: "nic".try_into().unwrap(),
            vendor: 0x1af4,
            device_ids: [0x1041].into_iter().collect(),
            skip: 0,
            interrupts: 2,
        }]
        .into_iter()
        .collect(),
        guest: None,
    }
}

fn image(system: &SystemDescriptor, services: &[(ServiceDescriptor, Vec<u8>)]) -> Vec<u8> {
    let mut parts = vec![(Name::new("system").unwrap(), EntryKind::System, encode(system))];
    for (descriptor, elf) in services {
        let name = Name::new(&descriptor.name).unwrap();
        parts.push((name, EntryKind::Service, encode(descriptor)));
        parts.push((name, EntryKind::Elf, elf.clone()));
    }
    let mut offset = (size_of::<Header>() + parts.len() * size_of::<Entry>()).next_multiple_of(16);
    let mut entries = Vec::new();
    let mut contents = Vec::new();
    for (name, kind, bytes) in &parts {
        let (length, crc) = (bytes.len() as u64, crc32fast::hash(bytes));
        entries.push(Entry { name: *name, kind: *kind as u32, crc, offset: offset as u64, length });
        contents.push((offset, bytes));
        offset = (offset + bytes.len()).next_multiple_of(16);
    }
    let header = Header {
        magic: MAGIC,
        total_bytes: offset as u64,
        entry_count: u32::try_from(parts.len()).unwrap(),
        table_crc: crc32fast::hash(entries.as_bytes()),
    };
    let mut image = vec![0; offset];
    image[..24].copy_from_slice(header.as_bytes());
    image[24..24 + entries.as_bytes().len()].copy_from_slice(entries.as_bytes());
    for (at, bytes) in contents {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    postcard::to_slice(value, &mut buffer).unwrap().to_vec()
}

struct Loaded {
    state: Box<State>,
    m: FakeMachine,
    spaces: FakeSpaces,
    result: Result<Routes, LoadError>,
}

fn load_image(bytes: &[u8], devices: &[Option<Device>]) -> Loaded {
    load_with(bytes, devices, &[(0x10_0000, 0x20_0000)], None)
}

/// With this usable memory, by start and length.
fn load_with(
    bytes: &[u8],
    devices: &[Option<Device>],
    memory: &[(u64, u64)],
    virtualization: Option<Virtualization>,
) -> Loaded {
    load_on(7, bytes, devices, memory, virtualization)
}

fn load_on(
    node: u64,
    bytes: &[u8],
    devices: &[Option<Device>],
    memory: &[(u64, u64)],
    virtualization: Option<Virtualization>,
) -> Loaded {
    let mut m = FakeMachine::new();
    let mut map = MemoryMap::new();
    for &(start, length) in memory {
        map.add(start, length, Kind::Usable).unwrap();
    }
    let mut frames = Frames::new(&map);
    let mut state = Box::new(State::empty());
    for _ in 0..2 {
        state.cores.push(Core::idle()).unwrap();
    }
    m.at(PhysAddr(MODULE))[..bytes.len()].copy_from_slice(bytes);
    // A copy that is aligned as a module in memory is.
    let aligned: Vec<u64> = bytes
        .chunks(8)
        .map(|c| {
            let mut word = [0; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(word)
        })
        .collect();
    let image = Image::parse(&aligned.as_bytes()[..bytes.len()]).unwrap();
    let system = image.system().unwrap();
    let mut spaces = FakeSpaces::default();
    let platform = Platform {
        tsc_hz: 1_000_000_000,
        cores: 2,
        node,
        module: PhysAddr(MODULE),
        virtualization,
        devices: &devices.iter().cloned().collect(),
        isa: &|line| (u32::from(line) + 100, Trigger::Level),
    };
    let result = load(&mut state, &mut m, &mut spaces, &mut frames, &image, &system, &platform);
    Loaded { state, m, spaces, result }
}

fn nic() -> Device {
    let bar = |index, physical, bytes| Bar { index, physical: PhysAddr(physical), bytes };
    Device {
        address: PciAddress::from_id(0x10),
        bars: [bar(1, 0xfe00_0000, 0x1000), bar(2, 0xfe00_1000, 0x100), bar(4, 0xfd00_0000, 0x4000)]
            .into_iter()
            .collect(),
        msix: 0x84,
        msix_entries: 2,
    }
}

#[test]
fn an_image_becomes_services_that_run() {
    let kept = ObjectDescriptor::Region { region: 0, address: REGION_BASE, writable: true };
    let frames = ObjectDescriptor::Region { region: 1, address: REGION_BASE + 0x10000, writable: true };
    let device = ObjectDescriptor::Device { device: 0, address: REGION_BASE + 0x100_0000, first_bit: 9 };
    let line = ObjectDescriptor::Interrupt { line: 4, bits: 1 };
    let services = [
        (service("first", &[("kept", kept), ("irq", line)]), elf()),
        (
            service(
                "second",
                &[("first", ObjectDescriptor::Endpoint { service: 0 }), ("frames", frames), ("nic", device)],
            ),
            elf(),
        ),
    ];
    let bytes = image(&system(2), &services);
    let mut loaded = load_image(&bytes, &[Some(nic())]);
    let routes = loaded.result.unwrap();
    let second = &loaded.state.services[1];
    let data = second.translate(VirtAddr(0x40_1000), 5).unwrap();
    let start = second.start_page;
    assert_eq!(second.first_thread, ThreadId::new(2));
    assert_eq!(&loaded.m.at(data)[..6], b"hello\0");
    let (page, _) = StartPage::read_from_prefix(loaded.m.at(start)).unwrap();
    assert_eq!((page.magic, page.service, page.threads, page.node), (START_MAGIC, 1, 2, 7));
    assert_eq!(page.image, u64::from(Header::read_from_prefix(&bytes).unwrap().0.table_crc));
    let entries = &page.entries[..page.entry_count as usize];
    let kinds: Vec<_> = entries.iter().map(|e| CapabilityKind::from_number(e.kind).unwrap()).collect();
    use CapabilityKind::{DeviceMemory, DmaRegion, Endpoint, Interrupt, PciFunction};
    // The BAR that is smaller than a page is not given away.
    assert_eq!(kinds, [Endpoint, DmaRegion, PciFunction, DeviceMemory, DeviceMemory, Interrupt, Interrupt]);
    assert_eq!((entries[4].index, entries[4].bits, entries[4].length), (4, 0xfd00_0000, 0x4000));
    assert_eq!((entries[6].index, entries[6].bits), (1, 1 << 10));
    assert_eq!(routes.msi.len(), 2);
    assert_eq!((routes.pins[0].gsi, routes.pins[0].core), (104, CoreId(1)));
    let masked = |vector: u8| loaded.state.interrupts.by_vector(vector).unwrap().masked;
    assert_eq!((masked(routes.pins[0].vector), masked(routes.msi[0].vector)), (Some(104), None));
    let root = second.root;
    let stack_guard = message_page(0) + 0x1000;
    let mapped = |at: u64| {
        let here = |&&(r, from, to, _): &&(PhysAddr, u64, u64, _)| r == root && (from..to).contains(&at);
        loaded.spaces.mapped.iter().find(here).map(|&(_, _, _, with)| (with.access, with.cache, with.owner))
    };
    let memory = |access| Some((access, Cache::WriteBack, Owner::User));
    assert_eq!((mapped(stack_guard), mapped(0)), (None, None));
    assert_eq!((mapped(0x40_0000), mapped(START_PAGE)), (memory(Access::ReadExecute), memory(Access::Read)));
    assert_eq!(
        (mapped(0x40_2fff), mapped(message_page(1))),
        (memory(Access::ReadWrite), memory(Access::ReadWrite))
    );
    assert_eq!(mapped(entries[4].address), Some((Access::ReadWrite, Cache::Uncached, Owner::User)));
    loaded.state.wake_up(&mut loaded.m, CoreId(1));
    assert_eq!(loaded.state.cores[1].current, Some(ThreadId::new(0)));
}

#[test]
fn a_device_that_is_not_there_gives_no_capability() {
    let device = ObjectDescriptor::Device { device: 0, address: REGION_BASE, first_bit: 0 };
    let bytes = image(&system(1), &[(service("first", &[("nic", device)]), elf())]);
    let mut loaded = load_image(&bytes, &[None]);
    assert!(loaded.result.unwrap().msi.is_empty());
    let (page, _) = StartPage::read_from_prefix(loaded.m.at(loaded.state.services[0].start_page)).unwrap();
    assert_eq!(page.entry_count, 0);
}

#[test]
fn every_false_claim_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut ServiceDescriptor, &mut Vec<u8>, &mut SystemDescriptor),
                   words: &str| {
        let mut descriptor = service("victim", &[]);
        let (mut file, mut system) = (elf(), system(1));
        change(&mut descriptor, &mut file, &mut system);
        let loaded = load_image(&image(&system, &[(descriptor, file)]), &[]);
        let error = loaded.result.expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    };
    refused(&|d, _, _| d.priority = 16, "'victim': its priority is out of range");
    refused(&|d, _, _| d.threads = 17, "number of threads");
    refused(&|d, _, _| d.threads = 0, "number of threads");
    refused(&|d, _, _| (d.rights, d.threads) = (7, 2), "a supervisor's number of threads");
    refused(&|d, _, _| d.stack_bytes = 0x1001, "its stack");
    refused(&|d, _, _| d.stack_bytes = 0x10_0000, "its stack");
    refused(&|d, _, _| d.heap_bytes = 5, "its heap");
    refused(&|d, _, _| d.heap_bytes = 0x1000_0000, "'victim'");
    refused(&|d, _, _| d.budget_us = 0, "its budget");
    refused(&|_, file, _| file.truncate(0x2001), "service 'victim'");
    refused(&|_, file, _| file[18] = 3, "service 'victim'");
    refused(&|_, _, system| system.regions[1].pages = 0x10_0000, "'frames'");
    let capability = |object: ObjectDescriptor| {
        refused(
            &|d, _, _| {
                let name = "x".try_into().unwrap();
                d.capabilities.push(CapabilityDescriptor { name, object }).unwrap();
            },
            "'victim'",
        );
    };
    capability(ObjectDescriptor::Endpoint { service: 1 });
    capability(ObjectDescriptor::Notification { service: 31, bits: 1 });
    for bits in [0, FAULT_BIT, RECEIVE_MESSAGES | 1] {
        capability(ObjectDescriptor::Notification { service: 0, bits });
        capability(ObjectDescriptor::Interrupt { line: 4, bits });
    }
    capability(ObjectDescriptor::Region { region: 2, address: REGION_BASE, writable: true });
    capability(ObjectDescriptor::Region { region: 0, address: 0x40_0000, writable: true });
    capability(ObjectDescriptor::Region { region: 0, address: u64::MAX - 0xfff, writable: true });
    capability(ObjectDescriptor::Region { region: 0, address: 0xffff_ffff_8000_0000, writable: true });
    capability(ObjectDescriptor::Region { region: 0, address: REGION_BASE + 8, writable: true });
    capability(ObjectDescriptor::Interrupt { line: 16, bits: 1 });
    capability(ObjectDescriptor::Ports { first: 0xffff, count: 2 });
    capability(ObjectDescriptor::Ports { first: 0, count: 0 });
    capability(ObjectDescriptor::Device { device: 1, address: REGION_BASE, first_bit: 0 });
    capability(ObjectDescriptor::Device { device: 0, address: REGION_BASE, first_bit: 61 });
}

/// A guest on one node.
fn guest(vcpus: u8, pages: u64) -> GuestDescriptor {
    GuestDescriptor {
        platform: 1,
        memory: 0,
        placement: 2,
        carrier: None,
        shares: Shares::from_array([Share { node: 0, vcpus, pages }]),
        keep_pages: 0,
        private_pages: 40,
        priority: 9,
    }
}

/// The usual one.
fn some_guest() -> GuestDescriptor {
    guest(3, 2000)
}

/// Three services that serve a guest, of 16 MiB in all with what they need themselves.
fn guest_image(guest: GuestDescriptor) -> Vec<u8> {
    let mut services = Vec::new();
    for name in ["memory", "platform", "placement"] {
        services.push((service(name, &[("guest", ObjectDescriptor::Guest)]), elf()));
    }
    image(&SystemDescriptor { guest: Some(guest), ..system(3) }, &services)
}

fn virtualization() -> Virtualization {
    let features = Features { next_rip: true, xcr0: 7, ..Features::default() };
    Virtualization { features, permission_maps: [PhysAddr(0x1000), PhysAddr(0x4000)] }
}

#[test]
fn a_guest_gets_its_memory_tables_threads_and_window() {
    let bytes = guest_image(some_guest());
    let memory = [(0x10_0000, 0x20_0000), (0x40_0000, 0x20_0000), (0x7f_f000, 0x80_1000)];
    let mut loaded = load_with(&bytes, &[], &memory, Some(virtualization()));
    loaded.result.unwrap();
    let state = &loaded.state;
    let guest = state.guest.as_ref().unwrap();
    assert_eq!((guest.platform, guest.memory, guest.placement), (ServiceId(1), ServiceId(0), ServiceId(2)));
    assert_eq!(guest.ranges, [(0, 2000), (1 << 20, 0), (PRIVATE_START / 4096, 40)]);
    assert_eq!(
        (guest.features, guest.permission_maps),
        (virtualization().features, virtualization().permission_maps)
    );
    // A frame for each page and one for zeros, up to 2 MiB, in aligned pieces.
    assert_eq!(guest.pool.iter().map(|run| run.pages).sum::<u64>(), 2048);
    assert!(guest.pool.iter().all(|run| run.first.0 % 512 == 0 && run.pages % 512 == 0));
    // The window is the second table.
    let root = state.services[1].root;
    let [(linked, second)] = loaded.spaces.windows[..] else { panic!("{:?}", loaded.spaces.windows) };
    assert_eq!(linked, root);
    let entry = loaded.m.read_u64(guest.nested.root().start());
    assert_eq!((entry & !0xfff, entry & 7), (second.start().0, 7));
    // The vCPUs: threads after those of the services, stopped, each with a state page that the platform sees.
    assert_eq!((state.vcpus.len(), state.threads.len()), (3, 9));
    let pages = state.services[1].translate(VirtAddr(VCPU_PAGES), 3 * 4096).unwrap();
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        let thread = &state.threads[vcpu.thread.index()];
        assert_eq!(
            (vcpu.thread, thread.vcpu),
            (ThreadId::from_index(6 + index), Some(VcpuId::from_index(index)))
        );
        assert_eq!((thread.service, thread.state, thread.priority), (ServiceId(1), ThreadState::Unused, 9));
        assert_eq!((thread.root, thread.core, thread.slot_bit), (root, CoreId::from_index(index % 2), 0));
        assert_eq!(vcpu.page, PhysAddr(pages.0 + 4096 * index as u64));
        let token = thread.token;
        assert_eq!((token.thread(), token.service()), (Some(6 + index), 1));
    }
    let seen = |&&(r, from, to, _): &&(PhysAddr, u64, u64, HostAttributes)| {
        r == root && (from, to) == (VCPU_PAGES, VCPU_PAGES + 3 * 4096)
    };
    let mapped = loaded.spaces.mapped.iter().filter(seen).map(|(_, _, _, with)| with.access);
    assert!(mapped.eq([Access::ReadWrite]));
    // What each holder finds on its start page.
    for service in 0..3 {
        let (page, _) =
            StartPage::read_from_prefix(loaded.m.at(loaded.state.services[service].start_page)).unwrap();
        let entry = page.entries[0];
        assert_eq!((page.entry_count, entry.kind), (1, CapabilityKind::Guest as u16));
        assert_eq!((entry.address, entry.length), (2048, 2000));
        assert_eq!((entry.bits, entry.index), (3 | 1 << 8 | 40 << 32, 1));
        assert_eq!(loaded.state.services[service].capabilities[0], Object::Guest);
    }
    testing::check(&loaded.state);
}

#[test]
fn a_pool_is_made_of_pieces_when_memory_is() {
    // 6 MiB, of which no more than 4 are in one piece.
    let bytes = guest_image(GuestDescriptor { private_pages: 0, ..guest(3, 1535) });
    let memory = [(0x10_0000, 0x50_0000), (0x70_0000, 0x30_0000), (0xb0_0000, 0x50_0000)];
    let loaded = load_with(&bytes, &[], &memory, Some(virtualization()));
    loaded.result.unwrap();
    let guest = loaded.state.guest.unwrap();
    assert!(guest.pool.iter().map(|run| run.pages).eq([1024, 512]), "{:?}", guest.pool);
    let mut runs: Vec<_> = guest.pool.iter().map(|run| (run.start().0, run.end().0)).collect();
    runs.sort_unstable();
    assert!(runs.windows(2).all(|pair| pair[0].1 <= pair[1].0), "pieces overlap: {runs:x?}");
    for (start, end) in runs {
        assert!(memory.iter().any(|&(from, length)| from <= start && end <= from + length));
    }
}

#[test]
fn a_guest_that_memory_cannot_hold_is_refused_by_name() {
    let refused = |guest, memory: &[(u64, u64)], words: &str| {
        let loaded = load_with(&guest_image(guest), &[], memory, Some(virtualization()));
        let error = loaded.result.expect_err(words).to_string();
        assert!(error.contains("'platform'") && error.contains(words), "{error:?} does not say {words:?}");
    };
    let enough = [(0x10_0000, 0x100_0000)];
    refused(some_guest(), &[(0x10_0000, 0x60_0000)], "no memory for");
    refused(guest(3, 1 << 22), &enough, "no memory for");
    // 2 MiB pieces that are not aligned are none.
    refused(
        some_guest(),
        &[(0x10_0000, 0x10_0000), (0x20_1000, 0x3f_e000), (0x60_1000, 0x3f_e000)],
        "no memory for",
    );
    refused(guest(3, 0), &enough, "its guest's memory");
    refused(guest(3, u64::MAX), &enough, "its guest's memory");
    refused(guest(3, (1 << 38) / 4096), &enough, "its guest's memory");
    refused(GuestDescriptor { private_pages: u32::MAX, ..some_guest() }, &enough, "its guest's memory");
    refused(guest(0, 2000), &enough, "number of vCPUs");
    refused(guest(65, 2000), &enough, "number of vCPUs");
    refused(GuestDescriptor { priority: 16, ..some_guest() }, &enough, "its guest's priority");
    refused(GuestDescriptor { memory: 3, ..some_guest() }, &enough, "a service of its guest's");
    refused(GuestDescriptor { placement: 255, ..some_guest() }, &enough, "a service of its guest's");
    let image = guest_image(GuestDescriptor { platform: 3, ..some_guest() });
    let error = load_with(&image, &[], &enough, Some(virtualization())).result.unwrap_err();
    assert!(error.to_string().contains("a service of its guest's"), "{error}");
}

/// Two nodes, of which the second gives less, and a carrier.
fn spanning() -> GuestDescriptor {
    let shares = [Share { node: 1, vcpus: 3, pages: 1000 }, Share { node: 7, vcpus: 2, pages: 100 }];
    GuestDescriptor { carrier: Some(3), shares: Shares::from_iter(shares), ..some_guest() }
}

fn spanning_image(guest: GuestDescriptor) -> Vec<u8> {
    let frames = ("guest-frames", ObjectDescriptor::GuestFrames { address: REGION_BASE });
    let mut services = Vec::new();
    for name in ["memory", "platform", "placement"] {
        services.push((service(name, &[("guest", ObjectDescriptor::Guest)]), elf()));
    }
    services.push((service("carrier", &[("guest", ObjectDescriptor::Guest), frames]), elf()));
    image(&SystemDescriptor { guest: Some(guest), ..system(4) }, &services)
}

#[test]
fn a_node_of_several_has_its_share_and_its_carrier_all_frames() {
    let bytes = spanning_image(spanning());
    // No more than 2 MiB are in one piece.
    let memory = [(0x10_0000, 0x20_0000), (0x40_0000, 0x20_0000), (0x80_0000, 0x30_0000)];
    let mut loaded = load_on(7, &bytes, &[], &memory, Some(virtualization()));
    loaded.result.unwrap();
    let guest = loaded.state.guest.as_ref().unwrap();
    assert_eq!(guest.ranges, [(0, 1100), (1 << 20, 0), (PRIVATE_START / 4096, 40)]);
    // Of 100 pages, 40 private ones, the page of zeros, the carrier's, and 88 for each node.
    assert_eq!(guest.pool.iter().map(|run| run.pages).sum::<u64>(), 1024);
    assert_eq!(loaded.state.vcpus.len(), 2);
    let pool = guest.pool.clone();
    let carrier = &loaded.state.services[3];
    let (page, _) = StartPage::read_from_prefix(loaded.m.at(carrier.start_page)).unwrap();
    assert_eq!((page.entries[0].address, page.entries[0].length), (1024, 1100));
    assert_eq!(page.entries[0].bits, 2 | 2 << 8 | 40 << 32);
    assert_eq!(page.entry_count as usize, 1 + pool.len());
    let mut at = REGION_BASE;
    for ((entry, run), index) in page.entries[1..].iter().zip(&pool).zip(0..) {
        assert_eq!((entry.kind, entry.index), (CapabilityKind::DmaRegion as u16, index));
        assert_eq!((entry.address, entry.length, entry.bits), (at, run.bytes(), run.start().0));
        assert_eq!(carrier.translate(VirtAddr(at), 8), Some(run.start()));
        at += run.bytes();
    }
}

#[test]
fn a_node_without_a_share_has_no_guest() {
    let memory = [(0x10_0000, 0x80_0000)];
    let loaded = load_on(2, &spanning_image(spanning()), &[], &memory, Some(virtualization()));
    loaded.result.unwrap();
    assert!(loaded.state.guest.is_none() && loaded.state.vcpus.is_empty());
}

#[test]
fn a_node_that_would_keep_too_little_says_so() {
    let guest = GuestDescriptor { keep_pages: 1 << 20, ..some_guest() };
    let loaded = load_with(&guest_image(guest), &[], &[(0x10_0000, 0x100_0000)], Some(virtualization()));
    let error = loaded.result.unwrap_err().to_string();
    assert!(error.contains("gives 7 MiB") && error.contains("keep 4096 MiB"), "{error}");
}

#[test]
fn several_shares_need_a_carrier_and_one_has_none() {
    let enough = [(0x10_0000, 0x100_0000)];
    for guest in [
        GuestDescriptor { carrier: None, ..spanning() },
        GuestDescriptor { shares: some_guest().shares, ..spanning() },
        GuestDescriptor { carrier: Some(9), ..spanning() },
    ] {
        let error =
            load_on(1, &spanning_image(guest), &[], &enough, Some(virtualization())).result.unwrap_err();
        assert!(error.to_string().contains("its guest's"), "{error}");
    }
}

#[test]
fn without_virtualization_or_a_guest_nobody_has_the_capability() {
    let with_guest = |guest, services: u8| SystemDescriptor { guest, ..system(services) };
    let alone = (service("platform", &[("guest", ObjectDescriptor::Guest)]), elf());
    let loaded = load_image(&image(&with_guest(None, 1), &[alone]), &[]);
    assert!(loaded.result.unwrap_err().to_string().contains("one of its capabilities"));
    let mut loaded = load_with(&guest_image(some_guest()), &[], &[(0x10_0000, 0x80_0000)], None);
    loaded.result.unwrap();
    assert!(
        loaded.state.guest.is_none() && loaded.state.vcpus.is_empty() && loaded.spaces.windows.is_empty()
    );
    let (page, _) = StartPage::read_from_prefix(loaded.m.at(loaded.state.services[1].start_page)).unwrap();
    assert_eq!(page.entry_count, 0);
}
