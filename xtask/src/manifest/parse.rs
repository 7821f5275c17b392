//! From the manifest's text to a [`Draft`]: everything that a table says by itself is checked here.

use ipc::abi::{
    HEAP_BASE, IMAGE_BASE, IMAGE_END, MAX_NAME_BYTES, MAX_STACK_BYTES, MAX_THREADS_PER_SERVICE, PAGE_SIZE,
    PRIORITIES, REGION_BASE, THREAD_BASE, USER_BITS, USER_END,
};
use ipc::image::{MAX_DEVICE_IDS, RIGHT_INSPECT, RIGHT_READ_LOGS, RIGHT_STOP_NODE, RIGHT_SUPERVISE};
use toml_edit::Document;

use super::fields::{Fields, Lines};
use super::guest::{self, GuestDraft};
use super::{At, Mistakes, Service};

/// A manifest as it stands in its file: each part is well-formed, what they say of each other is not yet checked.
///
/// What could not be read was reported and has a harmless value here, so that the rest can be checked too.
pub struct Draft {
    /// The image's name.
    pub name: String,
    /// Where the services are expected, for what is said of all of them.
    pub line: usize,
    /// The services.
    pub services: Vec<ServiceDraft>,
    /// The channels.
    pub channels: Vec<ChannelDraft>,
    /// The pools.
    pub pools: Vec<PoolDraft>,
    /// The guest.
    pub guest: Option<GuestDraft>,
}

/// A service.
pub struct ServiceDraft {
    pub build: Service,
    pub line: usize,
    /// `None`: reported already.
    pub priority: Option<At<u8>>,
    pub budget_us: u32,
    pub threads: At<u8>,
    pub stack_bytes: u32,
    pub heap_bytes: u32,
    pub core: Option<u8>,
    pub pinned: bool,
    pub beat_ms: Option<At<u32>>,
    pub restart_limit: u16,
    pub restart_period_ms: u32,
    pub rights: u32,
    pub rights_line: usize,
    pub calls: Vec<At<String>>,
    pub notifies: Vec<NotifyDraft>,
    pub ports: Vec<PortsDraft>,
    pub interrupts: Vec<InterruptDraft>,
    pub regions: Vec<RegionDraft>,
    pub devices: Vec<DeviceDraft>,
}

impl ServiceDraft {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.build.name
    }

    /// Whether it is the supervisor.
    pub fn supervises(&self) -> bool {
        self.rights & RIGHT_SUPERVISE != 0
    }
}

/// A notification that a service may raise at another.
pub struct NotifyDraft {
    pub line: usize,
    pub service: String,
    pub name: String,
}

/// A range of I/O ports.
pub struct PortsDraft {
    pub line: usize,
    pub name: String,
    pub first: u16,
    pub count: u16,
}

/// An ISA interrupt.
pub struct InterruptDraft {
    pub line: usize,
    pub name: String,
    pub isa_line: u8,
}

/// Memory of one service.
pub struct RegionDraft {
    pub line: usize,
    pub name: String,
    pub bytes: u64,
    pub kept: bool,
    /// Where the service wants it, when that matters to it.
    pub address: Option<u64>,
}

/// A PCI function.
pub struct DeviceDraft {
    pub line: usize,
    pub name: String,
    pub vendor: u16,
    pub ids: Vec<u16>,
    pub skip: u8,
    pub interrupts: u8,
}

/// A ring in memory that two services share.
pub struct ChannelDraft {
    pub line: usize,
    pub name: String,
    pub producer: At<String>,
    pub consumer: At<String>,
    pub entries: u32,
    pub descriptor_bytes: u32,
}

/// DMA memory that services share.
pub struct PoolDraft {
    pub line: usize,
    pub name: String,
    pub bytes: u64,
    pub holders: Vec<At<String>>,
}

const PAGE: u64 = PAGE_SIZE as u64;
/// The largest region or pool: DMA memory lies below 4 GiB.
const MAX_REGION_BYTES: u64 = 1 << 32;
/// The default of a service's `image`: the largest loaded size of its program.
const DEFAULT_IMAGE_BYTES: u64 = 1 << 20;

/// Reads a manifest. `None` when it is not TOML at all, which is reported too.
pub fn parse(text: &str, mistakes: &mut Mistakes) -> Option<Draft> {
    let lines = Lines::of(text);
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            mistakes.add(lines.line(error.span()), format!("not TOML: {}", error.message()));
            return None;
        }
    };
    let mut fields = Fields::new(document.as_table(), &lines, "manifest", 1);
    let name = fields.name("name", 32, mistakes);
    let name = fields.need("name", name, mistakes).map_or_else(String::new, |name| name.value);
    let mut services = fields.tables("service", "service", mistakes);
    let services: Vec<_> = services.drain(..).map(|table| service(table, mistakes)).collect();
    let mut channels = fields.tables("channel", "channel", mistakes);
    let channels = channels.drain(..).map(|table| channel(table, mistakes)).collect();
    let mut pools = fields.tables("pool", "pool", mistakes);
    let pools = pools.drain(..).map(|table| pool(table, mistakes)).collect();
    let guest = fields.table("guest", "guest", mistakes).map(|table| guest::parse(table, mistakes));
    fields.finish(mistakes);
    let line = services.first().map_or(1, |service| service.line);
    Some(Draft { name, line, services, channels, pools, guest })
}

