//! `[guest]`: what the guest is, and which services serve it.
//!
//! A command line may say otherwise for one run: [`Overrides`] take the place of what the file says before anything is
//! checked.

use std::path::PathBuf;

use guest_kit::early;
use ipc::abi::{MAX_NAME_BYTES, PAGE_SIZE, PRIORITIES};
use ipc::guest::{
    AtEnd, CONFIG_BLOB, GuestConfig, INITRD_BLOB, KERNEL_BLOB, MAX_COMMAND_LINE, MAX_NODES, Share, Shares,
    pool_frames, total_pages, total_vcpus,
};
use ipc::vcpu::{HIGH_MEMORY_START, LOW_MEMORY_END, MAX_VCPUS, PRIVATE_START};

use super::check::find;
use super::fields::Fields;
use super::parse::{Draft, ServiceDraft};
use super::{At, Mistakes};

/// The least memory of a guest in bytes: what Debian's kernel needs to get to its init.
pub const MIN_RAM_BYTES: u64 = 64 << 20;
/// The most memory of a guest in bytes: what lies beyond is the walk cache's.
pub const MAX_RAM_BYTES: u64 = PRIVATE_START - (HIGH_MEMORY_START - LOW_MEMORY_END);
/// Memory of the walk cache's tables.
const TABLES_BYTES: std::ops::RangeInclusive<u64> = 1 << 16..=1 << 30;
const DEFAULT_TABLES_BYTES: u64 = 8 << 20;
/// Memory that a node keeps for itself beyond what its services have.
const KEEP_BYTES: std::ops::RangeInclusive<u64> = 0..=1 << 40;
const DEFAULT_KEEP_BYTES: u64 = 16 << 20;
/// How long the first node waits for the others, in microseconds.
const WAIT_US: std::ops::RangeInclusive<u64> = 1_000_000..=60_000_000_000;
const DEFAULT_WAIT_US: u64 = 60_000_000;
const PAGE: u64 = PAGE_SIZE as u64;

/// Where the guest's kernel comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KernelSource {
    /// Debian's current cloud kernel.
    Debian,
    /// One of the kernels that try the monitor before there is an operating system.
    Early(early::Scenario),
    /// A bzImage.
    File(PathBuf),
}

impl KernelSource {
    /// `debian`, `early:` with the name of one of those, or else a file.
    pub fn named(text: &str) -> Self {
        let early = text.strip_prefix("early:").and_then(|name| name.parse().ok());
        match (text, early) {
            ("debian", _) => Self::Debian,
            (_, Some(scenario)) => Self::Early(scenario),
            (file, None) => Self::File(file.into()),
        }
    }
}

/// Where the guest's initrd comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InitrdSource {
    /// Debian's busybox, with a shell on the console.
    Shell,
    /// The same with the test kit, as `/bin/kit`.
    Kit,
    /// There is none.
    None,
    /// A file.
    File(PathBuf),
}

impl InitrdSource {
    /// `shell`, `kit`, `none`, or else a file.
    pub fn named(text: &str) -> Self {
        match text {
            "shell" => Self::Shell,
            "kit" => Self::Kit,
            "none" => Self::None,
            file => Self::File(file.into()),
        }
    }
}

/// What a command line says of the guest instead of the manifest.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Overrides {
    /// The kernel.
    pub kernel: Option<KernelSource>,
    /// The initrd.
    pub initrd: Option<InitrdSource>,
    /// Linux's command line.
    pub command_line: Option<String>,
    /// How many nodes it spans.
    pub nodes: Option<u8>,
    /// vCPUs of each node.
    pub cpus: Option<u8>,
    /// Memory of each node in bytes.
    pub ram_bytes: Option<u64>,
    /// Memory that each node keeps, in bytes.
    pub keep_bytes: Option<u64>,
    /// Whether the walk cache is on.
    pub walk_cache: Option<bool>,
    /// What becomes of the node when the guest has ended.
    pub at_end: Option<AtEnd>,
}

/// The guest of a sound manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// What the platform's service is told.
    pub config: GuestConfig,
    /// Its kernel.
    pub kernel: KernelSource,
    /// Its initrd.
    pub initrd: InitrdSource,
    /// Memory that a node needs for it, in bytes: the most that one gives, and what it keeps and needs for that.
    pub node_bytes: u64,
}

/// What a single node gives, where it differs.
pub struct OwnShare {
    pub line: usize,
    pub number: u8,
    pub cpus: Option<u8>,
    pub ram_bytes: Option<u64>,
}

