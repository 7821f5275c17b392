//! From a draft to the descriptors that the kernel reads: numbers, notification bits, regions and addresses.
//!
//! A capability table holds, in this order: calls, notifications to raise, ports, interrupts, regions, devices,
//! then for each channel its region, the notification to raise at the other side and the one that comes here, then
//! pools, then the guest with its blobs, then the notifications of others that come here.

use ipc::abi::{MAX_CAPABILITIES, MAX_REGIONS, PAGE_SIZE, USER_BITS};
use ipc::channel::region_bytes;
use ipc::image::{
    CapabilityDescriptor, DEVICE_WINDOW_BYTES, DeviceDescriptor, GUEST_CAPABILITY, GUEST_FRAMES,
    GuestDescriptor, MAX_DEVICES, NameString, ObjectDescriptor, RegionDescriptor, RegionKind,
    ServiceDescriptor, SystemDescriptor,
};

use super::Mistakes;
use super::guest::GuestDraft;
use super::parse::{ChannelDraft, Draft, RegionDraft, ServiceDraft};
use super::space::Space;

const PAGE: u64 = PAGE_SIZE as u64;
const LARGE_PAGE: u64 = 2 << 20;
/// The most contiguous pieces that the kernel makes the guest's pool of.
const MAX_POOL_PIECES: usize = 16;
/// Room for a blob in the address space of the service that reads it. How long one is, is known only when it is made.
pub const MAX_BLOB_BYTES: u64 = 1 << 30;

/// Compiles a draft. What cannot be resolved was reported by the checks and is left out; what does not fit in a
/// table is reported here.
pub fn compile(draft: &Draft, mistakes: &mut Mistakes) -> (SystemDescriptor, Vec<ServiceDescriptor>) {
    let mut compiler = Compiler {
        draft,
        mistakes,
        regions: Vec::new(),
        devices: Vec::new(),
        tables: draft.services.iter().map(|_| Table::default()).collect(),
    };
    compiler.fixed_regions();
    for (number, service) in draft.services.iter().enumerate() {
        compiler.own_rights(number, service);
    }
    for channel in &draft.channels {
        compiler.channel(channel);
    }
    compiler.pools();
    let guest = draft.guest.as_ref().and_then(|guest| compiler.guest(guest));
    compiler.incoming();
    compiler.finish(guest)
}

/// What one service gets.
#[derive(Default)]
struct Table {
    capabilities: Vec<CapabilityDescriptor>,
    space: Space,
    /// Notification bits given out, from bit 0.
    bits: u32,
    /// Entries of the start page: a device has several.
    start_entries: usize,
    /// Notifications that come here: name and bit.
    incoming: Vec<(String, u64)>,
}

struct Compiler<'a> {
    draft: &'a Draft,
    mistakes: &'a mut Mistakes,
    regions: Vec<RegionDescriptor>,
    devices: Vec<DeviceDescriptor>,
    tables: Vec<Table>,
}