fn name_of(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> String {
    let name = fields.name("name", MAX_NAME_BYTES, mistakes);
    fields.need("name", name, mistakes).map_or_else(String::new, |name| name.value)
}

#[expect(clippy::cast_possible_truncation, reason = "each number was read within a range that fits")]
fn service(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> ServiceDraft {
    let line = fields.line;
    let name = name_of(&mut fields, mistakes);
    let package = fields.text("package", mistakes).map_or_else(|| name.clone(), |package| package.value);
    let binary = fields.text("binary", mistakes).map_or_else(|| name.clone(), |binary| binary.value);
    let priority = fields.number("priority", 0..=PRIORITIES as i64 - 1, mistakes);
    let priority = fields.need("priority", priority, mistakes);
    let budget = fields.time_us("budget", 1..=u64::from(u32::MAX), mistakes);
    let budget_us = fields.need("budget", budget, mistakes).map_or(0, |budget| budget.value as u32);
    let threads = fields.number("threads", 1..=MAX_THREADS_PER_SERVICE as i64, mistakes);
    let stack = fields.size("stack", PAGE..=MAX_STACK_BYTES, mistakes);
    let heap = fields.size("heap", 0..=THREAD_BASE - HEAP_BASE, mistakes);
    let image = fields.size("image", PAGE..=IMAGE_END - IMAGE_BASE, mistakes);
    let core = fields.number("core", 0..=ipc::abi::MAX_CORES as i64 - 1, mistakes);
    let pinned = fields.flag("pinned", mistakes);
    let beat = fields.time_us("beat", 1_000..=3_600_000_000, mistakes);
    let (restart_limit, restart_period_ms) = restarts(&mut fields, mistakes);
    let (rights, rights_line) = rights(&mut fields, mistakes);
    let draft = ServiceDraft {
        build: Service {
            name,
            package,
            binary,
            image_bytes: image.unwrap_or(At { value: DEFAULT_IMAGE_BYTES, line }),
        },
        line,
        priority,
        budget_us,
        threads: threads.unwrap_or(At { value: 1, line }),
        stack_bytes: stack.map_or(32 << 10, |stack| stack.value as u32),
        heap_bytes: heap.map_or(256 << 10, |heap| heap.value as u32),
        core: core.map(|core| core.value),
        pinned,
        beat_ms: beat.map(|beat| At { value: (beat.value / 1_000) as u32, line: beat.line }),
        restart_limit,
        restart_period_ms,
        rights,
        rights_line,
        calls: fields.texts("calls", mistakes),
        notifies: each(&mut fields, "notifies", "notification", mistakes, notify),
        ports: each(&mut fields, "ports", "port range", mistakes, ports),
        interrupts: each(&mut fields, "interrupts", "interrupt", mistakes, interrupt),
        regions: each(&mut fields, "regions", "region", mistakes, region),
        devices: each(&mut fields, "devices", "device", mistakes, device),
    };
    fields.finish(mistakes);
    draft
}

/// Reads a list of tables, each by `read`.
fn each<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    what: &'static str,
    mistakes: &mut Mistakes,
    read: fn(&mut Fields<'_>, &mut Mistakes) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    for mut table in fields.tables(key, what, mistakes) {
        all.extend(read(&mut table, mistakes));
        table.finish(mistakes);
    }
    all
}

#[expect(clippy::cast_possible_truncation, reason = "the period was read within a range that fits")]
fn restarts(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> (u16, u32) {
    let (mut limit, mut period_ms) = (5, 10_000);
    if let Some(mut table) = fields.table("restarts", "restart limit", mistakes) {
        limit = table.number("limit", 0..=0xffff, mistakes).map_or(limit, |limit| limit.value);
        let period = table.time_us("period", 1_000..=3_600_000_000, mistakes);
        period_ms = period.map_or(period_ms, |period| (period.value / 1_000) as u32);
        table.finish(mistakes);
    }
    (limit, period_ms)
}

fn rights(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> (u32, usize) {
    let mut rights = 0;
    let names = fields.texts("rights", mistakes);
    for name in &names {
        rights |= match name.value.as_str() {
            "supervise" => RIGHT_SUPERVISE,
            "inspect" => RIGHT_INSPECT,
            "read-logs" => RIGHT_READ_LOGS,
            "stop-node" => RIGHT_STOP_NODE,
            other => {
                let text =
                    format!("there is no right '{other}': it is supervise, inspect, read-logs or stop-node");
                mistakes.add(name.line, text);
                0
            }
        };
    }
    let line = names.iter().find(|name| name.value == "supervise").or(names.first());
    (rights, line.map_or(fields.line, |name| name.line))
}

fn notify(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<NotifyDraft> {
    let service = fields.text("service", mistakes);
    let service = fields.need("service", service, mistakes);
    let name = name_of(fields, mistakes);
    Some(NotifyDraft { line: fields.line, service: service?.value, name })
}

fn ports(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<PortsDraft> {
    let name = name_of(fields, mistakes);
    let first = fields.number("first", 0..=0xffff, mistakes);
    let first = fields.need("first", first, mistakes);
    let count = fields.number("count", 1..=0xffff, mistakes);
    let count = fields.need("count", count, mistakes);
    let (first, count): (u16, u16) = (first?.value, count?.value);
    if u32::from(first) + u32::from(count) > 0x1_0000 {
        mistakes.add(fields.line, format!("the ports of '{name}' go past 0xffff, the last there is"));
        return None;
    }
    Some(PortsDraft { line: fields.line, name, first, count })
}

fn interrupt(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<InterruptDraft> {
    let name = name_of(fields, mistakes);
    let line = fields.number("line", 0..=15, mistakes);
    let isa_line = fields.need("line", line, mistakes)?.value;
    Some(InterruptDraft { line: fields.line, name, isa_line })
}

fn region(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<RegionDraft> {
    let name = name_of(fields, mistakes);
    let size = fields.size("size", PAGE..=MAX_REGION_BYTES, mistakes);
    let size = fields.need("size", size, mistakes);
    let kept = fields.flag("kept", mistakes);
    // A number of TOML is signed; the space for regions ends below its largest.
    let space = REGION_BASE.cast_signed()..=(USER_END - PAGE).cast_signed();
    let address = fields.number::<i64>("address", space, mistakes);
    let mut region = RegionDraft { line: fields.line, name, bytes: size?.value, kept, address: None };
    if let Some(address) = address {
        let start = address.value.cast_unsigned();
        if !start.is_multiple_of(PAGE) || start + region.bytes > USER_END {
            let text = format!("the region '{}' must begin at a page and end by {USER_END:#x}", region.name);
            mistakes.add(address.line, text);
            return None;
        }
        region.address = Some(start);
    }
    Some(region)
}

fn device(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<DeviceDraft> {
    let name = name_of(fields, mistakes);
    let vendor = fields.number("vendor", 0..=0xfffe, mistakes);
    let vendor = fields.need("vendor", vendor, mistakes);
    let ids = fields.numbers("ids", 0..=0xffff, mistakes);
    let ids = fields.need("ids", ids, mistakes);
    let skip = fields.number("skip", 0..=0xff, mistakes).map_or(0, |skip| skip.value);
    let bits = i64::from(USER_BITS.count_ones());
    let interrupts = fields.number("interrupts", 0..=bits, mistakes);
    let interrupts = fields.need("interrupts", interrupts, mistakes);
    let ids: At<Vec<u16>> = ids?;
    if ids.value.is_empty() || ids.value.len() > MAX_DEVICE_IDS {
        mistakes.add(ids.line, format!("'ids' must list 1 to {MAX_DEVICE_IDS} device numbers"));
        return None;
    }
    Some(DeviceDraft {
        line: fields.line,
        name,
        vendor: vendor?.value,
        ids: ids.value,
        skip,
        interrupts: interrupts?.value,
    })
}

fn channel(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> ChannelDraft {
    let name = name_of(&mut fields, mistakes);
    let mut side = |key| {
        let side = fields.text(key, mistakes);
        fields.need(key, side, mistakes)
    };
    let (producer, consumer) = (side("producer"), side("consumer"));
    let entries = fields.number("entries", 2..=65_536, mistakes);
    let entries = fields.need("entries", entries, mistakes);
    let descriptor = fields.number("descriptor-bytes", 8..=4_096, mistakes);
    let descriptor = fields.need("descriptor-bytes", descriptor, mistakes);
    let line = fields.line;
    if let Some(entries) = entries.as_ref().filter(|entries: &&At<u32>| !entries.value.is_power_of_two()) {
        mistakes.add(entries.line, "'entries' must be a power of two");
    }
    if let Some(bytes) = descriptor.as_ref().filter(|bytes: &&At<u32>| !bytes.value.is_multiple_of(8)) {
        mistakes.add(bytes.line, "'descriptor-bytes' must be a multiple of 8");
    }
    fields.finish(mistakes);
    let nobody = || At { value: String::new(), line };
    ChannelDraft {
        line,
        name,
        producer: producer.unwrap_or_else(nobody),
        consumer: consumer.unwrap_or_else(nobody),
        entries: entries.map_or(2, |entries| entries.value),
        descriptor_bytes: descriptor.map_or(8, |bytes| bytes.value),
    }
}

fn pool(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> PoolDraft {
    let name = name_of(&mut fields, mistakes);
    let size = fields.size("size", PAGE..=MAX_REGION_BYTES - PAGE, mistakes);
    let size = fields.need("size", size, mistakes);
    let holders = fields.texts("holders", mistakes);
    let line = fields.line;
    if holders.is_empty() {
        mistakes.add(line, format!("the pool '{name}' has no holders"));
    }
    fields.finish(mistakes);
    PoolDraft { line, name, bytes: size.map_or(PAGE, |size| size.value), holders }
}