/// The guest as it stands in the file.
pub struct GuestDraft {
    pub line: usize,
    pub platform: At<String>,
    pub memory: At<String>,
    pub placement: At<String>,
    pub carrier: Option<At<String>>,
    /// `None`: reported already.
    pub priority: Option<At<u8>>,
    pub nodes: At<u8>,
    /// Of each node, unless said otherwise.
    pub cpus: At<u8>,
    pub ram: At<u64>,
    /// What single nodes give.
    pub own: Vec<OwnShare>,
    pub keep_bytes: u64,
    pub wait_us: u64,
    pub walk_cache: bool,
    pub tables_bytes: u64,
    pub kernel: KernelSource,
    pub initrd: InitrdSource,
    pub command_line: At<String>,
    pub at_end: AtEnd,
}

impl GuestDraft {
    /// The services that serve it, and the key that names each.
    pub fn servers(&self) -> impl Iterator<Item = (&'static str, &At<String>)> {
        let always = [("platform", &self.platform), ("memory", &self.memory), ("placement", &self.placement)];
        always.into_iter().chain(self.carrier.iter().map(|carrier| ("carrier", carrier)))
    }

    /// Whether it spans nodes.
    pub const fn spans(&self) -> bool {
        self.nodes.value > 1
    }

    /// What each node gives.
    pub fn shares(&self) -> Shares {
        let of = |number: u8| {
            let own = self.own.iter().find(|own| own.number == number);
            let cpus = own.and_then(|own| own.cpus).unwrap_or(self.cpus.value);
            let ram = own.and_then(|own| own.ram_bytes).unwrap_or(self.ram.value);
            Share { node: number.into(), vcpus: cpus, pages: ram / PAGE }
        };
        (1..=self.nodes.value).map(of).take(MAX_NODES).collect()
    }

    /// The blobs that the platform's service gets.
    pub fn blobs(&self) -> impl Iterator<Item = &'static str> + use<> {
        let initrd = (self.initrd != InitrdSource::None).then_some(INITRD_BLOB);
        [CONFIG_BLOB, KERNEL_BLOB].into_iter().chain(initrd)
    }

    /// Pages for the walk cache's tables: none when it is off.
    pub fn private_pages(&self) -> u32 {
        // At most 1 GiB. A guest that spans nodes has it on by itself: nested paging makes every walk a write.
        if self.walk_cache || self.spans() {
            u32::try_from(self.tables_bytes / PAGE).unwrap_or(u32::MAX)
        } else {
            0
        }
    }

    /// Frames of the pool of the node that gives the most.
    pub fn most_pages(&self) -> u64 {
        let most = self.shares().iter().map(|share| share.pages).max().unwrap_or(0);
        pool_frames(most, self.private_pages(), self.nodes.value.into())
    }

    /// What the tables of the memory's service take, in bytes: with one node four bytes a page and some for each 512; with
    /// several also eight bytes for each page of its share and two for each page that it may have.
    pub fn table_bytes(&self) -> u64 {
        let pages = total_pages(&self.shares()) + u64::from(self.private_pages());
        let homes = if self.spans() { 12 * self.most_pages() } else { 0 };
        (5 * pages + homes).next_multiple_of(PAGE)
    }

    /// Takes what a command line says.
    pub fn apply(&mut self, with: &Overrides) {
        let Overrides {
            kernel,
            initrd,
            command_line,
            nodes,
            cpus,
            ram_bytes,
            keep_bytes,
            walk_cache,
            at_end,
        } = with.clone();
        self.nodes.value = nodes.unwrap_or(self.nodes.value);
        // What is said for all nodes holds for all nodes.
        for own in &mut self.own {
            own.cpus = own.cpus.filter(|_| cpus.is_none());
            own.ram_bytes = own.ram_bytes.filter(|_| ram_bytes.is_none());
        }
        if nodes.is_some() {
            self.own.retain(|own| own.number <= self.nodes.value);
        }
        self.keep_bytes = keep_bytes.unwrap_or(self.keep_bytes);
        self.kernel = kernel.unwrap_or_else(|| self.kernel.clone());
        self.initrd = initrd.unwrap_or_else(|| self.initrd.clone());
        self.command_line.value = command_line.unwrap_or_else(|| self.command_line.value.clone());
        self.cpus.value = cpus.unwrap_or(self.cpus.value);
        self.ram.value = ram_bytes.unwrap_or(self.ram.value);
        self.walk_cache = walk_cache.unwrap_or(self.walk_cache);
        self.at_end = at_end.unwrap_or(self.at_end);
    }

    /// The guest of a draft that was checked.
    pub fn finish(self) -> Guest {
        let config = GuestConfig {
            shares: self.shares(),
            // At most 60,000.
            patience_s: u16::try_from(self.wait_us / 1_000_000).unwrap_or(u16::MAX),
            // One that is too long was reported.
            command_line: self.command_line.value.as_str().try_into().unwrap_or_default(),
            walk_cache: self.walk_cache,
            at_end: self.at_end,
        };
        let node_bytes = self.most_pages() * PAGE + self.keep_bytes;
        Guest { config, node_bytes, kernel: self.kernel, initrd: self.initrd }
    }
}