impl Compiler<'_> {
    /// Takes the addresses that a manifest names, before others are placed around them.
    fn fixed_regions(&mut self) {
        for (service, table) in self.draft.services.iter().zip(&mut self.tables) {
            for region in &service.regions {
                let Some(address) = region.address else { continue };
                if table.space.take(address, region.bytes).is_none() {
                    let text = format!(
                        "overlapping regions: '{}' at {address:#x} lies on another region of '{}', or within a \
                         page of it",
                        region.name,
                        service.name()
                    );
                    self.mistakes.add(region.line, text);
                }
            }
        }
    }

    fn own_rights(&mut self, number: usize, service: &ServiceDraft) {
        let line = service.line;
        for call in &service.calls {
            if let Some(callee) = self.number(&call.value) {
                self.grant(number, &call.value, ObjectDescriptor::Endpoint { service: callee });
            }
        }
        for notify in &service.notifies {
            let Some(target) = self.number(&notify.service) else { continue };
            let bits = self.incoming_bit(usize::from(target), &notify.name, notify.line);
            self.grant(number, &notify.name, ObjectDescriptor::Notification { service: target, bits });
        }
        for ports in &service.ports {
            let object = ObjectDescriptor::Ports { first: ports.first, count: ports.count };
            self.grant(number, &ports.name, object);
        }
        for interrupt in &service.interrupts {
            let bit = self.bits(number, 1, interrupt.line);
            let object = ObjectDescriptor::Interrupt { line: interrupt.isa_line, bits: 1 << bit };
            self.grant(number, &interrupt.name, object);
        }
        for region in &service.regions {
            self.own_region(number, region);
        }
        for device in &service.devices {
            let first_bit = self.bits(number, u32::from(device.interrupts), device.line);
            let index = self.devices.len();
            self.devices.push(DeviceDescriptor {
                name: name(&device.name),
                vendor: device.vendor,
                device_ids: device.ids.iter().copied().collect(),
                skip: device.skip,
                interrupts: device.interrupts,
            });
            if index >= MAX_DEVICES {
                self.mistakes.add(device.line, format!("too many devices: {MAX_DEVICES} at most"));
                continue;
            }
            let address = self.place(number, DEVICE_WINDOW_BYTES, DEVICE_WINDOW_BYTES, line);
            let object = ObjectDescriptor::Device { device: small(index), address, first_bit };
            self.grant(number, &device.name, object);
            // Six BARs at most, the configuration space, and the interrupts are an entry each.
            self.entries(number, 6 + usize::from(device.interrupts), line);
        }
    }

    fn own_region(&mut self, number: usize, region: &RegionDraft) {
        let kind = if region.kept { RegionKind::Kept } else { RegionKind::Private };
        let index = self.region(&region.name, region.bytes, kind, region.line);
        let address = match region.address {
            Some(address) => address,
            None => self.place(number, region.bytes, PAGE, region.line),
        };
        let object = ObjectDescriptor::Region { region: index, address, writable: true };
        self.grant(number, &region.name, object);
    }

    fn channel(&mut self, channel: &ChannelDraft) {
        let bytes = region_bytes(channel.entries as usize, channel.descriptor_bytes as usize) as u64;
        let bytes = bytes.next_multiple_of(PAGE);
        let index = self.region(&channel.name, bytes, RegionKind::Shared, channel.line);
        let sides = [&channel.producer.value, &channel.consumer.value];
        let [Some(producer), Some(consumer)] = sides.map(|side| self.number(side)) else { return };
        let bits = [producer, consumer].map(|side| self.bits(usize::from(side), 1, channel.line));
        let ends = [(producer, bits[0]), (consumer, bits[1])];
        for (own, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let number = usize::from(own.0);
            let address = self.place(number, bytes, PAGE, channel.line);
            let region = ObjectDescriptor::Region { region: index, address, writable: true };
            self.grant(number, &channel.name, region);
            for (service, bit) in [other, own] {
                let object = ObjectDescriptor::Notification { service, bits: 1 << bit };
                self.grant(number, &channel.name, object);
            }
        }
    }

    fn pools(&mut self) {
        for pool in &self.draft.pools {
            let index = self.region(&pool.name, pool.bytes, RegionKind::Dma, pool.line);
            for holder in &pool.holders {
                let Some(number) = self.number(&holder.value).map(usize::from) else { continue };
                let address = self.place(number, pool.bytes, PAGE, pool.line);
                let object = ObjectDescriptor::Region { region: index, address, writable: true };
                self.grant(number, &pool.name, object);
            }
        }
    }

    /// Gives the guest to the services that serve it, and its parts to its platform.
    fn guest(&mut self, guest: &GuestDraft) -> Option<GuestDescriptor> {
        let [platform, memory, placement] =
            [&guest.platform, &guest.memory, &guest.placement].map(|server| self.number(&server.value));
        let (platform, memory, placement) = (platform?, memory?, placement?);
        let carrier = guest.carrier.as_ref().filter(|_| guest.spans());
        let carrier = carrier.and_then(|carrier| self.number(&carrier.value));
        for server in [platform, memory, placement].into_iter().chain(carrier) {
            self.grant(usize::from(server), GUEST_CAPABILITY, ObjectDescriptor::Guest);
        }
        if let Some(carrier) = carrier.map(usize::from) {
            let bytes = (guest.most_pages() * PAGE).next_multiple_of(LARGE_PAGE);
            let address = self.place(carrier, bytes, LARGE_PAGE, guest.line);
            self.grant(carrier, GUEST_FRAMES, ObjectDescriptor::GuestFrames { address });
            // The pool may be in pieces.
            self.entries(carrier, MAX_POOL_PIECES, guest.line);
        }
        let number = usize::from(platform);
        for blob in guest.blobs() {
            let region = self.region(blob, PAGE, RegionKind::Blob, guest.line);
            let address = self.place(number, MAX_BLOB_BYTES, PAGE, guest.line);
            self.grant(number, blob, ObjectDescriptor::Region { region, address, writable: false });
        }
        Some(GuestDescriptor {
            platform,
            memory,
            placement,
            carrier,
            shares: guest.shares(),
            keep_pages: guest.keep_bytes / PAGE,
            private_pages: guest.private_pages(),
            priority: guest.priority.as_ref().map_or(0, |priority| priority.value),
        })
    }

    /// Tells each service of the bits that others may raise at it.
    fn incoming(&mut self) {
        for number in 0..self.tables.len() {
            for (name, bits) in std::mem::take(&mut self.tables[number].incoming) {
                let object = ObjectDescriptor::Notification { service: small(number), bits };
                self.grant(number, &name, object);
            }
        }
    }

    fn number(&self, name: &str) -> Option<u8> {
        self.draft.services.iter().position(|service| service.name() == name).map(small)
    }

    /// The bit that a named notification raises at its target: the same for all who may raise it.
    fn incoming_bit(&mut self, target: usize, name: &str, line: usize) -> u64 {
        if let Some((_, bit)) = self.tables[target].incoming.iter().find(|(known, _)| known == name) {
            return *bit;
        }
        let bit = 1 << self.bits(target, 1, line);
        self.tables[target].incoming.push((name.to_owned(), bit));
        bit
    }

    /// The first of `count` bits that nothing else raises at a service.
    fn bits(&mut self, number: usize, count: u32, line: usize) -> u8 {
        let all = USER_BITS.count_ones();
        let table = &mut self.tables[number];
        if table.bits + count > all {
            let service = self.draft.services[number].name();
            self.mistakes.add(line, format!("too many notification bits for '{service}': {all} at most"));
            return 0;
        }
        let first = table.bits;
        table.bits += count;
        small(first as usize)
    }

    fn region(&mut self, region: &str, bytes: u64, kind: RegionKind, line: usize) -> u8 {
        if self.regions.len() == MAX_REGIONS {
            self.mistakes.add(line, format!("too many regions: {MAX_REGIONS} at most"));
            return 0;
        }
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.regions.push(RegionDescriptor { name: name(region), pages, kind });
        small(self.regions.len() - 1)
    }

    fn place(&mut self, number: usize, bytes: u64, align: u64, line: usize) -> u64 {
        self.tables[number].space.place(bytes, align).unwrap_or_else(|| {
            let service = self.draft.services[number].name();
            self.mistakes.add(line, format!("no room in the address space of '{service}'"));
            0
        })
    }

    fn grant(&mut self, number: usize, capability: &str, object: ObjectDescriptor) {
        self.tables[number].capabilities.push(CapabilityDescriptor { name: name(capability), object });
        self.entries(number, 1, self.draft.services[number].line);
    }

    fn entries(&mut self, number: usize, more: usize, line: usize) {
        let table = &mut self.tables[number];
        let before = table.start_entries;
        table.start_entries += more;
        if before <= MAX_CAPABILITIES && table.start_entries > MAX_CAPABILITIES {
            let service = self.draft.services[number].name();
            let text = format!("too many capabilities for '{service}': {MAX_CAPABILITIES} at most");
            self.mistakes.add(line, text);
        }
    }

    fn finish(self, guest: Option<GuestDescriptor>) -> (SystemDescriptor, Vec<ServiceDescriptor>) {
        let system = SystemDescriptor {
            name: heapless::String::try_from(self.draft.name.as_str()).unwrap_or_default(),
            service_count: small(self.draft.services.len()),
            regions: self.regions.into_iter().take(MAX_REGIONS).collect(),
            devices: self.devices.into_iter().take(MAX_DEVICES).collect(),
            guest,
        };
        let guest = self.draft.guest.as_ref();
        let tables = |service: &ServiceDraft| match guest.filter(|guest| guest.memory.value == service.name())
        {
            Some(guest) => u32::try_from(guest.table_bytes()).unwrap_or(u32::MAX - u32::MAX % 4096),
            None => 0,
        };
        let describe = |(service, table): (&ServiceDraft, Table)| ServiceDescriptor {
            name: name(service.name()),
            priority: service.priority.as_ref().map_or(0, |priority| priority.value),
            budget_us: service.budget_us,
            threads: service.threads.value,
            stack_bytes: service.stack_bytes,
            heap_bytes: service.heap_bytes.saturating_add(tables(service)),
            core: service.core,
            pinned: service.pinned,
            restart_limit: service.restart_limit,
            restart_period_ms: service.restart_period_ms,
            beat_ms: service.beat_ms.as_ref().map_or(0, |beat| beat.value),
            rights: service.rights,
            capabilities: table.capabilities.into_iter().take(MAX_CAPABILITIES).collect(),
        };
        (system, self.draft.services.iter().zip(self.tables).map(describe).collect())
    }
}

/// A name for a descriptor. One that is too long was reported.
fn name(text: &str) -> NameString {
    NameString::try_from(text).unwrap_or_default()
}

/// An index for a descriptor. One that is too large was reported.
fn small(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}