/// Reads the table.
pub fn parse(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> GuestDraft {
    let line = fields.line;
    let mut server = |key| {
        let name = fields.name(key, MAX_NAME_BYTES, mistakes);
        fields.need(key, name, mistakes).unwrap_or(At { value: String::new(), line })
    };
    let (platform, memory, placement) = (server("platform"), server("memory"), server("placement"));
    let carrier = fields.name("carrier", MAX_NAME_BYTES, mistakes);
    let priority = fields.number("priority", 0..=PRIORITIES as i64 - 1, mistakes);
    let priority = fields.need("priority", priority, mistakes);
    let nodes = fields.number("nodes", 1..=MAX_NODES as i64, mistakes);
    let own = own_shares(&mut fields, mistakes);
    let keep = fields.size("keep", KEEP_BYTES, mistakes);
    let wait = fields.time_us("wait", WAIT_US, mistakes);
    let cpus = fields.number("cpus", 1..=MAX_VCPUS as i64, mistakes);
    let ram = fields.size("ram", MIN_RAM_BYTES..=MAX_RAM_BYTES, mistakes);
    let ram = fields.need("ram", ram, mistakes);
    let walk_cache = fields.flag("walk-cache", mistakes);
    let tables = fields.size("tables", TABLES_BYTES, mistakes);
    let kernel = fields.text("kernel", mistakes);
    let initrd = fields.text("initrd", mistakes);
    let command_line = fields.text("command-line", mistakes);
    let at_end = at_end(&mut fields, mistakes);
    fields.finish(mistakes);
    GuestDraft {
        line,
        platform,
        memory,
        placement,
        carrier,
        priority,
        nodes: nodes.unwrap_or(At { value: 1, line }),
        own,
        keep_bytes: keep.map_or(DEFAULT_KEEP_BYTES, |keep| keep.value),
        wait_us: wait.map_or(DEFAULT_WAIT_US, |wait| wait.value),
        cpus: cpus.unwrap_or(At { value: 1, line }),
        ram: ram.unwrap_or(At { value: MIN_RAM_BYTES, line }),
        walk_cache,
        tables_bytes: tables.map_or(DEFAULT_TABLES_BYTES, |tables| tables.value),
        kernel: kernel.map_or(KernelSource::Debian, |kernel| KernelSource::named(&kernel.value)),
        initrd: initrd.map_or(InitrdSource::Shell, |initrd| InitrdSource::named(&initrd.value)),
        command_line: command_line.unwrap_or(At { value: String::new(), line }),
        at_end,
    }
}

/// `[[guest.node]]`: what single nodes give.
fn own_shares(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<OwnShare> {
    let mut shares: Vec<OwnShare> = Vec::new();
    for mut fields in fields.tables("node", "guest's node", mistakes) {
        let line = fields.line;
        let number = fields.number("number", 1..=MAX_NODES as i64, mistakes);
        let number = fields.need("number", number, mistakes);
        let cpus = fields.number("cpus", 1..=MAX_VCPUS as i64, mistakes).map(|cpus: At<u8>| cpus.value);
        let ram_bytes = fields.size("ram", MIN_RAM_BYTES..=MAX_RAM_BYTES, mistakes).map(|ram| ram.value);
        fields.finish(mistakes);
        let Some(At { value: number, .. }) = number else { continue };
        if shares.iter().any(|share| share.number == number) {
            mistakes.add(line, format!("node {number} of the guest is there twice"));
        }
        shares.push(OwnShare { line, number, cpus, ram_bytes });
    }
    shares
}

/// Reports what does not fit the nodes together.
fn check_shares(guest: &GuestDraft, mistakes: &mut Mistakes) {
    for own in guest.own.iter().filter(|own| own.number > guest.nodes.value) {
        let (number, nodes) = (own.number, guest.nodes.value);
        mistakes.add(own.line, format!("the guest has no node {number}: 'nodes' is {nodes}"));
    }
    let shares = guest.shares();
    let vcpus = total_vcpus(&shares);
    if vcpus as usize > MAX_VCPUS {
        let text = format!("the nodes give the guest {vcpus} vCPUs together, {MAX_VCPUS} at most");
        mistakes.add(guest.cpus.line, text);
    }
    if total_pages(&shares) > MAX_RAM_BYTES / PAGE {
        let (mib, most) = (total_pages(&shares) / 256, MAX_RAM_BYTES >> 20);
        mistakes.add(guest.ram.line, format!("the nodes give the guest {mib}M together, {most}M at most"));
    }
    if guest.spans() && guest.carrier.is_none() {
        let text =
            "a guest that spans nodes needs a 'carrier': the service that carries its pages between them";
        mistakes.add(guest.nodes.line, text);
    }
}

fn at_end(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> AtEnd {
    let end = fields.text("at-end", mistakes);
    let times = fields.number("times", 1..=i64::from(u32::MAX), mistakes);
    let Some(end) = end else {
        if let Some(times) = &times {
            mistakes.add(times.line, "'times' goes with at-end = \"again\" only");
        }
        return AtEnd::PowerOff;
    };
    match (end.value.as_str(), times) {
        ("power-off", None) => AtEnd::PowerOff,
        ("stay", None) => AtEnd::Stay,
        ("again", Some(At { value, .. })) => AtEnd::Again(value),
        ("again", None) => {
            mistakes.add(end.line, "at-end = \"again\" needs 'times': how often the guest is started in all");
            AtEnd::PowerOff
        }
        ("power-off" | "stay", Some(times)) => {
            mistakes.add(times.line, "'times' goes with at-end = \"again\" only");
            AtEnd::PowerOff
        }
        (other, _) => {
            let text = format!("'at-end' must be power-off, stay or again, but it is \"{other}\"");
            mistakes.add(end.line, text);
            AtEnd::PowerOff
        }
    }
}

/// Reports what does not fit the services that serve the guest.
pub fn check(draft: &Draft, guest: &GuestDraft, mistakes: &mut Mistakes) {
    for (key, server) in guest.servers() {
        let name = &server.value;
        let Some(service) = find(draft, name) else {
            if !name.is_empty() {
                let text = format!("'{key}' of the guest is '{name}', but there is no such service");
                mistakes.add(server.line, text);
            }
            continue;
        };
        if service.supervises() {
            mistakes.add(server.line, format!("'{name}' is the supervisor: it cannot serve the guest"));
        }
        if let (Some(own), Some(other)) = (&guest.priority, &service.priority)
            && other.value >= own.value
        {
            let text = format!(
                "upward call: the guest (priority {}) must be less urgent than the services that serve it, and \
                 '{name}' has {}",
                own.value, other.value
            );
            mistakes.add(own.line, text);
        }
    }
    twice(guest, mistakes);
    check_shares(guest, mistakes);
    if let (Some(platform), Some(memory)) =
        (find(draft, &guest.platform.value), find(draft, &guest.memory.value))
    {
        window(guest, platform, memory, mistakes);
    }
    if let Some(platform) = find(draft, &guest.platform.value) {
        blob_names(draft, guest, platform, mistakes);
    }
    let line = &guest.command_line;
    if line.value.len() > MAX_COMMAND_LINE {
        let bytes = line.value.len();
        let text = format!("the guest's command line is {bytes} bytes long, {MAX_COMMAND_LINE} at most");
        mistakes.add(line.line, text);
    }
    if line.value.contains(['\0', '\n', '\r']) {
        mistakes.add(line.line, "the guest's command line must be one line, without a zero in it");
    }
}

fn twice(guest: &GuestDraft, mistakes: &mut Mistakes) {
    let servers: Vec<_> = guest.servers().collect();
    for (index, (key, server)) in servers.iter().enumerate() {
        let earlier = servers.iter().take(index).find(|(_, other)| other.value == server.value);
        if let Some((other, _)) = earlier.filter(|_| !server.value.is_empty()) {
            let text = format!("'{}' cannot be both '{other}' and '{key}' of the guest", server.value);
            mistakes.add(server.line, text);
        }
    }
}

/// A miss in the window through which the platform sees guest memory is a call to the memory's service.
fn window(guest: &GuestDraft, platform: &ServiceDraft, memory: &ServiceDraft, mistakes: &mut Mistakes) {
    if let (Some(own), Some(other)) = (&platform.priority, &memory.priority)
        && platform.name() != memory.name()
        && other.value >= own.value
    {
        let text = format!(
            "upward call: the guest's memory service must be more urgent than its platform, but '{}' has \
             priority {} and '{}' {}",
            memory.name(),
            other.value,
            platform.name(),
            own.value
        );
        mistakes.add(guest.memory.line, text);
    }
}

fn blob_names(draft: &Draft, guest: &GuestDraft, platform: &ServiceDraft, mistakes: &mut Mistakes) {
    let name = platform.name();
    let regions = platform.regions.iter().map(|region| (&region.name, region.line));
    let channels = draft.channels.iter().filter(|c| c.producer.value == name || c.consumer.value == name);
    let pools = draft.pools.iter().filter(|pool| pool.holders.iter().any(|holder| holder.value == name));
    let all = regions.chain(channels.map(|c| (&c.name, c.line))).chain(pools.map(|p| (&p.name, p.line)));
    for (own, line) in all.filter(|(own, _)| guest.blobs().any(|blob| blob == own.as_str())) {
        mistakes.add(line, format!("'{name}' gets the guest's part '{own}' by this name already"));
    }
}
